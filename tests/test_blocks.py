import sys
import types

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from itgan.augment import draw_augmentation, siamese
from itgan.compilation import embed
from itgan.condensation import condense
from itgan.configs import CondensationConfig
from itgan.errors import InputError
from itgan.latents import sample_latents
from itgan.networks import NETWORKS, build_network
from itgan.randomness import derive
from itgan.two_pass import Draw, Problem, descend

BLOCKS = {"convnet": 3, "vgg19": 5, "resnet18": 8, "wrn-16-8": 6, "mobilenetv2": 18}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_features_of_every_block_end_with_the_embedding(name):
    network = build_network(name, (3, 32, 32), 10, norm="group" if name != "convnet" else None)
    assert len(network.block_ends) == BLOCKS[name]
    assert network.block_ends[-1] == len(network.features) - 1
    x = torch.randn(2, 3, 32, 32, generator=derive(0))
    seen = {}
    for k, layer in enumerate(network.features):
        layer.register_forward_hook(
            lambda _, given, made, k=k: seen.__setitem__(k, made.clone().flatten(1))
        )
    with torch.no_grad():
        found, last = network.embed_blocks(x), network.embed_prepared(x)
    parts = [seen[k] for k in network.block_ends]
    sizes = [part.shape[1] for part in parts]
    assert found.shape == (2, sum(sizes))
    for part, made in zip(parts, found.split(sizes, 1), strict=True):
        weighted = part * (last.shape[1] / part.shape[1]) ** 0.5
        torch.testing.assert_close(made, weighted, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[:, -sizes[-1] :], last)


def blocks_by_hand(network, x, augmentation):
    """After each of the two blocks of a ConvNet of depth 2, written out."""
    features = network.features
    prepared = siamese(network.normalise(x), augmentation)
    first = features[3](features[2](features[1](features[0](prepared))))
    second = features[7](features[6](features[5](features[4](first))))
    return first.flatten(1), second.flatten(1)


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
@pytest.mark.parametrize("lambda_reg", [0.0, 0.3])
def test_every_block_is_matched_with_the_weight_of_the_last(micro_batch, lambda_reg):
    """Eq. 9-11 summed over blocks, each with d_last / d_l, in one pass by autograd in fp64."""
    network = build_network("convnet", (1, 8, 8), 10, 0, 0.3, 0.4, width=8, depth=2)
    network = network.requires_grad_(False).double()
    labels = torch.tensor([2, 2, 2, 5, 5, 9])
    z = torch.randn(6, 6, generator=derive(0)).double().requires_grad_(True)
    weight = torch.randn(64, 6, generator=derive(1)).double() / 2
    real = {c: torch.randn(4, 1, 8, 8, generator=derive(c)).double().tanh() for c in (2, 5, 9)}
    partners = torch.randn(6, 1, 8, 8, generator=derive(3)).double().tanh()
    augmentations = {c: draw_augmentation(derive(7, c), "crop_scale_color") for c in real}

    class Linear:
        latent_shape, num_classes, image_shape = (6,), 10, (1, 8, 8)
        device, fingerprint = torch.device("cpu"), "linear"

        def __call__(self, latents, labels):
            return (latents @ weight.T).tanh().view(-1, 1, 8, 8)

    loss = z.new_zeros(())
    for c, x in real.items():
        mine, draw = labels == c, augmentations[c]
        made = blocks_by_hand(network, Linear()(z[mine], None), draw)
        target = blocks_by_hand(network, x, draw)
        pairs = blocks_by_hand(network, partners[mine], draw)
        for ours, theirs, own in zip(made, target, pairs, strict=True):
            share = made[-1].shape[1] / ours.shape[1]
            l_con = (theirs.mean(0) - ours.mean(0)).pow(2).sum()
            regulariser = (own - ours).pow(2).sum(1).mean()
            loss = loss + share * ((1 - lambda_reg) * l_con + lambda_reg * regulariser)
    (expected,) = torch.autograd.grad(loss, z)

    draw = Draw(network, augmentations, "all")
    means = [
        torch.stack(
            [draw.embed(x, torch.full((4,), c), compiled=False).mean(0) for c, x in real.items()]
        )
    ]
    problem = Problem(
        Linear(),
        labels,
        [draw],
        means,
        partners if lambda_reg else None,
        lambda_reg,
        micro_batch,
        "fp32",
    )
    found = torch.zeros_like(expected)
    values = descend(problem, z.detach().__getitem__, found.__setitem__)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert float(values.loss) == pytest.approx(float(loss.detach()), rel=1e-10)


def test_of_one_block_all_layers_are_the_last(generator, bank, images):
    config = CondensationConfig(steps=2, real_per_class=5)
    last = condense(generator, bank, images, config)
    every = condense(generator, bank, images, config.model_copy(update={"layers": "all"}))
    assert torch.equal(every.latents, last.latents)  # for 8x8 pixels a ConvNet has one block


def test_blocks_that_are_not_known_are_refused(generator, images, monkeypatch):
    module = types.ModuleType("theirs")
    module.net = lambda image_shape, num_classes: nn.Sequential(
        nn.Flatten(), nn.Linear(64, num_classes)
    )
    monkeypatch.setitem(sys.modules, "theirs", module)
    network = build_network("theirs:net", (1, 8, 8), 10)
    with pytest.raises(InputError, match=r"^network: the blocks of this one are not known"):
        embed(network, images.floats(), None, "all", compiled=True)
    config = CondensationConfig(steps=1, network="theirs:net", layers="all")
    with pytest.raises(InputError, match=r"^network: the blocks of this one are not known"):
        condense(generator, sample_latents(generator, images), images, config)


def test_gradients_have_no_layers_to_choose():
    with pytest.raises(ValidationError, match="layers: gradients are of all layers already"):
        CondensationConfig(matching="gradient", layers="all")
