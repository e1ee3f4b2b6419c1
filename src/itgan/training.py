"""Training of a classifier by the protocol of the field.

SGD with momentum 0.9 and weight decay 5e-4, batch 256, learning rate 0.01; half-way it falls to
0.001 and the momentum buffer starts anew. Every batch draws one augmentation group, and every
image its own parameters. The last step counts.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from itgan import compilation
from itgan.artefacts import Checkpoint
from itgan.augment import draw_augmentation, siamese
from itgan.configs import EvaluationConfig
from itgan.data import ImageSet
from itgan.devices import autocast
from itgan.errors import InputError
from itgan.networks import Network, couples_images
from itgan.progress import track
from itgan.randomness import ambient, derive


@runtime_checkable
class Source(Protocol):
    """What a classifier can be trained on."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def __len__(self) -> int:
        """Images in an epoch."""
        ...

    def batches(self, rng: torch.Generator, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled epoch of (images in [-1, 1], labels); labels may be soft."""
        ...


def count_updates(config: EvaluationConfig, n: int) -> int:
    """Gradient steps of a training on n images."""
    return config.updates or config.epochs * -(-n // config.batch_size)


def check_last_batch(network: Network, n: int, batch_size: int) -> None:
    """Refuse an epoch of n images with a batch of a single image.

    Raises:
        InputError: there is one, and the network has a batch norm.
    """
    alone = min(n, batch_size) == 1 or (batch_size == 2 and n % 2)  # see ``shuffled``
    if alone and couples_images(network):
        raise InputError(
            f"batch_size={batch_size}: leaves a batch of one of {n} images, which a batch "
            "norm cannot take; give another batch size"
        )


def train_classifier(
    network: Network,
    source: Source,
    config: EvaluationConfig,
    seed: int,
    label: str = "classifier",
    at_update: Callable[[int, Tensor], None] | None = None,
    checkpoint: Checkpoint | None = None,
    noted: dict[str, Tensor] | None = None,
) -> int:
    """Train a network in place, on the device where it is.

    Args:
        network: a fresh network.
        source: images and labels; soft labels are probabilities [n, classes].
        config: the protocol.
        seed: of the order of the images and of the augmentations.
        label: what the progress bar says.
        at_update: called with the number of updates done and the batch's loss, a scalar tensor.
        checkpoint: where to keep snapshots, to go on after a kill; one of the end is left there.
        noted: what ``at_update`` writes down; kept in the snapshots, and filled from them.

    Returns:
        The number of updates.

    Raises:
        InputError: the loss became non-finite.
    """
    device = next(network.parameters()).device
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    total = count_updates(config, len(source))
    check_last_batch(network, len(source), config.batch_size)
    network.train()
    noted = {} if noted is None else noted
    begun = _restore(network, optimiser, checkpoint, noted)
    batches = _endless(source, config.batch_size, seed, begun)
    loss = torch.zeros(())
    for update in track(range(begun, total), label):
        second_half = update >= (total + 1) // 2
        if update == (total + 1) // 2:
            optimiser.state.clear()  # the momentum buffer
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate / 10 if second_half else config.learning_rate
        images, labels = next(batches)
        images, labels = images.to(device), labels.to(device)
        augmentation = draw_augmentation(
            derive(seed, "augmentation", update), config.augmentation, count=len(images)
        )
        prepared = siamese(network.normalise(images), augmentation)
        with ambient(device, seed, "ambient", update), autocast(device, config.precision):
            logits = compilation.logits(network, prepared, compiled=config.compile)
        loss = F.cross_entropy(logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if at_update is not None:
            at_update(update + 1, loss.detach())
        if checkpoint is not None and update + 1 < total:
            checkpoint.offer(update + 1, lambda: _state(network, optimiser, noted))
    if not loss.isfinite():
        raise InputError(f"{label}: the loss became {float(loss.detach())}; lower learning_rate")
    if checkpoint is not None and begun < total:
        checkpoint.offer(total, lambda: _state(network, optimiser, noted), force=True)
    return total


def _endless(
    source: Source, batch_size: int, seed: int, skip: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, from batch number ``skip`` on."""
    per_epoch = -(-len(source) // batch_size)
    first, rest = divmod(skip, per_epoch)
    for epoch in itertools.count(first):
        batches = source.batches(derive(seed, "order", epoch), batch_size)
        yield from itertools.islice(batches, rest if epoch == first else 0, None)


def _state(
    network: Network, optimiser: torch.optim.SGD, noted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights, statistics and momentum: all that the next update depends on; and what is noted."""
    state = {f"network.{name}": t for name, t in network.state_dict().items()}
    state |= {f"noted.{name}": t for name, t in noted.items()}
    for name, parameter in network.named_parameters():
        if (momentum := optimiser.state[parameter].get("momentum_buffer")) is not None:
            state[f"momentum.{name}"] = momentum
    return state


def _restore(
    network: Network,
    optimiser: torch.optim.SGD,
    checkpoint: Checkpoint | None,
    noted: dict[str, Tensor],
) -> int:
    """Take the newest snapshot up, if there is one; the number of updates done."""
    found = checkpoint.load() if checkpoint is not None else None
    if found is None:
        return 0
    state, metadata = found
    weights = {n.removeprefix("network."): t for n, t in state.items() if n.startswith("network.")}
    network.load_state_dict(weights)
    noted |= {n.removeprefix("noted."): t for n, t in state.items() if n.startswith("noted.")}
    for name, parameter in network.named_parameters():
        if f"momentum.{name}" in state:
            momentum = torch.empty_like(parameter).copy_(state[f"momentum.{name}"])
            optimiser.state[parameter]["momentum_buffer"] = momentum
    return metadata["step"]


@torch.no_grad()
def accuracy(
    network: Network, images: ImageSet, config: EvaluationConfig, batch_size: int | None = None
) -> float:
    """The share of images that the network classifies correctly, in [0, 1].

    Without a ``batch_size`` 500 images go through at a time; on a CPU 64, which stay in its cache.
    """
    device = next(network.parameters()).device
    batch_size = batch_size or (64 if device.type == "cpu" else 500)
    was_training = network.training
    network.eval()
    correct = 0
    for chunk in torch.arange(len(images)).split(batch_size):
        prepared = network.normalise(images.floats(chunk).to(device))
        with autocast(device, config.precision):
            logits = compilation.logits(network, prepared, compiled=config.compile)
        correct += int((logits.argmax(1).cpu() == images.labels[chunk]).sum())
    network.train(was_training)
    return correct / len(images)
