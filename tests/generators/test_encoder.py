import re

import pytest
import torch

from itgan import artefacts, generators
from itgan.data import load_dataset
from itgan.errors import InputError
from itgan.generators import BigGANShape, Encoder, load_encoder, load_generator, shipped
from itgan.generators.encoder import ConvEncoder
from itgan.reconstruction import decibels


def encoder_of(shape, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvEncoder(shape).eval()


@pytest.fixture
def encoder(biggan):
    return encoder_of(biggan.shape)


@pytest.fixture
def file(biggan, encoder, tmp_path):
    return write(tmp_path / "ae.safetensors", biggan, encoder.state_dict())


def write(path, biggan, encoder):
    tensors = {f"encoder.{name}": t for name, t in encoder.items()}
    artefacts.save(path, {**biggan.state_dict(), **tensors}, {"kind": "generator"})
    return path


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 32, 64, 128])
def test_images_of_every_size(side, colours):
    shape = BigGANShape(2, 3, (colours, side, side), 5)
    mean, log_sigma = encoder_of(shape).posterior(
        torch.zeros(2, colours, side, side), torch.tensor([0, 2])
    )
    assert mean.shape == log_sigma.shape == (2, 5)


def test_one_file_is_a_generator_and_its_encoder(file, generator, encoder, images):
    assert load_generator(file).fingerprint == generator.fingerprint
    loaded = load_encoder(file)
    assert isinstance(loaded, Encoder)
    assert not any(p.requires_grad for p in loaded.parameters())
    latents = loaded(images.floats(), images.labels)
    assert latents.shape == (40, *generator.latent_shape)
    assert torch.equal(latents, encoder.posterior(images.floats(), images.labels)[0])


def test_a_latent_depends_on_its_own_image_and_label_alone(encoder, images):
    x, y = images.floats(), images.labels
    together = encoder(x, y)
    torch.testing.assert_close(encoder(x[3:5], y[3:5]), together[3:5])
    others = encoder(x, (y + 1) % 10)
    assert (others != together).any(1).all(), "labels matter"
    brighter = encoder(x + 0.5, y)
    assert (brighter != together).any(1).all(), "brightness matters"


def test_shipped_encoders_by_name(file, monkeypatch):
    monkeypatch.setattr(generators, "shipped", lambda kind: {"ae-mine": file})
    assert isinstance(load_encoder("ae-mine"), ConvEncoder)


def test_files_without_a_fitting_encoder(biggan, encoder, tmp_path):
    path = write(tmp_path / "g.safetensors", biggan, {})
    with pytest.raises(InputError, match=r"g\.safetensors: holds no encoder"):
        load_encoder(path)
    state = encoder.state_dict()
    del state["stem.bias"]
    path = write(tmp_path / "g.safetensors", biggan, state)
    with pytest.raises(InputError, match=r"g\.safetensors: its encoder does not fit its gen"):
        load_encoder(path)
    load_generator(path)  # which is whole


def test_a_shipped_encoder_reconstructs_as_well_as_its_card_says():
    file = shipped("generator")["ae-digits"]
    data = load_dataset("digits", validation=200).validation
    generator, encode = load_generator("ae-digits"), load_encoder("ae-digits")
    made = generator(encode(data.floats(), data.labels), data.labels)
    found = decibels((made - data.floats()).square().mean((1, 2, 3))).mean()
    (said,) = re.findall(r"reconstruction: (\S+) dB PSNR", file.with_suffix(".md").read_text())
    assert float(found) == pytest.approx(float(said), abs=0.06)
