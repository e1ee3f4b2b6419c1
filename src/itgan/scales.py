"""How large the experiments of a study are: the paper's, small enough for two cores, or tiny."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from itgan.configs import Dtype
from itgan.recipes import cifar10_cpu, cifar10_paper, cifar100_paper, digits
from itgan.run_configs import RunConfig

ScaleName = Literal["paper", "cpu", "smoke"]
COMPARED: tuple[Dtype, ...] = ("fp32", "int8")  # sets whose bytes real images and DM are given
NETWORKS = {
    "ConvNet": "convnet",
    "VGG19": "vgg19",
    "ResNet18": "resnet18",
    "WRN-16-8": "wrn-16-8",
    "MobileNetV2": "mobilenetv2",
}


@dataclass(frozen=True)
class Scale:
    """How large the experiments are: the paper's, or small enough for two CPU cores.

    Attributes:
        whole: for each data set, the experiment of Tables 1-3 and of the curves.
        bound: changes to the evaluation of Table 1's upper bound.
        network: what Table 1 and the curves train.
        storage: changes in Table 2, which trains two networks.
        across: changes in Table 3, which trains five.
        curves: changes in Figures 3 and 4.
        few: the ablations that the paper runs at 100 latents per class.
        many: those that it runs at 500.
        shards: latents matched together for the splits 1, 2, 4 and 5 of Table 5.
        pool: fields of the pool of Table 7.
        sizes: latents per class of Figure 5, and of the studies of our own.
        fewer_dimensions: of latents, in the study of accuracy and bytes.
        main: the experiment of those studies.
        pixels: pixel images per class in the bytes of a synthetic set, by data set, latents per
            class and storage type.
        additions: that of the additions to IT-GAN.
        schedules: changes to the evaluation, by name: a short and a long training.
        more: latents of IT-GAN plus in int8, in the place of one in fp32, in fewer bytes.
        networks: the paper's architectures.
    """

    whole: Mapping[str, RunConfig]
    bound: Mapping[str, Any]
    network: str
    storage: Mapping[str, Any]
    across: Mapping[str, Any]
    curves: Mapping[str, Any]
    few: RunConfig
    many: RunConfig
    shards: tuple[int, int, int, int]
    pool: Mapping[str, Any]
    sizes: tuple[int, ...]
    fewer_dimensions: int
    main: RunConfig
    pixels: Mapping[tuple[str, int | None, Dtype], int]
    additions: RunConfig
    schedules: Mapping[str, Mapping[str, Any]]
    more: int = 2
    networks: Mapping[str, str] = field(default_factory=lambda: NETWORKS)


def vary(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A config with nested fields replaced, checked."""

    def merge(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        both = {**base, **new}
        for key, value in new.items():
            if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
                both[key] = merge(base[key], value)
        return both

    return RunConfig.model_validate(merge(config.model_dump(), changes))


def paper_scale() -> Scale:
    """As published: a GPU and days. Ablations train ResNet18, the network of most experiments."""
    ten, hundred = cifar10_paper(), cifar100_paper()
    ablation = {"condensation": {"lambda_reg": 0.0}}
    return Scale(
        whole={"CIFAR10": ten, "CIFAR100": hundred},
        bound={},
        network="resnet18",
        storage={},
        across={},
        curves={},
        few=vary(ten, {**ablation, "latents_per_class": 100}),
        many=vary(ten, {**ablation, "latents_per_class": 500}),
        shards=(500, 250, 125, 100),
        pool={"networks": 100, "training": {"epochs": 200}},
        sizes=(50, 100, 250, 500, 1000, 1250),
        fewer_dimensions=32,
        main=ten,
        # For parts of the set as many as latents, until the generator is known.
        pixels={("CIFAR10", None, "fp32"): 1250, ("CIFAR100", None, "fp32"): 125},
        additions=ten,
        schedules={"200 epochs": {}, "600 epochs": {"epochs": 600}},
    )


def cpu_scale() -> Scale:
    """50 latents per class and the ConvNet, on two CPU cores; CIFAR-100 has no small generator.

    Six sets with two networks each, three in Tables 4 to 7 and for the additions to IT-GAN; an
    interval is over sets. Tables 2 and 3 and the curves have three sets with one network each, and
    take 160 updates in Table 2 and 480 in Table 3: 20 and 60 epochs of 500 images. Tables 4 to 7
    take 60 steps at a constant rate, as the paper's have one, in fp32, and draw 50 real images per
    class; Tables 5 and 6 draw 32, for every shard draws its own. The additions are compared after
    60 steps, too.
    """
    once = {"latent_seeds": (0, 1, 2), "network_seeds": (0,)}
    full = {"precision": "fp32"}
    sixty = {"steps": 60}
    short = {"steps": 60, "schedule": "constant", "learning_rate": 0.01, "basis": "latent"}
    drawn = {"real_per_class": 50, "micro_batch": 50}  # gradients of one class go together
    base = vary(
        cifar10_cpu(),
        {
            "latent_seeds": (0, 1, 2),
            "inversion": full,
            "condensation": {**short, **full, **drawn},
            "evaluation": full,
        },
    )
    return Scale(
        whole={"CIFAR10": cifar10_cpu()},
        bound={"updates": None, "epochs": 4},
        network="convnet",
        storage={**once, "evaluation": {"updates": 160, "compile": False}},
        across={**once, "evaluation": {"updates": 480, "compile": False}},
        curves={**once, "evaluation": {"curve_points": 5}},
        few=base,
        many=vary(base, {"condensation": {"real_per_class": 32}}),
        shards=(50, 25, 13, 10),
        pool=cifar10_cpu().plus.pool.model_dump(exclude={"kind", "window"}),
        sizes=(10, 50, 100),
        fewer_dimensions=32,
        main=cifar10_cpu(),
        pixels={
            ("CIFAR10", 10, "fp32"): 50,
            ("CIFAR10", 50, "fp32"): 57,
            ("CIFAR10", 100, "fp32"): 65,
            ("CIFAR10", 10, "int8"): 12,
            ("CIFAR10", 50, "int8"): 14,
            ("CIFAR10", 100, "int8"): 16,
            ("CIFAR100", 50, "fp32"): 14,
        },
        additions=vary(
            cifar10_cpu(),
            {
                "latent_seeds": (0, 1, 2),
                "condensation": sixty,
                "plus": sixty,
            },
        ),
        schedules={"200 updates": {}, "600 updates": {"updates": 600}},
    )


def smoke_scale() -> Scale:
    """Digits, a few steps: every view once through, to no figure's credit."""
    short = {"updates": 4, "batch_size": 64}
    base = vary(
        digits(),
        {
            "recipe": "smoke",
            "latents_per_class": 5,
            "latent_seeds": (0,),
            "network_seeds": (0,),
            "inversion": {"steps": 2, "extractor": short},
            "condensation": {"steps": 2, "real_per_class": 8},
            "plus": {
                "steps": 2,
                "real_per_class": 8,
                "pool": {"networks": 1, "training": short},
            },
            "dm": {"steps": 2, "real_per_class": 8},
            "evaluation": {**short, "curve_points": 0},
        },
    )
    return Scale(
        whole={"CIFAR10": base, "CIFAR100": base},
        bound={},
        network="convnet",
        storage={},
        across={},
        curves={"evaluation": {"curve_points": 2}},
        few=base,
        many=base,
        shards=(5, 3, 2, 1),
        pool={
            "networks": 2,
            "snapshots": 60,  # so slow that some fall into every window
            "training": {
                "updates": 60,
                "learning_rate": 0.002,
                "momentum": 0.2,
                "augmentation": "none",
            },
        },
        sizes=(2, 5, 8),
        fewer_dimensions=8,
        main=base,
        pixels={},
        additions=base,
        schedules={"4 updates": {}, "8 updates": {"updates": 8}},
        networks={**NETWORKS, "VGG19": "vgg19@32"},
    )


SCALES: Mapping[ScaleName, Callable[[], Scale]] = {
    "paper": paper_scale,
    "cpu": cpu_scale,
    "smoke": smoke_scale,
}
