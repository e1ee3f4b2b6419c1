"""Turn a pre-trained class-conditional generator into a generator of informative training data.

data = itgan.load_dataset("digits")
generator = itgan.load_generator("biggan-digits")           # frozen
bank = itgan.invert(generator, data.train, seed=0)          # Eq. 8: real images -> latents
bank = itgan.condense(generator, bank, data.train, seed=0)  # Eq. 9-11: informative latents
synthetic = itgan.SyntheticSet(generator, bank)             # a PyTorch data set
synthetic.save("digits.itgan.safetensors", dtype="fp16")    # generator + latents, one file
trials = itgan.evaluate(synthetic, data.test, seeds=[0, 1, 2])
itgan.summarize(trials)                                     # rows of a table
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from itgan import matching
    from itgan.augment import Augmentation, draw_augmentation, siamese
    from itgan.autoencoding import pretrain_autoencoder
    from itgan.condensation import condense
    from itgan.configs import CondensationConfig, EvaluationConfig, InversionConfig
    from itgan.data import Dataset, ImageSet, load_dataset
    from itgan.embedding import RandomPool, train_extractor
    from itgan.errors import InputError
    from itgan.evaluation import Trial, evaluate, paired_difference, summarize
    from itgan.generator_configs import AutoencodingConfig, MetricsConfig, PretrainingConfig
    from itgan.generators import (
        ConditionalGenerator,
        Encoder,
        load_encoder,
        load_generator,
        shipped,
        wrap_generator,
    )
    from itgan.inversion import invert, self_inversion
    from itgan.latents import LatentBank, sample_latents
    from itgan.metrics import measure
    from itgan.networks import build_network
    from itgan.pretraining import pretrain
    from itgan.run_configs import RunConfig
    from itgan.sources import FreshSamples, PixelSet, SyntheticSet

# Names are imported when they are first used: `itgan --help` must not wait for torch.
_HOME = {
    "matching": "",
    "Augmentation": "augment",
    "draw_augmentation": "augment",
    "siamese": "augment",
    "pretrain_autoencoder": "autoencoding",
    "condense": "condensation",
    "AutoencodingConfig": "generator_configs",
    "CondensationConfig": "configs",
    "EvaluationConfig": "configs",
    "InversionConfig": "configs",
    "MetricsConfig": "generator_configs",
    "PretrainingConfig": "generator_configs",
    "RunConfig": "run_configs",
    "Dataset": "data",
    "ImageSet": "data",
    "load_dataset": "data",
    "RandomPool": "embedding",
    "train_extractor": "embedding",
    "InputError": "errors",
    "Trial": "evaluation",
    "evaluate": "evaluation",
    "paired_difference": "evaluation",
    "summarize": "evaluation",
    "ConditionalGenerator": "generators",
    "Encoder": "generators",
    "load_encoder": "generators",
    "load_generator": "generators",
    "shipped": "generators",
    "wrap_generator": "generators",
    "invert": "inversion",
    "self_inversion": "inversion",
    "LatentBank": "latents",
    "sample_latents": "latents",
    "measure": "metrics",
    "build_network": "networks",
    "pretrain": "pretraining",
    "FreshSamples": "sources",
    "PixelSet": "sources",
    "SyntheticSet": "sources",
}

__all__ = [
    "Augmentation",
    "AutoencodingConfig",
    "CondensationConfig",
    "ConditionalGenerator",
    "Dataset",
    "Encoder",
    "EvaluationConfig",
    "FreshSamples",
    "ImageSet",
    "InputError",
    "InversionConfig",
    "LatentBank",
    "MetricsConfig",
    "PixelSet",
    "PretrainingConfig",
    "RandomPool",
    "RunConfig",
    "SyntheticSet",
    "Trial",
    "build_network",
    "condense",
    "draw_augmentation",
    "evaluate",
    "invert",
    "load_dataset",
    "load_encoder",
    "load_generator",
    "matching",
    "measure",
    "paired_difference",
    "pretrain",
    "pretrain_autoencoder",
    "sample_latents",
    "self_inversion",
    "shipped",
    "siamese",
    "summarize",
    "train_extractor",
    "wrap_generator",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'itgan' has no attribute {name!r}")
    home = importlib.import_module(f"itgan.{_HOME[name] or name}")
    value = getattr(home, name) if _HOME[name] else home
    globals()[name] = value
    return value
