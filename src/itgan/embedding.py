"""Where features come from: pools of networks to match in, and the extractor for inversion."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.configs import CondensationConfig, EvaluationConfig, PoolConfig
from itgan.data import ImageSet
from itgan.errors import InputError
from itgan.networks import Network, build_network
from itgan.randomness import derive_seed
from itgan.splits import MOST_CLASSES, stratified
from itgan.training import accuracy, count_updates, train_classifier


@runtime_checkable
class Pool(Protocol):
    """A distribution of embedding networks."""

    def draw(self, rng: torch.Generator) -> Network:
        """A network, without gradients in its weights."""
        ...


@dataclass(frozen=True)
class NetworkSpec:
    """What rebuilds a network, its weights aside."""

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, name: str, images: ImageSet) -> "NetworkSpec":
        """A network for images like these, with their normalisation constants."""
        return cls(name, images.image_shape, images.num_classes, images.mean, images.std)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "NetworkSpec":
        """From JSON."""
        colours, height, width = map(int, values["image_shape"])
        name, classes = str(values["name"]), int(values["num_classes"])
        if ":" in name:  # a file must not choose what is imported
            raise InputError(f"names the network {name!r}, which would run its code")
        if max(colours, height, width) > 1024 or classes > MOST_CLASSES:
            raise InputError(
                f"images of {(colours, height, width)} in {classes} classes are too large; make "
                "it again"
            )
        mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
        return cls(name, (colours, height, width), classes, mean, std)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse weights of other shapes, before a network of this kind takes any memory.

        Raises:
            InputError: names the first tensor that differs.
        """
        # A user's own network may need real tensors to be built.
        with torch.device("cpu" if ":" in self.name else "meta"):
            state = self.build().state_dict()
        expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrong = sorted(n for n in shapes.keys() | expected if shapes.get(n) != expected.get(n))
        if wrong:
            raise InputError(
                f"its weights do not fit {self.name}: {wrong[0]}; make the file again"
            )

    def build(self, seed: int = 0) -> Network:
        """A fresh network."""
        return build_network(
            self.name,
            self.image_shape,
            self.num_classes,
            seed=seed,
            mean=self.mean,
            std=self.std,
        )


class RandomPool:
    """Untrained networks, new weights at every draw."""

    def __init__(self, network: str, images: ImageSet) -> None:
        """Networks for images like these."""
        self.spec = NetworkSpec.of(network, images)

    def draw(self, rng: torch.Generator) -> Network:
        """A network whose weights follow from the generator's next number."""
        return self.spec.build(int(torch.randint(2**62, (), generator=rng))).requires_grad_(False)


class NetworkPool:
    """Given networks, each equally likely."""

    def __init__(self, networks: Sequence[Network]) -> None:
        """Networks for the same images; they are frozen.

        Raises:
            InputError: there is none.
        """
        if not networks:
            raise InputError("pool: give at least one network")
        self.networks = [network.requires_grad_(False) for network in networks]

    def draw(self, rng: torch.Generator) -> Network:
        """A copy of one of them, which may be changed."""
        return copy.deepcopy(
            self.networks[int(torch.randint(len(self.networks), (), generator=rng))]
        )


class EmptyWindow(InputError):
    """No snapshot of a pool is as accurate as asked for."""


@dataclass(frozen=True)
class SnapshotPool:
    """Networks on their way: weights kept along the training of several, with their accuracy.

    Attributes:
        spec: what rebuilds them.
        weights: a state dict whose tensors have one more dimension in front, snapshots; fp16.
        accuracies: of each snapshot on training rows that it has not seen, in [0, 1].
        held_out: int64, those rows.
        window: accuracies to draw from, both ends included.
        trained_on: the images that the networks have seen (``ImageSet.record``).
    """

    spec: NetworkSpec
    weights: dict[str, Tensor]
    accuracies: Tensor
    held_out: Tensor
    window: tuple[float, float] = (0.0, 1.0)
    trained_on: Mapping[str, Any] = field(default_factory=dict)

    def candidates(self) -> Tensor:
        """Numbers of the snapshots in the window.

        Raises:
            EmptyWindow: there is none.
        """
        low, high = self.window
        inside = ((self.accuracies >= low) & (self.accuracies <= high)).nonzero().flatten()
        if not len(inside):
            raise EmptyWindow(
                f"pool.window={low:g} {high:g}: no snapshot is that accurate; they go from "
                f"{float(self.accuracies.min()):.3f} to {float(self.accuracies.max()):.3f}"
            )
        return inside

    def draw(self, rng: torch.Generator) -> Network:
        """A snapshot of the window, each equally likely."""
        inside = self.candidates()
        chosen = inside[torch.randint(len(inside), (), generator=rng)]
        network = self.spec.build()
        network.load_state_dict({name: t[chosen].float() for name, t in self.weights.items()})
        return network.requires_grad_(False)

    def save(self, path: Path) -> None:
        """Store weights and accuracies; the window is not part of the pool."""
        own = {"accuracies": self.accuracies, "held_out": self.held_out}
        weights = {f"weights.{name}": t for name, t in self.weights.items()}
        about = {"spec": asdict(self.spec), "trained_on": dict(self.trained_on)}
        artefacts.save(path, {**weights, **own}, {"kind": "pool", **about})

    @classmethod
    def load(cls, path: Path, spec: NetworkSpec | None = None) -> "SnapshotPool":
        """Read what ``save`` wrote; for ``spec`` see ``load_network``.

        Raises:
            InputError: no such file, damaged, or not a pool.
        """
        tensors, metadata = artefacts.load(path, "pool")
        with artefacts.described(path):
            accuracies, held_out = tensors.pop("accuracies"), tensors.pop("held_out")
            weights = {name.removeprefix("weights."): t for name, t in tensors.items()}
            spec = NetworkSpec.parse(metadata["spec"]) if spec is None else spec
            if accuracies.ndim != 1 or any(len(t) != len(accuracies) for t in weights.values()):
                raise InputError("weights and accuracies are not of the same snapshots")
            spec.check({name: tuple(t.shape[1:]) for name, t in weights.items()})
            seen = metadata.get("trained_on", {})
            return cls(spec, weights, accuracies, held_out, trained_on=seen)


def make_pool(
    images: ImageSet,
    config: CondensationConfig,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> Pool:
    """The pool that a config names; snapshots are trained on ``images``."""
    if config.pool.kind == "random":
        return RandomPool(config.network, images)
    return train_pool(images, config.network, config.pool, seed, device, checkpoint)


def snapshot_updates(total: int, snapshots: int) -> set[int]:
    """After which updates snapshots are kept: densely at first, where accuracy rises fastest.

    The k-th of n is after total (k / n)^3 updates, and one update or more after the one before.

    >>> sorted(snapshot_updates(1000, 5))
    [8, 64, 216, 512, 1000]
    """
    n, last = min(snapshots, total), 0
    points = set()
    for k in range(1, n + 1):
        last = min(max(round(total * (k / n) ** 3), last + 1), total - (n - k))
        points.add(last)
    return points


def _part(images: ImageSet, share: float) -> tuple[ImageSet, ImageSet]:
    """Images to train on, and those to measure accuracies on."""
    try:
        unseen = stratified(images.labels, round(share * len(images)))
        return images.select(~unseen), images.select(unseen)
    except InputError as error:
        raise InputError(
            f"pool.held_out={share:g}: of {len(images)} training images none is left for a class, "
            "or none held out; choose another share, or pool.kind random"
        ) from error


def train_pool(
    images: ImageSet,
    network: str,
    config: PoolConfig,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> SnapshotPool:
    """Train networks on real images and keep snapshots along the way.

    Accuracies are measured on a stratified share of the training rows, which the networks do not
    see: test images take no part (the published windows are on test accuracy). With a
    ``checkpoint`` each network has a part of it, which stays when it is trained.

    Raises:
        InputError: so small a share of so few images leaves none to train on, or none held out.
    """
    seen, held_out = _part(images, config.held_out)
    total = count_updates(config.training, len(seen))
    points = snapshot_updates(total, config.snapshots)
    spec = NetworkSpec.of(network, images)
    snapshots: list[dict[str, Tensor]] = []  # of a network each, one more dimension in front
    for k in range(config.networks):
        made = spec.build(derive_seed(seed, "pool", k)).to(device)
        kept: dict[str, Tensor] = {}

        def keep(
            update: int, loss: Tensor, made: Network = made, kept: dict[str, Tensor] = kept
        ) -> None:
            if update in points:
                new = {f"weights.{n}": t.cpu().half() for n, t in made.state_dict().items()}
                new["accuracies"] = torch.tensor(accuracy(made, held_out, config.training))
                for name, t in new.items():
                    kept[name] = torch.cat([kept[name], t[None]]) if name in kept else t[None]

        label, own = f"pool {k + 1}/{config.networks}", derive_seed(seed, "pool", k)
        part = checkpoint.part(k) if checkpoint is not None else None
        train_classifier(made, seen, config.training, own, label, keep, part, kept)
        snapshots.append(kept)
    joined = {name: torch.cat([kept[name] for kept in snapshots]) for name in snapshots[0]}
    accuracies = joined.pop("accuracies")
    weights = {name.removeprefix("weights."): t for name, t in joined.items()}
    return SnapshotPool(spec, weights, accuracies, held_out.rows, config.window, seen.record)


def train_extractor(
    images: ImageSet,
    config: EvaluationConfig,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> Network:
    """A network trained on real images, frozen: psi of Eq. 8."""
    network = NetworkSpec.of(config.network, images).build(seed).to(device)
    train_classifier(network, images, config, seed, "extractor", checkpoint=checkpoint)
    network.trained_on = images.record
    return network.requires_grad_(False).eval()


def save_network(path: Path, network: Network, spec: NetworkSpec) -> None:
    """Store weights and what rebuilds the network."""
    metadata = {"kind": "network", "spec": asdict(spec), "trained_on": dict(network.trained_on)}
    artefacts.save(path, network.state_dict(), metadata)


def load_network(path: Path, spec: NetworkSpec | None = None) -> Network:
    """Read what ``save_network`` wrote; frozen, in evaluation mode.

    A user's own network (``module:callable``) needs its ``spec``: the file's is not trusted.

    Raises:
        InputError: no such file, damaged, or not a network.
    """
    tensors, metadata = artefacts.load(path, "network")
    with artefacts.described(path):
        spec = NetworkSpec.parse(metadata["spec"]) if spec is None else spec
        spec.check({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    network = spec.build()
    network.load_state_dict(tensors)
    network.trained_on = metadata.get("trained_on", {})
    return network.requires_grad_(False).eval()
