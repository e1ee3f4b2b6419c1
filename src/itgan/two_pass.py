"""The gradient of Eq. 11 in latents of any number, in the memory of one micro-batch.

Only the class means couple the latents. So a first pass over micro-batches gives the means, the
gradient of Eq. 9 in them is then a constant, and a second pass back-propagates it: the gradient
of the whole batch in the memory of one micro-batch. (What regression keeps are the features of all
images, which are small beside what a network keeps to differentiate.) Graphs of as many
micro-batches as are asked for stay in memory between the passes; only the others are computed
twice. Since no latent needs another one's gradient, each micro-batch takes its step at once: what
grows with the bank is the latents and the optimiser's state alone.

Labels and draws stay on the host, so that no step reads a number back from the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from itgan import matching
from itgan.augment import Augmentation, Blocks
from itgan.compilation import embed, generate
from itgan.configs import Layers
from itgan.devices import autocast, send
from itgan.discrepancies import Discrepancy, DistributionMatching, Part
from itgan.generators import ConditionalGenerator
from itgan.networks import Network


@dataclass(frozen=True)
class Draw:
    """What one step draws: psi, and omega for each class."""

    network: Network
    augmentations: dict[int, Augmentation | None]
    layers: Layers = "last"

    def blocks(self, labels: Int[Tensor, " n"]) -> Blocks:
        """The augmentation of a batch that is ordered by class."""
        classes, counts = labels.unique_consecutive(return_counts=True)
        pairs = zip(classes.tolist(), counts.tolist(), strict=True)
        return Blocks(tuple((self.augmentations[label], count) for label, count in pairs))

    def embed(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], *, compiled: bool
    ) -> Float[Tensor, "n d"]:
        """psi(A(x)) of a batch that is ordered by class; of all layers see ``embed_blocks``."""
        blocks = self.blocks(labels)
        return embed(self.network, images, blocks, self.layers, compiled=compiled)


@runtime_checkable
class Images(Protocol):
    """Images [n, c, h, w] that are made when they are asked for: a tensor is one."""

    def __getitem__(self, positions: slice) -> Tensor:
        """Those at these positions."""
        ...


@dataclass(frozen=True)
class Problem:
    """One shard at one step: everything that its loss depends on but the latents."""

    generator: ConditionalGenerator
    labels: Int[Tensor, " n"]  # ordered by class, on the host
    draws: Sequence[Draw]
    real_statistics: Sequence[Float[Tensor, "rows s"]]  # for each draw
    partners: Images | None  # the x_i of Eq. 10
    lambda_reg: float
    micro_batch: int
    precision: str
    discrepancy: Discrepancy = DistributionMatching()  # noqa: RUF009 - stateless
    kept_graphs: int = 1  # micro-batches that are not computed twice
    compile: bool = False  # not where the discrepancy needs second derivatives
    tuned: Sequence[Tensor] = ()  # leaves that the generator reads, and that are learned too
    lambda_class: float = 0.0


@dataclass(frozen=True)
class Forward:
    """What a micro-batch gives: for each draw features, and its part of the statistics."""

    latents: Tensor
    features: Sequence[Float[Tensor, "k d"]]
    parts: Sequence[Float[Tensor, "rows s"]]


class Total:
    """The statistic of a batch, from those of its parts, in order."""

    def __init__(self, by_image: bool) -> None:
        """Rows of images stand one below the other, those of classes add up."""
        self.by_image = by_image
        self.parts: list[Tensor] = []

    def add(self, part: Float[Tensor, "rows s"]) -> None:
        """Count the next part in."""
        if self.by_image or not self.parts:
            self.parts.append(part)
        else:
            self.parts[0] = self.parts[0] + part

    def value(self) -> Float[Tensor, "rows s"]:
        """That of all parts so far."""
        return torch.cat(self.parts)


def mean_weights(
    labels: Int[Tensor, " n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "classes n"]:
    """1 / n_c where an image is of class c, else 0: sums with these are class means."""
    members = (labels.unique()[:, None] == labels[None, :]).to(dtype)
    return members / members.sum(1, keepdim=True)


@dataclass(frozen=True)
class Values:
    """A loss and what it consists of; scalars on the device."""

    loss: Float[Tensor, ""]
    matching: Float[Tensor, ""]  # Eq. 9
    regulariser: Float[Tensor, ""]  # Eq. 10
    classification: Float[Tensor, ""]


def descend(
    problem: Problem,
    read: Callable[[slice], Tensor],
    step: Callable[[slice, Tensor], None],
) -> Values:
    """Give the gradient of the loss in the latents, micro-batch by micro-batch.

    The loss is Eq. 11, and ``lambda_class`` times the cross-entropy of the generated images in
    the networks that were drawn, a mean over the images of each class, summed over classes.

    That in the leaves ``tuned`` is added to their ``grad``; they must not change meanwhile.

    Args:
        problem: what the loss depends on.
        read: from positions in the shard to their latents.
        step: takes positions and the gradient there, once for every position; the latents may
            change then.

    Returns:
        The loss and its parts, before the latents change.
    """
    match, draws, n = problem.discrepancy, problem.draws, len(problem.labels)
    first = read(slice(0, 1))
    dtype, device = first.dtype, first.device
    chunks = [slice(k, k + problem.micro_batch) for k in range(0, n, problem.micro_batch)]
    shares = mean_weights(problem.labels, dtype)
    weights, on_device = send(shares, device), send(problem.labels, device)

    def forward(chunk: slice, *, graph: bool) -> Forward:
        z, labels = read(chunk).detach(), problem.labels[chunk]
        present = shares[:, chunk].any(1).tolist()
        part = Part(on_device[chunk], weights[:, chunk], present)
        z.requires_grad_(graph)
        with autocast(device, problem.precision):
            with torch.set_grad_enabled(graph):
                images = generate(problem.generator, z, part.labels, compiled=problem.compile)
            with torch.set_grad_enabled(graph or match.needs_graph):
                features = [
                    d.embed(images, labels, compiled=problem.compile).to(dtype) for d in draws
                ]
        parts = [
            match.statistic(d.network, f, part, differentiable=graph)
            for d, f in zip(draws, features, strict=True)
        ]
        return Forward(z, features, parts)

    # First pass: the statistics of the classes. The last graphs stay.
    totals = [Total(match.by_image) for _ in draws]
    kept: dict[int, Forward] = {}
    for k, chunk in enumerate(chunks):
        stays = k >= len(chunks) - problem.kept_graphs
        made = forward(chunk, graph=stays)
        for total, part in zip(totals, made.parts, strict=True):
            total.add(part.detach())
        if stays:
            kept[k] = made

    # The gradient of Eq. 9 in them.
    l_con, directions = torch.zeros((), device=device), []
    for draw, real, total in zip(draws, problem.real_statistics, totals, strict=True):
        ours = total.value().requires_grad_(True)
        value = match.distance(draw.network, real.to(ours.dtype), ours, len(shares))  # Eq. 9
        directions.append(torch.autograd.grad(value, ours)[0])
        l_con = l_con + value.detach() / len(draws)

    # Second pass: the same constants, pulled back to the latents. What was kept goes first.
    regulariser, classification = (torch.zeros((), device=device) for _ in range(2))
    for k in reversed(range(len(chunks))):
        chunk, made = chunks[k], kept.pop(k, None) or forward(chunks[k], graph=True)
        pulls = [d[chunk] if match.by_image else d for d in directions]
        pulled = [(d * part).sum() for d, part in zip(pulls, made.parts, strict=True)]
        loss = (1 - problem.lambda_reg) * torch.stack(pulled).sum()
        if problem.partners is not None:
            r = _regulariser(problem, chunk, made.features, weights[:, chunk].sum(0))
            loss = loss + problem.lambda_reg * r
            regulariser = regulariser + r.detach() / len(draws)
        if problem.lambda_class:
            each = weights[:, chunk].sum(0)
            entropy = _classification(draws, made.features, on_device[chunk], each)
            loss = loss + problem.lambda_class * entropy
            classification = classification + entropy.detach() / len(draws)
        gradient, *others = torch.autograd.grad(loss / len(draws), [made.latents, *problem.tuned])
        for leaf, part in zip(problem.tuned, others, strict=True):
            leaf.grad = part if leaf.grad is None else leaf.grad + part
        step(chunk, gradient)
    loss = (1 - problem.lambda_reg) * l_con + problem.lambda_reg * regulariser  # Eq. 11
    loss = loss + problem.lambda_class * classification
    return Values(loss, l_con, regulariser, classification)


def _classification(
    draws: Sequence[Draw],
    features: Sequence[Tensor],
    labels: Int[Tensor, " k"],
    weights: Float[Tensor, " k"],
) -> Float[Tensor, ""]:
    """A part of the cross-entropy, summed over draws."""
    total = features[0].new_zeros(())
    for draw, synthetic in zip(draws, features, strict=True):
        logits = draw.network.classify(synthetic).to(synthetic.dtype)
        total = total + (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
    return total


def _regulariser(
    problem: Problem, chunk: slice, features: Sequence[Tensor], weights: Float[Tensor, " k"]
) -> Float[Tensor, ""]:
    """A part of Eq. 10, summed over draws."""
    assert problem.partners is not None
    total = features[0].new_zeros(())
    for draw, synthetic in zip(problem.draws, features, strict=True):
        with torch.no_grad(), autocast(synthetic.device, problem.precision):
            partners, labels = problem.partners[chunk], problem.labels[chunk]
            real = draw.embed(partners, labels, compiled=problem.compile).to(synthetic.dtype)
        total = total + (matching.paired(real, synthetic) * weights).sum()  # Eq. 10
    return total
