import pytest
import torch

from itgan.directions import MOST, principal_directions
from itgan.errors import InputError
from itgan.latents import LatentAdam
from itgan.networks import Network
from itgan.randomness import derive

CPU = torch.device("cpu")


class Stretched:
    """Images that are a linear map of latents: strongly along some directions, weakly others."""

    latent_shape, num_classes, image_shape, device = (3, 2), 4, (1, 8, 8), CPU
    fingerprint = "stretched"
    strengths = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)

    def __init__(self):
        left, _ = torch.linalg.qr(torch.randn(64, 6, generator=derive(0, "left")))
        self.right, _ = torch.linalg.qr(torch.randn(6, 6, generator=derive(0, "right")))
        self.weight = left @ torch.diag(torch.tensor(self.strengths)) @ self.right.T

    def __call__(self, latents, labels):
        return (latents.flatten(1) @ self.weight.T).view(-1, 1, 8, 8)


class Pixels(Network):
    """psi(x) = x."""

    def __init__(self):
        super().__init__((1, 8, 8))
        self.features, self.classifier = torch.nn.Flatten(), torch.nn.Linear(64, 10)


def test_directions_are_those_of_a_linear_generator():
    """With psi(x) = x they are the right singular vectors of the linear map."""
    generator = Stretched()
    found = principal_directions(generator, Pixels())
    torch.testing.assert_close(found.T @ found, torch.eye(6), atol=1e-5, rtol=0)
    alike = (found.T @ generator.right.flip(1)).abs()  # the flattest first
    assert alike.diag().min() > 0.98
    assert torch.equal(found, principal_directions(generator, Pixels()))


def test_latents_of_too_many_numbers_are_refused():
    generator = Stretched()
    generator.latent_shape = (MOST + 1,)
    with pytest.raises(InputError, match=r"basis=principal: latents of 4097 numbers"):
        principal_directions(generator, Pixels())


@pytest.mark.parametrize("decay_steps", [None, 5])
def test_adam_along_a_basis_is_adam_of_the_turned_latents(decay_steps):
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=derive(1)).double())
    z = torch.randn(5, 3, 2, generator=derive(2)).double()
    along = LatentAdam(z.clone(), 0.1, decay_steps=decay_steps, basis=basis)
    turned = LatentAdam(z.flatten(1) @ basis, 0.1, decay_steps=decay_steps)
    for step in range(4):
        rows = torch.arange(5)[step % 2 :]
        gradient = torch.randn(len(rows), 3, 2, generator=derive(3, step)).double()
        along.step(rows, gradient)
        turned.step(rows, gradient.flatten(1) @ basis)
    torch.testing.assert_close(along.latents.flatten(1), turned.latents @ basis.T)
    assert not torch.allclose(along.latents, LatentAdam(z, 0.1).latents)
