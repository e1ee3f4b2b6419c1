"""Configurations of stages: frozen, bounded, light to import for ``--help``.

Descriptions are the command line's help texts.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Precision = Literal["auto", "fp32", "bf16"]
Dtype = Literal["fp32", "fp16", "int8"]  # of what a synthetic set's file stores
Source = Literal[
    "real",
    "random",
    "random-raw",
    "random-jpeg",
    "herding",
    "dm",
    "dc",
    "gan",
    "gan-fresh",
    "inversion",
    "itgan",
    "itgan-plus",
]
Layers = Literal["last", "all"]
Schedule = Annotated[
    Literal["constant", "cosine"],
    Field(description="the learning rate stays, or falls to zero along half a cosine wave"),
]
Basis = Annotated[
    Literal["latent", "principal"],
    Field(
        description="coordinates that Adam steps along: the latents' own, or the principal "
        "directions of their images (eigenvectors of the mean curvature)"
    ),
]
Figure = Literal["frechet", "kernel", "precision", "recall", "density", "coverage", "cas"]
Weights = Literal["average", "raw"]
ImageSize = Annotated[int, Field(ge=4, le=1024)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Rate = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _held_out(value: int | float) -> int | float:
    if not (value == int(value) if value >= 1 else 0 <= value < 1):
        raise ValueError(
            f"give 0, a whole number of images, or a fraction of them in (0, 1), not {value}"
        )
    return value if 0 < value < 1 else int(value)


HeldOut = Annotated[
    int | float, Field(ge=0, le=100_000_000, allow_inf_nan=False), AfterValidator(_held_out)
]

NETWORK_NAMES = (
    "convnet, vgg19, resnet18, wrn-16-8, mobilenetv2; NAME@PIXELS enlarges its images to that; "
    "MODULE:CALLABLE is your own"
)
AUGMENTATION = "color_crop_cutout_flip_scale_rotate"


class Config(BaseModel):
    """A frozen configuration; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def identity(self) -> dict[str, Any]:
        """The fields that the result depends on, as JSON values."""
        return self.model_dump(mode="json")


def refuse_repeats(config: Config, *fields: str) -> None:
    """A field of several values must not name one twice, nor none."""
    for field in fields:
        values = getattr(config, field)
        if values is not None and (len(set(values)) != len(values) or not values):
            raise ValueError(f"{field}: give at least one value, each once")


AnyConfig = TypeVar("AnyConfig", bound=Config)


def with_precision(config: AnyConfig, precision: str) -> AnyConfig:
    """A copy, in which every precision that was left open is this one."""
    changes: dict[str, Any] = {}
    for name in config.__class__.model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            changes[name] = with_precision(value, precision)
        elif name == "precision" and value == "auto":
            changes[name] = precision
    return config.model_copy(update=changes)


COMPILE = Field(
    False, description="compile the networks (needs a C++ compiler; pays on long work)"
)


class EvaluationConfig(Config):
    """How a classifier is trained: SGD with momentum, the learning rate falls tenfold half-way."""

    network: str = Field("convnet", description=f"network to train: {NETWORK_NAMES}")
    epochs: Count = Field(200, description="passes over the set (used unless updates is given)")
    updates: Count | None = Field(
        None, description="number of gradient steps, whatever the set's size"
    )
    batch_size: Count = Field(256, description="images per step; the whole set when it is smaller")
    learning_rate: Rate = Field(0.01, description="learning rate of the first half")
    momentum: Share = Field(0.9, description="momentum; its buffer is reset half-way")
    weight_decay: Share = Field(5e-4, description="L2 penalty")
    augmentation: str = Field(AUGMENTATION, description="operation groups joined by _, or none")
    precision: Precision = Field("auto", description="auto is fp32 on a CPU and bf16 on a GPU")
    compile: bool = COMPILE
    curve_points: int = Field(
        0,
        ge=0,
        le=1000,
        description="accuracy on the images that score is also measured this often along the "
        "training, for curves",
    )

    def identity(self) -> dict[str, Any]:
        """Updates, where given, stand in for epochs."""
        values = super().identity()
        del values["epochs" if self.updates else "updates"]
        return values


class EncoderConfig(Config):
    """How an encoder of images is trained: on pairs that the generator makes, then on Eq. 8."""

    width: Annotated[int, Field(ge=1, le=1024)] = Field(
        16, description="a quarter of the channels of its convolutions"
    )
    pair_steps: Count = Field(1000, description="steps on pairs (G(z, y), z)")
    refine_steps: int = Field(
        500, ge=0, le=10_000_000, description="steps on real images, with the inversion's loss"
    )
    batch_size: Count = Field(64, description="images per step")
    learning_rate: Rate = Field(
        1e-3, description="Adam's learning rate; falls to zero, from a third of it on real images"
    )


class InversionConfig(Config):
    """How latents are fitted to real images (Eq. 8), by Adam."""

    steps: Count = Field(300, description="Adam steps (paper: 5000)")
    learning_rate: Rate = Field(0.1, description="Adam's learning rate on the latents")
    schedule: Schedule = "constant"
    basis: Basis = "latent"
    batch_size: Count = Field(
        100, description="images fitted at a time; does not change the result"
    )
    lambda_pixel: Weight = Field(1.0, description="weight of the pixel distance")
    lambda_prior: Weight = Field(0.0, description="weight of the latent's mean square")
    start: Literal["random", "best-of", "encoder", "own-encoder"] = Field(
        "random",
        description="N(0, I), the nearest in features of several draws, the guess of an encoder "
        "that is trained for it, or that of the encoder in the autoencoder's own file",
    )
    candidates: Annotated[int, Field(ge=1, le=10_000)] = Field(
        16, description="draws for each image that best-of chooses from"
    )
    encoder: EncoderConfig = Field(EncoderConfig(), description="training of the encoder")
    tolerance: Share = Field(
        0.0,
        description="an image leaves early when its loss has fallen by less than this share from "
        "one window to the next (0: never)",
    )
    window: Count = Field(20, description="steps of a window")
    restart_share: Share = Field(
        0.0,
        description="share of the images, the worst, that start again from another point; the "
        "better latent is kept",
    )
    control: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="images of the generator's own that are inverted as a check (see the history)",
    )
    precision: Precision = Field("auto", description="auto is fp32 on a CPU and bf16 on a GPU")
    compile: bool = COMPILE
    extractor: EvaluationConfig = Field(
        EvaluationConfig(epochs=20),
        description="training of the feature extractor on the real images",
    )

    def identity(self) -> dict[str, Any]:
        """Without options of ways not taken; extractor and encoder are inputs of their own."""
        values = super().identity()
        unused = {"extractor", "encoder"}
        unused |= set() if self.start == "best-of" else {"candidates"}
        unused |= set() if self.tolerance else {"window"}
        unused |= set() if self.schedule == "cosine" else {"schedule"}
        unused |= set() if self.basis == "principal" else {"basis"}
        return {name: value for name, value in values.items() if name not in unused}


class PoolConfig(Config):
    """Where the networks that images are matched in come from."""

    kind: Literal["random", "snapshots"] = Field(
        "random", description="untrained networks, or snapshots along the training of some"
    )
    networks: Count = Field(10, description="networks that are trained")
    snapshots: Count = Field(
        10, description="snapshots kept of each along its training, densest at first"
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the training rows that measures the snapshots' accuracy"
    )
    window: tuple[Share, Share] = Field(
        (0.0, 1.0), description="accuracies of the snapshots that are drawn from"
    )
    training: EvaluationConfig = Field(
        EvaluationConfig(epochs=20), description="how the networks are trained"
    )

    @model_validator(mode="after")
    def _window_opens(self) -> "PoolConfig":
        low, high = self.window
        if low > high:
            raise ValueError(f"pool.window: {low:g} is above {high:g}; give the lower bound first")
        return self

    def identity(self) -> dict[str, Any]:
        """What the snapshots depend on: neither the window nor fields that a pool overrules."""
        training = self.training.identity()
        for unused in ("network", "curve_points"):
            del training[unused]
        own = self.model_dump(mode="json", exclude={"window"})
        return {**own, "spacing": "cubic", "training": training}


# Fields younger than stored results, which are named without them.
LATER = (
    "start",
    "ridge",
    "lambda_class",
    "layers",
    "average",
    "gains_rate",
    "schedule",
    "basis",
)


class CondensationConfig(Config):
    """How latents are made informative (Eq. 9-11), by Adam."""

    steps: Count = Field(
        300, description="passes over the bank, one step for each latent (paper: 5000)"
    )
    learning_rate: Rate = Field(
        0.01, description="Adam's learning rate on the latents (paper: 0.001)"
    )
    start: Literal["inverted", "random"] = Field(
        "inverted",
        description="latents begin where the inversion left them, or at random draws, which no "
        "inversion precedes",
    )
    schedule: Schedule = "constant"
    basis: Basis = "latent"
    optimiser: Literal["adam", "sgd"] = Field("adam", description="how latents descend")
    momentum: Share = Field(0.5, description="momentum of sgd")
    shard_per_class: Count | None = Field(
        None,
        description="latents of a class that are matched together; if not given, the whole class",
    )
    real_per_class: Count = Field(
        256, description="real images of a class in the independent batch"
    )
    lambda_reg: Share = Field(0.0, description="weight of the pairwise regulariser (Eq. 10)")
    lambda_class: Weight = Field(
        0.0,
        description="weight of the cross-entropy of the generated images in the networks that are "
        "drawn, where a trained pool's classify them (0: none)",
    )
    matching: Literal["distribution", "gradient", "regression"] = Field(
        "distribution",
        description="what is matched between real and synthetic images: mean features, mean "
        "gradients, or the targets of real ones, by ridge regression from features of synthetic "
        "ones",
    )
    ridge: Weight = Field(
        1.0,
        description="penalty of the regression, as a multiple of the mean squared norm of the "
        "features",
    )
    layers: Layers = Field(
        "last",
        description="mean features are matched before the classifier alone, or after every block "
        "of the network, each as heavy as if it had as many features as the last",
    )
    splitting: Literal["fixed", "random"] = Field(
        "fixed", description="shards keep their members, or are dealt anew at every step"
    )
    network_per: Literal["step", "class"] = Field(
        "step", description="all classes share a step's network, or each class draws its own"
    )
    embeddings_per_step: Count = Field(
        1, description="networks and augmentations drawn per generator pass"
    )
    average: Share = Field(
        0.0,
        description="share of the steps, the last ones, that the latents (and gains) which come "
        "out are the means of (0: those of the last step)",
    )
    gains_rate: Weight = Field(
        0.0,
        description="Adam's learning rate on a BigGAN's class gains and biases, which are then "
        "condensed along (0: the generator stays frozen)",
    )
    network: str = Field("convnet", description=f"embedding network: {NETWORK_NAMES}")
    pool: PoolConfig = Field(PoolConfig(), description="where embedding networks come from")
    augmentation: str = Field(
        AUGMENTATION, description="Siamese operation groups joined by _, or none"
    )
    precision: Precision = Field("auto", description="auto is fp32 on a CPU and bf16 on a GPU")
    fp32_share: Share = Field(
        0.0,
        description="share of the steps, the last ones, that is in fp32 whatever the precision",
    )
    compile: bool = COMPILE
    micro_batch: Count | Literal["auto"] = Field(
        500,
        description="most images that go through the networks at once, which bounds the memory; "
        "auto measures what is fastest here, and keeps it",
    )
    kept_graphs: Count = Field(
        1,
        description="micro-batches that stay in memory from the pass that sums to the pass that "
        "differentiates; the others are computed twice",
    )

    @model_validator(mode="after")
    def _layers_are_of_features(self) -> "CondensationConfig":
        if self.layers == "all" and self.matching == "gradient":
            raise ValueError(
                "layers: gradients are of all layers already; leave it at last, or match "
                "distribution"
            )
        return self

    @model_validator(mode="after")
    def _regression_has_classes(self) -> "CondensationConfig":
        if self.matching == "regression" and self.network_per == "class":
            raise ValueError(
                "network_per: a regression tells classes apart, so all share a step's network; "
                "leave it at step"
            )
        return self

    @model_validator(mode="after")
    def _schedules_are_of_adam(self) -> "CondensationConfig":
        if self.schedule != "constant" and self.optimiser != "adam":
            raise ValueError(f"schedule: {self.schedule} is for adam; sgd keeps its rate")
        if self.basis != "latent" and self.optimiser != "adam":
            raise ValueError(f"basis: {self.basis} is for adam; sgd goes down the gradient")
        return self

    def identity(self) -> dict[str, Any]:
        """Without options of ways not taken; a trained pool is an input of its own."""
        values = super().identity()
        if self.optimiser == "adam":
            del values["momentum"]
        for name in LATER:
            if values[name] == CondensationConfig.model_fields[name].default:
                del values[name]
        random = self.pool.kind == "random"
        values["pool"] = "random" if random else {"window": list(self.pool.window)}
        return values


PLUS: dict[str, Any] = {  # what itgan-plus adds to itgan
    "pool": PoolConfig(kind="snapshots", networks=3, snapshots=20),
    "matching": "regression",
    "lambda_class": 0.05,
}


class DCConfig(Config):
    """Gradient matching in pixels (DC; with augmentation DSA), by SGD on the images."""

    steps: Count = Field(1000, description="network initialisations")
    image_steps: Count | None = Field(
        None,
        description="steps of the images for each (default as published: 1, 10, 50 for as many "
        "images per class)",
    )
    network_epochs: Annotated[int, Field(ge=0, le=10_000_000)] | None = Field(
        None,
        description="passes over the synthetic set that train the network between two of them "
        "(default as published: 1, 50, 10 for 1, 10, 50 images per class)",
    )
    learning_rate: Rate = Field(0.1, description="learning rate of the pixels")
    momentum: Share = Field(0.5, description="momentum of the pixels")
    real_per_class: Count = Field(256, description="real images of a class in its batch")
    network: str = Field("convnet", description=f"network: {NETWORK_NAMES}")
    network_rate: Rate = Field(0.01, description="learning rate of the network, plain SGD")
    batch_size: Count = Field(256, description="images per step of the network")
    augmentation: str = Field(
        "none", description="Siamese operation groups joined by _ (DSA), or none (DC)"
    )
    precision: Precision = Field("auto", description="auto is fp32 on a CPU and bf16 on a GPU")
