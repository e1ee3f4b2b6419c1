"""Rows of results as columns of text: for the terminal, for markdown, and for the page.

Rows are those of ``results.json``, or paired differences; accuracies are in percent.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from itgan.charts import Number, typeset
from itgan.ledger import human

Row = Mapping[str, Any]

NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """What a column says of a row, and by what it sorts."""

    key: str
    title: str
    text: Callable[[Row], str]
    sort: Callable[[Row], str | Number | None]
    number: bool = True


def _count(value: Number | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def points(value: Number | None, sign: str = "") -> str:
    """Percent or points for people, one decimal; a dash for None."""
    return NOTHING if value is None else typeset(f"{value:{sign}.1f}")


def _accuracy(row: Row) -> str:
    mean, std = points(row["mean"]), row["std"]
    return mean if std is None else f"{mean} ± {points(std)}"


def _interval(row: Row, sign: str = "") -> str:
    bounds = row["ci95"] if row["n"] > 1 else None  # one trial has no spread to tell of
    return f"[{points(bounds[0], sign)}, {points(bounds[1], sign)}]" if bounds else NOTHING


def _size(count: Number | None) -> str:
    return NOTHING if count is None else human(count)


def _score(value: Number | None) -> str:
    return NOTHING if value is None else typeset(f"{value:.3f}")


def source_name(row: Row) -> str:
    """A source with its variant."""
    return f"{row['source']} ({row['variant']})" if row["variant"] else row["source"]


def _difference(row: Row) -> str:
    return f"{row['a']} {typeset('-')} {row['b']}"


def _plain(key: str, title: str, *, number: bool) -> Column:
    def text(row: Row) -> str:
        return _count(row[key]) if number else str(row[key] or NOTHING)

    return Column(key, title, text, lambda row: row[key], number)


def _estimate(title: str, text: Callable[[Row], str], sign: str = "") -> list[Column]:
    def lowest(row: Row) -> Number | None:
        return row["ci95"][0] if row["ci95"] else None

    return [
        Column("mean", title, text, lambda row: row["mean"]),
        Column("ci95", "95 % interval", lambda row: _interval(row, sign), lowest),
    ]


_RESULT = [
    *_estimate("accuracy, %", _accuracy),
    _plain("n", "n", number=True),
    _plain("sets", "sets", number=True),
    Column(
        "images",
        "images",
        lambda row: "unlimited" if row["images"] is None else _count(row["images"]),
        lambda row: "Infinity" if row["images"] is None else row["images"],
    ),
    Column("bytes", "bytes", lambda row: _size(row["bytes"]), lambda row: row["bytes"]),
]
DIFFERENCE = [
    Column("a", "difference", _difference, _difference, number=False),
    *_estimate("points", lambda row: points(row["mean"], "+"), "+"),
    Column("se", "se over sets", lambda row: points(row.get("se")), lambda row: row.get("se")),
    _plain("n", "n", number=True),
]
RANKING = [
    Column(key, key.upper(), lambda row, key=key: _score(row[key]), lambda row: None)
    for key in ("hlr", "ior", "lrs", "ars")
]
SCORE = [
    Column("source", "source", source_name, source_name, False),
    _plain("network", "network", number=False),
    *RANKING,
]
_KEYS = {
    "dataset": ("data set", "{}", False),
    "network": ("network", "{}", False),
    "latents_per_class": ("latents per class", "{} latents per class", True),
    "labels": ("labels", "{} labels", False),
}


def choose_columns(rows: Sequence[Row]) -> tuple[str, list[Column]]:
    """What all rows share, as one line, and the columns for the rest."""
    shared, varying = [], []
    for key, (title, phrase, number) in _KEYS.items():
        values = {row[key] for row in rows if row[key] is not None}
        if len(values) == 1:
            shared.append(phrase.format(*values))
        elif values:
            varying.append(_plain(key, title, number=number))
    source = Column("source", "source", source_name, source_name, False)
    return " · ".join(shared), [source, *varying, *_RESULT]


def results_table(rows: Sequence[Row]) -> Table:
    """The rows as a table for the terminal."""
    subject, columns = choose_columns(rows)
    return _terminal(subject, columns, rows)


def differences_table(differences: Sequence[Row]) -> Table:
    """The paired differences as a table for the terminal."""
    return _terminal("paired differences", DIFFERENCE, differences)


def _terminal(subject: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    title = Text(subject) if subject else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        side = "right" if column.number else "left"
        table.add_column(column.title, justify=side, no_wrap=column.number, overflow="fold")
    for row in rows:
        style = "bold" if str(row.get("source", "")).startswith("itgan") else ""
        table.add_row(*(Text(column.text(row)) for column in columns), style=style)
    return table


def markdown_table(columns: list[Column], rows: Sequence[Row]) -> list[str]:
    """The lines of a table, with an empty one at the end."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [
        line(escaped(column.title) for column in columns),
        line("--:" if column.number else ":--" for column in columns),
        *(line(escaped(column.text(row)) for column in columns) for row in rows),
        "",
    ]


def markdown_grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of texts, the first of each line its name."""
    written = [f"| {' | '.join(escaped(text) for text in line)} |" for line in (head, *lines)]
    return [written[0], f"| :-- |{' --: |' * (len(head) - 1)}", *written[1:]]


def terminal_grid(head: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> Table:
    """The same for the terminal; a line whose name is indented belongs to the one above."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(head):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line), style="dim" if line[0].startswith(" ") else "")
    return table


def escaped(text: str) -> str:
    """Text that markdown shows as it is, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    text = "".join(f"\\{c}" if c in "\\|`*_" else c for c in text)
    return text.replace("](", "]\\(")
