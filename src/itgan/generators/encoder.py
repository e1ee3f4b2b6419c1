"""The inverse of a BigGAN as a network: images and labels -> a normal distribution of latents.

A 3x3 convolution plus a vector for each class -> residual blocks, each halving the resolution ->
a linear layer on the last 4x4 pixels. Every layer is half as wide as the generator's. Norms see
one image at a time, and the residual stream goes round them, so brightness is not lost.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from itgan.errors import InputError
from itgan.generators.biggan import BigGANShape

LOG_SIGMA = (-6.0, 2.0)  # bounds that keep exp, and the divergence, finite


class EncoderBlock(nn.Module):
    """A residual block; halves the resolution."""

    def __init__(self, width: int) -> None:
        """All convolutions keep the width."""
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """N w 2h 2h -> n w h h."""
        h = self.conv1(F.relu(self.norm1(x)))
        return F.avg_pool2d(x + self.conv2(F.relu(self.norm2(h))), 2)


class ConvEncoder(nn.Module):
    """E(x, y): what ``generators.load_encoder`` gives for a file of an autoencoder."""

    def __init__(self, shape: BigGANShape) -> None:
        """Weights as PyTorch draws them from the ambient generator: seed inside ``fork_rng``."""
        super().__init__()
        width = 2 * shape.channels
        self.stem = nn.Conv2d(shape.image_shape[0], width, 3, padding=1)
        self.embed = nn.Embedding(shape.num_classes, width)
        self.blocks = nn.Sequential(*(EncoderBlock(width) for _ in range(shape.blocks)))
        self.head = nn.Linear(16 * width, 2 * shape.latent_dim)

    def posterior(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Mean and log sigma of the latents of each image."""
        h = self.stem(images) + self.embed(labels)[..., None, None]  # n w h h
        h = self.blocks(h)  # n w 4 4
        mean, log_sigma = self.head(h.flatten(1)).float().chunk(2, dim=1)
        return mean, log_sigma.clamp(*LOG_SIGMA)

    def forward(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """The mean latent of each image; computed, and returned, where the weights are."""
        device = self.stem.weight.device
        return self.posterior(images.to(device), labels.to(device))[0]


def encoder_from_state(state: Mapping[str, Tensor], shape: BigGANShape) -> ConvEncoder:
    """The encoder of a generator of this shape, frozen.

    Raises:
        InputError: tensors are missing, extra or misshapen.
    """
    with torch.device("meta"):
        model = ConvEncoder(shape)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise InputError("its encoder does not fit its generator") from error
    return model.requires_grad_(False).eval()
