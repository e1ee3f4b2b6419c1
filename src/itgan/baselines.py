"""What condensed sets are compared with: real images of the same number or the same bytes.

Bytes of a set of real images are those of its pixels (or of JPEG streams that were really
encoded, and are decoded again for training) and of its labels.
"""

import io
import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from itgan.data import ImageSet
from itgan.devices import autocast
from itgan.errors import InputError
from itgan.networks import Network
from itgan.randomness import derive
from itgan.sources import PixelSet

JPEG_QUALITY = 75


def label_bytes(num_classes: int) -> int:
    """Bytes of one stored label."""
    return 1 if num_classes <= 256 else 4


def _in_turn(images: ImageSet, seed: int) -> Iterator[int]:
    """Positions in a random order that takes the classes in turn, so any prefix is balanced."""
    orders = []
    for label in range(images.num_classes):
        members = images.class_indices(label)
        rng = derive(seed, "baseline", label)
        orders.append(members[torch.randperm(len(members), generator=rng)].tolist())
    for k in range(max(map(len, orders))):
        yield from (order[k] for order in orders if k < len(order))


def same_bytes_raw(images: ImageSet, nbytes: int, seed: int = 0) -> PixelSet:
    """As many random real images, in equal numbers per class, as fit raw into ``nbytes``.

    Raises:
        InputError: not even one image per class fits.
    """
    each = math.prod(images.image_shape) + label_bytes(images.num_classes)
    count = min(nbytes // each, len(images))
    if count < images.num_classes:
        raise InputError(f"random, same bytes: {nbytes} bytes hold only {count} raw images")
    order = _in_turn(images, seed)
    chosen = images.select([next(order) for _ in range(count)])
    return PixelSet(
        chosen.images, chosen.labels, "random", "same-bytes-raw", seed, nbytes=count * each
    )


def same_bytes_jpeg(
    images: ImageSet, nbytes: int, seed: int = 0, quality: int = JPEG_QUALITY
) -> PixelSet:
    """As many random real images as fit into ``nbytes`` as JPEG with shared tables.

    The quantisation and Huffman tables are counted once, every image's own stream in full. What
    classifiers see is decoded from these streams.

    Raises:
        InputError: not even one image per class fits.
    """
    tables = _jpeg(images.images[0], quality, streamtype=1)
    used, decoded, labels = len(tables), [], []
    for position in _in_turn(images, seed):
        stream = _jpeg(images.images[position], quality, streamtype=2)
        cost = len(stream) + label_bytes(images.num_classes)
        if used + cost > nbytes:
            break
        used += cost
        # An abbreviated stream becomes a whole one with the tables after its start marker.
        with Image.open(io.BytesIO(tables[:-2] + stream[2:])) as picture:
            pixels = np.asarray(picture)
        decoded.append(torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1))
        labels.append(int(images.labels[position]))
    if len(decoded) < images.num_classes:
        raise InputError(f"random, same bytes: {nbytes} bytes hold only {len(decoded)} JPEGs")
    return PixelSet(
        torch.stack(decoded).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
        "random",
        "same-bytes-jpeg",
        seed,
        nbytes=used,
    )


def _jpeg(image: Tensor, quality: int, streamtype: int) -> bytes:
    """Stream type 1 is the tables alone, 2 the image without them."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, streamtype=streamtype)
    return buffer.getvalue()


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
    images: ImageSet, per_class: int, network: Network, precision: str = "auto"
) -> PixelSet:
    """Real images whose features in a trained network best follow the mean of their class.

    Raises:
        InputError: a class has fewer images than wanted.
    """
    device = next(network.parameters()).device
    picks = []
    for label in range(images.num_classes):
        members = images.class_indices(label)
        if len(members) < per_class:
            raise InputError(f"herding: class {label} has {len(members)} images, not {per_class}")
        features = []
        for chunk in members.split(500):
            with autocast(device, precision):
                features.append(network.embed(images.floats(chunk).to(device)).float().cpu())
        picks.append(members[herding_order(torch.cat(features), per_class)])
    chosen = images.select(torch.cat(picks))
    return PixelSet(chosen.images, chosen.labels, "herding")
