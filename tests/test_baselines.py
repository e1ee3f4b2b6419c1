import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from itgan.baselines import (
    Pixels,
    distribution_matching,
    herding,
    herding_order,
    pixel_set,
    same_bytes_jpeg,
    same_bytes_raw,
)
from itgan.configs import CondensationConfig
from itgan.data import ImageSet
from itgan.embedding import RandomPool
from itgan.errors import InputError
from itgan.latents import LatentSGD
from itgan.randomness import derive


@pytest.fixture(scope="module")
def colour():
    """Smooth colour pictures that JPEG compresses well."""
    rng = derive(0, "colour")
    small = torch.rand(60, 3, 4, 4, generator=rng)
    smooth = torch.nn.functional.interpolate(small, size=32, mode="bilinear")
    return ImageSet((smooth * 255).byte(), torch.arange(60) % 4)


def test_raw_images_fill_the_bytes(digits):
    each = 64 + 1
    made = same_bytes_raw(digits.train, 50 * each + 64)
    assert len(made) == 50
    assert made.nbytes == 50 * each
    assert (made.name, made.variant) == ("random", "same-bytes-raw")
    assert made.labels.bincount().tolist() == [5] * 10
    assert len({image.numpy().tobytes() for image in made.images}) == 50


def test_no_more_images_than_there_are(digits):
    assert len(same_bytes_raw(digits.train, 10**9)) == len(digits.train)


@pytest.mark.parametrize("make", [same_bytes_raw, same_bytes_jpeg])
def test_less_than_one_image_per_class_is_refused(digits, make):
    with pytest.raises(InputError, match=r"(700|300) bytes hold only"):
        make(digits.train, 700 if make is same_bytes_jpeg else 300)


def test_jpegs_are_what_a_decoder_gives(colour):
    made = same_bytes_jpeg(colour, 10_000, seed=3)
    again = same_bytes_jpeg(colour, 10_000, seed=3)
    assert torch.equal(made.images, again.images)
    assert 10_000 - 600 < made.nbytes <= 10_000 or len(made) == len(colour)
    originals = {}
    for image, label in zip(colour.images, colour.labels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=75)
        pixels = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
        originals[pixels.tobytes()] = int(label)
    for image, label in zip(made.images, made.labels, strict=True):
        assert originals[image.numpy().tobytes()] == int(label)


def test_shared_tables_are_counted_once(colour):
    few, all_of_them = same_bytes_jpeg(colour, 4_000), same_bytes_jpeg(colour, 10**6)
    assert len(all_of_them) == len(colour)
    whole = 0
    for image in colour.images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=75)
        whole += len(buffer.getvalue())
    assert all_of_them.nbytes < whole - 59 * 500
    assert few.nbytes <= 4_000


def test_grey_jpegs(digits):
    made = same_bytes_jpeg(digits.train, 5_000)
    assert made.images.shape[1:] == (1, 8, 8)


def test_herding_is_the_greedy_choice():
    features = torch.randn(7, 3, generator=derive(0, "herding")).double()
    order = herding_order(features.float(), 4).tolist()
    chosen = []
    for _ in range(4):
        best = min(
            (i for i in range(7) if i not in chosen),
            key=lambda i: float((features[[*chosen, i]].mean(0) - features.mean(0)).norm()),
        )
        chosen.append(best)
    assert order == chosen
    assert sorted(herding_order(features.float(), 7).tolist()) == list(range(7))
    with pytest.raises(ValueError, match="8 of 7 rows"):
        herding_order(features.float(), 8)


def test_herding_follows_the_class_means_better_than_chance(digits):
    train = digits.train
    network = RandomPool("convnet", train).draw(derive(0, "net"))
    made = herding(train, [5] * 10, network)
    assert made.labels.tolist() == list(itertools.chain(*([c] * 5 for c in range(10))))

    def gap(images, label):
        own = network.embed(train.floats(train.class_indices(label))).mean(0)
        return float((network.embed(images.float() / 127.5 - 1).mean(0) - own).norm())

    for label in range(3):
        herded = gap(made.images[made.labels == label], label)
        by_chance = [
            gap(train.images[train.class_indices(label)[5 * k : 5 * k + 5]], label)
            for k in range(5)
        ]
        assert herded < min(by_chance)
    with pytest.raises(InputError, match="class 0 has"):
        herding(train, [10_000] * 10, network)


def test_pixels_are_their_own_latents(digits):
    pixels, images = Pixels(digits.train, torch.device("cpu")), digits.train.floats()[:5]
    latents = pixels.latents(images)
    torch.testing.assert_close(pixels(latents, digits.train.labels[:5]), images)
    network = RandomPool("convnet", digits.train).draw(derive(0))
    torch.testing.assert_close(latents, network.normalise(images))


def test_dm_brings_pixels_closer_and_starts_from_real_images(digits):
    start = digits.train.select(
        torch.cat([digits.train.class_indices(label)[:2] for label in range(10)])
    )
    config = CondensationConfig(
        optimiser="sgd",
        learning_rate=1.0,
        steps=40,
        real_per_class=32,
        network="convnet",
        augmentation="none",
    )
    bank = distribution_matching(start, digits.train, config)
    losses = bank.history["loss"]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    made = pixel_set(bank, digits.train, latent_seed=4)
    assert (made.name, made.latent_seed, made.images.dtype) == ("dm", 4, torch.uint8)
    assert not torch.equal(made.images, start.images)
    still = config.model_copy(update={"learning_rate": 1e-12, "steps": 1})
    kept = pixel_set(distribution_matching(start, digits.train, still), digits.train)
    assert torch.equal(kept.images, start.images)


def test_latent_sgd_is_sgd():
    rng = derive(0, "sgd")
    latents = torch.randn(4, 3, generator=rng)
    reference = latents.clone().requires_grad_(True)
    torch_sgd = torch.optim.SGD([reference], lr=0.3, momentum=0.5)
    ours = LatentSGD(latents, 0.3, 0.5)
    for _ in range(6):
        gradient = torch.randn(4, 3, generator=rng)
        reference.grad = gradient.clone()
        torch_sgd.step()
        ours.step(torch.arange(4), gradient)
    torch.testing.assert_close(latents, reference.detach())
    other = LatentSGD(torch.zeros(4, 3), 0.3, 0.5)
    other.restore({name: t.clone() for name, t in ours.state().items()})
    for optimiser in (ours, other):
        optimiser.step(torch.tensor([2]), torch.ones(1, 3))
    assert torch.equal(other.latents, ours.latents)
