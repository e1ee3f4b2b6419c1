import json
from pathlib import Path

import numpy as np
import pytest
import torch

from itgan.cli import main
from itgan.latents import LatentBank
from itgan.sources import SyntheticSet

LABELS = torch.arange(30) % 10


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def done(capsys):
    """Runs a command that must succeed; gives its standard output."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    return run


@pytest.fixture
def refused(capsys):
    """Runs a command that must exit with 2; gives the one line that it says."""

    def run(*arguments):
        assert main([str(a) for a in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("itgan: ")

    return run


def test_the_ledger_of_a_set_on_the_terminal_and_in_json(done):
    said = done("ledger", "digits-10", "--qualities", 75, "--sample", 20, "--out", "x.json")
    assert "100 latents of 32" in said
    assert "jpeg 75, shared headers" in said
    counted = json.loads(Path("x.json").read_text())
    assert counted["dataset"] == "digits"
    assert counted["encoded_images"] == 20
    assert [row["dtype"] for row in counted["synthetic"]] == ["fp32", "fp16", "int8"]


def test_the_ledger_of_fewer_dimensions(done):
    sizes = {}
    for kept in (32, 8):
        done("ledger", "digits", "--latent-dim", kept, "--sample", 5, "--out", "x.json")
        sizes[kept] = json.loads(Path("x.json").read_text())["synthetic"][0]
    assert sizes[32]["latents"] == 4 * sizes[8]["latents"]
    assert sizes[32]["generator"] > sizes[8]["generator"]


def test_the_ledger_of_a_set_is_the_size_of_its_file(done, generator, bank):
    for dtype in ("fp32", "int8"):
        synthetic = SyntheticSet(generator, bank, about={"dataset": "digits"})
        synthetic.save("a.safetensors", dtype=dtype)
        done("ledger", "a.safetensors", "--sample", 5, "--out", "x.json")
        rows = json.loads(Path("x.json").read_text())["synthetic"]
        total = next(row["total"] for row in rows if row["dtype"] == dtype)
        payload = Path("a.safetensors").read_bytes()
        assert len(payload) == 8 + int.from_bytes(payload[:8], "little") + total


def test_the_ledger_of_a_recipe_takes_its_options(done):
    options = ("--sample", 5, "--qualities", 50, "--out", "x.json")
    done("ledger", "digits", *options)
    assert json.loads(Path("x.json").read_text())["latents"] == 100
    done("ledger", "digits", "--latents-per-class", 3, "--channels", 4, *options)
    counted = json.loads(Path("x.json").read_text())
    assert (counted["latents"], counted["latent_shape"]) == (30, [128])
    done("ledger", "digits", "--latents-per-class", "None", *options)
    assert json.loads(Path("x.json").read_text())["latents"] == 1201


def test_a_ledger_of_nothing_is_refused(refused, generator, bank):
    assert refused("ledger").startswith("ledger: give a synthetic set or a recipe")
    assert "no such file" in refused("ledger", "nothing.safetensors")
    assert refused("ledger", "digits", "--qualities", 101).startswith("qualities")
    unknown = LatentBank(bank.latents, bank.labels, bank.rows, bank.stage)
    SyntheticSet(generator, unknown).save("a.safetensors")
    assert refused("ledger", "a.safetensors").endswith("give --dataset")


def test_released_latents_in_and_out(done):
    z = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    np.save("labels.npy", LABELS.numpy())
    torch.save({"z_inverse_all": z}, "z.pt")
    said = done("import-official", "z.pt", "--labels", "labels.npy", "--out", "bank.safetensors")
    assert said == "30 latents, inverted: bank.safetensors\n"
    bank = LatentBank.load("bank.safetensors")
    assert torch.equal(bank.latents, z)
    assert torch.equal(bank.labels, LABELS)
    assert done("export-official", "bank.safetensors", "--out", "out/z.pt") == (
        "30 latents, whole: out/z.pt\n"
    )
    assert Path("out/z.pt").read_bytes() == Path("z.pt").read_bytes()


def test_pieces_are_given_one_after_another(done):
    z = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    np.save("labels.npy", LABELS.numpy())
    rows = [(label == LABELS).nonzero().flatten().tolist() for label in range(10)]
    for name, part in (("a.pt", slice(0, 1)), ("b.pt", slice(1, 3))):
        split = [r[part] for r in rows]
        content = {"z_split": [z[r] for r in split], "idx_split": split, "train_iter": 9}
        torch.save(content, name)
    done("import-official", "a.pt", "b.pt", "--labels", "labels.npy", "--out", "bank.safetensors")
    assert torch.equal(LatentBank.load("bank.safetensors").latents, z)


def test_what_cannot_be_imported_or_exported(refused):
    torch.save({"z_inverse_all": torch.zeros(3, 2)}, "z.pt")
    assert refused("import-official").startswith("import-official: give one file")
    assert refused("import-official", "z.pt").startswith("dataset, labels: give one of")
    line = refused("import-official", "z.pt", "--dataset", "hf:uoft-cs/cifar10")
    assert "official order" in line
    assert "cifar-binary:PATH" in line
    assert refused("export-official").startswith("export-official: give one bank")
    assert "no such file" in refused("export-official", "none.safetensors", "--out", "x.pt")
