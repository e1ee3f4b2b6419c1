"""The report in a real browser: Chromium without a window, driven by Selenium.

Pictures of the gallery are plain red (real), green (inverted) and blue (condensed), so that a
screenshot tells what is shown. Where ITGAN_REQUIRE_BROWSER is set, a missing browser is a failure.
"""

import base64
import io
import math
import os
import shutil
import socket
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from itgan.charts import Curve
from itgan.evaluation import Trial
from itgan.publishing import tabulate
from itgan.report import Gallery, write_report

STAGES = ("real", "inverted", "condensed")
COLOURS = {"real": (220, 0, 0), "inverted": (0, 200, 0), "condensed": (0, 0, 230)}
LONG = "truck-with-an-uncommonly-long-name"
CLASSES = ("airplane", "frog & <newt>", LONG)
EDGES = 40  # of 255: by how much the rim of a picture may vary when it is drawn anew
UPDATES = (100, 200, 300, 400)
ACCURACY = {"real": 0.8, "random": 0.3, "gan": 0.35, "gan-fresh": 0.4, "inversion": 0.45}
ACCURACY |= {"itgan": 0.6, "dm": 0.58, "dc": 0.57, "herding": 0.33}
IMAGES = {"real": 50_000, "gan-fresh": None}

SORTED_BY = """
const [table, column] = arguments;
return [...document.querySelectorAll(`#${table} tbody tr`)].map(r => r.cells[column].dataset.sort);
"""
CONTRAST = """
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map(
    (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const under = (e) => {
  for (; e; e = e.parentElement) {
    const colour = numbers(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
  }
};
const poor = [];
for (const e of document.querySelectorAll("body *")) {
  const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!text || e.closest("script, .unseen")) continue;
  const style = getComputedStyle(e);
  if (!e.getClientRects().length || style.visibility === "hidden") continue;
  const [a, b] = [light(numbers(style.color).slice(0, 3)), light(under(e))].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05);
  const large = parseFloat(style.fontSize) >= 24;
  if (ratio < (large ? 3 : 4.5)) poor.push([e.outerHTML.slice(0, 80), ratio]);
}
return poor;
"""


@pytest.fixture(scope="session")
def driver():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        webdriver = None
    if not (chromium and chromedriver and webdriver):
        reason = "needs selenium, chromium and chromedriver (apt-get install chromium-driver)"
        if os.environ.get("ITGAN_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(chromedriver))
    yield browser
    browser.quit()


def trials():
    """Two networks, nine sources, three sets of three classifiers; sets of one for some."""
    made = []
    for network, shift in (("convnet", 0.0), ("resnet18", -0.05)):
        for source, accuracy in ACCURACY.items():
            for latent_seed in range(1 if source in ("real", "herding") else 3):
                for seed in range(3):
                    value = accuracy + shift + 0.004 * latent_seed + 0.002 * seed
                    made.append(
                        Trial(
                            source,
                            network,
                            latent_seed,
                            seed,
                            value,
                            UPDATES[-1],
                            1.0,
                            dataset="things",
                            variant="same-rows" if source == "random" else "",
                            latents_per_class=10,
                            images=IMAGES.get(source, 100),
                            bytes=1000 * len(source),
                        )
                    )
    return made


def gallery():
    def plain(stage):
        return torch.tensor(COLOURS[stage], dtype=torch.uint8)[:, None, None].expand(3, 4, 3, 8, 8)

    return Gallery(CLASSES, {stage: plain(stage) for stage in STAGES})


@pytest.fixture(scope="session")
def rows():
    return tabulate(trials())[0]


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    results, differences = tabulate(trials())
    accuracies = {
        "real": [(UPDATES, (40, 60, 70, 80))],
        "gan": [(UPDATES, (10, 20, 25, 30)), (UPDATES, (14, 22, 27, 36))],
        "inversion": [(UPDATES[:2], (20, 28))],
        "itgan": [(UPDATES, (30, 40, 55, 60)), (UPDATES, (32, 44, 55, 64))],
    }
    steps = list(range(1, 201))
    html, _ = write_report(
        tmp_path_factory.mktemp("report"),
        title="things with a title that is quite long for a telephone",
        rows=results,
        curves=[
            Curve("Loss", "step", "loss", {"itgan": [(steps, [1000.0 / s**2 for s in steps])]}),
            Curve("Classifiers", "update", "accuracy, %", accuracies),
        ],
        gallery=gallery(),
        config={"recipe": "things", "dataset": f"/somewhere/{'far/' * 30}{LONG}"},
        environment={"torch": "2"},
        notes=["A note."],
        differences=differences,
        provenance={"generator": f"/somewhere/{'far' * 40}"},
        command=f"itgan run things --dataset /somewhere/{'far' * 40}",
    )
    return html.as_uri()


class Page:
    """The report at a width, in a scheme; nothing may be said on the console."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, width=1000, *, scheme="light", media="", script=True):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.tell("Emulation.setEmulatedMedia", media=media, features=[feature])
        self.tell("Emulation.setScriptExecutionDisabled", value=not script)
        self.resize(width, 900)
        self.driver.get(self.address)
        self.resize(width, self.run("return document.documentElement.scrollHeight"))
        return self

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.tell("Emulation.setDeviceMetricsOverride", **size)

    def tell(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def box(self, selector):
        """Left, top, right, bottom of an element, whole pixels; the page needs no scrolling."""
        script = "return document.querySelector(arguments[0]).getBoundingClientRect()"
        box = self.run(script, selector)
        edges = (box["left"], box["top"], box["right"], box["bottom"])
        return tuple(math.floor(v) if i < 2 else math.ceil(v) for i, v in enumerate(edges))

    def picture(self, box=None):
        """What is seen of the page, or of a box in it, h w 3."""
        clip = {}
        if box is not None:
            left, top, right, bottom = box
            part = {"x": left, "y": top, "width": right - left, "height": bottom - top}
            clip = {"clip": {**part, "scale": 1}}
        shot = self.tell("Page.captureScreenshot", optimizeForSpeed=True, **clip)
        file = io.BytesIO(base64.b64decode(shot["data"]))
        return np.asarray(Image.open(file).convert("RGB")).astype(int)

    def stage(self, selector):
        """Which stage a picture shows in its middle."""
        return shown(self.picture(self.box(selector)))

    def keys(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def point(self, element, across=0.5):
        """Move the pointer to a place in an element, as a share of its width."""
        from selenium.webdriver import ActionChains

        offset = round((across - 0.5) * element.size["width"])
        chain = ActionChains(self.driver, duration=0)
        chain.move_to_element_with_offset(element, offset, 0).perform()

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def page(driver, address):
    made = Page(driver, address)
    made.complaints()
    yield made
    assert made.complaints() == []
    made.tell("Emulation.setScriptExecutionDisabled", value=False)
    made.tell("Emulation.setTouchEmulationEnabled", enabled=False)


def shown(picture):
    """The stage whose colour is in the middle of a picture."""
    colour = picture[len(picture) // 2, len(picture[0]) // 2]
    return min(STAGES, key=lambda stage: np.abs(colour - COLOURS[stage]).sum())


def changed(before, after):
    """Left, top, right, bottom of what differs, beyond smoothed edges, between two pictures."""
    assert before.shape == after.shape
    ys, xs = np.nonzero((np.abs(before - after) > EDGES).any(2))
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def inside(box, other, slack=0):
    return (
        box[0] >= other[0] - slack
        and box[1] >= other[1] - slack
        and box[2] <= other[2] + slack
        and box[3] <= other[3] + slack
    )


# --- the table ----------------------------------------------------------------------------------

VALUES = {
    "source": lambda row: "random (same-rows)" if row["source"] == "random" else row["source"],
    "accuracy, %": lambda row: row["mean"],
    "95 % interval": lambda row: row["ci95"][0],
    "n": lambda row: row["n"],
    "sets": lambda row: row["sets"],
    "images": lambda row: math.inf if row["images"] is None else row["images"],
    "bytes": lambda row: row["bytes"],
    "network": lambda row: row["network"],
}


@pytest.mark.parametrize("how", ["click", "keyboard"])
def test_a_heading_sorts_up_and_down(page, rows, how):
    from selenium.webdriver.common.keys import Keys

    page.open()
    heads = page.all("#results thead th")
    titles = [head.text for head in heads]
    for column, value in VALUES.items():
        head = heads[titles.index(column)]
        button = head.find_element("tag name", "button")
        expected = sorted(map(value, rows))
        number = not isinstance(expected[0], str)
        read = float if number else str
        for direction in ("descending", "ascending") if number else ("ascending", "descending"):
            if how == "click":
                button.click()
            else:
                page.run("arguments[0].focus()", button)
                page.keys(Keys.ENTER if number else Keys.SPACE)
            found = [read(v) for v in page.run(SORTED_BY, "results", titles.index(column))]
            assert found == expected[:: 1 if direction == "ascending" else -1], column
            said = [h.get_attribute("aria-sort") for h in heads]
            assert said == [direction if h == head else None for h in heads]


def test_rows_stay_whole_when_they_are_sorted(page):
    page.open()
    before = sorted(page.texts("#results tbody tr"))
    page.all("#results thead button")[2].click()
    after = page.texts("#results tbody tr")
    assert sorted(after) == before
    assert after[0].startswith("real convnet 80.2")


def test_differences_sort_apart_from_results(page):
    page.open()
    first = page.texts("#results tbody th")
    button = page.all("#differences thead button")[1]
    button.click()
    means = [float(v) for v in page.run(SORTED_BY, "differences", 1)]
    assert means == sorted(means, reverse=True)
    assert len(means) == 6  # the fixture has dm and dc, too
    assert page.texts("#results tbody th") == first


# --- the pictures -------------------------------------------------------------------------------


def test_arrow_keys_flip_every_picture_and_nothing_else(page):
    from selenium.webdriver.common.keys import Keys

    page.open()
    before = page.picture()
    cells = [f".class:nth-child({i}) .cell:nth-child({k})" for i in (1, 3) for k in (1, 4)]
    for key, stage in (
        (None, "condensed"),
        (Keys.ARROW_LEFT, "inverted"),
        (Keys.ARROW_LEFT, "real"),
        (Keys.ARROW_LEFT, "condensed"),
        (Keys.ARROW_RIGHT, "real"),
    ):
        if key:
            page.keys(key)
        assert {page.stage(cell) for cell in cells} == {stage}
        assert [button.text for button in page.all("[aria-pressed=true]")] == [stage]
    assert inside(changed(before, page.picture()), page.box("#gallery"))


def test_buttons_flip_every_picture(page):
    page.open()
    for button, stage in zip(page.all("[data-stage]"), STAGES, strict=True):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert page.stage(".class:nth-child(2) .cell") == stage


def test_a_pointer_sweeps_one_picture_through_its_stages(page):
    page.open()
    selector, other = ".cell:nth-child(2)", ".cell:nth-child(3)"
    page.point(page.one("#gallery h2"))
    classes = page.box(".classes")
    before = page.picture(classes)
    left, top, right, bottom = page.box(selector)
    cell = (left - classes[0], top - classes[1], right - classes[0], bottom - classes[1])
    for across, stage in ((0.1, "real"), (0.5, "inverted"), (0.9, "condensed")):
        page.point(page.one(selector), across)
        assert (page.stage(selector), page.stage(other)) == (stage, "condensed")
        assert inside(changed(before, page.picture(classes)), cell, slack=4)
    page.point(page.one("#gallery h2"))
    assert np.abs(page.picture(classes) - before).max() <= EDGES


def test_a_tap_flips_every_picture(page):
    page.open(360)
    page.tell("Emulation.setTouchEmulationEnabled", enabled=True)
    left, top, right, bottom = page.box(".cell")
    for across, stage in ((0.1, "real"), (0.5, "inverted")):
        touch = {"x": left + across * (right - left), "y": (top + bottom) / 2}
        page.tell("Input.dispatchTouchEvent", type="touchStart", touchPoints=[touch])
        page.tell("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        assert page.stage(".class:nth-child(3) .cell") == stage


# --- the curves ---------------------------------------------------------------------------------


def legend(page, chart):
    return [" ".join(t.split()) for t in page.texts(f"figure:nth-child({chart}) .legend li")]


def test_a_pointer_reads_the_values_under_it(page):
    page.open()
    at_rest = ["real 80", "gan 33", "inversion 28", "itgan 62"]
    assert legend(page, 2) == at_rest
    slider = page.one("figure:nth-child(2) input")
    page.point(slider, 0.34)  # a third of the way from update 100 to 400
    assert page.one("figure:nth-child(2) .at").text == "values at update 200"
    values = ["real 60", "gan 21 [20, 22]", "inversion 28", "itgan 42 [40, 44]"]
    assert legend(page, 2) == values
    page.point(slider, 0.98)
    values = ["real 80", "gan 33 [30, 36]", "inversion –", "itgan 62 [60, 64]"]  # noqa: RUF001
    assert legend(page, 2) == values
    page.point(page.one("h1"))
    assert legend(page, 2) == at_rest
    assert page.one("figure:nth-child(2) .at").text == "values at the end"


def test_arrow_keys_read_values_too(page):
    from selenium.webdriver.common.keys import Keys

    page.open()
    slider = page.one("figure:nth-child(1) input")
    page.run("arguments[0].focus()", slider)
    page.keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert legend(page, 1) == ["itgan 250"]  # 1000 / 2 ** 2, on a logarithmic axis
    assert slider.get_attribute("aria-valuetext") == "values at step 2; itgan 250"
    page.keys(Keys.END)
    assert legend(page, 1) == ["itgan 0.025"]
    assert page.stage(".cell") == "condensed"  # arrows in a chart flip no picture


def test_names_stand_at_the_ends_of_their_lines(page):
    page.open(1400)
    ends = page.all("figure:nth-child(2) .end")
    assert [end.text for end in ends] == ["real", "gan", "itgan"]  # inversion ends half-way
    assert page.all("figure:nth-child(1) .end") == []  # a single line needs none
    boxes = sorted((end.rect["y"], end.rect["height"]) for end in ends)
    assert all(y + height <= z for (y, height), (z, _) in pairwise(boxes))


# --- everywhere ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 360, 800, 1400])
def test_nothing_sticks_out(page, width):
    page.open(width)
    for details in page.all("summary"):
        details.click()
    widths = "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    scroll, client = page.run(widths)
    assert (scroll, client) == (width, width)


def test_wide_tables_scroll_in_their_frames(page):
    page.open(360)
    frame = page.one("#results .scroll")
    assert page.run("return arguments[0].scrollWidth > arguments[0].clientWidth", frame)
    page.run("arguments[0].scrollLeft = 1000", frame)
    first = page.one("#results tbody th")
    assert page.run(
        "return arguments[0].getBoundingClientRect().left >= 0", first
    )  # stays in view


def test_nothing_is_asked_of_the_network(page, address):
    import json

    page.driver.get_log("performance")
    page.open()
    asked = [
        message["params"]["request"]["url"]
        for entry in page.driver.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert asked[0] == address
    assert all(url.startswith("data:") for url in asked[1:])
    entries = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in entries)


def test_the_page_may_not_ask_the_network(page):
    """A picture from elsewhere, were one smuggled in, is not fetched."""
    page.open()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        refused = page.driver.execute_async_script(
            "const done = arguments[1];"
            "document.addEventListener('securitypolicyviolation', e => done(e.violatedDirective));"
            "new Image().src = `http://127.0.0.1:${arguments[0]}/x.png`;",
            port,
        )
        assert refused == "img-src"
        with pytest.raises(TimeoutError):
            server.accept()
    (complaint,) = page.complaints()
    assert "Content Security Policy" in complaint


def test_dark_and_light(page):
    means = {}
    for scheme in ("light", "dark"):
        means[scheme] = page.open(scheme=scheme).picture((0, 0, 1000, 40)).mean()
        assert page.stage(".cell") == "condensed"
    assert means["light"] > 235
    assert means["dark"] < 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(page, scheme):
    page.open(scheme=scheme)
    for details in page.all("summary"):
        details.click()
    assert page.run(CONTRAST) == []


def test_all_controls_and_pictures_have_names(page):
    page.open()
    tree = page.tell("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in ("button", "slider", "image", "table", "region")
    ]
    assert all(name for _, name in named), named
    count = {role: sum(r == role for r, _ in named) for role, _ in named}
    assert count["image"] == 12 + 2  # pictures and charts
    assert count["slider"] == count["table"] == 2
    pictures = {name for role, name in named if role == "image"}
    assert "frog & <newt> 1" in pictures


def test_headings_go_down_one_level_at_a_time(page):
    page.open()
    levels = [int(e.tag_name[1]) for e in page.all("h1, h2, h3, h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_focus_is_seen(page):
    from selenium.webdriver.common.keys import Keys

    page.open()
    before = page.picture(results := page.box("#results"))
    page.keys(Keys.TAB, Keys.TAB)
    assert page.run("return document.activeElement.textContent") == "source"
    ring = page.run("return getComputedStyle(document.activeElement).outline")
    assert "solid 2px" in ring
    left, top, right, bottom = page.box("#results thead th")
    head = (left - results[0], top - results[1], right - results[0], bottom - results[1])
    assert inside(changed(before, page.picture(results)), head, slack=6)


# --- without a script, and on paper -------------------------------------------------------------


def test_without_scripts_everything_can_be_read(page, rows):
    page.open(360, script=False)
    assert len(page.all("#results tbody tr")) == len(rows)
    assert len(page.all("#gallery img")) == 12
    left, top, right, bottom = page.box(".cell")
    third = (bottom - top) / 3
    assert third == pytest.approx(right - left, abs=1)  # three squares, one under the other
    picture = page.picture((left, top, right, bottom))
    thirds = [shown(picture[round(i * third) : round((i + 1) * third)]) for i in range(3)]
    assert thirds == list(STAGES)
    assert "From top to bottom: real, inverted, condensed." in page.one("#gallery").text
    for selector in (".bar", "input", "th button"):
        assert not any(element.is_displayed() for element in page.all(selector))
    assert page.run("return document.documentElement.scrollWidth") == 360


def test_on_paper_nothing_is_hidden(page):
    page.open(800, scheme="dark", media="print")
    assert page.picture((0, 0, 800, 20)).mean() > 250
    left, top, right, bottom = page.box(".cell")
    assert bottom - top == pytest.approx(3 * (right - left), abs=2)
    assert page.one("#made details").size["height"] > 100  # the settings are unfolded
    assert not page.one(".bar").is_displayed()
