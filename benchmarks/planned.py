"""The plan beside the run: what `itgan plan` says of each stage, and what it then takes."""

import tempfile
from pathlib import Path

from common import machine, parser, seconds

from itgan import pipeline
from itgan.pipeline import Experiment
from itgan.planning import plan
from itgan.recipes import RECIPES
from itgan.runs import Run
from itgan.scales import vary

STAGES = {
    "embed": ("extractor", "encoder", "pool"),
    "invert": ("inverted",),
    "condense": ("micro-batch", "condensed"),
    "evaluate": ("trial",),
}


def main() -> None:
    """Measure."""
    options = parser(__doc__, alternating=False)
    options.add_argument("--recipe", default="digits", choices=RECIPES)
    options.add_argument("--dataset", help="where the recipe's images lie")
    options.add_argument("--steps", type=int, help="of inversion and condensation; fewer updates")
    args = options.parse_args()
    machine(args.threads)
    changes: dict[str, object] = {"latent_seeds": (0,), "network_seeds": (0,)}
    if args.dataset:
        changes["dataset"] = args.dataset
    if args.steps:
        short = {"steps": args.steps}
        updates = {"updates": args.steps}
        changes |= {
            "inversion": {**short, "extractor": updates},
            "condensation": short,
            "evaluation": updates,
        }
    experiment = Experiment(vary(RECIPES[args.recipe](), changes))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        planned = {row["stage"]: row["seconds"] for row in plan(experiment, run)}
        print(f"\n{'stage':<12} {'planned, s':>10} {'taken, s':>10} {'planned / taken':>16}")
        sums = [0.0, 0.0]
        for stage, parts in STAGES.items():
            said = sum(planned.get(part, 0.0) for part in parts)
            took = seconds(lambda stage=stage: pipeline.compute(experiment, run, stage))
            sums = [sums[0] + said, sums[1] + took]
            print(f"{stage:<12} {said:>10.0f} {took:>10.0f} {said / took:>16.2f}", flush=True)
        print(f"{'all':<12} {sums[0]:>10.0f} {sums[1]:>10.0f} {sums[0] / sums[1]:>16.2f}")


if __name__ == "__main__":
    main()
