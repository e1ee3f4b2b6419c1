import os
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import itgan.condensation
from itgan import discrepancies, matching
from itgan.artefacts import Checkpoint
from itgan.augment import STRATEGY, draw_augmentation
from itgan.condensation import condense
from itgan.configs import CondensationConfig, InversionConfig, PoolConfig
from itgan.directions import principal_directions
from itgan.drawing import Partners, draw_embeddings, draw_real, real_statistics
from itgan.errors import InputError
from itgan.latents import LatentAdam, LatentBank, sample_latents
from itgan.networks import Network, build_network
from itgan.randomness import derive
from itgan.two_pass import Draw, Problem, descend

CPU = torch.device("cpu")
QUICK = CondensationConfig(steps=3, real_per_class=5, learning_rate=0.05)


def changed(config=QUICK, **fields):
    return CondensationConfig.model_validate({**config.model_dump(), **fields})


class Toy:
    """A small smooth generator in any precision: tanh(W z + b_y)."""

    latent_shape, num_classes, image_shape, device = (6,), 10, (1, 8, 8), CPU
    fingerprint = "toy"

    def __init__(self, dtype=torch.float32):
        rng = derive(0, "toy")
        self.weight = torch.randn(64, 6, generator=rng).to(dtype) / 2
        self.bias = torch.randn(10, 64, generator=rng).to(dtype) / 2
        self.sizes = []

    def __call__(self, latents, labels):
        self.sizes.append(len(latents))
        return (latents @ self.weight.T + self.bias[labels]).tanh().view(-1, 1, 8, 8)


class Identity:
    """G(z) = z: latents are the images themselves."""

    latent_shape, num_classes, image_shape, device = (1, 8, 8), 10, (1, 8, 8), CPU
    fingerprint = "identity"

    def __call__(self, latents, labels):
        return latents


class Pixels(Network):
    """psi(x) = x, and a record of what it was shown."""

    def __init__(self):
        super().__init__((1, 8, 8))
        self.features, self.classifier = nn.Flatten(), nn.Linear(64, 10)
        self.seen = []

    def embed(self, images, augmentation=None):
        self.seen.append((images.detach(), augmentation))
        return super().embed(images, augmentation)


class Always:
    """A pool of one network."""

    def __init__(self, network):
        self.network, self.draws = network, 0

    def draw(self, rng):
        self.draws += 1
        return self.network


class Fresh:
    """A pool of small untrained networks, new at every draw."""

    def draw(self, rng):
        return convnet(int(torch.randint(2**62, (), generator=rng)))


def convnet(seed, norm="instance", dtype=torch.float32):
    network = build_network("convnet", (1, 8, 8), 10, seed, 0.3, 0.4, norm=norm, width=8)
    return network.requires_grad_(False).to(dtype)


def by_rows(bank):
    return bank.latents[bank.rows.argsort()]


def real_bank(images):
    """Latents of ``Identity`` that are the real images."""
    return LatentBank(images.floats(), images.labels, images.rows, "inverted")


# The gradient of Eq. 11

LABELS = torch.tensor([2, 2, 2, 2, 5, 5, 5, 9])  # unequal classes, with gaps


def problem(dtype, lambda_reg, micro_batch, draws=2, strategy="color_crop_cutout_flip_scale"):
    made = []
    for k in range(draws):
        augmentations = {c: draw_augmentation(derive(k, "a", c), strategy) for c in (2, 5, 9)}
        made.append(Draw(convnet(k, dtype=dtype), augmentations))
    rng = derive(1, "real")
    real = {c: torch.rand(4, 1, 8, 8, generator=rng).to(dtype) * 2 - 1 for c in (2, 5, 9)}
    partners = (torch.rand(8, 1, 8, 8, generator=rng) * 2 - 1).to(dtype) if lambda_reg else None
    means = [
        torch.stack([d.network.embed(real[c], d.augmentations[c]).mean(0) for c in real])
        for d in made
    ]
    return Problem(
        Toy(dtype), LABELS, made, means, partners, lambda_reg, micro_batch, "fp32"
    ), real


def latents_for(dtype):
    return torch.randn(8, 6, generator=derive(2, "z")).to(dtype)


def latent_gradient(problem, latents):
    """The whole gradient, and the loss with its parts."""
    gradient = torch.full_like(latents, torch.nan)

    def keep(positions, part):
        assert gradient[positions].isnan().all()  # each latent once
        gradient[positions] = part

    return gradient, astuple(descend(problem, latents.__getitem__, keep))


def eq11(case, real, z):
    """Eq. 9 to 11 as method.md writes them, class by class, and the cross-entropy; means over
    the draws."""
    l_con, regulariser, entropy = (z.new_zeros(()) for _ in range(3))
    for draw in case.draws:
        for c, x in real.items():
            psi, augment = draw.network.embed, draw.augmentations[c]
            made = case.generator(z[case.labels == c], case.labels[case.labels == c])
            difference = psi(x, augment).mean(0) - psi(made, augment).mean(0)
            l_con = l_con + difference.pow(2).sum()
            logits = draw.network.classifier(psi(made, augment))
            entropy = entropy - logits.log_softmax(1)[:, c].mean()
            if case.partners is not None:
                x_i = case.partners[case.labels == c]
                pairs = (psi(x_i, augment) - psi(made, augment)).pow(2).sum(1)
                regulariser = regulariser + pairs.mean()
    parts = [part / len(case.draws) for part in (l_con, regulariser, entropy)]
    weights = (1 - case.lambda_reg, case.lambda_reg, case.lambda_class)
    loss = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return loss, *parts[:2], parts[2] if case.lambda_class else torch.zeros(())


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
@pytest.mark.parametrize(
    ("lambda_reg", "lambda_class"), [(0.0, 0.0), (0.3, 0.0), (1.0, 0.0), (0.0, 0.7), (0.3, 2.0)]
)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_two_passes_give_the_gradient_of_eq_11_and_of_the_cross_entropy(
    dtype, rtol, lambda_reg, lambda_class, micro_batch, draws
):
    case, real = problem(dtype, lambda_reg, micro_batch, draws)
    case = replace(case, lambda_class=lambda_class)
    z = latents_for(dtype).requires_grad_(True)
    loss, *parts = eq11(case, real, z)
    (expected,) = torch.autograd.grad(loss, z)
    gradient, values = latent_gradient(case, z.detach())
    assert float((gradient - expected).norm() / expected.norm()) < rtol
    for found, value in zip(values, (loss, *parts), strict=True):
        assert float(found) == pytest.approx(float(value.detach()), rel=rtol)


@pytest.mark.parametrize("per_class", [1, 7, 100, 1250])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_two_passes_equal_one_for_any_number_of_latents(dtype, rtol, per_class):
    labels = torch.tensor([3, 8]).repeat_interleave(per_class)
    z = torch.randn(2 * per_class, 6, generator=derive(4)).to(dtype)
    real = torch.randn(9, 1, 8, 8, generator=derive(5)).to(dtype).tanh()
    draws = [Draw(convnet(0, dtype=dtype), {c: draw_augmentation(derive(6, c)) for c in (3, 8)})]
    means = [
        torch.stack([d.network.embed(real, d.augmentations[c]).mean(0) for c in (3, 8)])
        for d in draws
    ]
    partners = torch.randn(2 * per_class, 1, 8, 8, generator=derive(7)).to(dtype).tanh()

    def case(micro_batch):
        toy = Toy(dtype)
        problem = Problem(toy, labels, draws, means, partners, 0.1, micro_batch, "fp32")
        return *latent_gradient(problem, z), len(toy.sizes)

    gradient, values, passes = case(2 * per_class)
    parts, values_in_parts, parts_passes = case(max(1, per_class // 3))
    assert passes == 1
    assert parts_passes >= 3  # two passes over two parts or more, the last one's graph kept
    assert float((parts - gradient).norm() / gradient.norm()) < rtol
    assert [*map(float, values_in_parts)] == pytest.approx([*map(float, values)], rel=rtol)


@pytest.mark.parametrize("kept", [1, 2, 3, 100])
def test_graphs_that_are_kept_save_passes_and_change_no_bit(kept):
    case, _ = problem(torch.float32, 0.3, micro_batch=3)
    z = latents_for(torch.float32)
    expected = latent_gradient(replace(case, generator=Toy(torch.float32), kept_graphs=1), z)
    toy = Toy(torch.float32)
    found = latent_gradient(replace(case, generator=toy, kept_graphs=kept), z)
    assert torch.equal(found[0], expected[0])
    assert [*map(float, found[1])] == [*map(float, expected[1])]
    assert len(toy.sizes) == 6 - min(kept, 3)


MEMORY = """
import resource, sys, torch
from torch import nn
from itgan.condensation import condense
from itgan.configs import CondensationConfig
from itgan.data import ImageSet
from itgan.latents import LatentBank
from itgan.networks import Network

torch.set_num_threads(1)


class Linear:
    latent_shape, num_classes, image_shape = (1024,), 2, (1, 4, 4)
    device, fingerprint = torch.device("cpu"), "linear"
    weight = torch.randn(1024, 16, generator=torch.Generator().manual_seed(0)) / 32

    def __call__(self, latents, labels):
        return (latents @ self.weight).tanh().view(-1, 1, 4, 4)


class Tiny(Network):
    def __init__(self):
        super().__init__((1, 4, 4))
        self.features, self.classifier = nn.Conv2d(1, 2, 3), nn.Linear(8, 2)


class Pool:
    def draw(self, rng):
        return Tiny()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(per_class):
    labels = torch.arange(2).repeat_interleave(per_class)
    images = torch.randint(256, (2 * per_class, 1, 4, 4)).byte()
    real = ImageSet(images, labels)
    bank = LatentBank(torch.randn(len(labels), 1024), labels, real.rows, "random")
    before = peak()
    config = CondensationConfig(steps=2, micro_batch=100, lambda_reg=0.1, real_per_class=50)
    condense(Linear(), bank, real, config, pool=Pool())
    return before


run(20)  # whatever is loaded once
before = run(int(sys.argv[1]))
print(before, peak())
"""


def test_memory_grows_by_the_latents_and_the_state_of_adam_alone():
    def bytes_of(per_class):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(per_class)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(itgan.__file__).parents[1])},
        )
        before, after = map(int, done.stdout.split())
        return before, after

    few, many = bytes_of(100), bytes_of(5000)
    numbers = 2 * (5000 - 100) * 1024
    # Beside the bank that is given: latents, Adam's two moments, and no whole gradient.
    assert (many[1] - many[0]) - (few[1] - few[0]) <= 16 * numbers
    # With it: some bytes for each latent (labels, weights, rows) come on top.
    assert many[1] - few[1] <= 16 * numbers + 2 * 4900 * 1024


def class_gradient(draw, images, label, augmentation):
    """The gradient of a class's mean loss in all parameters."""
    logits = draw.network(images, augmentation)
    loss = torch.nn.functional.cross_entropy(logits, torch.full((len(images),), label))
    return torch.autograd.grad(loss, list(draw.network.parameters()), create_graph=True)


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_the_two_passes_give_the_gradient_of_gradient_matching(micro_batch):
    case, real = problem(torch.float64, 0.0, micro_batch)
    match = discrepancies.GradientMatching()
    for draw in case.draws:
        draw.network.requires_grad_(True)
        draw.network.float().double()
    z = latents_for(torch.float64).requires_grad_(True)
    loss, statistics = z.new_zeros(()), []
    for draw in case.draws:
        rows = []
        for c, x in real.items():
            own = class_gradient(draw, x, c, draw.augmentations[c])
            made = case.generator(z[case.labels == c], case.labels[case.labels == c])
            other = class_gradient(draw, made, c, draw.augmentations[c])
            loss = loss + matching.gradient_distance(own, other) / len(case.draws)
            rows.append(torch.cat([g.detach().flatten() for g in own if g.ndim > 1]))
        statistics.append(torch.stack(rows))
    (expected,) = torch.autograd.grad(loss, z)
    case = replace(case, real_statistics=statistics, discrepancy=match)
    gradient, values = latent_gradient(case, z.detach())
    # Losses are taken in fp32, whatever the precision of the networks.
    assert float(values[0]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_the_two_passes_give_the_gradient_of_regression_and_the_cross_entropy(micro_batch):
    case, real = problem(torch.float64, 0.0, micro_batch, draws=2)
    match = discrepancies.RegressionMatching(0.5)
    z = latents_for(torch.float64).requires_grad_(True)
    loss, statistics = z.new_zeros(()), []
    for draw in case.draws:
        own = [draw.network.embed(x, draw.augmentations[c]) for c, x in real.items()]
        made = [
            draw.network.embed(
                case.generator(z[case.labels == c], case.labels[case.labels == c]),
                draw.augmentations[c],
            )
            for c in real
        ]
        eye = torch.eye(len(real), dtype=torch.float64)
        theirs, ours = (
            torch.cat([row.expand(len(f), -1) for row, f in zip(eye, parts, strict=True)])
            for parts in (own, made)
        )
        value = matching.regression(torch.cat(own), theirs, torch.cat(made), ours, 0.5)
        for c, f in zip(real, made, strict=True):
            value = value - 2 * draw.network.classify(f).log_softmax(1)[:, c].mean()
        loss = loss + value / len(case.draws)
        statistics.append(torch.cat([torch.cat(own), theirs], 1).detach())
    (expected,) = torch.autograd.grad(loss, z)
    case = replace(case, real_statistics=statistics, discrepancy=match, lambda_class=2.0)
    gradient, values = latent_gradient(case, z.detach())
    assert float(values[0]) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-6


def test_the_statistic_of_regression_is_every_real_image_in_order(images):
    config = changed(matching="regression", augmentation="none", real_per_class=3)
    match = discrepancies.make_discrepancy("regression", 1.0)
    members = {c: images.class_indices(c) for c in images.labels.unique().tolist()}
    labels = images.labels.sort().values
    draws = list(draw_embeddings(Fresh(), labels, config, 0, (0, 0), match, torch.device("cpu")))
    batch = draw_real(images, members, labels, config, 0, 0, 0)
    (found,) = real_statistics(batch, draws, 7, "fp32", match, compiled=False)
    features = draws[0].network.embed(batch.floats())
    torch.testing.assert_close(found[:, :-10], features)
    assert torch.equal(found[:, -10:].argmax(1), batch.labels)


def test_regression_lowers_its_loss(images):
    config = changed(steps=60, matching="regression", augmentation="none", real_per_class=100)
    start = sample_latents(Toy(), images)
    bank = condense(Toy(), start, images, config, pool=Always(convnet(0)))
    history = bank.history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert history["loss"] == history["matching"]


def test_gradient_matching_lowers_its_loss(images):
    config = changed(steps=30, matching="gradient", augmentation="none")
    pool = Always(convnet(0))
    start = sample_latents(Toy(), images)
    history = condense(Toy(), start, images, config, pool=pool).history["loss"]
    assert history[-1] < 0.9 * history[0]
    whole = condense(Toy(), start, images, changed(config, steps=2), pool=pool)
    parts = condense(Toy(), start, images, changed(config, steps=2, micro_batch=7), pool=pool)
    torch.testing.assert_close(parts.latents, whole.latents, rtol=1e-2, atol=1e-3)


def test_a_network_for_each_class_changes_no_other_class(images):
    config = changed(network_per="class")
    bank = sample_latents(Toy(), images)
    alone = bank.select((bank.labels == 3).nonzero().flatten())
    pool = Fresh()
    every = condense(Toy(), bank, images, config, pool=pool)
    one = condense(Toy(), alone, images, config, pool=pool)
    assert torch.equal(every.latents[every.labels == 3], one.latents)
    shared = condense(Toy(), bank, images, QUICK, pool=pool)
    assert not torch.equal(shared.latents, every.latents)


def test_several_draws_give_the_mean_of_their_gradients():
    case, _ = problem(torch.float64, 0.3, 3)
    z = latents_for(torch.float64)
    both, values = latent_gradient(case, z)
    single = []
    for k in range(2):
        one = Problem(
            case.generator,
            case.labels,
            case.draws[k : k + 1],
            case.real_statistics[k : k + 1],
            case.partners,
            case.lambda_reg,
            case.micro_batch,
            case.precision,
        )
        single.append(latent_gradient(one, z))
    torch.testing.assert_close(both, (single[0][0] + single[1][0]) / 2)
    means = [float(a + b) / 2 for a, b in zip(single[0][1], single[1][1], strict=True)]
    assert [*map(float, values)] == pytest.approx(means)


@pytest.mark.parametrize("lambda_reg", [0.0, 0.5])
def test_equal_sets_have_no_loss_and_no_gradient(images, lambda_reg):
    chosen = images.select((images.labels == 2) | (images.labels == 5))
    z = chosen.floats().double()
    draws = [
        Draw(
            convnet(k, dtype=torch.float64),
            {c: draw_augmentation(derive(k, "a", c)) for c in (2, 5)},
        )
        for k in range(4)
    ]
    means = [
        torch.stack(
            [d.network.embed(z[chosen.labels == c], d.augmentations[c]).mean(0) for c in (2, 5)]
        )
        for d in draws
    ]
    partners = z if lambda_reg else None

    def case(real_statistics):
        return Problem(
            Identity(), chosen.labels, draws, real_statistics, partners, lambda_reg, 3, "fp32"
        )

    gradient, values = latent_gradient(case(means), z)
    elsewhere, others = latent_gradient(case([m.flip(0) for m in means]), z)
    assert float(values[1]) < 1e-25 * float(others[1])
    assert float(values[2]) == 0
    assert float(gradient.norm()) < 1e-12 * float(elsewhere.norm())


@pytest.mark.parametrize("kind", ["distribution", "gradient", "regression"])
@pytest.mark.parametrize("group", STRATEGY.split("_"))
def test_a_step_does_not_wait_for_the_device(images, kind, group):
    meta = torch.device("meta")  # to read a number from there is an error
    with pytest.raises(RuntimeError):
        float(torch.zeros((), device=meta))
    toy = Toy()
    toy.weight, toy.bias = toy.weight.to(meta), toy.bias.to(meta)
    config = changed(matching=kind, augmentation=group, embeddings_per_step=2)
    match = discrepancies.make_discrepancy(kind, 1.0)
    members = {c: images.class_indices(c) for c in images.labels.unique().tolist()}
    labels = images.labels.sort().values
    draws = list(draw_embeddings(Fresh(), labels, config, 0, (0, 0), match, meta))
    batch = draw_real(images, members, labels, config, 0, 0, 0)
    means = real_statistics(batch, draws, 7, "fp32", match, compiled=False)
    partners = Partners(images, images.labels.argsort(stable=True), meta)
    adam = LatentAdam(torch.zeros(len(labels), 6, device=meta), 0.1, decay_steps=9)
    rows = torch.arange(len(labels), device=meta)
    found = descend(
        Problem(toy, labels, draws, means, partners, 0.1, 7, "fp32", match, lambda_class=2.0),
        lambda chunk: adam.latents[rows[chunk]],
        lambda chunk, gradient: adam.step(rows[chunk], gradient),
    )
    assert all(value.device == meta for value in astuple(found))


# One step and the whole loop, in closed form


@pytest.mark.parametrize("lambda_reg", [0.0, 0.25])
def test_condensing_pixels_in_pixel_space_is_known_in_closed_form(images, lambda_reg):
    start = LatentBank(
        torch.randn(40, 1, 8, 8, generator=derive(3)), images.labels, images.rows, "random"
    )
    config = changed(
        steps=4, real_per_class=100, augmentation="none", lambda_reg=lambda_reg, micro_batch=7
    )
    bank = condense(Identity(), start, images, config, pool=Always(Pixels()))

    real = images.floats().unflatten(0, (10, 4)).flatten(2)  # classes 4 d
    z = start.latents.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=0.05)
    losses, matchings, regularisers = [], [], []
    for _ in range(4):
        made = z.unflatten(0, (10, 4)).flatten(2)
        matching = (real.mean(1) - made.mean(1)).pow(2).sum()
        regulariser = (real - made).pow(2).sum(2).mean(1).sum()
        loss = (1 - lambda_reg) * matching + lambda_reg * regulariser
        losses.append(float(loss.detach()))
        matchings.append(float(matching.detach()))
        regularisers.append(float(regulariser.detach()))
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(bank.latents, z.detach(), rtol=1e-4, atol=1e-5)
    assert bank.history["matching"] == pytest.approx(matchings, rel=1e-5)
    assert bank.history["loss"] == pytest.approx(losses, rel=1e-5)
    if lambda_reg:
        assert bank.history["regulariser"] == pytest.approx(regularisers, rel=1e-5)
    norm = float(z.detach().flatten(1).norm(dim=1).mean())
    assert bank.history["norm"][-1] == pytest.approx(norm, rel=1e-5)


def test_images_come_to_be_classified_by_the_network_that_is_drawn(images):
    network = convnet(0)
    config = changed(steps=60, real_per_class=100, lambda_class=50, augmentation="none")
    plain = changed(config, lambda_class=0)
    start = sample_latents(Toy(), images)
    banks = [condense(Toy(), start, images, c, pool=Always(network)) for c in (plain, config)]
    right = [
        float((network(Toy()(b.latents, b.labels)).argmax(1) == b.labels).float().mean())
        for b in banks
    ]
    assert right[1] > right[0] + 0.3
    history = banks[1].history
    assert history["classification"][-1] < 0.9 * history["classification"][0]
    total = history["matching"][7] + 50 * history["classification"][7]
    assert history["loss"][7] == pytest.approx(total, rel=1e-5)
    assert "classification" not in banks[0].history


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "untrained networks cannot classify"),
        ({"pool": PoolConfig(kind="snapshots"), "layers": "all"}, "leave layers out"),
    ],
)
def test_only_trained_networks_last_layers_classify(images, fields, message):
    with pytest.raises(InputError, match=message):
        condense(Toy(), sample_latents(Toy(), images), images, changed(lambda_class=1, **fields))


def test_condensation_brings_the_class_means_together(images):
    start = sample_latents(Toy(), images)
    config = changed(steps=100, real_per_class=100, augmentation="none")
    bank = condense(Toy(), start, images, config, pool=Always(Pixels()))
    losses = bank.history["matching"]
    assert losses[99] < losses[30] < losses[0]
    assert losses[99] < 0.6 * losses[0]


@pytest.mark.parametrize("seed", range(4))
def test_real_and_synthetic_images_of_a_class_are_augmented_alike(digits, seed):
    few = digits.train.select(torch.arange(40))
    config = changed(steps=1, real_per_class=100, embeddings_per_step=3)
    equal = condense(Identity(), real_bank(few), few, config, seed, Fresh())
    # With other images (the same upside down) the loss is what it is when nothing fits.
    turned = LatentBank(few.floats().flip(2), few.labels, few.rows, "inverted")
    other = condense(Identity(), turned, few, config, seed, Fresh())
    assert equal.history["matching"][0] < 1e-8 * other.history["matching"][0]


def test_each_class_has_its_own_augmentation_and_both_sides_and_partners_share_it(images):
    network = Pixels()
    config = changed(steps=1, lambda_reg=0.5, real_per_class=2)
    condense(Toy(), sample_latents(Toy(), images), images, config, pool=Always(network))
    real, synthetic, partners = (blocks for _, blocks in network.seen)
    assert [count for _, count in real.parts] == [2] * 10
    assert [count for _, count in synthetic.parts] == [4] * 10
    draws = [draw for draw, _ in synthetic.parts]
    assert [draw for draw, _ in real.parts] == draws
    assert [draw for draw, _ in partners.parts] == draws
    assert len({(draw.group, tuple(draw.uniforms.flatten().tolist())) for draw in draws}) == 10
    assert torch.equal(network.seen[2][0], images.floats())  # x_i stands beside z_i


def test_networks_and_augmentations_are_new_in_every_step_shard_and_draw(images):
    class Spy(Always):
        def draw(self, rng):
            numbers.add(float(torch.rand((), generator=rng)))
            return super().draw(rng)

    numbers = set()
    pool = Spy(Pixels())
    config = changed(steps=3, shard_per_class=2, embeddings_per_step=2, augmentation="cutout")
    condense(Toy(), sample_latents(Toy(), images), images, config, pool=pool)
    rounds = 3 * 2 * 2  # steps, shards, draws
    assert len(numbers) == rounds
    draws = {
        tuple(draw.uniforms.flatten().tolist())
        for _, blocks in pool.network.seen
        for draw, _ in blocks.parts
    }
    assert len(draws) == 10 * rounds


def test_classes_draw_their_real_images_independently(digits):
    train = digits.train
    few = train.select(torch.cat([train.class_indices(label)[:9] for label in range(10)]))
    network = Pixels()
    config = changed(steps=1, augmentation="none", real_per_class=5)
    condense(Toy(), sample_latents(Toy(), few), few, config, pool=Always(network))
    batch = network.seen[0][0].unflatten(0, (10, 5))
    orders = set()
    for label in range(10):
        own = few.floats(few.class_indices(label))
        match = (batch[label][:, None] == own).flatten(2).all(2)  # drawn, own
        orders.add(tuple(match.long().argmax(1).tolist()))
    assert len(orders) == 10


def test_the_real_batch_is_drawn_anew_without_repetition(digits):
    few = digits.train.select(torch.arange(100))
    network = Pixels()
    start = sample_latents(Toy(), few.select(torch.arange(20)))
    config = changed(steps=6, augmentation="none", real_per_class=4)
    condense(Toy(), start, few, config, pool=Always(network))
    known = {
        tuple(x.flatten().tolist()): y
        for x, y in zip(few.floats(), few.labels.tolist(), strict=True)
    }
    assert len(known) == 100
    classes = start.labels.unique().tolist()
    batches = [images for images, _ in network.seen[::2]]
    for batch in batches:
        keys = [tuple(x.flatten().tolist()) for x in batch]
        assert [known[key] for key in keys] == [c for c in classes for _ in range(4)]
        assert len(set(keys)) == len(keys)
    assert all(not torch.equal(batches[0], batch) for batch in batches[1:])


# What does not change the result


@pytest.mark.parametrize("splitting", ["fixed", "random"])
@pytest.mark.parametrize("lambda_reg", [0.0, 0.2])
def test_the_micro_batch_changes_the_result_by_rounding_only(images, lambda_reg, splitting):
    generator = Toy()
    start = sample_latents(generator, images)
    config = changed(
        lambda_reg=lambda_reg, splitting=splitting, shard_per_class=3, embeddings_per_step=2
    )
    whole = condense(generator, start, images, config, seed=1, pool=Fresh())
    generator.sizes.clear()
    split = condense(
        generator, start, images, changed(config, micro_batch=7), seed=1, pool=Fresh()
    )
    torch.testing.assert_close(split.latents, whole.latents, rtol=1e-3, atol=1e-4)
    assert split.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-4)
    assert max(generator.sizes) == 7


def test_real_images_too_go_through_in_micro_batches(digits):
    few = digits.train.select(torch.arange(60))
    network = Pixels()
    config = changed(micro_batch=8, real_per_class=6)
    condense(Toy(), sample_latents(Toy(), few), few, config, pool=Always(network))
    assert max(len(images) for images, _ in network.seen) == 8


@pytest.mark.parametrize("lambda_reg", [0.0, 0.2])
@pytest.mark.parametrize("splitting", ["fixed", "random"])
def test_a_class_does_not_depend_on_the_other_classes(images, splitting, lambda_reg):
    generator = Toy()
    start = sample_latents(generator, images)
    config = changed(splitting=splitting, shard_per_class=2, lambda_reg=lambda_reg)
    whole = condense(generator, start, images, config, seed=1, pool=Fresh())
    kept = (images.labels != 3).nonzero().flatten()
    without = condense(generator, start.select(kept), images, config, seed=1, pool=Fresh())
    torch.testing.assert_close(without.latents, whole.latents[kept], rtol=1e-4, atol=1e-4)


def test_fixed_shards_are_separate_optimisations(images):
    generator = Toy()
    start = sample_latents(generator, images)
    config = changed(shard_per_class=2, lambda_reg=0.2)
    whole = condense(generator, start, images, config, seed=1, pool=Fresh())
    first = (torch.arange(40) % 4 < 2).nonzero().flatten()  # four in a row for each class
    alone = condense(generator, start.select(first), images, config, seed=1, pool=Fresh())
    assert torch.equal(alone.latents, whole.latents[first])
    # In one piece it is another optimisation.
    together = condense(
        generator, start, images, changed(config, shard_per_class=None), seed=1, pool=Fresh()
    )
    assert not torch.allclose(together.latents, whole.latents, atol=1e-3)


@pytest.mark.parametrize("parts", [([0], [1], [2]), ([2], [0], [1]), ([2, 0], [1])])
def test_shards_condensed_apart_in_any_order_are_the_joint_bank(digits, parts):
    few = digits.train.select(torch.arange(37))  # classes of three to five
    generator = Toy()
    start = sample_latents(generator, few)
    config = changed(steps=2, shard_per_class=2, lambda_reg=0.2)
    whole = condense(generator, start, few, config, seed=1, pool=Fresh())
    banks = [
        condense(generator, start, few, config, 1, Fresh(), shards=shards) for shards in parts
    ]
    assert sum(map(len, banks)) == len(start)
    assert torch.equal(by_rows(LatentBank.merge(banks)), by_rows(whole))
    losses = [
        sum(b.history["loss"][k] * len(p) for b, p in zip(banks, parts, strict=True)) / 3
        for k in range(2)
    ]
    assert whole.history["loss"] == pytest.approx(losses, rel=1e-6)


def test_processes_that_share_nothing_condense_the_same_shards(digits, tmp_path):
    few = digits.train.select(torch.arange(30))
    generator = itgan.load_generator("biggan-digits")
    start = sample_latents(generator, few)
    start.save(tmp_path / "start.safetensors")
    config = changed(shard_per_class=2, steps=2)
    whole = condense(generator, start, few, config, seed=1)
    script = f"""
import torch, itgan
torch.set_num_threads(1)
from itgan.configs import CondensationConfig
config = CondensationConfig.model_validate_json({config.model_dump_json()!r})
start = itgan.LatentBank.load("start.safetensors")
real = itgan.load_dataset("digits").train.select(torch.arange(30))
generator = itgan.load_generator("biggan-digits")
itgan.condense(generator, start, real, config, 1, shards=[1]).save("one.safetensors")
"""
    env = {**os.environ, "PYTHONPATH": str(Path(itgan.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=env)
    here = condense(generator, start, few, config, 1, shards=[0])
    merged = LatentBank.merge([LatentBank.load(tmp_path / "one.safetensors"), here])
    assert torch.equal(by_rows(merged), by_rows(whole))


@pytest.mark.parametrize("splitting", ["fixed", "random"])
def test_classes_condensed_apart_are_the_joint_bank(images, splitting):
    generator = Toy()
    start = sample_latents(generator, images)
    config = changed(splitting=splitting, shard_per_class=3, network_per="class", lambda_reg=0.2)
    whole = condense(generator, start, images, config, seed=1, pool=Fresh())
    low = (images.labels < 4).nonzero().flatten()
    high = (images.labels >= 4).nonzero().flatten()
    parts = [
        condense(generator, start.select(rows), images, config, seed=1, pool=Fresh())
        for rows in (high, low)
    ]
    assert torch.equal(by_rows(LatentBank.merge(parts)), by_rows(whole))
    # With one network for all classes they share a matrix product, and its rounding.
    shared = changed(config, network_per="step")
    whole = condense(generator, start, images, shared, seed=1, pool=Fresh())
    parts = [
        condense(generator, start.select(rows), images, shared, seed=1, pool=Fresh())
        for rows in (high, low)
    ]
    merged = LatentBank.merge(parts)
    torch.testing.assert_close(by_rows(merged), by_rows(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shards", [[], [2], [-1], [0, 5]])
def test_shards_that_are_not_there_are_refused(images, shards):
    start = sample_latents(Toy(), images)
    with pytest.raises(InputError, match=r"^shards: .*, but the bank has 0\.\.\.1$"):
        condense(Toy(), start, images, changed(shard_per_class=2), shards=shards)
    with pytest.raises(InputError, match="shards: a shard keeps its members with splitting=fixed"):
        condense(Toy(), start, images, changed(splitting="random"), shards=[0])


def test_dealing_a_whole_class_anew_changes_nothing(images):
    generator = Toy()
    start = sample_latents(generator, images)
    fixed = condense(generator, start, images, QUICK, seed=1, pool=Fresh())
    random = condense(generator, start, images, changed(splitting="random"), seed=1, pool=Fresh())
    torch.testing.assert_close(random.latents, fixed.latents, rtol=1e-4, atol=1e-4)


def test_the_order_of_the_bank_is_kept_and_does_not_matter(images):
    generator = Toy()
    start = sample_latents(generator, images)
    order = torch.randperm(40, generator=derive(5))
    straight = condense(generator, start, images, QUICK, seed=1, pool=Fresh())
    shuffled = condense(generator, start.select(order), images, QUICK, seed=1, pool=Fresh())
    assert torch.equal(shuffled.rows, start.rows[order])
    assert torch.equal(shuffled.labels, start.labels[order])
    torch.testing.assert_close(by_rows(shuffled), by_rows(straight), rtol=1e-4, atol=1e-4)


def test_the_start_and_the_global_random_state_are_left_alone(images, generator, bank):
    before, state = bank.latents.clone(), torch.get_rng_state()
    first = condense(generator, bank, images, QUICK, seed=1, pool=Fresh())
    assert torch.equal(bank.latents, before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(
        condense(generator, bank, images, QUICK, seed=1, pool=Fresh()).latents, first.latents
    )
    assert not torch.equal(
        condense(generator, bank, images, QUICK, seed=2, pool=Fresh()).latents, first.latents
    )


# Splitting


class Recorder(LatentAdam):
    """Remembers which rows each step moves."""

    def step(self, rows, gradient):
        visits.append(rows)
        super().step(rows, gradient)


visits: list[torch.Tensor] = []


@pytest.mark.parametrize("splitting", ["fixed", "random"])
def test_every_latent_is_visited_once_in_a_step(digits, monkeypatch, splitting):
    monkeypatch.setattr(itgan.condensation, "LatentAdam", Recorder)
    visits.clear()
    few = digits.train.select(torch.arange(43))  # classes of three to six
    pool = Always(Pixels())
    config = changed(steps=4, splitting=splitting, shard_per_class=2, embeddings_per_step=2)
    condense(Toy(), sample_latents(Toy(), few), few, config, pool=pool)
    shards = -(-int(few.labels.bincount().max()) // 2)
    assert len(visits) == 4 * shards
    assert pool.draws == 4 * shards * 2  # once for all classes
    steps = [visits[k * shards : (k + 1) * shards] for k in range(4)]
    for step in steps:
        assert sorted(torch.cat(step).tolist()) == list(range(43))
        for rows in step:
            assert int(few.labels[rows].bincount().max()) <= 2
    members = [[frozenset(rows.tolist()) for rows in step] for step in steps]
    assert (members[0] == members[1]) == (splitting == "fixed")


# Resume


def raise_at(call, function):
    """The function, which raises at this call."""
    left = iter(range(call))

    def interrupted(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*args)

    return interrupted


@pytest.mark.parametrize("calls", [2, 3, 7, 9])
@pytest.mark.parametrize("splitting", ["fixed", "random"])
def test_a_resumed_condensation_is_bit_equal(images, tmp_path, monkeypatch, splitting, calls):
    generator = Toy()
    start = sample_latents(generator, images)
    config = changed(
        steps=5, lambda_reg=0.1, splitting=splitting, shard_per_class=2, embeddings_per_step=2
    )
    straight = condense(generator, start, images, config, seed=1, pool=Fresh())
    checkpoint = Checkpoint(tmp_path / "snapshot.safetensors", "one", every_seconds=0.0)
    with monkeypatch.context() as patch:  # two shards, so that odd calls stop inside a step
        patch.setattr(itgan.condensation, "descend", raise_at(calls, descend))
        with pytest.raises(KeyboardInterrupt):
            condense(generator, start, images, config, 1, Fresh(), checkpoint)
    assert checkpoint.load()[1]["step"] == calls // 2
    generator.sizes.clear()
    resumed = condense(generator, start, images, config, 1, Fresh(), checkpoint)
    assert len(generator.sizes) == 2 * (5 - calls // 2)
    assert torch.equal(resumed.latents, straight.latents)
    assert resumed.history == straight.history


def test_the_result_says_what_made_it(generator, bank, images, tmp_path):
    config = changed(lambda_reg=0.25)
    result = condense(generator, bank, images, config, seed=7)
    assert result.stage == "condensed"
    assert torch.equal(result.labels, bank.labels)
    assert torch.equal(result.rows, bank.rows)
    assert set(result.history) == {"loss", "matching", "regulariser", "norm"}
    assert {len(values) for values in result.history.values()} == {3}
    parts = zip(result.history["matching"], result.history["regulariser"], strict=True)
    expected = [0.75 * m + 0.25 * r for m, r in parts]
    assert result.history["loss"] == pytest.approx(expected)
    assert result.provenance["generator"] == generator.fingerprint
    assert result.provenance["seed"] == 7
    assert result.provenance["start"] == "random"
    assert CondensationConfig.model_validate(result.provenance["config"]) == config
    result.save(tmp_path / "bank.safetensors")
    kept = LatentBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(kept.latents, result.latents)
    plain = condense(generator, bank, images, QUICK)
    assert set(plain.history) == {"loss", "matching", "norm"}


@pytest.mark.usefixtures("bf16")
def test_bf16_stays_close(generator, bank, images):
    exact = condense(generator, bank, images, changed(steps=1, precision="fp32"))
    narrow = condense(generator, bank, images, changed(steps=1, precision="bf16"))
    assert narrow.latents.dtype == torch.float32
    assert narrow.history["loss"] == pytest.approx(exact.history["loss"], rel=0.05)


# Refusals


def test_a_batch_norm_needs_the_whole_batch(images):
    pool = Always(convnet(0, norm="batch"))
    start = sample_latents(Toy(), images)
    with pytest.raises(InputError) as error:
        condense(Toy(), start, images, changed(micro_batch=39), pool=pool)
    message = str(error.value)
    assert message.startswith("micro_batch=39: the network's batch norm couples")
    assert "all 40 must go through at once; give 40" in message
    assert "\n" not in message
    condense(Toy(), start, images, changed(steps=1, micro_batch=40), pool=pool)
    small = changed(steps=1, micro_batch=20, shard_per_class=2)
    condense(Toy(), start, images, small, pool=pool)


def test_a_batch_norm_sees_all_classes_of_the_real_batch_at_once(digits):
    few = digits.train.select(torch.arange(100))
    start = sample_latents(Toy(), few.select(torch.arange(10)))
    network = convnet(0, norm="batch")
    shown = []
    network.features.register_forward_pre_hook(lambda _, args: shown.append(len(args[0])))
    config = changed(steps=1, micro_batch=10, real_per_class=6)
    condense(Toy(), start, few, config, pool=Always(network))
    assert shown == [60, 10]


def test_a_row_without_its_image_is_refused_where_lambda_needs_it(images):
    start = sample_latents(Toy(), images)
    missing = int(start.rows[11])
    real = images.select(images.rows != missing)
    with pytest.raises(InputError, match=f"latent bank: row {missing} is not in the training"):
        condense(Toy(), start, real, changed(lambda_reg=0.1))
    condense(Toy(), start, real, changed(steps=1))  # lambda 0 pairs nothing


def test_rows_with_other_labels_are_refused_where_lambda_needs_them(images):
    start = sample_latents(Toy(), images)
    wrong = LatentBank(start.latents, start.labels.roll(4), start.rows, "inverted")
    with pytest.raises(InputError, match="its labels differ from the labels of its rows"):
        condense(Toy(), wrong, images, changed(lambda_reg=0.1))


def test_a_class_without_real_images_is_refused(images):
    start = sample_latents(Toy(), images)
    with pytest.raises(InputError, match=r"class 3 \(3\): the bank has latents of it, but the"):
        condense(Toy(), start, images.select(images.labels != 3), QUICK)


def test_latents_of_another_generator_are_refused(generator, images):
    start = sample_latents(Toy(), images)
    with pytest.raises(InputError, match=r"latents of shape \(6,\), but the generator takes"):
        condense(generator, start, images, QUICK)


def test_labels_that_the_generator_lacks_are_refused(images):
    start = sample_latents(Toy(), images)
    wrong = LatentBank(start.latents, start.labels + 1, start.rows, "random")
    with pytest.raises(InputError, match="latent bank: label 10, but the generator has"):
        condense(Toy(), wrong, images, QUICK)


def test_an_unknown_augmentation_is_refused_by_name(generator, bank, images):
    with pytest.raises(InputError, match="augmentation: no operation 'blur'"):
        condense(generator, bank, images, changed(augmentation="blur"))


def test_an_unknown_network_is_refused_by_name(generator, bank, images):
    with pytest.raises(InputError, match="network: no 'perceptron'; choose convnet"):
        condense(generator, bank, images, changed(network="perceptron"))


# The micro-batch, measured


def test_the_micro_batch_is_the_smallest_of_the_fastest(digits, monkeypatch):
    """Seconds of 50 latents by size: 20 is no 3 % faster than 10, and 40 slower than both."""
    few = digits.train.select(range(50))
    taken = {5: 10.0, 10: 7.5, 20: 7.4, 40: 10.0, 50: 1.0}
    now, sizes = [0.0], []

    def instead(generator, bank, real, config, *_, **__):
        sizes.append(config.micro_batch)
        assert len(bank) == 50  # as many for every size
        now[0] += taken[config.micro_batch]

    fastest = itgan.condensation.fastest_micro_batch
    monkeypatch.setattr(itgan.condensation, "condense", instead)
    assert fastest(Toy(), few, QUICK, clock=lambda: now[0]) == 10
    assert sorted(set(sizes)) == [5, 10, 20, 40]  # nothing larger once it is slower


def test_a_micro_batch_is_measured_whatever_the_networks_do(digits, monkeypatch):
    monkeypatch.setattr(itgan.condensation, "MICRO_BATCHES", (5,))
    few = digits.train.select(range(20))
    config = changed(lambda_class=0.1, basis="principal", pool={"kind": "snapshots"})
    assert itgan.condensation.fastest_micro_batch(Toy(), few, config) == 5


def test_a_batch_norm_is_told_that_nothing_can_be_measured(images):
    start = sample_latents(Toy(), images)
    with pytest.raises(InputError, match=r"^micro_batch=auto: .* all 40 .* give 40"):
        condense(Toy(), start, images, changed(micro_batch="auto", network="resnet18"))


def test_a_measured_micro_batch_is_kept_by_the_bank_and_by_a_resumed_run(
    digits, monkeypatch, tmp_path
):
    few = digits.train.select(range(40))
    start = sample_latents(Toy(), few)
    monkeypatch.setattr(itgan.condensation, "fastest_micro_batch", lambda *_: 7)
    auto = changed(micro_batch="auto")
    bank = condense(Toy(), start, few, auto, pool=Fresh())
    assert bank.provenance["config"]["micro_batch"] == 7
    given_ = condense(Toy(), start, few, changed(micro_batch=7), pool=Fresh())
    assert torch.equal(bank.latents, given_.latents)

    checkpoint = Checkpoint(tmp_path / "snapshot.safetensors", "it", 0.0)
    condense(Toy(), start, few, auto, pool=Fresh(), checkpoint=checkpoint)
    monkeypatch.setattr(itgan.condensation, "fastest_micro_batch", lambda *_: 40)
    resumed = condense(Toy(), start, few, auto, pool=Fresh(), checkpoint=checkpoint)
    assert resumed.provenance["config"]["micro_batch"] == 7


# The last steps in fp32


@pytest.mark.usefixtures("bf16")
def test_the_last_share_of_the_steps_is_in_fp32(digits):
    few = digits.train.select(range(40))
    start = sample_latents(Toy(), few)

    def made(**fields):
        return condense(Toy(), start, few, changed(steps=4, **fields), pool=Fresh()).latents

    exact, narrow = made(precision="fp32"), made(precision="bf16")
    assert not torch.equal(exact, narrow)
    assert torch.equal(made(precision="bf16", fp32_share=1.0), exact)
    late = made(precision="bf16", fp32_share=0.5)
    assert not torch.equal(late, narrow)
    assert not torch.equal(late, exact)


# A rate that falls


def test_a_cosine_schedule_ends_in_small_steps(digits):
    few = digits.train.select(range(40))
    start = sample_latents(Toy(), few)

    def made(**fields):
        return condense(Toy(), start, few, changed(steps=4, **fields), pool=Fresh()).latents

    one = {"steps": 1}
    first = condense(Toy(), start, few, changed(**one), pool=Fresh()).latents
    same = condense(Toy(), start, few, changed(**one, schedule="cosine"), pool=Fresh()).latents
    assert torch.equal(first, same), "the first step is a whole one"
    constant, falling = (made(schedule=name) - start.latents for name in ("constant", "cosine"))
    assert 0 < falling.abs().mean() < 0.9 * constant.abs().mean()


@pytest.mark.parametrize(("field", "value"), [("schedule", "cosine"), ("basis", "principal")])
def test_what_a_schedule_and_a_basis_are_part_of(field, value):
    for kind in (CondensationConfig, InversionConfig):
        assert field not in kind().identity()
        assert kind(**{field: value}).identity()[field] == value
    with pytest.raises(ValueError, match=f"{field}: {value} is for adam"):
        CondensationConfig(**{field: value}, optimiser="sgd")


# Coordinates of Adam


def test_adam_steps_along_the_principal_directions(digits):
    few = digits.train.select(range(40))
    start, pool = sample_latents(Toy(), few), Fresh()
    config = changed(steps=1, basis="principal")
    moved = condense(Toy(), start, few, config, pool=pool).latents - start.latents
    basis = principal_directions(Toy(), pool.draw(derive(0, "directions")))
    # The first step of Adam has the learning rate's length along every coordinate.
    torch.testing.assert_close(
        (moved @ basis).abs(), torch.full_like(moved, 0.05), rtol=1e-3, atol=0
    )
    plain = condense(Toy(), start, few, changed(steps=1), pool=pool).latents - start.latents
    assert not torch.allclose((plain @ basis).abs(), torch.full_like(plain, 0.05), rtol=0.1)
