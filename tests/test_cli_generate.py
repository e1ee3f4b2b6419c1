"""`itgan generate` and `itgan score` from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from itgan import cli
from itgan.sources import SyntheticSet

QUICK = ["--network-seeds", 0, "--evaluation.updates", 2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def stored(generator, bank):
    synthetic = SyntheticSet(generator, bank, about={"dataset": "digits"})
    synthetic.save("set.itgan.safetensors")
    return synthetic


@pytest.fixture
def run(capsys):
    """Runs a command; gives its exit code and what it said on the two streams."""

    def command(*arguments):
        code = cli.main([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def refused(run):
    def command(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        return line.removeprefix("itgan: ")

    return command


def test_the_default_is_an_image_folder_named_after_the_set(run, stored):
    assert run("generate", "set.itgan.safetensors")[:2] == (0, "40 images: set-images\n")
    assert len(list(Path("set-images/train").rglob("*.png"))) == 40
    found = json.loads(Path("set-images/provenance.json").read_text())
    assert found["file"]["name"] == "set.itgan.safetensors"
    assert found["generator"] == stored.generator.fingerprint
    code, out, _ = run("score", "set-images", "--dataset", "digits", *QUICK)
    assert code == 0
    assert "set-images" in out


def test_a_shipped_set_goes_by_its_name(run):
    assert run("generate", "digits-10", "--format", "npz", "--device", "cpu")[0] == 0
    with np.load("digits-10-images/train.npz") as found:
        assert found["train_images"].shape == (100, 8, 8)
        assert np.bincount(found["train_labels"]).tolist() == [10] * 10
    code, out, _ = run("score", "digits-10-images/train.npz", "--dataset", "digits", *QUICK)
    assert code == 0
    assert "train" in out


def test_parquet_is_loaded_by_hugging_face(run, stored):
    arguments = ["--format", "parquet", "--out", "deep/er/out"]
    assert run("generate", "set.itgan.safetensors", *arguments)[0] == 0
    found = datasets.load_dataset("deep/er/out", split="train")
    assert found["row"][:] == stored.bank.rows.tolist()
    assert found["label"][:] == stored.labels.tolist()
    pictures = np.stack([np.asarray(image) for image in found["img"]])
    np.testing.assert_array_equal(pictures, stored.pixels()[:, 0].numpy())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("generate", "generate: give a file or a shipped name first"),
        ("generate --format npz", "generate: give a file or a shipped name first"),
        ("generate none", "none: no such file, and not a shipped set: digits-10"),
        ("generate text.npz", "text.npz: not a readable safetensors file"),
        ("generate bank.safetensors", "bank.safetensors: holds a 'bank', expected a 'synthetic'"),
        ("generate set.itgan.safetensors --format gif", "'--format'. Expected one of"),
        ("generate set.itgan.safetensors --device warp", "device 'warp' cannot be used here"),
        ("generate set.itgan.safetensors --out .", "--out .: exists already; give another"),
        ("generate set.itgan.safetensors --out text.npz", "--out text.npz: exists already"),
        ("generate set.itgan.safetensors --out text.npz/a", "text.npz"),
        ("generate set.itgan.safetensors --out /proc/nowhere", "/proc/"),
        ("generate set.itgan.safetensors --bogus", "--bogus"),
        ("score text.npz", "score: text.npz names no data set; give --dataset"),
        ("score text.npz --dataset nowhere", "data set 'nowhere' is unknown"),
        ("score text.npz --dataset digits", "text.npz is not a whole npz file"),
        ("score none.pt --dataset digits", "none.pt: no such file, and not a shipped set"),
        ("score folder --dataset digits", "folder has 0 class folders, but data set 'digits'"),
        ("score x.pt --dataset digits", "x.pt must hold a dict with 'data'"),
        ("score x.pt --dataset digits --mean 0.5", "mean, std: give both"),
        ("score x.pt --dataset digits --mean 2 --std 1", "mean"),
        ("score x.pt --dataset digits --mean 0.5 --std 0", "std"),
        ("score x.pt --dataset digits --entry -1", "entry"),
        ("score set.itgan.safetensors --logits", "logits: for sets of other formats"),
    ],
)
def test_wrong_input_is_told_in_one_line(refused, stored, bank, tmp_path, arguments, told):
    Path("text.npz").write_text("hello")
    Path("folder").mkdir()
    bank.save("bank.safetensors")
    torch.save([torch.zeros(1)], "x.pt")
    before = sorted(tmp_path.rglob("*"))
    assert told in refused(*arguments.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_help_lists_the_flags(capsys):
    for arguments, flags in (
        (["generate", "--help"], ("--format", "--out", "--device")),
        (["generate", "digits-10", "--help"], ("--format", "--out", "--device")),
        (["score", "--help"], ("--mean", "--std", "--entry", "--logits")),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        told = capsys.readouterr().out
        assert all(flag in told for flag in flags)


def test_an_interrupted_command_leaves_nothing(stored, tmp_path):
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from itgan import sources; real = sources.SyntheticSet.pixels\n"
        "def slow(*a):\n    time.sleep(60)\n    return real(*a)\n"
        "sources.SyntheticSet.pixels = slow\n"
        "import itgan.cli; sys.exit(itgan.cli.main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "generate", "set.itgan.safetensors"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    with process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".set-images.*")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
        assert list(tmp_path.glob(".set-images.*/train"))
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said == "itgan: interrupted; to go on: itgan generate set.itgan.safetensors\n"
    assert [p.name for p in tmp_path.iterdir()] == ["set.itgan.safetensors"]
