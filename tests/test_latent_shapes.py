"""The whole road in process for latents of every shape, images of every size, few classes."""

import math

import pytest
import torch

from itgan.condensation import condense
from itgan.configs import CondensationConfig, EvaluationConfig, InversionConfig
from itgan.data import ImageSet
from itgan.evaluation import evaluate, summarize
from itgan.generators import BigGANShape, FrozenGenerator, wrap_generator
from itgan.inversion import invert
from itgan.latents import LatentBank, deal
from itgan.report import Gallery, write_report
from itgan.sources import FreshSamples, SyntheticSet

INVERSION = InversionConfig(
    steps=3, batch_size=3, extractor=EvaluationConfig(updates=1, augmentation="none")
)
CONDENSATION = CondensationConfig(
    steps=2, learning_rate=0.1, real_per_class=2, lambda_reg=0.1, micro_batch=3
)
RANDOM = CONDENSATION.model_copy(update={"shard_per_class": 1, "splitting": "random"})
GRADIENT = CONDENSATION.model_copy(update={"optimiser": "sgd", "matching": "gradient"})
EVALUATION = EvaluationConfig(updates=1)


def real_images(image_shape, classes, per_class=2):
    rng = torch.Generator().manual_seed(0)
    n = classes * per_class
    pixels = torch.randint(256, (n, *image_shape), generator=rng, dtype=torch.uint8)
    names = tuple(f"class {label}" for label in range(classes))
    return ImageSet(pixels, torch.arange(n) % classes, class_names=names)


def callable_generator(latent_shape, image_shape, classes):
    """A linear map, a tanh: any shape to any other."""
    rng = torch.Generator().manual_seed(1)
    numbers = math.prod(latent_shape)
    weight = torch.randn(numbers, math.prod(image_shape), generator=rng) / numbers**0.5
    shift = torch.randn(classes, 1, 1, 1, generator=rng)

    def fn(z, y):
        return torch.tanh((z.flatten(1) @ weight).unflatten(1, image_shape) + shift[y])

    return wrap_generator(
        fn, latent_shape=latent_shape, num_classes=classes, image_shape=image_shape
    )


def travel(generator, images, *configs):
    """Inversion, and condensation by each config; gives the inverted and the first bank."""
    inverted = invert(generator, images, INVERSION, seed=0)
    banks = [condense(generator, inverted, images, config, seed=0) for config in configs]
    for bank in banks:
        assert bank.latents.shape == (len(images), *generator.latent_shape)
        moved = (bank.latents - inverted.latents).flatten(1).abs().amax(1)
        assert (moved > 0).all(), "every latent was learned"
    return inverted, banks[0]


@pytest.mark.parametrize("latent_shape", [(1,), (7,), (3, 2), (4, 2, 2), (2, 1, 3, 2)])
@pytest.mark.parametrize(
    ("image_shape", "classes"), [((1, 8, 8), 2), ((3, 8, 8), 3), ((1, 16, 16), 2)]
)
def test_latents_of_any_shape(latent_shape, image_shape, classes, tmp_path):
    generator = callable_generator(latent_shape, image_shape, classes)
    images = real_images(image_shape, classes)
    inverted, bank = travel(generator, images, CONDENSATION, RANDOM, GRADIENT)
    bank.save(tmp_path / "bank.safetensors")
    loaded = LatentBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(loaded.latents, bank.latents)
    halves = [bank.select(indices) for indices in torch.arange(len(bank)).split(2)]
    assert LatentBank.merge(halves).latents.shape == bank.latents.shape
    synthetic = SyntheticSet(generator, bank)
    trials = []
    for source in (synthetic, FreshSamples(generator, images.labels)):
        trials += evaluate(source, images, EVALUATION, seeds=[0])
    stages = {
        name: SyntheticSet(generator, b).pixels().unflatten(0, (-1, classes)).transpose(0, 1)
        for name, b in (("inverted", inverted), ("condensed", bank))
    }
    gallery = Gallery(images.class_names, stages)
    html, _ = write_report(
        tmp_path,
        title="shapes",
        rows=summarize(trials),
        curves=[],
        gallery=gallery,
        config={},
        environment={},
        notes=[],
    )
    assert html.read_text().count("data:image/png") == 2 * classes


@pytest.mark.parametrize(
    ("side", "colours", "classes"), [(8, 1, 2), (16, 3, 3), (32, 1, 2), (64, 3, 2), (128, 1, 2)]
)
def test_images_of_any_size(make_biggan, side, colours, classes, tmp_path):
    shape = BigGANShape(1, classes, (colours, side, side), 5)
    generator = FrozenGenerator.from_biggan(make_biggan(shape))
    images = real_images((colours, side, side), classes, per_class=1 if side == 128 else 2)
    _, bank = travel(generator, images, CONDENSATION)
    synthetic = SyntheticSet(generator, bank)
    sizes = []
    for dtype, atol in (("fp32", 0.0), ("fp16", 0.02), ("int8", 0.5)):
        path = tmp_path / f"{dtype}.safetensors"
        synthetic.save(path, dtype)
        loaded = SyntheticSet.load(path)
        assert loaded.bank.latents.shape == bank.latents.shape
        torch.testing.assert_close(loaded.images(), synthetic.images(), rtol=0, atol=atol)
        sizes.append(loaded.nbytes)
    assert sizes[0] > sizes[1] > sizes[2]
    (trial,) = evaluate(synthetic, images, EVALUATION, seeds=[0])
    assert 0 <= trial.accuracy <= 1


@pytest.mark.parametrize("latent_shape", [(1,), (6,), (3, 2), (4, 2, 2), (2, 1, 3, 2)])
def test_storage_of_latents_of_any_shape(latent_shape):
    latents = torch.randn(5, *latent_shape, generator=torch.Generator().manual_seed(0))
    bank = LatentBank(latents, torch.arange(5) % 2, torch.arange(5), "random")
    generator = callable_generator(latent_shape, (1, 8, 8), 2)
    numbers = latents.numel()
    spare = 5 + 4 * 5  # labels and rows
    for dtype, size in (("fp32", 4), ("fp16", 2)):
        assert SyntheticSet(generator, bank, dtype).nbytes == size * numbers + spare
    assert SyntheticSet(generator, bank, "int8").nbytes == numbers + 4 * latent_shape[0] + spare


def test_shards_of_two_classes():
    labels = torch.tensor([1, 0, 1, 1])
    shards = list(deal(labels, 2, "fixed", 0, 0))
    assert [shard.tolist() for shard in shards] == [[1, 0, 2], [3]]
