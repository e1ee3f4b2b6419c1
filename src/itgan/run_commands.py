"""Commands that train: runs, studies, generators."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itgan.errors import InputError
from itgan.flags import given, networks, parse, preset
from itgan.terminal import show, show_table

if TYPE_CHECKING:
    from itgan.generator_configs import PretrainingConfig
    from itgan.pipeline import Experiment
    from itgan.run_configs import RunConfig, StudyConfig
    from itgan.runs import Run


def recipe(arguments: Sequence[str], command: str) -> "RunConfig":
    """The config of `itgan COMMAND RECIPE --flags`; a run's directory stands for its recipe."""
    from itgan.recipes import RECIPES
    from itgan.run_configs import RunConfig

    if arguments and (Path(arguments[0]) / "config.json").is_file():
        from itgan.runs import Run

        kept = Run(Path(arguments[0])).config()
        config = parse(RunConfig, arguments[1:], f"itgan {command} {arguments[0]}", kept)
        for flag, network in networks(config):
            if ":" in network and not given(flag, arguments):
                raise InputError(
                    f"{arguments[0]}/config.json names the network {network!r}, whose code would "
                    f"be imported; if you trust it, give {flag} {network}"
                )
        return config
    config = preset(RECIPES, arguments, command, "recipe")
    return config if config.out else config.model_copy(update={"out": f"runs/{config.recipe}"})


def _open(config: "RunConfig") -> tuple["Experiment", "Run"]:
    from itgan.pipeline import Experiment
    from itgan.runs import Run

    store = None if config.cells is None else Path(config.cells)
    run = Run(Path(config.out or ""), store, config.checkpoint_seconds)
    return Experiment(config, run), run


def plan(arguments: Sequence[str]) -> None:
    """Show what a recipe will compute and cost; starts nothing."""
    config = recipe(arguments, "plan")
    from itgan.planning import plan

    experiment, run = _open(config)
    stages = plan(experiment, run)
    show(config.model_dump_json(indent=1))
    _stages(stages)
    if experiment.generates:
        show(f"a synthetic set takes {experiment.synthetic_bytes():,} bytes in fp32")


def _stages(stages: Sequence[Mapping[str, Any]]) -> None:
    from itgan.planning import GPU_FLOPS

    show_table(
        ["stage", "cells", "done", "generated images", "minutes here", "petaFLOP"],
        [
            [
                row["stage"],
                row["cells"],
                row["done"],
                f"{row['generated']:,}",
                f"{row['seconds'] / 60:.1f}",
                f"{row['flops'] / 1e15:,.3g}",
            ]
            for row in stages
        ],
    )
    here, flops = (sum(row[key] for row in stages) for key in ("seconds", "flops"))
    show(
        f"{here / 60:.1f} minutes to do; at {GPU_FLOPS / 1e12:.0f} TFLOP/s, as on a GPU, "
        f"{flops / GPU_FLOPS / 60:.1f}"
    )


def run(arguments: Sequence[str]) -> None:
    """Compute a recipe, all stages; goes on where it stopped."""
    config = recipe(arguments, "run")
    from itgan import pipeline

    experiment, run = _open(config)
    pipeline.compute(experiment, run)
    _publish(experiment, run)


def _publish(experiment: "Experiment", run: "Run") -> None:
    from rich.console import Console

    from itgan.publishing import publish
    from itgan.tables import differences_table, results_table

    # The directory may hold more sources and seeds than were asked for now.
    rows, differences, html = publish(experiment.viewing(run.config()), run)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(results_table(rows))
    if differences:
        console.print(differences_table(differences))
    show(f"report: {html}")


def stage(name: str, doc: str) -> Callable[[Sequence[str]], None]:
    """The command of one stage of a recipe."""

    def command(arguments: Sequence[str]) -> None:
        config = recipe(arguments, name)
        from itgan import pipeline

        experiment, run = _open(config)
        pipeline.compute(experiment, run, name)
        cells = experiment.stage(name)
        show(f"{len(cells)} cells done in {run.path}")

    command.__doc__ = doc
    return command


def report(arguments: Sequence[str]) -> None:
    """Write the tables and report.html of a run (a recipe, or its directory)."""
    config = recipe(arguments, "report")
    experiment, run = _open(config)
    if not run.exists():
        raise InputError(f"{run.path}: no classifier has been trained yet; itgan run first")
    run.check(config)
    _publish(experiment, run)


def reproduce(arguments: Sequence[str]) -> None:
    """Compute a table or figure of the paper; prints it beside the published figures."""
    from itgan.run_configs import StudyConfig
    from itgan.studies import STUDIES

    if not arguments or arguments[0].startswith("-"):
        width = max(map(len, STUDIES))
        lines = ["usage: itgan reproduce STUDY [--flags]", ""]
        lines += [f"  {name:<{width}}  {study.title}" for name, study in STUDIES.items()]
        lines += ["", "itgan reproduce STUDY --help lists the flags."]
        if not {"-h", "--help"} & set(arguments):
            raise InputError(f"reproduce: name a study first: {', '.join(STUDIES)}")
        show("\n".join(lines))
        return
    name = arguments[0]
    if name not in STUDIES:
        raise InputError(f"study {name!r}: choose one of {', '.join(STUDIES)}")
    config = parse(StudyConfig, arguments[1:], f"itgan reproduce {name}", StudyConfig())
    config = _of_claims(config, name)
    from rich.console import Console

    from itgan.reproduction import reproduce
    from itgan.study_tables import terminal_tables

    out = Path(config.out or f"runs/{name}-{config.scale}")
    if config.plan:
        _plan_study(name, config, out)
        return
    rows = reproduce(name, config, out)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(*terminal_tables(rows, f"{STUDIES[name].title} ({config.scale} scale)"))
    show(f"report: {out / 'report.html'}")


def _of_claims(config: "StudyConfig", name: str) -> "StudyConfig":
    """With what the register's claims about a study need in the place of its file."""
    if config.claims is None:
        return config
    from itgan.claims import read_claims
    from itgan.reproduction import entries

    every = config.model_copy(update={"only": ()})
    there = {(entry.row, entry.column) for entry in entries(name, every)}
    places = dict.fromkeys(
        place
        for claim in read_claims(Path(config.claims))
        if claim.study == name and claim.scale in (None, config.scale)
        for place in (claim.first, claim.second)
        if {claim.first, claim.second} <= there
    )
    if not places:
        raise InputError(
            f"claims={config.claims}: has no claim about {name} at {config.scale} scale; leave "
            "it out"
        )
    only = tuple(f"{row}={column}" for row, column in places)
    return config.model_copy(update={"claims": None, "only": (*config.only, *only)})


def _plan_study(name: str, config: "StudyConfig", out: Path) -> None:
    from itgan.kept import read_trials
    from itgan.planning import plan_all
    from itgan.reproduction import cells_of, entries
    from itgan.runs import Run
    from itgan.studies import STUDIES

    parts = [cells_of(entry) for entry in entries(name, config)]
    trials = read_trials(Path(config.results), STUDIES) if config.results else {}
    _stages(plan_all(parts, Run(out, Path(config.cells)), trials))


def pretrain(arguments: Sequence[str]) -> None:
    """Train a class-conditional generator or autoencoder; goes on where it stopped."""
    from itgan.generator_configs import AutoencodingConfig
    from itgan.recipes import PRETRAININGS

    config = preset(PRETRAININGS, arguments, "pretrain", "preset")
    from itgan.autoencoding import pretrain_autoencoder
    from itgan.cards import write_card
    from itgan.data import load_dataset
    from itgan.pretraining import pretrain

    out = Path(config.out or f"runs/pretrain-{arguments[0]}")
    _check_same_training(out, config)
    data = load_dataset(
        config.dataset,
        validation=config.validation,
        image_size=config.image_size,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    if isinstance(config, AutoencodingConfig):
        path = pretrain_autoencoder(config, data, out)
    else:
        path = pretrain(config, data, out)
    show(f"generator: {path}")
    show(f"card: {write_card(path, data, config.card, config.device)}")


def _check_same_training(out: Path, config: "PretrainingConfig") -> None:
    """Say which fields differ from those of the training in a directory, if there is one."""
    from itgan.artefacts import read_json
    from itgan.pretraining import PLACES
    from itgan.runs import differences

    if not (out / "config.json").is_file():
        return
    kept = {k: v for k, v in read_json(out / "config.json").items() if k not in PLACES}
    fresh = config.model_dump(mode="json", exclude=PLACES)
    # Fields added since it was written have no other value there.
    fields = ", ".join(differences({**fresh, **kept}, fresh))
    if fields:
        raise InputError(
            f"--out {out}: holds a training with another configuration; these fields differ: "
            f"{fields}; give another --out, or the values that it was begun with"
        )


def measure(arguments: Sequence[str]) -> None:
    """Measure a generator: Fréchet distance, precision, recall, classifiers' accuracy."""
    from itgan.generator_configs import MeasureConfig

    if not arguments or arguments[0].startswith("-"):
        parse(MeasureConfig, arguments, "itgan measure GENERATOR", MeasureConfig())
        raise InputError("measure: give a generator's file or a shipped name first")
    prog = f"itgan measure {arguments[0]}"
    config = parse(MeasureConfig, arguments[1:], prog, MeasureConfig())
    if config.dataset is None:
        raise InputError("dataset: name the real images to compare with: --dataset PLACE")
    from itgan.artefacts import write_json
    from itgan.data import load_dataset
    from itgan.generators import load_generator
    from itgan.metrics import measure, record, say_if_seen

    data = load_dataset(
        config.dataset,
        validation=config.validation,
        image_size=config.image_size,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    generator = load_generator(
        arguments[0],
        config.device,
        config.weights,
        config.recalibrate,
        num_classes=data.train.num_classes,
        image_shape=data.train.image_shape,
    )
    say_if_seen(arguments[0], data)
    figures = measure(generator, data, config, Path(config.extractors), config.device)
    show_table(["figure", "value"], [[figure.name, figure.text()] for figure in figures])
    if config.out is not None:
        write_json(Path(config.out), record(arguments[0], generator, data, config, figures))
        show(f"figures: {config.out}")
