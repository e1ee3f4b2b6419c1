"""What every benchmark prints and how it measures: alternating runs, medians, this machine."""

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from scipy import stats

from itgan import artefacts, devices
from itgan.generators import ENCODER, RAW, biggan_from_state, find_generator
from itgan.generators.biggan import BigGAN, BigGANShape

# What is called bf16 here is bf16, also where itgan would rather compute in fp32.
devices.knows_bf16 = lambda _: True


def parser(description: str, *, alternating: bool = True) -> argparse.ArgumentParser:
    """Options of every benchmark, and of those that time several runs."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--threads", type=int, default=2)
    if alternating:
        made.add_argument("--runs", type=int, default=5, help="of which medians are printed")
    return made


def data_options(options: argparse.ArgumentParser) -> None:
    """Options of benchmarks that need a trained generator and the images it learned from."""
    options.add_argument("--dataset", default="digits")
    options.add_argument("--generator", default="biggan-digits")
    options.add_argument(
        "--validation", type=int, default=200, help="held out, as in its training"
    )


def machine(threads: int) -> None:
    """Set the threads, and print what the figures depend on."""
    torch.set_num_threads(threads)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "")
    print(f"{model or platform.processor()}, {threads} threads, {platform.system()}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")


def biggan(channels: int, classes: int = 10, pixels: int = 32) -> BigGAN:
    """An untrained generator: what it costs does not depend on its weights."""
    torch.manual_seed(0)
    return BigGAN(BigGANShape(channels, classes, (3, pixels, pixels), 128)).eval()


def load_biggan(source: str) -> BigGAN:
    """A shipped or saved generator, as it was trained."""
    tensors, _ = artefacts.load(find_generator(source), "generator")
    own = {n: t.float() for n, t in tensors.items() if not n.startswith((RAW, ENCODER))}
    return biggan_from_state(own).eval()


def seconds(work: Callable[[], object]) -> float:
    """Wall clock of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def alternate(works: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each work, in turn, ``runs`` times, after one round that is not counted."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return taken


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def ratio(taken: Mapping[str, Sequence[float]], slow: str, fast: str) -> str:
    """How many times sooner: median of the runs' ratios, and their range."""
    ratios = [a / b for a, b in zip(taken[slow], taken[fast], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} ... {max(ratios):.2f})"


def paired(differences: Sequence[float]) -> str:
    """Mean of paired differences with Student's 95 % interval."""
    mean, n = statistics.fmean(differences), len(differences)
    if n < 2:
        return f"{mean:+.2f} (one pair: no interval)"
    reach = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
    return f"{mean:+.2f} [{mean - reach:+.2f}, {mean + reach:+.2f}]"


def convolution_peak(width: int, precision: str) -> float:
    """FLOP/s at best of the 3x3 convolutions that a generator of this width is made of."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = {"memory_format": torch.channels_last}
    weight = torch.randn(width, width, 3, 3).to(dtype).contiguous(**layout)
    best = 0.0
    for pixels, images in itertools.product((8, 16, 32), (16, 64)):
        x = torch.randn(images, width, pixels, pixels).to(dtype).contiguous(**layout)
        with torch.no_grad():
            taken = alternate({"": lambda x=x: F.conv2d(x, weight, padding=1)}, 9)[""]
        best = max(best, 2 * 9 * width * width * pixels * pixels * images / min(taken))
    return best


def shares(work: Callable[[], object]) -> dict[str, float]:
    """How the time of the operations in a compiled work divides."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    kinds = {"convolutions": ("conv",), "fused norms, activations and sums": ("cpp_fused",)}
    found = dict.fromkeys([*kinds, "all else"], 0.0)
    for event in profile.key_averages():
        own = (kind for kind, parts in kinds.items() if any(part in event.key for part in parts))
        found[next(own, "all else")] += event.self_cpu_time_total
    return {kind: taken / sum(found.values()) for kind, taken in found.items()}


def memory(what: Literal["VmRSS", "VmHWM"]) -> float:
    """GiB that this process holds, or the most since ``forget_peak``; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(what)) / 2**20


def forget_peak() -> None:
    """Let the most memory be counted from now on."""
    Path("/proc/self/clear_refs").write_text("5")
