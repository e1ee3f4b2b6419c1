"""Siamese augmentation: draw the parameters once, apply them to many images.

With parameters ω drawn once, both sides of a comparison see the same A(x; ω). Each draw picks one
of six groups; u, u', u'' are its uniform numbers, i and j a pixel's row and column:

    color   x + (u - 1/2); then the contrast to the mean over channels times 2u';
            then the contrast to the image's mean times u'' + 1/2
    crop    x[i + s, j + s'], shifts uniform on -k ... k with k = 1/8 of the side, zero outside
    cutout  0 in a square of half the side, centred uniformly on 0 ... side, clipped at the border
    flip    left and right swapped when u < 1/2
    scale   the sampling grid times (sx, sy), each uniform in [1/1.2, 1.2] (above 1 shrinks)
    rotate  the sampling grid turned by (2u - 1) 15 degrees

All act on normalised images, where the zero that fills is the mean colour. A draw holds raw
uniform numbers, so that it means the same for every image size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from itgan.devices import send
from itgan.errors import InputError

STRATEGY = "color_crop_cutout_flip_scale_rotate"

CROP_RATIO = 0.125
CUTOUT_RATIO = 0.5
SCALE_LIMIT = 1.2
ROTATE_LIMIT = math.radians(15)


@dataclass(frozen=True)
class Augmentation:
    """One draw of one group.

    Attributes:
        group: One of the names in ``STRATEGY``.
        uniforms: Uniform numbers in [0, 1): one row for all images (Siamese), or one for each.
    """

    group: str
    uniforms: Float[Tensor, "rows k"]


@dataclass(frozen=True)
class Blocks:
    """A draw for each of several consecutive blocks of a batch, say one for each class.

    Attributes:
        parts: Augmentation (or None) and number of images of each block, in batch order.
    """

    parts: tuple[tuple[Augmentation | None, int], ...]


def parse_strategy(text: str) -> tuple[str, ...]:
    """The groups that a strategy such as ``"color_crop_flip"`` names; none for "none" or "".

    Raises:
        InputError: A group is unknown or named twice.

    >>> parse_strategy("crop_flip")
    ('crop', 'flip')
    >>> parse_strategy("none")
    ()
    """
    if text in ("", "none"):
        return ()
    groups = tuple(text.split("_"))
    for group in groups:
        if group not in _GROUPS:
            raise InputError(
                f"augmentation: no operation {group!r} (in {text!r}); "
                f"join any of {', '.join(_GROUPS)} with '_', or give 'none'"
            )
    if len(set(groups)) < len(groups):
        raise InputError(f"augmentation: {text!r} names an operation twice; name each once")
    return groups


def draw_augmentation(
    rng: torch.Generator, strategy: str = STRATEGY, count: int | None = None
) -> Augmentation | None:
    """Draw one group, uniformly among the strategy's, and its parameters.

    Args:
        rng: CPU generator. What a draw takes from it does not depend on the group drawn.
        strategy: Names of groups joined by ``_``; see ``parse_strategy``.
        count: Draw parameters for this many images, instead of one set shared by all.

    Returns:
        The draw, or None when the strategy is empty.

    Raises:
        InputError: The strategy is not understood.
    """
    groups = parse_strategy(strategy)
    if not groups:
        return None
    choice = _integers(torch.rand(1, generator=rng), len(groups)).item()
    uniforms = torch.rand(1 if count is None else count, _WIDEST, generator=rng)
    group = groups[int(choice)]
    return Augmentation(group, uniforms[:, : _GROUPS[group][0]])


def siamese(
    x: Float[Tensor, "n c h w"], augmentation: Augmentation | Blocks | None
) -> Float[Tensor, "n c h w"]:
    """Apply a draw to a batch: pure, differentiable in ``x``, in whatever space ``x`` is.

    Args:
        x: Images of any floating type, on any device.
        augmentation: One draw for all images, draws for consecutive blocks, or None (identity).

    Raises:
        ValueError: The draw was made for another number of images.
    """
    if augmentation is None:
        return x
    if isinstance(augmentation, Blocks):
        return _blockwise(x, augmentation)
    _rows(augmentation, len(x))
    # Interpolation and factors in at least fp32: bf16 would place pixels wrongly.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _GROUPS[augmentation.group][1](wide, augmentation.uniforms).to(x.dtype)


def _rows(augmentation: Augmentation | None, n: int) -> Float[Tensor, "n k"]:
    """The uniform numbers of each of n images."""
    assert augmentation is not None
    rows = len(augmentation.uniforms)
    if rows not in (1, n):
        raise ValueError(f"augmentation drawn for {rows} images applied to a batch of {n}")
    return augmentation.uniforms.expand(n, -1)


def _blockwise(x: Float[Tensor, "n c h w"], augmentation: Blocks) -> Float[Tensor, "n c h w"]:
    """Each block by its draw; blocks of one operation go through it together."""
    sizes = [size for _, size in augmentation.parts]
    if sum(sizes) != len(x):
        raise ValueError(f"blocks of {sum(sizes)} images applied to a batch of {len(x)}")
    blocks, draws = list(x.split(sizes)), [draw for draw, _ in augmentation.parts]
    alike: dict[str, list[int]] = {}
    for k, draw in enumerate(draws):
        if draw is not None:
            alike.setdefault(draw.group, []).append(k)
    if not alike:
        return x
    for group, members in alike.items():
        if len(members) == 1:
            blocks[members[0]] = siamese(blocks[members[0]], draws[members[0]])
            continue
        own = [_rows(draws[k], sizes[k]) for k in members]
        together = Augmentation(group, torch.cat(own))
        made = siamese(torch.cat([blocks[k] for k in members]), together)
        for k, block in zip(members, made.split([sizes[k] for k in members]), strict=True):
            blocks[k] = block
    return torch.cat(blocks)


def _integers(uniforms: Tensor, count: int) -> Int[Tensor, "..."]:
    """Map [0, 1) to 0 ... count - 1. In fp64: an fp32 product could round up to ``count``."""
    return (uniforms.cpu().double() * count).long()


def _factor(x: Tensor, uniforms: Tensor, column: int) -> Tensor:
    return _like(x, uniforms[:, column]).view(-1, 1, 1, 1)


def _like(x: Tensor, numbers: Tensor) -> Tensor:
    """Numbers of the host in the type of x, on its device."""
    return send(numbers.to(x.dtype), x.device)


# Writing a factor f about a mean m as x + (f - 1)(x - m) makes f = 1 exactly the identity.
def _color(x: Tensor, uniforms: Tensor) -> Tensor:
    brightness, saturation, contrast = (_factor(x, uniforms, column) for column in range(3))
    x = x + (brightness - 0.5)
    x = x + (2 * saturation - 1) * (x - x.mean(1, keepdim=True))
    return x + (contrast - 0.5) * (x - x.mean((1, 2, 3), keepdim=True))


def _crop(x: Tensor, uniforms: Tensor) -> Tensor:
    n, c, h, w = x.shape
    most = [int(side * CROP_RATIO + 0.5) for side in (h, w)]
    down, right = (_integers(uniforms[:, axis], 2 * k + 1) - k for axis, k in enumerate(most))
    if len(uniforms) == 1:
        s, t = int(down), int(right)
        return F.pad(x, (-t, t, -s, s))
    padded = F.pad(x, (most[1], most[1], most[0], most[0]))
    rows = send(torch.arange(h) + most[0] + down[:, None], x.device)  # n h
    columns = send(torch.arange(w) + most[1] + right[:, None], x.device)  # n w
    padded = padded.gather(2, rows[:, None, :, None].expand(n, c, h, padded.shape[3]))
    return padded.gather(3, columns[:, None, None, :].expand(n, c, h, w))


def _cutout(x: Tensor, uniforms: Tensor) -> Tensor:
    inside = []
    for axis, size in enumerate(x.shape[2:]):
        side = int(size * CUTOUT_RATIO + 0.5)
        centre = _integers(uniforms[:, axis], size + 1 - side % 2)  # odd sides: 0 ... size - 1
        offset = torch.arange(size) - (centre - side // 2)[:, None]
        inside.append((offset >= 0) & (offset < side))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # rows 1 h w
    return x.masked_fill(send(hole, x.device), 0)


def _flip(x: Tensor, uniforms: Tensor) -> Tensor:
    if len(uniforms) == 1:
        return x.flip(3) if float(uniforms) < 0.5 else x
    return torch.where(_factor(x, uniforms, 0) < 0.5, x.flip(3), x)


def _scale(x: Tensor, uniforms: Tensor) -> Tensor:
    factors = 1 / SCALE_LIMIT + _like(x, uniforms) * (SCALE_LIMIT - 1 / SCALE_LIMIT)
    return _resample(x, torch.diag_embed(factors))


def _rotate(x: Tensor, uniforms: Tensor) -> Tensor:
    # In the normalised grid, as published: on images that are not square it also shears a little.
    angle = (2 * _like(x, uniforms[:, 0]) - 1) * ROTATE_LIMIT
    cos, sin = angle.cos(), angle.sin()
    return _resample(x, torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2))


def _resample(x: Tensor, matrix: Float[Tensor, "rows 2 2"]) -> Tensor:
    """Sample x at the places (x, y) that ``matrix`` sends each pixel to, in the [-1, 1] grid."""
    theta = F.pad(matrix, (0, 1))  # no translation: rows 2 3
    grid = F.affine_grid(theta, [len(theta), *x.shape[1:]], align_corners=False)
    moved = F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=False)
    # The grid's rounding would blur an identity in the last digits.
    same = torch.eye(2, dtype=matrix.dtype, device=matrix.device)
    identity = (matrix == same).all(2).all(1)
    return torch.where(identity.view(-1, 1, 1, 1), x, moved)


# How many uniform numbers each group interprets, and how.
_GROUPS: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "color": (3, _color),
    "crop": (2, _crop),
    "cutout": (2, _cutout),
    "flip": (1, _flip),
    "scale": (2, _scale),
    "rotate": (1, _rotate),
}
_WIDEST = max(numbers for numbers, _ in _GROUPS.values())
