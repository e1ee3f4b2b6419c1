"""Randomness is passed, never ambient: every stream is derived from a seed and a path."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed that depends on the root seed and on every element of the path.

    >>> derive_seed(0, "augmentation", 3) == derive_seed(0, "augmentation", 3)
    True
    >>> derive_seed(0, "augmentation", 3) == derive_seed(0, "augmentation", 4)
    False
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(p).__name__}:{p}" for p in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator for one purpose, say ``derive(seed, "augmentation", class, step)``.

    Streams live on the CPU whatever the device, so that a seed means the same everywhere; since
    each step derives its own, a resumed loop needs no stored random state.
    """
    return torch.Generator().manual_seed(derive_seed(seed, *path))


@contextlib.contextmanager
def ambient(device: torch.device, seed: int, *path: int | str) -> Iterator[None]:
    """For what asks nobody for its stream, say dropout: torch's own state follows from the path.

    Outside the block that state is as it was.
    """
    accelerated = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if accelerated else []):
        torch.default_generator.manual_seed(own := derive_seed(seed, *path))
        if accelerated:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        yield
