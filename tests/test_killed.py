"""Runs that are killed - by SIGKILL, anywhere - end as if nothing had happened."""

import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

import itgan
from itgan import artefacts

LIVES = Path(__file__).with_name("lives.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(itgan.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}
TINY = shlex.split(
    """
    --latents-per-class 2 --sources random gan-fresh itgan dm --latent-seeds 0 --network-seeds 0
    --inversion.steps 40 --inversion.extractor.updates 6 --inversion.extractor.batch-size 16
    --condensation.steps 20 --condensation.real-per-class 4 --condensation.pool.kind snapshots
    --condensation.pool.networks 2 --condensation.pool.snapshots 2
    --condensation.pool.training.updates 4 --condensation.pool.training.batch-size 16
    --dm.steps 20 --dm.real-per-class 4
    --evaluation.updates 6 --evaluation.batch-size 8 --evaluation.curve-points 3 --device cpu
    """
)


@pytest.fixture(scope="module")
def file(biggan, tmp_path_factory):
    """An untrained generator, as a file of this project."""
    path = tmp_path_factory.mktemp("generator") / "tiny.safetensors"
    artefacts.save(path, biggan.state_dict(), {"kind": "generator"})
    return path


def command(file, out, *flags):
    flags = [*TINY, "--generator", str(file), "--out", str(out), *flags]
    return ["run", "digits", *map(str, flags)]


@pytest.fixture(scope="module")
def live():
    """Lives one life of a process; see ``lives.py``."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, LIVES], stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT
    ) as process:

        def ask(arguments, **ends):
            process.stdin.write(json.dumps({"arguments": arguments, **ends}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def unbroken(file, live, tmp_path_factory):
    """A run in one go, and the seconds that it worked."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    life = live(command(file, out))
    assert life["code"] == 0, life["said"]
    assert "goes on" not in life["said"]
    return out, life["seconds"]


def outcome(out):
    """All that must be equal, as bytes or, where seconds are in it, as values."""
    kept = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if name.startswith("cells/trial"):
            cell = json.loads(path.read_text())
            kept[name] = {**cell, "trial": {**cell["trial"], "seconds": 0}}
        elif name == "trials.jsonl":
            kept[name] = [{**row, "seconds": 0} for row in artefacts.read_jsonl(path)]
        elif name not in ("config.json", "metrics.jsonl", "report.html"):
            kept[name] = path.read_bytes()
    return kept


def check(out, unbroken):
    """The same files with the same contents, and no others."""
    mine, theirs = outcome(out), outcome(unbroken)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert len([name for name in mine if name.startswith("cells/")]) == 1 + 1 + 3 + 4
    cells = {p.stem for p in (out / "cells").iterdir()}
    assert {row["cell"] for row in artefacts.read_jsonl(out / "metrics.jsonl")} <= cells


def test_killed_at_random_times(file, live, unbroken, tmp_path):
    path, seconds = unbroken
    again = command(file, tmp_path / "run", "--checkpoint-seconds", 0)
    rng = random.Random(0)
    lives = [live(again, kill=rng.uniform(0.1, seconds / 2)) for _ in range(3)] + [live(again)]
    assert [life["code"] for life in lives] == [-9, -9, -9, 0], lives
    assert any("goes on" in life["said"] for life in lives)
    check(tmp_path / "run", path)


def test_killed_in_the_middle_of_writing(file, live, unbroken, tmp_path):
    """In the n-th write, flush to the disk, or rename of each life."""
    rng = random.Random(0)
    again = command(file, tmp_path / "run", "--checkpoint-seconds", 0)
    left = set()
    for call in ("fsync", "write", "replace") * 2:
        life = live(again, die_in=[call, rng.randint(5, 20)])
        assert life["code"] == -9, life
        beside = list((tmp_path / "run").rglob(".*.*"))
        assert len(beside) <= 1  # what the lives before have left is gone
        left.update(path.stat().st_size > 0 for path in beside)
    assert True in left
    last = live(again)
    assert last["code"] == 0, last
    assert "goes on" in last["said"]
    check(tmp_path / "run", unbroken[0])


@pytest.mark.slow
def test_twenty_processes_killed_at_random_times(file, unbroken, tmp_path, capsys):
    """The real command, started anew each time."""
    out = tmp_path / "run"
    again = [sys.executable, "-m", "itgan.cli", *command(file, out, "--checkpoint-seconds", 0)]
    rng, begun = random.Random(1), time.perf_counter()
    killed = resumed = torn = 0
    while True:
        with subprocess.Popen(again, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as life:
            first = life.stderr.readline()  # work begins
            resumed += "goes on" in first
            if killed < 20:
                # On average a twentieth of the work, so that all of it sees a kill.
                time.sleep(rng.uniform(0, 2 * unbroken[1] / 20))
                life.kill()
            rest = life.stderr.read()
        if life.returncode != -9:
            break
        killed += 1
        torn += sum(p.suffix == f".{life.pid}" for p in out.rglob(".*.*"))
    assert life.returncode == 0, first + rest
    assert killed >= 15
    assert resumed >= 5
    with capsys.disabled():
        seconds = time.perf_counter() - begun
        sys.stdout.write(
            f"\n{killed} kills, {torn} in the middle of a write, {resumed} lives began inside a "
            f"cell, {seconds:.0f} s; unbroken {unbroken[1]:.1f} s of work\n"
        )
    check(out, unbroken[0])
