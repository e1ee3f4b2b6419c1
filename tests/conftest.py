"""Small things that many tests share; none of them may be changed by a test."""

import hypothesis
import pytest
import torch
from torch import nn

from itgan import devices
from itgan.data import Dataset, ImageSet, load_dataset
from itgan.generators import BigGAN, BigGANShape, FrozenGenerator
from itgan.latents import LatentBank, sample_latents

torch.set_num_threads(1)  # tensors are tiny, and equal thread counts give equal bits

# Tests prove behaviour, not timing: a busy machine fails none.
hypothesis.settings.register_profile("itgan", deadline=None)
hypothesis.settings.load_profile("itgan")


def random_biggan(shape: BigGANShape, seed: int = 0) -> BigGAN:
    """A BigGAN whose every tensor is random, class norms and running statistics included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BigGAN(shape)
        for name, tensor in model.state_dict().items():
            if name.endswith(("weight", "u0", "sv0")) and "gain" not in name:
                nn.init.normal_(tensor, 0.0, 0.1 if "u0" not in name else 1.0)
            elif name.endswith("stored_var"):
                nn.init.uniform_(tensor, 0.5, 2.0)
            elif name == "output_layer.0.gain":
                nn.init.uniform_(tensor, 0.5, 1.5)
            else:  # class gains, biases, running means
                nn.init.normal_(tensor, 0.0, 0.3)
    return model.eval()


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision bf16 is bf16, however slowly this processor computes it."""
    monkeypatch.setattr(devices, "knows_bf16", lambda _: True)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Real digits: 1x8x8, 10 classes."""
    return load_dataset("digits")


@pytest.fixture(scope="session")
def images(digits: Dataset) -> ImageSet:
    """The first four training digits of every class, ordered by class."""
    train = digits.train
    return train.select(torch.cat([train.class_indices(label)[:4] for label in range(10)]))


@pytest.fixture(scope="session")
def biggan() -> BigGAN:
    """The model behind ``generator``."""
    return random_biggan(BigGANShape(4, 10, (1, 8, 8), 8))


@pytest.fixture(scope="session")
def generator(biggan: BigGAN) -> FrozenGenerator:
    """Random weights, for images like the digits: latent 8, 10 classes, 1x8x8."""
    return FrozenGenerator.from_biggan(biggan)


@pytest.fixture(scope="session")
def bank(generator: FrozenGenerator, images: ImageSet) -> LatentBank:
    """A random latent for each of ``images``."""
    return sample_latents(generator, images, seed=0)


@pytest.fixture(scope="session")
def make_biggan():
    """``random_biggan``, for other shapes."""
    return random_biggan
