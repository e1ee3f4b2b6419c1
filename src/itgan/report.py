"""Results -> a table for the terminal, report.md, and report.html: one page that needs no network.

Plain values in, files out: rows as in ``results.json``, curves as lists of numbers, pictures as
uint8 tensors. The look is in ``report.html.j2``; here is what has to be computed for it. Equal
input gives equal bytes.
"""

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from itgan.artefacts import write_bytes
from itgan.charts import Axis, Curve, Number, draw, typeset
from itgan.pictures import grid

Row = Mapping[str, Any]

STAGES = ("real", "inverted", "condensed")
SOURCES = {
    "real": "every real training image",
    "random": "real images, as many as there are latents (or bytes, where it says so)",
    "gan": "the frozen generator on random latents, drawn once",
    "gan-fresh": "the frozen generator on new random latents in every batch: unlimited images",
    "inversion": "the frozen generator on latents that reproduce real training images",
    "itgan": "the frozen generator on those latents after condensation: made to be learnt from",
    "itgan-plus": "itgan with this project's additions, at the same number of bytes",
    "dm": "pixels optimised by distribution matching",
    "dc": "pixels optimised by gradient matching",
    "herding": "the real images whose features best follow the mean of their class",
}
ABOUT = (
    "How much does a training set teach? Classifiers were trained from scratch on each set alone "
    "and then scored on real images held out. What itgan adds is a set that a frozen generator "
    "makes from a few stored latents, tuned to be learnt from rather than to look real."
)

NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Gallery:
    """Paired pictures: position k of a class is the same training row in every stage.

    ``stages`` maps some of "real", "inverted", "condensed" to uint8 pictures, grey or RGB.
    """

    class_names: tuple[str, ...]
    stages: dict[str, UInt8[Tensor, "classes k c h w"]]


def write_report(
    out: Path,
    *,
    title: str,
    rows: Sequence[Row],
    curves: Sequence[Curve],
    gallery: Gallery | None,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    notes: Sequence[str],
    differences: Sequence[Row] = (),
    files: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into ``out``, each atomically.

    Args:
        out: the folder, made if need be.
        title: the headline.
        rows: as in ``results.json``, accuracies in percent; their order is kept.
        curves: the charts; one without a finite point is left out.
        gallery: pictures of every stage, or None.
        config: nested plain values, shown as dotted names.
        environment: the same for versions and hardware.
        notes: remarks, one line each.
        differences: paired differences ``{"a", "b", "mean", "ci95": [lo, hi], "se", "n"}`` in
            points; ``se`` may be missing.
        files: names of files beside the report that ``report.md`` links to.

    Returns:
        The paths of ``report.html`` and ``report.md``.
    """
    subject, columns = _columns(rows)
    tables = [("results", columns, rows, False), ("differences", _DIFFERENCE, differences, True)]
    details = [("Configuration", config), ("Environment", environment)]
    page = _template().render(
        title=title,
        about=ABOUT,
        meanings=_meanings(rows),
        subject=subject,
        tables=[_Table(*table) for table in tables if table[2]],
        charts=draw(curves, list(SOURCES)),
        colours={name: index for index, name in enumerate(SOURCES)},
        gallery=None if gallery is None else _sprites(gallery),
        notes=notes,
        details=[(name, list(_flat(values))) for name, values in details if values],
    )
    html, markdown = out / "report.html", out / "report.md"
    write_bytes(html, page.encode())
    write_bytes(markdown, _markdown(title, rows, differences, notes, files).encode())
    if gallery is not None and any(images.numel() for images in gallery.stages.values()):
        buffer = io.BytesIO()
        gallery_picture(gallery).save(buffer, "PNG", optimize=True)
        write_bytes(out / "gallery.png", buffer.getvalue())
    return html, markdown


def gallery_picture(gallery: Gallery) -> Image.Image:
    """All stages side by side, a row for each class, for a page that shows one picture."""
    stages = [gallery.stages[name] for name in STAGES if name in gallery.stages]
    gap = torch.full_like(stages[0][:, :1], 255)
    parts = [part for stage in stages for part in (gap, stage)][1:]
    return grid(torch.cat(parts, 1), scale=max(1, 32 // stages[0].shape[-1]))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("itgan", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def results_table(rows: Sequence[Row]) -> Table:
    """The rows as a table for the terminal."""
    subject, columns = _columns(rows)
    return _terminal(subject, columns, rows)


def differences_table(differences: Sequence[Row]) -> Table:
    """The paired differences as a table for the terminal."""
    return _terminal("paired differences", _DIFFERENCE, differences)


def _terminal(subject: str, columns: "Sequence[_Column]", rows: Sequence[Row]) -> Table:
    title = Text(subject) if subject else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        side = "right" if column.number else "left"
        table.add_column(column.title, justify=side, no_wrap=column.number, overflow="fold")
    for row in rows:
        style = "bold" if str(row.get("source", "")).startswith("itgan") else ""
        table.add_row(*(Text(column.text(row)) for column in columns), style=style)
    return table


@dataclass(frozen=True)
class _Column:
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
    """Bytes for people, in binary units: 1,536 is 1.50 KiB."""
    if count is None:
        return NOTHING
    power = min(max(int(count).bit_length() - 1, 0) // 10, 4)
    scaled = count / 1024**power
    digits = 0 if power == 0 else 2 if scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:.{digits}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _source(row: Row) -> str:
    return f"{row['source']} ({row['variant']})" if row["variant"] else row["source"]


def _difference(row: Row) -> str:
    return f"{row['a']} {typeset('-')} {row['b']}"


def _plain(key: str, title: str, *, number: bool) -> _Column:
    def text(row: Row) -> str:
        return _count(row[key]) if number else str(row[key] or NOTHING)

    return _Column(key, title, text, lambda row: row[key], number)


def _estimate(title: str, text: Callable[[Row], str], sign: str = "") -> list[_Column]:
    def lowest(row: Row) -> Number | None:
        return row["ci95"][0] if row["ci95"] else None

    return [
        _Column("mean", title, text, lambda row: row["mean"]),
        _Column("ci95", "95 % interval", lambda row: _interval(row, sign), lowest),
    ]


_RESULT = [
    *_estimate("accuracy, %", _accuracy),
    _plain("n", "n", number=True),
    _plain("sets", "sets", number=True),
    _Column(
        "images",
        "images",
        lambda row: "unlimited" if row["images"] is None else _count(row["images"]),
        lambda row: "Infinity" if row["images"] is None else row["images"],
    ),
    _Column("bytes", "bytes", lambda row: _size(row["bytes"]), lambda row: row["bytes"]),
]
_DIFFERENCE = [
    _Column("a", "difference", _difference, _difference, number=False),
    *_estimate("points", lambda row: points(row["mean"], "+"), "+"),
    _Column("se", "se over sets", lambda row: points(row.get("se")), lambda row: row.get("se")),
    _plain("n", "n", number=True),
]
_KEYS = {
    "dataset": ("data set", "{}", False),
    "network": ("network", "{}", False),
    "latents_per_class": ("latents per class", "{} latents per class", True),
    "labels": ("labels", "{} labels", False),
}


def _columns(rows: Sequence[Row]) -> tuple[str, list[_Column]]:
    """What all rows share, as one line, and the columns for the rest."""
    shared, varying = [], []
    for key, (title, phrase, number) in _KEYS.items():
        values = {row[key] for row in rows if row[key] is not None}
        if len(values) == 1:
            shared.append(phrase.format(*values))
        elif values:
            varying.append(_plain(key, title, number=number))
    source = _Column("source", "source", _source, _source, False)
    return " · ".join(shared), [source, *varying, *_RESULT]


@dataclass(frozen=True)
class _Table:
    """A table of the page; its intervals are drawn on one scale."""

    name: str
    columns: list[_Column]
    rows: Sequence[Row]
    signed: bool

    @property
    def axis(self) -> Axis:
        """The scale that holds every mean and interval, and zero if the numbers are signed."""
        ends = [0.0] if self.signed else []
        for row in self.rows:
            ends += [] if row["mean"] is None else [row["mean"], *(row["ci95"] or ())]
            ends += self.spread(row) or ()
        return Axis.around(ends or [0.0, 100.0])

    def spread(self, row: Row) -> tuple[Number, Number] | None:
        """One standard deviation to each side of the mean."""
        mean, std = row["mean"], row.get("std")
        if mean is None or std is None:
            return None
        return max(mean - std, 0.0), min(mean + std, 100.0)


def _meanings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    present = {row["source"] for row in rows}
    return [(name, meaning) for name, meaning in SOURCES.items() if name in present]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings under dotted names, as the command line spells them."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{key}", text


def _png(pixels: np.ndarray) -> str:
    """``h w c`` uint8 -> a data: address of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        file, format="PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _sprites(gallery: Gallery) -> dict[str, Any] | None:
    """One sprite per picture: its stages one under the other, so that flipping is a shift."""
    names = [stage for stage in STAGES if stage in gallery.stages]
    if not names or not gallery.stages[names[0]].numel():
        return None
    shapes = {tuple(pictures.shape) for pictures in gallery.stages.values()}
    if len(shapes) > 1 or next(iter(shapes))[0] != len(gallery.class_names):
        raise ValueError(
            f"gallery: stages of shapes {sorted(shapes)} for {len(gallery.class_names)} classes"
        )
    stages = np.stack([gallery.stages[name].cpu().numpy() for name in names])
    _, classes, k, channels, height, width = stages.shape
    # classes, k, (stage, h), w, c
    sprites = stages.transpose(1, 2, 0, 4, 5, 3).reshape(classes, k, -1, width, channels)
    whole = max(1, round(64 / width))  # pixel art wants whole multiples
    return {
        "stages": names,
        "classes": [
            (name, [_png(sprite) for sprite in row])
            for name, row in zip(gallery.class_names, sprites, strict=True)
        ],
        "label": min(max(map(len, gallery.class_names)), 12) + 1,
        "k": k,
        "width": width,
        "height": height,
        "side": min(width * whole, 128),
        "pixelated": width <= 128,
    }


def _markdown_table(columns: list[_Column], rows: Sequence[Row]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [
        line(escaped(column.title) for column in columns),
        line("--:" if column.number else ":--" for column in columns),
        *(line(escaped(column.text(row)) for column in columns) for row in rows),
        "",
    ]


def escaped(text: str) -> str:
    """Text that markdown shows as it is, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    text = "".join(f"\\{c}" if c in "\\|`*_" else c for c in text)
    return text.replace("](", "]\\(")


def _markdown(
    title: str,
    rows: Sequence[Row],
    differences: Sequence[Row],
    notes: Sequence[str],
    files: Sequence[str],
) -> str:
    subject, columns = _columns(rows)
    lines = [f"# {escaped(title)}", "", ABOUT, ""]
    if rows:
        lines += [*([escaped(subject), ""] if subject else []), *_markdown_table(columns, rows)]
        lines += [*(f"- **{name}**: {text}" for name, text in _meanings(rows)), ""]
    if differences:
        lines += ["## Differences", "", *_markdown_table(_DIFFERENCE, differences)]
    if notes:
        lines += ["## Notes", "", *(f"- {escaped(note)}" for note in notes), ""]
    lines += ["## Files", "", "- [report.html](report.html): this page with curves and pictures"]
    lines += [f"- [{name}]({name})" for name in files if name != "report.html"]
    return "\n".join(lines) + "\n"
