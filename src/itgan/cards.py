"""A generator's card: what it was trained on and how, and how well one can learn from it."""

from pathlib import Path

import torch

from itgan import artefacts
from itgan.configs import EvaluationConfig
from itgan.data import Dataset
from itgan.evaluation import evaluate, summarize
from itgan.generators import load_generator
from itgan.sources import FreshSamples

EPOCHS, PER_CLASS = 20, 5000


def write_card(path: Path, data: Dataset) -> Path:
    """Write ``card.md`` beside a pre-trained generator.

    Its metric is the classifier accuracy score: a ConvNet trained on samples, new ones in every
    batch, scored on real images that the generator has not seen (validation images if the
    training held some out, else test images).
    """
    metadata = artefacts.read_metadata(path)
    config = metadata["config"]
    held_out = data.validation or data.test
    # As many images as 20 epochs of 5,000 samples per class, or of the training set if smaller.
    count = min(PER_CLASS * data.num_classes, len(data.train))
    labels = torch.arange(count) % data.num_classes
    augmentation = "color_crop_cutout_flip_scale_rotate"
    if not config["flip"]:
        augmentation = augmentation.replace("_flip", "")
    protocol = EvaluationConfig(epochs=EPOCHS, augmentation=augmentation)
    generator = load_generator(path)
    row = summarize(evaluate(FreshSamples(generator, labels), held_out, protocol))[0]
    which = "validation" if data.validation else "test"
    lines = [
        f"# {metadata['architecture']} of {metadata['dataset']}",
        "",
        f"- images: {metadata['dataset']}, {metadata['trained_on']['images']:,} training images "
        f"{data.image_shape[1]}x{data.image_shape[2]}, sha256 "
        f"`{metadata['trained_on']['sha256'][:16]}`; "
        f"{len(data.validation) if data.validation else 0} held out",
        f"- classes: {', '.join(metadata['class_names'])}",
        f"- weights: {metadata['weights']} after {config['steps']:,} generator steps of "
        f"{config['batch_size']} images, {metadata['hours']} hours, seed {config['seed']}",
        f"- recipe: {config['channels']} channels, latent dimension {config['latent_dim']}, "
        f"{config['discriminator_steps']} discriminator steps, Adam "
        f"{config['generator_rate']:g} / {config['discriminator_rate']:g}, average "
        f"{config['ema']}, DiffAugment {config['diffaugment']}",
        f"- classifier accuracy score: {row['mean']:.1f} ± {row['std']:.1f} % "
        f"(ConvNet, {EPOCHS} epochs of {count:,} fresh samples, {row['n']} networks, "
        f"{len(held_out):,} {which} images)",
        f"- file: {path.stat().st_size:,} bytes, tensors' sha256 `{metadata['sha256']}`",
    ]
    card = path.with_name("card.md")
    artefacts.write_bytes(card, ("\n".join(lines) + "\n").encode())
    return card
