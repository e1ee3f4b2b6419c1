"""Training sets that others made, read as pixels with labels: folders, arrays, `.pt` files.

The distillation family stores ``{"data": [[images, labels], ...]}`` with normalised images
x' = (x - mean) / std, x in [0, 1]; what classifiers are trained on here is 2 x - 1.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from itgan import artefacts
from itgan.data import Constants, Dataset, published_constants
from itgan.errors import InputError
from itgan.file_configs import ScoreConfig
from itgan.pictures import as_pixels, channels_first, decode
from itgan.progress import say
from itgan.readers import list_classes, read_arrays
from itgan.sources import PixelSet
from itgan.splits import as_labels

SUFFIXES = (".npz", ".pt", ".pth")
ARRAYS = (("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels"))
ROUNDING = 0.01  # beyond [-1, 1]: clamped without a word
FAR = 2.0  # beyond [-1, 1]: no picture is there, whatever optimised it
MOST_OUTSIDE = 0.05  # the share of pixels that optimisation may have carried outside


class Unread:
    """Stands for NumPy's numbers in a file, accuracies beside the images: they are not looked at.

    NumPy's own types would be harmless code, but lying sizes could fill the memory.
    """

    def __init__(self, *parts: object) -> None:
        """Drop the parts."""

    def __setstate__(self, state: object) -> None:
        """Drop the rest."""


NUMPY_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Unread, "numpy.dtype"),
    (Unread, "numpy.core.multiarray.scalar"),  # NumPy 1
    (Unread, "numpy._core.multiarray.scalar"),
]


def is_foreign(path: Path) -> bool:
    """Whether ``read_set`` is for this path: a folder, or one of ``SUFFIXES``."""
    return path.is_dir() or (path.is_file() and path.suffix in SUFFIXES)


def read_set(path: Path, data: Dataset, config: ScoreConfig) -> PixelSet:
    """Read a set of images like those of ``data``.

    Args:
        path: a folder with ``train/<class>/*`` or ``<class>/*``; an ``.npz`` with
            ``train_images, train_labels``, ``x_train, y_train`` or ``images, labels`` (integers,
            or floats in [0, 1]); a ``.pt`` with ``data``, see above.
        data: names the classes, and what the images must look like.
        config: ``mean`` and ``std`` of normalised images, ``entry`` and ``logits``.

    Returns:
        Images as uint8 or float [n, c, h, w], labels as int64 [n] or float [n, classes].

    Raises:
        InputError: nothing of that kind, or images or labels that do not fit the data set.
    """
    if config.entry is not None and (path.is_dir() or path.suffix == ".npz"):
        raise InputError(f"entry: {path} holds one set; leave it out")
    if path.is_dir():
        images, labels = _from_folder(path, data)
    elif path.suffix == ".npz":
        images, labels = _from_arrays(path)
    else:
        images, labels = _from_tensors(path, config.entry)
    if not len(images) or len(images) != len(labels):
        raise InputError(
            f"{path}: {len(images)} images and {len(labels)} labels; give one label per image"
        )
    if tuple(images.shape[1:]) != data.image_shape:
        raise InputError(
            f"{path}: images of shape {tuple(images.shape[1:])}, but data set {data.name!r} has "
            f"{data.image_shape}; bring them to that shape, or give another --dataset"
        )
    if images.is_floating_point():
        images = _in_range(path, images.float(), *_constants(path, data, config))
    elif config.mean:
        raise InputError(f"mean, std: {path} holds 8-bit pixels; leave them out")
    name = path.resolve().name if path.is_dir() else path.stem
    return PixelSet(images, _fit_labels(path, labels, data, config.logits), name)


def write_set(
    path: Path,
    images: UInt8[Tensor, "n c h w"],
    labels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Write ``{"data": [[images, labels]]}`` as the distillation family does, normalised.

    Args:
        path: a ``.pt`` file.
        images: pixels.
        labels: int64 [n], or probabilities [n, classes].
        mean: per channel, in [0, 1] units; who reads the file must know both.
        std: likewise.

    Raises:
        InputError: the constants do not fit the channels.
    """
    if not len(mean) == len(std) == images.shape[1]:
        raise InputError(
            f"mean, std: {len(mean)} and {len(std)} numbers for images of {images.shape[1]} "
            "channels; give one for each"
        )
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    normalised = (images.float() / 255 - shift) / scale
    artefacts.write_pt(path, {"data": [[normalised, labels]], "accs_all_exps": {}})


def _from_folder(path: Path, data: Dataset) -> tuple[Tensor, Tensor]:
    root = path / "train" if (path / "train").is_dir() else path
    listing = list_classes(root)
    if len(listing) != data.num_classes:
        raise InputError(
            f"{root} has {len(listing)} class folders, but data set {data.name!r} has "
            f"{data.num_classes} classes; give one folder for each"
        )
    if set(listing) == set(data.class_names):
        names = data.class_names
    else:
        names = tuple(listing)
        say(
            f"{root}: folder names are not the names of the classes of {data.name!r}; folders in "
            f"sorted order are taken for classes 0...{len(names) - 1}"
        )
    files = [(file, label) for label, name in enumerate(names) for file in listing[name]]
    pixels = decode(((str(file), file) for file, _ in files), len(files), None)
    return torch.from_numpy(pixels), torch.tensor([label for _, label in files])


def _from_arrays(path: Path) -> tuple[Tensor, Tensor]:
    (image_key, images), (label_key, labels) = read_arrays(path, ARRAYS).items()
    what = f"{path}, array {image_key}"
    if images.dtype.kind == "f":
        pixels = np.ascontiguousarray(channels_first(what, images), dtype=np.float32)
    else:
        pixels = as_pixels(what, images)
    if not (labels.ndim == 2 and labels.dtype.kind == "f"):
        labels = as_labels(f"{path}, array {label_key}", labels)
    return torch.from_numpy(pixels), torch.from_numpy(
        labels.astype(labels.dtype.newbyteorder("="))
    )


def _from_tensors(path: Path, entry: int | None) -> tuple[Tensor, Tensor]:
    with torch.serialization.safe_globals(NUMPY_NUMBERS):
        content = artefacts.load_foreign(path)
    sets = content.get("data") if isinstance(content, dict) else None
    if not isinstance(sets, list | tuple) or not sets:
        raise InputError(f"{path} must hold a dict with 'data': [[images, labels], ...]")
    if entry is not None and entry >= len(sets):
        raise InputError(f"entry {entry}: {path} holds {len(sets)} set(s), counted from 0")
    chosen = sets[-1 if entry is None else entry]
    is_pair = isinstance(chosen, list | tuple) and len(chosen) == 2
    if not is_pair or not all(isinstance(t, Tensor) and t.layout is torch.strided for t in chosen):
        raise InputError(
            f"{path}: an entry of 'data' must be two dense tensors, images and labels"
        )
    images, labels = (tensor.detach() for tensor in chosen)
    if images.ndim != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise InputError(
            f"{path}: images are {images.dtype} of shape {tuple(images.shape)}; give floats or "
            "uint8 [n, c, h, w]"
        )
    if labels.is_floating_point():
        labels = labels.float()
        if labels.ndim == 2:
            return images, labels
    return images, torch.from_numpy(as_labels(f"{path}: labels", labels.numpy()))


def _constants(path: Path, data: Dataset, config: ScoreConfig) -> Constants:
    """Mean and std that images of floats were normalised with."""
    if config.mean:
        if len(config.mean) != data.image_shape[0]:
            raise InputError(
                f"mean, std: {len(config.mean)} numbers for images of {data.image_shape[0]} "
                "channels; give one for each"
            )
        return config.mean, config.std
    if path.suffix == ".npz":  # floats in [0, 1], as everywhere in npz files
        return (0.0,), (1.0,)
    if (known := published_constants(config.dataset or "", data)) is not None:
        return known
    raise InputError(
        f"mean, std: those that {path} was normalised with are not known for data set "
        f"{data.name!r}; give --mean and --std"
    )


def _in_range(
    path: Path, images: Float[Tensor, "n c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "n c h w"]:
    """Normalised images in [-1, 1]; optimisation may have carried some pixels outside."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    images = (images * scale + shift) * 2 - 1
    excess = images.abs() - 1
    outside = float((excess > ROUNDING).float().mean())
    if not images.isfinite().all():
        raise InputError(f"{path}: images hold NaN or infinity; replace them")
    if outside > MOST_OUTSIDE or excess.max() > FAR:
        low, high = ((float(x) + 1) / 2 for x in images.aminmax())
        raise InputError(
            f"{path}: with mean {mean} and std {std}, pixels lie in [{low:.3g}, {high:.3g}], not "
            "in [0, 1]; these constants look wrong: give --mean and --std"
        )
    if outside:
        say(f"{path}: {outside:.2%} of the pixel values lie outside [0, 1] and are clamped")
    return images.clamp_(-1, 1)


def _fit_labels(path: Path, labels: Tensor, data: Dataset, logits: bool) -> Tensor:
    """Labels that name classes of the data set, or probabilities over them."""
    if labels.ndim == 1:
        if logits:
            raise InputError(f"logits: {path} has hard labels; leave it out")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= data.num_classes:
            raise InputError(
                f"{path}: labels lie in {low}...{high}, but data set {data.name!r} has classes "
                f"0...{data.num_classes - 1}"
            )
        found = len(labels.unique())
        if found < data.num_classes:
            say(f"{path}: only {found} of {data.num_classes} classes have images")
        return labels
    if labels.shape[1] != data.num_classes:
        raise InputError(
            f"{path}: soft labels over {labels.shape[1]} classes, but data set {data.name!r} has "
            f"{data.num_classes}"
        )
    labels = labels.float()
    if not labels.isfinite().all():
        raise InputError(f"{path}: labels hold NaN or infinity; replace them")
    if logits:
        return labels.softmax(1)
    if labels.min() < 0 or (labels.sum(1) - 1).abs().max() > 1e-2:
        raise InputError(
            f"{path}: soft labels are no probabilities (at least 0, sums of 1); give --logits "
            "if they are logits"
        )
    return labels
