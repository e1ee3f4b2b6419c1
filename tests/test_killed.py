"""Runs that are killed - by SIGKILL, anywhere - end as if nothing had happened."""

import json
import os
import random
import shlex
import signal
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


def killed_lives(file, live, unbroken, folder, kills, most):
    """Lives that are killed at uniformly random times of up to ``most`` seconds of work.

    A run that ends before its kill must equal the unbroken one; then another begins. Gives the
    command of the last run, its directory, and how many lives began inside a cell and how many
    died in the middle of a write.
    """
    rng, killed, resumed, torn, run = random.Random(0), 0, 0, 0, 0
    while killed < kills:
        out = folder / f"run{run}"
        again = command(file, out, "--checkpoint-seconds", 0)
        life = live(again, signals=[[rng.uniform(0, most), signal.SIGKILL]])
        resumed += "goes on" in life["said"]
        if life["code"] == 0:
            check(out, unbroken)
            run += 1
            continue
        assert life["code"] == -9, life["said"]
        killed += 1
        torn += len(list(out.rglob(".*.*")))
    return again, out, resumed, torn


def test_killed_at_random_times(file, live, unbroken, tmp_path):
    path, seconds = unbroken
    again, out, resumed, _ = killed_lives(file, live, path, tmp_path, 4, seconds / 3)
    last = live(again)
    assert last["code"] == 0, last["said"]
    assert resumed + ("goes on" in last["said"]) >= 1
    check(out, path)


def test_killed_in_the_middle_of_writing(file, live, unbroken, tmp_path):
    """In the n-th write, flush to the disk, or rename of each life."""
    rng = random.Random(0)
    again = command(file, tmp_path / "run", "--checkpoint-seconds", 0)
    left = set()
    for call in ("fsync", "write", "replace") * 2:
        life = live(again, within=[[call, rng.randint(5, 20), signal.SIGKILL]])
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
def test_killed_twenty_times(file, live, unbroken, tmp_path, capsys):
    """All of a run sees kills; the last word has a process that is started like any user's."""
    path, seconds = unbroken
    begun = time.perf_counter()
    again, out, resumed, torn = killed_lives(file, live, path, tmp_path, 20, seconds / 10)
    with start(MAIN, again) as last:
        assert last.stderr.read().count("Traceback") == 0
    assert last.returncode == 0
    assert resumed >= 5
    with capsys.disabled():
        spent = time.perf_counter() - begun
        sys.stdout.write(
            f"\n20 kills, {torn} in the middle of a write, {resumed} lives began inside a "
            f"cell, {spent:.0f} s; unbroken {seconds:.1f} s of work\n"
        )
    check(out, path)


# Ctrl-C and SIGTERM

ENDINGS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "stopped")}


def check_interrupted(life, number, arguments):
    """One line with the exact command, and no traceback; gives the command."""
    code, what = ENDINGS[number]
    assert life["code"] == code, life["said"]
    *before, last = life["said"].splitlines()
    assert last == f"itgan: {what}; to go on: itgan {shlex.join(arguments)}"
    assert not [line for line in before if "itgan:" in line or "Traceback" in line]
    return shlex.split(last.partition("to go on: itgan ")[2])


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_signals_anywhere_are_told_with_the_command_that_goes_on(
    file, live, unbroken, tmp_path, number
):
    again = command(file, tmp_path / "my run", "--checkpoint-seconds", 0)
    places = [
        {"signals": [[unbroken[1] / 50, number]]},
        {"within": [["fsync", 9, number]]},
        {"within": [["replace", "inverted-", number]]},
        {"within": [["write", "pool-", number]]},
        {"within": [["unlink", "dm-", number]]},
        {"within": [["write", "report.html", number]]},
    ]
    for place in places:
        again = check_interrupted(live(again, **place), number, again)
        assert not list(tmp_path.rglob(".*.*"))
    assert live(again)["code"] == 0
    check(tmp_path / "my run", unbroken[0])


@pytest.mark.parametrize("second", ENDINGS)
def test_a_second_signal_ends_the_clean_up_at_once(file, live, tmp_path, second):
    out = tmp_path / "run"
    again = command(file, out)
    twice = [["replace", "trial-", signal.SIGINT], ["unlink", "trial-", second]]
    check_interrupted(live(again, within=twice), signal.SIGINT, again)
    assert len(list(out.rglob(".*.*"))) == 1  # not cleaned up
    assert live(["embed", *again[1:]])["code"] == 0
    assert not list(out.rglob(".*.*"))


@pytest.mark.parametrize(
    ("delay", "number"),
    [
        (0.0, signal.SIGINT),
        *(
            pytest.param(delay, number, marks=pytest.mark.slow)
            for number in ENDINGS
            for delay in (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0)
        ),
    ],
)
def test_a_signal_while_python_still_imports(file, tmp_path, delay, number):
    """As soon as `itgan` itself has begun, which takes the signals over first."""
    again = command(file, tmp_path / "run", "--inversion.steps", 1_000_000)
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from itgan.cli import main; sys.exit(main())"
    )
    with start(code, again) as life:
        status = Path(f"/proc/{life.pid}/status")
        if not status.exists():
            pytest.skip("needs /proc to see when signals are taken over")
        while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & 1 << 14:
            time.sleep(0.005)  # bit 14: SIGTERM
        time.sleep(delay)
        life.send_signal(number)
        said = life.stderr.read()
    check_interrupted({"code": life.returncode, "said": said}, number, again)


def start(code, arguments):
    """A process of its own that runs the code."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


# Two processes in one directory

MAIN = "import sys; from itgan.cli import main; sys.exit(main())"


def test_a_directory_at_work_is_refused_but_may_be_read(file, live, tmp_path):
    out = tmp_path / "run"
    flags = ["--inversion.steps", 1_000_000, "--checkpoint-seconds", 0]
    first = command(file, out, *flags)
    with start(MAIN, first) as owner:
        for line in owner.stderr:
            if line.startswith("inverted bank"):
                break
        for stage in ("run", "embed", "condense"):
            refused = live([stage, *first[1:]])
            assert refused["code"] == 2, refused
            assert "another process is working in this directory" in refused["said"]
        for _ in range(3):
            report = live(["report", str(out)])
            assert (report["code"], report["said"]) == (0, "")
            assert len(json.loads((out / "results.json").read_text())) == 2
        owner.send_signal(signal.SIGTERM)
        said = owner.stderr.read()
    check_interrupted({"code": owner.returncode, "said": said}, signal.SIGTERM, first)


@pytest.mark.slow
def test_two_stages_at_once(file, live, unbroken, tmp_path):
    out = tmp_path / "run"
    flags = command(file, out)[1:]
    for pair in (("embed", "invert"), ("invert", "evaluate"), ("condense", "condense")):
        lives = [start(MAIN, [stage, *flags]) for stage in pair]
        for stage, life in zip(pair, lives, strict=True):
            said = life.stderr.read()
            life.wait()
            life.stderr.close()
            assert life.returncode in (0, 2), (stage, said)
            assert "Traceback" not in said
    assert live(command(file, out))["code"] == 0
    check(out, unbroken[0])


# What machines lack


@pytest.mark.parametrize(
    ("lack", "at"),
    [
        ("FSIZE", ""),
        ("FSIZE", "pool"),
        ("AS", ""),
        ("AS", "condensed"),
        *(
            pytest.param(lack, at, marks=pytest.mark.slow)
            for lack in ("FSIZE", "AS")
            for at in ("trial of gan-fresh", "extractor", "inverted", "trial of itgan", "dm")
        ),
    ],
)
def test_a_machine_that_fails_is_told_in_one_line(file, live, unbroken, tmp_path, lack, at):
    told = {"FSIZE": "the disk is full", "AS": "out of memory"}[lack]
    out = tmp_path / "run"
    again = command(file, out, "--checkpoint-seconds", 0)
    life = live(again, limits=[at, {lack: 0}])
    assert life["code"] == 1, life
    *before, last = life["said"].splitlines()
    assert last.startswith(f"itgan: {told}")
    assert "finished cells and the last snapshot are kept" in last
    assert all(line.split()[0] in CELLS for line in before), before
    assert not list(tmp_path.rglob(".*.*"))
    if at:
        assert live(again)["code"] == 0
        check(out, unbroken[0])


CELLS = ("trial", "extractor", "inverted", "pool", "condensed", "dm")


def test_a_disk_that_is_really_full(file, live, unbroken, tmp_path):
    def mount(options):
        line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
        return subprocess.run(line, capture_output=True, check=False).returncode == 0

    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in unbroken[0].rglob("*.*"))
    if not mount(f"size={size * 6 // 5}"):  # not enough for the snapshots on the way
        pytest.skip("needs the right to mount")
    try:
        again = command(file, disk / "run", "--checkpoint-seconds", 0)
        life = live(again)
        assert life["code"] == 1, life
        told = "the disk is full; finished cells and the last snapshot are kept; free space"
        assert life["said"].splitlines()[-1].startswith(f"itgan: {told}")
        assert not list(disk.rglob(".*.*"))
        kept = {p: p.read_bytes() for p in (disk / "run" / "cells").iterdir()}
        assert kept
        assert mount("remount,size=60m")
        assert live(again)["code"] == 0
        assert {p: p.read_bytes() for p in kept} == kept
        check(disk / "run", unbroken[0])
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_nobody_takes():
    code = "import sys; from itgan.cli import main; sys.exit(main(['zoo']))"
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )
    assert result.returncode == 1
    assert result.stderr.startswith("itgan: the disk is full; nothing half-written is left")
