"""What all networks share: they normalise, then augment, then embed, then classify."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from itgan.augment import Augmentation, Blocks, siamese
from itgan.errors import InputError

Norm = Literal["instance", "batch", "group", "none"]
PixelConstants = Tensor | Sequence[float] | float | None

GROUPS = 4  # of a group norm, whatever the number of channels


class Network(nn.Module):
    """A classifier of images in [-1, 1] that owns its normalisation.

    A subclass sets ``features`` (images to anything that flattens to [n, d]) and ``classifier``.
    Whoever trains it notes in ``trained_on`` which images it has seen (``ImageSet.record``).
    """

    mean: Tensor
    std: Tensor
    features: nn.Module
    classifier: nn.Module
    block_ends: tuple[int, ...] = ()
    """Positions in ``features`` at which a block ends, the last one at its end; () if unknown."""
    compilable = True
    """Whether ``torch.compile`` can follow ``embed_prepared``."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        mean: PixelConstants = None,
        std: PixelConstants = None,
    ) -> None:
        """Keep the constants.

        Args:
            image_shape: (c, h, w).
            mean: Per channel or one for all, in [0, 1] pixel units; None is 0.5.
            std: As ``mean``. With both at 0.5 pixels pass unchanged.

        Raises:
            InputError: The constants do not fit the channels, or ``std`` is not positive.
        """
        super().__init__()
        self.image_shape = self.accepts = tuple(image_shape)
        self.trained_on: Mapping[str, Any] = {}
        # Not persistent: state dicts keep the keys that the field uses.
        for field, value in (("mean", mean), ("std", std)):
            constants = _per_channel(field, value, image_shape[0])
            self.register_buffer(field, constants, persistent=False)
        if not bool((self.std > 0).all()):
            raise InputError(f"std: {self.std.flatten().tolist()} must be positive")

    def normalise(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c H W"]:
        """Bring images from [-1, 1] to the space that the features see: ((x + 1)/2 - mean) / std.

        A network that was built to enlarge what it ``accepts`` does so here, bilinearly.

        Raises:
            ValueError: The images have another shape than the network was built for.
        """
        if tuple(images.shape[1:]) != self.accepts:
            raise ValueError(
                f"images of shape {tuple(images.shape[1:])} given to a network for {self.accepts}"
            )
        prepared = (images - (2 * self.mean - 1)) / (2 * self.std)  # exact at 0.5
        if self.accepts == self.image_shape:
            return prepared
        return F.interpolate(prepared, self.image_shape[1:], mode="bilinear")

    def embed(
        self,
        images: Float[Tensor, "n c h w"],
        augmentation: Augmentation | Blocks | None = None,
    ) -> Float[Tensor, "n d"]:
        """Flattened features just before the classifier."""
        return self.embed_prepared(siamese(self.normalise(images), augmentation))

    def embed_prepared(self, prepared: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of images that are normalised and augmented already."""
        return self.features(prepared).flatten(1)

    def embed_blocks(self, prepared: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features after every block, side by side, of images that are prepared already.

        Those of block l are multiplied by sqrt(d_last / d_l), so that in a squared distance each
        block counts as if it had as many features as the last one:

            || a - b ||^2 = sum over l of d_last / d_l || a_l - b_l ||^2

        Raises:
            InputError: the blocks are not known, as those of ``module:callable``.
        """
        self.require_blocks()
        blocks, x = [], prepared
        for position, layer in enumerate(self.features):  # type: ignore[arg-type]
            x = layer(x)
            if position in self.block_ends:
                blocks.append(x.flatten(1))
        last = blocks[-1].shape[1]
        return torch.cat([b * math.sqrt(last / b.shape[1]) for b in blocks], 1)

    def require_blocks(self) -> None:
        """Refuse a network whose blocks are not known.

        Raises:
            InputError: they are not.
        """
        if not self.block_ends:
            raise InputError(
                "network: the blocks of this one are not known, so layers=all cannot match them; "
                "take a built-in network, or layers=last"
            )

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        augmentation: Augmentation | Blocks | None = None,
    ) -> Float[Tensor, "n classes"]:
        """Logits of images in [-1, 1]."""
        return self.logits(siamese(self.normalise(images), augmentation))

    def logits(self, prepared: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of images that are normalised and augmented already."""
        return self.classify(self.features(prepared).flatten(1))

    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Logits of embedded images."""
        return self.classifier(features)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """A norm with affine parameters; "none" is the identity.

    Instance norm is written as a group norm with one channel in each group, as the family of
    dataset condensation does; "group" has four groups.

    Raises:
        InputError: The kind is unknown, or the channels do not divide into four groups.
    """
    if kind == "instance":
        return nn.GroupNorm(channels, channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    if kind != "group":
        raise InputError(f"norm: {kind!r} is none of {', '.join(get_args(Norm))}")
    if channels % GROUPS:
        raise InputError(f"norm: 'group' needs widths that {GROUPS} divides, not {channels}")
    return nn.GroupNorm(GROUPS, channels)


def make_conv(
    norm: Norm, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the size, halved by a stride of 2.

    The norm that follows brings the bias; without a norm the convolution has its own.
    """
    return nn.Conv2d(
        inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=norm == "none"
    )


def require_size(network: str, image_shape: tuple[int, int, int], least: int) -> None:
    """Refuse images so small that the network would pool below one pixel.

    Raises:
        InputError: A side is shorter than ``least``; the message names it.
    """
    if min(image_shape[1:]) < least:
        raise InputError(
            f"network: {network} needs images of at least {least}x{least} pixels, "
            f"not {image_shape[1]}x{image_shape[2]}; take larger images or a smaller network"
        )


def least_at_stride(norm: Norm, stride: int) -> int:
    """The least side of images that reach the last norm divided by ``stride``.

    One pixel must be left; for instance norm two, since over a single one it is constant.
    """
    return stride * (2 if norm == "instance" else 1)


def couples_images(network: nn.Module) -> bool:
    """Whether, in training, an image's features depend on its batch: by a batch norm."""
    kinds = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kinds) for module in network.modules())


def _per_channel(field: str, value: PixelConstants, channels: int) -> Float[Tensor, "c 1 1"]:
    constants = torch.as_tensor(0.5 if value is None else value, dtype=torch.float32, device="cpu")
    constants = constants.flatten()
    if len(constants) not in (1, channels):
        raise InputError(
            f"{field}: {len(constants)} values for images of {channels} channels; give one each"
        )
    return constants.detach().expand(channels).clone().view(-1, 1, 1)
