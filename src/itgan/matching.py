"""Discrepancies between real and synthetic images: pure functions of features or gradients.

Eq. 9   L_con = sum over classes of || mean psi(A(x)) - mean psi(A(G(z))) ||^2
Eq. 10  R     = sum over classes of mean_i || psi(A(x_i)) - psi(A(G(z_i))) ||^2
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


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
