"""The register of claims: what the paper says, judged by the kept figures of the studies."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from itgan.configs import Config
from itgan.errors import InputError
from itgan.kept import read_rows
from itgan.studies import STUDIES

EQUAL = 1.0  # points
_UNDECIDED = "too close to call at this scale"
SHARED = ("real", "herding")  # sources that are the same images for all sets

Figures = Mapping[tuple[str, str, str], Mapping[str, Any]]  # study, row, column


class Claim(Config):
    """A claim about two figures of a study; see ``docs/claims.toml`` for the rule."""

    id: str
    place: str
    text: str
    study: str
    first: tuple[str, str]
    second: tuple[str, str]
    expect: Literal["more", "equal"]
    quantity: Literal["accuracy", "training_accuracy"] = "accuracy"
    point: int | None = None  # of the curve, from 1; the last of a training if not given
    scale: Literal["paper"] | None = None  # the only one that it is about
    command: str = ""  # that would measure it, where this machine cannot


@dataclass(frozen=True)
class Difference:
    """First less second, in percentage points, with Student's 95 % interval over latent sets."""

    mean: float
    low: float
    high: float
    sets: int


def read_about(path: Path) -> str:
    """What a register says of the experiments as a whole, if anything."""
    return str(tomllib.loads(path.read_text()).get("about", ""))


def read_claims(path: Path) -> list[Claim]:
    """The register.

    Raises:
        InputError: the file is not a register of claims.
    """
    try:
        claims = [
            Claim.model_validate(entry) for entry in tomllib.loads(path.read_text())["claim"]
        ]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a register of claims ({reason})") from error
    names = [claim.id for claim in claims]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: an id is there twice; give every claim its own")
    return claims


def read_figures(folder: Path) -> Figures:
    """The figures of every study kept in a folder, as ``itgan reproduce --results`` wrote them.

    Raises:
        InputError: there are none or a file holds something else, or they are not of one scale,
            or of smoke, which measures nothing, or on validation images.
    """
    figures = {}
    for study in STUDIES:
        path = folder / f"{study}.json"
        for row in read_rows(path):
            figures[study, row["row"], row["column"]] = row
            if row["score_on"] != "test":
                raise InputError(f"{path}: accuracies on validation images; results are on test")
    if not figures:
        raise InputError(f"{folder}: holds no figures; itgan reproduce STUDY --results {folder}")
    scales = {row["scale"] for row in figures.values()}
    if len(scales) > 1 or "smoke" in scales:
        raise InputError(
            f"{folder}: figures at the scales {', '.join(sorted(scales))}; keep one, and not smoke"
        )
    return figures


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
    """By latent and network seed."""
    return {
        (t["latent_seed"], t["network_seed"]): (
            t[quantity] if point is None else t["curve"][point - 1][quantity]
        )
        for t in figure["trials"]
    }


def verdict(expect: str, found: Difference | None) -> str:
    """The rule, written down before the figures."""
    if found is None:
        return "not measured"
    alike = found.low >= -EQUAL and found.high <= EQUAL
    apart = found.low > 0 or found.high < 0
    if expect == "equal":
        if alike:
            return "holds"
        return "does not hold" if apart and abs(found.mean) > EQUAL else _UNDECIDED
    if apart:
        return "holds" if found.low > 0 else "does not hold"
    return "equal" if alike else _UNDECIDED


def judge(claim: Claim, figures: Figures) -> tuple[Difference | None, str]:
    """A claim's difference, where both its figures are kept, and its verdict."""
    first, second = (figures.get((claim.study, *place)) for place in (claim.first, claim.second))
    found = None
    if first is not None and second is not None and claim.scale in (None, first["scale"]):
        found = difference(first, second, claim.quantity, claim.point)
    return found, verdict(claim.expect, found)
