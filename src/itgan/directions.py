"""Coordinates in which Adam finds its way through a latent space.

Adam gives every coordinate a step of its own length. That is worth most where a coordinate is also
a direction of its own in what is compared, and latent spaces are far from that: along a few
directions the squared change of images is a thousand times that along others, and each coordinate
mixes them all. In the eigenvectors of the mean curvature it does not.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from itgan.compilation import embed, generate
from itgan.devices import autocast
from itgan.errors import InputError
from itgan.generators import ConditionalGenerator
from itgan.networks import Network
from itgan.randomness import derive

COUNT, PROBES = 100, 16  # latents that the curvature is the mean of, and projections of each
MOST = 4096  # numbers of a latent: the matrix of their curvature is dense


def principal_directions(
    generator: ConditionalGenerator,
    network: Network,
    precision: str = "fp32",
    *,
    compiled: bool = False,
) -> Float[Tensor, "d d"]:
    """The eigenvectors of E[J^T J] as columns, the flattest direction first.

    J is the Jacobian, in the flattened latent, of what Eq. 8 compares: network features over
    sqrt(d_f), and normalised pixels over sqrt(d_I). The mean is over 100 latents z ~ N(0, I) with
    labels in turn, and v ~ N(0, I) for each, since E[(J^T v)(J^T v)^T] = J^T J. What is drawn is
    always the same.

    Raises:
        InputError: latents have more than 4,096 numbers.
    """
    size, device = math.prod(generator.latent_shape), generator.device
    if size > MOST:
        raise InputError(
            f"basis=principal: latents of {size} numbers have too many directions; up to {MOST}, "
            "or leave it at latent"
        )
    rng = derive(0, "directions")
    latents = torch.randn(COUNT, *generator.latent_shape, generator=rng).to(device)
    labels = (torch.arange(COUNT) % generator.num_classes).to(device)
    curvature = torch.zeros(size, size, dtype=torch.float64)
    for _ in range(PROBES):
        z = latents.clone().requires_grad_(True)
        with autocast(device, precision):
            made = generate(generator, z, labels, compiled=compiled)
            features = embed(network, made, compiled=compiled)
        total = made.new_zeros(())
        for compared in (features.float(), network.normalise(made).flatten(1)):
            v = torch.randn(compared.shape, generator=rng).to(device)
            total = total + (compared * v).sum() / compared.shape[1] ** 0.5
        (projected,) = torch.autograd.grad(total, z)
        flat = projected.flatten(1).cpu().double()
        curvature += flat.T @ flat
    return torch.linalg.eigh(curvature).eigenvectors.float().to(device)
