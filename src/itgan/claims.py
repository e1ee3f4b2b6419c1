"""The register of claims: what the paper says, judged by the kept figures of the studies."""

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from itgan import artefacts
from itgan.configs import Config
from itgan.errors import InputError
from itgan.kept import read_rows
from itgan.reproduction import markdown_table
from itgan.studies import STUDIES

EQUAL = 1.0  # points
_UNDECIDED = "too close to call at this scale"
SHARED = ("real", "herding")  # sources that are the same images for all sets

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

# Rows of our own studies whose differences are printed: first less second.
PAIRS = {
    "sources": (
        ("IT-GAN", "Inversion"),
        ("IT-GAN", "GAN"),
        ("IT-GAN", "GAN, fresh samples"),
        ("IT-GAN", "Random"),
        ("IT-GAN", "Random, same bytes as JPEG"),
        ("IT-GAN", "DM"),
        ("IT-GAN plus", "IT-GAN"),
        ("IT-GAN plus", "Random"),
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
        ("IT-GAN plus", "IT-GAN"),
        ("IT-GAN plus", "IT-GAN, more in int8"),
        ("IT-GAN plus", "Random"),
        ("IT-GAN, soft labels", "Random, soft labels"),
        ("IT-GAN plus, soft labels", "Random, soft labels"),
    ),
    "rate": (
        ("IT-GAN fp16", "IT-GAN fp32"),
        ("IT-GAN int8", "IT-GAN fp32"),
        ("IT-GAN int8, 32 dimensions", "IT-GAN int8"),
        *(("IT-GAN fp32", f"Random, fp32's bytes{form}") for form in ("", " as JPEG")),
        *(("IT-GAN int8", f"Random, int8's bytes{form}") for form in ("", " as JPEG")),
    ),
}

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


def results_page(claims: Sequence[Claim], figures: Figures, about: str = "") -> str:
    """``docs/results.md``: the register with its verdicts, then each study beside the paper's.

    ``about`` stands above both.
    """
    scale = next((row["scale"] for row in figures.values()), "cpu")
    lines = [
        f"# Results at {scale} scale",
        "",
        "Generated by `make results` from the figures kept in `results/`; the rule of the",
        "verdicts is in [claims.toml](claims.toml).",
        "",
        *([about.strip(), ""] if about else ()),
        "## The paper's claims",
        "",
        "| claim | place | difference, points | verdict |",
        "| :-- | :-- | --: | :-- |",
    ]
    for claim in claims:
        found, said = judge(claim, figures)
        if found is None:
            said = f"not measured (`{claim.command or f'itgan reproduce {claim.study}'}`)"
            number = ""
        else:
            number = _interval(found)
        lines.append(f"| {claim.text} | {claim.place} | {number} | {said} |")
    for name, study in STUDIES.items():
        rows = [row for (kept, _, _), row in figures.items() if kept == name]
        if rows:
            lines += ["", f"## {name}: {study.title}", "", *markdown_table(rows)]
            lines += ["", _trainings(rows), *_differences(name, figures)]
            lines += _pay_off(name, figures)
    return "\n".join(lines) + "\n"


def _interval(found: Difference) -> str:
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def _trainings(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many classifiers each figure is the mean of, and how long each was trained.

    Told of whole columns, or of whole rows where that leaves fewer exceptions, and of those.
    """
    said = [f"{r['sets']} x {r['n'] // r['sets']}, {r['updates']:,} updates" for r in rows]
    common = Counter(said)
    best: tuple[int, dict[str, list[str]]] | None = None
    for field in ("column", "row"):
        usual = {
            name: max(group, key=lambda text: (group[text], common[text]))
            for name in dict.fromkeys(row[field] for row in rows)
            for group in [Counter(t for r, t in zip(rows, said, strict=True) if r[field] == name)]
        }
        alike: dict[str, list[str]] = {text: [] for text in common}
        for name, text in usual.items():
            alike[text].append(name)
        exceptions = [(r, t) for r, t in zip(rows, said, strict=True) if usual[r[field]] != t]
        for row, text in exceptions:
            alike[text].append(f"{row['row']} {row['column']}")
        if best is None or len(exceptions) < best[0]:
            best = (len(exceptions), alike)
    assert best is not None
    first, *rest = sorted(best[1].items(), key=lambda one: -common[one[0]])
    others = [f"{text} ({'; '.join(names)})" for text, names in rest]
    return f"Sets x networks: {'; '.join([first[0], *others])}."


def _columns(study: str, figures: Figures) -> list[str]:
    return list(dict.fromkeys(column for kept, _, column in figures if kept == study))


def _difference(
    study: str, pair: tuple[str, str], column: str, figures: Figures
) -> Difference | None:
    one, other = (figures.get((study, row, column)) for row in pair)
    return None if one is None or other is None else difference(one, other)


def _pay_off(study: str, figures: Figures) -> list[str]:
    """From how many latents on a set beats real images in its bytes, at any kept size."""
    lines = []
    for pair in PAIRS[study] if study == "rate" else ():
        if "bytes" not in pair[1]:
            continue
        sizes = sorted(_columns(study, figures), key=int)
        found = {size: _difference(study, pair, size, figures) for size in sizes}
        known = {size: one for size, one in found.items() if one is not None}
        if known:
            behind = [i for i, one in enumerate(known.values()) if one.low <= 0]
            ahead = list(known)[behind[-1] + 1 if behind else 0 :]
            if ahead:
                where = f"from {ahead[0]} latents per class on, of {', '.join(known)}"
            else:
                where = f"not at the largest size, {list(known)[-1]} latents per class"
            lines.append(f"- {pair[0]} - {pair[1]}: {where}")
    if not lines:
        return []
    return ["", "Where the generator's bytes pay off (the interval lies above zero):", "", *lines]


def _differences(study: str, figures: Figures) -> list[str]:
    """A table of paired differences, where a study has pairs."""
    columns = _columns(study, figures)
    lines = []
    for first, second in PAIRS.get(study, ()):
        texts = []
        for column in columns:
            found = _difference(study, (first, second), column, figures)
            texts.append("" if found is None else f"{_interval(found)}, {found.sets} sets")
        if any(texts):
            lines.append(f"| {first} - {second} | {' | '.join(texts)} |")
    if not lines:
        return []
    head = [f"| difference, points | {' | '.join(columns)} |", f"| :-- |{' --: |' * len(columns)}"]
    return [
        "",
        "Paired differences with Student's 95 % interval over latent sets:",
        "",
        *head,
        *lines,
    ]


if __name__ == "__main__":
    import sys

    register, kept, page = map(Path, sys.argv[1:])
    try:
        text = results_page(read_claims(register), read_figures(kept), read_about(register))
    except InputError as error:
        sys.exit(f"itgan: {error}")
    artefacts.write_bytes(page, text.encode())
