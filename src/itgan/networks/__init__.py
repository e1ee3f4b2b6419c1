"""Embedding and evaluation networks: interchangeable, each from images in [-1, 1] to logits."""

import torch

from itgan.errors import InputError
from itgan.networks.adopted import adopt, code_of
from itgan.networks.base import Network, Norm, PixelConstants, couples_images
from itgan.networks.convnet import Activation, ConvNet, Pooling
from itgan.networks.mobilenet import MobileNetV2
from itgan.networks.resnet import ResNet18
from itgan.networks.vgg import VGG19
from itgan.networks.wide_resnet import WRN16x8
from itgan.randomness import derive_seed

__all__ = ["NETWORKS", "Network", "build_network", "code_of", "couples_images"]

NETWORKS = {
    "convnet": ConvNet,
    "vgg19": VGG19,
    "resnet18": ResNet18,
    "wrn-16-8": WRN16x8,
    "mobilenetv2": MobileNetV2,
}


def build_network(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int = 0,
    mean: PixelConstants = None,
    std: PixelConstants = None,
    norm: Norm | None = None,
    width: int | None = None,
    depth: int | None = None,
    activation: Activation | None = None,
    pooling: Pooling | None = None,
) -> Network:
    """A network with PyTorch's default initialisation, on the CPU, in training mode.

    Args:
        name: One of ``NETWORKS``, or ``module:callable`` for any other: it is called with
            ``image_shape`` and ``num_classes`` and returns a module from images to logits.
            ``NAME@32`` is the network for 32x32 pixels, which enlarges its images to that.
        image_shape: (c, h, w).
        num_classes: Number of logits.
        seed: Determines the weights. The global random state is left alone.
        mean: Per channel or one for all, in [0, 1] pixel units; default 0.5.
        std: As ``mean``; with both at 0.5 the pixels in [-1, 1] pass unchanged.
        norm: Default instance for convnet, batch for the others.
        width: Channels of convnet, default 128.
        depth: Blocks of convnet; the default follows the resolution.
        activation: Of convnet, default relu.
        pooling: Of convnet, default avg.

    Raises:
        InputError: The name is unknown, an option does not belong to the network, or the images
            are smaller than it can pool.
    """
    if min(image_shape) < 1 or num_classes < 1:
        raise InputError(f"network: no images of shape {image_shape} in {num_classes} classes")
    name, enlarges, size = name.partition("@")
    accepts = image_shape
    if enlarges:
        if not size.isdecimal() or not max(image_shape[1:]) <= int(size) <= 4096:
            raise InputError(
                f"network: {name}@{size}: after @ give the pixels to enlarge images of "
                f"{image_shape[1]}x{image_shape[2]} to, as in {name}@64"
            )
        image_shape = (image_shape[0], int(size), int(size))
    only_convnet = {"width": width, "depth": depth, "activation": activation, "pooling": pooling}
    for option, value in only_convnet.items():
        if value is not None and name != "convnet":
            raise InputError(f"{option}: an option of convnet, not of {name}; leave it out")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the accelerators' generators too.
        torch.default_generator.manual_seed(derive_seed(seed, "network"))
        if ":" in name:
            if norm is not None:
                raise InputError(f"norm: {name} has its own; leave it out")
            network = adopt(name, image_shape, num_classes, mean, std)
        elif name not in NETWORKS:
            raise InputError(
                f"network: no {name!r}; choose {', '.join(NETWORKS)} or a module:callable"
            )
        elif name == "convnet":
            network = ConvNet(
                image_shape,
                num_classes,
                mean,
                std,
                norm=norm or "instance",
                width=128 if width is None else width,
                depth=depth,
                activation=activation or "relu",
                pooling=pooling or "avg",
            )
        else:
            network = NETWORKS[name](image_shape, num_classes, mean, std, norm=norm or "batch")
    network.accepts = accepts
    return network
