"""Networks in one compiled form for each architecture, whatever their weights and batch size.

On a CPU the instance norms of a ConvNet cost more than its convolutions; compiled, they run
together with what surrounds them. A C++ compiler is needed; without one, or where compiling
fails, the network runs as it is written, with the same result within rounding.
"""

import functools
import shutil
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from itgan.augment import Augmentation, Blocks, siamese
from itgan.networks import Network

MOST_FORMS = 256  # of a function: architectures, with and without gradients, in each precision
Form = Callable[[Network, Tensor], Tensor]


def embed(
    network: Network,
    images: Float[Tensor, "n c h w"],
    augmentation: Augmentation | Blocks | None = None,
    *,
    compiled: bool,
) -> Float[Tensor, "n d"]:
    """As ``network.embed``."""
    if not (compiled and network.compilable and _can_compile(images.device.type)):
        return network.embed(images, augmentation)
    return _run(_embed, network, siamese(network.normalise(images), augmentation))


def logits(
    network: Network, prepared: Float[Tensor, "n c h w"], *, compiled: bool
) -> Float[Tensor, "n classes"]:
    """As ``network.logits``."""
    if not (compiled and _can_compile(prepared.device.type)):
        return network.logits(prepared)
    return _run(_logits, network, prepared)


def _embed(network: Network, prepared: Tensor) -> Tensor:
    return network.embed_prepared(prepared)


def _logits(network: Network, prepared: Tensor) -> Tensor:
    return network.logits(prepared)


def _run(function: Form, network: Network, prepared: Tensor) -> Tensor:
    prepared = prepared.contiguous()  # one form for every layout
    torch._dynamo.maybe_mark_dynamic(prepared, 0)  # and every batch size
    return _compile(function)(network, prepared)


@functools.cache
def _can_compile(device: str) -> bool:
    return device == "cuda" or (device == "cpu" and any(map(shutil.which, ("c++", "g++"))))


@functools.cache
def _compile(function: Form) -> Form:
    torch._dynamo.config.recompile_limit = MOST_FORMS  # beyond it networks would run uncompiled
    torch._dynamo.config.suppress_errors = True
    return torch.compile(function)
