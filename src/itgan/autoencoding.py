"""Pre-training of an autoencoder whose decoder is the class-conditional BigGAN.

    z = mu + sigma * eps,  (mu, log sigma) = E(x, y)

    L1(G(z, y), x)  +  w_f ||psi(G(z, y)) - psi(x)||^2 / d_f  +  w_kl KL(N(mu, sigma^2) || N(0, 1))

psi is a ConvNet trained on the real images. The divergence is summed over a latent and averaged
over images; it is light, and keeps N(0, 1) the distribution to sample from. From
``adversarial_start`` on samples G(z', y'), z' ~ N(0, 1), also play the hinge game of
``pretraining`` with its weight w_a, which makes samples, and not only reconstructions, look real.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from itgan.artefacts import Checkpoint
from itgan.compilation import embed
from itgan.data import Dataset, ImageSet
from itgan.devices import autocast
from itgan.embedding import NetworkSpec, train_extractor
from itgan.generator_configs import AutoencodingConfig
from itgan.generators import ENCODER
from itgan.generators.encoder import ConvEncoder
from itgan.pretraining import SCORE, EpochStream, GANTrainer, adam, descend, pretrain
from itgan.randomness import derive, derive_seed
from itgan.reconstruction import decibels


def divergence(mean: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mean, sigma^2) || N(0, 1)) for each row, summed over the row."""
    return 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(1)


class AutoencoderTrainer(GANTrainer):
    """A ``GANTrainer`` with an encoder, its average, and the extractor."""

    OBJECTIVE = "autoencoder"
    NETWORKS = (*GANTrainer.NETWORKS, "encoder", "average_encoder", "extractor")
    AVERAGES: Mapping[str, str] = {**GANTrainer.AVERAGES, "average_encoder": "encoder"}
    config: AutoencodingConfig  # pyrefly: ignore

    def __init__(self, config: AutoencodingConfig, data: ImageSet) -> None:
        """Fresh networks; the extractor is trained by ``prepare``."""
        super().__init__(config, data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "encoder"))
            self.encoder = ConvEncoder(self.generator.shape)
            self.average_encoder = ConvEncoder(self.generator.shape)
        self.average_encoder.load_state_dict(self.encoder.state_dict())
        for network in (self.encoder, self.average_encoder):
            network.to(self.device)
            network.to(memory_format=torch.channels_last)  # pyrefly: ignore
        self.posterior = self._hastened(self.encoder.posterior)
        self.adam["encoder"] = adam(self.encoder, config.encoder_rate)
        self.extractor = NetworkSpec.of(config.extractor.network, data).build()
        self.extractor.to(self.device).requires_grad_(False).eval()
        self.reconstructed = EpochStream(
            len(data), config.batch_size, derive_seed(config.seed, "reconstruction")
        )

    @property
    def last_phase(self) -> int:
        """Where the hinge loss sets in, after which the score rises at first."""
        start = self.config.adversarial_start
        return start if start < self.config.steps and self.config.adversarial_weight else 0

    def identity(self) -> list[object]:
        """What the training follows from, as JSON."""
        return [*super().identity(), self.OBJECTIVE]

    def prepare(self, checkpoint: Checkpoint) -> None:
        """Train the extractor."""
        config, seed = self.config.extractor, derive_seed(self.config.seed, "extractor")
        self.extractor = train_extractor(self.data, config, seed, self.device, checkpoint)

    def step(self, step: int) -> dict[str, float]:
        """One step of encoder and decoder, with discriminator steps before it in the late part."""
        config = self.config
        self.generator.train()
        adversarial = step >= config.adversarial_start
        d_loss = torch.zeros(())
        for k in range(config.discriminator_steps if adversarial else 0):
            d_loss = self._discriminator_step(step, k)
        losses = self._autoencoder_step(step, adversarial)
        self._average_step(step)
        return {"d_loss": float(d_loss), **{name: float(t) for name, t in losses.items()}}

    def _autoencoder_step(self, step: int, adversarial: bool) -> dict[str, Tensor]:
        config, rng = self.config, derive(self.config.seed, "autoencoder", step)
        real, labels = self._reals(self.reconstructed.batch(step), rng)
        noise = torch.randn(len(real), config.latent_dim, generator=rng).to(self.device)
        with autocast(self.device, config.precision):
            mean, log_sigma = self.posterior(real, labels)
            made = self.generate(mean + log_sigma.exp() * noise, labels).float()
            features = self._features(made) - self._features(real)
        losses = {
            "l1": (made - real).abs().mean(),
            "feature": features.square().mean(),
            "kl": divergence(mean, log_sigma).mean(),
            "g_loss": torch.zeros((), device=self.device),
        }
        self.discriminator.requires_grad_(False)
        if adversarial:
            losses["g_loss"] = self._fooling(step)
        loss = losses["l1"] + config.feature_weight * losses["feature"]
        loss += config.kl_weight * losses["kl"] + config.adversarial_weight * losses["g_loss"]
        descend([self.adam["generator"], self.adam["encoder"]], loss, "autoencoder")
        self.discriminator.requires_grad_(True)
        return {name: value.detach() for name, value in losses.items()}

    def _features(self, images: Tensor) -> Tensor:
        return embed(self.extractor, images, compiled=self.config.compile).float()

    @torch.no_grad()
    def held_out(self, data: Dataset, out: Path) -> dict[str, float]:
        """How the validation images come back from the means of their latents.

        The score is L1 plus the weighted features; PSNR (dB) and figures of samples beside it.
        """
        images, decoder = data.validation, self.averaged()
        assert images is not None  # ``pretrain`` saw to it
        losses, squares = [], []
        for rows in torch.arange(len(images)).split(self.config.batch_size):
            real, labels = (x.to(self.device) for x in (images.floats(rows), images.labels[rows]))
            made = decoder(self.average_encoder(real, labels), labels)
            pixels, features = made - real, self._features(made) - self._features(real)
            feature = self.config.feature_weight * features.square().flatten(1).mean(1)
            losses.append(pixels.abs().flatten(1).mean(1) + feature)
            squares.append(pixels.square().flatten(1).mean(1))
        told = {SCORE: torch.cat(losses), "psnr": decibels(torch.cat(squares))}
        means = {name: float(values.mean()) for name, values in told.items()}
        return super().held_out(data, out) | means

    def exported(self) -> dict[str, Tensor]:
        """The decoder, and the encoder under ``encoder.``: both averaged."""
        encoder = self.average_encoder.state_dict()
        return super().exported() | {f"{ENCODER}{name}": t for name, t in encoder.items()}

    @torch.no_grad()
    def pictures(self, classes: int, per_class: int = 10) -> Tensor:
        """Samples, then real images, then their reconstructions: one row for each class."""
        samples = super().pictures(classes, per_class)
        shown = [self.data.class_indices(label)[:per_class] for label in range(classes)]
        few = min(len(rows) for rows in shown)
        rows = torch.cat([rows[:few] for rows in shown])
        real, labels = self.data.floats(rows), self.data.labels[rows].to(self.device)
        latents = self.average_encoder(real.to(self.device), labels)
        made = self.averaged()(latents, labels).cpu()
        parts = [images.unflatten(0, (classes, few)) for images in (real, made)]
        return torch.cat([samples, *parts], 1)


def pretrain_autoencoder(config: AutoencodingConfig, data: Dataset, out: Path) -> Path:
    """Train an autoencoder in the directory ``out``, as ``pretrain`` trains a GAN.

    The file is a generator (the decoder) with an encoder: ``load_generator`` reads the one,
    ``load_encoder`` the other. A generator's fingerprint is of the decoder alone, and synthetic
    sets store no encoder.

    Returns:
        The file's path.

    Raises:
        InputError: as ``pretrain``.
    """
    return pretrain(config, data, out, AutoencoderTrainer)
