"""Figures kept in a folder: for each study its rows, whose trials need not be computed again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itgan.errors import InputError
from itgan.evaluation import Trial
from itgan.tables import Row

_OF_THE_ROW = (
    *("source", "network", "updates", "dataset", "variant", "latents_per_class"),
    *("images", "bytes", "labels"),
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a study, as ``itgan reproduce --results`` wrote them; none without the file.

    Raises:
        InputError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())
        for row in rows:
            _trials(row)
            row["study"], row["scale"], row["score_on"], row["row"], row["column"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
