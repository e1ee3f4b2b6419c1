"""Options of the commands on files: frozen, bounded, light to import."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from itgan.configs import Config, Count, EvaluationConfig, ImageSize, Rate, Seeds, Share


class ScoreConfig(Config):
    """How a stored set is scored."""

    dataset: str | None = Field(
        None, description="data set with the test images; if not given, the one that the set names"
    )
    image_size: ImageSize | None = Field(
        None, description="bring its images to this many pixels; if not given, as the set says"
    )
    image_column: str | None = Field(None, description="image column, where it cannot be found")
    label_column: str | None = Field(None, description="label column, where it cannot be found")
    networks: tuple[str, ...] = Field(
        (), description="architectures to train, each under every seed; if not given, evaluation's"
    )
    network_seeds: Seeds = Field((0, 1, 2), description="one classifier for each")
    mean: tuple[Share, ...] = Field(
        (), description="that images of floats were normalised with, per channel, in [0, 1] units"
    )
    std: tuple[Rate, ...] = Field(
        (), description="likewise (default of a .pt file for CIFAR: the usual constants)"
    )
    entry: Annotated[int, Field(ge=0, le=10_000_000)] | None = Field(
        None, description="which set of a .pt file that holds several; if not given, the last"
    )
    logits: bool = Field(False, description="soft labels are logits: apply softmax")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(),
        description="training of the classifiers; if not given, as the set says",
    )

    @model_validator(mode="after")
    def _constants_come_together(self) -> "ScoreConfig":
        if len(self.mean) != len(self.std):
            raise ValueError("mean, std: give both, with one number for each channel")
        return self

    @model_validator(mode="after")
    def _networks_differ(self) -> "ScoreConfig":
        if len(set(self.networks)) < len(self.networks):
            raise ValueError("networks: give each once")
        return self


class LedgerConfig(Config):
    """What the storage ledger counts."""

    dataset: str | None = Field(None, description="data set of real images to compare with")
    generator: str | None = Field(
        None,
        description="a shipped generator's name, or a file; if not given, of the set or recipe",
    )
    channels: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="count a BigGAN of this size instead: a quarter of its layers' width"
    )
    latent_dim: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None,
        description="length of its latent vectors (default 128), or so many dimensions of the "
        "generator's",
    )
    latents_per_class: Count | None = Field(
        None,
        description="size of the bank; if not given, that of the set, or every training image",
    )
    image_size: ImageSize | None = Field(None, description="bring real images to this many pixels")
    image_column: str | None = Field(None, description="image column, where it cannot be found")
    label_column: str | None = Field(None, description="label column, where it cannot be found")
    qualities: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        (75, 50, 25), description="of the JPEGs that real images are encoded as"
    )
    sample: Count | None = Field(
        2000, description="real images that are encoded, evenly spread; None takes all"
    )
    out: str | None = Field(None, description="JSON file to write the figures to")


class ImportConfig(Config):
    """How released latents become a bank."""

    dataset: str | None = Field(
        None, description="cifar-binary:PATH, whose training rows have the official order"
    )
    labels: str | None = Field(
        None, description="or a file of the official training labels: .npy, .pt or text"
    )
    generator: str | None = Field(None, description="generator that the latents are for")
    stage: Literal["inverted", "condensed"] | None = Field(
        None, description="stage of the latents, where the layout does not tell it"
    )
    out: str = Field("bank.safetensors", description="bank to write")


class ExportConfig(Config):
    """How a bank or a set is written in the layouts of the field."""

    layout: Literal["auto", "whole", "pieces", "pixels"] = Field(
        "auto", description="all rows in order, pieces by class, or distilled normalised images"
    )
    mean: tuple[Share, ...] = Field(
        (),
        description="that pixels are normalised with; if not given, CIFAR's published constants",
    )
    std: tuple[Rate, ...] = Field((), description="likewise")
    out: str | None = Field(None, description="file to write, .pt")


class MergeConfig(Config):
    """How banks that were learned apart become one."""

    out: str | None = Field(None, description="new file, a .safetensors")
    repeat_rows: bool = Field(
        False, description="a training row may have several latents: an ensemble of banks"
    )


class GenerateConfig(Config):
    """How the images of a synthetic set are written."""

    format: Literal["imagefolder", "npz", "parquet"] = Field(
        "imagefolder", description="PNG files in class folders, NumPy arrays, or Hugging Face's"
    )
    out: str | None = Field(None, description="new directory; if not given, SET-images")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
