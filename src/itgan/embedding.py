"""Where features come from: pools of networks to match in, and the extractor for inversion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from itgan import artefacts
from itgan.configs import EvaluationConfig, PoolConfig
from itgan.data import ImageSet
from itgan.errors import InputError
from itgan.networks import Network, build_network
from itgan.randomness import derive_seed
from itgan.splits import stratified
from itgan.training import accuracy, count_updates, train_classifier


@runtime_checkable
class Pool(Protocol):
    """A distribution of embedding networks."""

    def draw(self, rng: torch.Generator) -> Network:
        """A network, without gradients in its weights."""
        ...


class RandomPool:
    """Untrained networks, new weights at every draw."""

    def __init__(self, network: str, images: ImageSet) -> None:
        """Networks for images like these, with their normalisation constants."""
        self.network, self.images = network, images

    def draw(self, rng: torch.Generator) -> Network:
        """A network whose weights follow from the generator's next number."""
        seed = int(torch.randint(2**62, (), generator=rng))
        return _fresh(self.network, self.images, seed).requires_grad_(False)


@dataclass(frozen=True)
class SnapshotPool:
    """Networks on their way: weights kept along the training of several, with their accuracy.

    Attributes:
        network: name that rebuilds them.
        images: what they were trained for (shape, classes and constants are taken from it).
        weights: a state dict whose tensors have one more dimension in front, snapshots; fp16.
        accuracies: of each snapshot on training rows that it has not seen, in [0, 1].
        window: accuracies to draw from, both ends included.
    """

    network: str
    images: ImageSet
    weights: dict[str, Tensor]
    accuracies: Tensor
    window: tuple[float, float] = (0.0, 1.0)

    def candidates(self) -> Tensor:
        """Numbers of the snapshots in the window.

        Raises:
            InputError: there is none.
        """
        low, high = self.window
        inside = ((self.accuracies >= low) & (self.accuracies <= high)).nonzero().flatten()
        if not len(inside):
            raise InputError(
                f"pool.window={low:g} {high:g}: no snapshot is that accurate; they go from "
                f"{float(self.accuracies.min()):.3f} to {float(self.accuracies.max()):.3f}"
            )
        return inside

    def draw(self, rng: torch.Generator) -> Network:
        """A snapshot of the window, each equally likely."""
        inside = self.candidates()
        chosen = inside[torch.randint(len(inside), (), generator=rng)]
        network = _fresh(self.network, self.images, 0)
        network.load_state_dict({name: t[chosen].float() for name, t in self.weights.items()})
        return network.requires_grad_(False)

    def save(self, path: Path) -> None:
        """Store weights and accuracies; the window is not part of the pool."""
        artefacts.save(
            path,
            {**self.weights, "accuracies": self.accuracies},
            {"kind": "pool", "network": self.network},
        )

    @classmethod
    def load(
        cls, path: Path, images: ImageSet, window: tuple[float, float] = (0.0, 1.0)
    ) -> "SnapshotPool":
        """Read what ``save`` wrote.

        Raises:
            InputError: no such file, damaged, or not a pool.
        """
        weights, metadata = artefacts.load(path, "pool")
        accuracies = weights.pop("accuracies")
        return cls(metadata["network"], images, weights, accuracies, window)


def train_pool(
    images: ImageSet, network: str, config: PoolConfig, seed: int, device: torch.device
) -> SnapshotPool:
    """Train networks on real images and keep snapshots along the way.

    Accuracies are measured on a stratified share of the training rows, which the networks do not
    see: test images take no part (the published windows are on test accuracy).
    """
    unseen = stratified(images.labels, round(config.held_out * len(images)))
    seen, held_out = images.select(~unseen), images.select(unseen)
    total = count_updates(config.training, len(seen))
    points = {round(total * (k + 1) / config.snapshots) for k in range(config.snapshots)}
    states: list[dict[str, Tensor]] = []
    accuracies: list[float] = []
    for k in range(config.networks):
        made = _fresh(network, images, derive_seed(seed, "pool", k)).to(device)

        def keep(update: int, loss: float, made: Network = made) -> None:
            if update in points:
                states.append({n: t.cpu().half() for n, t in made.state_dict().items()})
                accuracies.append(accuracy(made, held_out, config.training))

        label = f"pool {k + 1}/{config.networks}"
        train_classifier(made, seen, config.training, derive_seed(seed, "pool", k), label, keep)
    weights = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return SnapshotPool(network, images, weights, torch.tensor(accuracies), config.window)


def _fresh(name: str, images: ImageSet, seed: int) -> Network:
    return build_network(
        name,
        images.image_shape,
        images.num_classes,
        seed=seed,
        mean=images.mean,
        std=images.std,
    )


def train_extractor(
    images: ImageSet, config: EvaluationConfig, seed: int, device: torch.device
) -> Network:
    """A network trained on real images, frozen: psi of Eq. 8."""
    network = _fresh(config.network, images, seed).to(device)
    train_classifier(network, images, config, seed, label="extractor")
    return network.requires_grad_(False).eval()


def save_network(path: Path, network: Network, name: str, num_classes: int) -> None:
    """Store weights, constants and what rebuilds the network."""
    artefacts.save(
        path,
        {**network.state_dict(), "mean": network.mean, "std": network.std},
        {
            "kind": "network",
            "network": name,
            "image_shape": list(network.image_shape),
            "num_classes": num_classes,
        },
    )


def load_network(path: Path) -> Network:
    """Read what ``save_network`` wrote; frozen, in evaluation mode.

    Raises:
        InputError: no such file, damaged, or not a network.
    """
    tensors, metadata = artefacts.load(path, "network")
    mean, std = tensors.pop("mean").flatten(), tensors.pop("std").flatten()
    colours, height, width = metadata["image_shape"]
    network = build_network(
        metadata["network"], (colours, height, width), metadata["num_classes"], mean=mean, std=std
    )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit {metadata['network']}") from error
    return network.requires_grad_(False).eval()
