"""The ConvNet of dataset condensation: blocks of [3x3 conv, norm, activation, 2x2 pool]."""

import math
from typing import Literal, get_args

from torch import nn

from itgan.errors import InputError
from itgan.networks.base import Network, Norm, PixelConstants, make_norm, require_size

Activation = Literal["relu", "leakyrelu", "sigmoid"]
Pooling = Literal["avg", "max", "none"]


class ConvNet(Network):
    """Three blocks of 128 channels at 32 pixels; the features are the flattened last block.

    Its state dict has the family's keys: convolutions at ``features.{0,4,8}``, norms at
    ``features.{1,5,9}``, ``classifier``. Options that are "none" leave an identity in their
    place, so that the keys stay.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        mean: PixelConstants = None,
        std: PixelConstants = None,
        norm: Norm = "instance",
        width: int = 128,
        depth: int | None = None,
        activation: Activation = "relu",
        pooling: Pooling = "avg",
    ) -> None:
        """Build the layers.

        Args:
            image_shape: (c, h, w).
            num_classes: Number of logits.
            mean: See ``Network``.
            std: See ``Network``.
            norm: After each convolution.
            width: Channels of each block.
            depth: Number of blocks; by default as many as leave at least 4 pixels: 8 pixels 1, 16
                and 28 pixels 2, 32 pixels 3, 64 pixels 4.
            activation: After each norm.
            pooling: At the end of each block, halving the size.

        Raises:
            InputError: An option is unknown, or the blocks would pool below one pixel.
        """
        super().__init__(image_shape, mean, std)
        channels, height, full_width = image_shape
        if depth is None:
            depth = default_depth(image_shape)
        if width < 1 or depth < 1:
            raise InputError(f"network: convnet of width {width} and depth {depth}; both from 1")
        halvings = 0 if pooling == "none" else depth
        require_size(f"convnet of depth {depth}", image_shape, 2 ** max(halvings, 1))

        layers: list[nn.Module] = []
        for inputs in [channels] + [width] * (depth - 1):
            layers += [
                nn.Conv2d(inputs, width, 3, padding=1),
                make_norm(norm, width),
                _make_activation(activation),
                _make_pooling(pooling),
            ]
        self.features = nn.Sequential(*layers)
        self.block_ends = tuple(range(3, len(layers), 4))
        pixels = (height >> halvings) * (full_width >> halvings)
        self.classifier = nn.Linear(width * pixels, num_classes)


def default_depth(image_shape: tuple[int, int, int]) -> int:
    """The number of halvings that leave at least 4 pixels, and at least one.

    >>> [default_depth((3, side, side)) for side in (8, 16, 28, 32, 64)]
    [1, 2, 2, 3, 4]
    """
    return max(1, int(math.log2(min(image_shape[1:]) / 4)))


def _make_activation(name: Activation) -> nn.Module:
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "leakyrelu":
        return nn.LeakyReLU(0.01, inplace=True)
    if name == "sigmoid":
        return nn.Sigmoid()
    raise InputError(f"activation: {name!r} is none of {', '.join(get_args(Activation))}")


def _make_pooling(name: Pooling) -> nn.Module:
    if name == "avg":
        return nn.AvgPool2d(2)
    if name == "max":
        return nn.MaxPool2d(2)
    if name == "none":
        return nn.Identity()
    raise InputError(f"pooling: {name!r} is none of {', '.join(get_args(Pooling))}")
