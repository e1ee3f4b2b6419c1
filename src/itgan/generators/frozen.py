"""A trained BigGAN as the plain feed-forward network that it is once frozen.

Spectral norms, running statistics and class-conditional gains fold into constants:

    conditional norm    (x - mean) / sqrt(var + eps) * (1 + gain[y]) + bias[y]
                      = x * scale[y] + shift[y]            two tables with a row for each class
    spectral norm       weight / sigma                     divided once

The 1x1 skip convolution runs before its nearest up-sampling, with which it commutes; and nearest
up-sampling with the 3x3 convolution after it is one transposed convolution, with 2.25 times fewer
products.
"""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from itgan.artefacts import digest
from itgan.errors import InputError
from itgan.generators.biggan import BN_EPS, MOST_PIXELS, BigGAN, BigGANShape, power_step

CLASSWISE = ("bn1", "bn2")  # the norms of a block; their tables have a row for each class


def fold(model: BigGAN) -> dict[str, Tensor]:
    """The constants of a BigGAN in evaluation mode."""
    folded: dict[str, Tensor] = {}

    def layer(name: str, module: nn.Module) -> None:
        weight = module.weight.detach()  # type: ignore[operator]
        # In fp64, so that the rounded sigma, and with it the fingerprint, is the same on every
        # processor.
        u0: Tensor = module.u0  # type: ignore[assignment]
        _, sigma = power_step(weight.cpu().double().flatten(1), u0.cpu().double())
        folded[f"{name}.weight"] = weight / sigma.float().to(weight.device)
        folded[f"{name}.bias"] = module.bias.detach()  # type: ignore[union-attr]

    def norm(name: str, module: nn.Module, gain: Tensor, bias: Tensor) -> None:
        scale = gain * (module.stored_var + BN_EPS).rsqrt()  # type: ignore[operator]
        folded[f"{name}.scale"] = scale.detach()
        folded[f"{name}.shift"] = (bias - module.stored_mean * scale).detach()  # type: ignore[operator]

    was_training = model.training
    model.eval()
    layer("linear", model.linear)
    for i, (block,) in enumerate(model.blocks):  # type: ignore[misc]
        for conv in ("conv1", "conv2", "conv_sc"):
            layer(f"blocks.{i}.{conv}", getattr(block, conv))
        for bn in CLASSWISE:
            module = getattr(block, bn)
            norm(f"blocks.{i}.{bn}", module, 1 + module.gain.weight, module.bias.weight)
    last, _, conv = model.output_layer
    norm("output.bn", last, last.gain, last.bias)  # type: ignore[arg-type]
    layer("output.conv", conv)
    model.train(was_training)
    return {name: tensor.clone() for name, tensor in folded.items()}


def upsampling_kernel(weight: Float[Tensor, "o i 3 3"]) -> Float[Tensor, "i o 4 4"]:
    """The transposed convolution (stride 2, padding 1) of nearest x2 up-sampling, then ``weight``.

    A pixel that up-sampling spreads over 2x2 places meets the 3x3 kernel at each: together 4x4.
    """
    wide = F.pad(weight, (1, 1, 1, 1))
    wide = wide[:, :, :-1] + wide[:, :, 1:]
    return (wide[..., :-1] + wide[..., 1:]).flip(2, 3).transpose(0, 1)


class FrozenGenerator(nn.Module):
    """A class-conditional generator without anything left to learn.

    Attributes:
        latent_shape: (d,).
        num_classes: number of labels.
        image_shape: (c, h, w).
        compilable: ``torch.compile`` can follow it.
    """

    compilable = True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the constants of ``fold``, in any float type; arithmetic is fp32.

        Raises:
            InputError: tensors are missing or do not fit together.
        """
        super().__init__()
        try:
            self.num_classes, width = tensors["blocks.0.bn1.scale"].shape
            self.latent_shape: tuple[int, ...] = (tensors["linear.weight"].shape[1],)
            blocks = len({n.split(".")[1] for n in tensors if n.startswith("blocks.")})
            size = 4 << min(blocks, 20)  # refused anyway beyond
            self.image_shape = (tensors["output.conv.weight"].shape[0], size, size)
            expected = _layout(
                width, self.num_classes, *self.latent_shape, blocks, self.image_shape[0]
            )
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(
                f"not a frozen generator: a tensor is missing or misshapen ({error})"
            ) from error
        found = {name: tuple(t.shape) for name, t in tensors.items()}
        if found != expected:
            wrong = sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))
            raise InputError(f"frozen generator: tensor {wrong[0]} is missing, extra or misshapen")
        if size > MOST_PIXELS:
            raise InputError(
                f"frozen generator: images of {size} pixels; up to {MOST_PIXELS} here"
            )
        bad = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
        if bad:
            raise InputError(
                f"frozen generator: tensor {min(bad)} holds NaN or infinity; train it anew"
            )
        self.blocks = blocks
        self._names = sorted(tensors)
        for name, tensor in tensors.items():
            value = tensor.detach().float().clone()
            if value.ndim == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            self.register_buffer(name.replace(".", "_"), value)
        for i in range(blocks):
            kernel = upsampling_kernel(self._get(f"blocks.{i}.conv1.weight"))
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"blocks_{i}_up", kernel, persistent=False)

    @classmethod
    def from_biggan(cls, model: BigGAN) -> "FrozenGenerator":
        """Freeze a trained model."""
        return cls(fold(model))

    @property
    def device(self) -> torch.device:
        """Where the constants are."""
        return self._get("linear.weight").device

    def tensors(self) -> dict[str, Tensor]:
        """The constants by name: what a file stores."""
        return {name: self._get(name) for name in self._names}

    def tables(self) -> dict[str, Float[Tensor, "classes width"]]:
        """The class-conditional constants by name: ``blocks.I.bnK.scale`` and ``.shift``."""
        return {name: self._get(name) for name in self._names if name.split(".")[-2] in CLASSWISE}

    def with_tables(self, tables: Mapping[str, Tensor]) -> "FrozenGenerator":
        """The same generator with these class tables; all else is shared with this one.

        The tables are not copied, and images are differentiable in those that are leaves.

        Raises:
            InputError: a table is none of this generator's, or of another shape.
        """
        own = self.tables()
        wrong = [n for n, t in tables.items() if n not in own or t.shape != own[n].shape]
        if wrong:
            raise InputError(
                f"class tables: {min(wrong)!r} of shape {tuple(tables[min(wrong)].shape)} does "
                "not fit this generator; use the one that the bank was made with"
            )
        tuned = copy.copy(self)
        changed = {n.replace(".", "_"): t.to(self.device) for n, t in tables.items()}
        tuned._buffers = {**self._buffers, **changed}
        tuned.__dict__.pop("fingerprint", None)  # that of other constants
        return tuned

    def reduced(self, latent_dim: int) -> "FrozenGenerator":
        """The same generator on the latent directions that its first layer amplifies most.

        With W = U S V^T and the first k columns of V, images(a) = G(V_k a): the first layer
        becomes W V_k, and a ~ N(0, I) in k dimensions is what the others see of z ~ N(0, I).

        Raises:
            InputError: there are not so many directions.
        """
        weight = self._get("linear.weight").cpu().double()
        _, _, directions = torch.linalg.svd(weight, full_matrices=False)
        if not 0 < latent_dim <= len(directions):
            raise InputError(
                f"latent_dim={latent_dim}: this generator has {len(directions)}; give at most that"
            )
        kept = directions[:latent_dim]  # k d
        largest = kept.gather(1, kept.abs().argmax(1, keepdim=True))
        narrow = weight @ (kept * largest.sign()).T  # a direction's sign is arbitrary
        # Rounded to 1e-6, so that the fingerprint is hardly ever another processor's.
        narrow = (narrow * 2**20).round() / 2**20
        return FrozenGenerator({**self.tensors(), "linear.weight": narrow.float()}).to(self.device)

    def conventions(self) -> dict[str, Any]:
        """What a file must say beside the constants."""
        return {"form": "biggan"}

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the constants."""
        return digest(self.tensors())

    def forward(
        self, latents: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Images in [-1, 1]; differentiable in the latents."""
        h = F.linear(latents, self._get("linear.weight"), self._get("linear.bias"))
        h = h.unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)  # n w 4 4
        for i in range(self.blocks):
            skip = self._conv(f"blocks.{i}.conv_sc", h)
            h = F.relu(self._norm(f"blocks.{i}.bn1", h, labels))
            kernel, bias = self._get(f"blocks.{i}.up"), self._get(f"blocks.{i}.conv1.bias")
            h = F.conv_transpose2d(h, kernel, bias, stride=2, padding=1)  # n w 2h 2h
            h = self._conv(f"blocks.{i}.conv2", F.relu(self._norm(f"blocks.{i}.bn2", h, labels)))
            h = h + F.interpolate(skip, scale_factor=2)
        scale, shift = self._get("output.bn.scale"), self._get("output.bn.shift")
        h = F.relu(
            torch.addcmul(shift[:, None, None].to(h.dtype), h, scale[:, None, None].to(h.dtype))
        )
        return torch.tanh(self._conv("output.conv", h).float())

    def _get(self, name: str) -> Tensor:
        return getattr(self, name.replace(".", "_"))

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight = self._get(f"{name}.weight")
        return F.conv2d(x, weight, self._get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def _norm(self, name: str, x: Tensor, labels: Tensor) -> Tensor:
        scale = self._get(f"{name}.scale")[labels].to(x.dtype)[..., None, None]  # n w 1 1
        shift = self._get(f"{name}.shift")[labels].to(x.dtype)[..., None, None]
        return torch.addcmul(shift, x, scale)


def folded_shapes(shape: BigGANShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every constant of a frozen BigGAN."""
    width, classes, latent = shape.width, shape.num_classes, shape.latent_dim
    return _layout(width, classes, latent, shape.blocks, shape.image_shape[0])


def _layout(
    width: int, classes: int, latent: int, blocks: int, colours: int
) -> dict[str, tuple[int, ...]]:
    layout: dict[str, tuple[int, ...]] = {
        "linear.weight": (16 * width, latent),
        "linear.bias": (16 * width,),
        "output.bn.scale": (width,),
        "output.bn.shift": (width,),
        "output.conv.weight": (colours, width, 3, 3),
        "output.conv.bias": (colours,),
    }
    for i in range(blocks):
        for conv, size in (("conv1", 3), ("conv2", 3), ("conv_sc", 1)):
            layout[f"blocks.{i}.{conv}.weight"] = (width, width, size, size)
            layout[f"blocks.{i}.{conv}.bias"] = (width,)
        for bn in CLASSWISE:
            layout[f"blocks.{i}.{bn}.scale"] = (classes, width)
            layout[f"blocks.{i}.{bn}.shift"] = (classes, width)
    return layout
