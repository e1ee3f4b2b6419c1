"""Condensation: how much sooner the accuracy of the plain reference's last step is reached.

Both start from the same inverted banks, ours with --start random from random latents of the same
rows, and match the same training images. The reference takes --steps steps; this project's path is
run anew for each number of --ours steps. Accuracies are means over --seeds banks, of classifiers
trained alike, on validation images. What is printed: the seconds of condensation, without those
of the inversion, how much sooner that is, and the paired difference of the accuracies with its
interval over banks.

How many steps are enough is the fewest whose mean difference is not below zero.

Every part is kept in --out, in a folder for each setting, so that a measurement that was stopped
goes on; the parts alternate. Only the condensation is timed, after a first step that compiles and
whose seconds are printed. With --banks it is all that is done: the classifiers can then be trained
by a second call, while other work runs.
"""

import functools
import hashlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import reference
import torch
from common import data_options, load_biggan, machine, median, paired, parser, ratio, seconds

from itgan import SyntheticSet, evaluate, load_dataset
from itgan.condensation import condense
from itgan.configs import AUGMENTATION, CondensationConfig, EvaluationConfig, InversionConfig
from itgan.embedding import train_extractor
from itgan.generators import FrozenGenerator
from itgan.inversion import invert
from itgan.latents import LatentBank, initial_latents
from itgan.networks import Network, build_network
from itgan.splits import stratified


def main() -> None:
    """Measure."""
    options = parser(__doc__, alternating=False)
    data_options(options)
    options.add_argument("--latents", type=int, default=50, help="of each class")
    options.add_argument("--real", type=int, default=128, help="images of each class")
    options.add_argument("--steps", type=int, default=300, help="of the reference")
    options.add_argument("--ours", type=int, nargs="+", default=[10, 20, 40, 60, 80, 100, 150])
    options.add_argument("--learning-rate", type=float, default=0.01, help="of both")
    options.add_argument("--our-rate", type=float, help="of this project's path, if another")
    options.add_argument("--embeddings", type=int, default=1, help="of ours, for each step")
    options.add_argument("--average", type=float, default=0.0, help="of ours, share of the steps")
    options.add_argument("--schedule", default="constant", help="of ours: constant or cosine")
    options.add_argument("--basis", default="latent", help="of our Adam: latent or principal")
    options.add_argument("--start", default="inverted", help="of ours: inverted or random")
    options.add_argument("--precision", default="bf16", help="of ours")
    options.add_argument("--fp32-share", type=float, default=0.0, help="of ours, the last steps")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--networks", type=int, nargs="+", default=[0, 1])
    options.add_argument("--updates", type=int, default=200, help="of each classifier")
    options.add_argument("--batch-size", type=int, default=64, help="of each classifier")
    options.add_argument("--inversion-steps", type=int, default=150)
    options.add_argument("--augmentation", default=AUGMENTATION)
    options.add_argument("--banks", action="store_true", help="only what is timed; score later")
    options.add_argument("--out", type=Path, default=Path("runs/time-to-accuracy"))
    args = options.parse_args()
    machine(args.threads)
    data = load_dataset(args.dataset, validation=args.validation)
    model = load_biggan(args.generator)
    generator = FrozenGenerator.from_biggan(model)
    state = {name: t.detach() for name, t in model.state_dict().items()}
    quick = {"compile": True, "augmentation": args.augmentation}
    training = {"updates": args.updates, "batch_size": args.batch_size}
    scoring = EvaluationConfig(precision="bf16", **training, **quick)
    shared = ("dataset", "generator", "validation", "latents", "real", "steps", "learning_rate")
    shared += ("inversion_steps", "augmentation")
    settings = {name: getattr(args, name) for name in shared}
    out = args.out / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(settings, indent=1))

    @functools.cache
    def extractor() -> Network:
        short = EvaluationConfig(updates=200, batch_size=64, precision="bf16", **quick)
        return train_extractor(data.train, short, 0, generator.device)

    def start(seed: int) -> LatentBank:
        path = out / f"start-{seed}.safetensors"
        if not path.exists():
            train = data.train
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            shuffled = train.select(order)
            rows = shuffled.select(stratified(shuffled.labels, args.latents * train.num_classes))
            config = InversionConfig(steps=args.inversion_steps, precision="bf16", compile=True)
            invert(generator, rows, config, seed, extractor()).save(path)
        bank = LatentBank.load(path)
        if args.start == "random":
            drawn = initial_latents(generator.latent_shape, bank.rows, seed)
            return LatentBank(drawn, bank.labels, bank.rows, "random")
        return bank

    def timed(name: str, seed: int, make: Callable[[], LatentBank]) -> float:
        """The seconds that a bank takes; it is kept."""
        path, note = out / f"{name}-{seed}.safetensors", out / f"{name}-{seed}.json"
        if not note.exists():
            taken = seconds(lambda: make().save(path))
            note.write_text(json.dumps(taken))
        return json.loads(note.read_text())

    def accuracy(name: str, seed: int, network: int) -> float:
        """In percent, of one classifier trained on a bank."""
        trained = f"{args.updates}x{args.batch_size}"
        note = out / f"{name}-{seed}-trained-{trained}-{network}.json"
        if not note.exists():
            bank = LatentBank.load(out / f"{name}-{seed}.safetensors")
            synthetic = SyntheticSet(generator, bank)
            (trial,) = evaluate(synthetic, data.validation, scoring, [network])
            note.write_text(json.dumps(100 * trial.accuracy))
        return json.loads(note.read_text())

    def plain(seed: int) -> LatentBank:
        bank, train = LatentBank.load(out / f"start-{seed}.safetensors"), data.train
        members = [train.class_indices(c) for c in range(train.num_classes)]
        own = [(bank.labels == c).nonzero().flatten() for c in range(train.num_classes)]

        def real(label: int, rng: torch.Generator) -> torch.Tensor:
            order = torch.randperm(len(members[label]), generator=rng)[: args.real]
            return train.floats(members[label][order])

        def network(rng: torch.Generator) -> torch.nn.Module:
            number = int(torch.randint(2**62, (), generator=rng))
            constants = {"mean": train.mean, "std": train.std}
            shape = train.image_shape
            return build_network("convnet", shape, train.num_classes, number, **constants)

        found = reference.condense(
            state,
            [bank.latents[rows] for rows in own],
            real,
            network,
            args.steps,
            args.learning_rate,
            args.augmentation,
            seed,
        )
        latents = bank.latents.clone()
        for rows, z in zip(own, found, strict=True):
            latents[rows] = z
        return LatentBank(latents, bank.labels, bank.rows, "condensed")

    def ours(steps: int, seed: int) -> LatentBank:
        config = CondensationConfig(
            steps=steps,
            learning_rate=args.our_rate or args.learning_rate,
            real_per_class=args.real,
            embeddings_per_step=args.embeddings,
            average=args.average,
            schedule=args.schedule,
            basis=args.basis,
            precision=args.precision,
            fp32_share=args.fp32_share,
            micro_batch=40,
            kept_graphs=16,
            **quick,
        )
        return condense(generator, start(seed), data.train, config, seed)

    start(args.seeds[0])
    first = seconds(lambda: ours(1, args.seeds[0]))
    print(f"our first step, which compiles: {first:.1f} s", flush=True)
    rate = args.our_rate or args.learning_rate
    chosen = (args.precision, args.schedule, f"{rate:g}", args.embeddings, f"{args.average:g}")
    chosen += (f"{args.fp32_share:g}",) if args.fp32_share else ()
    chosen += (args.basis,) if args.basis != "latent" else ()
    chosen += (args.start,) if args.start != "inverted" else ()
    label = "-".join(["ours", *map(str, chosen)])
    names = {"reference": args.steps, **{f"{label}-{steps}": steps for steps in args.ours}}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for seed in args.seeds:
        start(seed)
        for name, steps in names.items():
            make = functools.partial(plain, seed)
            if name != "reference":
                make = functools.partial(ours, steps, seed)
            taken[name].append(timed(name, seed, make))
    if args.banks:
        return
    found = {
        name: [statistics.fmean(accuracy(name, s, n) for n in args.networks) for s in args.seeds]
        for name in names
    }
    goal = found["reference"]
    for name, steps in names.items():
        differences = [a - b for a, b in zip(found[name], goal, strict=True)]
        print(
            f"{name:<28} {steps:>4} steps {median(taken[name]):>6.0f} s, "
            f"{ratio(taken, 'reference', name)} times sooner, "
            f"{statistics.fmean(found[name]):.2f} %, difference {paired(differences)}"
        )


if __name__ == "__main__":
    main()
