"""Runs `itgan` again and again in processes of their own, and lets them die in given ways.

A script: it reads lives (a JSON object on each line) from its standard input, and answers each
with its exit code (negative: the signal), what it said on stderr, and the seconds that it worked.
A life is a fork of a process that has imported everything already, so that it starts quickly.

    arguments   of the command line
    kill        seconds of work (from the first line on stderr) after which SIGKILL comes
    die_in      [call, n]: SIGKILL in the n-th ``write``, ``fsync`` or ``replace`` of a file
    limits      of resources, by their names, in bytes above what is in use for AS
    signals     [[seconds of work, number], ...]
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


def die_in(call, n):
    """SIGKILL this process in the middle of its n-th such call."""
    left = [n]

    def doomed(half, whole):
        def wrapped(*args):
            left[0] -= 1
            if left[0] == 0:
                half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*args)

        return wrapped

    def nothing(*args):
        pass

    if call == "fsync":
        os.fsync = doomed(nothing, os.fsync)
    elif call == "replace":
        Path.replace = doomed(nothing, Path.replace)
    else:

        class HalfWritten(io.BufferedWriter):
            def write(self, payload):
                return write(self, payload)

        def half(file, payload):
            io.BufferedWriter.write(file, payload[: len(payload) // 2])
            file.flush()

        def opened(path, mode="r", **options):
            if mode == "wb":
                return HalfWritten(io.FileIO(path, "wb"))
            return open_path(path, mode, **options)

        write, open_path = doomed(half, io.BufferedWriter.write), Path.open
        Path.open = opened


def limit(limits):
    for name, value in limits.items():
        if name == "AS":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            value += pages * resource.getpagesize()
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def child(life, stderr):
    os.dup2(stderr, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "die_in" in life:
        die_in(*life["die_in"])
    limit(life.get("limits", {}))
    code = 70
    try:
        code = itgan.cli.main(life["arguments"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def live(life):
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        child(life, writer)
    os.close(writer)
    with open(reader) as stderr:  # noqa: PTH123
        first, begun = stderr.readline(), time.perf_counter()
        kill = [[life["kill"], signal.SIGKILL]] if "kill" in life else []
        for seconds, number in [*life.get("signals", []), *kill]:
            time.sleep(max(0.0, begun + seconds - time.perf_counter()))
            os.kill(process, number)
        said = first + stderr.read()
    _, status = os.waitpid(process, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": said,
        "seconds": time.perf_counter() - begun,
    }


for line in sys.stdin:
    sys.stdout.write(json.dumps(live(json.loads(line))) + "\n")
    sys.stdout.flush()
