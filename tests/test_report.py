import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from itgan.charts import Curve
from itgan.report import Gallery, write_report
from itgan.tables import results_table

ROW = {
    "dataset": "digits",
    "source": "itgan",
    "variant": None,
    "network": "convnet",
    "latents_per_class": 10,
    "images": 100,
    "bytes": 1536,
    "labels": "hard",
    "mean": 92.68,
    "std": 0.8,
    "n": 9,
    "sets": 3,
    "ci95": [92.0, 93.25],
}
ROWS = [
    {**ROW, "source": "real", "mean": 97.6, "images": 1347, "ci95": [97.2, 97.9], "sets": 1},
    {**ROW, "source": "random", "variant": "same-rows", "mean": 87.2, "ci95": [86.0, 88.0]},
    {**ROW, "source": "gan-fresh", "mean": 88.4, "images": None, "ci95": [87.5, 89.1]},
    ROW,
]
DIFFERENCES = [
    {"a": "itgan", "b": "gan", "mean": 11.4, "ci95": [9.1, 13.6], "se": 0.6, "n": 9},
    {"a": "itgan", "b": "real", "mean": -4.9, "ci95": [-5.7, -4.0], "n": 9},
]
CURVES = [
    Curve("inversion", "step", "loss", {"loss": [([0, 10], [2.0, 0.01]), ([0, 10], [3.0, 0.02])]}),
    Curve("accuracy", "epoch", "%", {"itgan": [([1, 2], [50, 60])], "gan": [([1, 2], [4, 5])]}),
]


def gallery(classes=3, k=2, channels=3, side=8, stages=("real", "inverted", "condensed")):
    rng = torch.Generator().manual_seed(0)
    shape = (classes, k, channels, side, side)
    names = tuple(f"class {i}" for i in range(classes))
    return Gallery(
        names, {s: torch.randint(256, shape, generator=rng, dtype=torch.uint8) for s in stages}
    )


def write(out, **changes):
    given = {
        "title": "a run",
        "rows": ROWS,
        "curves": CURVES,
        "gallery": gallery(),
        "config": {"seed": 0, "inversion": {"steps": 10, "extractor": None}},
        "environment": {"torch": "2"},
        "notes": ["a note"],
        "differences": DIFFERENCES,
        "provenance": {"generator": "a file"},
        "command": "itgan run digits --seed 1",
    }
    return write_report(out, **{**given, **changes})


class Page(HTMLParser):
    """What a browser would make of the page: elements, addresses, texts of table rows."""

    VOID = frozenset({"meta", "img", "link", "br", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.rows, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    def sources(self):
        return [a["src"] for tag, a in self.elements if tag == "img"]


def read(out, **changes):
    return Page(write(out, **changes)[0].read_text(encoding="utf-8"))


def pixels(source):
    kind, payload = source.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(payload))))


def test_every_row_stands_in_the_page(tmp_path):
    rows = read(tmp_path).rows
    assert ["itgan", "92.7 ± 0.8", "", "[92.0, 93.2]", "9", "3", "100", "1.50 KiB"] in rows
    assert ["real", "97.6 ± 0.8", "", "[97.2, 97.9]", "9", "1", "1,347", "1.50 KiB"] in rows
    assert [row[0] for row in rows[1:5]] == ["real", "random (same-rows)", "gan-fresh", "itgan"]
    assert rows[3][6] == "unlimited"
    assert ["itgan − gan", "+11.4", "", "[+9.1, +13.6]", "0.6", "9"] in rows  # noqa: RUF001
    assert ["itgan − real", "−4.9", "", "[−5.7, −4.0]", "–", "9"] in rows  # noqa: RUF001
    assert ["inversion.steps", "10"] in rows


def test_cells_carry_what_they_sort_by(tmp_path):
    cells = [
        a for tag, a in read(tmp_path).elements if tag == "td" and a.get("class") == "number mean"
    ]
    assert [float(a["data-sort"]) for a in cells[:4]] == [97.6, 87.2, 88.4, 92.68]


def test_what_varies_is_a_column_and_the_rest_one_line(tmp_path):
    assert "digits · convnet · 10 latents per class · hard labels" in read(tmp_path).text
    page = read(tmp_path, rows=[ROW, {**ROW, "network": "vgg19", "labels": "soft"}])
    assert page.rows[0][:3] == ["source", "network", "labels"]
    assert [row[1:3] for row in page.rows[1:3]] == [["convnet", "hard"], ["vgg19", "soft"]]
    assert "digits · 10 latents per class" in page.text


def test_the_page_loads_nothing(tmp_path):
    path, _ = write(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    for _, attributes in Page(text).elements:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:")


def test_markup_in_any_text_stays_text(tmp_path):
    evil = '<script>alert("1")</script>'
    pictures = gallery(1)
    page = read(
        tmp_path,
        title=evil,
        rows=[{**ROW, "source": evil, "variant": evil, "dataset": evil}],
        curves=[Curve(evil, evil, evil, {evil: [([0, 1], [1, 2])]})],
        gallery=Gallery((evil,), pictures.stages),
        config={evil: evil},
        notes=[evil],
        provenance={evil: evil},
        command=evil,
        differences=[{**DIFFERENCES[0], "a": evil, "b": evil}],
    )
    assert [tag for tag, _ in page.elements].count("script") == 2  # its own
    assert page.text.count(evil) >= 10
    assert [a["alt"] for tag, a in page.elements if tag == "img"] == [f"{evil} 1", f"{evil} 2"]
    plain = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in plain.replace(f"```console\n$ {evil}\n```", "")


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_given_pixels_with_their_stages_in_order(tmp_path, channels):
    given = gallery(channels=channels, stages=("condensed", "real", "inverted"))
    sources = read(tmp_path, gallery=given).sources()
    assert len(sources) == 3 * 2
    stages = [given.stages[s] for s in ("real", "inverted", "condensed")]
    for i, source in enumerate(sources):
        expected = torch.cat([s[i // 2, i % 2] for s in stages], 1).permute(1, 2, 0).numpy()
        found = pixels(source)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_stages_may_be_missing(tmp_path):
    page = read(tmp_path, gallery=gallery(stages=("real", "inverted")))
    buttons = [a for tag, a in page.elements if tag == "button"]
    assert [a["aria-pressed"] for a in buttons] == ["false", "true"]
    assert pixels(page.sources()[0]).shape == (16, 8, 3)


def test_a_gallery_that_is_not_paired_is_refused(tmp_path):
    first, second = gallery(k=2), gallery(k=3)
    stages = {"real": first.stages["real"], "inverted": second.stages["inverted"]}
    with pytest.raises(ValueError, match="gallery"):
        write(tmp_path, gallery=Gallery(first.class_names, stages))


def test_equal_input_gives_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    names = ["gallery.png", "report.html", "report.md"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    pictures = [(tmp_path / run / "gallery.png").read_bytes() for run in "ab"]
    assert pictures[0] == pictures[1]


def test_curves_have_bands_and_legends(tmp_path):
    page = read(tmp_path)
    shapes = [a.get("class", "").split()[:1] for tag, a in page.elements if tag == "path"]
    ends = [a["class"] for tag, a in page.elements if a.get("class", "").startswith("end ")]
    assert len(ends) == 2  # the chart of two series names them at their ends
    assert shapes.count(["band"]) == 1
    assert shapes.count(["line"]) == 3
    assert "line: mean of 2 runs; band: lowest to highest" in page.text


@pytest.mark.parametrize(
    "changes",
    [
        {"gallery": None},
        {"gallery": Gallery(("a",), {})},
        {"gallery": gallery(k=0)},
        {"gallery": gallery(classes=100, k=1)},
        {"gallery": gallery(side=200, classes=1)},
        {"curves": []},
        {"differences": []},
        {"rows": []},
        {"rows": [ROW]},
        {"config": {}, "environment": {}, "notes": []},
        {"provenance": None, "command": "", "config": {}, "environment": {}},
        {"rows": [{**ROW, "std": 0.0, "ci95": [92.68, 92.68], "n": 1}]},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_parts_may_be_missing_or_extreme(tmp_path, changes):
    page = read(tmp_path, **changes)
    assert "NaN" not in page.text
    assert "nan" not in {word for _, a in page.elements for word in (a.get("d") or "").split()}


def test_nulls_are_dashes(tmp_path):
    nulls = ("images", "bytes", "std", "ci95", "variant", "latents_per_class", "mean")
    page = read(tmp_path, rows=[ROW, {**ROW, "source": "dm", **dict.fromkeys(nulls)}])
    assert page.rows[2] == ["dm", "–", "", "–", "9", "3", "unlimited", "–"]  # noqa: RUF001


def test_markdown(tmp_path):
    _, path = write(
        tmp_path,
        title="a *run*",
        rows=[ROWS[0], {**ROW, "source": "it|gan"}],
        files=["results.json"],
    )
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# a \\*run\\*"
    at = lines.index("| source | accuracy, % | 95 % interval | n | sets | images | bytes |")
    assert lines[at + 1] == "| :-- | --: | --: | --: | --: | --: | --: |"
    assert lines[at + 2] == "| real | 97.6 ± 0.8 | [97.2, 97.9] | 9 | 1 | 1,347 | 1.50 KiB |"
    assert lines[at + 3].startswith("| it\\|gan | 92.7 ± 0.8 |")
    assert "| itgan − gan | +11.4 | [+9.1, +13.6] | 0.6 | 9 |" in lines  # noqa: RUF001
    assert "- [results.json](results.json)" in lines
    assert "- a note" in lines
    at = lines.index("- generator: a file")
    assert lines[at - 2 : at] == ["## How it was made", ""]
    assert lines[at + 1 : at + 5] == ["", "```console", "$ itgan run digits --seed 1", "```"]


def test_terminal_table():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table([*ROWS, {**ROW, "source": "[red]x[/red]"}]))
    text = console.export_text()
    assert "digits · convnet" in text
    assert "random (same-rows)" in text  # on eighty columns
    assert "92.7 ± 0.8" in text
    assert "[red]x[/red]" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (42_782_925, "40.8 MiB"),
        (2**31, "2.00 GiB"),
    ],
)
def test_bytes_for_people(tmp_path, count, text):
    assert read(tmp_path, rows=[{**ROW, "bytes": count}]).rows[1][-1] == text
