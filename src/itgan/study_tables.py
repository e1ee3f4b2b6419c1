"""A study as tables: measured figures beside the published ones, and their paired differences."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from itgan.comparisons import by_place, differences
from itgan.studies import STUDIES, published
from itgan.tables import Row, markdown_grid, points, terminal_grid

MISSING = "not measured"
PAIRED = "Paired differences with Student's 95 % interval over latent sets"


def _grid(rows: Iterable[Row]) -> tuple[list[str], list[str], dict[tuple[str, str], Row]]:
    """Rows and columns as the paper has them, those without a figure of ours too."""
    placed = {(row["row"], row["column"]): row for row in rows}
    study = next(iter(placed.values()))["study"]
    paper = published().get(study, {})
    down = list(dict.fromkeys([*paper, *(row for row, _ in placed)]))
    across = [column for values in paper.values() for column in values]
    across = list(dict.fromkeys([*across, *(column for _, column in placed)]))
    return down, across, placed


def kilobits(nbytes: int | None, classes: int) -> float:
    """Thousands of bits for each class, generator and labels counted in."""
    return 8 * (nbytes or 0) / classes / 1000


def _figure(mean: float, std: float, n: int | None = None) -> str:
    return points(mean) if n == 1 else f"{points(mean)} ± {points(std)}"


def _texts(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table: a line of ours, and one of the paper's where it has any."""
    down, across, placed = _grid(rows)
    study = next(iter(placed.values()))["study"]
    lines = []
    for row in down:
        ours = [placed.get((row, column)) for column in across]
        lines.append(
            [row, *(MISSING if r is None else _figure(r["mean"], r["std"], r["n"]) for r in ours)]
        )
        if STUDIES[study].by_bytes:
            bits = (r and kilobits(r["bytes"], r["classes"]) for r in ours)
            lines.append(["  kbit a class", *("" if b is None else f"{b:,.0f}" for b in bits)])
        if printed := published().get(study, {}).get(row):
            theirs = [printed.get(column) for column in across]
            lines.append(["  paper", *("" if f is None else _figure(*f) for f in theirs)])
    return ["", *across], lines


def terminal_tables(rows: Sequence[Row], title: str) -> list[Table]:
    """A study for the terminal, and the paired differences of its rows."""
    tables = [terminal_grid(*_texts(rows), title)]
    head, lines = differences(rows[0]["study"], by_place(rows))
    return [*tables, terminal_grid(head, lines, PAIRED)] if lines else tables


def markdown_table(rows: Iterable[Row]) -> list[str]:
    """A study as the lines of a markdown table."""
    return markdown_grid(*_texts(rows))


def differences_markdown(rows: Sequence[Row]) -> list[str]:
    """Its paired differences, likewise; nothing where it has none."""
    head, lines = differences(rows[0]["study"], by_place(rows))
    return ["", f"{PAIRED}:", "", *markdown_grid(head, lines)] if lines else []
