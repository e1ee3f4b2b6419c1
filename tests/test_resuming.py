"""A killed stage goes on to the very bits of an unbroken one."""

from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import nn

import itgan.condensation
import itgan.inversion
import itgan.training
from itgan.artefacts import Checkpoint
from itgan.baselines import distribution_matching
from itgan.condensation import condense
from itgan.configs import CondensationConfig, EvaluationConfig, InversionConfig, PoolConfig
from itgan.embedding import train_extractor, train_pool
from itgan.evaluation import evaluate
from itgan.inversion import invert
from itgan.latents import LatentBank
from itgan.networks import build_network
from itgan.randomness import ambient
from itgan.sources import FreshSamples, PixelSet, SyntheticSet
from itgan.training import train_classifier

CPU = torch.device("cpu")
SHORT = EvaluationConfig(updates=5, batch_size=16, augmentation="crop_color", curve_points=3)
MATCHING = CondensationConfig(steps=4, real_per_class=4, augmentation="crop_color", micro_batch=32)
POOL = PoolConfig(kind="snapshots", networks=2, snapshots=2, training=SHORT)


class Killed(BaseException):
    """Stands for the end of a process: nobody catches it."""


@pytest.fixture
def unbroken_and_resumed(tmp_path, monkeypatch):
    """A stage in one go, and killed after every single step and gone on with, each time.

    The stage is called with a checkpoint; all its loops take their steps from ``track``.
    """

    def run(stage):
        unbroken = stage(checkpoint=None)
        snapshot = Checkpoint(tmp_path / "snapshot.safetensors", "mine", every_seconds=0.0)
        again = partial(stage, checkpoint=snapshot)
        begun_at = []

        def one_step(steps, label):
            begun_at.append(steps.start)
            for step in steps:
                if step > steps.start:
                    raise Killed
                yield step

        lives = 0
        with monkeypatch.context() as patch:
            for module in (itgan.training, itgan.condensation, itgan.inversion):
                patch.setattr(module, "track", one_step)
            while True:
                lives += 1
                assert lives < 60, "no progress"
                try:
                    resumed = again()
                    break
                except Killed:
                    assert snapshot.begun()
        assert lives > 3
        assert max(begun_at) >= 3
        snapshot.clear()
        assert not list(tmp_path.iterdir())
        return unbroken, resumed

    return run


def equal(a, b):
    """Bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, LatentBank):
        return equal(vars(a), vars(b))
    return a == b


def without_seconds(trials):
    return [{**asdict(trial), "seconds": 0} for trial in trials]


@pytest.mark.parametrize("kind", ["pixels", "soft", "gan", "gan-fresh"])
def test_a_trial_with_its_curve(unbroken_and_resumed, images, generator, bank, kind):
    sources = {
        "pixels": lambda: PixelSet(images.images, images.labels, "random"),
        "soft": lambda: PixelSet(images.images, torch.eye(10)[images.labels] * 0.9 + 0.01),
        "gan": lambda: SyntheticSet(generator, bank),
        "gan-fresh": lambda: FreshSamples(generator, images.labels, 3),
    }

    def stage(checkpoint):
        source = sources[kind]()
        return evaluate(source, images, SHORT, [4], "cpu", checkpoint=checkpoint)

    unbroken, resumed = unbroken_and_resumed(stage)
    assert without_seconds(resumed) == without_seconds(unbroken)
    assert [point["update"] for point in resumed[0].curve] == [2, 3, 5]
    assert all(isinstance(point["update"], int) for point in resumed[0].curve)


def test_trials_of_several_seeds(unbroken_and_resumed, images):
    def stage(checkpoint):
        source = PixelSet(images.images, images.labels)
        return evaluate(source, images, SHORT, [7, 2], "cpu", checkpoint=checkpoint)

    unbroken, resumed = unbroken_and_resumed(stage)
    assert without_seconds(resumed) == without_seconds(unbroken)
    assert unbroken[0].curve != unbroken[1].curve


def test_a_pool_of_snapshots(unbroken_and_resumed, images):
    def stage(checkpoint):
        return train_pool(images, "convnet", POOL, 5, CPU, checkpoint)

    unbroken, resumed = unbroken_and_resumed(stage)
    assert equal(vars(resumed), vars(unbroken))
    assert len(unbroken.accuracies) == 4


def test_networks_of_a_pool_that_are_trained_are_not_trained_again(tmp_path, images, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "pool.safetensors", "mine")  # no snapshot is due
    begun = []

    def killed_in_the_second(steps, label):
        begun.append((label, steps.start))
        if label == "pool 2/2" and len(begun) == 2:
            raise Killed
        yield from steps

    monkeypatch.setattr(itgan.training, "track", killed_in_the_second)
    with pytest.raises(Killed):
        train_pool(images, "convnet", POOL, 5, CPU, checkpoint)
    train_pool(images, "convnet", POOL, 5, CPU, checkpoint)
    assert begun == [("pool 1/2", 0), ("pool 2/2", 0), ("pool 1/2", 5), ("pool 2/2", 0)]


def test_an_extractor(unbroken_and_resumed, images):
    def stage(checkpoint):
        return train_extractor(images, SHORT, 5, CPU, checkpoint).state_dict()

    assert equal(*unbroken_and_resumed(stage))


def test_an_inversion_and_its_own_extractor(unbroken_and_resumed, images, generator):
    config = InversionConfig(steps=3, batch_size=16, extractor=SHORT)

    def stage(checkpoint):
        return invert(generator, images, config, 5, checkpoint=checkpoint)

    assert equal(*unbroken_and_resumed(stage))


@pytest.mark.parametrize(
    "fields",
    [
        {"lambda_reg": 0.3, "micro_batch": 7},
        {"shard_per_class": 2, "splitting": "random", "embeddings_per_step": 2},
        {"optimiser": "sgd", "network_per": "class"},
        {"matching": "gradient"},
        {"pool": POOL},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_a_condensation(unbroken_and_resumed, images, generator, bank, fields):
    config = MATCHING.model_copy(update=fields)

    def stage(checkpoint):
        return condense(generator, bank, images, config, 5, checkpoint=checkpoint)

    assert equal(*unbroken_and_resumed(stage))


def test_distribution_matching_in_pixels(unbroken_and_resumed, images):
    config = MATCHING.model_copy(update={"optimiser": "sgd", "learning_rate": 1.0})

    def stage(checkpoint):
        return distribution_matching(images, images, config, 5, checkpoint=checkpoint)

    assert equal(*unbroken_and_resumed(stage))


# Networks that draw from torch's own random state


def dropping(image_shape, num_classes):
    """A user's network with dropout."""
    c, h, w = image_shape
    return nn.Sequential(
        nn.Flatten(), nn.Linear(c * h * w, 16), nn.Dropout(0.5), nn.Linear(16, num_classes)
    )


@pytest.fixture
def dropout(monkeypatch):
    """Its name, as a user gives it."""
    import sys
    import types

    module = types.ModuleType("dropping_networks")
    module.dropping = dropping
    monkeypatch.setitem(sys.modules, "dropping_networks", module)
    return "dropping_networks:dropping"


def test_dropout_in_a_trial(unbroken_and_resumed, images, dropout):
    config = SHORT.model_copy(update={"network": dropout})

    def stage(checkpoint):
        source = PixelSet(images.images, images.labels)
        return evaluate(source, images, config, [4], "cpu", checkpoint=checkpoint)

    unbroken, resumed = unbroken_and_resumed(stage)
    assert without_seconds(resumed) == without_seconds(unbroken)


def test_dropout_in_a_condensation(unbroken_and_resumed, images, generator, bank, dropout):
    config = MATCHING.model_copy(update={"network": dropout})

    def stage(checkpoint):
        return condense(generator, bank, images, config, 5, checkpoint=checkpoint)

    assert equal(*unbroken_and_resumed(stage))


def test_dropout_follows_from_seed_and_update_alone(images, dropout):
    def weights(seed, state):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        network = build_network(dropout, images.image_shape, 10)
        config = SHORT.model_copy(update={"augmentation": "none", "batch_size": 500})
        train_classifier(network, images, config, seed)
        assert torch.equal(torch.get_rng_state(), before)  # nothing leaks
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    # The order of a batch that is the whole set aside, a seed enters through dropout alone.
    assert (weights(0, 1) - weights(1, 1)).abs().max() > 1e-3


def test_the_ambient_state_is_new_at_every_step_and_put_back():
    def draw(*path):
        with ambient(CPU, *path):
            return float(torch.rand(()))

    def interrupted():
        with ambient(CPU, 0):
            torch.rand(())
            raise Killed

    before = torch.get_rng_state()
    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert len({draw(0, "a", 1), draw(0, "a", 2), draw(1, "a", 1), draw(0, "b", 1)}) == 4
    with pytest.raises(Killed):
        interrupted()
    assert torch.equal(torch.get_rng_state(), before)


# What a snapshot must not do


def test_a_loss_that_explodes_stays_refused(tmp_path, images):
    """The last snapshot is not taken for the end of a good training."""
    config = EvaluationConfig(updates=12, learning_rate=1000.0)
    source = PixelSet(images.images, images.labels)
    for _ in range(2):
        snapshot = Checkpoint(tmp_path / "snapshot.safetensors", "mine", every_seconds=0.0)
        network = build_network("convnet", (1, 8, 8), 10, width=4, norm="none")
        with pytest.raises(itgan.InputError, match=r"the loss became (nan|inf)"):
            train_classifier(network, source, config, seed=0, checkpoint=snapshot)


def test_parts_have_places_and_identities_of_their_own(tmp_path):
    whole = Checkpoint(tmp_path / "a[1].safetensors", "mine", 3.0)
    neighbour = Checkpoint(tmp_path / "a[1].safetensors.kept", "mine")
    parts = [whole.part(0), whole.part("x"), whole.part("x").part(2)]
    assert not whole.begun()
    for step, one in enumerate([*parts, neighbour]):
        one.offer(step, lambda: {"x": torch.zeros(1)}, force=True)
        assert one.begun()
        assert one.every_seconds == (3.0 if one is not neighbour else 60.0)
    assert whole.begun()
    assert whole.load() is None
    assert [one.load()[1]["step"] for one in parts] == [0, 1, 2]
    with pytest.raises(itgan.InputError, match="belongs to another configuration"):
        Checkpoint(parts[0].path, "mine/1").load()
    whole.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["a[1].safetensors.kept"]
