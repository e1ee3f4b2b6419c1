"""A generator's card: what it was trained on and how, and how good it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from itgan import artefacts
from itgan.data import Dataset
from itgan.generator_configs import MetricsConfig
from itgan.generators import load_encoder, load_generator
from itgan.inversion import psnr
from itgan.latents import LatentBank
from itgan.metrics import Figure, measure
from itgan.sources import CHUNK


def write_card(path: Path, data: Dataset, config: MetricsConfig, device: str = "auto") -> Path:
    """Write ``card.md`` beside a pre-trained generator, with the figures that ``config`` names.

    They are measured on real images that the generator has not seen: validation images if its
    training held some out, else test images.
    """
    figures = measure(load_generator(path, device), data, config, path.parent, device)
    card = path.with_name("card.md")
    artefacts.write_bytes(card, card_text(path, data, figures).encode())
    return card


def card_text(path: Path, data: Dataset, figures: Sequence[Figure]) -> str:
    """What a card says of a pre-trained generator's file, given what was measured."""
    metadata = artefacts.read_metadata(path)
    made = metadata["config"]
    lines = [
        f"# {_kind(metadata)} of {metadata['dataset']}",
        "",
        f"- images: {metadata['dataset']}, {metadata['trained_on']['images']:,} training images "
        f"{data.image_shape[1]}x{data.image_shape[2]}, sha256 "
        f"`{metadata['trained_on']['sha256'][:16]}`; "
        f"{len(data.validation) if data.validation else 0} held out",
        f"- classes: {', '.join(metadata['class_names'])}",
        f"- training: {made['steps']:,} generator steps of {made['batch_size']} images, "
        f"{metadata['hours']} hours by its log, seed {made['seed']}",
        f"- weights in the file: {metadata['weights']}; measured: average",
        f"- recipe: {made['channels']} channels, latent dimension {made['latent_dim']}, "
        f"{_counted(made['discriminator_steps'], 'discriminator step')}, Adam "
        f"{made['generator_rate']:g} / {made['discriminator_rate']:g}, average "
        f"{made['ema']}, DiffAugment {made['diffaugment']}",
        *(f"- {figure.name}: {figure.text()}" for figure in figures),
        f"- file: {path.stat().st_size:,} bytes, tensors' sha256 `{metadata['sha256']}`",
    ]
    if metadata.get("objective") == "autoencoder":
        lines.insert(-1, _losses(made))
        lines.insert(-1, _reconstruction(path, data))
    return "\n".join(lines) + "\n"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _kind(metadata: dict[str, Any]) -> str:
    autoencoder = metadata.get("objective") == "autoencoder"
    architecture = metadata["architecture"]
    return f"autoencoder, {architecture} decoder," if autoencoder else architecture


def _losses(config: dict[str, Any]) -> str:
    return (
        f"- autoencoder: L1, features x {config['feature_weight']:g}, divergence x "
        f"{config['kl_weight']:g}, hinge loss of samples x {config['adversarial_weight']:g} from "
        f"step {config['adversarial_start']:,} on, Adam {config['encoder_rate']:g} for the encoder"
    )


def _reconstruction(path: Path, data: Dataset) -> str:
    generator = load_generator(path)
    images, which = (data.validation, "validation") if data.validation else (data.test, "test")
    encode = load_encoder(path, generator.device)
    chunks = torch.arange(len(images)).split(CHUNK)
    latents = torch.cat([encode(images.floats(rows), images.labels[rows]) for rows in chunks])
    bank = LatentBank(latents.cpu(), images.labels, images.rows, "inverted")
    decibels = psnr(generator, bank, images)
    return f"- reconstruction: {decibels:.1f} dB PSNR on {len(images):,} {which} images"
