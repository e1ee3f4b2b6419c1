"""The command line: `itgan COMMAND …`.

Heavy imports wait until a command needs them. Exit codes: 0 done, 2 the input is wrong (one line
on stderr), 1 the machine failed, 130 interrupted, 143 stopped.
"""

import contextlib
import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from itgan.endings import Interruption, explain
from itgan.errors import InputError
from itgan.flags import given, networks, spell_none

if TYPE_CHECKING:
    from itgan.configs import PretrainingConfig, RunConfig, ScoreConfig, StudyConfig
    from itgan.pipeline import Experiment
    from itgan.runs import Run

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in files may be beyond the terminal
        sys.stdout.reconfigure(errors="backslashreplace")
    with Interruption(arguments) as interruption:
        try:
            _dispatch(arguments)
            sys.stdout.flush()
            return 0
        except BrokenPipeError:  # nobody reads on, as after `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except BaseException as error:
            # An interrupted import may end in any other error.
            if interruption.received or isinstance(error, KeyboardInterrupt):
                ending = interruption.code, interruption.line
            elif (explained := explain(error, *arguments[:1])) is not None:
                ending = explained
            else:
                raise
        return _fail(*ending)  # here, where progress bars are closed already


def _dispatch(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        _print(_overview())
    elif arguments[0] == "--version":
        from itgan import __version__

        _print(f"itgan {__version__}")
    elif arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        raise InputError(f"command {arguments[0]!r}: choose one of {', '.join(COMMANDS)}")


def _fail(code: int, line: str) -> int:
    sys.stderr.write(f"itgan: {' '.join(line.splitlines())}\n")
    return code


def _print(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [
        "usage: itgan COMMAND …    (itgan COMMAND --help tells more)",
        "",
        "Turn a pre-trained class-conditional generator into a generator of informative",
        "training data.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


def _parse(kind: type[T], arguments: Sequence[str], prog: str, default: T) -> T:
    """Typed flags by tyro, whose multi-line errors become one line.

    Raises:
        InputError: an unknown flag or a value out of bounds.
    """
    import tyro

    said = io.StringIO()
    width = os.environ.get("COLUMNS")
    wants_help = {"-h", "--help"} & set(arguments)
    try:
        # No line breaks inside a message; and help needs some width to be laid out in.
        terminal = shutil.get_terminal_size().columns
        os.environ["COLUMNS"] = str(max(60, terminal)) if wants_help else "2000"
        with contextlib.redirect_stderr(said):
            args = spell_none(kind, arguments)
            return tyro.cli(kind, args=args, prog=prog, description="", default=default)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise InputError(_one_line(said.getvalue())) from None
    finally:
        if width is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = width


def _one_line(box: str) -> str:
    """The message inside tyro's box, which is drawn in ASCII where the terminal is."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]|-{4,}", " ", box).split())
    text = re.sub(r" ?For full helptext.*$| ?For further information visit \S+", "", text)
    found = re.search(
        r"Error parsing (?P<where>\S+): \d+ validation errors? for \S+ (?P<what>.*?) "
        r"\[type=(?P<type>\w+), input_value=(?P<got>.*?), input_type=",
        text,
    )
    if found is None:
        text, _, similar = text.partition(" Perhaps you meant: ")
        titles = r"^(Unrecognized options|Invalid choice|Missing argument|(Value|Parsing) error) "
        text = re.sub(titles, "", text)
        text = re.sub(
            r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)$",
            r"\1: give a whole number, not \2",
            text,
        )
        text = re.sub(
            r"^Error parsing (\S+): could not convert string to float: (.*)$",
            r"\1: give a number, not \2",
            text,
        )
        text = text.split(" Argument helptext:")[0].split(" Got errors:")[0]
        flags = list(dict.fromkeys(re.findall(r"--[a-z][\w.-]+", similar)))[:3]
        return f"{text}; perhaps {' or '.join(flags)}" if flags else text
    what, where = found["what"], found["where"]
    prefix = "" if where[0].isupper() else f"{where}."
    if found["type"] == "value_error":
        field, _, message = what.rpartition("Value error, ")
        return f"{prefix}{field.strip()}: {message}" if field else message
    field, _, message = what.partition(" ")
    return f"{prefix}{field}: {message[:1].lower()}{message[1:]}, not {found['got']}"


def _recipe(arguments: Sequence[str], command: str) -> "RunConfig":
    """The config of `itgan COMMAND RECIPE --flags`; a run's directory stands for its recipe."""
    from itgan.configs import RunConfig
    from itgan.recipes import RECIPES

    if arguments and (Path(arguments[0]) / "config.json").is_file():
        from itgan.runs import Run

        kept = Run(Path(arguments[0])).config()
        config = _parse(RunConfig, arguments[1:], f"itgan {command} {arguments[0]}", kept)
        for flag, network in networks(config):
            if ":" in network and not given(flag, arguments):
                raise InputError(
                    f"{arguments[0]}/config.json names the network {network!r}, whose code would "
                    f"be imported; if you trust it, give {flag} {network}"
                )
        return config
    config = _preset(RECIPES, arguments, command, "recipe")
    return config if config.out else config.model_copy(update={"out": f"runs/{config.recipe}"})


def _preset(
    presets: Mapping[str, Callable[[], T]],
    arguments: Sequence[str],
    command: str,
    what: str,
) -> T:
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"usage: itgan {command} {what.upper()} [--flags]", ""]
        for name, make in presets.items():
            lines.append(f"  {name:<14} {(make.__doc__ or '').splitlines()[0]}")
        lines += ["", f"itgan {command} {what.upper()} --help lists the flags."]
        if not arguments:
            raise InputError(f"{command}: name a {what}: {', '.join(presets)}")
        _print("\n".join(lines))
        raise SystemExit(0)
    name = arguments[0]
    if name not in presets:
        raise InputError(f"{what} {name!r}: choose one of {', '.join(presets)}")
    default = presets[name]()
    return _parse(type(default), arguments[1:], f"itgan {command} {name}", default)


def _open(config: "RunConfig") -> tuple["Experiment", "Run"]:
    from itgan.pipeline import Experiment
    from itgan.runs import Run

    store = None if config.cells is None else Path(config.cells)
    run = Run(Path(config.out or ""), store, config.checkpoint_seconds)
    return Experiment(config), run


def _plan(arguments: Sequence[str]) -> None:
    """Show what a recipe will compute and cost; starts nothing."""
    config = _recipe(arguments, "plan")
    from itgan.planning import plan

    experiment, run = _open(config)
    stages = plan(experiment, run)
    _print(config.model_dump_json(indent=1))
    _stages(stages)
    size = experiment.synthetic_bytes()
    _print(f"a synthetic set takes {size:,} bytes in fp32")


def _stages(stages: Sequence[Mapping[str, Any]]) -> None:
    from itgan.planning import GPU_FLOPS

    _table(
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
    _print(
        f"{here / 60:.1f} minutes to do; at {GPU_FLOPS / 1e12:.0f} TFLOP/s, as on a GPU, "
        f"{flops / GPU_FLOPS / 60:.1f}"
    )


def _run(arguments: Sequence[str]) -> None:
    """Compute a recipe, all stages; goes on where it stopped."""
    config = _recipe(arguments, "run")
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
    _print(f"report: {html}")


def _stage(name: str, doc: str) -> Callable[[Sequence[str]], None]:
    def command(arguments: Sequence[str]) -> None:
        config = _recipe(arguments, name)
        from itgan import pipeline

        experiment, run = _open(config)
        pipeline.compute(experiment, run, name)
        cells = experiment.stage(name)
        _print(f"{len(cells)} cells done in {run.path}")

    command.__doc__ = doc
    return command


def _report(arguments: Sequence[str]) -> None:
    """Write the tables and report.html of a run (a recipe, or its directory)."""
    config = _recipe(arguments, "report")
    experiment, run = _open(config)
    if not run.exists():
        raise InputError(f"{run.path}: no classifier has been trained yet; itgan run first")
    run.open(config)
    _publish(experiment, run)


def _reproduce(arguments: Sequence[str]) -> None:
    """Compute a table or figure of the paper; prints it beside the published figures."""
    from itgan.configs import StudyConfig
    from itgan.studies import STUDIES

    if not arguments or arguments[0].startswith("-"):
        width = max(map(len, STUDIES))
        lines = ["usage: itgan reproduce STUDY [--flags]", ""]
        lines += [f"  {name:<{width}}  {study.title}" for name, study in STUDIES.items()]
        lines += ["", "itgan reproduce STUDY --help lists the flags."]
        if not {"-h", "--help"} & set(arguments):
            raise InputError(f"reproduce: name a study first: {', '.join(STUDIES)}")
        _print("\n".join(lines))
        return
    name = arguments[0]
    if name not in STUDIES:
        raise InputError(f"study {name!r}: choose one of {', '.join(STUDIES)}")
    config = _parse(StudyConfig, arguments[1:], f"itgan reproduce {name}", StudyConfig())
    from rich.console import Console

    from itgan.reproduction import reproduce, terminal_table

    out = Path(config.out or f"runs/{name}-{config.scale}")
    if config.plan:
        _plan_study(name, config, out)
        return
    rows = reproduce(name, config, out)
    Console(width=None if sys.stdout.isatty() else 150).print(
        terminal_table(rows, f"{STUDIES[name].title} ({config.scale} scale)")
    )
    _print(f"report: {out / 'report.html'}")


def _plan_study(name: str, config: "StudyConfig", out: Path) -> None:
    from itgan.planning import plan_all
    from itgan.reproduction import cells_of, entries
    from itgan.runs import Run

    parts = [cells_of(entry) for entry in entries(name, config)]
    _stages(plan_all(parts, Run(out, Path(config.cells))))


def _pretrain(arguments: Sequence[str]) -> None:
    """Train a class-conditional generator or autoencoder; goes on where it stopped."""
    from itgan.configs import AutoencodingConfig
    from itgan.recipes import PRETRAININGS

    config = _preset(PRETRAININGS, arguments, "pretrain", "preset")
    from itgan.autoencoding import pretrain_autoencoder
    from itgan.cards import write_card
    from itgan.data import load_dataset
    from itgan.pretraining import pretrain

    out = Path(config.out or f"runs/pretrain-{arguments[0]}")
    _check_same_training(out, config)
    data = load_dataset(
        config.dataset,
        validation=config.validation,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    if isinstance(config, AutoencodingConfig):
        path = pretrain_autoencoder(config, data, out)
    else:
        path = pretrain(config, data, out)
    _print(f"generator: {path}")
    _print(f"card: {write_card(path, data, config.card, config.device)}")


def _measure(arguments: Sequence[str]) -> None:
    """Measure a generator: Fréchet distance, precision, recall, classifiers' accuracy."""
    from itgan.configs import MeasureConfig

    if not arguments or arguments[0].startswith("-"):
        _parse(MeasureConfig, arguments, "itgan measure GENERATOR", MeasureConfig())
        raise InputError("measure: give a generator's file or a shipped name first")
    prog = f"itgan measure {arguments[0]}"
    config = _parse(MeasureConfig, arguments[1:], prog, MeasureConfig())
    if config.dataset is None:
        raise InputError("dataset: name the real images to compare with: --dataset PLACE")
    from itgan.artefacts import write_json
    from itgan.data import load_dataset
    from itgan.generators import find_generator, load_generator
    from itgan.metrics import measure, record, say_if_seen

    data = load_dataset(
        config.dataset,
        validation=config.validation,
        image_size=config.image_size,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    generator = load_generator(arguments[0], config.device, config.weights, config.recalibrate)
    say_if_seen(find_generator(arguments[0]), data)
    figures = measure(generator, data, config, Path(config.extractors), config.device)
    _table(["figure", "value"], [[figure.name, figure.text()] for figure in figures])
    if config.out is not None:
        write_json(Path(config.out), record(arguments[0], generator, data, config, figures))
        _print(f"figures: {config.out}")


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


def _score(arguments: Sequence[str]) -> None:
    """Score anyone's set: ours, an image folder, npz, or .pt of normalised tensors."""
    from itgan.configs import ScoreConfig

    if not arguments or arguments[0].startswith("-"):
        _parse(ScoreConfig, arguments, "itgan score PATH", ScoreConfig())
        raise InputError("score: give a file or a shipped name first")
    from rich.console import Console

    from itgan.foreign import is_foreign
    from itgan.scoring import load_set, score, score_foreign
    from itgan.tables import results_table

    path, prog = Path(arguments[0]), f"itgan score {arguments[0]}"
    if is_foreign(path):
        rows = score_foreign(path, _parse(ScoreConfig, arguments[1:], prog, ScoreConfig()))
    else:
        synthetic = load_set(arguments[0])
        default = _named(synthetic.about.get("evaluation"), arguments)
        rows = score(synthetic, _parse(ScoreConfig, arguments[1:], prog, default))
    Console(width=None if sys.stdout.isatty() else 110).print(results_table(rows))


def _named(evaluation: object, arguments: Sequence[str]) -> "ScoreConfig":
    """The protocol that a set names; a file must not choose code that is imported."""
    from itgan.configs import EvaluationConfig, ScoreConfig
    from itgan.progress import say

    if not isinstance(evaluation, dict):
        return ScoreConfig()
    network = str(evaluation.get("network", ""))
    if ":" in network:
        evaluation = {**evaluation, "network": "convnet"}
        if not given("--evaluation.network", arguments):
            say(
                f"{arguments[0]} names the network {network!r}, but no file may choose code to "
                f"import: scored with convnet; to trust it, give --evaluation.network {network}"
            )
    try:
        return ScoreConfig(evaluation=EvaluationConfig.model_validate(evaluation))
    except ValueError:  # written by an itgan with other options
        return ScoreConfig()


def _ledger(arguments: Sequence[str]) -> None:
    """Count the bytes of a set, or of a recipe's, against raw, PNG and JPEG images."""
    from itgan.configs import LedgerConfig
    from itgan.recipes import RECIPES

    if not arguments or arguments[0].startswith("-"):
        _parse(LedgerConfig, arguments, "itgan ledger RECIPE|SET", LedgerConfig())
        raise InputError(f"ledger: give a synthetic set or a recipe: {', '.join(RECIPES)}")
    from rich.console import Console

    from itgan.artefacts import write_json
    from itgan.ledger import count, ledger_tables

    name, synthetic = arguments[0], None
    if name in RECIPES or Path(name, "config.json").is_file():
        recipe = _recipe([name], "ledger").model_dump()
        shared = {k: v for k, v in recipe.items() if k in LedgerConfig.model_fields}
        default = LedgerConfig.model_validate({**shared, "out": None})
    else:
        from itgan.scoring import load_set

        synthetic = load_set(name)
        default = LedgerConfig(dataset=synthetic.about.get("dataset"))
    config = _parse(LedgerConfig, arguments[1:], f"itgan ledger {name}", default)
    counted = count(config, synthetic)
    console = Console(width=None if sys.stdout.isatty() else 130)
    for table in ledger_tables(counted):
        console.print(table)
    if config.out:
        write_json(Path(config.out), counted)
        _print(f"figures: {config.out}")


def _import_official(arguments: Sequence[str]) -> None:
    """Read released latents, whole or in pieces, as a bank."""
    from itgan.configs import ImportConfig

    files, flags = _leading(arguments)
    config = _parse(ImportConfig, flags, "itgan import-official FILE…", ImportConfig())
    if not files:
        raise InputError("import-official: give one file or several first")
    from itgan.official import import_latents

    bank = import_latents([Path(file) for file in files], config)
    bank.save(config.out)
    _print(f"{len(bank):,} latents, {bank.stage}: {config.out}")


def _export_official(arguments: Sequence[str]) -> None:
    """Write a bank or a set in the layouts of the field's released files."""
    from itgan.configs import ExportConfig

    files, flags = _leading(arguments)
    config = _parse(ExportConfig, flags, "itgan export-official BANK", ExportConfig())
    if len(files) != 1:
        raise InputError("export-official: give one bank or synthetic set first")
    from itgan.official import export_official

    _print(f"{export_official(Path(files[0]), config)}: {config.out}")


def _leading(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first flag, and the rest."""
    first = next((k for k, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def _generate(arguments: Sequence[str]) -> None:
    """Write the images of a set: an image folder, npz, or Parquet for Hugging Face."""
    from itgan.configs import GenerateConfig

    if not arguments or arguments[0].startswith("-"):
        _parse(GenerateConfig, arguments, "itgan generate SET", GenerateConfig())
        raise InputError("generate: give a file or a shipped name first")
    config = _parse(
        GenerateConfig, arguments[1:], f"itgan generate {arguments[0]}", GenerateConfig()
    )
    from itgan.devices import pick_device
    from itgan.export import EXPORTERS
    from itgan.scoring import find_set
    from itgan.sources import SyntheticSet

    file = find_set(arguments[0])
    synthetic = SyntheticSet.load(file, pick_device(config.device))
    name = file.name.removesuffix(".safetensors").removesuffix(".itgan")
    out = Path(config.out or f"{name}-images")
    EXPORTERS[config.format](synthetic, out, file=file)
    _print(f"{len(synthetic):,} images: {out}")


def _merge(arguments: Sequence[str]) -> None:
    """Put banks that were learned apart into one file."""
    from itgan.configs import MergeConfig

    paths = list(itertools.takewhile(lambda a: not a.startswith("-"), arguments))
    prog = "itgan merge BANK BANK …"
    config = _parse(MergeConfig, arguments[len(paths) :], prog, MergeConfig())
    if len(paths) < 2:
        raise InputError("merge: give two banks or more first")
    if config.out is None:
        raise InputError("merge: name the file to write with --out")
    if Path(config.out).exists():
        raise InputError(f"--out {config.out}: is there already; give another")
    from itgan.latents import LatentBank

    banks = [LatentBank.load(path) for path in paths]
    bank = LatentBank.merge(banks, repeat_rows=config.repeat_rows)
    bank.save(config.out)
    _print(f"{len(bank):,} latents: {config.out}")


def _inspect(arguments: Sequence[str]) -> None:
    """Tell what a file is: shapes, stage, provenance, bytes."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        _print("usage: itgan inspect FILE    (a safetensors file of this project, or a .pt)")
        if arguments and arguments[0] in ("-h", "--help"):
            return
        raise InputError("inspect: give one file")
    from itgan.inspection import describe

    _print(describe(Path(arguments[0])))


def _zoo(arguments: Sequence[str]) -> None:
    """List what ships with the package."""
    if arguments:
        _print("usage: itgan zoo")
        if arguments[0] in ("-h", "--help"):
            return
        raise InputError(f"zoo: takes no arguments, not {arguments[0]!r}")
    from itgan.artefacts import read_metadata
    from itgan.generators import shipped

    rows: list[list[Any]] = []
    for kind in ("generator", "synthetic"):
        for name, path in shipped(kind).items():
            metadata = read_metadata(path)
            dataset = metadata.get("dataset") or metadata["about"].get("dataset", "")
            rows.append([name, kind, dataset, f"{path.stat().st_size:,}", metadata["sha256"][:16]])
    _table(["name", "kind", "data set", "bytes", "sha256"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for i, title in enumerate(head):
        table.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 110).print(table)


COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "plan": _plan,
    "run": _run,
    "reproduce": _reproduce,
    "pretrain": _pretrain,
    "measure": _measure,
    "embed": _stage("embed", "Train the extractor of a recipe."),
    "invert": _stage("invert", "Make the inverted banks of a recipe."),
    "condense": _stage("condense", "Make the condensed banks of a recipe."),
    "evaluate": _stage("evaluate", "Train and score the classifiers of a recipe."),
    "report": _report,
    "merge": _merge,
    "generate": _generate,
    "score": _score,
    "ledger": _ledger,
    "import-official": _import_official,
    "export-official": _export_official,
    "inspect": _inspect,
    "zoo": _zoo,
}

if __name__ == "__main__":
    sys.exit(main())
