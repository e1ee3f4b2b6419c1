"""The method written straightforwardly: what speed is measured against, and parity tested with.

Contiguous fp32, spectral norm in every forward, batch norm as the formula has it, one class after
another, a new network for every class, augmentation parameters for every image, one Adam for
every class. Correct, and nobody's hurry.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from itgan.augment import Augmentation, draw_augmentation
from itgan.networks import Network

State = Mapping[str, Tensor]


def _normalised(state: State, layer: str) -> Tensor:
    """A weight divided by its spectral norm after one power step from the stored vector."""
    weight, u = state[f"{layer}.weight"], state[f"{layer}.u0"]
    matrix = weight.flatten(1)
    v = F.normalize(u @ matrix, eps=1e-8)
    u = F.normalize(v @ matrix.T, eps=1e-8)
    return weight / (v @ matrix.T @ u.T)


def _conv(state: State, layer: str, x: Tensor) -> Tensor:
    weight = _normalised(state, layer)
    return F.conv2d(x, weight, state[f"{layer}.bias"], padding=weight.shape[-1] // 2)


def _standardised(state: State, layer: str, x: Tensor) -> Tensor:
    mean, var = (state[f"{layer}.{name}"][:, None, None] for name in ("stored_mean", "stored_var"))
    return (x - mean) / (var + 1e-5).sqrt()


def _conditional(state: State, layer: str, x: Tensor, labels: Tensor) -> Tensor:
    gain, bias = (state[f"{layer}.{name}.weight"][labels] for name in ("gain", "bias"))
    return _standardised(state, layer, x) * (1 + gain[..., None, None]) + bias[..., None, None]


def generate(state: State, latents: Tensor, labels: Tensor) -> Tensor:
    """Images in [-1, 1] of a BigGAN's state dict."""
    weight = _normalised(state, "linear")
    x = F.linear(latents, weight, state["linear.bias"]).unflatten(1, (-1, 4, 4))
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for k in range(blocks):
        block = f"blocks.{k}.0"
        h = F.relu(_conditional(state, f"{block}.bn1", x, labels))
        h = _conv(state, f"{block}.conv1", F.interpolate(h, scale_factor=2))
        h = F.relu(_conditional(state, f"{block}.bn2", h, labels))
        h = _conv(state, f"{block}.conv2", h)
        x = h + _conv(state, f"{block}.conv_sc", F.interpolate(x, scale_factor=2))
    x = _standardised(state, "output_layer.0", x)
    gain, bias = (state[f"output_layer.0.{name}"][:, None, None] for name in ("gain", "bias"))
    return torch.tanh(_conv(state, "output_layer.2", F.relu(x * gain + bias)))


def per_sample(draw: Augmentation | None, n: int) -> Augmentation | None:
    """The same parameters, written out for every image."""
    return None if draw is None else Augmentation(draw.group, draw.uniforms.expand(n, -1))


def class_gradient(
    state: State,
    latents: Tensor,
    label: int,
    real: Tensor,
    network: Network,
    draw: Augmentation | None,
) -> tuple[Tensor, float]:
    """The gradient of Eq. 9 in the latents of one class, and its value."""
    z = latents.detach().requires_grad_(True)
    images = generate(state, z, torch.full((len(z),), label))
    synthetic = network.embed(images, per_sample(draw, len(z)))
    target = network.embed(real, per_sample(draw, len(real)))
    loss = (target.mean(0) - synthetic.mean(0)).square().sum()
    (gradient,) = torch.autograd.grad(loss, z)
    return gradient, float(loss.detach())


def condense(
    state: State,
    latents: Sequence[Tensor],
    real: Callable[[int, torch.Generator], Tensor],
    network: Callable[[torch.Generator], Network],
    steps: int,
    learning_rate: float,
    strategy: str,
    seed: int = 0,
) -> list[Tensor]:
    """Eq. 9 descended by Adam, class after class within a step.

    Args:
        state: the generator.
        latents: those of each class.
        real: draws a batch of a class.
        network: draws a network.
        steps: passes over the latents.
        learning_rate: of Adam.
        strategy: of the Siamese augmentation.
        seed: of all draws.
    """
    bank = [z.clone().requires_grad_(True) for z in latents]
    adams = [torch.optim.Adam([z], lr=learning_rate) for z in bank]
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for label, (z, adam) in enumerate(zip(bank, adams, strict=True)):
            draw = draw_augmentation(rng, strategy)
            batch, psi = real(label, rng), network(rng)
            z.grad, _ = class_gradient(state, z, label, batch, psi, draw)
            adam.step()
    return [z.detach() for z in bank]


def invert(
    state: State,
    images: Tensor,
    labels: Tensor,
    extractor: Network,
    steps: int,
    learning_rate: float,
    seed: int = 0,
) -> tuple[Tensor, list[float]]:
    """Eq. 8 descended by Adam from N(0, I), all images in one batch.

    Returns:
        The latents, and for each step the mean feature distance before it.
    """
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(len(images), state["linear.weight"].shape[1], generator=rng)
    z.requires_grad_(True)
    adam = torch.optim.Adam([z], lr=learning_rate)
    with torch.no_grad():
        target = extractor.embed(images)
    distances = []
    for _ in range(steps):
        made = generate(state, z, labels)
        feature = (extractor.embed(made) - target).square().mean(1)
        pixel = (extractor.normalise(made) - extractor.normalise(images)).square()
        loss = (feature + pixel.flatten(1).mean(1)).sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        adam.step()
        distances.append(float(feature.detach().mean()))
    return z.detach(), distances
