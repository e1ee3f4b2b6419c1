"""Labels, and who is in which split: fixed stratified rules without a seed.

A row number therefore means the same image on every machine.
"""

import base64
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from itgan.errors import InputError

MOST_CLASSES = 100_000  # a damaged label must not cost gigabytes of names


@dataclass(frozen=True, eq=False)
class Splits:
    """What a reader returns: the original training and test sets and the names of the classes.

    Each array is of the right type and rank; whether they fit one another is checked later.
    """

    train_images: np.ndarray  # uint8, n c h w
    train_labels: np.ndarray  # int64, n
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def pack_rows(rows: Int64[Tensor, " n"]) -> str:
    """Row numbers, as a set, in few letters: base64 of one bit for each row up to the last."""
    members = np.zeros(int(rows.max()) + 1 if len(rows) else 0, dtype=bool)
    members[rows.numpy()] = True
    return base64.b64encode(np.packbits(members).tobytes()).decode()


def unpack_rows(text: str) -> Int64[Tensor, " n"]:
    """What ``pack_rows`` packed, in order.

    Raises:
        InputError: the text is no base64.
    """
    try:
        packed = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError("rows: not a set of row numbers; make the file again") from error
    return torch.from_numpy(np.unpackbits(np.frombuffer(packed, np.uint8)).nonzero()[0])


def as_labels(what: str, labels: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Integer labels of shape n or n x 1, as int64.

    Raises:
        InputError: anything else.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{what} must hold one integer label per image, "
            f"found {labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.int64)


def numbered(what: str, labels: np.ndarray) -> tuple[str, ...]:
    """Names for classes that have none: "0" to the highest label.

    Raises:
        InputError: a label that no class can have.
    """
    highest = int(np.max(labels, initial=-1))
    if highest >= MOST_CLASSES:
        raise InputError(f"{what} must lie below {MOST_CLASSES}, found {highest}")
    return tuple(str(label) for label in range(highest + 1))


def hold_out(labels: Int64[np.ndarray, " n"], every: int) -> Bool[np.ndarray, " n"]:
    """A mask of every ``every``-th image of each class, in order: a fixed stratified test set."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[every - 1 :: every]] = True
    return mask


def validation_count(validation: int | float, n: int) -> int:
    """How many of ``n`` images ``validation`` means, as a number or as a fraction.

    Raises:
        InputError: neither 0, nor a number below ``n``, nor a fraction that selects an image.
    """
    count = -1
    if isinstance(validation, int) or validation == 0:
        count = int(validation)
    elif 0 < validation < 1:
        count = round(validation * n) or -1
    if not 0 <= count < n:
        raise InputError(
            f"validation must be 0, a number of images below {n} or a fraction of them in (0, 1), "
            f"got {validation}"
        )
    return count


def stratified(labels: Int64[Tensor, " n"], count: int) -> Bool[Tensor, " n"]:
    """A mask of exactly ``count`` images, shared out over the classes by their sizes.

    Class c with n_c of the n images gets count n_c / n of them, rounded by largest remainder (the
    lower class first where they tie); its j-th of m picks is image floor((2j + 1) n_c / 2m).

    Raises:
        InputError: a class would keep no image.
    """
    sizes = torch.bincount(labels).numpy()
    shares, remainders = np.divmod(count * sizes, sizes.sum())
    extra = np.argsort(-remainders, kind="stable")[: count - shares.sum()]
    shares[extra] += 1
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, (size, share) in enumerate(zip(sizes.tolist(), shares.tolist(), strict=True)):
        if share and share == size:
            raise InputError(
                f"validation takes all {size} training image(s) of class {label}; make it smaller"
            )
        if share:
            picks = (2 * np.arange(share) + 1) * size // (2 * share)
            mask[(labels == label).nonzero().flatten()[picks]] = True
    return mask
