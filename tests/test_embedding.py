import pytest
import torch

from itgan import artefacts
from itgan.configs import EvaluationConfig
from itgan.embedding import RandomPool, load_network, save_network, train_extractor
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
    save_network(path, extractor, "convnet", 10)
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
    save_network(tmp_path / "net", network, "resnet18", 3)
    assert torch.equal(load_network(tmp_path / "net")(x), network.eval()(x))


def test_what_is_no_network_is_refused(extractor, bank, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"x\.safetensors: no such file"):
        load_network(path)
    bank.save(path)
    with pytest.raises(InputError, match="holds a 'bank', expected a 'network'"):
        load_network(path)
    save_network(path, extractor, "convnet", 10)
    tensors, metadata = artefacts.load(path)
    artefacts.save(path, tensors, {**metadata, "num_classes": 9})
    with pytest.raises(InputError, match=r"x\.safetensors: its weights do not fit convnet"):
        load_network(path)
