import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from itgan import artefacts, reproduction, scales
from itgan.cli import main
from itgan.errors import InputError
from itgan.evaluation import Trial
from itgan.flags import parse
from itgan.pipeline import Experiment
from itgan.recipes import digits
from itgan.reproduction import (
    Measured,
    _beside,
    _charts,
    cells_of,
    command,
    entries,
    pixels_in_the_bytes,
)
from itgan.run_commands import _of_claims
from itgan.run_configs import StudyConfig
from itgan.scales import SCALES, vary
from itgan.studies import STUDIES, Entry, published
from itgan.study_tables import markdown_table, terminal_tables


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where two studies, which have a figure in common, were computed one after the other."""
    path = tmp_path_factory.mktemp("studies")
    for name, more in (("table5", ()), ("table6", ("--only", "0", "1"))):
        arguments = ("reproduce", name, "--scale", "smoke", *more, "--out", f"{path / name}")
        assert main([*arguments, "--cells", f"{path / 'cells'}"]) == 0
    return path


def rows(place, name):
    return json.loads((place / name / f"{name}.json").read_text())


def stands_beside_the_published(place, name):
    """A smoke-scale study has a figure for each of the paper's, with that one beside it."""
    found = {(row["row"], row["column"]): row for row in rows(place, name)}
    expected = STUDIES[name].entries(SCALES["smoke"]())
    assert found.keys() == {(entry.row, entry.column) for entry in expected}
    paper = published().get(name, {})
    if paper:
        assert found.keys() == {(row, column) for row in paper for column in paper[row]}
    for (row, column), figure in found.items():
        printed = figure["published"]
        assert (printed and tuple(printed)) == paper.get(row, {}).get(column)
        assert figure["scale"] == "smoke"
        assert 0 < figure["mean"] < 100


def traces_to_trials(place, name):
    """Every figure is the mean of stored trials, each of which was trained."""
    for row in rows(place, name):
        assert row["updates"] > 0
        assert len(row["trials"]) == row["n"] > 0
        accuracies = []
        for trial in row["trials"]:
            path = place / "cells" / "cells" / f"{trial['cell']}.json"
            kept = artefacts.read_json(path)["trial"]
            assert kept["updates"] > 0
            assert kept["accuracy"] == trial["accuracy"]
            accuracies.append(100 * kept["accuracy"])
        assert row["mean"] == pytest.approx(sum(accuracies) / row["n"], abs=1e-3)


def test_every_figure_stands_beside_the_published_one(place):
    stands_beside_the_published(place, "table5")


def test_every_figure_traces_to_trials_that_were_trained(place):
    for name in ("table5", "table6"):
        traces_to_trials(place, name)


@pytest.mark.skipif("ITGAN_STUDIES" not in os.environ, reason="of studies computed elsewhere")
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_that_was_computed_elsewhere_is_whole(name):
    place = Path(os.environ["ITGAN_STUDIES"])
    stands_beside_the_published(place, name)
    traces_to_trials(place, name)
    page = (place / name / "report.html").read_text()
    assert "<figure" in page or not STUDIES[name].curves
    assert "<img" in page or not STUDIES[name].pictures
    if STUDIES[name].pictures:
        for row in rows(place, name):
            assert (place / name / f"gallery-{row['row']}.png").exists()


def test_a_figure_of_two_tables_is_computed_once(place):
    split = {row["column"]: row for row in rows(place, "table5")}["1/5"]
    fixed = {(row["row"], row["column"]): row for row in rows(place, "table6")}["Fixed", "0"]
    assert split["trials"] == fixed["trials"]
    computed = [row["cell"] for row in artefacts.read_jsonl(place / "table6" / "metrics.jsonl")]
    assert split["trials"][0]["cell"] not in computed
    assert len(computed) == 3 * 2  # a bank and a trial for each of the other three figures


def test_what_was_not_measured_is_said(place, capsys):
    lines = markdown_table(rows(place, "table6"))
    assert lines[0].startswith("|  | 0 | 0.001 |")
    ours, paper = (line.split(" | ") for line in lines[2:4])
    assert ours[0] == "| Fixed"
    assert ours[2] == "not measured"
    assert ours[1] != "not measured" != ours[9]
    assert paper[1:3] == ["70.6 ± 0.8", "71.1 ± 0.5"]
    assert (place / "table6" / "table6.md").read_text().splitlines()[2:4] == lines[:2]
    (table,) = terminal_tables(rows(place, "table6"), "title")
    assert table.row_count == 4


def test_figures_of_several_calls_are_kept_together(place, tmp_path):
    flags = ("--scale", "smoke", "--cells", f"{place / 'cells'}", "--out", f"{tmp_path}/out")
    for column, found in (("1/5", {"1/5"}), ("whole", {"whole", "1/5"})):
        more = ("--only", f"Accuracy={column}", "--results", f"{tmp_path}/results")
        assert main(["reproduce", "table5", *flags, *more]) == 0
        kept = json.loads((tmp_path / "results" / "table5.json").read_text())
        # The store has the others, too, which another call has computed.
        assert {row["column"] for row in kept} == {"whole", "1/2", "1/4", "1/5"} > found
        assert {row["score_on"] for row in kept} == {"test"}
    computed = artefacts.read_jsonl(tmp_path / "out" / "metrics.jsonl")
    assert computed == []


def study(tmp_path, name, *arguments):
    """A smoke-scale study in a store of its own; the rows it keeps, and the cells it computed."""
    place = tmp_path / f"at{len(list(tmp_path.iterdir()))}"
    flags = ("--scale", "smoke", "--cells", f"{place}/cells", "--out", f"{place}/out")
    assert main(["reproduce", name, *flags, "--results", f"{tmp_path}/kept", *arguments]) == 0
    computed = artefacts.read_jsonl(place / "out" / "metrics.jsonl")
    path = tmp_path / "kept" / f"{name}.json"
    return json.loads(path.read_text()), [row["cell"].split("-")[0] for row in computed]


def test_kept_trials_are_not_computed_again(tmp_path):
    figure = ("--only", "GAN=2, 4 updates")
    two, computed = study(tmp_path, "sources", *figure, "--latent-seeds", "0", "1")
    assert computed == ["trial", "trial"]
    assert study(tmp_path, "sources", *figure, "--latent-seeds", "0", "1") == (two, [])
    # More sets join; a call for fewer, or for another figure, takes none away.
    three, computed = study(tmp_path, "sources", *figure, "--latent-seeds", "0", "1", "2")
    assert computed == ["trial"]
    assert three[0]["trials"][:2] == two[0]["trials"]
    assert study(tmp_path, "sources", *figure, "--latent-seeds", "0") == (three, [])
    more, computed = study(tmp_path, "sources", "--only", "GAN=5, 4 updates")
    assert (more[:1], len(more), computed) == (three, 2, ["trial"])
    # Another study has the same trials.
    _, computed = study(tmp_path, "fig5", "--only", "GAN=2", "GAN=5", "--latent-seeds", "0")
    assert computed == []


def test_a_figure_of_fewer_sets_does_not_stay_for_its_many_networks(tmp_path, capsys):
    figure = ("--only", "GAN=2, 4 updates", "--latent-seeds")
    (row,), _ = study(tmp_path, "sources", *figure, "0", "--network-seeds", "0", "1", "2")
    assert (row["n"], row["sets"]) == (3, 1)
    (row,), _ = study(tmp_path, "sources", *figure, "0", "1")
    assert (row["n"], row["sets"]) == (2, 2)
    assert "the kept figure" not in capsys.readouterr().err
    (row,), computed = study(tmp_path, "sources", *figure, "7")
    assert (row["sets"], computed) == (2, ["trial"])
    assert "GAN 2, 4 updates: the kept figure of 2 latent sets stays" in capsys.readouterr().err


def test_what_another_process_keeps_meanwhile_stays(tmp_path, monkeypatch):
    other = "GAN=5, 4 updates"
    rows, _ = study(tmp_path, "sources", "--only", other)
    (tmp_path / "kept" / "sources.json").unlink()
    original = reproduction._row

    def meanwhile(*arguments):
        (tmp_path / "kept" / "sources.json").write_text(json.dumps(rows))
        return original(*arguments)

    monkeypatch.setattr(reproduction, "_row", meanwhile)
    both, _ = study(tmp_path, "sources", "--only", "GAN=2, 4 updates")
    assert [row["column"] for row in both] == ["2, 4 updates", "5, 4 updates"]
    assert both[1] == rows[0]


def test_a_larger_figure_that_another_process_keeps_meanwhile_stays(tmp_path, monkeypatch):
    other = ("--only", "GAN=5, 4 updates", "--latent-seeds")
    (larger,), _ = study(tmp_path, "sources", *other, "0", "1")
    (tmp_path / "kept" / "sources.json").unlink()
    study(tmp_path, "sources", *other, "0")
    original = reproduction._keep

    def meanwhile(name, config, rows, known):
        (tmp_path / "kept" / "sources.json").write_text(json.dumps([larger]))
        return original(name, config, rows, known)

    monkeypatch.setattr(reproduction, "_keep", meanwhile)
    both, _ = study(tmp_path, "sources", "--only", "GAN=2, 4 updates")
    assert {row["column"]: row["sets"] for row in both} == {"2, 4 updates": 1, "5, 4 updates": 2}


def test_one_figure_of_another_generator_does_not_displace_the_others(tmp_path, capsys):
    study(tmp_path, "sources", "--only", "GAN=2, 4 updates", "GAN=5, 4 updates")
    before = (tmp_path / "kept" / "sources.json").read_bytes()
    flags = ("--scale", "smoke", "--cells", f"{tmp_path}/cells", "--out", f"{tmp_path}/out")
    more = ("--results", f"{tmp_path}/kept", "--generator", "ae-digits")
    assert main(["reproduce", "sources", *flags, *more, "--only", "GAN=2, 4 updates"]) == 2
    assert "sources.json has GAN 5, 4 updates of another generator" in capsys.readouterr().err
    assert (tmp_path / "kept" / "sources.json").read_bytes() == before


def test_pictures_are_made_where_the_trials_are_kept(tmp_path):
    _, computed = study(tmp_path, "fig6", "--only", "CIFAR10")
    assert "trial" in computed
    _, computed = study(tmp_path, "fig6", "--only", "CIFAR10")
    assert "trial" not in computed
    assert {"inverted", "condensed"} <= set(computed)


def test_where_results_cannot_be_written_is_told_first(tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = ("--scale", "smoke", "--cells", f"{tmp_path}/cells", "--out", f"{tmp_path}/out")
    assert main(["reproduce", "sources", *flags, "--results", f"{tmp_path}/file"]) == 2
    assert f"{tmp_path}/file" in capsys.readouterr().err
    assert not (tmp_path / "cells").exists()


def test_a_plan_counts_kept_trials_as_done(tmp_path, capsys):
    study(tmp_path, "sources", "--only", "GAN=2, 4 updates")
    places = ("--cells", f"{tmp_path}/none", "--out", f"{tmp_path}/none")
    figure = ("reproduce", "sources", "--scale", "smoke", "--only", "GAN=2, 4 updates", "--plan")
    for results, done in (((), "0"), (("--results", f"{tmp_path}/kept"), "1")):
        capsys.readouterr()
        assert main([*figure, *places, *results]) == 0
        (line,) = (row for row in capsys.readouterr().out.splitlines() if "trial" in row)
        assert line.split()[:3] == ["trial", "1", done]


def test_a_kept_figure_of_another_experiment_is_forgotten(tmp_path):
    figure = ("--only", "GAN=2, 4 updates")
    rows, _ = study(tmp_path, "sources", *figure)
    path = tmp_path / "kept" / "sources.json"
    rows[0]["trials"][0] |= {"cell": "trial-of-an-older-recipe", "accuracy": 0.9}
    path.write_text(json.dumps(rows))
    (row,), computed = study(tmp_path, "sources", *figure)
    assert computed == ["trial"]
    assert row["trials"][0]["accuracy"] != 0.9


def test_curves_are_kept_with_the_trials(tmp_path):
    rows, computed = study(tmp_path, "fig3", "--only", "GAN")
    assert len(rows[0]["trials"][0]["curve"]) == 2
    assert computed == ["trial"]
    assert study(tmp_path, "fig3", "--only", "GAN") == (rows, [])


@pytest.mark.parametrize("content", ["{", "7", "[7]", '[{"trials": [{}]}]', "{}"])
def test_a_file_without_figures_is_refused(content, tmp_path, capsys):
    (tmp_path / "sources.json").write_text(content)
    flags = ("--scale", "smoke", "--results", f"{tmp_path}", "--cells", f"{tmp_path}/cells")
    assert main(["reproduce", "sources", *flags, "--out", f"{tmp_path}/out"]) == 2
    assert "not the figures of a study; remove it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_figures_of_two_scales_do_not_mix(capsys):
    results = Path(__file__).parents[1] / "results"
    assert main(["reproduce", "sources", "--scale", "smoke", "--results", f"{results}"]) == 2
    assert "holds figures of cpu scale; keep those of smoke" in capsys.readouterr().err


def test_figures_of_two_data_sets_do_not_mix(tmp_path, capsys):
    figure = ("--only", "GAN=2, 4 updates")
    rows, _ = study(tmp_path, "sources", *figure)
    path = tmp_path / "kept" / "sources.json"
    rows[0]["dataset"] = "the same under another name"
    path.write_text(json.dumps(rows))
    assert study(tmp_path, "sources", *figure)[1] == []
    rows[0]["trials"][0]["cell"] = "trial-of-other-data"
    path.write_text(json.dumps(rows))
    flags = ("--scale", "smoke", "--cells", f"{tmp_path}/c", "--out", f"{tmp_path}/out")
    assert main(["reproduce", "sources", *flags, "--results", f"{path.parent}", *figure]) == 2
    said = "sources.json holds figures of the same under another name; keep those of digits else"
    assert said in capsys.readouterr().err
    assert json.loads(path.read_text()) == rows


def test_data_that_were_not_asked_for_are_not_looked_for():
    places = {"dataset100": "nowhere", "generator100": "nothing"}
    config = StudyConfig(scale="smoke", only=("CIFAR10=IT-GAN",), **places)
    beside = _beside("table1", config, entries("table1", config))
    columns = ["GAN", "Inversion", "IT-GAN", "Upper-bound"]
    assert list(beside) == [("CIFAR10", column) for column in columns]


def test_a_register_chooses_what_its_claims_are_about(tmp_path, capsys):
    register = tmp_path / "claims.toml"
    register.write_text(
        "[[claim]]\nid = 'x'\nplace = 'Table 5'\ntext = 'x'\nstudy = 'table5'\nexpect = 'more'\n"
        "first = ['Accuracy', 'whole']\nsecond = ['Accuracy', '1/5']\n"
    )
    config = StudyConfig(scale="smoke", claims=f"{register}")
    chosen = entries("table5", _of_claims(config, "table5"))
    assert [entry.column for entry in chosen] == ["whole", "1/5"]
    # Of the register that is kept, what has a figure at this scale.
    own = StudyConfig(claims=str(Path(__file__).parents[1] / "docs" / "claims.toml"))
    assert {row.split("=")[0] for row in _of_claims(own, "table1").only} == {"CIFAR10"}
    flags = ("--scale", "smoke", "--claims", f"{register}", "--out", f"{tmp_path}/out")
    assert main(["reproduce", "table6", *flags]) == 2
    assert "has no claim about table6" in capsys.readouterr().err


def test_soft_labels_are_figures_of_their_own():
    found = {(e.row, e.column): e for e in entries("plus", StudyConfig(scale="smoke"))}
    soft = found["IT-GAN, soft labels", "4 updates"]
    hard = found["IT-GAN", "4 updates"]
    for entry, said in ((soft, "with soft labels"), (hard, "trial of itgan,")):
        _, cells = cells_of(entry)
        assert len(cells) == 1
        assert said in cells[0].label
    assert {c.name for c in cells_of(soft)[1]}.isdisjoint(c.name for c in cells_of(hard)[1])


def test_validation_images_score_where_some_are_held_out():
    (one,) = entries("table5", StudyConfig(score_on="validation", only=("1/5",)))
    assert one.config.score_on == "validation"
    with pytest.raises(InputError, match="nothing is held out at smoke scale"):
        entries("table5", StudyConfig(scale="smoke", score_on="validation"))
    with pytest.raises(ValueError, match="results: are on test images"):
        StudyConfig(score_on="validation", results="results")


def test_a_page_is_written(place):
    page = (place / "table5" / "report.html").read_text()
    assert STUDIES["table5"].title in page
    assert "These figures mean nothing" in page
    assert "<code>itgan reproduce table5 --scale smoke</code>" in page


def test_an_empty_window_is_not_measured_and_stops_nothing_else(place, capsys, monkeypatch):
    scale = SCALES["smoke"]()
    pool = {**scale.pool, "networks": 1, "snapshots": 1}
    monkeypatch.setitem(scales.SCALES, "smoke", lambda: replace(scale, pool=pool))
    flags = ("--scale", "smoke", "--out", f"{place / 'table7'}", "--cells", f"{place / 'cells'}")
    assert main(["reproduce", "table7", "--only", "Random", "10-20", *flags]) == 0
    assert {row["column"] for row in rows(place, "table7")} == {"Random"}
    assert (
        "Accuracy 10-20: not measured: pool.window=0.1 0.2: no snapshot" in capsys.readouterr().err
    )


def test_dm_gets_the_bytes_of_the_generator_that_is_given():
    config = vary(digits(), {"latents_per_class": 10})
    synthetic = Experiment(config).synthetic_bytes()
    assert pixels_in_the_bytes(config, "fp32") == synthetic // (64 + 1) // 10
    assert pixels_in_the_bytes(config, "int8") < pixels_in_the_bytes(config, "fp32") // 3
    given = entries("table2", StudyConfig(scale="smoke", generator="biggan-digits"))
    sizes = {e.config.latents_per_class for e in given if e.source == "dm" and "10 " in e.row}
    five = given[0].config.model_copy(update={"latents_per_class": 5})
    assert sizes == {pixels_in_the_bytes(five, "fp32")}
    given = entries("rate", StudyConfig(scale="smoke", generator="biggan-digits"))
    (small,) = (e for e in given if (e.row, e.column) == ("DM, int8's bytes", "5"))
    assert small.config.latents_per_class == pixels_in_the_bytes(five, "int8")


def test_a_chart_of_rows_with_fewer_trials_has_those(place):
    config = digits()
    kept = json.loads(next((place / "cells" / "cells").glob("trial-*.json")).read_text())
    trial = Trial(**kept["trial"])

    def one(column, accuracies):
        trials = [replace(trial, accuracy=a, bytes=2048) for a in accuracies]
        return Measured(Entry("Random", column, config, "random"), Experiment(config), (), trials)

    measured = [one("5", [0.5, 0.6, 0.7]), one("8", [0.8])]
    (curve,) = _charts(STUDIES["fig5"], measured)
    assert curve.series == {"Random": [([5.0, 8.0], [50.0, 80.0])]}
    (curve,) = _charts(STUDIES["rate"], measured)
    assert curve.series == {"Random": [([1.6384, 1.6384], [50.0, 80.0])]}


def test_a_plan_starts_nothing(tmp_path, capsys):
    places = ("--out", f"{tmp_path / 'out'}", "--cells", f"{tmp_path / 'cells'}")
    arguments = ("reproduce", "table5", "--scale", "smoke", "--only", "1/5", "--plan")
    assert main([*arguments, *places]) == 0
    said = capsys.readouterr().out
    assert "condensed" in said
    assert "minutes to do; at 30 TFLOP/s" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "itgan: reproduce: name a study first: table1, "),
        (("table9",), "itgan: study 'table9': choose one of table1, "),
        (("fig4",), "itgan: fig4: is about CIFAR-100, "),
        (("table1", "--latent-seeds", "0", "0"), "itgan: latent_seeds: give at least one value"),
        (
            ("table1", "--only", "ResNet"),
            "itgan: only=ResNet: choose rows or columns, or ROW=COLUMN",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_in_a_line(arguments, line, capsys, tmp_path):
    code = main(["reproduce", *arguments, *(("--out", f"{tmp_path}/x") if arguments else ())])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith(line)
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_command_of_a_study_is_read_back_as_its_config():
    given = {
        "scale": "smoke",
        "dataset": "my folder",
        "only": ("0", "Fixed"),
        "latent_seeds": (3,),
    }
    config = StudyConfig(**given, out="here", cells="there", device="cpu")
    words = shlex.split(command("table6", config))
    assert words[:3] == ["itgan", "reproduce", "table6"]
    assert parse(StudyConfig, words[3:], "itgan", StudyConfig()) == StudyConfig(**given)
