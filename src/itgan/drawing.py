"""What a step of condensation draws: shards, networks, augmentations, real images.

Draws belong to class, shard and step, so that none moves another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from itgan.augment import draw_augmentation
from itgan.configs import CondensationConfig
from itgan.data import ImageSet
from itgan.devices import autocast, send, send_module
from itgan.discrepancies import Discrepancy, Part
from itgan.embedding import Pool
from itgan.errors import InputError
from itgan.latents import LatentBank, deal
from itgan.networks import couples_images
from itgan.randomness import derive
from itgan.two_pass import Draw, Total, mean_weights


@dataclass(frozen=True)
class Partners:
    """The x_i of Eq. 10 for a shard, brought to the device in parts."""

    real: ImageSet
    positions: Int[Tensor, " n"]
    device: torch.device

    def __getitem__(self, positions: slice) -> Tensor:
        """Those of some of the shard's latents."""
        return send(self.real.floats(self.positions[positions]), self.device)


def draw_shards(
    labels: Tensor,
    config: CondensationConfig,
    seed: int,
    step: int,
    numbers: Sequence[int] | None,
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What is optimised together: shard number (and class, where each draws a network), rows."""
    dealt = deal(labels, config.shard_per_class, config.splitting, seed, step)
    for k, rows in enumerate(dealt) if numbers is None else zip(numbers, dealt, strict=True):
        if config.network_per == "step":
            yield (k,), rows
        else:
            for label in labels[rows].unique().tolist():
                yield (k, label), rows[labels[rows] == label]


def draw_embeddings(
    pool: Pool,
    labels: Tensor,
    config: CondensationConfig,
    seed: int,
    where: tuple[int, ...],
    discrepancy: Discrepancy,
    device: torch.device,
) -> Iterator[Draw]:
    """Psi, and omega for each class, as often as the config asks for."""
    shard, step = where[0], where[-1]
    for e in range(config.embeddings_per_step):
        network = send_module(pool.draw(derive(seed, "network", *where, e)), device)
        network.requires_grad_(discrepancy.needs_graph)
        augmentations = {
            c: draw_augmentation(
                derive(seed, "augmentation", c, shard, step, e), config.augmentation
            )
            for c in labels.unique().tolist()
        }
        yield Draw(network, augmentations, config.layers)


def draw_real(
    real: ImageSet,
    members: dict[int, Tensor],
    labels: Tensor,
    config: CondensationConfig,
    seed: int,
    shard: int,
    step: int,
) -> ImageSet:
    """The large independent batch of every class, ordered by class."""
    batches = []
    for label in labels.unique().tolist():
        rng = derive(seed, "real", label, shard, step)
        order = torch.randperm(len(members[label]), generator=rng)
        batches.append(members[label][order[: config.real_per_class]])
    return real.select(torch.cat(batches))


def real_statistics(
    batch: ImageSet,
    draws: Sequence[Draw],
    micro_batch: int,
    precision: str,
    discrepancy: Discrepancy,
    compiled: bool,
) -> list[Tensor]:
    """For each draw the statistic of a batch of real images."""
    device = next(draws[0].network.parameters()).device
    shares = mean_weights(batch.labels)
    weights = send(shares, device)
    # A batch norm must see every class at once.
    whole = any(couples_images(d.network) for d in draws)
    totals = [Total(discrepancy.by_image) for _ in draws]
    for chunk in torch.arange(len(batch)).split(len(batch) if whole else micro_batch):
        images, labels = send(batch.floats(chunk), device), batch.labels[chunk]
        here = slice(int(chunk[0]), int(chunk[-1]) + 1)
        present = shares[:, here].any(1).tolist()
        part = Part(send(labels, device), weights[:, here], present)
        for draw, total in zip(draws, totals, strict=True):
            with (
                autocast(device, precision),
                torch.set_grad_enabled(discrepancy.needs_graph),
            ):
                features = draw.embed(images, labels, compiled=compiled).float()
            found = discrepancy.statistic(draw.network, features, part, differentiable=False)
            total.add(found.detach())
    return [total.value() for total in totals]


def positions_of(bank: LatentBank, real: ImageSet) -> Tensor:
    """Positions in ``real`` of the rows that the latents came from."""
    position = {row: i for i, row in enumerate(real.rows.tolist())}
    missing = [row for row in bank.rows.tolist() if row not in position]
    if missing:
        raise InputError(
            f"latent bank: row {missing[0]} is not in the training images, but lambda_reg pairs "
            "every latent with its image; give the training set that the bank was made from"
        )
    found = torch.tensor([position[row] for row in bank.rows.tolist()])
    if not torch.equal(real.labels[found], bank.labels):
        raise InputError(
            "latent bank: its labels differ from the labels of its rows in the training images"
        )
    return found
