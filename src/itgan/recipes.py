"""Named experiments and pre-trainings: functions that return configs."""

import shlex
from collections.abc import Callable, Iterator, Mapping

from itgan.configs import (
    PLUS,
    CondensationConfig,
    Config,
    DCConfig,
    EvaluationConfig,
    InversionConfig,
    PoolConfig,
)
from itgan.generator_configs import AutoencodingConfig, MetricsConfig, PretrainingConfig
from itgan.run_configs import PLACES, RunConfig

# A digit mirrored is another sign: no flips.
DIGITS_AUGMENTATION = "color_crop_cutout_scale_rotate"


def digits() -> RunConfig:
    """Real 8x8 digits, 10 latents per class, minutes on two cores: the demo."""
    condensation = CondensationConfig(
        steps=200, real_per_class=64, augmentation=DIGITS_AUGMENTATION
    )
    return RunConfig(
        recipe="digits",
        dataset="digits",
        generator="biggan-digits",
        latents_per_class=10,
        inversion=InversionConfig(
            steps=200,
            extractor=EvaluationConfig(updates=300, augmentation=DIGITS_AUGMENTATION),
        ),
        condensation=condensation,
        plus=_plus(condensation, EvaluationConfig(updates=300, augmentation=DIGITS_AUGMENTATION)),
        # Budgets of the baselines: docs/choices.md.
        dm=CondensationConfig(
            optimiser="sgd",
            learning_rate=1.0,
            steps=400,
            real_per_class=64,
            augmentation=DIGITS_AUGMENTATION,
        ),
        # Rate and loops as published, by images per class.
        dc=DCConfig(steps=10, real_per_class=64),
        evaluation=EvaluationConfig(updates=200, augmentation=DIGITS_AUGMENTATION, curve_points=5),
    )


def cifar10_smoke() -> RunConfig:
    """The whole road on real 32x32 colour images within 20 minutes; proves nothing but that."""
    condensation = CondensationConfig(steps=100, real_per_class=64, precision="bf16")
    return RunConfig(
        recipe="cifar10-smoke",
        dataset="cifar10-jpeg",
        generator="biggan-cifar10-cpu",
        latents_per_class=20,
        sources=("random", "gan", "inversion", "itgan"),
        latent_seeds=(0,),
        network_seeds=(0, 1),
        inversion=InversionConfig(
            steps=150,
            precision="bf16",
            extractor=EvaluationConfig(updates=300, precision="bf16", compile=True),
        ),
        condensation=condensation,
        plus=_plus(condensation, EvaluationConfig(updates=300, precision="bf16", compile=True)),
        dm=CondensationConfig(
            optimiser="sgd", learning_rate=1.0, steps=100, real_per_class=64, precision="bf16"
        ),
        dc=DCConfig(steps=5, real_per_class=64, precision="bf16"),
        evaluation=EvaluationConfig(updates=150, precision="bf16", compile=True),
    )


def cifar10_cpu() -> RunConfig:
    """Ten classes of real colour images at 50 latents per class, for two CPU cores."""
    training = EvaluationConfig(updates=200, batch_size=64, precision="bf16", compile=True)
    matching = CondensationConfig(
        steps=300,
        real_per_class=128,
        precision="bf16",
        compile=True,
        micro_batch=40,
        kept_graphs=16,
    )
    # Rate, schedule and coordinates, and what itgan-plus adds: docs/choices.md.
    quick = {"schedule": "cosine", "learning_rate": 0.1, "basis": "principal", "steps": 200}
    condensation = matching.model_copy(update=quick)
    plus = condensation.model_copy(update={"start": "random", "kept_graphs": 25})
    return RunConfig(
        recipe="cifar10-cpu",
        dataset="cifar10-jpeg",
        generator="biggan-cifar10-cpu",
        latents_per_class=50,
        validation=5000,
        score_on="test",
        sources=("random", "random-raw", "random-jpeg", "gan", "gan-fresh", "inversion", "itgan"),
        latent_seeds=(0, 1, 2, 3, 4, 5),
        network_seeds=(0, 1),
        inversion=InversionConfig(
            steps=250,
            precision="bf16",
            compile=True,
            extractor=training.model_copy(update={"updates": 3000, "batch_size": 256}),
        ),
        condensation=condensation,
        plus=_plus(
            plus, training.model_copy(update={"updates": 1000, "batch_size": 128}), (0.4, 1.0)
        ),
        dm=matching.model_copy(update={"optimiser": "sgd", "learning_rate": 10.0, "steps": 500}),
        evaluation=training,
    )


def _paper(name: str, classes: int, shard: int) -> RunConfig:
    """The settings of the published experiments on a whole training set."""
    condensation = CondensationConfig(
        steps=5000, learning_rate=0.001, shard_per_class=shard, real_per_class=500
    )
    return RunConfig(
        recipe=name,
        dataset=f"hf:uoft-cs/cifar{classes}",
        generator=f"runs/pretrain-cifar{classes}/generator.safetensors",
        latents_per_class=None,
        normalisation="published",
        sources=("real", "gan", "gan-fresh", "inversion", "itgan"),
        inversion=InversionConfig(steps=5000, extractor=EvaluationConfig()),
        condensation=condensation,
        plus=_plus(condensation.model_copy(update={"shard_per_class": None}), EvaluationConfig()),
        dm=CondensationConfig(
            steps=20_000, optimiser="sgd", learning_rate=10.0, real_per_class=256
        ),
        evaluation=EvaluationConfig(network="resnet18", curve_points=200),
    )


def _plus(
    condensation: CondensationConfig,
    training: EvaluationConfig,
    window: tuple[float, float] = (0.0, 1.0),
) -> CondensationConfig:
    """With what itgan-plus adds, its pool trained so, and snapshots of these accuracies."""
    pool = PLUS["pool"].model_copy(update={"training": training, "window": window})
    return condensation.model_copy(update={**PLUS, "pool": pool})


def _condensing(config: RunConfig, **changes: object) -> RunConfig:
    condensation = config.condensation.model_copy(update=changes)
    return config.model_copy(update={"condensation": condensation})


def _snapshots(low: float) -> PoolConfig:
    return PoolConfig(
        kind="snapshots", networks=100, window=(low, 1.0), training=EvaluationConfig()
    )


def cifar10_paper() -> RunConfig:
    """The paper's whole-set experiment on CIFAR-10, for a GPU."""
    return _paper("cifar10-paper", 10, 1250)


def cifar100_paper() -> RunConfig:
    """The paper's whole-set experiment on CIFAR-100, for a GPU."""
    return _paper("cifar100-paper", 100, 500)


def _released_a(config: RunConfig, name: str) -> RunConfig:
    """Untrained networks, one for each class and step, and a little of the regulariser."""
    config = config.model_copy(update={"recipe": name})
    return _condensing(config, steps=10_000, lambda_reg=0.001, network_per="class")


def _released_b(config: RunConfig, name: str, low: float) -> RunConfig:
    """Snapshots above an accuracy, which here is that on held-out training rows."""
    config = config.model_copy(update={"recipe": name})
    return _condensing(config, pool=_snapshots(low), network_per="class")


def cifar10_released_a() -> RunConfig:
    """CIFAR-10 as in one of the two released scripts: untrained networks, lambda 0.001."""
    return _released_a(cifar10_paper(), "cifar10-released-a")


def cifar10_released_b() -> RunConfig:
    """CIFAR-10 as in the other: snapshots of at least 70 % accuracy, lambda 0."""
    return _released_b(cifar10_paper(), "cifar10-released-b", 0.7)


def cifar100_released_a() -> RunConfig:
    """CIFAR-100 as in one of the two released scripts: untrained networks, lambda 0.001."""
    return _released_a(cifar100_paper(), "cifar100-released-a")


def cifar100_released_b() -> RunConfig:
    """CIFAR-100 as in the other: snapshots of at least 40 % accuracy, lambda 0."""
    return _released_b(cifar100_paper(), "cifar100-released-b", 0.4)


RECIPES: Mapping[str, Callable[[], RunConfig]] = {
    "digits": digits,
    "cifar10-smoke": cifar10_smoke,
    "cifar10-cpu": cifar10_cpu,
    "cifar10-paper": cifar10_paper,
    "cifar10-released-a": cifar10_released_a,
    "cifar10-released-b": cifar10_released_b,
    "cifar100-paper": cifar100_paper,
    "cifar100-released-a": cifar100_released_a,
    "cifar100-released-b": cifar100_released_b,
}


def command(config: RunConfig) -> str:
    """The command line that computes this configuration: its recipe, and what differs from it.

    Where to compute and to write is left to whoever runs it.
    """
    name = config.recipe if config.recipe in RECIPES else "digits"
    elsewhere = {place: getattr(config, place) for place in PLACES}
    flags = flags_between(RECIPES[name]().model_copy(update=elsewhere), config)
    return shlex.join(["itgan", "run", name, *flags])


def flags_between(base: Config, config: Config, prefix: str = "--") -> Iterator[str]:
    """Flags that turn ``base`` into ``config``."""
    for field in type(config).model_fields:
        old, new = getattr(base, field), getattr(config, field)
        flag = field.replace("_", "-")
        if isinstance(new, Config):
            yield from flags_between(old, new, f"{prefix}{flag}.")
        elif new == old:
            continue
        elif isinstance(new, bool):
            yield f"{prefix}{flag}" if new else f"{prefix}no-{flag}"
        else:
            values = tuple(map(str, new if isinstance(new, tuple) else (new,)))
            if len(values) == 1 and values[0].startswith("-"):  # else taken for a flag
                yield f"{prefix}{flag}={values[0]}"
            else:
                yield from (f"{prefix}{flag}", *values)


def pretrain_digits() -> PretrainingConfig:
    """The shipped generator of 8x8 digits, about a quarter of an hour on two cores."""
    unmirrored = EvaluationConfig(epochs=20, augmentation=DIGITS_AUGMENTATION)
    protocol = MetricsConfig(extractor=unmirrored, cas=unmirrored, cas_per_class=100)
    return PretrainingConfig(
        dataset="digits",
        validation=200,
        steps=5000,
        latent_dim=32,
        flip=False,
        monitor=protocol.model_copy(update={"figures": ("frechet",), "samples": 2000}),
        card=protocol.model_copy(update={"figures": ("frechet", "cas")}),
    )


def pretrain_cifar10() -> PretrainingConfig:
    """The published settings for CIFAR-10, for a GPU: 1,000 epochs, 200 images per step."""
    return PretrainingConfig(
        dataset="hf:uoft-cs/cifar10",
        steps=250_000,
        batch_size=50,
        discriminator_steps=4,
        channels=64,
        generator_rate=2e-4,
        discriminator_rate=2e-4,
        ema=0.9999,
        diffaugment="translation,cutout",
    )


def pretrain_cifar100() -> PretrainingConfig:
    """The published settings for CIFAR-100, for a GPU."""
    return pretrain_cifar10().model_copy(
        update={"dataset": "hf:uoft-cs/cifar100", "steps": 500_000}
    )


def pretrain_cifar10_cpu() -> PretrainingConfig:
    """A small generator of 32x32 colour images, for two CPU cores and a night."""
    fast = EvaluationConfig(epochs=20, precision="bf16", compile=True)
    return PretrainingConfig(
        dataset="cifar10-jpeg",
        validation=5000,
        steps=20_000,
        precision="bf16",
        card=MetricsConfig(figures=("frechet", "cas"), extractor=fast, cas=fast, cas_seeds=(0,)),
    )


def pretrain_ae_digits() -> AutoencodingConfig:
    """An autoencoder of 8x8 digits, decoder and encoder: minutes on two cores."""
    digits = pretrain_digits()
    return AutoencodingConfig(
        dataset="digits",
        validation=200,
        steps=5000,
        channels=12,
        latent_dim=32,
        flip=False,
        extractor=EvaluationConfig(updates=300, augmentation=DIGITS_AUGMENTATION),
        card=digits.card,
    )


def pretrain_ae_cifar10_cpu() -> AutoencodingConfig:
    """An autoencoder of 32x32 colour images, for two CPU cores and a night."""
    return AutoencodingConfig(
        dataset="cifar10-jpeg",
        validation=5000,
        steps=20_000,
        adversarial_start=5000,
        precision="bf16",
        compile=True,
        measure_every=1000,
        patience=3,
        extractor=EvaluationConfig(epochs=5, precision="bf16", compile=True),
        card=pretrain_cifar10_cpu().card,
    )


PRETRAININGS: Mapping[str, Callable[[], PretrainingConfig]] = {
    "digits": pretrain_digits,
    "cifar10": pretrain_cifar10,
    "cifar100": pretrain_cifar100,
    "cifar10-cpu": pretrain_cifar10_cpu,
    "ae-digits": pretrain_ae_digits,
    "ae-cifar10-cpu": pretrain_ae_cifar10_cpu,
}
