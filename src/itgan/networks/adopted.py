"""Any other classifier as a network: named ``module:callable``, given our normalisation."""

import hashlib
import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from itgan.errors import InputError
from itgan.networks.base import Network, PixelConstants


class AdoptedNetwork(Network):
    """A foreign module from normalised images to logits.

    Its embedding is its own method ``embed`` where it has one, else what enters its last linear
    layer with an output for each class. Both are tried on two blank images when it is adopted.
    """

    compilable = False  # the embedding may be caught by a hook

    def __init__(
        self,
        model: nn.Module,
        name: str,
        image_shape: tuple[int, int, int],
        num_classes: int,
        mean: PixelConstants = None,
        std: PixelConstants = None,
    ) -> None:
        """Take the module in, and try it.

        Args:
            model: The module.
            name: What messages call it.
            image_shape: (c, h, w).
            num_classes: Number of logits.
            mean: See ``Network``.
            std: See ``Network``.

        Raises:
            InputError: The module does not return logits, or has no embedding to be found.
        """
        super().__init__(image_shape, mean, std)
        self.model = model
        heads = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear) and module.out_features == num_classes
        ]
        if not callable(getattr(model, "embed", None)) and not heads:
            raise InputError(
                f"network: {name} has neither embed() nor a linear layer of {num_classes} "
                "outputs; give it embed()"
            )
        # A list hides the layer from the module tree, where it already has its place.
        self._head = heads[-1:]
        self._check(name, num_classes)

    def embed_prepared(self, prepared: Tensor) -> Tensor:
        """Features [n, d]: the module's own, or its last layer's input."""
        own = getattr(self.model, "embed", None)
        if callable(own):
            return own(prepared).flatten(1)
        caught: list[Tensor] = []
        hook = self._head[0].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            self.model(prepared)
        finally:
            hook.remove()
        if not caught:
            raise RuntimeError("its last linear layer is never called; give it embed()")
        return caught[-1].flatten(1)

    def logits(self, prepared: Tensor) -> Tensor:
        """Logits of images that are normalised and augmented already."""
        return self.model(prepared)

    def classify(self, features: Tensor) -> Tensor:
        """Logits of embedded images, by the last layer.

        Raises:
            InputError: The module has an ``embed`` of its own and no known last layer.
        """
        if callable(getattr(self.model, "embed", None)) or not self._head:
            raise InputError(
                "network: gradient matching must know the layer after the embedding; take a "
                "built-in network or a module without embed() that ends in a linear layer"
            )
        return self._head[0](features)

    @torch.no_grad()
    def _check(self, name: str, num_classes: int) -> None:
        images = torch.zeros(2, *self.image_shape)
        training = self.model.training
        self.model.eval()  # running statistics stay as they are
        try:
            logits, features = self(images), self.embed(images)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"network: {name} fails on images of shape {self.image_shape}: {reason}"
            ) from error
        finally:
            self.model.train(training)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (2, num_classes):
            raise InputError(
                f"network: {name} gives {shape} for 2 images; it must give logits "
                f"{(2, num_classes)}"
            )
        if features.dim() != 2 or len(features) != 2:
            raise InputError(f"network: {name} gives no features of 2 images; give it embed()")


def code_of(name: str) -> dict[str, Any]:
    """A hash of the module that a network named ``module:callable`` comes from; {} for ours.

    What is trained with the network depends on it: a result must not outlive a change of the code.

    Raises:
        InputError: It cannot be imported.
    """
    module_name, colon, _ = name.partition("@")[0].partition(":")
    if not colon:
        return {}
    try:
        source = inspect.getsource(importlib.import_module(module_name))
    except ImportError as error:
        raise InputError(
            f"network: cannot import {name!r} ({error}); is it installed or on PYTHONPATH?"
        ) from error
    except (OSError, TypeError):  # compiled code has no source
        return {}
    return {"code": hashlib.sha256(source.encode()).hexdigest()}


def adopt(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: PixelConstants = None,
    std: PixelConstants = None,
) -> AdoptedNetwork:
    """Import ``module:callable``, call it with ``image_shape`` and ``num_classes``, and adopt it.

    Raises:
        InputError: It cannot be imported, is no callable, or does not return a fitting module.
    """
    module_name, _, attribute = name.partition(":")
    try:
        build = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"network: cannot import {name!r} ({error}); is it installed or on PYTHONPATH?"
        ) from error
    if not callable(build):
        raise InputError(f"network: {name} is not a callable that builds a torch module")
    model = build(image_shape=image_shape, num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"network: {name} returns {type(model).__name__}, not a torch module")
    return AdoptedNetwork(model, name, image_shape, num_classes, mean, std)
