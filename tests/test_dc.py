from itertools import count

import pytest
import torch
import torch.nn.functional as F

import itgan.dc
from itgan import matching
from itgan.artefacts import Checkpoint
from itgan.augment import draw_augmentation
from itgan.baselines import pixel_set
from itgan.configs import DCConfig
from itgan.dc import gradient_matching, loops, variant
from itgan.embedding import RandomPool
from itgan.errors import InputError
from itgan.progress import track
from itgan.randomness import derive

STRATEGY = "color_crop_cutout_scale_rotate"
QUICK = DCConfig(steps=2, image_steps=2, network_epochs=1, real_per_class=4, batch_size=8)
DSA = QUICK.model_copy(update={"augmentation": STRATEGY})


@pytest.fixture(scope="module")
def start(images):
    """Two images of each of three classes."""
    return images.select(torch.tensor([0, 1, 4, 5, 8, 9]))


def by_hand(start, real, config, seed):
    """The published loop, in the words of the papers, for two image steps of one network."""
    mean = torch.tensor(real.mean).view(-1, 1, 1)
    std = torch.tensor(real.std).view(-1, 1, 1)
    network = RandomPool("convnet", real).draw(derive(seed, "dc network", 0))
    network = network.requires_grad_(True).train()
    x = ((start.floats() + 1) / 2 - mean) / std
    velocity, losses = torch.zeros_like(x), []

    def gradients(normalised, label, step, create_graph):
        draw = draw_augmentation(derive(seed, "augmentation", label, step), config.augmentation)
        logits = network(2 * (normalised * std + mean) - 1, draw)
        loss = F.cross_entropy(logits, torch.full((len(normalised),), label))
        return torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)

    for step in range(2):
        if step:
            rng = derive(seed, "order", step, 0)
            for chunk in torch.randperm(len(x), generator=rng).split(config.batch_size):
                draw = draw_augmentation(rng, config.augmentation, count=len(chunk))
                logits = network(2 * (x[chunk] * std + mean) - 1, draw)
                loss = F.cross_entropy(logits, start.labels[chunk])
                grads = torch.autograd.grad(loss, list(network.parameters()))
                with torch.no_grad():
                    for p, g in zip(network.parameters(), grads, strict=True):
                        p -= 0.01 * g
        total, z = 0, x.clone().requires_grad_(True)
        for label in start.labels.unique().tolist():
            members = real.class_indices(label)
            order = torch.randperm(len(members), generator=derive(seed, "real", label, step))
            batch = real.floats(members[order[: config.real_per_class]])
            wanted = gradients(((batch + 1) / 2 - mean) / std, label, step, False)
            found = gradients(z[start.labels == label], label, step, True)
            total = total + matching.gradient_distance(wanted, found)
        (gradient,) = torch.autograd.grad(total, z)
        velocity = 0.5 * velocity + gradient
        x = x - 0.1 * velocity
        losses.append(float(total.detach()))
    return x, losses


@pytest.mark.parametrize("config", [QUICK, DSA], ids=["dc", "dsa"])
def test_the_loop_by_hand(start, images, config):
    config = config.model_copy(update={"steps": 1})
    expected, losses = by_hand(start, images, config, 3)
    bank = gradient_matching(start, images, config, 3)
    assert bank.history["loss"] == pytest.approx(losses, rel=1e-4)
    moved = (bank.latents - expected).norm() / (expected - by_pixels(start, images)).norm()
    assert float(moved) < 1e-3


def by_pixels(start, real):
    mean, std = torch.tensor(real.mean).view(-1, 1, 1), torch.tensor(real.std).view(-1, 1, 1)
    return ((start.floats() + 1) / 2 - mean) / std


def test_the_loops_are_the_published_ones():
    config = DCConfig()
    published = {1: (1, 1), 5: (1, 1), 10: (10, 50), 20: (20, 25), 50: (50, 10), 1250: (50, 10)}
    assert {k: loops(config, k) for k in published} == published
    assert loops(DCConfig(image_steps=3), 10) == (3, 50)
    assert loops(DCConfig(network_epochs=0), 10) == (10, 0)
    assert (config.steps, config.learning_rate, config.momentum) == (1000, 0.1, 0.5)
    assert (config.real_per_class, config.network_rate, config.batch_size) == (256, 0.01, 256)
    assert (variant(config), variant(DSA)) == ("", "dsa")


@pytest.mark.parametrize("config", [QUICK, DSA], ids=["dc", "dsa"])
def test_the_loss_falls_and_the_start_is_real(start, images, config):
    long = {"steps": 12, "learning_rate": 1.0, "image_steps": 1, "real_per_class": 100}
    bank = gradient_matching(start, images, config.model_copy(update=long))
    losses = bank.history["loss"]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    still = config.model_copy(update={"learning_rate": 1e-12, "steps": 1})
    kept = pixel_set(gradient_matching(start, images, still), images, 4, "dc", variant(config))
    assert torch.equal(kept.images, start.images)
    assert (kept.name, kept.variant, kept.latent_seed) == ("dc", variant(config), 4)


def test_equal_calls_are_bit_equal_and_seeds_and_augmentation_count(start, images):
    state = torch.get_rng_state()
    first, again, other, augmented = (
        gradient_matching(start, images, config, seed).latents
        for config, seed in ((QUICK, 0), (QUICK, 0), (QUICK, 1), (DSA, 0))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, augmented)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_resumed_matching_is_bit_equal(start, images, tmp_path, monkeypatch, done):
    straight = gradient_matching(start, images, DSA, 1)
    checkpoint = Checkpoint(tmp_path / "snapshot.safetensors", "one", every_seconds=0.0)

    def interrupted(numbers, label):
        for finished, step in zip(count(), track(numbers, label), strict=False):
            if finished == done:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(itgan.dc, "track", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gradient_matching(start, images, DSA, 1, checkpoint=checkpoint)
    assert checkpoint.load()[1]["step"] == done
    resumed = gradient_matching(start, images, DSA, 1, checkpoint=checkpoint)
    assert torch.equal(resumed.latents, straight.latents)
    assert resumed.history == straight.history


def test_one_step_for_a_network_leaves_the_classes_apart_and_two_couple_them(start, images):
    fewer = start.select(start.labels != 1)
    kept = start.labels != 1
    alone = QUICK.model_copy(update={"image_steps": 1})
    every = gradient_matching(start, images, alone).latents[kept]
    assert torch.equal(gradient_matching(fewer, images, alone).latents, every)
    coupled = gradient_matching(start, images, QUICK).latents[kept]
    assert not torch.equal(gradient_matching(fewer, images, QUICK).latents, coupled)


def test_what_cannot_be_matched_is_refused(start, images):
    with pytest.raises(InputError, match="dc: class 2 has no real images"):
        gradient_matching(start, images.select(images.labels != 2), QUICK)
    with pytest.raises(InputError, match="augmentation: no operation 'blur'"):
        gradient_matching(start, images, QUICK.model_copy(update={"augmentation": "blur"}))
    with pytest.raises(InputError, match=r"^network: resnet18 has a batch norm"):
        gradient_matching(start, images, QUICK.model_copy(update={"network": "resnet18"}))
