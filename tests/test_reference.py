"""The straightforward reference of the benchmarks and the fast path compute the same."""

import importlib.util
from pathlib import Path

import pytest
import torch

import itgan.inversion
from itgan.augment import draw_augmentation
from itgan.configs import InversionConfig
from itgan.data import ImageSet
from itgan.generators import BigGANShape
from itgan.generators.frozen import FrozenGenerator, fold
from itgan.inversion import invert
from itgan.networks import build_network
from itgan.randomness import derive
from itgan.two_pass import Draw, Problem, descend, mean_weights

PATH = Path(__file__).parents[1] / "benchmarks" / "reference.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(make_biggan):
    return make_biggan(BigGANShape(4, 3, (3, 32, 32), 16), seed=3)


def test_images_are_the_frozen_generators(reference, model):
    z = torch.randn(6, 16, generator=derive(0, "z"))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    made = reference.generate(model.state_dict(), z, labels)
    torch.testing.assert_close(made, FrozenGenerator(fold(model))(z, labels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("group", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_a_gradient_is_that_of_the_batch_of_all_classes(reference, model, group):
    state, generator = model.state_dict(), FrozenGenerator(fold(model))
    network = build_network("convnet", (3, 32, 32), 3, seed=1, width=16).requires_grad_(False)
    labels = torch.arange(3).repeat_interleave(4)
    z = torch.randn(12, 16, generator=derive(0, "z"))
    real = torch.rand(3, 5, 3, 32, 32, generator=derive(0, "x")) * 2 - 1
    draws = {c: draw_augmentation(derive(0, "omega", c), group) for c in range(3)}
    draw = Draw(network, draws)
    of_real = torch.arange(3).repeat_interleave(5)
    means = mean_weights(of_real) @ network.embed(real.flatten(0, 1), draw.blocks(of_real))
    problem = Problem(generator, labels, [draw], [means], None, 0.0, 100, "fp32")
    fast = torch.empty_like(z)
    values = descend(problem, z.__getitem__, fast.__setitem__)
    parts = [
        reference.class_gradient(state, z[labels == c], c, real[c], network, draws[c])
        for c in range(3)
    ]
    assert float(values.matching) == pytest.approx(sum(loss for _, loss in parts), rel=1e-5)
    plain = torch.cat([gradient for gradient, _ in parts])
    # Rounding may send a value near zero to the other side of a ReLU.
    assert float((fast - plain).norm() / plain.norm()) < 1e-2


def test_descending_lowers_the_loss(reference, model):
    state = model.state_dict()
    network = build_network("convnet", (3, 32, 32), 3, seed=1, width=8).requires_grad_(False)
    latents = list(torch.randn(3, 4, 16, generator=derive(0, "z")))
    real = torch.rand(3, 5, 3, 32, 32, generator=derive(0, "x")) * 2 - 1

    def loss(bank):
        return sum(
            reference.class_gradient(state, z, c, real[c], network, None)[1]
            for c, z in enumerate(bank)
        )

    after = reference.condense(
        state, latents, lambda c, rng: real[c], lambda rng: network, 8, 0.1, "none"
    )
    assert loss(after) < 0.9 * loss(latents)


def test_inversion_follows_the_same_path(reference, model, monkeypatch):
    state, generator = model.state_dict(), FrozenGenerator(fold(model))
    images = ImageSet(
        torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=derive(0, "x")),
        torch.tensor([0, 1, 2, 2, 1, 0]),
    )
    network = build_network("convnet", (3, 32, 32), 3, seed=1, width=8).requires_grad_(False)
    config = InversionConfig(steps=4, learning_rate=0.1)
    start = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(itgan.inversion, "starts", lambda *_: start)
    bank = invert(generator, images, config, extractor=network)
    z, distances = reference.invert(state, images.floats(), images.labels, network, 4, 0.1)
    assert bank.history["feature"] == pytest.approx(distances, rel=1e-3)
    assert float((bank.latents - z).norm() / (z - start).norm()) < 1e-2
