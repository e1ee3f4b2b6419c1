import pytest
import torch

from itgan import artefacts
from itgan.configs import EvaluationConfig
from itgan.embedding import NetworkSpec, save_network, train_extractor
from itgan.errors import InputError
from itgan.inspection import describe
from itgan.latents import LatentBank
from itgan.sources import SyntheticSet


def lines_of(path):
    return describe(path).splitlines()


def test_a_bank_is_described(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    made = LatentBank(
        bank.latents, bank.labels, bank.rows, "condensed", {"loss": [3.0, 2.5]}, {"seed": 4}
    )
    made.save(path)
    lines = lines_of(path)
    assert lines[0] == str(path)
    tensors = 40 * 8 * 4 + 2 * 40 * 8
    assert lines[1] == f"{path.stat().st_size:,} bytes, of which tensors {tensors:,}"
    assert {"kind: bank", "stage: condensed", 'provenance: {"seed": 4}'} <= set(lines)
    assert "history.loss: 2 values, last 2.5" in lines
    assert any(line.split() == ["latents", "float32", "40x8"] for line in lines)
    assert any(line.split() == ["rows", "int64", "40"] for line in lines)


def test_a_history_without_values_is_described(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    LatentBank(bank.latents, bank.labels, bank.rows, "random", {"loss": []}).save(path)
    assert "history.loss: 0 values" in describe(path)


def test_a_file_does_not_write_to_the_terminal(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    odd = {"a\x1b]0;b\x07\nkind: other": [1.0], "c\x1b": [1.0, 2.0]}
    LatentBank(bank.latents, bank.labels, bank.rows, "random", odd).save(path)
    assert all(line.isprintable() for line in lines_of(path))


def test_a_generator_and_a_synthetic_set_are_described(biggan, generator, bank, tmp_path):
    path = tmp_path / "g.safetensors"
    artefacts.save(path, biggan.state_dict(), {"kind": "generator", "dataset": "digits"})
    assert "kind: generator" in lines_of(path)
    path = tmp_path / "s.itgan.safetensors"
    SyntheticSet(generator, bank, about={"dataset": "digits"}).save(path, "int8")
    lines = lines_of(path)
    assert {"kind: synthetic", "dtype: int8", f"generator: {generator.fingerprint}"} <= set(lines)
    assert any(line.split() == ["latents", "int8", "40x8"] for line in lines)


def test_a_network_is_described(images, tmp_path):
    path = tmp_path / "network.safetensors"
    config = EvaluationConfig(updates=1, batch_size=8)
    network = train_extractor(images, config, 0, torch.device("cpu"))
    save_network(path, network, NetworkSpec.of("convnet", images))
    lines = lines_of(path)
    assert "kind: network" in lines
    assert any(line.startswith("spec: {") and '"convnet"' in line for line in lines)


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_a_foreign_state_dict_is_described(tmp_path, suffix):
    path = tmp_path / f"theirs.{suffix}"
    torch.save({"weight": torch.zeros(2, 3), "step": torch.tensor(5), "epoch": 3}, path)
    lines = lines_of(path)
    assert {"kind: foreign PyTorch file", "other entries: 1"} <= set(lines)
    assert any(line.split() == ["weight", "float32", "2x3"] for line in lines)
    assert any(line.split() == ["step", "int64", "scalar"] for line in lines)


# Refusals


def refused(path):
    with pytest.raises(InputError) as error:
        describe(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["none.safetensors", "none.pt", "none", "."])
def test_a_missing_file_is_refused(tmp_path, name):
    assert refused(tmp_path / name) == "no such file"


@pytest.mark.parametrize("name", ["text.safetensors", "text.txt"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, name):
    for content in (b"", b"hello", b"\x00" * 100, b"\xff" * 9):
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name).startswith("not a readable safetensors file")


def test_a_damaged_file_is_refused(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert refused(path).startswith("damaged: its tensors do not have the recorded sha256")


def test_a_foreign_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    assert refused(path).startswith("holds more than tensors")
    torch.save([torch.zeros(1)], path)
    assert refused(path) == "holds a list, expected a state dict"
    path.write_bytes(b"not a zip file")
    assert refused(path)
