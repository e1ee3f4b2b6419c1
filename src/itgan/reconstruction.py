"""How well a latent gives its image back (Eq. 8).

    L(z) = ||psi(G(z, y)) - psi(x)||^2 / d_f  +  lambda_pixel ||G(z, y) - x||^2 / d_I
           +  lambda_prior ||z||^2 / d_z

The first two terms are the paper's; the third pulls latents to the prior N(0, I) and is off by
default. All are means over elements, one value for each image.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from itgan.compilation import embed, generate
from itgan.configs import InversionConfig
from itgan.data import ImageSet
from itgan.devices import autocast
from itgan.directions import principal_directions
from itgan.generators import ConditionalGenerator
from itgan.latents import LatentBank, tuned
from itgan.networks import Network


def distances(
    extractor: Network,
    synthetic: Float[Tensor, "n c h w"],
    real: Float[Tensor, "n c h w"],
    real_features: Float[Tensor, "n d"],
    *,
    compiled: bool = False,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Both terms of Eq. 8 for each image: mean squared distance of features and of pixels."""
    features = embed(extractor, synthetic, compiled=compiled).float() - real_features
    pixels = (extractor.normalise(synthetic) - extractor.normalise(real)).square()
    return features.square().mean(1), pixels.flatten(1).mean(1)


@dataclass(frozen=True)
class Reconstruction:
    """What a batch of latents reaches, one value for each image.

    Attributes:
        loss: Eq. 8 with the pull to the prior; has a graph where latents have one.
        feature: its first term.
        pixel: its second term, without the weight.
        images: G(z, y) in [-1, 1].
    """

    loss: Float[Tensor, " n"]
    feature: Float[Tensor, " n"]
    pixel: Float[Tensor, " n"]
    images: Float[Tensor, "n c h w"]


@dataclass(frozen=True)
class Target:
    """Real images with their features: what the latents of a batch have to meet."""

    real: Float[Tensor, "n c h w"]
    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]


class Objective:
    """Eq. 8 for a set of images: generator, psi and weights in one place."""

    def __init__(
        self,
        generator: ConditionalGenerator,
        extractor: Network,
        images: ImageSet,
        config: InversionConfig,
    ) -> None:
        """The extractor is put into evaluation mode: no image may change another's features."""
        self.generator, self.extractor = generator, extractor.eval()
        self.images, self.config = images, config

    def directions(self) -> Float[Tensor, "d d"]:
        """Those along which images change, in what psi and the pixels tell."""
        config = self.config
        return principal_directions(
            self.generator, self.extractor, config.precision, compiled=config.compile
        )

    def target(self, positions: Int[Tensor, " k"]) -> Target:
        """The images at these positions, on the generator's device."""
        device = self.generator.device
        real = self.images.floats(positions).to(device)
        with torch.no_grad(), autocast(device, self.config.precision):
            features = embed(self.extractor, real, compiled=self.config.compile).float()
        return Target(real, features, self.images.labels[positions].to(device))

    def __call__(self, latents: Float[Tensor, "k ..."], target: Target) -> Reconstruction:
        """Eq. 8 for each latent."""
        compiled = self.config.compile
        with autocast(self.generator.device, self.config.precision):
            made = generate(self.generator, latents, target.labels, compiled=compiled)
            feature, pixel = distances(
                self.extractor, made, target.real, target.features, compiled=compiled
            )
        loss = feature + self.config.lambda_pixel * pixel
        if self.config.lambda_prior:
            loss = loss + self.config.lambda_prior * latents.square().flatten(1).mean(1)
        return Reconstruction(loss, feature, pixel, made)

    @torch.no_grad()
    def losses(
        self, latents: Float[Tensor, "n ..."], positions: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Loss and feature distance of each latent from the image at its position."""
        found = []
        for chunk in torch.arange(len(latents)).split(self.config.batch_size):
            made = self(latents[chunk.to(latents.device)], self.target(positions[chunk]))
            found.append(torch.stack([made.loss, made.feature]))
        loss, feature = torch.cat(found, 1).unbind()
        return loss, feature


def decibels(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of pixels in [-1, 1]."""
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


@torch.no_grad()
def psnr(generator: ConditionalGenerator, bank: LatentBank, images: ImageSet) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, pixels in [-1, 1]."""
    generator, total = tuned(generator, bank), 0.0
    for chunk in torch.arange(len(bank)).split(250):
        made = generator(
            bank.latents[chunk].to(generator.device), bank.labels[chunk].to(generator.device)
        )
        error = (made.cpu() - images.floats(chunk)).square().flatten(1).mean(1)
        total += float(decibels(error).sum())
    return total / len(bank)
