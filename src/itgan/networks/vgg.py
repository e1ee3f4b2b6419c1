"""VGG19 in its CIFAR form: sixteen convolutions with norms, five poolings, one linear layer.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition".
"""

from torch import nn

from itgan.networks.base import Network, Norm, PixelConstants, make_norm, require_size

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions


class VGG19(Network):
    """20,040,522 parameters for 10 classes; 512 features; images from 32 pixels.

    Above 32 pixels what the last pooling leaves is averaged, so that the count stays.
    """

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
            InputError: The images are smaller than 32 pixels.
        """
        super().__init__(image_shape, mean, std)
        require_size("vgg19", image_shape, 2 ** len(STAGES))
        layers: list[nn.Module] = []
        inputs = image_shape[0]
        for width, convolutions in STAGES:
            for _ in range(convolutions):
                conv = nn.Conv2d(inputs, width, 3, padding=1)  # with bias, norm or not
                layers += [conv, make_norm(norm, width), nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        pools = [k for k, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        self.block_ends = (*pools[:-1], len(layers))
        self.classifier = nn.Linear(inputs, num_classes)
