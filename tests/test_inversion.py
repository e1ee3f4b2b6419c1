from itertools import count

import pytest
import torch
from torch import Tensor

import itgan.inversion
from itgan.artefacts import Checkpoint
from itgan.configs import EvaluationConfig, InversionConfig
from itgan.data import ImageSet
from itgan.embedding import train_extractor
from itgan.errors import InputError
from itgan.inversion import distances, invert, psnr
from itgan.latents import LatentBank, initial_latents, sample_latents
from itgan.networks import build_network
from itgan.progress import track
from itgan.randomness import derive, derive_seed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def extractor(images):
    network = build_network("convnet", (1, 8, 8), 10, 5, images.mean, images.std, width=16)
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def few(images):
    """Seven images, so that batches of three leave a rest."""
    return images.select(torch.tensor([0, 1, 4, 9, 13, 30, 39]))


def made_by(generator, n=12, seed=3):
    """Images that the generator made, to within the rounding to 8 bits."""
    labels = torch.arange(n) % generator.num_classes
    with torch.no_grad():
        made = generator(torch.randn(n, 8, generator=derive(seed)), labels)
    pixels = ((made + 1) * 127.5).round().clamp(0, 255).byte()
    names = tuple(map(str, range(10)))
    return ImageSet(pixels, labels, class_names=names)


def eq8(extractor, generator, z, images, lambda_pixel) -> Tensor:
    """Both terms of Eq. 8 for each image, as method.md writes them."""
    real, made = images.floats(), generator(z, images.labels)
    mean = torch.tensor(images.mean).view(1, -1, 1, 1)
    std = torch.tensor(images.std).view(1, -1, 1, 1)
    x, g = ((pixels / 2 + 0.5 - mean) / std for pixels in (real, made))
    psi_x, psi_g = (extractor.features(pixels).flatten(1) for pixels in (x, g))
    d_f, d_i = psi_x.shape[1], x[0].numel()
    return (psi_g - psi_x).pow(2).sum(1) / d_f + lambda_pixel * (g - x).pow(2).sum((1, 2, 3)) / d_i


def test_distances_are_the_two_terms_of_eq_8(generator, extractor, few):
    z = initial_latents((8,), few.rows, seed=1)
    made, real = generator(z, few.labels), few.floats()
    feature, pixel = distances(extractor, made, real, extractor.embed(real))
    for weight in (0.0, 1.0, 2.5):
        expected = eq8(extractor, generator, z, few, weight)
        torch.testing.assert_close(feature + weight * pixel, expected)


@pytest.mark.parametrize("lambda_pixel", [0.0, 1.0, 3.0])
def test_inversion_is_adam_on_the_sum_of_eq_8(generator, extractor, few, lambda_pixel):
    config = InversionConfig(steps=6, learning_rate=0.05, lambda_pixel=lambda_pixel)
    bank = invert(generator, few, config, seed=4, extractor=extractor)

    z = initial_latents((8,), few.rows, seed=4).requires_grad_(True)
    adam = torch.optim.Adam([z], lr=0.05)
    losses, norms = [], []
    for _ in range(6):
        loss = eq8(extractor, generator, z, few, lambda_pixel).sum()
        losses.append(float(loss.detach()) / len(few))
        adam.zero_grad()
        loss.backward()
        adam.step()
        norms.append(float(z.detach().norm(dim=1).mean()))
    torch.testing.assert_close(bank.latents, z.detach(), rtol=1e-4, atol=1e-5)
    # The loss of a step is the one before it moves; here the norm too is measured with the loss.
    assert bank.history["loss"] == pytest.approx(losses, rel=1e-5)
    if lambda_pixel == 0:
        assert bank.history["loss"] == pytest.approx(bank.history["feature"])
    parts = zip(bank.history["feature"], bank.history["pixel"], strict=True)
    assert bank.history["loss"] == pytest.approx([f + lambda_pixel * p for f, p in parts])


def test_the_bank_keeps_labels_rows_and_what_made_it(generator, extractor, few):
    config = InversionConfig(steps=3)
    bank = invert(generator, few, config, seed=4, extractor=extractor)
    assert bank.stage == "inverted"
    assert torch.equal(bank.labels, few.labels)
    assert torch.equal(bank.rows, few.rows)
    assert bank.latents.dtype == torch.float32
    assert not bank.latents.requires_grad
    assert set(bank.history) == {"loss", "feature", "pixel", "norm", "psnr"}
    assert [len(bank.history[k]) for k in ("loss", "feature", "pixel", "norm")] == [3] * 4
    assert bank.provenance["generator"] == generator.fingerprint
    assert bank.provenance["seed"] == 4
    assert InversionConfig.model_validate(bank.provenance["config"]) == config


def test_a_latent_depends_neither_on_the_batch_size_nor_on_its_company(generator, extractor, few):
    whole = invert(generator, few, InversionConfig(steps=20), seed=2, extractor=extractor)
    for size in (1, 3, 7):
        config = InversionConfig(steps=20, batch_size=size)
        bank = invert(generator, few, config, seed=2, extractor=extractor)
        torch.testing.assert_close(bank.latents, whole.latents, rtol=1e-4, atol=1e-4)
        assert bank.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-4)
    chosen = torch.tensor([5, 0, 3])  # another order, too
    config = InversionConfig(steps=20)
    alone = invert(generator, few.select(chosen), config, seed=2, extractor=extractor)
    torch.testing.assert_close(alone.latents, whole.latents[chosen], rtol=1e-4, atol=1e-4)


def test_the_batch_moves_a_first_step_by_rounding_only(generator, extractor, few):
    config = InversionConfig(steps=1)
    whole = invert(generator, few, config, seed=2, extractor=extractor)
    single = config.model_copy(update={"batch_size": 1})
    bank = invert(generator, few, single, seed=2, extractor=extractor)
    torch.testing.assert_close(bank.latents, whole.latents, rtol=0, atol=2e-6)


def test_equal_calls_are_bit_equal_and_seeds_differ(generator, extractor, few):
    config = InversionConfig(steps=4)
    banks = [invert(generator, few, config, seed, extractor) for seed in (2, 2, 3)]
    assert torch.equal(banks[0].latents, banks[1].latents)
    assert not torch.equal(banks[0].latents, banks[2].latents)


def test_more_steps_bring_images_of_the_generator_closer(generator, extractor):
    target = made_by(generator)
    last = []
    for steps in (1, 30, 150):
        config = InversionConfig(steps=steps, learning_rate=0.1)
        bank = invert(generator, target, config, seed=0, extractor=extractor)
        last.append((bank.history["loss"][-1], bank.history["psnr"][0]))
    losses, ratios = zip(*last, strict=True)
    assert losses[0] > 2 * losses[1] > 4 * losses[2]
    assert ratios[0] + 3 < ratios[1] < ratios[2]


def test_the_truth_is_a_minimum(generator, extractor):
    target = made_by(generator)
    true = torch.randn(12, 8, generator=derive(3))
    at_truth = eq8(extractor, generator, true, target, 1.0).mean()
    bank = invert(generator, target, InversionConfig(steps=1), seed=0, extractor=extractor)
    assert float(at_truth) < 1e-3 * bank.history["loss"][0]


def test_psnr_is_measured_on_the_range_of_two(generator, few):
    class Grey:
        device, latent_shape, num_classes, image_shape = CPU, (8,), 10, (1, 8, 8)
        fingerprint = "grey"

        def __call__(self, latents, labels):
            return torch.full((len(latents), 1, 8, 8), 0.5)

    bank = sample_latents(generator, few)
    errors = (few.floats() - 0.5).square().mean((1, 2, 3))
    expected = (10 * torch.log10(4 / errors)).mean()
    assert psnr(Grey(), bank, few) == pytest.approx(float(expected), rel=1e-5)


def test_without_an_extractor_one_is_trained_on_the_images(generator, few):
    training = EvaluationConfig(updates=2, batch_size=4)
    config = InversionConfig(steps=2, extractor=training)
    bank = invert(generator, few, config, seed=6)
    extractor = train_extractor(few, training, derive_seed(6, "extractor"), CPU)
    given = invert(generator, few, config, seed=6, extractor=extractor)
    assert torch.equal(bank.latents, given.latents)


# resume


def interrupted_after(done):
    """A ``track`` that raises when so many steps are done."""

    def steps(numbers, label):
        for finished, step in zip(count(), track(numbers, label), strict=False):
            if finished == done:
                raise KeyboardInterrupt
            yield step

    return steps


@pytest.mark.parametrize("done", [1, 4, 5, 11, 14])
def test_a_resumed_inversion_is_bit_equal(generator, extractor, few, tmp_path, monkeypatch, done):
    config = InversionConfig(steps=5, batch_size=3)  # three batches, 15 steps in all
    straight = invert(generator, few, config, seed=1, extractor=extractor)
    checkpoint = Checkpoint(tmp_path / "snapshot.safetensors", "one", every_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(itgan.inversion, "track", interrupted_after(done))
        with pytest.raises(KeyboardInterrupt):
            invert(generator, few, config, 1, extractor, checkpoint)
    assert checkpoint.load()[1]["step"] == done

    steps = []

    def counted(numbers, label):
        steps.extend(numbers)
        return iter(numbers)

    monkeypatch.setattr(itgan.inversion, "track", counted)
    resumed = invert(generator, few, config, 1, extractor, checkpoint)
    assert steps == list(range(done, 15))
    assert torch.equal(resumed.latents, straight.latents)
    assert resumed.history == straight.history


def test_a_snapshot_of_another_configuration_is_refused(generator, extractor, few, tmp_path):
    path = tmp_path / "snapshot.safetensors"
    config = InversionConfig(steps=2)
    invert(generator, few, config, 1, extractor, Checkpoint(path, "one", every_seconds=0.0))
    with pytest.raises(InputError, match=r"snapshot\.safetensors: belongs to another config"):
        invert(generator, few, config, 1, extractor, Checkpoint(path, "two"))


# refusals


def test_images_of_another_shape_are_refused(generator):
    images = ImageSet(
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.tensor([0, 1]),
        class_names=tuple(map(str, range(10))),
    )
    with pytest.raises(InputError, match=r"generator: makes images of shape \(1, 8, 8\), but"):
        invert(generator, images, InversionConfig(steps=1))


def test_another_number_of_classes_is_refused(generator):
    images = ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="generator: has 10 classes, but the data set has 2"):
        invert(generator, images, InversionConfig(steps=1))


def test_the_result_can_be_saved(generator, extractor, few, tmp_path):
    bank = invert(generator, few, InversionConfig(steps=2), extractor=extractor)
    bank.save(tmp_path / "bank.safetensors")
    kept = LatentBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(kept.latents, bank.latents)
    assert kept.history == bank.history
