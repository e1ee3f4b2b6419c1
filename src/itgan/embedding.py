"""Where features come from: pools of networks to match in, and the extractor for inversion."""

from pathlib import Path
from typing import Protocol

import torch

from itgan import artefacts
from itgan.configs import EvaluationConfig
from itgan.data import ImageSet
from itgan.errors import InputError
from itgan.networks import Network, build_network
from itgan.training import train_classifier


class Pool(Protocol):
    """A distribution of embedding networks."""

    def draw(self, rng: torch.Generator) -> Network:
        """A network, without gradients in its weights."""
        ...


class RandomPool:
    """Untrained networks, new weights at every draw."""

    def __init__(self, network: str, images: ImageSet) -> None:
        """Networks for images like these, with their normalisation constants."""
        self.network = network
        self.image_shape, self.num_classes = images.image_shape, images.num_classes
        self.mean, self.std = images.mean, images.std

    def draw(self, rng: torch.Generator) -> Network:
        """A network whose weights follow from the generator's next number."""
        seed = int(torch.randint(2**62, (), generator=rng))
        network = build_network(
            self.network,
            self.image_shape,
            self.num_classes,
            seed=seed,
            mean=self.mean,
            std=self.std,
        )
        return network.requires_grad_(False)


def train_extractor(
    images: ImageSet, config: EvaluationConfig, seed: int, device: torch.device
) -> Network:
    """A network trained on real images, frozen: psi of Eq. 8."""
    network = build_network(
        config.network,
        images.image_shape,
        images.num_classes,
        seed=seed,
        mean=images.mean,
        std=images.std,
    ).to(device)
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
