"""How a step of condensation grows: with the latents, the classes and the pixels.

Every point is measured in a process of its own, because a process tells only the most memory that
it has ever held. Prints the median seconds of a step and the peak memory; over the latents also
the line through the seconds, with slope, intercept and the largest deviation from it.
"""

import argparse
import json
import subprocess
import sys

import numpy as np
from common import biggan, machine, median, parser, peak_memory, seconds
from condensation import fast, random_images

from itgan.configs import CondensationConfig
from itgan.generators import FrozenGenerator


def measure(args: argparse.Namespace, latents: int, classes: int, pixels: int) -> dict[str, float]:
    """A step at one size: seconds, and GiB at the most before and after."""
    import torch

    torch.set_num_threads(args.threads)
    generator = FrozenGenerator.from_biggan(biggan(args.channels, classes, pixels))
    real = random_images(classes, args.real, pixels)
    config = CondensationConfig(
        steps=1,
        real_per_class=args.real,
        precision=args.precision,
        compile=True,
        micro_batch=args.micro_batch,
        kept_graphs=args.kept_graphs,
    )
    step = fast(generator, latents, real, config)
    before = peak_memory()
    step()
    return {
        "seconds": median([seconds(step) for _ in range(args.runs)]),
        "before": before,
        "peak": peak_memory(),
    }


def main() -> None:
    """Measure, or measure one point for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--channels", type=int, default=16)
    options.add_argument("--precision", default="bf16")
    options.add_argument("--latents", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    options.add_argument("--classes", type=int, nargs="+", default=[2, 10, 50])
    options.add_argument("--pixels", type=int, nargs="+", default=[16, 32, 64])
    options.add_argument("--real", type=int, default=64, help="images of each class")
    options.add_argument("--micro-batch", type=int, default=40)
    options.add_argument("--kept-graphs", type=int, default=1)
    options.add_argument("--point", type=int, nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.point:
        print(json.dumps(measure(args, *args.point)))
        return
    machine(args.threads)
    base = (32, 10, 32)
    ways = {
        "latents per class": [(n, base[1], base[2]) for n in args.latents],
        "classes": [(base[0], n, base[2]) for n in args.classes],
        "pixels a side": [(base[0], base[1], n) for n in args.pixels],
    }
    for column, (way, points) in enumerate(ways.items()):
        print(f"\n{way:>18} {'s/step':>8} {'ms/image':>9} {'peak GiB':>9} {'of it the step':>15}")
        images, taken = [], []
        for point in points:
            command = [sys.executable, *sys.argv, "--point", *map(str, point)]
            made = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(made.stdout.splitlines()[-1])
            images.append(point[1] * (point[0] + args.real))
            taken.append(found["seconds"])
            print(
                f"{point[column]:>18} {taken[-1]:>8.2f} {1000 * taken[-1] / images[-1]:>9.2f} "
                f"{found['peak']:>9.2f} {found['peak'] - found['before']:>15.2f}"
            )
        if way == "latents per class" and len(points) > 2:
            slope, intercept = np.polyfit(images, taken, 1, w=1 / np.array(taken))
            off = np.abs(np.polyval([slope, intercept], images) / taken - 1).max()
            print(
                f"seconds = {intercept:.3f} + {1000 * slope:.3f} ms x images (latents and real), "
                f"at most {off:.0%} off"
            )


if __name__ == "__main__":
    main()
