"""Runs `itgan` again and again in processes of their own, and lets them end in given ways.

A script: it reads lives (a JSON object on each line) from its standard input, and answers each
with its exit code (negative: the signal), what it said on stderr, and the seconds that it worked.
A life is a fork of a process that has imported everything already, so that it starts quickly.

    arguments   of the command line
    signals     [[seconds of work (from the first line on stderr), signal], ...]
    within      [[call, which, signal], ...]: it comes in the middle of a ``write``, or before an
                ``fsync``, ``replace`` or ``unlink``; which: the n-th, or the first of such a name
    limits      [beginning of a line on stderr, {name of a resource: bytes}]; AS counts from what
                is in use
"""

import io
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

import itgan.cli
import itgan.pipeline
import itgan.publishing
import itgan.recipes

torch.set_num_threads(1)
itgan.load_dataset("digits")  # these two import much
itgan.load_generator("biggan-digits")


def nothing(*args):
    pass


def half(file, payload):
    io.BufferedWriter.write(file, payload[: len(payload) // 2])
    file.flush()


def signalling(call, which, number, before=nothing):
    """``call``, in which the signal comes once."""
    left = which

    def wrapped(*args, **options):
        nonlocal left
        if isinstance(left, str):
            hit = left in str(getattr(args[0], "name", args[0]))
        else:
            left -= 1
            hit = left == 0
        if hit:
            left = 0
            before(*args)
            os.kill(os.getpid(), number)
        return call(*args, **options)

    return wrapped


def arm(call, which, number):
    if call == "fsync":
        os.fsync = signalling(os.fsync, which, number)
    elif call != "write":
        setattr(Path, call, signalling(getattr(Path, call), which, number))
    else:
        write, open_path = signalling(io.BufferedWriter.write, which, number, half), Path.open

        class Writer(io.BufferedWriter):
            def write(self, payload):
                return write(self, payload)

        def opened(path, mode="r", **options):
            if mode == "wb":
                return Writer(io.FileIO(path, "wb"))
            return open_path(path, mode, **options)

        Path.open = opened


def child(life, stderr):
    os.dup2(stderr, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for armed in life.get("within", []):
        arm(*armed)
    code = 70
    try:
        code = itgan.cli.main(life["arguments"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def limit(process, limits):
    for name, value in limits.items():
        if name == "AS":
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
            value += pages * resource.getpagesize()
        resource.prlimit(process, getattr(resource, f"RLIMIT_{name}"), (value, value))


def live(life):
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        child(life, writer)
    os.close(writer)
    said, begun = "", time.perf_counter()
    with open(reader) as stderr:  # noqa: PTH123
        at, limits = life.get("limits", [None, {}])
        if at == "":
            limit(process, limits)
        for count, line in enumerate(stderr):
            said += line
            if at and line.startswith(at):
                limit(process, limits)
            if count == 0:
                begun = time.perf_counter()
                for seconds, number in life.get("signals", []):
                    time.sleep(max(0.0, begun + seconds - time.perf_counter()))
                    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    seconds = time.perf_counter() - begun
    return {"code": os.waitstatus_to_exitcode(status), "said": said, "seconds": seconds}


for line in sys.stdin:
    sys.stdout.write(json.dumps(live(json.loads(line))) + "\n")
    sys.stdout.flush()
