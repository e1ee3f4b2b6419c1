"""Discrepancies between real and synthetic images: pure functions of features or gradients.

    Eq. 9   L_con = sum over classes of || mean psi(A(x)) - mean psi(A(G(z))) ||^2
    Eq. 10  R     = sum over classes of mean_i || psi(A(x_i)) - psi(A(G(z_i))) ||^2

A discrepancy compares statistics. Those of each class, a mean over its images, add up over parts
of a batch: the mean feature for distribution matching, the mean gradient of the classifier's loss
for gradient matching. Regression takes the features of every image as they are.
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


def regression(
    real_features: Float[Tensor, "n d"],
    real_targets: Float[Tensor, "n classes"],
    synthetic_features: Float[Tensor, "m d"],
    synthetic_targets: Float[Tensor, "m classes"],
    ridge: float = 1.0,
) -> Float[Tensor, ""]:
    """Error on real images of the linear classifier that synthetic images give.

    With features s, targets y (one-hot) centred on their means s_0, y_0 over synthetic images,

        W    = argmin_W  sum_j || W s_j - y_j ||^2 + ridge mean_j || s_j ||^2 || W ||^2
        loss = sum over classes of mean_i || W (r_i - s_0) + y_0 - t_i ||^2     over real r_i, t_i

    as kernel inducing points (Nguyen et al., 2021) and FRePo (Zhou et al., 2022) have it in
    pixels. The system that is solved has as many rows as images or features, whichever are fewer.

    >>> x, y = torch.tensor([[0.0], [2.0]]), torch.eye(2)
    >>> float(regression(x, y, x, y, ridge=0.0))
    0.0
    """
    mean, base = synthetic_features.mean(0), synthetic_targets.mean(0)
    s, y = synthetic_features - mean, synthetic_targets - base
    penalty = (ridge * s.square().sum(1).mean()).clamp_min(1e-12)  # where all are alike
    identity = torch.eye(min(s.shape), dtype=s.dtype, device=s.device)
    if s.shape[0] <= s.shape[1]:
        coefficients = s.T @ torch.linalg.solve(s @ s.T + penalty * identity, y)
    else:
        coefficients = torch.linalg.solve(s.T @ s + penalty * identity, s.T @ y)
    errors = (real_features - mean) @ coefficients + base - real_targets  # n classes
    shares = (real_targets / real_targets.sum(0)).sum(1)  # 1 / n_c
    return (errors.square().sum(1) * shares).sum()


@runtime_checkable
class Discrepancy(Protocol):
    """What is matched: statistics of classes or images, and a distance between them."""

    needs_graph: bool
    """Whether statistics of real images, too, need the graph of the network."""
    by_image: bool
    """Whether a statistic has a row for each image; else one for each class, which adds up."""

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
    ) -> Float[Tensor, "rows s"]:
        """Weighted sums over images, one row for each class: with weights 1/n_c a mean.

        Or, ``by_image``, a row for each. ``present`` says of each class whether any of its
        weights is not zero.
        """
        ...

    def distance(
        self, network: Network, real: Float[Tensor, "rows s"], synthetic: Tensor, classes: int
    ) -> Float[Tensor, ""]:
        """The discrepancy, summed over classes."""
        ...


class DistributionMatching:
    """Eq. 9: mean features."""

    needs_graph = False
    by_image = False

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
        self, network: Network, real: Float[Tensor, "classes d"], synthetic: Tensor, classes: int
    ) -> Float[Tensor, ""]:
        """Squared distance of the mean features, Eq. 9."""
        return class_means(real, synthetic)


class RegressionMatching:
    """A linear classifier of the synthetic images' features, judged on the real ones'."""

    needs_graph = False
    by_image = True

    def __init__(self, ridge: float = 1.0) -> None:
        """With this penalty, as a multiple of the mean squared norm of the features."""
        self.ridge = ridge

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
    ) -> Float[Tensor, "n s"]:
        """Every image's features, and after them its one-hot target among these classes."""
        return torch.cat([features, (weights > 0).T.to(features.dtype)], 1)

    def distance(
        self, network: Network, real: Float[Tensor, "n s"], synthetic: Tensor, classes: int
    ) -> Float[Tensor, ""]:
        """See ``regression``."""
        r, t = real[:, :-classes], real[:, -classes:]
        s, y = synthetic[:, :-classes], synthetic[:, -classes:]
        return regression(r, t, s, y, self.ridge)


class GradientMatching:
    """Mean gradients of the classifier's loss in its weight matrices and kernels."""

    needs_graph = True
    by_image = False

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
        self, network: Network, real: Float[Tensor, "classes s"], synthetic: Tensor, classes: int
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


def make_discrepancy(name: str, ridge: float) -> Discrepancy:
    """What a config calls ``distribution``, ``gradient`` or ``regression``, which has a ridge."""
    if name == "regression":
        return RegressionMatching(ridge)
    return {"distribution": DistributionMatching, "gradient": GradientMatching}[name]()
