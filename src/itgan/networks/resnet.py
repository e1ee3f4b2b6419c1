"""ResNet18 in its CIFAR form: a 3x3 stem at full size, then four stages of two basic blocks.

He et al., "Deep residual learning for image recognition".
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

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first block
BLOCKS = 2


class ResNet18(Network):
    """11,173,962 parameters for 10 classes; 512 features; images from 8 pixels (instance: 16)."""

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
        require_size(f"resnet18 with {norm} norm", image_shape, least_at_stride(norm, 8))
        inputs = STAGES[0][0]
        layers: list[nn.Module] = [
            make_conv(norm, image_shape[0], inputs, 3),
            make_norm(norm, inputs),
            nn.ReLU(inplace=True),
        ]
        for width, stride in STAGES:
            for block in range(BLOCKS):
                layers.append(BasicBlock(norm, inputs, width, stride if block == 0 else 1))
                inputs = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        blocks = [k for k, layer in enumerate(layers) if isinstance(layer, BasicBlock)]
        self.block_ends = (*blocks[:-1], len(layers))
        self.classifier = nn.Linear(inputs, num_classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which projects where the shape changes."""

    def __init__(self, norm: Norm, inputs: int, outputs: int, stride: int) -> None:
        """Build the layers."""
        super().__init__()
        self.residual = nn.Sequential(
            make_conv(norm, inputs, outputs, 3, stride),
            make_norm(norm, outputs),
            nn.ReLU(inplace=True),
            make_conv(norm, outputs, outputs, 3),
            make_norm(norm, outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                make_conv(norm, inputs, outputs, 1, stride), make_norm(norm, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps, the size divided by the stride."""
        return (self.residual(x) + self.shortcut(x)).relu()
