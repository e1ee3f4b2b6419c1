import math

import pytest
import torch
from torch import nn

from itgan.configs import InversionConfig
from itgan.data import ImageSet
from itgan.latents import LatentBank
from itgan.networks import Network
from itgan.reconstruction import Objective, distances, psnr


class Sums(Network):
    """Features of two pixels: their sum and their difference."""

    def __init__(self):
        super().__init__((1, 1, 2), 0.5, 0.25)
        linear = nn.Linear(2, 2, bias=False)
        linear.weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        self.features, self.classifier = nn.Sequential(nn.Flatten(), linear), nn.Linear(2, 2)


class Copy:
    """G(z) = z."""

    latent_shape, num_classes, image_shape = (1, 1, 2), 2, (1, 1, 2)
    device, fingerprint = torch.device("cpu"), "copy"

    def __call__(self, latents, labels):
        return latents


REAL = ImageSet(torch.tensor([0, 255, 0, 0]).byte().view(2, 1, 1, 2), torch.tensor([0, 1]))
Z = torch.tensor([[0.0, 0.5], [-1.0, -1.0]]).view(2, 1, 1, 2)

# The std of 1/4 makes [-1, 1] to [-2, 2]. First image: (0, 1) for (-2, 2); sum 1 for 0,
# difference -1 for -4. The second is met.
FEATURE = (1 + 9) / 2
PIXEL = (4 + 1) / 2


def test_golden_values_of_eq_8():
    network = Sums().requires_grad_(False)
    real = REAL.floats()
    feature, pixel = distances(network, Z, real, network.embed(real))
    assert feature.tolist() == [FEATURE, 0.0]
    assert pixel.tolist() == [PIXEL, 0.0]


@pytest.mark.parametrize(("lambda_pixel", "lambda_prior"), [(1.0, 0.0), (0.5, 0.0), (2.0, 3.0)])
def test_golden_values_of_the_whole_loss(lambda_pixel, lambda_prior):
    config = InversionConfig(lambda_pixel=lambda_pixel, lambda_prior=lambda_prior, batch_size=1)
    objective = Objective(Copy(), Sums().requires_grad_(False), REAL, config)
    prior = torch.tensor([0.125, 1.0]) * lambda_prior
    expected = torch.tensor([FEATURE + lambda_pixel * PIXEL, 0.0]) + prior
    loss, feature = objective.losses(Z, torch.arange(2))
    assert loss.tolist() == expected.tolist()
    assert feature.tolist() == [FEATURE, 0.0]
    backwards, _ = objective.losses(Z.flip(0), torch.tensor([1, 0]))
    assert backwards.tolist() == expected.flip(0).tolist()
    made = objective(Z, objective.target(torch.arange(2)))
    assert (made.loss.tolist(), made.pixel.tolist()) == (expected.tolist(), [PIXEL, 0.0])
    assert torch.equal(made.images, Z)


def test_golden_values_of_psnr():
    bank = LatentBank(Z, REAL.labels, REAL.rows, "inverted")
    error = (1 + 0.25) / 2
    whole = (10 * math.log10(4 / error) + 10 * math.log10(4 / 1e-12)) / 2  # the second is exact
    assert psnr(Copy(), bank, REAL) == pytest.approx(whole)
