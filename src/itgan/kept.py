"""Figures kept in a folder: for each study its rows, whose trials need not be computed again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, model_validator

from itgan.errors import InputError
from itgan.evaluation import Trial
from itgan.tables import Row

_OF_THE_ROW = (
    *("source", "network", "updates", "dataset", "variant", "latents_per_class"),
    *("images", "bytes", "labels"),
)

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]  # NaN is none
Percent = Annotated[float, Field(ge=0, le=100)]


class _Point(BaseModel, strict=True):
    """Of a curve."""

    update: int
    accuracy: Share
    training_accuracy: Share = 0.0  # images that are new in every batch have none


class _Trial(BaseModel, strict=True):
    cell: str
    latent_seed: Seed
    network_seed: Seed
    accuracy: Share
    curve: list[_Point] = []


class _Figure(BaseModel, strict=True):
    """What is read of a row; more may be there."""

    study: str
    scale: Literal["paper", "cpu", "smoke"]
    score_on: Literal["test", "validation"]
    row: str
    column: str
    classes: Count
    dataset: str
    source: str
    variant: str
    network: str
    labels: str
    latents_per_class: Count | None
    images: Count | None
    bytes: Count | None
    mean: Percent
    std: Percent
    n: Count
    sets: Count
    updates: Count
    trials: list[_Trial] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_seed_once(self) -> "_Figure":
        seeds = {(trial.latent_seed, trial.network_seed) for trial in self.trials}
        if not len(seeds) == len(self.trials) == self.n:
            raise ValueError("a figure is of n trials, each of its own seeds")
        return self


_FIGURES = TypeAdapter(list[_Figure])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a study, as ``itgan reproduce --results`` wrote them; none without the file.

    Raises:
        InputError: the file holds something else.
    """
    try:
        if not path.exists():
            return []
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        figures = _FIGURES.validate_python(rows)
        places = {(figure.study, figure.row, figure.column) for figure in figures}
        if len(places) < len(rows) or {study for study, _, _ in places} - {path.stem}:
            raise ValueError("figures of one study, each once")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the figures of a study; remove it") from error
    return rows


def read_trials(folder: Path, studies: Iterable[str]) -> dict[str, Trial]:
    """The trials of all studies kept in a folder, by the names of their cells.

    How long they took is not kept. Raises as ``read_rows``.
    """
    return {
        name: trial
        for study in studies
        for row in read_rows(folder / f"{study}.json")
        for name, trial in _trials(row).items()
    }


def seeds(row: Row) -> Mapping[str, Sequence[int]]:
    """The latent and network seeds of a row's trials, as fields of a configuration."""
    return {
        f"{kind}_seeds": tuple(dict.fromkeys(trial[f"{kind}_seed"] for trial in row["trials"]))
        for kind in ("latent", "network")
    }


def _trials(row: Row) -> dict[str, Trial]:
    common = {field: row[field] for field in _OF_THE_ROW}
    return {
        trial["cell"]: Trial(
            **common,
            latent_seed=trial["latent_seed"],
            network_seed=trial["network_seed"],
            accuracy=trial["accuracy"],
            seconds=0.0,
            curve=trial.get("curve", []),
        )
        for trial in row["trials"]
    }
