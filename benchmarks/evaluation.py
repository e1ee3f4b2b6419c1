"""Classifiers: images per second of their training, beside plain fp32.

A ConvNet is trained for --updates updates on random pixels: as it is written, in channels-last, in
bf16, compiled. The ways alternate; medians and ranges of how many times sooner each ends than the
first are printed.
"""

import itertools

import torch
from common import alternate, machine, median, parser, ratio

from itgan.configs import EvaluationConfig
from itgan.networks import build_network
from itgan.sources import PixelSet
from itgan.training import train_classifier


def main() -> None:
    """Measure."""
    options = parser(__doc__)
    options.add_argument("--network", default="convnet")
    options.add_argument("--batch-size", type=int, nargs="+", default=[64, 256])
    options.add_argument("--updates", type=int, default=10)
    options.add_argument("--pixels", type=int, default=32)
    args = options.parse_args()
    machine(args.threads)
    shape = (3, args.pixels, args.pixels)
    rng = torch.Generator().manual_seed(0)
    n = max(args.batch_size)
    pixels = torch.randint(256, (n, *shape), generator=rng, dtype=torch.uint8)
    source = PixelSet(pixels, torch.randint(10, (n,), generator=rng))

    def way(config: EvaluationConfig, layout: torch.memory_format) -> None:
        network = build_network(args.network, shape, 10, 0).to(memory_format=layout)
        train_classifier(network, source, config, 0)

    layouts = {"": torch.contiguous_format, ", channels-last": torch.channels_last}
    for size in args.batch_size:
        works = {}
        for compiled, precision, layout in itertools.product(
            (False, True), ("fp32", "bf16"), layouts
        ):
            config = EvaluationConfig(
                network=args.network,
                updates=args.updates,
                batch_size=size,
                precision=precision,
                compile=compiled,
            )
            name = f"{'compiled' if compiled else 'as written'}, {precision}{layout}"
            works[name] = lambda config=config, layout=layout: way(config, layouts[layout])
        taken = alternate(works, args.runs)
        first = next(iter(works))
        print(f"\n{args.network}, {args.pixels} pixels a side, batches of {size}")
        for name in works:
            speed = size * args.updates / median(taken[name])
            print(f"{name:<32} {speed:>6.0f} images/s, {ratio(taken, first, name)} times")


if __name__ == "__main__":
    main()
