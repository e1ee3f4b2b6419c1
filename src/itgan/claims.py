"""The register of claims: what the paper says, judged by the kept figures of the studies."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from itgan.comparisons import Difference, Figures, by_place, difference
from itgan.configs import Config
from itgan.errors import InputError
from itgan.kept import read_rows
from itgan.studies import STUDIES

EQUAL = 1.0  # points
_UNDECIDED = "too close to call at this scale"


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
    point: Annotated[int, Field(ge=1)] | None = None  # of the curve; if not given, its end
    scale: Literal["paper"] | None = None  # the only one that it is about
    command: str = ""  # that would measure it, where this machine cannot

    @model_validator(mode="after")
    def _names_what_is_kept(self) -> "Claim":
        if self.study not in STUDIES:
            raise ValueError(f"{self.id}: no study {self.study!r}")
        if self.quantity == "training_accuracy" and self.point is None:
            raise ValueError(f"{self.id}: training accuracy is kept at points of a curve")
        return self


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
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise InputError(f"{path}: not a register of claims ({reason})") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
    rows = []
    for study in STUDIES:
        path = folder / f"{study}.json"
        rows += (kept := read_rows(path))
        if any(row["score_on"] != "test" for row in kept):
            raise InputError(f"{path}: accuracies on validation images; results are on test")
    figures = by_place(rows)
    if not figures:
        raise InputError(f"{folder}: holds no figures; itgan reproduce STUDY --results {folder}")
    scales = {row["scale"] for row in figures.values()}
    if len(scales) > 1 or "smoke" in scales:
        raise InputError(
            f"{folder}: figures at the scales {', '.join(sorted(scales))}; keep one, and not smoke"
        )
    return figures


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
