import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.configs import EvaluationConfig, with_precision
from itgan.embedding import NetworkSpec, train_extractor
from itgan.errors import InputError
from itgan.evaluation import Trial
from itgan.latents import LatentBank
from itgan.pipeline import Experiment
from itgan.run_configs import RunConfig
from itgan.runs import Cell, Run, environment, with_inputs


def trial(accuracy=0.5):
    return Trial("itgan", "convnet", 0, 0, accuracy, 3, 0.1, curve=[{"update": 3, "loss": 0.1}])


def cell(determinants=None, inputs=(), compute=None, kind="trial", label="trial of something"):
    def nothing(*values, checkpoint):
        return trial()

    return Cell(kind, label, determinants or {"seed": 0}, tuple(inputs), compute or nothing)


def bank(value=0.0):
    latents = torch.full((2, 3), value)
    return LatentBank(
        latents, torch.tensor([0, 1]), torch.tensor([4, 7]), "inverted", {"loss": [2.0, 1.5]}
    )


# Names


def test_a_name_says_the_stage_and_the_hash_of_its_determinants():
    stage, _, digest = cell(label="inverted bank, latent seed 0").name.partition("-")
    assert stage == "inverted"
    assert len(digest) == 16
    assert int(digest, 16) >= 0


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
determinants = st.dictionaries(st.text(max_size=4), values, min_size=1, max_size=4)


def turned(value):
    """The same with every dict in reverse order."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return [turned(v) for v in value] if isinstance(value, list) else value


@given(determinants)
@settings(deadline=None)
def test_a_name_does_not_depend_on_the_order_of_the_determinants(given_values):
    assert cell(turned(given_values)).name == cell(given_values).name


@given(determinants, st.text(min_size=1, max_size=4), values)
@settings(deadline=None)
def test_a_name_depends_on_every_determinant(given_values, key, value):
    changed = {**given_values, key: value}
    same = json.dumps(changed, sort_keys=True) == json.dumps(given_values, sort_keys=True)
    assert (cell(changed).name == cell(given_values).name) == same


def test_a_name_depends_on_the_inputs_and_their_order_and_their_inputs():
    a, b = cell({"x": 1}), cell({"x": 2})
    names = {
        cell(inputs=inputs).name
        for inputs in ((), (a,), (b,), (a, b), (b, a), (cell({"x": 1}, (b,)),))
    }
    assert len(names) == 6
    assert cell(inputs=(cell({"x": 1}),)).name == cell(inputs=(a,)).name


def test_what_a_reader_sees_is_no_determinant():
    assert cell(label="trial of gan").name == cell(label="trial of another").name
    assert cell(kind="bank").name != cell(kind="trial").name


def test_inputs_come_first_and_once():
    root = cell({"x": 0})
    left, right = cell({"x": 1}, (root,)), cell({"x": 2}, (root,))
    top = cell({"x": 3}, (left, right))
    again = cell({"x": 1}, (cell({"x": 0}),))
    assert [c.determinants["x"] for c in with_inputs([top, again])] == [0, 1, 2, 3]


# Values


def test_a_value_is_computed_once_with_what_it_needs(tmp_path, capsys):
    calls = []

    def make(checkpoint):
        calls.append("bank")
        return bank(1.5)

    def use(given, checkpoint):
        calls.append("trial")
        return trial(float(given.latents.mean()) / 3)

    first = cell({"x": 0}, compute=make, kind="bank", label="inverted bank")
    second = cell({"x": 1}, (first,), use)
    run = Run(tmp_path)
    assert not run.done(second)
    assert run.value(second).accuracy == 0.5
    assert run.value(second) == run.value(second)
    assert calls == ["bank", "trial"]
    assert run.done(first)
    assert run.done(second)
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == [
        f"{first.name}.safetensors",
        f"{second.name}.json",
    ]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"inverted bank ({first.name})", f"trial of something ({second.name})"]
    # Another process finds both on the disk.
    other = Run(tmp_path)
    assert other.value(second) == run.value(second)
    assert torch.equal(other.value(first).latents, bank(1.5).latents)
    assert calls == ["bank", "trial"]


def test_each_kind_is_kept_as_it_was(tmp_path, images):
    config = EvaluationConfig(updates=1, batch_size=8)
    network = train_extractor(images, config, 0, torch.device("cpu"))
    about = {"spec": asdict(NetworkSpec.of("convnet", images))}
    made = [
        cell(about, kind="network", label="extractor", compute=lambda checkpoint: network),
        cell(kind="bank", label="inverted", compute=lambda checkpoint: bank(2.0)),
        cell(compute=lambda checkpoint: trial(0.25)),
        cell(kind="number", label="micro-batch", compute=lambda checkpoint: 80),
    ]
    for one in made:
        Run(tmp_path).value(one)
    kept, latents, scored, number = (Run(tmp_path).value(one) for one in made)
    assert not kept.training
    assert torch.equal(kept(images.floats()), network(images.floats()))
    assert torch.equal(latents.latents, bank(2.0).latents)
    assert latents.history == {"loss": [2.0, 1.5]}
    assert scored == trial(0.25)
    assert number == 80


def test_a_deleted_value_is_computed_again_and_equal(tmp_path):
    def make(checkpoint):
        return LatentBank(
            torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
            torch.tensor([0, 1]),
            torch.tensor([0, 1]),
            "random",
        )

    one = cell(kind="bank", compute=make)
    Run(tmp_path).value(one)
    file = Run(tmp_path).file(one)
    before = file.read_bytes()
    file.unlink()
    Run(tmp_path).value(one)
    assert file.read_bytes() == before


def test_metrics_have_a_line_for_each_computed_cell(tmp_path):
    run = Run(tmp_path)
    run.value(cell({"x": 1}))
    run.value(cell({"x": 2}, kind="bank", compute=lambda checkpoint: bank()))
    lines = artefacts.read_jsonl(tmp_path / "metrics.jsonl")
    assert [set(line) for line in lines] == [
        {"cell", "label", "seconds", "accuracy"},
        {"cell", "label", "seconds", "loss"},
    ]
    assert lines[1]["loss"] == 1.5
    assert all(line["seconds"] >= 0 for line in lines)


def test_snapshots_go_when_the_value_is_there(tmp_path):
    def make(checkpoint):
        checkpoint.offer(1, lambda: {"x": torch.zeros(1)}, force=True)
        assert len(list((tmp_path / "partial").iterdir())) == 1
        return bank()

    Run(tmp_path).value(cell(kind="bank", compute=make))
    assert list((tmp_path / "partial").iterdir()) == []


def test_what_fails_leaves_no_value_but_its_snapshot(tmp_path):
    def make(checkpoint):
        checkpoint.offer(7, lambda: {"x": torch.zeros(1)}, force=True)
        raise KeyboardInterrupt

    def resume(checkpoint):
        steps.append(checkpoint.load()[1]["step"])
        return bank()

    steps = []
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.value(cell(kind="bank", compute=make))
    assert not run.done(cell(kind="bank"))
    assert not (tmp_path / "metrics.jsonl").exists()
    run.value(cell(kind="bank", compute=resume))
    assert steps == [7]


def test_a_snapshot_beside_a_finished_value_goes(tmp_path):
    one = cell()
    Run(tmp_path).value(one)
    for name in (one.name, f"{one.name}.part-0"):
        snapshot = Checkpoint(tmp_path / "partial" / f"{name}.safetensors", "of another time")
        snapshot.offer(3, lambda: {"x": torch.zeros(1)}, force=True)
    assert Run(tmp_path).value(one) == trial()
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_value_that_goes_on_says_so(tmp_path, capsys):
    def make(checkpoint):
        seconds.append(checkpoint.every_seconds)
        checkpoint.part(0).offer(1, lambda: {"x": torch.zeros(1)}, force=True)
        if len(seconds) == 1:
            raise KeyboardInterrupt
        return trial()

    seconds = []
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path).value(cell(compute=make))
    Run(tmp_path, checkpoint_seconds=0.5).value(cell(compute=make))
    said = capsys.readouterr().err.splitlines()
    assert [line.endswith(") goes on") for line in said] == [False, True]
    assert seconds == [60.0, 0.5]


def test_opening_a_run_removes_what_killed_processes_were_writing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    for folder in ("cells", "partial", "sets"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f".x.json.{dead.pid}.itgan").write_text("half")
    Run(tmp_path).open(RunConfig())
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_a_claim_that_was_killed_half_way_is_made_again(tmp_path):
    Run(tmp_path).open(RunConfig())
    (tmp_path / "config.json").unlink()  # what is written last
    Run(tmp_path).open(RunConfig(seed=1))
    assert Run(tmp_path).config().seed == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"trial": {"bogus": 1}}'])
def test_a_damaged_trial_is_named(tmp_path, damage):
    one = cell()
    Run(tmp_path).value(one)
    Run(tmp_path).file(one).write_bytes(damage)
    with pytest.raises(InputError, match=rf"{one.name}\.json"):
        Run(tmp_path).value(one)


def test_a_damaged_bank_is_named(tmp_path):
    one = cell(kind="bank", compute=lambda checkpoint: bank())
    Run(tmp_path).value(one)
    file = Run(tmp_path).file(one)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"{one.name}\.safetensors"):
        Run(tmp_path).value(one)


# The directory


def test_a_run_keeps_what_auto_was_where_it_began(tmp_path):
    config = RunConfig(out=str(tmp_path), device="cpu")
    run = Run(tmp_path)
    assert run.precision() is None
    run.open(config)
    assert run.precision() == "fp32"
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "precision": "bf16"}))
    assert Experiment(config, run).config == with_precision(config, "bf16")
    assert Experiment(config).config == with_precision(config, "fp32")
    # The command of a report names what was settled, and goes on with the same run.
    run.open(with_precision(config, "bf16"))
    with pytest.raises(InputError, match=r"evaluation\.precision \(bf16 there, fp32 here\)"):
        run.open(with_precision(config, "fp32"))
    assert run.environment()["precision"] == "bf16"
    path.unlink()
    assert run.precision() is None


def test_a_directory_is_claimed_by_one_configuration(tmp_path):
    config = RunConfig(out=str(tmp_path), device="cpu")
    run = Run(tmp_path)
    run.open(config)
    assert RunConfig.model_validate_json((tmp_path / "config.json").read_text()) == config
    kept = json.loads((tmp_path / "environment.json").read_text())
    assert kept == environment()
    assert {"itgan", "python", "torch", "threads"} <= kept.keys()
    # Where it is computed does not matter.
    places = {"out": "elsewhere", "device": "cuda", "checkpoint_seconds": 5.0}
    run.open(config.model_copy(update=places))


def test_another_configuration_is_refused_naming_the_fields(tmp_path):
    run = Run(tmp_path)
    run.open(RunConfig())
    before = (tmp_path / "config.json").read_text()
    other = RunConfig.model_validate(
        {"seed": 3, "condensation": {"steps": 7}, "inversion": {"extractor": {"epochs": 2}}}
    )
    with pytest.raises(InputError) as error:
        run.open(other)
    message = str(error.value)
    assert f"--out {tmp_path}" in message
    assert "seed (0 there, 3 here)" in message
    assert "condensation.steps (300 there, 7 here)" in message
    assert "inversion.extractor.epochs (20 there, 2 here)" in message
    assert "learning_rate" not in message
    assert "\n" not in message
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize("damage", ["", "{", "[]", "3"])
def test_a_damaged_config_is_named(tmp_path, damage):
    (tmp_path / "config.json").write_text(damage)
    with pytest.raises(InputError, match=r"config\.json"):
        Run(tmp_path).open(RunConfig())


def test_nothing_is_written_before_it_is_needed(tmp_path):
    run = Run(tmp_path / "new")
    assert not run.done(cell())
    assert not (tmp_path / "new").exists()


def claim(directory):
    with artefacts.locked(directory):
        pass


def test_two_owners_in_one_process_are_refused(tmp_path):
    refused = pytest.raises(InputError, match=f"{tmp_path}: another process.*another --out")
    with artefacts.locked(tmp_path), refused:
        claim(tmp_path)
    claim(tmp_path)  # free again


def test_a_directory_is_free_again_when_its_owner_is_killed(tmp_path):
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('mine', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(InputError, match="another process is working in this directory"):
            claim(tmp_path)
        owner.kill()
    claim(tmp_path)


def test_trials_and_rows_are_written_as_plain_json(tmp_path):
    Run(tmp_path).write_trials([trial(0.5), trial(0.25)], [{"mean": 37.5}])
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert [Trial(**json.loads(line)) for line in lines] == [trial(0.5), trial(0.25)]
    assert json.loads((tmp_path / "results.json").read_text()) == [{"mean": 37.5}]


# Stores that runs share


def counted(calls, kind="trial", **more):
    def make(*values, checkpoint):
        calls.append(1)
        return trial()

    return cell(compute=make, kind=kind, **more)


def test_runs_that_share_a_store_compute_a_cell_once(tmp_path):
    calls, store = [], tmp_path / "store"
    one = counted(calls)
    Run(tmp_path / "a", store).value(one)
    assert Run(tmp_path / "b", store).done(one)
    assert Run(tmp_path / "b", store).values([one, one]) == [trial(), trial()]
    assert calls == [1]
    assert not Run(tmp_path / "c").done(one)
    assert len(artefacts.read_jsonl(tmp_path / "a" / "metrics.jsonl")) == 1


def test_a_cell_that_another_process_computes_is_taken_from_it(tmp_path):
    store, mine = tmp_path / "store", []
    theirs, free = counted(mine, determinants={"x": 1}), counted(mine, determinants={"x": 2})
    run, held = Run(tmp_path / "run", store), threading.Event()

    def other():  # a lock belongs to an open file: a thread's is as good as a process's
        with artefacts.locked(store / "locks", theirs.name):
            held.set()
            while not run.done(free):
                time.sleep(0.01)
            value = {"trial": asdict(trial(0.875))}
            artefacts.write_json(store / "cells" / f"{theirs.name}.json", value)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with pytest.raises(artefacts.Busy):
        run.value(theirs, wait=False)
    assert [value.accuracy for value in run.values([theirs, free])] == [0.875, 0.5]
    thread.join()
    assert mine == [1]


def test_more_sources_and_seeds_join_a_run(tmp_path):
    run, first = Run(tmp_path), RunConfig(sources=("gan",), latent_seeds=(0, 1))
    run.open(first)
    run.open(first.model_copy(update={"sources": ("dm", "gan"), "network_seeds": (7,)}))
    assert run.config().sources == ("gan", "dm")
    assert run.config().latent_seeds == (0, 1)
    assert run.config().network_seeds == (0, 1, 2, 7)
    with pytest.raises(InputError, match=r"differ: seed \(0 there, 5 here\);"):
        run.open(first.model_copy(update={"seed": 5}))
