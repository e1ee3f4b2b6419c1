"""Paired differences between figures of a study, with their intervals over latent sets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from itgan.tables import Row

SHARED = ("real", "herding")  # sources that are the same images for all sets
Figures = Mapping[tuple[str, str, str], Row]  # study, row, column

ADDITIONS = (
    "several networks",
    "all layers",
    "mean of the last",
    "class gains too",
    "trained networks",
    "trained networks classify",
    "regression",
    "regression in trained networks",
    "regression, trained networks classify",
    "more in int8",
)

BY_BYTES = (
    ("IT-GAN fp16", "IT-GAN fp32"),
    ("IT-GAN int8", "IT-GAN fp32"),
    ("IT-GAN int8, 32 dimensions", "IT-GAN int8"),
    ("IT-GAN fp32", "DM, fp32's bytes"),
    ("IT-GAN int8", "DM, int8's bytes"),
    ("IT-GAN plus", "DM, fp32's bytes"),
    ("IT-GAN plus", "Random, plus's bytes as JPEG"),
    *(("IT-GAN fp32", f"Random, fp32's bytes{form}") for form in ("", " as JPEG")),
    *(("IT-GAN int8", f"Random, int8's bytes{form}") for form in ("", " as JPEG")),
)

# Rows of our own studies whose differences are printed: first less second.
PAIRS = {
    "sources": (
        ("IT-GAN", "Inversion"),
        ("IT-GAN", "GAN"),
        ("IT-GAN", "GAN, fresh samples"),
        ("IT-GAN", "Random"),
        ("IT-GAN", "Random, same bytes as JPEG"),
        ("IT-GAN", "Herding"),
        ("IT-GAN", "DM"),
        ("IT-GAN plus", "IT-GAN"),
        ("IT-GAN plus", "Random"),
        ("IT-GAN plus", "Random, same bytes as JPEG"),
        ("IT-GAN plus", "DM"),
        ("Inversion", "GAN"),
    ),
    "plus": (
        *((f"IT-GAN, {row}", "IT-GAN") for row in ADDITIONS),
        ("IT-GAN, trained networks classify", "IT-GAN, trained networks"),
        ("IT-GAN, regression in trained networks", "IT-GAN, regression"),
        (
            "IT-GAN, regression, trained networks classify",
            "IT-GAN, regression in trained networks",
        ),
        ("IT-GAN, regression, trained networks classify", "IT-GAN, regression"),
        (
            "IT-GAN, regression, trained networks classify",
            "IT-GAN, trained networks classify",
        ),
        ("IT-GAN plus", "IT-GAN"),
        ("IT-GAN plus", "IT-GAN, more in int8"),
        ("IT-GAN plus", "IT-GAN, regression, trained networks classify"),
        ("IT-GAN plus", "IT-GAN plus, class means"),
        ("IT-GAN plus", "Random"),
        *((f"{row}, soft labels", row) for row in ("Random", "IT-GAN", "IT-GAN plus")),
        ("IT-GAN, soft labels", "Random, soft labels"),
        ("IT-GAN plus, soft labels", "Random, soft labels"),
    ),
    "rate": BY_BYTES,
    "rate-long": BY_BYTES,
}


@dataclass(frozen=True)
class Difference:
    """First less second, in percentage points, with Student's 95 % interval over latent sets."""

    mean: float
    low: float
    high: float
    sets: int

    def __str__(self) -> str:
        """The mean with its interval, as tables print it."""
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def by_place(rows: Iterable[Row]) -> Figures:
    """Figures by study, row and column."""
    return {(row["study"], row["row"], row["column"]): row for row in rows}


def difference(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    quantity: str = "accuracy",
    point: int | None = None,
) -> Difference | None:
    """Paired over latent sets and networks; None where fewer than two sets are paired.

    A source that is the same for all sets (the whole training set) pairs with each by network.
    The same networks serve all sets, so the interval is over sets alone.
    """
    one, other = (_values(figure, quantity, point) for figure in (first, second))
    if first["source"] in SHARED:
        one = {(s, n): value for s, _ in other for (_, n), value in one.items()}
    elif second["source"] in SHARED:
        other = {(s, n): value for s, _ in one for (_, n), value in other.items()}
    by_set: dict[int, list[float]] = {}
    for pair in sorted(one.keys() & other.keys()):
        by_set.setdefault(pair[0], []).append(100 * (one[pair] - other[pair]))
    if len(by_set) < 2:
        return None
    means = np.array([np.mean(values) for values in by_set.values()])
    reach = float(stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    mean = float(means.mean())
    return Difference(mean, mean - reach, mean + reach, len(means))


def _values(
    figure: Mapping[str, Any], quantity: str, point: int | None
) -> dict[tuple[int, int], float]:
    """By latent and network seed, of the trials that have it there."""
    found = {}
    for trial in figure["trials"]:
        curve = dict(enumerate(trial.get("curve", []), start=1))
        told = trial if point is None else curve.get(point, {})
        if quantity in told:
            found[trial["latent_seed"], trial["network_seed"]] = told[quantity]
    return found


def paired(study: str, pair: tuple[str, str], column: str, figures: Figures) -> Difference | None:
    """The first row's figure less the second's, where both are there."""
    one, other = (figures.get((study, row, column)) for row in pair)
    return None if one is None or other is None else difference(one, other)


def columns(study: str, figures: Figures) -> list[str]:
    """Those of a study that have a figure."""
    return list(dict.fromkeys(column for kept, _, column in figures if kept == study))


def differences(study: str, figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table of a study's ``PAIRS``: what has a difference, and no more."""
    table = {
        pair: {column: paired(study, pair, column, figures) for column in columns(study, figures)}
        for pair in PAIRS.get(study, ())
    }
    across = [c for c in columns(study, figures) if any(found[c] for found in table.values())]
    lines = [
        [" - ".join(pair), *("" if one is None else f"{one}, {one.sets} sets" for one in shown)]
        for pair, found in table.items()
        if any(shown := [found[c] for c in across])
    ]
    return ["difference, points", *across], lines
