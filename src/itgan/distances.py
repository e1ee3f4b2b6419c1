"""Distances between two sets of features: pure functions of matrices [n, d] and [m, d] in fp64.

    Fréchet     |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))        means m and covariances S
    kernel      MMD^2 with k(x, y) = (x'y/d + 1)^3              unbiased, averaged over subsets
    precision   share of samples inside a ball of a real image  (Kynkäänniemi et al. 2019)
    recall      share of real images inside a ball of a sample
    density     balls of real images around a sample, / k       (Naeem et al. 2020)
    coverage    share of real images with a sample in their ball

The ball of an image reaches to the k-th nearest other image of its own set.
"""

import warnings

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from itgan.randomness import derive_seed

CHUNK = 500  # rows of a distance matrix at a time


class _AsTheyAre(nn.Module):
    """Gives torchmetrics features that are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(real: Float64[Tensor, "n d"], samples: Float64[Tensor, "m d"]) -> float:
    """Fréchet distance of two Gaussians with the means and covariances of the features."""
    metric = FrechetInceptionDistance(feature=_AsTheyAre(real.shape[1]))
    metric.update(real, real=True)
    metric.update(samples, real=False)
    return float(metric.compute())


def kernel(
    real: Float64[Tensor, "n d"],
    samples: Float64[Tensor, "m d"],
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """MMD^2 with a cubic kernel: mean and standard deviation over random subsets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that features are kept in memory
        metric = KernelInceptionDistance(
            feature=_AsTheyAre(real.shape[1]), subsets=subsets, subset_size=size
        )
    metric.update(real, real=True)
    metric.update(samples, real=False)
    with torch.random.fork_rng(devices=[]):  # the subsets are drawn from the ambient generator
        torch.manual_seed(derive_seed(seed, "metrics", "subsets"))
        mean, std = metric.compute()
    return float(mean), float(std)


def radii(features: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """The distance of each row to its k-th nearest other row."""
    chunks = features.split(CHUNK)
    return torch.cat([torch.cdist(rows, features).kthvalue(k + 1, 1).values for rows in chunks])


def precision(real: Float64[Tensor, "n d"], samples: Float64[Tensor, "m d"], k: int = 5) -> float:
    """The share of samples that lie in the ball of at least one real image."""
    reach = radii(real, k)
    inside = [(torch.cdist(rows, real) <= reach).any(1) for rows in samples.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def recall(real: Float64[Tensor, "n d"], samples: Float64[Tensor, "m d"], k: int = 5) -> float:
    """The share of real images that lie in the ball of at least one sample."""
    return precision(samples, real, k)


def density(real: Float64[Tensor, "n d"], samples: Float64[Tensor, "m d"], k: int = 5) -> float:
    """How many balls of real images a sample lies in, on average, divided by k."""
    reach = radii(real, k)
    counts = [(torch.cdist(rows, real) <= reach).sum(1) for rows in samples.split(CHUNK)]
    return float(torch.cat(counts).double().mean() / k)


def coverage(real: Float64[Tensor, "n d"], samples: Float64[Tensor, "m d"], k: int = 5) -> float:
    """The share of real images whose ball holds at least one sample."""
    nearest = torch.cat([torch.cdist(rows, samples).amin(1) for rows in real.split(CHUNK)])
    return float((nearest <= radii(real, k)).double().mean())
