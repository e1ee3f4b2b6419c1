import errno
import json
import os
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import itgan.generators
import itgan.pipeline
import itgan.setting
from itgan import artefacts, cli
from itgan.cli import COMMANDS, main
from itgan.configs import Config
from itgan.file_configs import ExportConfig, ImportConfig, LedgerConfig, ScoreConfig
from itgan.generator_configs import AutoencodingConfig, MeasureConfig, PretrainingConfig
from itgan.latents import LatentBank
from itgan.recipes import PRETRAININGS, RECIPES
from itgan.run_configs import RunConfig
from itgan.sources import SyntheticSet
from itgan.terminal import show_table

TINY = shlex.split(
    """
    --latents-per-class 2 --sources random itgan --latent-seeds 0 --network-seeds 0
    --inversion.steps 2 --inversion.extractor.updates 2 --inversion.extractor.batch-size 16
    --condensation.steps 2 --condensation.real-per-class 4
    --evaluation.updates 2 --evaluation.batch-size 16
    """
)


@pytest.fixture(scope="module")
def file(biggan, tmp_path_factory):
    """An untrained generator, as a file of this project."""
    path = tmp_path_factory.mktemp("generator") / "tiny.safetensors"
    artefacts.save(path, biggan.state_dict(), {"kind": "generator"})
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch, digits):
    """Relative paths lead nowhere, and digits are loaded once."""
    monkeypatch.chdir(tmp_path)
    load = itgan.setting.load_dataset

    def loaded(spec, validation=0, **options):
        if (spec, validation, options.get("image_size")) == ("digits", 0, None):
            return digits
        return load(spec, validation=validation, **options)

    monkeypatch.setattr(itgan.setting, "load_dataset", loaded)


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must exit with 2; gives the one line that it says."""

    def run(*arguments, writes=False):
        assert main([str(a) for a in arguments]) == 2
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert line.startswith("itgan: ")
        assert "Traceback" not in said.out
        assert writes or not list(tmp_path.rglob("cells"))
        return line.removeprefix("itgan: ")

    return run


@pytest.fixture
def done(capsys):
    """Runs a command that must succeed; gives its standard output."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    return run


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        **options,
    )


def test_the_compiler_does_not_read_the_flags(monkeypatch, tmp_path):
    """It takes the value of ``--only`` for a name, and an apostrophe in it for the end of that."""
    program = """
import sys
import torch
from itgan import cli

def compute(arguments):
    torch._dynamo.config.suppress_errors = False
    assert arguments == ["--only", "int8's bytes=5"]
    print(float(torch.compile(lambda x: 2 * x.sin().sum())(torch.zeros(3))))

cli.COMMANDS = {"compute": compute}
sys.argv = ["itgan", "compute", "--only", "int8's bytes=5"]
sys.exit(cli.main())
"""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing is compiled yet
    done = python("-c", program)
    assert (done.returncode, done.stdout) == (0, "0.0\n"), done.stderr


def test_a_closed_output_is_none_to_write_to():
    closing = (
        "import os, sys; os.close({}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    program = "import sys; from itgan.cli import main; raise SystemExit(main(sys.argv[1:]))"
    result = python("-c", closing.format(1), "-c", program, "zoo")
    assert (result.returncode, result.stderr) == (0, "")
    result = python("-c", closing.format(2), "-c", program, "run", "nobody")
    assert (result.returncode, result.stdout) == (2, "")


def test_brackets_in_a_printed_table_are_no_markup(capsys):
    show_table(["figure"], [["of a set[clean]"]])
    assert "of a set[clean]" in capsys.readouterr().out


def test_an_argument_that_is_not_utf8_is_refused(refused, tmp_path):
    line = refused("run", "digits", "--out", f"{tmp_path}/caf\udce9")
    assert line.endswith("caf\\udce9' is not UTF-8; give another name")


def test_a_shared_store_is_found_from_another_directory(done, monkeypatch, tmp_path):
    tiny = [*TINY, "--sources", "random", "--cells", "shared", "--out", "run"]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    done("run", "digits", *tiny)
    kept = sorted(Path("shared").rglob("*"))
    monkeypatch.chdir("other")
    done("run", "../run")
    done("report", "../run")
    monkeypatch.chdir(tmp_path)
    assert sorted(Path("shared").rglob("*")) == kept
    assert not list(Path("other").iterdir())


# Every number of every config, from the schema


def numbers(kind, path=()):
    """Flag, dotted name, how many, validity of a text: for every number in a config."""
    for name, field in kind.model_fields.items():
        where = (*path, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from numbers(field.annotation, where)
            continue
        schema = kind.model_json_schema()["properties"][name]
        several = [schema["items"]] if "items" in schema else schema.get("prefixItems", [])
        types = {form.get("type") for form in [schema, *several, *schema.get("anyOf", [])]}
        if types & {"integer", "number"}:
            parse = float if "number" in types else int
            flag = "--" + ".".join(where).replace("_", "-")
            valid = partial(is_valid, kind, name, parse, len(several))
            yield pytest.param(flag, ".".join(where), max(1, len(several)), valid, id=flag)


def is_valid(kind, name, parse, several, text):
    try:
        value = parse(text)
        kind.model_validate({name: (value,) * several if several else value})
    except ValueError:  # pydantic's own errors are, too
        return False
    return True


VALUES = ["0", "-1", "0.5", "nan", "inf", "9" * 30, "many"]


def names(line, flag, dotted):
    return flag in line or dotted in line


def test_every_number_is_refused_below_its_bounds(refused):
    for parameter in numbers(RunConfig):
        flag, dotted, count, _ = parameter.values
        line = refused("run", "digits", flag, *["-1"] * count)
        assert names(line, flag, dotted), line


# Each kind of config is tried thoroughly where it comes first.
FIRST = {p.values[3].args[:2]: p for p in reversed(list(numbers(RunConfig)))}


@pytest.mark.parametrize(("flag", "dotted", "count", "valid"), list(reversed(FIRST.values())))
def test_numbers_out_of_bounds_are_refused_naming_the_field(refused, flag, dotted, count, valid):
    tried = [text for text in VALUES if not valid(text)]
    assert {"-1", "nan", "inf", "many"} <= set(tried)
    for arguments in ([flag, *[text] * count] for text in tried):
        line = refused("run", "digits", *arguments)
        assert names(line, flag, dotted), (arguments, line)


@pytest.mark.parametrize(("flag", "dotted", "count", "valid"), list(numbers(PretrainingConfig)))
def test_so_are_they_in_pretraining(refused, flag, dotted, count, valid):
    for text in VALUES:
        if not valid(text):
            line = refused("pretrain", "digits", flag, *[text] * count)
            assert names(line, flag, dotted), (text, line)


@pytest.mark.parametrize(
    ("flag", "dotted", "count", "valid"),
    [p for p in numbers(AutoencodingConfig) if p.values[1] not in PretrainingConfig.model_fields],
)
def test_so_are_they_in_autoencoding(refused, flag, dotted, count, valid):
    for text in VALUES:
        if not valid(text):
            line = refused("pretrain", "ae-digits", flag, *[text] * count)
            assert names(line, flag, dotted), (text, line)


def test_so_are_they_in_scoring(refused, generator, bank, tmp_path):
    SyntheticSet(generator, bank).save(tmp_path / "set.safetensors")
    for parameter in numbers(ScoreConfig):
        flag, dotted, _, _ = parameter.values
        for text in ("-1", "nan"):
            line = refused("score", "set.safetensors", flag, text)
            assert names(line, flag, dotted), (text, line)


def test_the_walk_finds_the_numbers_and_their_bounds():
    found = {parameter.values[0]: parameter.values[3] for parameter in numbers(RunConfig)}
    wanted = {"--latents-per-class", "--latent-seeds", "--condensation.pool.window"}
    assert wanted <= found.keys()
    assert found["--evaluation.weight-decay"]("0.5")
    assert not found["--inversion.extractor.epochs"]("0.5")
    assert found["--seed"]("0")
    assert not found["--condensation.steps"]("0")


# Other wrong input: one line that names it


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("bogus", "command 'bogus': choose one of plan, run, "),
        ("--bogus", "command '--bogus': choose one of "),
        ("run", "run: name a recipe: digits, "),
        ("run nobody", "recipe 'nobody': choose one of digits, "),
        ("run --seed 3", "recipe '--seed': choose one of digits, "),
        ("plan nobody", "recipe 'nobody': choose one of digits, "),
        ("report", "report: name a recipe: digits, "),
        ("pretrain nobody", "preset 'nobody': choose one of digits, "),
        ("run digits --bogus 3", "--bogus"),
        ("run digits --sed 3", "--sed, 3; perhaps --seed"),
        ("run digits --condensation.step 3", "--condensation.step, 3; perhaps --condensation."),
        ("run digits --condensation 3", "--condensation, 3; perhaps --condensation."),
        ("run digits stray", "stray"),
        ("run digits --seed", "'--seed'"),
        ("run digits --seed=", "--seed"),
        ("run digits --seed=-4", "seed: input should be greater than or equal to 0, not -4"),
        ("run digits --evaluation.learning-rate=1e400", "evaluation.learning_rate"),
        ("run digits --evaluation.compile maybe", "maybe"),
        ("run digits --condensation.micro-batch hope", "give a whole number or auto, not hope"),
        ("run digits --condensation.micro-batch 0", "condensation.micro_batch: input should be"),
        ("run digits --evaluation.precision fp8", "'--evaluation.precision'. Expected one of"),
        ("run digits --condensation.matching hope", "'--condensation.matching'. Expected one of"),
        ("run digits --sources elsewhere", "'--sources'. Expected one of ('real', "),
        ("run digits --sources gan gan", "sources: give at least one value, each once"),
        ("run digits --sources", "sources: give at least one value"),
        ("run digits --latent-seeds 1 1", "latent_seeds: give at least one value, each once"),
        ("run digits --network-seeds", "network_seeds: "),
        ("score", "score: give a file or a shipped name first"),
        ("score none.safetensors", "none.safetensors: no such file, and not a shipped set"),
        ("inspect", "inspect: give one file"),
        ("inspect a b", "inspect: give one file"),
        ("inspect none", "none: no such file"),
        ("zoo --bogus", "zoo: takes no arguments, not '--bogus'"),
    ],
)
def test_wrong_input_is_told_in_one_line(refused, arguments, told):
    assert told in refused(*arguments.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--dataset nowhere", "data set 'nowhere' is unknown"),
        ("--dataset npz:none.npz", "none.npz"),
        ("--dataset imagefolder:none", "none"),
        ("--validation 100000", "validation must be 0, a number of images below"),
        ("--device warp", "device 'warp' cannot be used here"),
        ("--generator nobody", "generator 'nobody': no such file, and not one of the shipped"),
        ("--generator none.safetensors", "none.safetensors: no such file"),
        ("--generator model.pkl", "model.pkl: a pickle runs code when it is loaded; "),
        ("--generator model.onnx", "model.onnx: an ONNX graph has no gradient in its latents; "),
        ("--generator model.h5", "model.h5: generators are read from .safetensors, "),
        ("--generator diffusers:none", "diffusers:none: no folder with a readable config.json"),
        ("--generator text.pth", "text.pth: "),
        ("--generator text.safetensors", "text.safetensors: not a readable safetensors file"),
        ("--generator bank.safetensors", "bank.safetensors: holds a 'bank', expected a 'gen"),
        ("--image-size 16", "generator: makes images of shape (1, 8, 8), but the data set has"),
        ("--latents-per-class 5000", "latents_per_class=5000: class '0' has only"),
        ("--evaluation.network perceptron", "evaluation.network: no 'perceptron'; choose"),
        ("--evaluation.network no.such:net", "evaluation.network: cannot import 'no.such:net'"),
        ("--condensation.augmentation blur", "condensation.augmentation: no operation 'blur'"),
        ("--inversion.extractor.network x", "inversion.extractor.network: no 'x'; choose"),
        ("--out text.pth", "text.pth: "),
        ("--out text.pth/run", "text.pth"),
        ("--out /proc/nowhere", "/proc/nowhere"),
        (f"--out {'x' * 300}", "xxx/config.json: File name too long"),
    ],
)
def test_what_a_run_cannot_use_is_told_in_one_line(refused, file, bank, tmp_path, arguments, told):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    bank.save(tmp_path / "bank.safetensors")
    default = ["--generator", file, "--out", "run"]
    line = refused("run", "digits", *TINY, *default, *arguments.split())
    assert told in line
    assert not (tmp_path / "run").exists()


def test_a_damaged_generator_is_named(refused, file, tmp_path):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(content)
    digest = artefacts.read_metadata(file)["sha256"][:16]
    for command in (["run", "digits", *TINY, "--generator"], ["measure", "--dataset", "digits"]):
        where = 1 if command[0] == "measure" else len(command)
        line = refused(*command[:where], "damaged.safetensors", *command[where:])
        assert line.startswith("damaged.safetensors: damaged: its tensors do not have")
        assert f"sha256 {digest}" in line


def test_a_report_of_nothing_is_refused(refused, file):
    line = refused("report", "digits", *TINY, "--generator", file, "--out", "run")
    assert line == "run: no classifier has been trained yet; itgan run first"


def test_a_directory_in_use_is_refused(refused, file, tmp_path):
    with artefacts.locked(tmp_path / "run"):
        line = refused("run", "digits", *TINY, "--generator", file, "--out", "run")
    assert line.startswith("run: another process is working in this directory")


def test_wrong_pretraining_is_told_in_one_line(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, told in (
        ("--diffaugment blur", "diffaugment 'blur': choose from translation, "),
        ("--dataset nowhere", "data set 'nowhere' is unknown"),
        ("--validation 5000", "validation must be 0"),
        ("--device warp", "device 'warp'"),
        ("--out file", "file: "),
    ):
        assert told in refused("pretrain", "digits", "--steps", 1, *arguments.split())


# Success


def test_a_run_from_the_plan_to_the_report(done, refused, file, tmp_path):
    flags = ["digits", *TINY, "--generator", file, "--out", "run"]
    plan = done("plan", *flags)
    assert '"latents_per_class": 2' in plan
    assert [word for word in ("extractor", "inverted", "condensed", "trial") if word in plan]
    assert "bytes in fp32" in plan
    assert not (tmp_path / "run").exists()

    assert done("embed", *flags) == "1 cells done in run\n"
    assert done("invert", *flags) == "1 cells done in run\n"
    assert done("condense", *flags) == "1 cells done in run\n"
    assert done("evaluate", *flags) == "2 cells done in run\n"
    assert not (tmp_path / "run" / "results.json").exists()
    told = done("run", *flags)
    assert "random" in told
    assert "itgan" in told
    assert "report: run/report.html" in told.replace("\n", " ")
    written = (tmp_path / "run" / "results.json").read_bytes()
    assert [row["source"] for row in json.loads(written)] == ["random", "itgan"]
    assert len(artefacts.read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 5
    assert done("report", *flags) == told
    assert (tmp_path / "run" / "results.json").read_bytes() == written

    line = refused("run", *flags, "--seed", 5, writes=True)
    assert line.startswith("--out run: holds a run with another configuration; these fields")
    assert "seed (0 there, 5 here)" in line

    (made,) = (tmp_path / "run" / "sets").iterdir()
    assert "kind: synthetic" in done("inspect", made)
    quick = ["--network-seeds", 0, "--evaluation.updates", 2]
    assert "itgan" in done("score", made, *quick)


def test_the_directory_is_named_after_the_recipe(done, file, tmp_path):
    done("embed", "digits", *TINY, "--generator", file)
    assert (tmp_path / "runs" / "digits" / "config.json").exists()


MEASURED = shlex.split("--extractor.updates 2 --samples 30 --cas.updates 2 --cas-per-class 3")


def test_pretraining_makes_a_generator_with_a_card(done, tmp_path):
    small = (
        "--steps 2 --batch-size 4 --channels 2 --latent-dim 4 --out made --card.figures recall cas"
    )
    protocol = [flag.replace("--", "--card.") for flag in MEASURED]
    told = done("pretrain", "digits", *small.split(), *protocol)
    assert "generator: made/generator.safetensors" in told
    assert "card: made/card.md" in told
    file = tmp_path / "made" / "generator.safetensors"
    assert itgan.generators.load_generator(file)
    card = (tmp_path / "made" / "card.md").read_text()
    assert artefacts.read_metadata(file)["sha256"] in card
    hours = artefacts.read_metadata(file)["hours"]
    assert f"- training: 2 generator steps of 4 images, {hours} hours by its log, seed 0" in card
    assert "- recall (k = 5, ConvNet features of digits, extractor " in card
    assert ", 30 samples against 200 validation images, seed 0): " in card
    assert "- classifier accuracy score, % (ConvNet, 2 updates of 30 fresh samples, " in card


def test_a_generator_is_measured(done, file, tmp_path):
    flags = ["--dataset", "digits", "--validation", 100, *MEASURED, "--out", "figures.json"]
    told = done("measure", file, *flags, "--figures", "precision", "cas")
    assert "figures: figures.json" in told
    assert "precision (k = 5" in told
    record = json.loads((tmp_path / "figures.json").read_text())
    assert [figure["figure"] for figure in record["figures"]] == ["precision", "cas"]
    assert record["config"]["validation"] == 100
    plain = record["fingerprint"]
    done("measure", file, *flags, "--figures", "precision", "--recalibrate")
    record = json.loads((tmp_path / "figures.json").read_text())
    assert record["recalibrate"]
    assert record["fingerprint"] != plain
    assert len(list((tmp_path / "runs" / "extractors").iterdir())) == 1


def test_wrong_measurements_are_told_in_one_line(refused, file):
    for arguments, told in (
        ([], "measure: give a generator's file or a shipped name first"),
        (["--samples", 5], "measure: give a generator's file or a shipped name first"),
        ([file], "dataset: name the real images to compare with: --dataset PLACE"),
        (["nobody", "--dataset", "digits"], "generator 'nobody': no such file, and not one of"),
        ([file, "--dataset", "digits", "--weights", "raw"], "tiny.safetensors: holds no raw"),
        ([file, "--dataset", "digits", "--figures", "beauty"], "beauty"),
        ([file, "--dataset", "digits", "--samples", 1], "samples"),
    ):
        assert told in refused("measure", *arguments)


def test_pretraining_makes_an_autoencoder_with_a_card(done, tmp_path):
    small = "--steps 2 --batch-size 4 --channels 2 --latent-dim 4 --adversarial-start 1"
    small += " --extractor.updates 1 --out made --card.figures recall"
    protocol = [flag.replace("--", "--card.") for flag in MEASURED]
    told = done("pretrain", "ae-digits", *small.split(), *protocol)
    assert "card: made/card.md" in told
    assert "dB PSNR on 200 validation images" in Path("made/card.md").read_text()
    path = tmp_path / "made" / "generator.safetensors"
    assert itgan.generators.load_generator(path).latent_shape == (4,)
    assert itgan.generators.load_encoder(path)(torch.zeros(1, 1, 8, 8), torch.tensor([3])).any()


def test_pretraining_on_images_of_another_size(done, refused, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(12, 28, 28, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    np.savez("odd.npz", x_train=pixels, y_train=labels, x_test=pixels[:4], y_test=labels[:4])
    small = "--dataset npz:odd.npz --steps 1 --batch-size 4 --channels 1 --latent-dim 4 --out made"
    small += " --validation 0 --card.figures"
    assert "choose one with --image-size" in refused("pretrain", "digits", *small.split())
    done("pretrain", "digits", *small.split(), "--image-size", "16")
    made = itgan.generators.load_generator(Path("made/generator.safetensors"))
    assert (made.image_shape, made.num_classes) == ((3, 16, 16), 2)


def test_the_zoo_lists_what_ships(done, file, monkeypatch):
    metadata = {"kind": "generator", "dataset": "digits"}
    artefacts.save(Path("mine.safetensors"), {"x": torch.zeros(1)}, metadata)
    monkeypatch.setattr(
        itgan.generators,
        "shipped",
        lambda kind: {"mine": Path("mine.safetensors")} if kind == "generator" else {},
    )
    told = done("zoo").split()
    size = f"{Path('mine.safetensors').stat().st_size:,}"
    assert told[-5:-1] == ["mine", "generator", "digits", size]
    assert done("zoo", "--help") == "usage: itgan zoo\n"


def test_a_bank_is_inspected(done, bank):
    LatentBank(bank.latents, bank.labels, bank.rows, "inverted").save("bank.safetensors")
    assert "stage: inverted" in done("inspect", "bank.safetensors")
    assert "kind: synthetic" in done("inspect", "digits-10")


# Help


def test_banks_are_merged(done, refused, bank):
    halves = [bank.select(torch.arange(40)[k::2]) for k in range(2)]
    for name, half in zip("ab", halves, strict=True):
        half.save(f"{name}.safetensors")
    said = done("merge", "a.safetensors", "b.safetensors", "--out", "both.safetensors")
    assert said == "40 latents: both.safetensors\n"
    merged = LatentBank.load("both.safetensors")
    order = bank.rows.argsort()
    assert torch.equal(merged.latents, bank.latents[order])
    assert torch.equal(merged.rows, bank.rows[order])

    twice = ["merge", "a.safetensors", "a.safetensors", "--out"]
    assert "appears twice" in refused(*twice, "again.safetensors")
    assert not Path("again.safetensors").exists()
    assert done(*twice, "again.safetensors", "--repeat-rows") == "40 latents: again.safetensors\n"
    assert refused("merge", "a.safetensors") == "merge: give two banks or more first"
    assert "--out" in refused("merge", "a.safetensors", "b.safetensors")
    assert "is there already" in refused(*twice, "both.safetensors", "--repeat-rows")
    assert "nobody: no such file" in refused("merge", "a.safetensors", "nobody", "--out", "c")


def test_an_inversion_with_every_option_from_the_command_line(done, file):
    flags = [
        *shlex.split("--inversion.start encoder --inversion.encoder.pair-steps 2"),
        *shlex.split("--inversion.encoder.refine-steps 2 --inversion.encoder.width 2"),
        *shlex.split("--inversion.control 5 --inversion.tolerance 0.5 --inversion.window 1"),
        *shlex.split("--inversion.restart-share 0.1 --inversion.lambda-prior 0.01"),
    ]
    arguments = ["digits", *TINY, *flags, "--generator", file, "--out", "run"]
    plan = done("plan", *arguments)
    assert [word for word in ("extractor", "encoder", "inverted") if word in plan]
    assert done("invert", *arguments) == "1 cells done in run\n"
    (cell,) = Path("run/cells").glob("inverted-*")
    said = done("inspect", cell)
    for name in ("psnr", "final_feature", "norm_95", "left_early", "passes"):
        assert f"history.{name}: " in said
    assert "history.control_correlation: " in said
    (encoder,) = Path("run/cells").glob("encoder-*")
    assert "history.pairs: 2 values, last" in done("inspect", encoder)
    metrics = {row["label"]: row for row in artefacts.read_jsonl(Path("run/metrics.jsonl"))}
    assert metrics["encoder"]["seconds"] > 0
    assert "psnr" in metrics["inverted bank, latent seed 0"]


def test_the_overview_names_every_command(done):
    for arguments in ((), ("--help",), ("-h",)):
        told = done(*arguments)
        for name, command in COMMANDS.items():
            assert f"  {name}" in told
            assert command.__doc__.splitlines()[0] in told


@pytest.mark.parametrize("command", ["run", "plan", "report", "pretrain"])
def test_each_command_lists_its_recipes(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for name in PRETRAININGS if command == "pretrain" else RECIPES:
        assert f"  {name} " in told


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ("run digits", RunConfig),
        ("pretrain digits", PretrainingConfig),
        ("measure", MeasureConfig),
        ("pretrain ae-digits", AutoencodingConfig),
        ("score", ScoreConfig),
        ("ledger digits", LedgerConfig),
        ("import-official", ImportConfig),
        ("export-official", ExportConfig),
    ],
)
def test_every_field_is_a_flag_in_the_help(capsys, monkeypatch, arguments, kind):
    def flags(kind, prefix=""):
        for name, field in kind.model_fields.items():
            flag = f"{prefix}{name.replace('_', '-')}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
                yield from flags(field.annotation, f"{flag}.")
            else:
                yield f"--{flag}"

    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([*arguments.split(), "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    missing = [flag for flag in flags(kind) if flag not in told]
    assert missing == []
    assert os.environ["COLUMNS"] == "200"


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, itgan.cli; itgan.cli.main(['--help']); "
        "heavy = {'torch', 'pydantic', 'tyro', 'numpy', 'rich'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        result = python("-c", code)
        seconds.append(time.perf_counter() - begun)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("usage: itgan COMMAND")
    assert min(seconds) < 1


def test_the_version_is_told_without_torch(done):
    assert done("--version") == f"itgan {itgan.__version__}\n"


# Exit codes


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted; to go on: itgan run digits --out 'my run'"),
        (MemoryError(), 1, "out of memory; finished cells and"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of memory; finished cells"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory; fini"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full; finished cells"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "the disk is full; finished cells"),
        (OSError(errno.EFBIG, "File too large"), 1, "the disk is full; finished cells"),
        (PermissionError(errno.EACCES, "Permission denied", "/there"), 2, "/there: Permission"),
        (OSError(errno.EROFS, "Read-only file system", "/there"), 2, "/there: Read-only file"),
        (itgan.InputError("two\nlines"), 2, "two lines"),
    ],
)
def test_what_goes_wrong_has_its_exit_code(capsys, monkeypatch, error, code, told):
    def fail(*args):
        raise error

    monkeypatch.setattr(itgan.pipeline, "compute", fail)
    assert main(["run", "digits", "--out", "my run"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"itgan: {told}")


def test_a_defect_keeps_its_traceback(monkeypatch):
    def fail(*args):
        raise RuntimeError("a defect")

    monkeypatch.setattr(itgan.pipeline, "compute", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["run", "digits"])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # boxes are drawn in either
def test_a_process_exits_with_the_code_and_one_line(tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    result = python("-m", "itgan.cli", "run", "digits", "--bogus", "3", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "itgan: Unrecognized options: --bogus, 3\n"
    result = python("-m", "itgan.cli", "--version", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_directory_of_a_run_stands_for_its_recipe(tmp_path, capsys):
    out = tmp_path / "run"
    flags = "--latents-per-class 2 --latent-seeds 0 --network-seeds 0 --sources random gan"
    flags += " --evaluation.updates 2 --evaluation.curve-points 0"
    assert main(["run", "digits", "--out", str(out), *flags.split()]) == 0
    before = (out / "results.json").read_bytes()
    (out / "results.json").unlink()
    assert main(["report", str(out)]) == 0
    assert main(["run", str(out)]) == 0
    assert (out / "results.json").read_bytes() == before
    capsys.readouterr()
    assert main(["report", str(out), "--evaluation.updates", "3"]) == 2
    assert "evaluation.updates (2 there, 3 here)" in capsys.readouterr().err
    # A report is of what is there, whatever the recipe would add to it.
    kept = (out / "config.json").read_bytes()
    recipe = "--latents-per-class 2 --evaluation.updates 2 --evaluation.curve-points 0"
    assert main(["report", "digits", "--out", str(out), *recipe.split()]) == 0
    assert (out / "config.json").read_bytes() == kept
    assert "There is one latent set" in (out / "report.md").read_text()
    assert "still to be computed" not in (out / "report.md").read_text()
    (out / "config.json").write_text('{"bogus": 1}')
    assert main(["run", str(out)]) == 2
    assert "config.json: not a configuration" in capsys.readouterr().err


def test_help_is_laid_out_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1")
    with pytest.raises(SystemExit) as stop:
        main(["run", "digits", "--help"])
    assert stop.value.code == 0
    assert "--condensation.steps" in capsys.readouterr().out
    assert os.environ["COLUMNS"] == "1"
