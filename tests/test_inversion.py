from itertools import count

import pytest
import torch
from torch import Tensor

import itgan.inversion
from itgan.artefacts import Checkpoint
from itgan.configs import EvaluationConfig, InversionConfig
from itgan.data import ImageSet
from itgan.embedding import train_extractor
from itgan.encoder import train_encoder
from itgan.errors import InputError
from itgan.inversion import CURVES, invert, self_inversion
from itgan.latents import LatentBank, initial_latents, sample_latents
from itgan.networks import build_network
from itgan.progress import track
from itgan.randomness import derive, derive_seed
from itgan.reconstruction import Objective, distances, psnr

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
    single = {"psnr", "final_feature", "norm_05", "norm_50", "norm_95", "left_early", "passes"}
    assert set(bank.history) == {*CURVES, *single}
    assert [len(bank.history[k]) for k in CURVES] == [3] * 4
    assert [len(bank.history[k]) for k in single] == [1] * 7
    norms = bank.latents.norm(dim=1)
    assert bank.history["norm_50"][0] == pytest.approx(float(norms.median()))
    assert bank.history["norm_05"][0] < bank.history["norm_50"][0] < bank.history["norm_95"][0]
    assert (bank.history["left_early"], bank.history["passes"]) == ([0.0], [3.0])
    features = extractor.embed(generator(bank.latents, few.labels)) - extractor.embed(few.floats())
    expected = float(features.square().mean().detach())
    assert bank.history["final_feature"][0] == pytest.approx(expected, rel=1e-5)
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


# a pull to the prior


def test_a_pull_to_the_prior_is_a_third_term(generator, extractor, few):
    config = InversionConfig(steps=6, lambda_prior=0.5, batch_size=3)
    bank = invert(generator, few, config, seed=4, extractor=extractor)
    z = initial_latents((8,), few.rows, seed=4).requires_grad_(True)
    adam = torch.optim.Adam([z], lr=0.1)
    losses = []
    for _ in range(6):
        loss = eq8(extractor, generator, z, few, 1.0).sum() + 0.5 * z.square().sum() / 8
        losses.append(float(loss.detach()) / len(few))
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(bank.latents, z.detach(), rtol=1e-4, atol=1e-5)
    assert bank.history["loss"] == pytest.approx(losses, rel=1e-5)


# where latents start


def truth_of(n=12, seed=3):
    """The latents of ``made_by``, as an encoder that finds an image by its labels."""
    true = torch.randn(n, 8, generator=derive(seed))
    return lambda images, labels: true[labels if len(labels) < n else torch.arange(n)]


def test_the_best_of_several_draws_is_the_one_nearest_in_features(generator, extractor, few):
    config = InversionConfig(steps=1, start="best-of", candidates=5, batch_size=3)
    bank = invert(generator, few, config, seed=2, extractor=extractor)
    seeds = [2, *(derive_seed(2, "candidate", k) for k in range(1, 5))]
    draws = [initial_latents((8,), few.rows, seed) for seed in seeds]
    with torch.no_grad():
        distances = torch.stack([eq8(extractor, generator, z, few, 0.0) for z in draws])
    assert len(distances.argmin(0).unique()) > 1
    assert bank.history["feature"][0] == pytest.approx(float(distances.amin(0).mean()), rel=1e-5)
    best = torch.stack(draws)[distances.argmin(0), torch.arange(len(few))]
    assert (bank.latents - best).abs().max() < 0.1001  # one step of Adam
    assert bank.history["passes"] == [6.0]


def test_an_encoder_from_elsewhere_gives_the_start(generator, extractor):
    target = made_by(generator, n=10)
    encode = truth_of(10)
    asked = []

    def encoder(images, labels):
        assert torch.equal(images, target.floats()[labels])
        asked.append(len(labels))
        return encode(images, labels)

    config = InversionConfig(steps=1, start="encoder", batch_size=4)
    bank = invert(generator, target, config, extractor=extractor, encoder=encoder)
    far = invert(generator, target, InversionConfig(steps=1), extractor=extractor)
    assert asked == [4, 4, 2]
    assert bank.history["loss"][0] < 1e-3 * far.history["loss"][0]


def test_without_an_encoder_one_is_trained(generator, extractor, few):
    short = {"pair_steps": 2, "refine_steps": 1, "batch_size": 4, "width": 1}
    config = InversionConfig(steps=1, start="encoder", encoder=short)
    bank = invert(generator, few, config, seed=6, extractor=extractor)
    objective = Objective(generator, extractor, few, config)
    encoder = train_encoder(objective, derive_seed(6, "encoder"))
    given = invert(generator, few, config, 6, extractor, encoder=encoder)
    assert torch.equal(bank.latents, given.latents)


def test_an_own_encoder_has_to_be_given(generator, extractor, few):
    config = InversionConfig(steps=1, start="own-encoder")
    with pytest.raises(InputError, match="start=own-encoder: give the encoder too"):
        invert(generator, few, config, 0, extractor)
    trained = config.model_copy(update={"start": "encoder"})
    given, same = (
        invert(generator, few, each, 0, extractor, encoder=simple_encoder)
        for each in (config, trained)
    )
    assert torch.equal(given.latents, same.latents)


def test_an_encoder_of_other_latents_is_refused(generator, extractor, few):
    config = InversionConfig(steps=1, start="encoder")
    with pytest.raises(InputError, match=r"encoder: gives \(7, 5\) for 7 images, but the gener"):
        invert(
            generator,
            few,
            config,
            extractor=extractor,
            encoder=lambda images, labels: torch.zeros(len(labels), 5),
        )


# leaving early, and starting again

EARLY = {"steps": 40, "tolerance": 0.3, "window": 5}


def leaves_at(losses, tolerance, window):
    """The steps of an image with these losses, by the definition."""
    for end in range(2 * window, len(losses), window):
        before, now = sum(losses[end - 2 * window : end - window]), sum(losses[end - window : end])
        if now > (1 - tolerance) * before:
            return end
    return len(losses)


def test_an_image_leaves_when_its_own_loss_has_stopped_to_fall(generator, extractor):
    few, config = made_by(generator, n=7), InversionConfig(**EARLY, batch_size=3)
    bank = invert(generator, few, config, seed=1, extractor=extractor)
    ends, curves = [], []
    for i in range(len(few)):
        alone = few.select([i])
        whole = invert(generator, alone, InversionConfig(steps=40), 1, extractor)
        losses = whole.history["loss"]
        ends.append(leaves_at(losses, 0.3, 5))
        curves.append(losses[: ends[-1]] + [losses[ends[-1] - 1]] * (40 - ends[-1]))
        stopped = invert(generator, alone, InversionConfig(steps=ends[-1]), 1, extractor)
        torch.testing.assert_close(bank.latents[i], stopped.latents[0], rtol=1e-4, atol=1e-4)
    assert len(set(ends)) > 2
    assert bank.history["passes"] == [pytest.approx(sum(ends) / len(few))]
    assert bank.history["left_early"] == [pytest.approx(sum(e < 40 for e in ends) / len(few))]
    # Who left counts with the last values.
    expected = torch.tensor(curves).mean(0).tolist()
    assert bank.history["loss"] == pytest.approx(expected, rel=1e-4)


def test_waiting_images_take_the_free_places(generator, extractor):
    sizes = []

    class Counted:
        device, latent_shape, num_classes, image_shape = CPU, (8,), 10, (1, 8, 8)
        fingerprint = "counted"

        def __call__(self, latents, labels):
            if latents.requires_grad:
                sizes.append(len(latents))
            return generator(latents, labels)

    few, config = made_by(generator, n=7), InversionConfig(**EARLY, batch_size=3)
    bank = invert(Counted(), few, config, seed=1, extractor=extractor)
    assert sum(sizes) == round(bank.history["passes"][0] * len(few)) < 40 * len(few)
    assert sizes == sorted(sizes, reverse=True)  # full until nobody waits
    assert sizes[0] == 3


@pytest.mark.parametrize("start", ["random", "best-of"])
def test_the_worst_start_again_and_the_better_latent_stays(generator, extractor, few, start):
    first = InversionConfig(steps=15, start=start, candidates=3)
    both = first.model_copy(update={"restart_share": 0.4, "batch_size": 2})
    plain = invert(generator, few, first, 5, extractor)
    bank = invert(generator, few, both, 5, extractor)
    other = invert(generator, few, first, derive_seed(5, "restart"), extractor)

    def losses(found):
        return eq8(extractor, generator, found.latents, few, 1.0).detach()

    worst = losses(plain).topk(3).indices
    expected = plain.latents.clone()
    better = worst[losses(other)[worst] < losses(plain)[worst]]
    assert 0 < len(better) < 3 or start == "best-of"
    expected[better] = other.latents[better]
    torch.testing.assert_close(bank.latents, expected, rtol=1e-3, atol=1e-3)
    assert bank.history["passes"] == [pytest.approx((15 + 3 * (start == "best-of")) * 10 / 7)]
    assert bank.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-5)


OPTIONS = {
    "best-of": {"start": "best-of", "candidates": 4},
    "encoder": {"start": "encoder"},
    "early": {"tolerance": 0.2, "window": 3},
    "prior": {"lambda_prior": 0.1},
    "cosine": {"schedule": "cosine"},
    "principal": {"basis": "principal"},
    "again": {"restart_share": 1.0},  # which images are the worst is a matter of company
    "all": {"start": "best-of", "tolerance": 0.2, "window": 3, "restart_share": 1.0},
}


def simple_encoder(images, labels):
    return images.flatten(1)[:, ::8] + labels[:, None] / 10


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_makes_a_latent_depend_on_its_company(generator, extractor, few, option):
    config = InversionConfig.model_validate({"steps": 20, **OPTIONS[option]})
    whole = invert(generator, few, config, 2, extractor, encoder=simple_encoder)
    for size in (1, 3):
        narrow = config.model_copy(update={"batch_size": size})
        bank = invert(generator, few, narrow, 2, extractor, encoder=simple_encoder)
        torch.testing.assert_close(bank.latents, whole.latents, rtol=1e-4, atol=1e-4)
    chosen = torch.tensor([5, 0, 3])
    alone = invert(generator, few.select(chosen), config, 2, extractor, encoder=simple_encoder)
    torch.testing.assert_close(alone.latents, whole.latents[chosen], rtol=1e-4, atol=1e-4)


# the control


def test_the_control_inverts_images_of_the_generator(generator, extractor, few):
    config = InversionConfig(steps=150)
    found = self_inversion(generator, few, config, 0, extractor)
    early = self_inversion(generator, few, InversionConfig(steps=1), 0, extractor)
    assert found["psnr"] > early["psnr"] + 5
    assert found["correlation"] > early["correlation"] + 0.1

    true = initial_latents((8,), few.rows, derive_seed(0, "control"))
    tiny = InversionConfig(steps=1, learning_rate=1e-6, start="encoder")
    exact = self_inversion(generator, few, tiny, 0, extractor, lambda images, labels: true)
    assert exact["correlation"] == pytest.approx(1, abs=1e-4)
    assert exact["psnr"] > 50  # what rounding to 8 bits leaves


def test_a_bank_has_the_control_in_its_history(generator, extractor, few):
    plain = InversionConfig(steps=5)
    config = plain.model_copy(update={"control": 3})
    bank = invert(generator, few, config, 4, extractor)
    chosen = few.select(torch.tensor([0, 3, 6]))
    found = self_inversion(generator, chosen, plain, 4, extractor)
    assert bank.history["control_psnr"] == [found["psnr"]]
    assert bank.history["control_correlation"] == [found["correlation"]]
    assert torch.equal(bank.latents, invert(generator, few, plain, 4, extractor).latents)


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
    # Three batches, 15 steps in all.
    config = InversionConfig(steps=5, batch_size=3, basis="principal")
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


@pytest.mark.parametrize("done", [1, 7, 11, 12, 13, 17, 19])
def test_with_every_option_too(generator, extractor, few, tmp_path, monkeypatch, done):
    fields = {"steps": 12, "batch_size": 3, "tolerance": 0.3, "window": 2, "restart_share": 0.6}
    config = InversionConfig.model_validate(fields | {"start": "best-of", "candidates": 2})
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(itgan.inversion, "track", lambda numbers, label: noted(numbers, seen))
        straight = invert(generator, few, config, 1, extractor)
    if done >= len(seen):
        pytest.fail(f"it ended after {len(seen)} steps; choose an earlier one")
    checkpoint = Checkpoint(tmp_path / "snapshot.safetensors", "one", every_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(itgan.inversion, "track", interrupted_after(done))
        with pytest.raises(KeyboardInterrupt):
            invert(generator, few, config, 1, extractor, checkpoint)
    resumed = invert(generator, few, config, 1, extractor, checkpoint)
    assert torch.equal(resumed.latents, straight.latents)
    assert resumed.history == straight.history


def noted(numbers, seen):
    for number in numbers:
        seen.append(number)
        yield number


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
