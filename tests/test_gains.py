from dataclasses import replace

import pytest
import torch

import itgan.condensation
from itgan.artefacts import Checkpoint
from itgan.augment import draw_augmentation
from itgan.condensation import condense
from itgan.configs import CondensationConfig
from itgan.errors import InputError
from itgan.gains import Gains
from itgan.latents import LatentBank, sample_latents
from itgan.networks import build_network
from itgan.randomness import derive
from itgan.sources import SyntheticSet
from itgan.two_pass import Draw, Problem, descend

CPU = torch.device("cpu")
QUICK = CondensationConfig(steps=3, real_per_class=5, learning_rate=0.05, gains_rate=0.01)


def changed(config=QUICK, **fields):
    return CondensationConfig.model_validate({**config.model_dump(), **fields})


class Tunable:
    """tanh(scale_y * W z + shift_y), smooth and in fp64."""

    latent_shape, num_classes, image_shape, device = (6,), 10, (1, 8, 8), CPU
    fingerprint = "tunable"

    def __init__(self, tables=None):
        rng = derive(0, "tunable")
        self.weight = torch.randn(64, 6, generator=rng).double() / 2
        scale, shift = torch.randn(2, 10, 64, generator=rng).double() / 2
        self.own = tables or {"scale": 1 + scale, "shift": shift}

    def tables(self):
        return dict(self.own)

    def with_tables(self, tables):
        return Tunable({**self.own, **tables})

    def __call__(self, latents, labels):
        h = latents @ self.weight.T
        return (h * self.own["scale"][labels] + self.own["shift"][labels]).tanh().view(-1, 1, 8, 8)


class Fresh:
    """A pool of small untrained networks, new at every draw."""

    def draw(self, rng):
        seed = int(torch.randint(2**62, (), generator=rng))
        return small(seed)


def small(seed, dtype=torch.float32):
    network = build_network("convnet", (1, 8, 8), 10, seed, 0.3, 0.4, width=8)
    return network.requires_grad_(False).to(dtype)


# Two passes


@pytest.mark.parametrize("lambda_reg", [0.0, 0.3])
@pytest.mark.parametrize(("micro_batch", "kept"), [(100, 1), (3, 1), (3, 2), (1, 1)])
def test_the_gradient_in_gains_is_that_of_the_whole_batch(micro_batch, kept, lambda_reg):
    labels = torch.tensor([2, 2, 2, 5, 5, 9])
    z = torch.randn(6, 6, generator=derive(0)).double()
    real = {c: torch.randn(4, 1, 8, 8, generator=derive(c)).double().tanh() for c in (2, 5, 9)}
    partners = torch.randn(6, 1, 8, 8, generator=derive(3)).double().tanh()
    draws = [
        Draw(small(k, torch.float64), {c: draw_augmentation(derive(k, "a", c)) for c in real})
        for k in range(2)
    ]
    gains = Gains(Tunable(), 0.1)
    leaves = [t.detach().clone().requires_grad_(True) for t in gains.tables.values()]
    own = Tunable(dict(zip(gains.tables, leaves, strict=True)))
    loss = z.new_zeros(())
    for draw in draws:
        for c, x in real.items():
            psi, augment, mine = draw.network.embed, draw.augmentations[c], labels == c
            made = psi(own(z[mine], labels[mine]), augment)
            pairs = (psi(partners[mine], augment) - made).pow(2).sum(1)
            l_con = (psi(x, augment).mean(0) - made.mean(0)).pow(2).sum()
            loss = loss + ((1 - lambda_reg) * l_con + lambda_reg * pairs.mean()) / 2
    expected = torch.autograd.grad(loss, leaves)
    means = [
        torch.stack([d.network.embed(x, d.augmentations[c]).mean(0) for c, x in real.items()])
        for d in draws
    ]
    problem = Problem(
        gains.generator,
        labels,
        draws,
        means,
        partners if lambda_reg else None,
        lambda_reg,
        micro_batch,
        "fp32",
        kept_graphs=kept,
        tuned=list(gains.tables.values()),
    )
    descend(problem, z.__getitem__, lambda *_: None)
    for leaf, gradient in zip(gains.tables.values(), expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-10, atol=1e-14)
        assert not leaf.grad[[0, 1, 3, 4, 6, 7, 8]].any()  # no class of the batch


# The whole loop


def test_gains_and_latents_descend_together_as_adam_does(images):
    """Whole classes, one fixed network without augmentation: plain Adam on both, literally."""
    network = small(0, torch.float64)

    class One:
        def draw(self, rng):
            return network

    start = sample_latents(Tunable(), images)
    start = replace(start, latents=start.latents.double())
    config = changed(real_per_class=100, augmentation="none", micro_batch=7)
    bank = condense(Tunable(), start, _double(images), config, pool=One())

    z = start.latents.clone().requires_grad_(True)
    tables = {n: t.clone().requires_grad_(True) for n, t in Tunable().tables().items()}
    adam = torch.optim.Adam(
        [{"params": [z], "lr": 0.05}, {"params": list(tables.values()), "lr": 0.01}]
    )
    for _ in range(3):
        made = network.embed(Tunable(tables)(z, images.labels)).unflatten(0, (10, 4))
        target = network.embed(images.floats().double()).unflatten(0, (10, 4))
        loss = (made.mean(1) - target.mean(1)).pow(2).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(bank.latents, z.detach(), rtol=1e-4, atol=1e-5)
    for name, table in tables.items():
        torch.testing.assert_close(bank.tables[name], table.detach(), rtol=1e-4, atol=1e-5)
    assert bank.provenance["generator"] == "tunable"


def _double(images):
    """The same images, as floats in fp64."""

    class Double(type(images)):
        def floats(self, rows=None):
            return (super().floats() if rows is None else super().floats(rows)).double()

        def select(self, rows):
            return _double(super().select(rows))

    return Double(**{name: getattr(images, name) for name in images.__dataclass_fields__})


@pytest.mark.parametrize("network_per", ["step", "class"])
def test_a_class_less_changes_no_other_class(generator, bank, images, network_per):
    config = changed(network_per=network_per)
    whole = condense(generator, bank, images, config, seed=1, pool=Fresh())
    kept = (images.labels != 3).nonzero().flatten()
    without = condense(generator, bank.select(kept), images, config, seed=1, pool=Fresh())
    torch.testing.assert_close(without.latents, whole.latents[kept], rtol=1e-3, atol=1e-3)
    others = torch.tensor([c for c in range(10) if c != 3])
    for name, table in generator.tables().items():
        torch.testing.assert_close(without.tables[name][3], table[3])
        assert not torch.equal(whole.tables[name][3], table[3])
        found, expected = without.tables[name][others], whole.tables[name][others]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_without_a_rate_the_generator_stays_as_it_is(generator, bank, images):
    before = generator.fingerprint
    found = condense(generator, bank, images, changed(gains_rate=0.0), pool=Fresh())
    assert found.tables == {}
    condense(generator, bank, images, QUICK, pool=Fresh())
    assert type(generator)(generator.tensors()).fingerprint == before


def test_a_bank_with_tables_goes_on_from_them(generator, bank, images):
    first = condense(generator, bank, images, QUICK, pool=Fresh())
    frozen = condense(generator, first, images, changed(gains_rate=0.0), pool=Fresh())
    assert all(torch.equal(frozen.tables[n], t) for n, t in first.tables.items())
    apart = generator.with_tables(first.tables)
    moved = replace(first, tables={}).moved_to(apart)
    same = condense(apart, moved, images, changed(gains_rate=0.0), pool=Fresh())
    assert torch.equal(frozen.latents, same.latents)


# Means over the last steps


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (0.1, 1), (0.4, 2), (1.0, 5)])
def test_the_bank_is_the_mean_over_the_last_share_of_the_steps(
    generator, bank, images, monkeypatch, share, count
):
    seen = []

    class Recorder(itgan.condensation.LatentAdam):
        def step(self, rows, gradient):
            super().step(rows, gradient)
            seen.append(self.latents.clone())

    monkeypatch.setattr(itgan.condensation, "LatentAdam", Recorder)
    config = changed(steps=5, average=share)
    found = condense(generator, bank, images, config, pool=Fresh())
    assert len(seen) == 5
    expected = torch.stack(seen[-count:]).mean(0)
    torch.testing.assert_close(found.latents, expected, rtol=1e-6, atol=1e-6)
    latest = {}  # a run that ends so early has the tables of that step
    for steps in range(6 - count, 6):
        short = condense(generator, bank, images, changed(steps=steps), pool=Fresh())
        for name, table in short.tables.items():
            latest.setdefault(name, []).append(table)
    for name, tables in latest.items():
        expected = torch.stack(tables).mean(0)
        torch.testing.assert_close(found.tables[name], expected, rtol=1e-6, atol=1e-6)


# Resume


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_gains_and_means_go_on_bit_for_bit(generator, bank, images, tmp_path, monkeypatch, stop):
    config = changed(steps=5, average=0.6, micro_batch=16)
    straight = condense(generator, bank, images, config, seed=1, pool=Fresh())
    checkpoint = Checkpoint(tmp_path / "snapshot.safetensors", "one", every_seconds=0.0)

    def interrupted(steps, label):
        yield from steps[:stop]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(itgan.condensation, "track", interrupted)
        with pytest.raises(KeyboardInterrupt):
            condense(generator, bank, images, config, 1, Fresh(), checkpoint)
    assert checkpoint.load()[1]["step"] == stop
    resumed = condense(generator, bank, images, config, 1, Fresh(), checkpoint)
    assert torch.equal(resumed.latents, straight.latents)
    assert resumed.tables.keys() == straight.tables.keys() == generator.tables().keys()
    assert all(torch.equal(resumed.tables[n], t) for n, t in straight.tables.items())
    assert resumed.history == straight.history


# What carries the tables


@pytest.fixture(scope="module")
def tuned_bank(generator, bank, images):
    return condense(generator, bank, images, changed(gains_rate=0.1), pool=Fresh())


def test_a_bank_keeps_its_tables_on_disk_and_in_parts(tuned_bank, tmp_path):
    tuned_bank.save(tmp_path / "bank.safetensors")
    for found in (
        LatentBank.load(tmp_path / "bank.safetensors"),
        tuned_bank.select(torch.arange(3)),
        LatentBank.merge([tuned_bank.select(torch.arange(k, 40, 2)) for k in range(2)]),
    ):
        assert found.tables.keys() == tuned_bank.tables.keys()
        assert all(torch.equal(found.tables[n], t) for n, t in tuned_bank.tables.items())


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_saved_set_makes_the_images_of_the_tuned_generator(
    generator, bank, tuned_bank, tmp_path, dtype
):
    plain, synthetic = SyntheticSet(generator, bank), SyntheticSet(generator, tuned_bank)
    expected = generator.with_tables(tuned_bank.tables)(tuned_bank.latents, tuned_bank.labels)
    assert torch.equal(synthetic.images(), expected)
    untuned = generator(tuned_bank.latents, tuned_bank.labels)
    assert float((untuned - expected).abs().max()) > 0.01
    synthetic.save(tmp_path / "set.safetensors", dtype)
    found = SyntheticSet.load(tmp_path / "set.safetensors")
    if dtype == "fp32":
        assert torch.equal(found.images(), synthetic.images())
    assert torch.equal(found.images(), synthetic.stored_as(dtype).images())
    torch.testing.assert_close(found.images(), synthetic.images(), rtol=0, atol=0.25)
    assert found.nbytes == plain.stored_as(dtype).nbytes
    assert synthetic.nbytes == plain.nbytes
    assert synthetic.generator.fingerprint != generator.fingerprint
    assert found.bank.provenance["moved_from"] == generator.fingerprint


def test_a_generator_with_its_own_tables_is_itself(generator):
    again = generator.with_tables(generator.tables())
    assert again.fingerprint == generator.fingerprint
    assert len(generator.tables()) == 4 * generator.blocks
    assert all(len(table) == 10 for table in generator.tables().values())


# Refusals


def test_what_has_no_gains_is_refused(images):
    class Plain:
        latent_shape, num_classes, image_shape, device = (6,), 10, (1, 8, 8), CPU
        fingerprint = "plain"

        def __call__(self, latents, labels):
            return latents[:, :1, None, None].expand(-1, 1, 8, 8).tanh()

    start = sample_latents(Plain(), images)
    with pytest.raises(InputError, match="gains_rate: tunes the class gains of a BigGAN"):
        condense(Plain(), start, images, QUICK)
    with pytest.raises(InputError, match="brings class tables of a generator, and this one has"):
        SyntheticSet(Plain(), replace(start, tables={"scale": torch.ones(10, 4)}))


def test_gains_are_of_one_shard(generator, bank, images):
    message = "gains_rate=0.01: shard_per_class=2 deals the 4 latents of a class into shards"
    with pytest.raises(InputError, match=message):
        condense(generator, bank, images, changed(shard_per_class=2))
    with pytest.raises(InputError, match=message):
        condense(generator, bank, images, changed(shard_per_class=2), shards=[0])
    dealt = changed(shard_per_class=2, splitting="random", steps=1)
    assert condense(generator, bank, images, dealt, pool=Fresh()).tables
    whole = changed(shard_per_class=4, steps=1)
    assert condense(generator, bank, images, whole, pool=Fresh()).tables


def test_tables_that_do_not_fit_are_refused(generator, bank, tuned_bank):
    for tables in ({"output.bn.scale": torch.ones(4)}, {"blocks.0.bn1.scale": torch.ones(9, 4)}):
        with pytest.raises(InputError, match=r"class tables: .* does not fit this generator"):
            generator.with_tables(tables)
    for table in (torch.ones(4), torch.full((10, 4), torch.nan), torch.ones(10, 4).long()):
        with pytest.raises(InputError, match="table blocks must be finite floats"):
            replace(bank, tables={"blocks": table})
    other = {n: t + 1 for n, t in tuned_bank.tables.items()}
    first, second = (tuned_bank.select(torch.tensor([k])) for k in (0, 1))
    for odd in (replace(second, tables=other), replace(second, tables={})):
        with pytest.raises(InputError, match=r"^merge: the banks have different class tables"):
            LatentBank.merge([first, odd])
