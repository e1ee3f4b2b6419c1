"""Commands on files: sets, banks, other projects' files."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itgan.errors import InputError
from itgan.flags import given, parse
from itgan.run_commands import recipe
from itgan.terminal import show, show_table

if TYPE_CHECKING:
    from itgan.file_configs import ScoreConfig


def score(arguments: Sequence[str]) -> None:
    """Score anyone's set: ours, an image folder, npz, or .pt of normalised tensors."""
    from itgan.file_configs import ScoreConfig

    if not arguments or arguments[0].startswith("-"):
        parse(ScoreConfig, arguments, "itgan score PATH", ScoreConfig())
        raise InputError("score: give a file or a shipped name first")
    from rich.console import Console

    from itgan.foreign import is_foreign
    from itgan.scoring import load_set, score, score_foreign
    from itgan.tables import results_table

    path, prog = Path(arguments[0]), f"itgan score {arguments[0]}"
    if is_foreign(path):
        rows = score_foreign(path, parse(ScoreConfig, arguments[1:], prog, ScoreConfig()))
    else:
        synthetic = load_set(arguments[0])
        default = _named(synthetic.about.get("evaluation"), arguments)
        rows = score(synthetic, parse(ScoreConfig, arguments[1:], prog, default))
    Console(width=None if sys.stdout.isatty() else 110).print(results_table(rows))


def _named(evaluation: object, arguments: Sequence[str]) -> "ScoreConfig":
    """The protocol that a set names; a file must not choose code that is imported."""
    from itgan.configs import EvaluationConfig
    from itgan.file_configs import ScoreConfig
    from itgan.progress import say

    if not isinstance(evaluation, dict):
        return ScoreConfig()
    network = str(evaluation.get("network", ""))
    if ":" in network:
        evaluation = {**evaluation, "network": "convnet"}
        if not any(given(flag, arguments) for flag in ("--evaluation.network", "--networks")):
            say(
                f"{arguments[0]} names the network {network!r}, but no file may choose code to "
                f"import: scored with convnet; to trust it, give --evaluation.network {network}"
            )
    try:
        return ScoreConfig(evaluation=EvaluationConfig.model_validate(evaluation))
    except ValueError:  # written by an itgan with other options
        return ScoreConfig()


def ledger(arguments: Sequence[str]) -> None:
    """Count the bytes of a set, or of a recipe's, against raw, PNG and JPEG images."""
    from itgan.file_configs import LedgerConfig
    from itgan.recipes import RECIPES

    if not arguments or arguments[0].startswith("-"):
        parse(LedgerConfig, arguments, "itgan ledger RECIPE|SET", LedgerConfig())
        raise InputError(f"ledger: give a synthetic set or a recipe: {', '.join(RECIPES)}")
    from rich.console import Console

    from itgan.artefacts import write_json
    from itgan.ledger import count, ledger_tables

    name, synthetic = arguments[0], None
    if name in RECIPES or Path(name, "config.json").is_file():
        options = recipe([name], "ledger").model_dump()
        shared = {k: v for k, v in options.items() if k in LedgerConfig.model_fields}
        default = LedgerConfig.model_validate({**shared, "out": None})
    else:
        from itgan.scoring import load_set

        synthetic = load_set(name)
        default = LedgerConfig(dataset=synthetic.about.get("dataset"))
    config = parse(LedgerConfig, arguments[1:], f"itgan ledger {name}", default)
    counted = count(config, synthetic)
    console = Console(width=None if sys.stdout.isatty() else 130)
    for table in ledger_tables(counted):
        console.print(table)
    if config.out:
        write_json(Path(config.out), counted)
        show(f"figures: {config.out}")


def import_official(arguments: Sequence[str]) -> None:
    """Read released latents, whole or in pieces, as a bank."""
    from itgan.file_configs import ImportConfig

    files, flags = _leading(arguments)
    config = parse(ImportConfig, flags, "itgan import-official FILE…", ImportConfig())
    if not files:
        raise InputError("import-official: give one file or several first")
    from itgan.official import import_latents

    bank = import_latents([Path(file) for file in files], config)
    bank.save(config.out)
    show(f"{len(bank):,} latents, {bank.stage}: {config.out}")


def export_official(arguments: Sequence[str]) -> None:
    """Write a bank or a set in the layouts of the field's released files."""
    from itgan.file_configs import ExportConfig

    files, flags = _leading(arguments)
    config = parse(ExportConfig, flags, "itgan export-official BANK", ExportConfig())
    if len(files) != 1:
        raise InputError("export-official: give one bank or synthetic set first")
    from itgan.official import export_official

    show(f"{export_official(Path(files[0]), config)}: {config.out}")


def _leading(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first flag, and the rest."""
    first = next((k for k, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def generate(arguments: Sequence[str]) -> None:
    """Write the images of a set: an image folder, npz, or Parquet for Hugging Face."""
    from itgan.file_configs import GenerateConfig

    if not arguments or arguments[0].startswith("-"):
        parse(GenerateConfig, arguments, "itgan generate SET", GenerateConfig())
        raise InputError("generate: give a file or a shipped name first")
    config = parse(
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
    show(f"{len(synthetic):,} images: {out}")


def merge(arguments: Sequence[str]) -> None:
    """Put banks that were learned apart into one file."""
    from itgan.file_configs import MergeConfig

    paths = list(itertools.takewhile(lambda a: not a.startswith("-"), arguments))
    prog = "itgan merge BANK BANK …"
    config = parse(MergeConfig, arguments[len(paths) :], prog, MergeConfig())
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
    show(f"{len(bank):,} latents: {config.out}")


def inspect(arguments: Sequence[str]) -> None:
    """Tell what a file is: shapes, stage, provenance, bytes."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        show("usage: itgan inspect FILE    (a shipped name, a safetensors file of ours, or a .pt)")
        if arguments and arguments[0] in ("-h", "--help"):
            return
        raise InputError("inspect: give one file")
    from itgan.generators import shipped
    from itgan.inspection import describe

    path = Path(arguments[0])
    if not path.exists():
        path = {**shipped("generator"), **shipped("synthetic")}.get(arguments[0], path)
    show(describe(path))


def zoo(arguments: Sequence[str]) -> None:
    """List what ships with the package."""
    if arguments:
        show("usage: itgan zoo")
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
    show_table(["name", "kind", "data set", "bytes", "sha256"], rows)
