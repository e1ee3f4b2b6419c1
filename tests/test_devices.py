import pytest
import torch

from itgan import devices
from itgan.devices import autocast, knows_bf16, pick_device
from itgan.errors import InputError

CPU = torch.device("cpu")


def test_auto_takes_the_best_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == CPU


def test_a_named_device():
    assert pick_device("cpu") == CPU


# meta holds no numbers, hpu would import a module that is not there, mkldnn warns
@pytest.mark.parametrize("name", ["", "gpu", "cpu:x", "cuda:99", "meta", "hpu", "mkldnn", "xla"])
def test_devices_that_cannot_be_used_are_named(name):
    with pytest.raises(InputError, match=rf"^device '{name}' cannot be used here; give auto, cpu"):
        pick_device(name)


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_precision_on_a_cpu(precision, dtype):
    x = torch.ones(2, 2)
    with autocast(CPU, precision):
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


def test_where_bf16_has_no_instructions_it_is_fp32_and_said_once(monkeypatch, capsys):
    monkeypatch.setattr(devices, "knows_bf16", lambda kind: kind != "cpu")
    devices._tell.cache_clear()
    x = torch.ones(2, 2)
    for precision in ("fp32", "auto", "bf16", "bf16"):
        with autocast(CPU, precision):
            assert (x @ x).dtype == torch.float32
    assert capsys.readouterr().err.count("precision=bf16: this cpu has no instructions") == 1


def test_a_cpu_knows_bf16_by_what_its_convolutions_are_built_on(monkeypatch):
    knows_bf16.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not knows_bf16("cpu")
    knows_bf16.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert knows_bf16("cpu") == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    knows_bf16.cache_clear()
