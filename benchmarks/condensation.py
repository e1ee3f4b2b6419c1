"""One step of condensation: the plain reference, and this project's in fp32 and bf16.

Prints images per second, medians of alternating runs, and how many times faster; the executed
FLOPs and their share of what this machine's convolutions reach at best; with --profile what the
time of a step goes to.
"""

from collections.abc import Callable

import reference
import torch
from common import (
    alternate,
    biggan,
    convolution_peak,
    machine,
    median,
    memory,
    parser,
    ratio,
    shares,
)
from torch import Tensor

from itgan.condensation import condense
from itgan.configs import AUGMENTATION, CondensationConfig
from itgan.data import ImageSet
from itgan.generators import FrozenGenerator
from itgan.latents import sample_latents
from itgan.networks import build_network
from itgan.planning import FlopCounter


def random_images(classes: int, per_class: int, pixels: int = 32) -> ImageSet:
    """Noise: what a step costs does not depend on what is on the images."""
    rng = torch.Generator().manual_seed(0)
    shape = (classes * per_class, 3, pixels, pixels)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
    return ImageSet(images, torch.arange(classes).repeat_interleave(per_class))


def plain(
    state: dict[str, Tensor], latents: int, real: ImageSet, steps: int
) -> Callable[[], object]:
    """The reference's steps on this problem."""
    classes, pixels = real.num_classes, real.image_shape[1]
    start = [torch.randn(latents, state["linear.weight"].shape[1]) for _ in range(classes)]
    of_class = [real.floats(real.class_indices(c)) for c in range(classes)]

    def network(rng: torch.Generator) -> torch.nn.Module:
        seed = int(torch.randint(2**62, (), generator=rng))
        return build_network("convnet", (3, pixels, pixels), classes, seed=seed)

    return lambda: reference.condense(
        state, start, lambda c, rng: of_class[c], network, steps, 0.01, AUGMENTATION
    )


def fast(
    generator: FrozenGenerator, latents: int, real: ImageSet, config: CondensationConfig
) -> Callable[[], object]:
    """This project's steps."""
    rows = torch.cat([real.class_indices(c)[:1].repeat(latents) for c in range(real.num_classes)])
    bank = sample_latents(generator, real.select(rows), seed=0)
    return lambda: condense(generator, bank, real, config)


def main() -> None:
    """Measure."""
    options = parser(__doc__)
    options.add_argument("--channels", type=int, nargs="+", default=[16, 64])
    options.add_argument("--latents", type=int, default=128, help="of each class")
    options.add_argument("--real", type=int, default=128, help="images of each class")
    options.add_argument("--classes", type=int, default=10)
    options.add_argument("--steps", type=int, default=1, help="in each run")
    options.add_argument("--micro-batch", type=int, default=80)
    options.add_argument("--kept-graphs", type=int, default=16)
    options.add_argument("--profile", action="store_true", help="where the time goes")
    args = options.parse_args()
    machine(args.threads)
    if args.profile:  # which costs a little time itself
        torch._inductor.config.cpp.enable_kernel_profile = True
    images = args.classes * args.latents * args.steps
    for channels in args.channels:
        model = biggan(channels, args.classes)
        generator = FrozenGenerator.from_biggan(model)
        real = random_images(args.classes, args.real)
        state = {name: t.detach() for name, t in model.state_dict().items()}
        works = {"reference": plain(state, args.latents, real, args.steps)}
        flops = {}
        for precision in ("fp32", "bf16"):
            config = CondensationConfig(
                steps=args.steps,
                real_per_class=args.real,
                precision=precision,
                compile=True,
                micro_batch=args.micro_batch,
                kept_graphs=args.kept_graphs,
            )
            works[precision] = fast(generator, args.latents, real, config)
            eager = fast(
                generator, args.latents, real, config.model_copy(update={"compile": False})
            )
            with FlopCounter() as counter:
                eager()
            flops[precision] = counter.total
        taken = alternate(works, args.runs)
        print(
            f"\nch {channels}, 32x32, {args.classes} classes, {args.latents} latents and "
            f"{args.real} real images per class, {args.steps} steps, {args.runs} runs; "
            f"micro-batches of {args.micro_batch}, {args.kept_graphs} graphs kept"
        )
        print(f"reference  {images / median(taken['reference']):7.1f} images/s")
        for precision in ("fp32", "bf16"):
            speed = flops[precision] / median(taken[precision])
            share = speed / convolution_peak(4 * channels, precision)
            print(
                f"{precision}       {images / median(taken[precision]):7.1f} images/s, "
                f"{ratio(taken, 'reference', precision)} times the reference; "
                f"{speed / 1e9:.0f} GFLOP/s, {share:.0%} of this machine's convolutions"
            )
            if args.profile:
                parts = shares(works[precision]).items()
                print("  " + ", ".join(f"{kind} {part:.0%}" for kind, part in parts))
        print(f"memory at most, of all three: {memory('VmHWM'):.2f} GiB")


if __name__ == "__main__":
    main()
