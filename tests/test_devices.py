from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from itgan import devices
from itgan.baselines import distribution_matching
from itgan.condensation import condense
from itgan.configs import (
    CondensationConfig,
    EncoderConfig,
    EvaluationConfig,
    InversionConfig,
    PoolConfig,
)
from itgan.devices import autocast, knows_bf16, pick_device
from itgan.embedding import train_pool
from itgan.errors import InputError
from itgan.evaluation import evaluate
from itgan.generators.frozen import fold
from itgan.inversion import invert
from itgan.sources import SyntheticSet

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
    monkeypatch.setattr(devices, "knows_bf16", lambda device: device != CPU)
    devices._tell.cache_clear()
    x = torch.ones(2, 2)
    for precision in ("fp32", "auto", "bf16", "bf16"):
        with autocast(CPU, precision):
            assert (x @ x).dtype == torch.float32
    said = capsys.readouterr().err
    assert said == "precision bf16: cpu has no instructions for it, so fp32 takes its place\n"


@pytest.mark.parametrize(
    ("told", "built", "known"),
    [
        ({"avx2": True, "avx512_bf16": False}, True, False),
        ({"avx512_f": True, "avx512_bf16": True}, True, True),
        ({"amx_bf16": True}, True, True),
        ({"neon": True, "bf16": True}, True, True),
        ({"neon": True, "bf16": True}, False, False),
        ({"neon": True}, True, False),
        (None, True, True),  # an older PyTorch
    ],
)
def test_a_processor_knows_bf16_by_its_instructions(told, built, known, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: built)
    if told is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    assert knows_bf16.__wrapped__(CPU) == known


@pytest.mark.parametrize(
    ("major", "hip", "known"), [(7, None, False), (8, None, True), (7, "6.0", True)]
)
def test_a_gpu_knows_bf16_by_its_generation(major, hip, known, monkeypatch):
    asked = torch.device("cuda:1")
    properties = {asked: SimpleNamespace(major=major)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert knows_bf16.__wrapped__(asked) == known


class WithoutDouble(TorchDispatchMode):
    """Stands for a device that has no fp64, as Apple's: what becomes it must be on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
        host = all(getattr(a, "on_host", False) for a in given if a.dtype != torch.float64)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            assert host, f"{func} makes fp64 on the device"
        return result


@pytest.fixture
def without_double(monkeypatch) -> Iterator[None]:
    def cpu(tensor):
        moved = tensor.view_as(tensor)
        moved.on_host = True
        return moved

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    with WithoutDouble():
        yield


BRIEF = EvaluationConfig(updates=2, batch_size=8, augmentation="none")


@pytest.mark.usefixtures("without_double")
def test_the_mode_sees_what_it_must():
    with pytest.raises(AssertionError, match="fp64 on the device"):
        torch.ones(2).double()
    torch.ones(2).cpu().double()


@pytest.mark.usefixtures("without_double")
@pytest.mark.parametrize("changes", [{"basis": "principal"}, {"start": "encoder"}])
def test_inversion_needs_no_fp64_on_the_device(generator, images, changes):
    fields = {"steps": 2, "tolerance": 0.1, "window": 1, "extractor": BRIEF, **changes}
    config = InversionConfig(**fields, encoder=EncoderConfig(pair_steps=1, refine_steps=1))
    invert(generator, images, config)


@pytest.mark.usefixtures("without_double")
@pytest.mark.parametrize("matching", ["distribution", "regression", "gradient"])
def test_condensation_needs_no_fp64_on_the_device(generator, bank, images, matching):
    fields = {"steps": 2, "basis": "principal", "matching": matching, "average": 0.5}
    condense(generator, bank, images, CondensationConfig(**fields, gains_rate=0.01))
    distribution_matching(images, images, CondensationConfig(steps=1, matching=matching))


@pytest.mark.usefixtures("without_double")
def test_networks_and_generators_need_no_fp64_on_the_device(generator, bank, biggan, digits):
    pool = PoolConfig(kind="snapshots", networks=1, snapshots=2, training=BRIEF)
    images = digits.train.select(range(80))
    train_pool(images, "convnet", pool, 0, CPU)
    evaluate(SyntheticSet(generator, bank), images, BRIEF, seeds=[0])
    fold(biggan)
