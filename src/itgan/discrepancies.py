"""What condensation matches: statistics of images in a network, and a distance between them.

Those of each class, a mean over its images, add up over parts of a batch: the mean feature for
distribution matching, the mean gradient of the classifier's loss for gradient matching.
Regression takes the features of every image as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from itgan.matching import class_means, gradient_distance, regression
from itgan.networks import Network


@dataclass(frozen=True)
class Part:
    """Where the images of a part of a batch belong.

    Attributes:
        labels: their classes, on the device.
        weights: what each counts in the sum of each class; with 1 / n_c sums are means.
        present: whether any weight of a class is not zero, known on the host.
    """

    labels: Int[Tensor, " n"]
    weights: Float[Tensor, "classes n"]
    present: Sequence[bool]


@runtime_checkable
class Discrepancy(Protocol):
    """What is matched: statistics of classes or images, and a distance between them."""

    needs_graph: bool
    """Whether gradients are taken in the network's weights, for real images, too."""
    by_image: bool
    """Whether a statistic has a row for each image; else one for each class, which adds up."""

    def statistic(
        self,
        network: Network,
        features: Float[Tensor, "n d"],
        part: Part,
        *,
        differentiable: bool,
    ) -> Float[Tensor, "rows s"]:
        """Weighted sums over images, a row for each class; or, ``by_image``, a row for each."""
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

    def statistic(
        self,
        network: Network,
        features: Float[Tensor, "n d"],
        part: Part,
        *,
        differentiable: bool,
    ) -> Float[Tensor, "classes d"]:
        """Weighted sums of the features of each class."""
        return part.weights @ features

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

    def statistic(
        self,
        network: Network,
        features: Float[Tensor, "n d"],
        part: Part,
        *,
        differentiable: bool,
    ) -> Float[Tensor, "n s"]:
        """Every image's features, and after them its one-hot target among these classes."""
        return torch.cat([features, (part.weights > 0).T.to(features.dtype)], 1)

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

    def statistic(
        self,
        network: Network,
        features: Float[Tensor, "n d"],
        part: Part,
        *,
        differentiable: bool,
    ) -> Float[Tensor, "classes s"]:
        """For each class the gradient of its weighted loss, all parameters in one row."""
        logits = network.classify(features).float()
        losses = F.cross_entropy(logits, part.labels, reduction="none")
        parameters = _matrices(network)
        rows = []
        for weight, there in zip(part.weights.to(losses.dtype), part.present, strict=True):
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
