"""How generators are trained and measured: frozen, bounded, light to import."""

from typing import Annotated, Literal

from pydantic import Field

from itgan.configs import (
    Config,
    Count,
    EvaluationConfig,
    Figure,
    HeldOut,
    ImageSize,
    Precision,
    Rate,
    Seed,
    Seeds,
    Weight,
    Weights,
)


class MetricsConfig(Config):
    """How a generator is measured: its protocol is part of the name of every figure."""

    figures: tuple[Figure, ...] = Field(
        ("frechet", "kernel", "precision", "recall", "density", "coverage", "cas"),
        description="what is measured",
    )
    features: Literal["convnet", "inception"] = Field(
        "convnet",
        description="of a network trained on the real training images, or of Inception, where "
        "its weights are on this machine",
    )
    extractor: EvaluationConfig = Field(
        EvaluationConfig(epochs=20), description="training of the network whose features are used"
    )
    samples: Annotated[int, Field(ge=2, le=10_000_000)] = Field(
        5000, description="generated images, with the labels of held-out images in turn"
    )
    neighbours: Count = Field(
        5, description="k of precision, recall, density and coverage: how far a ball reaches"
    )
    subsets: Count = Field(100, description="subsets that the kernel distance is averaged over")
    subset_size: Annotated[int, Field(ge=2, le=10_000_000)] = Field(
        1000, description="images in each subset; all where there are fewer"
    )
    cas: EvaluationConfig = Field(
        EvaluationConfig(epochs=20),
        description="training of the classifiers of the classifier accuracy score, on samples",
    )
    cas_per_class: Count = Field(
        5000, description="fresh samples of each class in an epoch of these classifiers"
    )
    cas_seeds: Seeds = Field((0, 1, 2), description="one classifier for each")
    seed: Seed = Field(0, description="of the measured latents and of the kernel's subsets")


class MeasureConfig(MetricsConfig):
    """What is measured, on which images."""

    dataset: str | None = Field(None, description="data set with the real images")
    validation: HeldOut = Field(
        0,
        description="training images held out, as in the generator's own training; if any, "
        "samples are compared with them, else with the test images",
    )
    image_size: ImageSize | None = Field(
        None, description="bring images of mixed sizes to this many pixels"
    )
    image_column: str | None = Field(None, description="image column, where it cannot be found")
    label_column: str | None = Field(None, description="label column, where it cannot be found")
    weights: Weights = Field("average", description="the generator's averaged or raw weights")
    recalibrate: bool = Field(
        False, description="take the generator's batch statistics anew, from its own samples"
    )
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    extractors: str = Field("runs/extractors", description="directory that keeps trained networks")
    out: str | None = Field(None, description="JSON file to write the figures to")


class PretrainingConfig(Config):
    """How a class-conditional BigGAN is trained: hinge loss, DiffAugment, averaged weights."""

    dataset: str = Field("digits", description="data set to learn")
    validation: HeldOut = Field(
        0, description="training images that are held out, never seen: how many, or a fraction"
    )
    image_size: ImageSize | None = Field(
        None, description="bring images of mixed or other sizes to this many pixels"
    )
    image_column: str | None = Field(None, description="image column, where it cannot be found")
    label_column: str | None = Field(None, description="label column, where it cannot be found")
    steps: Count = Field(4000, description="generator steps")
    batch_size: Annotated[int, Field(ge=2, le=100_000)] = Field(64, description="images per step")
    discriminator_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="discriminator steps per generator step"
    )
    channels: Annotated[int, Field(ge=1, le=1024)] = Field(
        16, description="a quarter of the width of every layer"
    )
    latent_dim: Annotated[int, Field(ge=1, le=65536)] = Field(
        128, description="length of a latent vector"
    )
    generator_rate: Rate = Field(2e-4, description="Adam's learning rate of the generator")
    discriminator_rate: Rate = Field(4e-4, description="Adam's learning rate of the discriminator")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="decay of the averaged weights"
    )
    ema_start: int = Field(
        1000, ge=0, le=10_000_000, description="until this step the average copies the raw weights"
    )
    diffaugment: str = Field(
        "translation", description="translation, cutout, color joined by commas, or none"
    )
    flip: bool = Field(True, description="mirror real images at random")
    precision: Precision = Field("auto", description="auto is fp32 on a CPU and bf16 on a GPU")
    compile: bool = Field(
        False,
        description="compile the networks where a C++ compiler is found: on a CPU an autoencoder "
        "then trains about twice as fast, a GAN hardly faster",
    )
    seed: Seed = Field(0, description="root of every random stream")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    out: str | None = Field(None, description="directory; if not given, runs/pretrain-PRESET")
    checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(
        120.0, description="seconds between snapshots that a killed training goes on from"
    )
    measure_every: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="measure the average after every so many steps; 0 never does",
    )
    patience: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="stop before the last step once so many measurements in a row have together "
        "improved the held-out score by less than 1 %; an autoencoder's count from "
        "adversarial_start on; 0 never does",
    )
    monitor: MetricsConfig = Field(
        MetricsConfig(figures=("frechet",), samples=2000),
        description="what is measured along the training, against validation images; the first "
        "figure is the score",
    )
    card: MetricsConfig = Field(
        MetricsConfig(figures=("frechet", "cas")), description="what the generator's card says"
    )


class AutoencodingConfig(PretrainingConfig):
    """How an encoder and a BigGAN decoder are trained: L1, features, light KL, late hinge loss."""

    discriminator_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="discriminator steps per generator step, from adversarial_start on"
    )
    encoder_rate: Rate = Field(1e-3, description="Adam's learning rate of the encoder")
    feature_weight: Weight = Field(
        1.0, description="weight of the distance between features of the extractor"
    )
    kl_weight: Weight = Field(
        1e-3, description="weight of the divergence of latents from N(0, 1), summed over a latent"
    )
    adversarial_weight: Weight = Field(0.05, description="weight of the hinge loss of samples")
    adversarial_start: int = Field(
        2000, ge=0, le=10_000_000, description="from this step on there is a discriminator"
    )
    extractor: EvaluationConfig = Field(
        EvaluationConfig(epochs=20),
        description="training of the feature extractor on the real images",
    )
    monitor: MetricsConfig = Field(
        MetricsConfig(figures=(), samples=2000),
        description="what of its samples is measured along the training, beside the loss of the "
        "reconstructions of validation images, which is the score",
    )
