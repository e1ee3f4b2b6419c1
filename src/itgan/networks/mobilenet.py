"""MobileNetV2 in its CIFAR form: the stem and the second stage keep the size.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks". As in the field's CIFAR
form, activations are plain ReLU and shortcuts project where only the width changes.
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

STEM = 32
LAST = 1280
STAGES = (  # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(Network):
    """2,296,922 parameters for 10 classes; 1280 features; images from 8 pixels (instance: 16)."""

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
            norm: After each convolution.

        Raises:
            InputError: The images are too small.
        """
        super().__init__(image_shape, mean, std)
        require_size(f"mobilenetv2 with {norm} norm", image_shape, least_at_stride(norm, 8))
        layers = _stage(norm, image_shape[0], STEM, 3)
        inputs = STEM
        for expansion, width, blocks, stride in STAGES:
            for block in range(blocks):
                first = stride if block == 0 else 1
                layers.append(InvertedResidual(norm, inputs, width, expansion, first))
                inputs = width
        layers += [*_stage(norm, inputs, LAST, 1), nn.AdaptiveAvgPool2d(1)]
        self.features = nn.Sequential(*layers)
        blocks = [k for k, layer in enumerate(layers) if isinstance(layer, InvertedResidual)]
        self.block_ends = (*blocks, len(layers) - 1)
        self.classifier = nn.Linear(LAST, num_classes)


class InvertedResidual(nn.Module):
    """Widen by a 1x1, filter each channel by a 3x3, narrow by a linear 1x1 convolution."""

    def __init__(self, norm: Norm, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        """Build the layers."""
        super().__init__()
        hidden = expansion * inputs
        self.residual = nn.Sequential(
            *_stage(norm, inputs, hidden, 1),
            *_stage(norm, hidden, hidden, 3, stride, groups=hidden),
            make_conv(norm, hidden, outputs, 1),
            make_norm(norm, outputs),
        )
        self.shortcut: nn.Module | None = None
        if stride == 1:
            self.shortcut = nn.Identity()
            if inputs != outputs:
                self.shortcut = nn.Sequential(
                    make_conv(norm, inputs, outputs, 1), make_norm(norm, outputs)
                )

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps, the size divided by the stride."""
        out = self.residual(x)
        return out if self.shortcut is None else out + self.shortcut(x)


def _stage(
    norm: Norm, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        make_conv(norm, inputs, outputs, kernel, stride, groups),
        make_norm(norm, outputs),
        nn.ReLU(inplace=True),
    ]
