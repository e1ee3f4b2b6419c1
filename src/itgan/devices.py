"""Where tensors live and how wide their arithmetic is."""

import contextlib
import functools
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from itgan.errors import InputError
from itgan.progress import say

Module = TypeVar("Module", bound=nn.Module)
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, and of ARM


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is cuda, then mps, then cpu.

    Raises:
        InputError: the device is unknown or not present.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    refusal = InputError(f"device {name!r} cannot be used here; give auto, cpu, cuda or mps")
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise refusal
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise refusal from error
    return device


def resolve_precision(device: torch.device, precision: str) -> str:
    """``auto`` is bf16 on an NVIDIA GPU and fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor of the host to a device; to an NVIDIA GPU without waiting for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def send_module(module: Module, device: torch.device) -> Module:
    """The same for all weights and buffers, in place."""
    return module._apply(lambda tensor: send(tensor, device))


@functools.cache
def knows_bf16(device: torch.device) -> bool:
    """Whether bf16 is worth having there: some processors and older GPUs only imitate it.

    A processor without instructions for it takes several times as long in bf16 as in fp32.
    """
    if device.type == "cuda":
        return bool(torch.version.hip) or torch.cuda.get_device_properties(device).major >= 8
    if device.type == "cpu":
        # PyTorch before 2.10 does not tell what the processor can.
        told = getattr(torch.cpu, "get_capabilities", dict)()
        able = not told or any(told.get(name) for name in BF16_INSTRUCTIONS)
        return able and torch.backends.mkldnn.is_available()
    return torch.amp.is_autocast_available(device.type)


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run in bf16 where ``precision``, resolved, says so, and in fp32 where the device cannot."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    bf16 = resolve_precision(device, precision) == "bf16"
    if bf16 and not knows_bf16(device):
        _tell(device)
        bf16 = False
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        yield


@functools.cache
def _tell(device: torch.device) -> None:
    say(f"precision bf16: {device} has no instructions for it, so fp32 takes its place")
