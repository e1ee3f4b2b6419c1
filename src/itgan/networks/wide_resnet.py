"""WRN-16-8: a wide residual network of depth 16 and widening 8, pre-activation blocks.

Zagoruyko and Komodakis, "Wide residual networks".
"""

from torch import Tensor, nn

from itgan.networks.base import (
    Network,
    Norm,
    PixelConstants,
    least_at_stride,
    make_conv,
    make_norm,
    require_size,
)

STEM = 16
STAGES = ((128, 1), (256, 2), (512, 2))  # 8 times (16, 32, 64) channels, stride
BLOCKS = 2  # (depth 16 - 4) / 6


class WRN16x8(Network):
    """10,961,370 parameters for 10 classes; 512 features; images from 4 pixels (instance: 8)."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        mean: PixelConstants = None,
        std: PixelConstants = None,
        norm: Norm = "batch",
    ) -> None:
        """Build the layers.

        Args:
            image_shape: (c, h, w).
            num_classes: Number of logits.
            mean: See ``Network``.
            std: See ``Network``.
            norm: Before each convolution of a block, and after the last block.

        Raises:
            InputError: The images are too small.
        """
        super().__init__(image_shape, mean, std)
        require_size(f"wrn-16-8 with {norm} norm", image_shape, least_at_stride(norm, 4))
        inputs = STEM
        layers: list[nn.Module] = [make_conv(norm, image_shape[0], STEM, 3)]
        for width, stride in STAGES:
            for block in range(BLOCKS):
                layers.append(WideBlock(norm, inputs, width, stride if block == 0 else 1))
                inputs = width
        layers += [make_norm(norm, inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
        self.features = nn.Sequential(*layers)
        blocks = [k for k, layer in enumerate(layers) if isinstance(layer, WideBlock)]
        self.block_ends = (*blocks[:-1], len(layers) - 1)
        self.classifier = nn.Linear(inputs, num_classes)


class WideBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions.

    Where the width changes, the shortcut projects what the first norm and ReLU made; elsewhere
    it is the input itself.
    """

    def __init__(self, norm: Norm, inputs: int, outputs: int, stride: int) -> None:
        """Build the layers."""
        super().__init__()
        self.activate = nn.Sequential(make_norm(norm, inputs), nn.ReLU())
        self.residual = nn.Sequential(
            make_conv(norm, inputs, outputs, 3, stride),
            make_norm(norm, outputs),
            nn.ReLU(inplace=True),
            make_conv(norm, outputs, outputs, 3),
        )
        self.project: nn.Module | None = None
        if inputs != outputs:
            self.project = make_conv(norm, inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps, the size divided by the stride."""
        active = self.activate(x)
        return self.residual(active) + (x if self.project is None else self.project(active))
