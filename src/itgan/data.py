"""Real images: one type for a set, one function that loads a data set.

    load_dataset(spec) = read (cached) -> take validation out of train -> constants of what is left

Splits are fixed rules without a seed, so that a row number means the same image everywhere.
"""

import contextlib
import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from itgan import artefacts, pictures, readers
from itgan.errors import DISK_FULL, InputError
from itgan.splits import Splits, numbered, pack_rows, stratified, validation_count

Constants = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, in [0, 1] units
CIFAR10: Constants = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100: Constants = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
PUBLISHED = {10: CIFAR10, 100: CIFAR100}  # by number of classes: what the field normalises with
CACHE_VERSION = 1  # raised whenever the same files would decode to other pixels
SPECS = (
    "digits, a folder of Parquet files, hf:NAME, imagefolder:PATH, npz:PATH or cifar-binary:PATH"
)


def shuffled(n: int, rng: torch.Generator, batch_size: int) -> list[Int64[Tensor, " b"]]:
    """The positions of one epoch in batches: every image once, the last batch possibly smaller.

    A last batch of less than half shares with the one before it: a step takes the same length
    whatever few images it sees, so that one or two alone would set a training back.

    >>> [len(rows) for rows in shuffled(129, torch.Generator(), 64)]
    [64, 33, 32]
    """
    batches = list(torch.randperm(n, generator=rng).split(batch_size))
    if len(batches) > 1 and 2 * len(batches[-1]) < batch_size:
        batches[-2:] = torch.cat(batches[-2:]).tensor_split(2)
    return batches


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images; also a source that classifiers can be trained on.

    Attributes:
        images: uint8 pixels, n c h w.
        labels: class numbers, each in 0 ... num_classes - 1.
        rows: row numbers in the original training (or test) set; they survive `select` and the
            validation split. By default 0 ... n-1.
        class_names: one per class; by default "0", "1", ... up to the highest label.
        mean: per channel, in [0, 1] units, of the training split; by default 0.5.
        std: likewise, over all its pixels, at least 1/255.
        name: what tables call this source.
        dataset: name of the data set that it is a split of, where that is known.

    Raises:
        InputError: empty, or wrong types, shapes, lengths or labels.
    """

    images: Tensor  # uint8, n c h w: checked below, since users make these by hand
    labels: Tensor  # int64, n
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    name: str = "real"
    dataset: str = ""

    def __post_init__(self) -> None:
        """Fill in what was left out, then check."""
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"images must be uint8 of shape n c h w, "
                f"found {images.dtype} of shape {tuple(images.shape)}"
            )
        n, channels = images.shape[:2]
        if images.numel() == 0:
            raise InputError("images are empty; give at least one")
        if channels not in (1, 3):
            raise InputError(f"images must have 1 or 3 channels, found {channels}")
        if not len(self.rows):
            object.__setattr__(self, "rows", torch.arange(n))
        for field_name, values in (("labels", labels), ("rows", self.rows)):
            if values.dtype != torch.int64 or values.shape != (n,):
                raise InputError(
                    f"{field_name} must be int64, one for each of the {n} images, "
                    f"found {values.dtype} of shape {tuple(values.shape)}"
                )
            if int(values.min()) < 0:
                raise InputError(f"{field_name} must not be negative, found {int(values.min())}")
        if not self.class_names:
            object.__setattr__(self, "class_names", numbered("labels", labels.numpy()))
        if int(labels.max()) >= self.num_classes:
            raise InputError(
                f"labels must lie in 0...{self.num_classes - 1}, found {int(labels.max())}"
            )
        for field_name in ("mean", "std"):
            if not getattr(self, field_name):
                object.__setattr__(self, field_name, (0.5,) * channels)
            if len(getattr(self, field_name)) != channels:
                raise InputError(f"{field_name} must have one value for each channel")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """The number of classes, those without an image here included."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape, images, labels and rows, in hexadecimal."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels, self.rows):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def record(self) -> dict[str, Any]:
        """What an artefact that learned from these images keeps of them: see ``unpack_rows``."""
        return {
            "images": len(self),
            "sha256": self.fingerprint,
            "rows": pack_rows(self.rows),
        }

    def select(self, indices: Tensor | np.ndarray | Sequence[int]) -> "ImageSet":
        """The images at these positions (or under this mask), in this order."""
        index = torch.as_tensor(indices)
        index = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        return replace(
            self, images=self.images[index], labels=self.labels[index], rows=self.rows[index]
        )

    def class_indices(self, label: int) -> Int64[Tensor, " k"]:
        """Positions of the images of one class, in order."""
        return (self.labels == label).nonzero().flatten()

    def floats(
        self, indices: Tensor | np.ndarray | Sequence[int] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Images as float32 in [-1, 1]: x / 127.5 - 1."""
        images = self.images if indices is None else self.images[torch.as_tensor(indices)]
        return images.to(torch.float32).div_(127.5).sub_(1)

    def batches(
        self, rng: torch.Generator, batch_size: int
    ) -> Iterator[tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        """One shuffled epoch; see ``shuffled``."""
        for index in shuffled(len(self), rng, batch_size):
            yield self.floats(index), self.labels[index]


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of one data set; all carry the class names and constants of ``train``."""

    name: str
    train: ImageSet
    validation: ImageSet | None
    test: ImageSet

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self.train.class_names

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the training pixels per channel, in [0, 1]."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the training pixels per channel, in [0, 1] units."""
        return self.train.std

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.train.image_shape

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.train.num_classes

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Dataset":
        """The same images with other constants, per channel in [0, 1] units."""
        held = self.validation and replace(self.validation, mean=mean, std=std)
        train, test = (replace(s, mean=mean, std=std) for s in (self.train, self.test))
        return Dataset(self.name, train, held, test)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the fingerprints of the splits."""
        splits = (self.train, self.validation, self.test)
        text = " ".join(split.fingerprint if split else "-" for split in splits)
        return hashlib.sha256(text.encode()).hexdigest()


# How images are read, beside where from, and the types of these options.
READ: Mapping[str, type] = {"image_size": int, "image_column": str, "label_column": str}


def load_dataset(
    spec: str,
    validation: int | float = 0,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    normalisation: Literal["measured", "published"] = "measured",
) -> Dataset:
    """Load real images by name or path.

    Args:
        spec: ``digits``, a folder of Parquet files in Hugging Face layout, ``hf:NAME``,
            ``imagefolder:PATH``, ``npz:PATH`` or ``cifar-binary:PATH``.
        validation: how many images to take out of ``train``, as a number or a fraction below 1;
            stratified and evenly spread over each class's rows.
        image_size: side of the square that every image is brought to; needed if sizes differ.
        image_column: which column holds the images, if the feature types do not say.
        label_column: likewise for labels (integers, strings or a ClassLabel).
        cache_dir: where decoded images are kept; by default ``$ITGAN_CACHE`` or
            ``~/.cache/itgan``. What ``hf:NAME`` fetched is kept until this file is deleted.
        normalisation: mean and std are those of the training pixels, or CIFAR's published ones.

    Raises:
        InputError: the data set is unknown or cannot be used; the message says why.
    """
    if image_size is not None and not 1 <= image_size <= 1024:
        raise InputError(f"image_size must lie in 1...1024, got {image_size}")
    try:
        name, files, read = _reader(spec, image_size, (image_column, label_column))
        if files is None:
            splits = read()
        else:
            options = ["" if files else spec, image_size, image_column, label_column]
            splits = _through_cache(_cache_file(cache_dir, options, files), read)
    except OSError as error:
        if error.errno in (*DISK_FULL, errno.EIO):
            raise
        raise InputError(f"data set {spec!r} cannot be read: {error}") from error
    data = _assemble(spec, name, splits, validation, image_size)
    if normalisation == "measured":
        return data
    constants = published_constants(spec, data)
    if constants is None:
        raise InputError(
            f"normalisation: no published constants are known for {spec}, only for CIFAR-10 and "
            "CIFAR-100; leave it measured"
        )
    return data.normalised_by(*constants)


def published_constants(spec: str, data: Dataset) -> Constants | None:
    """What the field normalises a data set with, if it is CIFAR by its name or format, else None.

    Args:
        spec: that it was loaded by.
        data: the data set.
    """
    named = "cifar" in data.name.lower() or spec.startswith("cifar-binary:")
    if named and data.image_shape == (3, 32, 32):
        return PUBLISHED.get(data.num_classes)
    return None


def _reader(
    spec: str, size: int | None, columns: tuple[str | None, str | None]
) -> tuple[str, list[Path] | None, Callable[[], Splits]]:
    """Name, the files it depends on if decoding them pays for a cache (else None), how to read."""
    kind, _, rest = spec.partition(":")
    path = _absolute(rest)
    if spec == "digits":
        return spec, None, readers.read_digits
    if kind == "hf" and rest:
        if path.exists():  # would be read instead of the hub, and cached under the hub's name
            raise InputError(f"{spec}: {path} is here on disk; give the folder without hf:")
        return rest, [], partial(readers.read_hub, rest, columns, size)
    if kind == "imagefolder" and rest:
        listing = readers.list_image_folder(path)
        files = [f for classes in listing.values() for fs in classes.values() for f in fs]
        return path.name, files, partial(readers.read_image_folder, path, listing, size)
    if kind == "npz" and rest:
        return path.stem, None, partial(readers.read_npz, path)
    if kind == "cifar-binary" and rest:
        return path.name, None, partial(readers.read_cifar_binary, path)
    folder = _absolute(spec)
    if not spec or not folder.is_dir():
        raise InputError(
            f"data set {spec!r} is unknown and no such folder exists; give --dataset: {SPECS}"
        )
    found = readers.list_parquet(folder)
    files = [f for split in found.values() for f in split]
    return folder.name, files, partial(readers.read_parquet, folder, found, columns, size)


def _absolute(path: str) -> Path:
    try:
        if "\0" in path:
            raise ValueError("a zero byte")
        # Unlike resolve, it leaves a link its own name, which is that of the data set.
        return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100
    except (RuntimeError, ValueError) as error:  # ~stranger, or a zero byte
        raise InputError(f"data set {path!r}: no such path ({error})") from error


def _assemble(
    spec: str, name: str, splits: Splits, validation: int | float, image_size: int | None
) -> Dataset:
    names = splits.class_names
    if len(names) < 2:
        raise InputError(f"{spec} has {len(names)} class(es); a data set needs two or more")
    sets = []
    for split, images, labels in (
        ("train", splits.train_images, splits.train_labels),
        ("test", splits.test_images, splits.test_labels),
    ):
        try:
            pixels = pictures.resize_all(images, image_size) if image_size else images
            tensors = torch.from_numpy(pixels), torch.from_numpy(labels)
            sets.append(ImageSet(*tensors, class_names=names, dataset=name))
        except InputError as error:
            raise InputError(f"{spec}, {split} split: {error}") from error
    train, test = sets
    if train.image_shape != test.image_shape:
        raise InputError(
            f"{spec}: training images are {train.image_shape} and test images "
            f"{test.image_shape} (c, h, w); bring them to one shape"
        )
    counts = torch.bincount(train.labels, minlength=len(names))
    if int(counts.min()) == 0:
        empty = names[int(counts.argmin())]
        raise InputError(f"{spec}: class {empty!r} has no training images; add some or remove it")
    picked = stratified(train.labels, validation_count(validation, len(train)))
    left = train.select(~picked)
    mean, std = pixel_constants(left.images)
    held = replace(train.select(picked), mean=mean, std=std) if picked.any() else None
    left, test = (replace(s, mean=mean, std=std) for s in (left, test))
    return Dataset(name, left, held, test)


def pixel_constants(
    images: UInt8[Tensor, "n c h w"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (at least 1/255) of all pixels of each channel, in [0, 1] units.

    Summed in whole numbers, so the result is the same on every processor.
    """
    means, stds = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).tolist()
        n = channel.numel()
        total = sum(level * count for level, count in enumerate(counts))
        squares = sum(level**2 * count for level, count in enumerate(counts))
        means.append(total / (255 * n))
        stds.append(max(math.sqrt((squares * n - total**2) / n**2) / 255, 1 / 255))
    return tuple(means), tuple(stds)


def _cache_file(
    cache_dir: str | os.PathLike[str] | None, options: list, files: list[Path]
) -> Path | None:
    """Where the decoded images of these files, in their present state, are kept, if anywhere."""
    folder = cache_dir or os.environ.get("ITGAN_CACHE") or "~/.cache/itgan"
    try:
        folder = Path(folder).expanduser()
    except RuntimeError:  # nobody is at home
        return None
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = artefacts.json_digest([CACHE_VERSION, options, stats])
    return folder / f"images-{key[:32]}.safetensors"


def _through_cache(file: Path | None, read: Callable[[], Splits]) -> Splits:
    """Load what reading gave last time, or read; a cache that fails makes it only slower."""
    if file is None:
        return read()
    with contextlib.suppress(InputError, OSError, KeyError, TypeError):  # missing or damaged
        tensors, metadata = artefacts.load(file, "images")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Splits(**arrays, class_names=tuple(metadata["class_names"]))
    splits = read()
    names = ("train_images", "train_labels", "test_images", "test_labels")
    tensors = {name: torch.from_numpy(getattr(splits, name)) for name in names}
    with contextlib.suppress(OSError):  # a folder that cannot be written, or a full disk
        artefacts.save(file, tensors, {"kind": "images", "class_names": list(splits.class_names)})
    return splits
