import json
from pathlib import Path

import pytest

from itgan.errors import InputError
from itgan.kept import read_rows
from itgan.runs import Cell, _load_trial

WRONG = (
    {"accuracy": None},
    {"accuracy": float("nan")},
    {"accuracy": 1e30},
    {"accuracy": -0.5},
    {"latent_seed": "zz"},
    {"latent_seed": -1},
    {"network_seed": 1.5},
    {"curve": [{"update": 1}]},
    {"cell": 7},
)


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_wrong_trial_is_refused(change, figures):
    figures[0]["trials"][1] |= change
    refused(figures)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 3},
        {"trials": []},
        {"sets": 0},
        {"classes": 0},
        {"row": None},
        {"column": 5},
        {"scale": "huge"},
        {"bytes": "x"},
        {"source": []},
        {"mean": float("inf")},
        {"study": "fig5"},
    ],
    ids=str,
)
def test_a_wrong_figure_is_refused(change, figures):
    figures[0] |= change
    refused(figures)


def test_a_figure_or_a_pair_of_seeds_is_there_once(figures):
    refused([*figures, *figures])
    figures[0]["trials"][1]["network_seed"] = 0
    refused(figures)


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """Kept figures, in the working directory."""
    monkeypatch.chdir(tmp_path)
    results = Path(__file__).parents[1] / "results" / "sources.json"
    kept = json.loads(results.read_text())[:1]
    Path("sources.json").write_text(json.dumps(kept))
    assert read_rows(Path("sources.json")) == kept
    return kept


def refused(rows):
    Path("sources.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="not the figures of a study"):
        read_rows(Path("sources.json"))


@pytest.mark.parametrize("accuracy", [None, "zz", float("nan"), -0.1, 1e30], ids=str)
def test_a_broken_trial_in_the_store_is_refused(accuracy, tmp_path):
    path = tmp_path / "trial.json"
    whole = {"source": "gan", "network": "convnet", "latent_seed": 0, "network_seed": 0}
    trial = {**whole, "accuracy": 0.5, "updates": 1, "seconds": 0.0}
    cell = Cell("trial", "trial", {}, (), lambda: None)
    path.write_text(json.dumps({"trial": trial}))
    assert _load_trial(path, cell).accuracy == 0.5
    path.write_text(json.dumps({"trial": {**trial, "accuracy": accuracy}}))
    with pytest.raises(InputError, match="not a trial; remove it"):
        _load_trial(path, cell)
