"""DC and DSA: gradient matching in pixels, the baseline.

For each of many new networks theta, some steps of the synthetic images S by the gradient of

    sum_c  D( grad_theta L(A(S_c)), grad_theta L(A(T_c)) )

with D the layer-wise cosine distance, T_c a batch of real images of class c, and A the identity
(DC) or one Siamese augmentation for each class and step (DSA). Between two steps theta is trained
on S for some epochs, with DSA under augmentations of each image's own.

A step of a class sees that class alone, but theta is trained on all of them: as soon as there are
two steps for a network, the classes are coupled.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from itgan import matching
from itgan.artefacts import Checkpoint
from itgan.augment import draw_augmentation, parse_strategy
from itgan.baselines import Pixels
from itgan.configs import DCConfig
from itgan.data import ImageSet
from itgan.devices import autocast
from itgan.embedding import RandomPool
from itgan.errors import InputError
from itgan.latents import LatentBank, LatentSGD
from itgan.networks import Network, couples_images
from itgan.progress import track
from itgan.randomness import derive

# Images per class: steps of the images for each network, and epochs of it between two of them.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def loops(config: DCConfig, per_class: int) -> tuple[int, int]:
    """Steps of the images for each network and epochs between them, as given or as published.

    Between two published numbers of images per class the lower one counts.

    >>> loops(DCConfig(), 10), loops(DCConfig(network_epochs=5), 12), loops(DCConfig(), 500)
    ((10, 50), (10, 5), (50, 10))
    """
    steps, epochs = LOOPS[max(k for k in LOOPS if k <= per_class)]
    return (
        steps if config.image_steps is None else config.image_steps,
        epochs if config.network_epochs is None else config.network_epochs,
    )


def variant(config: DCConfig) -> str:
    """``dsa`` with augmentation, else empty: what tables say beside ``dc``."""
    return "dsa" if parse_strategy(config.augmentation) else ""


def gradient_matching(
    start: ImageSet,
    real: ImageSet,
    config: DCConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> LatentBank:
    """DC: condense pixels by gradient matching, from real images.

    As published: SGD with momentum 0.5 and learning rate 0.1 on normalised pixels, 256 real images
    per class, 1,000 networks; these train by SGD at 0.01 without momentum, batch 256.

    Args:
        start: the real images to start from.
        real: the training set.
        config: steps, learning rates and so on.
        seed: of everything that is drawn; images and augmentations belong to class and step.
        device: where to compute.
        checkpoint: where to keep snapshots, to go on after a kill.

    Returns:
        A bank whose latents are normalised images; ``baselines.pixel_set`` makes them a source.
        Its history has ``loss``, the distance summed over classes, for each step of the images.

    Raises:
        InputError: a class has no real images; a network with batch norm, whose statistics a
            gradient step of one class would spoil.
    """
    config = config or DCConfig()
    problem = _Problem(start, real, config, seed, torch.device(device))
    outer, epochs = loops(config, int(start.labels.bincount().max()))
    total, begun = config.steps * outer, 0
    losses = torch.zeros(total, dtype=torch.float64)
    if checkpoint is not None and (found := checkpoint.load()) is not None:
        problem.restore(found[0])
        losses, begun = found[0]["losses"], found[1]["step"]
    for step in track(range(begun, total), "dc"):
        if step % outer == 0:
            problem.renew(step // outer)
        else:
            problem.train_network(step, epochs)
        losses[step] = problem.image_step(step)
        if checkpoint is not None:
            checkpoint.offer(step + 1, lambda: {**problem.state(), "losses": losses})
    return LatentBank(
        problem.optimiser.latents.cpu(),
        start.labels.clone(),
        start.rows.clone(),
        "condensed",
        {"loss": losses.tolist()},
        {"generator": problem.pixels.fingerprint, "seed": seed, "config": config.model_dump()},
    )


def check_uncoupled(network: Network, name: str) -> None:
    """Refuse a network whose images depend on one another.

    Raises:
        InputError: it has a batch norm.
    """
    if couples_images(network):
        raise InputError(
            f"network: {name} has a batch norm, whose statistics belong to all classes; give a "
            "network with instance norm, such as convnet"
        )


class _Problem:
    """Synthetic pixels, and the network that is with them now."""

    def __init__(
        self, start: ImageSet, real: ImageSet, config: DCConfig, seed: int, device: torch.device
    ) -> None:
        parse_strategy(config.augmentation)
        self.real, self.config, self.seed, self.device = real, config, seed, device
        self.pixels = Pixels(real, device)
        latents = self.pixels.latents(start.floats()).to(device)
        self.optimiser = LatentSGD(latents, config.learning_rate, config.momentum)
        self.labels = start.labels
        self.classes = start.labels.unique().tolist()
        for label in self.classes:
            if not len(real.class_indices(label)):
                raise InputError(f"dc: class {label} has no real images; start from other rows")
        self.pool = RandomPool(config.network, real)
        self.network = self.renew(0)

    def renew(self, number: int) -> Network:
        """A new network."""
        network = self.pool.draw(derive(self.seed, "dc network", number))
        check_uncoupled(network, self.config.network)
        self.network = network.requires_grad_(True).train().to(self.device)
        return self.network

    def image_step(self, step: int) -> float:
        """One step of the images; the distance before it, summed over classes."""
        total, latents = 0.0, self.optimiser.latents
        for label in self.classes:
            members = self.real.class_indices(label)
            order = torch.randperm(len(members), generator=derive(self.seed, "real", label, step))
            batch = self.real.floats(members[order[: self.config.real_per_class]])
            wanted = self._gradients(batch.to(self.device), label, step, graph=False)

            rows = (self.labels == label).nonzero().flatten().to(self.device)
            z = latents[rows].requires_grad_(True)
            images = self.pixels(z, self.labels[rows.cpu()].to(self.device))
            found = self._gradients(images, label, step, graph=True)
            distance = matching.gradient_distance(wanted, found)
            self.optimiser.step(rows, torch.autograd.grad(distance, z)[0])
            total += float(distance.detach())
        return total

    def _gradients(
        self, images: Float[Tensor, "n c h w"], label: int, step: int, *, graph: bool
    ) -> list[Tensor]:
        """Of the mean loss of images of one class, in all weights."""
        rng = derive(self.seed, "augmentation", label, step)
        augmentation = draw_augmentation(rng, self.config.augmentation)
        labels = torch.full((len(images),), label, device=self.device)
        with autocast(self.device, self.config.precision):
            logits = self.network(images, augmentation)
        loss = F.cross_entropy(logits.float(), labels)
        parameters = list(self.network.parameters())
        return list(torch.autograd.grad(loss, parameters, create_graph=graph))

    def train_network(self, step: int, epochs: int) -> None:
        """Epochs of plain SGD on the synthetic images as they are."""
        config, labels = self.config, self.labels.to(self.device)
        with torch.no_grad():
            images = self.pixels(self.optimiser.latents, labels)
        sgd = torch.optim.SGD(self.network.parameters(), lr=config.network_rate)
        for epoch in range(epochs):
            rng = derive(self.seed, "order", step, epoch)
            for chunk in torch.randperm(len(labels), generator=rng).split(config.batch_size):
                augmentation = draw_augmentation(rng, config.augmentation, count=len(chunk))
                with autocast(self.device, config.precision):
                    logits = self.network(images[chunk], augmentation)
                sgd.zero_grad()
                F.cross_entropy(logits.float(), labels[chunk]).backward()
                sgd.step()

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on."""
        weights = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        return {**self.optimiser.state(), **weights}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take a ``state`` up."""
        self.optimiser.restore(state)
        weights = {n: t for n, t in state.items() if n.startswith("network.")}
        self.network.load_state_dict({n.removeprefix("network."): t for n, t in weights.items()})
