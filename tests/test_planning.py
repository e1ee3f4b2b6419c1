import pytest
import torch

import itgan.planning
from itgan import artefacts
from itgan.pipeline import Experiment, compute
from itgan.planning import _per_step, plan, plan_all
from itgan.run_configs import RunConfig
from itgan.runs import Run, with_inputs

SHORT = {"updates": 3, "batch_size": 8}


@pytest.fixture
def experiment(biggan, digits, tmp_path):
    """Two banks of 20 latents, two networks, every source."""
    path = tmp_path / "tiny.safetensors"
    artefacts.save(path, biggan.state_dict(), {"kind": "generator"})
    config = RunConfig.model_validate(
        {
            "generator": str(path),
            "latents_per_class": 2,
            "latent_seeds": (0, 1),
            "network_seeds": (0, 1),
            "inversion": {"steps": 2, "batch_size": 8, "extractor": SHORT},
            "condensation": {"steps": 3, "real_per_class": 4},
            "evaluation": SHORT,
        }
    )
    made = Experiment(config)
    made.data = digits
    return made


def test_a_plan_counts_cells_and_generated_images_and_starts_nothing(experiment, tmp_path):
    run = Run(tmp_path / "run")
    rows = [row for row in plan(experiment, run) if row["cells"]]  # of these sources
    assert [(row["stage"], row["cells"], row["done"]) for row in rows] == [
        ("extractor", 1, 0),
        ("inverted", 2, 0),
        ("condensed", 2, 0),
        ("trial", 2 + 5 * 4, 0),  # the whole training set has no latent seeds
    ]
    # Each of 20 latents, each step, each bank; each stored set once for each of 4 classifiers, and
    # 3 updates of fresh samples, an epoch of 20 images.
    generated = [0, 20 * 2 * 2, 20 * 3 * 2, 3 * 4 * 20 + 4 * 20]
    assert [row["generated"] for row in rows] == generated
    assert all(row["seconds"] >= 0 for row in rows)
    assert rows[-1]["seconds"] > 0
    assert not run.path.exists()


def test_what_is_done_costs_nothing(experiment, tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    compute(experiment, run, "invert")
    rows = {row["stage"]: row for row in plan(experiment, run)}
    assert (rows["extractor"]["done"], rows["inverted"]["done"]) == (1, 2)
    for stage in ("extractor", "inverted"):
        assert rows[stage]["generated"] == rows[stage]["seconds"] == 0
    assert rows["condensed"]["generated"] == 120

    for cell in with_inputs(experiment.trials()):
        run.file(cell).touch()
    monkeypatch.setattr(itgan.planning, "_per_step", None)  # nothing is measured any more
    for row in plan(experiment, run):
        assert (row["done"], row["generated"], row["seconds"]) == (row["cells"], 0, 0)


def test_encoders_and_dc_are_planned(experiment, tmp_path):
    encoder = {"width": 2, "pair_steps": 7, "refine_steps": 2, "batch_size": 4}
    inversion = {**experiment.config.inversion.model_dump(), "start": "encoder"}
    inversion |= {"encoder": encoder, "restart_share": 0.5, "control": 3}
    dc = {"steps": 2, "image_steps": 3, "network_epochs": 2, "real_per_class": 4}
    changes = {"inversion": inversion, "dc": dc, "sources": ("inversion", "dc")}
    config = RunConfig.model_validate({**experiment.config.model_dump(), **changes})
    made = Experiment(config)
    made.data = experiment.data
    rows = {row["stage"]: row for row in plan(made, Run(tmp_path / "run"))}
    assert list(rows) == ["extractor", "encoder", "inverted", "dc", "trial"]
    assert rows["encoder"]["generated"] == 4 * (7 + 2)
    assert rows["inverted"]["generated"] == 2 * (20 + 10 + 3) * 2  # banks, attempts, steps
    assert (rows["dc"]["cells"], rows["dc"]["generated"]) == (2, 0)
    assert rows["dc"]["seconds"] > 0
    assert rows["trial"]["generated"] == 20 * 2 * 2  # sets, networks; DC needs no generator
    best = RunConfig.model_validate(
        {
            **config.model_dump(),
            "inversion": {"start": "best-of", "candidates": 5, "steps": 2},
            "sources": ("inversion",),
        }
    )
    made = Experiment(best)
    made.data = experiment.data
    rows = {row["stage"]: row for row in plan(made, Run(tmp_path / "run"))}
    assert rows["inverted"]["generated"] == 2 * 20 * (2 + 5)
    for cell in with_inputs(made.trials()):
        Run(tmp_path / "run").file(cell).parent.mkdir(parents=True, exist_ok=True)
        Run(tmp_path / "run").file(cell).touch()
    assert all(row["seconds"] == 0 for row in plan(made, Run(tmp_path / "run")))


def test_itgan_plus_and_soft_labels_are_planned(experiment, tmp_path):
    pool = {"kind": "snapshots", "networks": 2, "training": {"updates": 2, "batch_size": 8}}
    base = experiment.config
    plus = base.plus.model_dump() | {"steps": 3, "real_per_class": 4, "pool": pool}
    changes = {"sources": ("itgan-plus", "random"), "plus": plus, "soft_labels": True}
    made = Experiment(RunConfig.model_validate({**base.model_dump(), **changes}))
    made.data = experiment.data
    rows = {row["stage"]: row for row in plan(made, Run(tmp_path / "run"))}
    assert list(rows) == ["extractor", "inverted", "pool", "plus", "trial"]
    assert rows["pool"]["cells"] == 1
    assert rows["pool"]["seconds"] > 0
    assert (rows["plus"]["cells"], rows["plus"]["generated"]) == (2, 2 * 20 * 3)
    assert rows["plus"]["seconds"] > 0
    assert rows["trial"]["cells"] == 2 * (2 * 2) * 2  # sources, seeds, hard and soft
    assert rows["trial"]["generated"] == 20 * 2 * 2 * 2


def test_a_missing_cell_costs_its_share(experiment, tmp_path):
    run = Run(tmp_path / "run")
    cells = with_inputs(experiment.trials())
    trials = experiment.trial("gan", 0, 1), experiment.trial("itgan", 1, 0)
    gone = {experiment.condensed(1).name, *(cell.name for cell in trials)}
    run.file(cells[0]).parent.mkdir(parents=True)
    for cell in cells:
        if cell.name not in gone:
            run.file(cell).touch()
    rows = {row["stage"]: row for row in plan(experiment, run)}
    assert (rows["condensed"]["done"], rows["condensed"]["generated"]) == (1, 60)
    assert (rows["trial"]["done"], rows["trial"]["generated"]) == (20, 40)

    # What only finished trials needed, or such as are kept elsewhere, is not computed again.
    for there, kept in ((trials, ()), ((), {cell.name for cell in trials})):
        for cell in there:
            run.file(cell).touch()
        rows = {
            row["stage"]: row for row in plan_all([(experiment, experiment.trials())], run, kept)
        }
        assert (rows["condensed"]["cells"], rows["condensed"]["done"]) == (1, 1)
        assert (rows["trial"]["cells"], rows["trial"]["done"]) == (22, 22)
        assert sum(row["seconds"] for row in rows.values()) == 0
        for cell in there:
            run.file(cell).unlink()


def test_what_is_done_once_does_not_count_as_a_step(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(itgan.planning.time, "perf_counter", lambda: clock[0])

    def work(steps):
        clock[0] += 100 + 2.5 * steps

    assert _per_step(work).seconds == pytest.approx(2.5)

    runs = []

    def disturbed(steps):
        runs.append(steps)
        clock[0] += {1: 50}.get(steps, 10)

    assert _per_step(disturbed).seconds == pytest.approx(10 / max(runs))  # not nothing


def test_small_steps_are_timed_in_long_runs(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(itgan.planning.time, "perf_counter", lambda: clock[0])
    runs = []

    def work(steps):
        runs.append(steps)
        clock[0] += 2 + 0.01 * steps

    assert _per_step(work).seconds == pytest.approx(0.01)
    assert 50 <= max(runs) <= 256


def test_operations_are_counted_per_step():
    matrix, other = torch.ones(8, 16, requires_grad=True), torch.ones(16, 4)

    def work(steps):
        for _ in range(steps):
            torch.autograd.grad((matrix @ other).sum(), matrix)

    # Forward, and backward to one operand: each 8 x 16 x 4 products and as many sums.
    assert _per_step(work).flops == 2 * (2 * 8 * 16 * 4)
