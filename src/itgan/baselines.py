"""What condensed sets are compared with: real images, chosen or of equal bytes, and DM.

Bytes of a set of real images are those of its pixels (or of JPEG streams that were really
encoded, and are decoded again for training) and of its labels.
"""

import io
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from itgan.artefacts import Checkpoint
from itgan.condensation import condense
from itgan.configs import CondensationConfig
from itgan.data import ImageSet
from itgan.devices import autocast
from itgan.errors import InputError
from itgan.latents import LatentBank
from itgan.networks import Network
from itgan.pictures import to_jpeg, to_uint8
from itgan.randomness import derive
from itgan.sources import PixelSet, label_bytes

JPEG_QUALITY = 75


def _in_turn(images: ImageSet, seed: int) -> Iterator[int]:
    """Positions in a random order that takes the classes in turn, so any prefix is balanced."""
    orders = []
    for label in range(images.num_classes):
        members = images.class_indices(label)
        rng = derive(seed, "baseline", label)
        orders.append(members[torch.randperm(len(members), generator=rng)].tolist())
    for k in range(max(map(len, orders))):
        yield from (order[k] for order in orders if k < len(order))


def same_bytes_raw(images: ImageSet, nbytes: int, seed: int = 0, reserve: int = 0) -> PixelSet:
    """As many random real images, in equal numbers per class, as fit raw into ``nbytes``.

    ``reserve`` bytes more are left free for each, for what its label may yet become.

    Raises:
        InputError: not even one image per class fits.
    """
    each = math.prod(images.image_shape) + label_bytes(images.num_classes)
    count = min(nbytes // (each + reserve), len(images))
    if count < images.num_classes:
        raise InputError(
            f"random, same bytes: {nbytes} bytes hold only {count} raw images, fewer "
            "than there are classes; give more latents per class, or leave this source out"
        )
    order = _in_turn(images, seed)
    chosen = images.select([next(order) for _ in range(count)])
    return PixelSet(
        chosen.images, chosen.labels, "random", "same-bytes-raw", seed, nbytes=count * each
    )


def same_bytes_jpeg(
    images: ImageSet,
    nbytes: int,
    seed: int = 0,
    reserve: int = 0,
    quality: int = JPEG_QUALITY,
) -> PixelSet:
    """As many random real images as fit into ``nbytes`` as JPEG with shared tables.

    ``reserve`` bytes more are left free for each, for what its label may yet become.

    The quantisation and Huffman tables are counted once, every image's own stream in full. What
    classifiers see is decoded from these streams.

    Raises:
        InputError: not even one image per class fits.
    """
    tables = to_jpeg(images.images[0], quality, "tables")
    used, decoded, labels = len(tables), [], []
    for position in _in_turn(images, seed):
        stream = to_jpeg(images.images[position], quality, "stream")
        cost = len(stream) + label_bytes(images.num_classes)
        if used + cost + reserve * (len(labels) + 1) > nbytes:
            break
        used += cost
        # An abbreviated stream becomes a whole one with the tables after its start marker.
        with Image.open(io.BytesIO(tables[:-2] + stream[2:])) as picture:
            pixels = np.asarray(picture)
        decoded.append(torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1))
        labels.append(int(images.labels[position]))
    if len(decoded) < images.num_classes:
        raise InputError(
            f"random, same bytes: {nbytes} bytes hold only {len(decoded)} JPEGs, fewer than there "
            "are classes; give more latents per class, or leave this source out"
        )
    return PixelSet(
        torch.stack(decoded).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
        "random",
        "same-bytes-jpeg",
        seed,
        nbytes=used,
    )


class Pixels:
    """Images as their own latents, in the space that networks see: what DM optimises."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        """Shapes and normalisation constants of ``images``."""
        self.image_shape, self.num_classes = images.image_shape, images.num_classes
        self.latent_shape: tuple[int, ...] = images.image_shape
        self.mean = torch.tensor(images.mean, device=device)[:, None, None]
        self.std = torch.tensor(images.std, device=device)[:, None, None]
        self.device = device
        self.fingerprint = f"pixels {images.mean} {images.std}"

    def __call__(
        self, latents: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Undo the normalisation; not clipped, as published."""
        return 2 * (latents * self.std + self.mean) - 1

    def latents(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalise images in [-1, 1]."""
        return ((images + 1) / 2 - self.mean.cpu()) / self.std.cpu()


def distribution_matching(
    start: ImageSet,
    real: ImageSet,
    config: CondensationConfig,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> LatentBank:
    """DM: condense pixels instead of latents, from real images.

    As published: SGD with momentum 0.5 on normalised pixels, learning rate 1 (10 from 100 images
    per class on), 256 real images per class, a new untrained network at every step, 20,000 steps.

    Returns:
        A bank whose latents are normalised images; ``pixel_set`` makes them a source.
    """
    pixels = Pixels(real, torch.device(device))
    bank = LatentBank(pixels.latents(start.floats()), start.labels, start.rows, "random")
    return condense(pixels, bank, real, config, seed, checkpoint=checkpoint)


def pixel_set(
    bank: LatentBank, real: ImageSet, latent_seed: int = 0, name: str = "dm", variant: str = ""
) -> PixelSet:
    """Images that were condensed as ``Pixels``, clipped to [-1, 1] and rounded to 8 bits."""
    images = Pixels(real, torch.device("cpu"))(bank.latents, bank.labels)
    return PixelSet(to_uint8(images.clamp(-1, 1)), bank.labels, name, variant, latent_seed)


def herding_order(features: Float[Tensor, "n d"], count: int) -> Int[Tensor, " count"]:
    """Greedy herding: each row brings the mean of the chosen ones closest to the mean of all.

    Raises:
        ValueError: more rows are wanted than there are.
    """
    if count > len(features):
        raise ValueError(f"{count} of {len(features)} rows")
    target = features.mean(0)
    total = torch.zeros_like(target)
    free = torch.ones(len(features), dtype=torch.bool)
    chosen = []
    for k in range(1, count + 1):
        distance = ((total + features) / k - target).square().sum(1)
        distance[~free] = math.inf
        best = int(distance.argmin())
        free[best] = False
        total = total + features[best]
        chosen.append(best)
    return torch.tensor(chosen)


@torch.no_grad()
def herding(
    images: ImageSet,
    per_class: Sequence[int],
    network: Network,
    latent_seed: int = 0,
    precision: str = "auto",
) -> PixelSet:
    """Real images whose features in a trained network best follow the mean of their class.

    Args:
        images: to choose from.
        per_class: how many of each class.
        network: gives the features.
        latent_seed: of the bank that the set stands beside.
        precision: of the features.

    Raises:
        InputError: a class has fewer images than wanted.
    """
    device = next(network.parameters()).device
    picks = []
    for label, count in enumerate(per_class):
        members = images.class_indices(label)
        if len(members) < count:
            raise InputError(f"herding: class {label} has {len(members)} images, not {count}")
        features = []
        for chunk in members.split(500):
            with autocast(device, precision):
                features.append(network.embed(images.floats(chunk).to(device)).float().cpu())
        picks.append(members[herding_order(torch.cat(features), count)])
    chosen = images.select(torch.cat(picks))
    return PixelSet(chosen.images, chosen.labels, "herding", "", latent_seed)
