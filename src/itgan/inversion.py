"""Inversion: real images -> latents that reproduce them (Eq. 8).

    min_z  ||psi(G(z, y)) - psi(x)||^2 / d_f  +  lambda_pixel ||G(z, y) - x||^2 / d_I

psi is one network trained on the real images; pixels are compared in the normalised space that
psi sees. Both terms are means over elements and sums over images, so that the step of a latent
does not depend on the images beside it. z starts at N(0, I) and follows Adam.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from itgan.artefacts import Checkpoint
from itgan.configs import InversionConfig
from itgan.data import ImageSet
from itgan.devices import autocast
from itgan.embedding import train_extractor
from itgan.generators import ConditionalGenerator
from itgan.latents import LatentAdam, LatentBank, check_images, initial_latents, origin
from itgan.networks import Network
from itgan.progress import track
from itgan.randomness import derive_seed


def distances(
    extractor: Network,
    synthetic: Float[Tensor, "n c h w"],
    real: Float[Tensor, "n c h w"],
    real_features: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Both terms of Eq. 8 for each image: mean squared distance of features and of pixels."""
    features = (extractor.embed(synthetic).float() - real_features).square().mean(1)
    pixels = (extractor.normalise(synthetic) - extractor.normalise(real)).square()
    return features, pixels.flatten(1).mean(1)


def invert(
    generator: ConditionalGenerator,
    images: ImageSet,
    config: InversionConfig | None = None,
    seed: int = 0,
    extractor: Network | None = None,
    checkpoint: Checkpoint | None = None,
) -> LatentBank:
    """Fit one latent to each image.

    Args:
        generator: frozen.
        images: real images; their labels condition the generator.
        config: steps, learning rate and so on.
        seed: of the starting points; latent i follows from the seed and image i alone.
        extractor: psi; trained on ``images`` as the config says when not given.
        checkpoint: where to keep snapshots, to go on after a kill.

    Returns:
        A bank with stage ``inverted``. Its history has, for each step and as means over images,
        ``loss``, ``feature`` and ``pixel`` (Eq. 8) and ``norm`` (of the latents); and ``psnr``
        in dB at the end (mean squared error of pixels over 2, the range of [-1, 1]).

    Raises:
        InputError: the generator cannot make such images.
    """
    config = config or InversionConfig()
    check_images(generator, images)
    device = generator.device
    if extractor is None:
        part = checkpoint.part("extractor") if checkpoint is not None else None
        own = derive_seed(seed, "extractor")
        extractor = train_extractor(images, config.extractor, own, device, part)
    extractor = extractor.eval()  # no image may change another's features
    latents = initial_latents(generator.latent_shape, images.rows, seed).to(device)
    adam = LatentAdam(latents, config.learning_rate)
    curves = torch.zeros(4, config.steps, dtype=torch.float64)
    batches = torch.arange(len(images)).split(config.batch_size)
    begun = 0
    if checkpoint is not None and (found := checkpoint.load()) is not None:
        adam.restore(found[0])
        curves, begun = found[0]["curves"], found[1]["step"]

    total = len(batches) * config.steps
    current = -1
    real = real_features = labels = rows = torch.empty(0)
    for work in track(range(begun, total), "inversion"):
        index, step = divmod(work, config.steps)
        if index != current:
            current, rows = index, batches[index]
            real = images.floats(rows).to(device)
            labels = images.labels[rows].to(device)
            rows = rows.to(device)
            with torch.no_grad(), autocast(device, config.precision):
                real_features = extractor.embed(real).float()
        z = latents[rows].requires_grad_(True)
        with autocast(device, config.precision):
            synthetic = generator(z, labels)
            feature, pixel = distances(extractor, synthetic, real, real_features)
        loss = (feature + config.lambda_pixel * pixel).sum()  # Eq. 8, summed over images
        (gradient,) = torch.autograd.grad(loss, z)
        adam.step(rows, gradient)
        norm = z.detach().flatten(1).norm(dim=1).sum()
        sums = torch.stack([loss.detach(), feature.detach().sum(), pixel.detach().sum(), norm])
        curves[:, step] += sums.double().cpu() / len(images)
        if checkpoint is not None:
            checkpoint.offer(work + 1, lambda: {**adam.state(), "curves": curves})
    history = dict(zip(("loss", "feature", "pixel", "norm"), curves.tolist(), strict=True))
    result = LatentBank(latents.cpu(), images.labels.clone(), images.rows.clone(), "inverted")
    history["psnr"] = [psnr(generator, result, images)]
    return LatentBank(
        result.latents,
        result.labels,
        result.rows,
        "inverted",
        history,
        {**origin(generator, images, seed), "config": config.model_dump()},
    )


@torch.no_grad()
def psnr(generator: ConditionalGenerator, bank: LatentBank, images: ImageSet) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, pixels in [-1, 1]."""
    total = 0.0
    for chunk in torch.arange(len(bank)).split(250):
        made = generator(
            bank.latents[chunk].to(generator.device), bank.labels[chunk].to(generator.device)
        )
        error = (made.cpu() - images.floats(chunk)).square().flatten(1).mean(1)
        total += float((10 * torch.log10(4 / error.clamp_min(1e-12))).sum())
    return total / len(bank)
