"""Networks in one compiled form for each architecture, whatever their weights and batch size.

On a CPU the instance norms of a ConvNet cost more than its convolutions; compiled, they run
together with what surrounds them. A C++ compiler is needed; without one, or where compiling
fails, the network runs as it is written, with the same result within rounding. Networks that a
compiler may not follow (``compilable`` is false or missing) always do.
"""

import functools
import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from itgan.augment import Augmentation, Blocks, siamese
from itgan.configs import Layers
from itgan.generators import ConditionalGenerator
from itgan.networks import Network
from itgan.progress import say

MOST_FORMS = 256  # of a function: architectures, with and without gradients, in each precision
Form = Callable[..., Any]


def generate(
    generator: ConditionalGenerator,
    latents: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    *,
    compiled: bool,
) -> Float[Tensor, "n c h w"]:
    """As ``generator(latents, labels)``."""
    if not (compiled and _follows(generator, latents)):
        return generator(latents, labels)
    return _run(_generate, generator, latents, labels)


def embed(
    network: Network,
    images: Float[Tensor, "n c h w"],
    augmentation: Augmentation | Blocks | None = None,
    layers: Layers = "last",
    *,
    compiled: bool,
) -> Float[Tensor, "n d"]:
    """As ``network.embed``; of all layers as ``network.embed_blocks``."""
    if compiled and _follows(network, images):
        form = _embed if layers == "last" else _embed_blocks
        return _run(form, network, siamese(network.normalise(images), augmentation))
    if layers == "last":
        return network.embed(images, augmentation)
    return network.embed_blocks(siamese(network.normalise(images), augmentation))


def logits(
    network: Network, prepared: Float[Tensor, "n c h w"], *, compiled: bool
) -> Float[Tensor, "n classes"]:
    """As ``network.logits``."""
    if not (compiled and _follows(network, prepared)):
        return network.logits(prepared)
    return _run(_logits, network, prepared)


def hastened(function: Form, device: torch.device) -> Form:
    """As ``function``, compiled where that is possible: a network that is trained, or its method.

    Every shape gets a form of its own, whichever came before, so that a training which goes on
    after a kill rounds as an unbroken one does.
    """
    if not _can_compile(device.type):
        return function
    _forgive()
    return torch.compile(function, dynamic=False)


def _generate(generator: ConditionalGenerator, latents: Tensor, labels: Tensor) -> Tensor:
    return generator(latents, labels)


def _embed(network: Network, prepared: Tensor) -> Tensor:
    return network.embed_prepared(prepared)


def _embed_blocks(network: Network, prepared: Tensor) -> Tensor:
    return network.embed_blocks(prepared)


def _logits(network: Network, prepared: Tensor) -> Tensor:
    return network.logits(prepared)


def _run(function: Form, network: object, *inputs: Tensor) -> Tensor:
    inputs = tuple(x.contiguous() for x in inputs)  # one form for every layout
    for x in inputs:
        torch._dynamo.maybe_mark_dynamic(x, 0)  # and every batch size
    return _compile(function)(network, *inputs)


def _follows(network: object, images: Tensor) -> bool:
    return getattr(network, "compilable", False) and _can_compile(images.device.type)


@functools.cache
def _can_compile(device: str) -> bool:
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return device == "cuda" or (device == "cpu" and shutil.which(compiler) is not None)


@functools.cache
def _forgive() -> None:
    """What fails to compile runs as it is written, the backward pass too, after one line."""
    torch._dynamo.config.suppress_errors = True
    if hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):  # of newer PyTorch
        torch._functorch.config.force_non_lazy_backward_lowering = True  # where it is forgiven
    if "TORCH_LOGS" not in os.environ:
        logging.getLogger("torch._dynamo.convert_frame").addFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    """Drop PyTorch's hundred lines about each function that did not compile."""
    if record.levelno != logging.WARNING or not record.exc_info:
        return True
    _say_once()
    return False


@functools.cache
def _say_once() -> None:
    say("what cannot be compiled runs as it is written, slower; TORCH_LOGS=+dynamo tells why")


@functools.cache
def _compile(function: Form) -> Form:
    torch._dynamo.config.recompile_limit = MOST_FORMS  # beyond it networks would run uncompiled
    _forgive()
    return torch.compile(function)
