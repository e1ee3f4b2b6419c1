"""Where tensors live and how wide their arithmetic is."""

import contextlib
from collections.abc import Iterator

import torch

from itgan.errors import InputError


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


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run in bf16 where ``precision`` says so; ``auto`` is fp32 on a CPU, bf16 on a GPU."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        yield
