import itertools
from dataclasses import replace

import pytest
import torch

from itgan import artefacts
from itgan.configs import EvaluationConfig, PoolConfig
from itgan.embedding import (
    NetworkSpec,
    RandomPool,
    SnapshotPool,
    load_network,
    save_network,
    snapshot_updates,
    train_extractor,
    train_pool,
)
from itgan.errors import InputError
from itgan.networks import build_network
from itgan.randomness import derive
from itgan.training import accuracy

CPU = torch.device("cpu")
SHORT = EvaluationConfig(updates=8, augmentation="none")


def weights(network):
    return torch.cat([p.flatten() for p in network.parameters()])


def test_draws_follow_the_generator(images):
    pool = RandomPool("convnet", images)
    before = torch.get_rng_state()
    rng, same = derive(0, "embedding"), derive(0, "embedding")
    first, second = pool.draw(rng), pool.draw(rng)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(pool.draw(same)), weights(first))
    assert torch.equal(weights(pool.draw(same)), weights(second))
    assert not torch.equal(weights(first), weights(second))


def test_drawn_networks_fit_the_images_and_hold_no_gradients(digits):
    network = RandomPool("convnet", digits.train).draw(derive(0))
    assert not any(p.requires_grad for p in network.parameters())
    assert network.mean.flatten().tolist() == pytest.approx(list(digits.mean))
    assert network.std.flatten().tolist() == pytest.approx(list(digits.std))
    x = digits.train.floats(torch.arange(2)).requires_grad_()
    assert network(x).shape == (2, 10)
    (gradient,) = torch.autograd.grad(network.embed(x).sum(), x)
    assert gradient.any()


@pytest.fixture(scope="module")
def extractor(images):
    return train_extractor(images, SHORT, seed=0, device=CPU)


def test_the_extractor_is_trained_frozen_and_a_function_of_the_seed(images, extractor):
    before = torch.get_rng_state()
    again, other = (train_extractor(images, SHORT, seed, CPU) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(again), weights(extractor))
    assert not torch.equal(weights(other), weights(extractor))
    assert not extractor.training
    assert not any(p.requires_grad for p in extractor.parameters())
    assert accuracy(extractor, images, SHORT) > 0.5
    fresh = build_network("convnet", (1, 8, 8), 10, mean=images.mean, std=images.std)
    assert accuracy(fresh, images, SHORT) < 0.3


def test_a_stored_network_is_the_same_network(extractor, images, tmp_path):
    path = tmp_path / "extractor.safetensors"
    save_network(path, extractor, NetworkSpec.of("convnet", images))
    found = load_network(path)
    assert torch.equal(found(images.floats()), extractor(images.floats()))
    assert torch.equal(found.mean, extractor.mean)
    assert torch.equal(found.std, extractor.std)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_batch_statistics_are_stored(tmp_path):
    network = build_network("resnet18", (3, 16, 16), 3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    x = torch.rand(2, 3, 16, 16, generator=derive(0))
    network.train()(x)  # moves the running statistics
    spec = NetworkSpec("resnet18", (3, 16, 16), 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_network(tmp_path / "net", network, spec)
    assert torch.equal(load_network(tmp_path / "net")(x), network.eval()(x))


def test_what_is_no_network_is_refused(extractor, bank, images, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"x\.safetensors: no such file"):
        load_network(path)
    bank.save(path)
    with pytest.raises(InputError, match="holds a 'bank', expected a 'network'"):
        load_network(path)
    save_network(path, extractor, NetworkSpec.of("convnet", images))
    tensors, metadata = artefacts.load(path)
    artefacts.save(path, tensors, {**metadata, "spec": {**metadata["spec"], "num_classes": 9}})
    with pytest.raises(InputError, match=r"x\.safetensors: its weights do not fit convnet"):
        load_network(path)


SNAPSHOTS = PoolConfig(
    kind="snapshots",
    networks=2,
    snapshots=3,
    held_out=0.25,
    training=EvaluationConfig(updates=6, batch_size=16, augmentation="none"),
)


@pytest.fixture(scope="module")
def pool(digits):
    images = digits.train.select(range(80))
    return train_pool(images, "convnet", SNAPSHOTS, 0, torch.device("cpu"))


@pytest.mark.parametrize("count", [2, 10])  # none held out; no image left of a class
def test_a_share_that_leaves_none_is_named(digits, count):
    firsts = torch.cat([digits.train.class_indices(c)[:1] for c in range(10)])
    few = digits.train.select(firsts[:count])
    config = SNAPSHOTS.model_copy(update={"held_out": 0.1})
    with pytest.raises(InputError, match=rf"^pool\.held_out=0\.1: of {count} training images"):
        train_pool(few, "convnet", config, 0, torch.device("cpu"))


def test_snapshots_are_kept_along_every_training(pool):
    assert pool.accuracies.shape == (6,)
    assert all(t.dtype == torch.float16 and len(t) == 6 for t in pool.weights.values())
    last_of_first, first_of_second = pool.weights["classifier.weight"][[2, 3]]
    assert not torch.equal(last_of_first, first_of_second)
    assert pool.accuracies[2] > pool.accuracies[0]  # it learns


def test_accuracies_are_of_rows_that_the_pool_has_not_seen(pool, digits):
    images = digits.train.select(range(80))
    assert len(pool.held_out) == 20
    held_out = images.select(torch.isin(images.rows, pool.held_out))
    for k in range(6):
        network = pool.spec.build()
        network.load_state_dict({name: t[k].float() for name, t in pool.weights.items()})
        found = accuracy(network, held_out, SNAPSHOTS.training)
        assert abs(found - float(pool.accuracies[k])) <= 1 / 20  # fp16 may move one image


def test_draws_come_from_the_window(pool):
    best = float(pool.accuracies.max())
    narrow = replace(pool, window=(best, 1.0))
    expected = narrow.candidates()
    assert all(float(pool.accuracies[k]) >= best for k in expected)
    drawn = narrow.draw(derive(0)).state_dict()["classifier.bias"]
    assert any(torch.equal(drawn, pool.weights["classifier.bias"][k].float()) for k in expected)
    assert not any(p.requires_grad for p in narrow.draw(derive(0)).parameters())
    with pytest.raises(InputError, match=r"pool\.window=0\.999 1: no snapshot"):
        replace(pool, window=(0.999, 1.0)).draw(derive(0))


def test_a_pool_repeats_and_is_stored(pool, digits, tmp_path):
    again = train_pool(
        digits.train.select(range(80)), "convnet", SNAPSHOTS, 0, torch.device("cpu")
    )
    pool.save(tmp_path / "pool.safetensors")
    for other in (again, SnapshotPool.load(tmp_path / "pool.safetensors")):
        assert torch.equal(other.accuracies, pool.accuracies)
        assert torch.equal(other.held_out, pool.held_out)
        assert other.spec == pool.spec
        assert all(torch.equal(other.weights[name], t) for name, t in pool.weights.items())


def test_a_file_does_not_choose_what_is_imported(extractor, images, tmp_path):
    path = tmp_path / "net.safetensors"
    spec = NetworkSpec.of("convnet", images)
    save_network(path, extractor, replace(spec, name="os:getcwd"))
    with pytest.raises(InputError, match="would run its code"):
        load_network(path)
    assert load_network(path, spec).image_shape == images.image_shape


@pytest.mark.parametrize(("total", "snapshots"), [(1500, 20), (200, 10), (7, 5), (3, 3), (3, 8)])
def test_snapshots_are_densest_at_first(total, snapshots):
    points = sorted(snapshot_updates(total, snapshots))
    assert len(points) == min(total, snapshots)
    assert points[0] >= 1
    assert points[-1] == total
    gaps = [b - a for a, b in itertools.pairwise(points)]
    assert gaps[-1] == max(gaps)
    assert snapshot_updates(1000, 5) == {8, 64, 216, 512, 1000}
