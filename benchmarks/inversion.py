"""Inversion: how much sooner the mean feature distance of the plain one's last step is reached.

The plain reference descends Eq. 8 from N(0, I) for --steps steps in fp32. This project starts
where a trained encoder says, in bf16, compiled, and is run anew for each number of --ours steps;
the fewest that end no further away (in fp32, over all images) are timed --runs times. The encoder
is trained once for all images of a data set: its seconds are printed beside, with the number of
images from which on it pays.

--pick only tries: it keeps the encoder and the plain inversion's distance in --out, where later
tries of other settings find them, and times nothing. Without it both are made, and timed, in this
run.
"""

import json
from pathlib import Path

import reference
import torch
from common import data_options, load_biggan, machine, median, parser, seconds

from itgan import load_dataset
from itgan.configs import EncoderConfig, EvaluationConfig, InversionConfig
from itgan.data import ImageSet
from itgan.embedding import NetworkSpec, load_network, save_network, train_extractor
from itgan.encoder import Encoder, train_encoder
from itgan.generators import FrozenGenerator
from itgan.inversion import invert
from itgan.latents import LatentBank
from itgan.networks import Network
from itgan.reconstruction import Objective
from itgan.splits import stratified


def main() -> None:
    """Measure."""
    options = parser(__doc__)
    data_options(options)
    options.add_argument("--images", type=int, default=100, help="of the training set")
    options.add_argument("--steps", type=int, default=1000, help="of the plain inversion")
    options.add_argument("--ours", type=int, nargs="+", default=[60, 80, 100, 150, 200])
    options.add_argument("--schedule", default="cosine", help="of our learning rate")
    options.add_argument("--learning-rate", type=float, default=0.1, help="of both")
    options.add_argument("--basis", default="principal", help="of our Adam: latent or principal")
    options.add_argument("--tolerance", type=float, default=0.0, help="of images that leave early")
    options.add_argument("--our-rate", type=float, default=0.2, help="of this project's path")
    options.add_argument("--extractor-updates", type=int, default=600)
    options.add_argument("--pair-steps", type=int, default=EncoderConfig().pair_steps)
    options.add_argument("--refine-steps", type=int, default=EncoderConfig().refine_steps)
    options.add_argument("--pick", action="store_true", help="try every number of steps, untimed")
    options.add_argument("--out", type=Path, default=Path("runs/inversion-benchmark"))
    args = options.parse_args()
    machine(args.threads)
    train = load_dataset(args.dataset, validation=args.validation).train
    images = train.select(stratified(train.labels, args.images))
    model = load_biggan(args.generator)
    generator = FrozenGenerator.from_biggan(model)
    out = args.out / f"{Path(args.dataset).name}-{Path(args.generator).stem}"
    out /= f"extractor-{args.extractor_updates}"
    out.mkdir(parents=True, exist_ok=True)
    extractor = _extractor(out / "extractor.safetensors", train, args.extractor_updates)

    lengths = EncoderConfig(pair_steps=args.pair_steps, refine_steps=args.refine_steps)
    config = InversionConfig(
        start="encoder",
        encoder=lengths,
        precision="bf16",
        compile=True,
        schedule=args.schedule,
        basis=args.basis,
        tolerance=args.tolerance,
        learning_rate=args.our_rate,
    )
    exact = Objective(generator, extractor, images, InversionConfig(precision="fp32"))

    def distance(latents: torch.Tensor) -> float:
        """The mean feature distance, in fp32."""
        return float(exact.losses(latents, torch.arange(len(images)))[1].mean())

    file = out / f"encoder-{args.pair_steps}-{args.refine_steps}.safetensors"
    learning = 0.0
    if not (args.pick and file.exists()):
        objective = Objective(generator, extractor, train, config)
        learning = seconds(lambda: train_encoder(objective, 0).save(file))
    encoder = Encoder.load(file)

    def fast(count: int) -> LatentBank:
        changed = config.model_copy(update={"steps": count})
        return invert(generator, images, changed, 0, extractor, encoder=encoder)

    state = {name: t.detach() for name, t in model.state_dict().items()}
    note = out / f"plain-{args.images}-{args.steps}-{args.learning_rate:g}.json"
    taken = 0.0
    if not (args.pick and note.exists()):
        made = []
        floats, labels = images.floats(), images.labels
        taken = seconds(
            lambda: made.append(
                reference.invert(state, floats, labels, extractor, args.steps, args.learning_rate)
            )
        )
        note.write_text(json.dumps(distance(made[0][0])))
    goal = json.loads(note.read_text())
    print(
        f"\n{args.images} images of {args.dataset}, {args.generator}\n"
        f"plain      {args.steps} steps, distance {goal:.5f}"
        + ("" if args.pick else f", {taken:.1f} s")
    )
    print(f"our first two steps, which compile: {seconds(lambda: fast(2)):.1f} s")
    for count in args.ours:
        bank = fast(count)
        found, (passes,) = distance(bank.latents), bank.history["passes"]
        print(
            f"encoder    {count} steps, distance {found:.5f}, {passes:.1f} passes an image",
            flush=True,
        )
        if found <= goal and not args.pick:
            break
    if args.pick:
        return
    if found > goal:
        print("not reached; give more steps with --ours")
        return
    own = median([seconds(lambda: fast(count)) for _ in range(args.runs)])
    pays = (
        f"from {learning * len(images) / (taken - own):.0f} images on" if own < taken else "never"
    )
    print(
        f"           {own:.1f} s: {taken / own:.1f} times sooner\n"
        f"the encoder's training took {learning:.0f} s once: it pays {pays}"
    )


def _extractor(path: Path, train: ImageSet, updates: int) -> Network:
    if not path.exists():
        training = EvaluationConfig(updates=updates, precision="bf16", compile=True)
        network = train_extractor(train, training, 0, torch.device("cpu"))
        save_network(path, network, NetworkSpec.of("convnet", train))
    return load_network(path)


if __name__ == "__main__":
    main()
