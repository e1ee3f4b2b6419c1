import math

import pytest
import torch
from torch import nn

from itgan import training
from itgan.artefacts import Checkpoint
from itgan.configs import EvaluationConfig
from itgan.data import ImageSet
from itgan.errors import InputError
from itgan.networks import Network, build_network
from itgan.sources import PixelSet
from itgan.training import accuracy, count_updates, train_classifier


class OneWeight(Network):
    """Logits (w x, 0) of a single pixel x."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.3))

        def forward(self, x):
            return torch.cat([self.weight * x, torch.zeros_like(x)], 1)

    def __init__(self) -> None:
        super().__init__((1, 1, 1))
        self.features, self.classifier = nn.Identity(), self.Head()


class Spy:
    """A source that records who asks for what."""

    name = "spy"

    def __init__(self, images, labels) -> None:
        self.images, self.labels = images, labels
        self.asked: list[tuple[int, int]] = []  # seed of the order, batch size
        self.given: list[int] = []  # sizes of the batches

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rng, batch_size):
        self.asked.append((rng.initial_seed(), batch_size))
        for rows in torch.randperm(len(self), generator=rng).split(batch_size):
            self.given.append(len(rows))
            yield self.images[rows], self.labels[rows]


X, Y = torch.tensor([0.9, -0.4, 0.2, -0.8]), torch.tensor([0, 1, 1, 0])


def one_weight_after(updates, lr=0.5, momentum=0.9, decay=0.01):
    """The protocol on ``OneWeight`` by hand: dL/dw = mean of (sigmoid(w x) - [y = 0]) x."""
    w, velocity = 0.3, 0.0
    for update in range(updates):
        if update == math.ceil(updates / 2):
            lr, velocity = lr / 10, 0.0
        slope = ((torch.sigmoid(w * X.double()) - (Y == 0).double()) * X).mean()
        velocity = momentum * velocity + float(slope) + decay * w
        w -= lr * velocity
    return w


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 7, 20])
def test_the_protocol_by_hand(updates):
    network = OneWeight()
    config = EvaluationConfig(
        updates=updates, learning_rate=0.5, weight_decay=0.01, augmentation="none"
    )
    source = Spy(X.view(4, 1, 1, 1), Y)  # smaller than a batch: the whole set at every step
    assert train_classifier(network, source, config, seed=0) == updates
    assert source.given == [4] * updates
    expected = one_weight_after(updates)
    assert float(network.classifier.weight.detach()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("updates", "switch"), [(1, 1), (2, 1), (5, 3), (6, 3)])
def test_the_rate_falls_tenfold_and_the_momentum_starts_anew_half_way(
    monkeypatch, updates, switch
):
    seen = []

    class SGD(torch.optim.SGD):
        def step(self):
            (group,) = self.param_groups
            seen.append((group["lr"], bool(self.state), group["momentum"], group["weight_decay"]))
            super().step()

    monkeypatch.setattr(torch.optim, "SGD", SGD)
    train_classifier(
        OneWeight(),
        Spy(X.view(4, 1, 1, 1), Y),
        EvaluationConfig(updates=updates, augmentation="none"),
        seed=0,
    )
    rates = [0.01 if u < switch else 0.001 for u in range(updates)]
    assert [rate for rate, *_ in seen] == rates
    assert [has for _, has, *_ in seen] == [u not in (0, switch) for u in range(updates)]
    assert {(m, d) for *_, m, d in seen} == {(0.9, 5e-4)}


@pytest.mark.parametrize(
    ("fields", "n", "expected"),
    [
        ({"epochs": 200}, 1000, 800),
        ({"epochs": 3, "batch_size": 4}, 8, 6),
        ({"epochs": 3, "batch_size": 4}, 9, 9),
        ({"epochs": 3, "batch_size": 4}, 1, 3),
        ({"epochs": 3, "updates": 7}, 50_000, 7),
    ],
)
def test_counts_of_updates(fields, n, expected):
    assert count_updates(EvaluationConfig(**fields), n) == expected


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [({"epochs": 2}, [4, 4, 2, 4, 4, 2]), ({"updates": 5}, [4, 4, 2, 4, 4])],
)
def test_epochs_are_whole_and_each_has_its_own_order(fields, sizes):
    source = Spy(torch.rand(10, 1, 1, 1), torch.arange(10) % 2)
    config = EvaluationConfig(**fields, batch_size=4, augmentation="none")
    assert train_classifier(OneWeight(), source, config, seed=0) == len(sizes)
    assert source.given == sizes
    assert [size for _, size in source.asked] == [4, 4]
    assert len({seed for seed, _ in source.asked}) == 2


def weights_after(images, labels, seed=0, **fields):
    network = build_network("convnet", (1, 8, 8), 10, seed=1, width=8)
    config = EvaluationConfig(**{"updates": 6, "batch_size": 16, **fields})
    train_classifier(network, PixelSet(images, labels), config, seed=seed)
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_weights_are_a_function_of_the_seed(images):
    before = torch.get_rng_state()
    first, again, other = (weights_after(images.images, images.labels, s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_hot_labels_are_hard_labels(images):
    hard = weights_after(images.images, images.labels)
    soft = weights_after(images.images, torch.eye(10)[images.labels])
    torch.testing.assert_close(soft, hard, rtol=1e-5, atol=1e-6)
    smooth = weights_after(images.images, 0.9 * torch.eye(10)[images.labels] + 0.01)
    assert (smooth - hard).abs().max() > 1e-4


def test_soft_labels_by_hand():
    network = OneWeight()
    source = PixelSet(torch.full((1, 1, 1, 1), 0.5), torch.tensor([[0.7, 0.3]]))
    config = EvaluationConfig(updates=1, weight_decay=0, augmentation="none")
    losses = []
    train_classifier(
        network, source, config, seed=0, at_update=lambda _, loss: losses.append(float(loss))
    )
    p = 1 / (1 + math.exp(-0.3 * 0.5))
    assert losses == [pytest.approx(-0.7 * math.log(p) - 0.3 * math.log(1 - p))]
    moved = 0.3 - 0.01 * (p - 0.7) * 0.5
    assert float(network.classifier.weight.detach()) == pytest.approx(moved, abs=1e-7)


def test_each_batch_has_one_group_and_each_image_its_parameters(images, monkeypatch):
    draws, spaces = [], []
    draw, apply = training.draw_augmentation, training.siamese

    def spy_draw(rng, strategy, count):
        draws.append(draw(rng, strategy, count))
        return draws[-1]

    def spy_apply(x, augmentation):
        spaces.append(x)
        return apply(x, augmentation)

    monkeypatch.setattr(training, "draw_augmentation", spy_draw)
    monkeypatch.setattr(training, "siamese", spy_apply)
    network = build_network("convnet", (1, 8, 8), 10, width=4, mean=0.3, std=0.1)
    config = EvaluationConfig(epochs=5, batch_size=16)
    train_classifier(network, PixelSet(images.images, images.labels), config, seed=0)
    assert [len(d.uniforms) for d in draws] == [16, 16, 8] * 5
    assert len({d.group for d in draws}) > 2
    assert all(len(d.uniforms.unique(dim=0)) == len(d.uniforms) for d in draws)
    low, high = (0 - 0.3) / 0.1, (1 - 0.3) / 0.1  # normalised first, then augmented
    assert min(float(x.min()) for x in spaces) == pytest.approx(low, abs=1e-4)
    assert max(float(x.max()) for x in spaces) == pytest.approx(high, abs=1e-4)


def test_progress_is_reported_after_every_update(images):
    seen = []
    network = build_network("convnet", (1, 8, 8), 10, width=4)
    config = EvaluationConfig(updates=4)
    source = PixelSet(images.images, images.labels)
    train_classifier(network, source, config, 0, at_update=lambda *args: seen.append(args))
    assert [update for update, _ in seen] == [1, 2, 3, 4]
    assert all(0 < loss < 10 for _, loss in seen)


def test_a_loss_that_explodes_is_refused(images):
    network = build_network("convnet", (1, 8, 8), 10, width=4, norm="none")
    config = EvaluationConfig(updates=40, learning_rate=1000.0)
    source = PixelSet(images.images, images.labels)
    with pytest.raises(
        InputError, match=r"^teacher: the loss became (nan|inf); lower .*learning.rate"
    ):
        train_classifier(network, source, config, seed=0, label="teacher")


@pytest.mark.usefixtures("bf16")
def test_bf16_trains_in_fp32_weights(images):
    narrow = weights_after(images.images, images.labels, precision="bf16")
    wide = weights_after(images.images, images.labels, precision="fp32")
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide).abs().max() < 0.05


def test_a_classifier_learns(digits):
    rows = torch.cat([digits.train.class_indices(label)[:10] for label in range(10)])
    network = build_network("convnet", (1, 8, 8), 10, width=16, mean=digits.mean, std=digits.std)
    few = digits.test.select(torch.arange(200))
    config = EvaluationConfig(updates=60, learning_rate=0.1, augmentation="crop_scale_rotate")
    assert accuracy(network, few, config) < 0.4
    train_classifier(network, digits.train.select(rows), config, seed=0)
    assert accuracy(network, few, config) > 0.75


def test_accuracy_counts_in_evaluation_mode():
    class Brightness(Network):
        def __init__(self) -> None:
            super().__init__((1, 1, 1))
            self.features = nn.Dropout(1.0)  # all zero in training mode
            self.classifier = OneWeight().classifier

    pixels = torch.tensor([255, 255, 0, 200, 255], dtype=torch.uint8).view(5, 1, 1, 1)
    images = ImageSet(pixels, torch.tensor([0, 0, 1, 1, 0]))  # bright is class 0; one is wrong
    network = Brightness().train()
    for batch_size in (1, 2, 500):
        assert accuracy(network, images, EvaluationConfig(), batch_size) == 0.8
    assert network.training
    assert accuracy(network.eval(), images, EvaluationConfig()) == 0.8
    assert not network.training


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8])  # in the middle of epochs and at the switch
@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, images, stop, name):
    config = EvaluationConfig(updates=9, batch_size=16, augmentation="crop_color")

    def train(at_update=None, checkpoint=None):
        network = build_network(name, images.image_shape, 10, seed=1)
        train_classifier(network, images, config, 5, "test", at_update, checkpoint)
        return network.state_dict()

    def snapshots():
        return Checkpoint(tmp_path / "snapshot.safetensors", "me", every_seconds=0.0)

    def interrupt(update, loss):
        if update == stop + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interrupt, snapshots())
    assert snapshots().load()[1]["step"] == stop
    resumed, unbroken = train(None, snapshots()), train()
    assert all(torch.equal(resumed[k], unbroken[k]) for k in unbroken)
