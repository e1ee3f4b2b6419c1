"""Condensation: how much sooner the accuracy of the plain reference's last step is reached.

Both start from the same inverted banks and match the same training images. The reference takes
--steps steps; this project's path is scored after each number of --ours steps. Accuracies are
means over --seeds banks, of classifiers trained alike, on validation images. What is printed: the
seconds of condensation until the first mean that is no worse, and the paired difference there.

Every part is kept in --out, so that a measurement that was stopped goes on; the parts alternate.
"""

import json
from pathlib import Path

import reference
import torch
from common import data_options, load_biggan, machine, median, parser, seconds

from itgan import SyntheticSet, evaluate, load_dataset
from itgan.condensation import condense
from itgan.configs import AUGMENTATION, CondensationConfig, EvaluationConfig, InversionConfig
from itgan.embedding import train_extractor
from itgan.generators import FrozenGenerator
from itgan.inversion import invert
from itgan.latents import LatentBank
from itgan.networks import build_network
from itgan.splits import stratified


def main() -> None:
    """Measure."""
    options = parser(__doc__)
    data_options(options)
    options.add_argument("--latents", type=int, default=50, help="of each class")
    options.add_argument("--real", type=int, default=128, help="images of each class")
    options.add_argument("--steps", type=int, default=300, help="of the reference")
    options.add_argument("--ours", type=int, nargs="+", default=[10, 20, 40, 60, 80, 100, 150])
    options.add_argument("--learning-rate", type=float, default=0.01, help="of both")
    options.add_argument("--our-rate", type=float, help="of this project's path, if another")
    options.add_argument("--embeddings", type=int, default=1, help="of ours, for each step")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--networks", type=int, nargs="+", default=[0, 1])
    options.add_argument("--updates", type=int, default=200, help="of each classifier")
    options.add_argument("--inversion-steps", type=int, default=150)
    options.add_argument("--augmentation", default=AUGMENTATION)
    options.add_argument("--out", type=Path, default=Path("runs/time-to-accuracy"))
    args = options.parse_args()
    machine(args.threads)
    data = load_dataset(args.dataset, validation=args.validation)
    model = load_biggan(args.generator)
    generator = FrozenGenerator.from_biggan(model)
    state = {name: t.detach() for name, t in model.state_dict().items()}
    quick = {"precision": "bf16", "compile": True, "augmentation": args.augmentation}
    scoring = EvaluationConfig(updates=args.updates, **quick)
    args.out.mkdir(parents=True, exist_ok=True)

    def start(seed: int) -> LatentBank:
        path = args.out / f"start-{seed}.safetensors"
        if not path.exists():
            train = data.train
            extractor = train_extractor(train, scoring, 0, generator.device)
            per_class = args.latents * train.num_classes
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            shuffled = train.select(order)
            rows = shuffled.select(stratified(shuffled.labels, per_class))
            config = InversionConfig(steps=args.inversion_steps, precision="bf16", compile=True)
            invert(generator, rows, config, seed, extractor).save(path)
        return LatentBank.load(path)

    def scored(name: str, seed: int, make: object) -> dict[str, object]:
        path = args.out / f"{name}-{seed}.json"
        if not path.exists():
            made: list[LatentBank] = []
            taken = seconds(lambda: made.append(make()))
            synthetic = SyntheticSet(generator, made[0])
            trials = evaluate(synthetic, data.validation, scoring, args.networks)
            part = {"seconds": taken, "accuracies": [trial.accuracy for trial in trials]}
            path.write_text(json.dumps(part))
        return json.loads(path.read_text())

    def plain(seed: int) -> LatentBank:
        bank, train = start(seed), data.train
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
            micro_batch=40,
            kept_graphs=16,
            **quick,
        )
        return condense(generator, start(seed), data.train, config, seed)

    ours(1, args.seeds[0])  # compiles
    goals, tries = [], {steps: [] for steps in args.ours}
    for seed in args.seeds:
        goals.append(scored("reference", seed, lambda seed=seed: plain(seed)))
        for steps in args.ours:
            name = f"ours-{args.our_rate or args.learning_rate:g}-{args.embeddings}-{steps}"
            part = scored(name, seed, lambda steps=steps, seed=seed: ours(steps, seed))
            tries[steps].append(part)
    goal = 100 * torch.tensor([g["accuracies"] for g in goals]).mean()
    taken = median([g["seconds"] for g in goals])
    print(f"\nreference  {args.steps} steps, {taken:.0f} s, {goal:.2f} %")
    for steps, parts in tries.items():
        found = 100 * torch.tensor([p["accuracies"] for p in parts])
        sooner = taken / median([p["seconds"] for p in parts])
        print(
            f"ours       {steps} steps, {median([p['seconds'] for p in parts]):.0f} s "
            f"({sooner:.1f} times sooner), {found.mean():.2f} %, {found.mean() - goal:+.2f}"
        )


if __name__ == "__main__":
    main()
