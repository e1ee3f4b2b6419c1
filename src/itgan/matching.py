"""Discrepancies between real and synthetic images: pure functions of features or gradients.

    Eq. 9   L_con = sum over classes of || mean psi(A(x)) - mean psi(A(G(z))) ||^2
    Eq. 10  R     = sum over classes of mean_i || psi(A(x_i)) - psi(A(G(z_i))) ||^2

A discrepancy compares one statistic of each class, a mean over its images, so that it adds up over
parts of a batch: the mean feature for distribution matching, the mean gradient of the classifier's
loss for gradient matching.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from itgan.networks import Network


def class_means(
    real: Float[Tensor, "classes d"], synthetic: Float[Tensor, "classes d"]
) -> Float[Tensor, ""]:
    """Distribution matching, Eq. 9, given the mean features of every class."""
    return (real - synthetic).square().sum()


def distribution(
    real_features: Float[Tensor, "n d"], synthetic_features: Float[Tensor, "m d"]
) -> Float[Tensor, ""]:
    """Distribution matching of one class, Eq. 9: squared distance of the mean features.

    >>> float(distribution(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])))
    9.0
    """
    return class_means(
        real_features.mean(0, keepdim=True), synthetic_features.mean(0, keepdim=True)
    )


def paired(
    real_features: Float[Tensor, "n d"], synthetic_features: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """Squared feature distance of each pair; its mean over a class is Eq. 10."""
    return (real_features - synthetic_features).square().sum(1)


def gradient_distance(
    real_grads: Sequence[Tensor], synthetic_grads: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Gradient matching: sum over layers and output rows of 1 - a.b / (|a| |b| + 1e-6).

    One-dimensional parameters (biases, norms) contribute nothing. Differentiable in both.
    """
    total = torch.zeros((), dtype=real_grads[0].dtype, device=real_grads[0].device)
    for real, synthetic in zip(real_grads, synthetic_grads, strict=True):
        if real.ndim < 2:
            continue
        a, b = real.flatten(1), synthetic.flatten(1)  # out rest
        cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
        total = total + (1 - cosine).sum()
    return total


@runtime_checkable
class Discrepancy(Protocol):
    """What is matched: a statistic of each class, and a distance between statistics."""

    needs_graph: bool
    """Whether statistics of real images, too, need the graph of the network."""

    def prepare(self, network: Network) -> None:
        """Make a drawn network ready."""
        ...

    def statistic(
        self,
        network: Network,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, "classes n"],
        present: Sequence[bool],
        *,
        differentiable: bool,
    ) -> Float[Tensor, "classes s"]:
        """Weighted sums over images, one row for each class: with weights 1/n_c a mean.

        ``present`` says of each class whether any of its weights is not zero.
        """
        ...

    def distance(
        self, network: Network, real: Float[Tensor, "classes s"], synthetic: Tensor
    ) -> Float[Tensor, ""]:
        """The discrepancy, summed over classes."""
        ...


class DistributionMatching:
    """Eq. 9: mean features."""

    needs_graph = False

    def prepare(self, network: Network) -> None:
        """Weights need no gradient."""
        network.requires_grad_(False)

    def statistic(
        self,
        network: Network,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, "classes n"],
        present: Sequence[bool],
        *,
        differentiable: bool,
    ) -> Float[Tensor, "classes d"]:
        """Weighted sums of the features of each class."""
        return weights @ features

    def distance(
        self, network: Network, real: Float[Tensor, "classes d"], synthetic: Tensor
    ) -> Float[Tensor, ""]:
        """Squared distance of the mean features, Eq. 9."""
        return class_means(real, synthetic)


class GradientMatching:
    """Mean gradients of the classifier's loss in its weight matrices and kernels."""

    needs_graph = True

    def prepare(self, network: Network) -> None:
        """Weights are what gradients are taken in."""
        network.requires_grad_(True)

    def statistic(
        self,
        network: Network,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, "classes n"],
        present: Sequence[bool],
        *,
        differentiable: bool,
    ) -> Float[Tensor, "classes s"]:
        """For each class the gradient of its weighted loss, all parameters in one row."""
        losses = F.cross_entropy(network.classify(features).float(), labels, reduction="none")
        parameters = _matrices(network)
        rows = []
        for weight, there in zip(weights.to(losses.dtype), present, strict=True):
            if not there:
                rows.append(losses.new_zeros(sum(p.numel() for p in parameters)))
                continue
            grads = torch.autograd.grad(
                (weight * losses).sum(), parameters, create_graph=differentiable, retain_graph=True
            )
            rows.append(torch.cat([g.flatten() for g in grads]))
        return torch.stack(rows)

    def distance(
        self, network: Network, real: Float[Tensor, "classes s"], synthetic: Tensor
    ) -> Float[Tensor, ""]:
        """``gradient_distance`` of each class, summed."""
        shapes = [p.shape for p in _matrices(network)]
        sizes = [math.prod(shape) for shape in shapes]

        def parts(row: Tensor) -> list[Tensor]:
            return [t.view(shape) for t, shape in zip(row.split(sizes), shapes, strict=True)]

        pairs = zip(real, synthetic, strict=True)
        return torch.stack([gradient_distance(parts(a), parts(b)) for a, b in pairs]).sum()


def _matrices(network: Network) -> list[Tensor]:
    """The parameters that count in gradient matching: those with at least two dimensions."""
    return [p for p in network.parameters() if p.ndim > 1]


DISCREPANCIES: dict[str, type[DistributionMatching] | type[GradientMatching]] = {
    "distribution": DistributionMatching,
    "gradient": GradientMatching,
}
