"""Configurations of whole experiments: a run, and a study of several."""

from typing import Literal

from pydantic import Field, model_validator

from itgan.configs import (
    PLUS,
    CondensationConfig,
    Config,
    Count,
    DCConfig,
    Dtype,
    EvaluationConfig,
    HeldOut,
    ImageSize,
    InversionConfig,
    Seed,
    Seeds,
    Source,
    Weights,
    refuse_repeats,
)

# Fields of a run that say where and how often, not what: they change no result.
PLACES = {"out", "cells", "device", "checkpoint_seconds"}


class RunConfig(Config):
    """An experiment: data, generator, banks, the sources to compare and the protocol."""

    recipe: str = Field("digits", description="name of the recipe this came from")
    dataset: str = Field(
        "digits",
        description="digits, a Parquet folder, or hf: imagefolder: npz: cifar-binary: and a place",
    )
    generator: str = Field(
        "biggan-digits", description="a shipped generator's name, a file, or diffusers:FOLDER"
    )
    generator_weights: Weights = Field(
        "average", description="the generator's averaged or raw weights"
    )
    recalibrate: bool = Field(
        False, description="take the generator's batch statistics anew, from its own samples"
    )
    latent_dim: Count | None = Field(
        None,
        description="keep so many dimensions of the generator's latents, those that its first "
        "layer amplifies most; if not given, all",
    )
    latents_per_class: Count | None = Field(
        10, description="size of the bank; None takes every training image"
    )
    sources: tuple[Source, ...] = Field(
        ("real", "random", "gan", "gan-fresh", "inversion", "itgan"),
        description="what classifiers are trained on",
    )
    latent_seeds: Seeds = Field((0, 1, 2), description="one bank for each")
    network_seeds: Seeds = Field((0, 1, 2), description="classifiers trained on each bank")
    validation: HeldOut = Field(
        0, description="training images held out of everything: how many, or a fraction"
    )
    score_on: Literal["auto", "validation", "test"] = Field(
        "auto", description="what scores classifiers: auto is the held-out images, if any"
    )
    image_size: ImageSize | None = Field(
        None, description="bring images of mixed sizes to this many pixels"
    )
    image_column: str | None = Field(None, description="image column, where it cannot be found")
    label_column: str | None = Field(None, description="label column, where it cannot be found")
    normalisation: Literal["measured", "published"] = Field(
        "measured", description="mean and std of the training images, or CIFAR's published ones"
    )
    dtypes: tuple[Dtype, ...] = Field(
        ("fp32",),
        description="storage types that gan, inversion, itgan and itgan-plus are evaluated in",
    )
    unaugmented: bool = Field(
        False,
        description="train every classifier but those on real without augmentation too: the score "
        "ARS of DD-Ranking needs it",
    )
    soft_labels: bool = Field(
        False,
        description="train on every set but real and gan-fresh with soft labels too, given by the "
        "inversion's extractor",
    )
    inversion: InversionConfig = Field(InversionConfig(), description="real images to latents")
    condensation: CondensationConfig = Field(
        CondensationConfig(), description="latents to informative latents"
    )
    plus: CondensationConfig = Field(
        CondensationConfig(**PLUS),
        description="condensation of itgan-plus, the most that generator and bytes can do",
    )
    dm: CondensationConfig = Field(
        CondensationConfig(optimiser="sgd", learning_rate=1.0),
        description="distribution matching in pixels, the baseline dm (paper: 20000 steps)",
    )
    dc: DCConfig = Field(
        DCConfig(), description="gradient matching in pixels, the baseline dc (paper: DC and DSA)"
    )
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(), description="training of the classifiers that are scored"
    )
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    seed: Seed = Field(
        0, description="root of every random stream but the classifiers', whose seeds stand alone"
    )
    checkpoint_seconds: float = Field(
        60.0,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="a killed run loses at most about so much work",
    )
    out: str | None = Field(None, description="run directory; if not given, runs/RECIPE")
    cells: str | None = Field(
        None,
        description="store of results shared by several runs; if not given, the run directory",
    )

    @model_validator(mode="after")
    def _seeds_differ(self) -> "RunConfig":
        refuse_repeats(self, "latent_seeds", "network_seeds", "sources", "dtypes")
        return self

    @model_validator(mode="after")
    def _augmented_first(self) -> "RunConfig":
        if self.unaugmented and self.evaluation.augmentation in ("", "none"):
            raise ValueError("unaugmented: evaluation.augmentation is none already; leave it out")
        return self


class StudyConfig(Config):
    """How a table or figure of the paper is computed."""

    scale: Literal["paper", "cpu", "smoke"] = Field(
        "cpu", description="as published, for two CPU cores, or just once through on digits"
    )
    dataset: str | None = Field(
        None, description="where CIFAR-10 lies; if not given, by the scale"
    )
    generator: str | None = Field(None, description="its generator; if not given, by the scale")
    dataset100: str | None = Field(None, description="where CIFAR-100 lies")
    generator100: str | None = Field(None, description="its generator")
    latent_seeds: Seeds | None = Field(None, description="banks; if not given, by the scale")
    network_seeds: Seeds | None = Field(None, description="classifiers on each bank")
    score_on: Literal["validation", "test"] = Field(
        "test", description="what scores classifiers: validation images to choose by, or test"
    )
    only: tuple[str, ...] = Field(
        (), description="rows, columns or ROW=COLUMN to compute; if not given, all"
    )
    claims: str | None = Field(
        None, description="compute what the claims of this register are about, and no more"
    )
    results: str | None = Field(
        None,
        description="directory that keeps the figures for `make results`, too; the trials that "
        "it has are not computed again",
    )
    plan: bool = Field(False, description="print what is to be computed; start nothing")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    out: str | None = Field(None, description="directory; if not given, runs/STUDY-SCALE")
    cells: str = Field("runs/cells", description="store of results that all studies share")

    @model_validator(mode="after")
    def _seeds_differ(self) -> "StudyConfig":
        refuse_repeats(self, "latent_seeds", "network_seeds")
        return self

    @model_validator(mode="after")
    def _results_are_on_test(self) -> "StudyConfig":
        if self.results and self.score_on != "test":
            raise ValueError("results: are on test images; leave score_on out, or results")
        return self
