"""Results -> report.md and report.html: one page that needs no network.

Plain values in, files out: rows as in ``results.json``, curves as lists of numbers, pictures as
uint8 tensors. The look is in ``report.html.j2``; here is what has to be computed for it. Equal
input gives equal bytes.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from itgan.artefacts import write_bytes
from itgan.charts import Axis, Curve, Number, draw
from itgan.pictures import grid
from itgan.tables import (
    DIFFERENCE,
    RANKING,
    SCORE,
    Column,
    Row,
    choose_columns,
    escaped,
    markdown_table,
    source_name,
)

STAGES = ("real", "inverted", "condensed", "plus")
SOURCES = {
    "real": "every real training image",
    "random": "real images, as many as there are latents (or bytes, where it says so)",
    "gan": "the frozen generator on random latents, drawn once",
    "gan-fresh": "the frozen generator on new random latents in every batch: unlimited images",
    "inversion": "the frozen generator on latents that reproduce real training images",
    "itgan": "the frozen generator on those latents after condensation: made to be learnt from",
    "itgan-plus": "itgan with this project's additions: the networks that it is matched in are "
    "trained, and classify its images, too",
    "dm": "pixels optimised by distribution matching",
    "dc": "pixels optimised by gradient matching",
    "herding": "the real images whose features best follow the mean of their class",
}
ABOUT = (
    "How much does a training set teach? Classifiers were trained from scratch on each set alone "
    "and then scored on real images held out. What itgan adds is a set that a frozen generator "
    "makes from a few stored latents, tuned to be learnt from rather than to look real."
)
SCORES = (
    "DD-Ranking's definitions, accuracies as fractions. HLR: what is lost to all real images "
    "(lower is better). IOR: what is gained over as many random real images. LRS, from both, and "
    "ARS, with and without augmentation, lie in [0, 1]; higher is better, 0.269 is no difference."
)


@dataclass(frozen=True)
class Gallery:
    """Paired pictures: position k of a class is the same training row in every stage.

    ``stages`` maps some of "real", "inverted", "condensed", "plus" to uint8 pictures, grey or RGB.
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
    provenance: Mapping[str, str] | None = None,
    command: str = "",
    scores: Sequence[Row] = (),
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
        provenance: what went in, a line each.
        command: the command line that computes it all.
        scores: as in ``scores.json``, fractions or None.
        files: names of files beside the report that ``report.md`` links to.

    Returns:
        The paths of ``report.html`` and ``report.md``.
    """
    subject, columns = choose_columns(rows)
    tables = [("results", columns, rows, False), ("differences", DIFFERENCE, differences, True)]
    ranked = {
        f"{source_name(row)} · {row['network']}": " · ".join(c.text(row) for c in RANKING)
        for row in scores
    }
    details = [
        (f"Scores: {' · '.join(column.title for column in RANKING)}", ranked),
        ("Configuration", config),
        ("Environment", environment),
    ]
    page = _template("report.html.j2").render(
        title=title,
        about=ABOUT,
        meanings=_meanings(rows),
        subject=subject,
        tables=[_Table(*table) for table in tables if table[2]],
        charts=draw(curves, list(SOURCES)),
        colours={name: index for index, name in enumerate(SOURCES)},
        gallery=None if gallery is None else _sprites(gallery),
        notes=notes,
        provenance=provenance or {},
        command=command,
        details=[(name, list(_flat(values))) for name, values in details if values],
    )
    html, markdown = out / "report.html", out / "report.md"
    write_bytes(html, page.encode())
    made = _made(provenance or {}, command)
    write_bytes(markdown, _markdown(title, rows, differences, scores, notes, made, files).encode())
    if gallery is not None:
        write_gallery(out / "gallery.png", gallery)
    return html, markdown


def write_gallery(path: Path, gallery: Gallery) -> None:
    """One PNG of every stage, if there is any picture."""
    if any(images.numel() for images in gallery.stages.values()):
        buffer = io.BytesIO()
        gallery_picture(gallery).save(buffer, "PNG", optimize=True)
        write_bytes(path, buffer.getvalue())


def gallery_picture(gallery: Gallery) -> Image.Image:
    """All stages side by side, a row for each class, for a page that shows one picture."""
    stages = [gallery.stages[name] for name in STAGES if name in gallery.stages]
    gap = torch.full_like(stages[0][:, :1], 255)
    parts = [part for stage in stages for part in (gap, stage)][1:]
    return grid(torch.cat(parts, 1), scale=max(1, 32 // stages[0].shape[-1]))


def drawn(curve: Curve) -> str:
    """A chart alone, as an SVG of lines and dots with its legend; empty without a finite point."""
    charts = draw([curve], ())
    height = max(340, 20 * len(curve.series))
    return _template("figure.svg.j2").render(chart=charts[0], height=height) if charts else ""


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("itgan", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


@dataclass(frozen=True)
class _Table:
    """A table of the page; its intervals are drawn on one scale."""

    name: str
    columns: list[Column]
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
        "k": k,
        "width": width,
        "height": height,
        "side": min(width * whole, 128),
        "pixelated": width <= 128,
    }


def _markdown(
    title: str,
    rows: Sequence[Row],
    differences: Sequence[Row],
    scores: Sequence[Row],
    notes: Sequence[str],
    made: Sequence[str],
    files: Sequence[str],
) -> str:
    subject, columns = choose_columns(rows)
    lines = [f"# {escaped(title)}", "", ABOUT, ""]
    if rows:
        lines += [*([escaped(subject), ""] if subject else []), *markdown_table(columns, rows)]
        lines += [*(f"- **{name}**: {text}" for name, text in _meanings(rows)), ""]
    if differences:
        lines += ["## Differences", "", *markdown_table(DIFFERENCE, differences)]
    if scores:
        lines += ["## Scores", "", SCORES, "", *markdown_table(SCORE, scores)]
    if notes:
        lines += ["## Notes", "", *(f"- {escaped(note)}" for note in notes), ""]
    lines += [
        *made,
        "## Files",
        "",
        "- [report.html](report.html): this page with curves and pictures",
    ]
    lines += [f"- [{name}]({name})" for name in files if name != "report.html"]
    return "\n".join(lines) + "\n"


def _made(provenance: Mapping[str, str], command: str) -> list[str]:
    """Markdown of what went in, and the command that does it again."""
    lines = [f"- {escaped(name)}: {escaped(text)}" for name, text in provenance.items()]
    lines += ["", "```console", f"$ {command}", "```"] if command else []
    return ["## How it was made", "", *lines, ""] if lines else []
