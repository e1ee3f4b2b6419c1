import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import itgan
from itgan.endings import Interruption, explain
from itgan.errors import InputError

MEMORY, DISK = "out of memory", "the disk is full"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate"), MEMORY),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: not enough memory"
            ),
            MEMORY,
        ),
        (RuntimeError("std::bad_alloc"), MEMORY),
        (RuntimeError("could not create a primitive"), MEMORY),
        (ImportError("libtorch.so: failed to map segment from shared object"), MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory", "/there"), MEMORY),
        (OSError(errno.ENOSPC, "No space left on device", "/there"), DISK),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DISK),
        (OSError(errno.EFBIG, "File too large"), DISK),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_machine_that_fails_is_known_even_inside_another_error(error, told, wrapped):
    if wrapped:  # as readers do, which take any error for a damaged file
        outer = InputError("file: not readable")
        outer.__cause__ = error
        error = outer
    code, line = explain(error, "run")
    assert code == 1
    assert line.startswith(f"{told}; finished cells and the last snapshot are kept; ")


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("invert", "finished cells and the last snapshot are kept"),
        ("pretrain", "the last checkpoint is kept"),
        ("generate", "nothing half-written is left"),
    ],
)
def test_each_command_says_what_it_keeps(command, kept):
    assert kept in explain(MemoryError(), command)[1]
    assert kept in explain(OSError(errno.ENOSPC, ""), command)[1]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a defect"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        ImportError("no module"),
        ValueError("out of memory"),
        OSError(errno.EIO, "I/O error", "/there"),
        OSError(errno.ENOTTY, "no file"),
    ],
)
def test_a_defect_is_not_explained(error):
    assert explain(error, "run") is None


def test_wrong_input_is_told():
    assert explain(InputError("field: wrong"), "run") == (2, "field: wrong")
    missing = FileNotFoundError(errno.ENOENT, "No such file", "/there")
    assert explain(missing) == (2, "/there: No such file; give another path")


@pytest.mark.parametrize(
    "argument", ["plain", "a b", "it's", "a\nb", "x\u2028'\\y\x1b", "caf\udce9\n", "", "$(id)"]
)
def test_the_command_that_goes_on_is_one_line_that_a_shell_takes(argument):
    line = Interruption(["run", argument]).line
    assert line.isprintable()
    said = subprocess.run(
        ["bash", "-c", "itgan() { printf '%s' \"$2\"; }; " + line.partition("go on: ")[2]],
        capture_output=True,
        check=True,
    )
    assert said.stdout == os.fsencode(argument)


def test_handlers_are_given_back():
    def mine(number, frame):
        pass

    numbers = (signal.SIGINT, signal.SIGTERM)
    before, hook = [signal.signal(number, mine) for number in numbers], sys.unraisablehook
    try:
        with Interruption(["run"]):
            assert mine not in [signal.getsignal(number) for number in numbers]
            assert sys.unraisablehook is not hook
        assert [signal.getsignal(number) for number in numbers] == [mine, mine]
        assert sys.unraisablehook is hook
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption(["run"]) as interruption:
            os.kill(os.getpid(), signal.SIGINT)  # as after nohup
            assert not interruption.received
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_python_would_drop_ends_the_process():
    code = (
        "import os, signal, sys, time; import itgan.cli as cli\n"
        "class Finalised:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01)\n"
        "def work(arguments): Finalised(); print('it went on')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.COMMANDS = {'run': work}; sys.exit(cli.main(['run', 'a b']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(itgan.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "itgan: interrupted; to go on: itgan run 'a b'\n"
