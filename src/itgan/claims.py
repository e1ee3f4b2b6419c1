"""The register of claims: what the paper says, judged by the kept figures of the studies."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from itgan.configs import Config
from itgan.errors import InputError
from itgan.reproduction import markdown_table
from itgan.studies import STUDIES

EQUAL = 1.0  # points
_UNDECIDED = "too close to call at this scale"

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


@dataclass(frozen=True)
class Difference:
    """First less second, in percentage points, with Student's 95 % interval over latent sets."""

    mean: float
    low: float
    high: float
    sets: int


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
    """The figures of every study kept in a folder, as ``itgan reproduce`` wrote them.

    Raises:
        InputError: they are not of one scale, or of smoke, which measures nothing.
    """
    figures = {}
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text()):
            figures[row["study"], row["row"], row["column"]] = row
    scales = {row["scale"] for row in figures.values()}
    if len(scales) > 1 or "smoke" in scales:
        raise InputError(
            f"{folder}: figures at the scales {', '.join(sorted(scales))}; keep one, and not smoke"
        )
    return figures


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference | None:
    """Paired over latent sets and networks; None where fewer than two sets are paired.

    A source that is the same for all sets (the whole training set) pairs with each by network.
    """
    one, other = _accuracies(first), _accuracies(second)
    whole = next((t for t in (one, other) if len({s for s, _ in t}) == 1), None)
    seeds = {s for s, _ in (other if whole is one else one)}
    by_set: dict[int, list[float]] = {}
    for latent in sorted(seeds):
        for network in sorted({n for _, n in (*one, *other)}):
            a = one.get((latent, network), one.get((0, network)) if whole is one else None)
            b = other.get((latent, network), other.get((0, network)) if whole is other else None)
            if a is not None and b is not None:
                by_set.setdefault(latent, []).append(100 * (a - b))
    if len(by_set) < 2:
        return None
    means = np.array([np.mean(values) for values in by_set.values()])
    reach = float(stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    mean = float(means.mean())
    return Difference(mean, mean - reach, mean + reach, len(means))


def _accuracies(figure: Mapping[str, Any]) -> dict[tuple[int, int], float]:
    return {(t["latent_seed"], t["network_seed"]): t["accuracy"] for t in figure["trials"]}


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
    both = [figures.get((claim.study, *place)) for place in (claim.first, claim.second)]
    measured = [figure for figure in both if figure is not None]
    found = difference(*measured) if len(measured) == 2 else None
    return found, verdict(claim.expect, found)


def results_page(claims: Sequence[Claim], figures: Figures) -> str:
    """``docs/results.md``: the register with its verdicts, then each study beside the paper's."""
    scale = next((row["scale"] for row in figures.values()), "cpu")
    lines = [
        f"# Results at {scale} scale",
        "",
        "Generated by `make results` from the figures kept in `results/`; the rule of the",
        "verdicts is in [claims.toml](claims.toml).",
        "",
        "## The paper's claims",
        "",
        "| claim | place | difference, points | verdict |",
        "| :-- | :-- | --: | :-- |",
    ]
    for claim in claims:
        found, said = judge(claim, figures)
        if found is None:
            said = f"not measured (`itgan reproduce {claim.study}`)"
            number = ""
        else:
            number = f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
        lines.append(f"| {claim.text} | {claim.place} | {number} | {said} |")
    for name, study in STUDIES.items():
        rows = [row for (kept, _, _), row in figures.items() if kept == name]
        if rows:
            lines += ["", f"## {name}: {study.title}", "", *markdown_table(rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    register, kept = map(Path, sys.argv[1:])
    sys.stdout.write(results_page(read_claims(register), read_figures(kept)))
