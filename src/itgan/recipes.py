"""Named experiments and pre-trainings: functions that return configs."""

from collections.abc import Callable, Mapping

from itgan.configs import (
    CondensationConfig,
    DCConfig,
    EvaluationConfig,
    InversionConfig,
    PretrainingConfig,
    RunConfig,
)

# A digit mirrored is another sign: no flips.
DIGITS_AUGMENTATION = "color_crop_cutout_scale_rotate"


def digits() -> RunConfig:
    """Real 8x8 digits, 10 latents per class, minutes on two cores: the demo."""
    return RunConfig(
        recipe="digits",
        dataset="digits",
        generator="biggan-digits",
        latents_per_class=10,
        inversion=InversionConfig(
            steps=200,
            extractor=EvaluationConfig(updates=300, augmentation=DIGITS_AUGMENTATION),
        ),
        condensation=CondensationConfig(
            steps=200, real_per_class=64, augmentation=DIGITS_AUGMENTATION
        ),
        # The same budget as for itgan; learning rate as published.
        dm=CondensationConfig(
            optimiser="sgd",
            learning_rate=1.0,
            steps=200,
            real_per_class=64,
            augmentation=DIGITS_AUGMENTATION,
        ),
        # As many steps of the images; the rest as published, by images per class.
        dc=DCConfig(steps=20, real_per_class=64),
        evaluation=EvaluationConfig(updates=200, augmentation=DIGITS_AUGMENTATION, curve_points=5),
    )


def cifar10_smoke() -> RunConfig:
    """The whole road on real 32x32 colour images within 20 minutes; proves nothing but that."""
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
        condensation=CondensationConfig(steps=100, real_per_class=64, precision="bf16"),
        dm=CondensationConfig(
            optimiser="sgd", learning_rate=1.0, steps=100, real_per_class=64, precision="bf16"
        ),
        dc=DCConfig(steps=5, real_per_class=64, precision="bf16"),
        evaluation=EvaluationConfig(updates=150, precision="bf16", compile=True),
    )


RECIPES: Mapping[str, Callable[[], RunConfig]] = {
    "digits": digits,
    "cifar10-smoke": cifar10_smoke,
}


def pretrain_digits() -> PretrainingConfig:
    """The shipped generator of 8x8 digits, about ten minutes on two cores."""
    return PretrainingConfig(
        dataset="digits", validation=200, steps=5000, latent_dim=32, flip=False
    )


def pretrain_cifar10() -> PretrainingConfig:
    """The published settings for CIFAR-10, for a GPU."""
    return PretrainingConfig(
        dataset="hf:uoft-cs/cifar10",
        steps=1_000_000,
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
        update={"dataset": "hf:uoft-cs/cifar100", "steps": 2_000_000}
    )


def pretrain_cifar10_cpu() -> PretrainingConfig:
    """A small generator of 32x32 colour images, for two CPU cores and a night."""
    return PretrainingConfig(
        dataset="cifar10-jpeg", validation=5000, steps=20_000, precision="bf16"
    )


PRETRAININGS: Mapping[str, Callable[[], PretrainingConfig]] = {
    "digits": pretrain_digits,
    "cifar10": pretrain_cifar10,
    "cifar100": pretrain_cifar100,
    "cifar10-cpu": pretrain_cifar10_cpu,
}
