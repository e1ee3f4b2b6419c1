import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console
from scipy import stats

from itgan import reproduction
from itgan.claims import (
    Claim,
    judge,
    read_claims,
    read_figures,
    verdict,
)
from itgan.comparisons import PAIRS, Difference, difference
from itgan.errors import InputError
from itgan.reproduction import entries
from itgan.results import bytes_figure, results_page
from itgan.run_configs import StudyConfig
from itgan.scales import SCALES
from itgan.studies import STUDIES, published
from itgan.study_tables import differences_markdown, terminal_tables

REGISTER = Path(__file__).parents[1] / "docs" / "claims.toml"


def figure(*sets, latent_seeds=None, source="itgan", scale="cpu"):
    """A figure of one list of accuracies for each latent set."""
    seeds = range(len(sets)) if latent_seeds is None else latent_seeds
    return {
        "source": source,
        "scale": scale,
        "trials": [
            {"latent_seed": s, "network_seed": n, "accuracy": accuracy}
            for s, accuracies in zip(seeds, sets, strict=True)
            for n, accuracy in enumerate(accuracies)
        ],
    }


def claim(**changes):
    """A claim that a is more than c in the studies' first table."""
    base = {"id": "x", "place": "Table 1", "text": "text", "study": "table1", "expect": "more"}
    return Claim(**{**base, "first": ("a", "b"), "second": ("a", "c"), **changes})


def test_a_difference_is_students_over_sets():
    found = difference(figure([0.5, 0.6], [0.4, 0.6]), figure([0.4, 0.5], [0.3, 0.3]))
    # Means of the sets: 10 and 20 points; their standard error is 5; one degree of freedom.
    assert found.mean == pytest.approx(15)
    assert found.high - found.mean == pytest.approx(5 * stats.t.ppf(0.975, 1))
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.sets == 2


def test_only_common_seeds_are_paired():
    found = difference(
        figure([0.5], [0.6], [0.7]), figure([0.4], [0.3], [0.1], latent_seeds=(0, 2, 9))
    )
    assert found.mean == pytest.approx((10 + 40) / 2)
    assert difference(figure([0.5], [0.6]), figure([0.4], [0.3], latent_seeds=(5, 6))) is None


def test_the_whole_training_set_pairs_with_every_set():
    whole = figure([0.9, 0.8], latent_seeds=(4,), source="real")
    found = difference(whole, figure([0.5, 0.6], [0.7, 0.6]))
    assert found.mean == pytest.approx((40 + 20 + 20 + 20) / 4)
    back = difference(figure([0.5, 0.6], [0.7, 0.6]), whole)
    assert (back.mean, back.low) == (pytest.approx(-found.mean), pytest.approx(-found.high))


def test_a_single_set_is_not_taken_for_the_whole_training_set():
    assert difference(figure([0.9]), figure([0.5], [0.7])) is None


def test_a_claim_about_the_curve_is_judged_there():
    def curved(*sets):
        made = figure(*([0.9] for _ in sets))
        for trial, fitted in zip(made["trials"], sets, strict=True):
            points = (fitted, 0.8)
            trial["curve"] = [{"accuracy": 0.1, "training_accuracy": p} for p in points]
        return made

    made = claim(study="fig3", second=("c", "b"), quantity="training_accuracy", point=1)
    kept = {("fig3", "a", "b"): curved(0.5, 0.6), ("fig3", "c", "b"): curved(0.4, 0.49)}
    found, said = judge(made, kept)
    assert (found.mean, said) == (pytest.approx(10.5), "holds")


def test_a_claim_about_a_scale_is_judged_at_no_other():
    made = claim(scale="paper")
    for scale, said in (("cpu", "not measured"), ("paper", "holds")):
        places = {"b": [[0.5], [0.6]], "c": [[0.4], [0.5]]}
        kept = {("table1", "a", c): figure(*sets, scale=scale) for c, sets in places.items()}
        assert judge(made, kept)[1] == said


@pytest.mark.parametrize(
    ("expect", "low", "high", "said"),
    [
        ("more", 0.1, 9.0, "holds"),
        ("more", -9.0, -0.1, "does not hold"),
        ("more", -0.9, 0.8, "equal"),
        ("more", -0.9, 1.1, "too close to call at this scale"),
        ("more", 0.1, 0.3, "holds"),
        ("equal", -0.9, 0.8, "holds"),
        ("equal", 0.1, 0.3, "holds"),
        ("equal", 0.5, 3.0, "does not hold"),
        ("equal", 0.1, 1.2, "too close to call at this scale"),
        ("equal", -2.0, 2.0, "too close to call at this scale"),
    ],
)
def test_the_rule_of_the_verdict(expect, low, high, said):
    assert verdict(expect, Difference((low + high) / 2, low, high, 3)) == said


def test_the_register_names_figures_that_the_studies_have(monkeypatch):
    monkeypatch.setattr(reproduction, "pixels_in_the_bytes", lambda config, dtype: 7)
    claims = read_claims(REGISTER)
    assert len(claims) >= 20
    both = StudyConfig(dataset100="there", generator100="file")
    for claim in claims:
        places = {(e.row, e.column) for e in entries(claim.study, both)}
        assert {claim.first, claim.second} <= places
        paper = published().get(claim.study)
        if paper:  # the paper's own figures say what we say that it claims
            (a, b) = (paper[row][column][0] for row, column in (claim.first, claim.second))
            assert a > b if claim.expect == "more" else abs(a - b) <= 1


def test_what_is_not_kept_is_not_measured():
    made = claim()
    kept = {("table1", "a", "b"): figure([0.5], [0.6])}
    assert judge(made, kept) == (None, "not measured")
    kept["table1", "a", "c"] = figure([0.4], [0.5])
    found, said = judge(made, kept)
    assert (found.low, said) == (pytest.approx(10), "holds")


def test_a_page_has_every_claim_and_every_kept_study():
    claims = read_claims(REGISTER)
    row = {
        "study": "table5",
        "scale": "cpu",
        "row": "Accuracy",
        "column": "whole",
        "mean": 50.0,
        "std": 1.0,
        "n": 4,
        "sets": 2,
        "updates": 200,
    }
    figures = {("table5", "Accuracy", "whole"): {**row, **figure([0.5])}}
    at = "50, 200 updates"
    for name, accuracies in (("IT-GAN", ([0.5], [0.6])), ("Inversion", ([0.4], [0.51]))):
        row = {**row, "study": "sources", "row": name, "column": at}
        figures["sources", name, at] = {**row, **figure(*accuracies)}
    page = results_page(claims, figures)
    assert all(claim.text in page for claim in claims)
    assert page.count("not measured (`itgan reproduce") == len(claims) - 1
    assert "| IT-GAN - Inversion | +9.5 [+3.1, +15.9], 2 sets |" in page
    assert "IT-GAN - Random" not in page
    assert f"## table5: {STUDIES['table5'].title}" in page
    assert "## table6" not in page
    assert "| 50.0 ± 1.0 |" in page
    assert page.count("Latent sets x networks: 2 x 2. Updates: 200.") == 1
    assert page.count("Latent sets x networks: 2 x 2.\n") == 1  # the columns tell the updates


def test_a_page_says_where_the_generator_pays_off_and_what_was_trained_longer():
    row = {"study": "rate", "scale": "cpu", "mean": 50.0, "std": 1.0, "n": 2, "sets": 2}
    figures = {}
    for size, better in (("10", True), ("50", False), ("100", True)):
        own = [0.5 + 0.1 * better], [0.6 + 0.1 * better]
        for name, accuracies in (("IT-GAN int8", own), ("Random, int8's bytes", ([0.5], [0.61]))):
            place = {"row": name, "column": size, "bytes": 1_000_000, "classes": 10}
            updates = 600 if size == "10" and name == "IT-GAN int8" else 200
            made = {**row, **place, "updates": updates, **figure(*accuracies)}
            figures["rate", name, size] = made
    page = results_page([], figures)
    assert "![Accuracy by kbit a class](rate.svg)" in page
    pair = "- IT-GAN int8 - Random, int8's bytes"
    assert f"{pair}: from 100 latents per class on (measured at 10, 50, 100)" in page
    assert "Latent sets x networks: 2 x 1. Updates: 200; 600 (IT-GAN int8 10)." in page
    assert "| kbit a class | 800 | 800 | 800 |" in page
    figures["rate", "Random, int8's bytes", "10"]["updates"] = 600  # now the whole column
    assert "2 x 1. Updates: 200; 600 (10)." in results_page([], figures)
    figures["rate", "IT-GAN int8", "10"] |= {"n": 6, "sets": 3, "updates": 200}
    told = "2 x 1; 3 x 2 (IT-GAN int8 10). Updates: 200; 600 (Random, int8's bytes 10)."
    assert told in results_page([], figures)
    for size in ("10", "50", "100"):  # a whole row
        figures["rate", "IT-GAN int8", size] |= {"n": 6, "sets": 3}
    alike = figures["rate", "Random, int8's bytes", "10"]
    figures["rate", "Random", "10"] = {**alike, "row": "Random"}
    assert "Latent sets x networks: 2 x 1; 3 x 2 (IT-GAN int8)." in results_page([], figures)
    del figures["rate", "IT-GAN int8", "100"]
    page = results_page([], figures, "About.")
    assert f"{pair}: not at the largest size, 50 latents per class (measured at 10, 50)" in page
    assert "\n\nAbout.\n\n" in page


def test_the_chart_has_a_line_for_what_fills_the_bytes_of_several_sets():
    figures = {}
    for k, name in enumerate(("IT-GAN int8", "Random, int8's bytes", "Random, fp32's bytes")):
        for size in (10, 50):
            place = {"bytes": 1_000_000 * (1 + k) + 1000 * size, "classes": 10, "mean": 40 + k}
            figures["rate", name, str(size)] = place
    figures["sources", "DM", "10"] = {"bytes": 1, "classes": 10, "mean": 1}
    text = bytes_figure("rate", figures)
    names = [e.text for e in ET.fromstring(text).iter() if e.get("class") == "name"]
    assert names == ["IT-GAN int8", "Random"]
    dots = [line for line in text.splitlines() if '"dot' in line]
    assert [line.count("h0") for line in dots] == [2, 4]
    assert bytes_figure("rate", {}) == ""


def test_figures_are_of_one_scale_that_measures_something(tmp_path):
    def keep(study, scale):
        place = {"study": study, "scale": scale, "score_on": "test", "row": "a", "column": "b"}
        kind = dict.fromkeys(("source", "network", "dataset", "variant", "labels"), "")
        names = ("updates", "latents_per_class", "images", "bytes", "classes", "mean", "std")
        sizes = dict.fromkeys((*names, "n", "sets"), 1)
        trial = {"cell": "trial", "latent_seed": 0, "network_seed": 0, "accuracy": 0.5}
        row = {**place, **kind, **sizes, "trials": [trial]}
        (tmp_path / f"{study}.json").write_text(json.dumps([row]))

    keep("table1", "cpu")
    assert read_figures(tmp_path).keys() == {("table1", "a", "b")}
    keep("table2", "paper")
    with pytest.raises(InputError, match="scales cpu, paper"):
        read_figures(tmp_path)
    for study in ("table1", "table2"):
        keep(study, "smoke")
    with pytest.raises(InputError, match="smoke"):
        read_figures(tmp_path)
    (tmp_path / "environment.json").write_text("{}")  # of a run's directory
    text = (tmp_path / "table1.json").read_text()
    (tmp_path / "table1.json").write_text(text.replace("test", "validation"))
    with pytest.raises(InputError, match="accuracies on validation images"):
        read_figures(tmp_path)
    with pytest.raises(InputError, match="holds no figures; itgan reproduce STUDY --results"):
        read_figures(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[[claim]]\nid = 'x'", "not toml [", "claim = 5"])
def test_what_is_no_register_is_refused(text, tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="not a register of claims"):
        read_claims(path)


@pytest.mark.parametrize("study", PAIRS)
def test_differences_are_of_rows_that_a_study_has(study):
    rows = {entry.row for entry in STUDIES[study].entries(SCALES["cpu"]())}
    assert {row for pair in PAIRS[study] for row in pair} <= rows


def test_a_study_is_printed_with_its_paired_differences():
    row = {"study": "sources", "mean": 50.0, "std": 1.0, "n": 2}
    kept = [
        {**row, "row": name, "column": column, **figure([value], [value + 0.1])}
        for column, value in (("10, 200 updates", 0.5), ("50, 200 updates", 0.6))
        for name in ("IT-GAN", "GAN")
    ]
    kept[0]["trials"][0]["accuracy"] = 0.48
    console = Console(width=150)
    with console.capture() as got:
        console.print(*terminal_tables(kept, "title"))
    printed = " ".join(got.get().split())
    written = "\n".join(differences_markdown(kept))
    for place in (printed, written):
        assert "IT-GAN - GAN" in place
        assert "-1.0 [-13.7, +11.7], 2 sets" in place
        assert "+0.0 [+0.0, +0.0], 2 sets" in place
    assert len(terminal_tables(kept[:1], "title")) == 1
    assert differences_markdown(kept[:1]) == []
    assert "50, 200 updates" not in "\n".join(differences_markdown(kept[:3])), "nothing to pair"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"study": "table8"}, "no study 'table8'"),
        ({"point": 0}, "greater than or equal to 1"),
        ({"quantity": "training_accuracy"}, "kept at points of a curve"),
    ],
)
def test_a_claim_about_what_is_never_kept_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        claim(**changes)


def test_a_curve_that_ends_before_the_point_is_not_compared():
    made = figure([0.5], [0.6])
    assert difference(made, made, "accuracy", 3) is None
    for trial in made["trials"]:
        trial["curve"] = [{"accuracy": 0.5}]
    assert difference(made, made, "accuracy", 1).mean == 0
    assert difference(made, made, "training_accuracy", 1) is None


def test_no_number_pays_nothing_off():
    row = {"study": "rate", "scale": "cpu", "mean": 50.0, "std": 1.0, "n": 2, "sets": 2}
    place = {"column": "10", "bytes": 1_000_000, "classes": 10, "updates": 200}
    figures = {}
    for name, accuracies in (
        ("IT-GAN int8", ([float("nan")], [0.6])),
        ("Random, int8's bytes", ([0.5], [0.5])),
    ):
        figures["rate", name, "10"] = {**row, "row": name, **place, **figure(*accuracies)}
    assert "not at the largest size, 10 latents" in results_page([], figures)
