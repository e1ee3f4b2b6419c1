"""How a step of condensation grows: with the latents, the classes and the pixels.

Every point is measured in a process of its own, after a small step that compiles. Prints the
median seconds of a step and the memory at most, of it what the steps took; over the latents, with
as many real images, also the line through the seconds: slope, intercept and the largest deviation.
"""

import argparse
import json
import subprocess
import sys

import numpy as np
from common import biggan, forget_peak, machine, median, memory, parser, seconds
from condensation import fast, random_images

from itgan.configs import CondensationConfig
from itgan.generators import FrozenGenerator


def measure(
    args: argparse.Namespace, latents: int, real_per_class: int, classes: int, pixels: int
) -> dict[str, float]:
    """A step at one size: seconds, and GiB before and at the most."""
    import torch

    torch.set_num_threads(args.threads)
    generator = FrozenGenerator.from_biggan(biggan(args.channels, classes, pixels))
    real = random_images(classes, real_per_class, pixels)
    config = CondensationConfig(
        steps=1,
        real_per_class=real_per_class,
        precision=args.precision,
        compile=True,
        micro_batch=args.micro_batch,
        kept_graphs=args.kept_graphs,
    )
    for _ in range(2):
        fast(generator, 2, random_images(classes, 2, pixels), config)()
    step = fast(generator, latents, real, config)
    before = memory("VmRSS")
    forget_peak()
    step()
    return {
        "seconds": median([seconds(step) for _ in range(args.runs)]),
        "before": before,
        "peak": memory("VmHWM"),
    }


def main() -> None:
    """Measure, or measure one point for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--channels", type=int, default=16)
    options.add_argument("--precision", default="bf16")
    options.add_argument("--latents", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    options.add_argument("--classes", type=int, nargs="+", default=[2, 10, 50])
    options.add_argument("--pixels", type=int, nargs="+", default=[16, 32, 64])
    options.add_argument("--micro-batch", type=int, default=40)
    options.add_argument("--kept-graphs", type=int, default=1)
    options.add_argument("--point", type=int, nargs=4, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.point:
        print(json.dumps(measure(args, *args.point)))
        return
    machine(args.threads)
    ways = {
        "latents per class": [(n, n, 10, 32) for n in args.latents],
        "classes": [(32, 32, n, 32) for n in args.classes],
        "pixels a side": [(32, 32, 10, n) for n in args.pixels],
    }
    for column, (way, points) in zip((0, 2, 3), ways.items(), strict=True):
        print(f"\n{way:>18} {'s/step':>8} {'ms/image':>9} {'peak GiB':>9} {'of it the step':>15}")
        images, taken = [], []
        for point in points:
            command = [sys.executable, *sys.argv, "--point", *map(str, point)]
            made = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(made.stdout.splitlines()[-1])
            images.append(point[2] * (point[0] + point[1]))
            taken.append(found["seconds"])
            print(
                f"{point[column]:>18} {taken[-1]:>8.2f} {1000 * taken[-1] / images[-1]:>9.2f} "
                f"{found['peak']:>9.2f} {found['peak'] - found['before']:>15.2f}"
            )
        if way == "latents per class" and len(points) > 2:
            slope, intercept = np.polyfit(images, taken, 1, w=1 / np.array(taken))
            off = np.abs(np.polyval([slope, intercept], images) / taken - 1).max()
            print(
                f"seconds = {intercept:.3f} + {1000 * slope:.3f} ms x images (half of them "
                f"latents), at most {off:.0%} off"
            )


if __name__ == "__main__":
    main()
