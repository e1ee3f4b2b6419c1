"""The storage ledger: what a training set costs in bytes, with all that it needs to be used.

    bytes(n) = fixed + n each          for n latents, or n real images

A synthetic set pays once for its generator (and, in int8, for one scale per latent dimension), and
for each image a latent, a label and a row number. Real images pay for their files and labels;
JPEGs of one quality can share their tables, which are then paid for once. Bits per class are
8 bytes(n) / classes: generator and labels are counted in.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from rich import box
from rich.table import Table

from itgan.configs import Dtype
from itgan.data import ImageSet, load_dataset
from itgan.errors import InputError
from itgan.file_configs import LedgerConfig
from itgan.generators import (
    BigGANShape,
    StoredGenerator,
    folded_shapes,
    load_generator,
)
from itgan.pictures import to_jpeg, to_png
from itgan.progress import track
from itgan.sources import SyntheticSet, label_bytes

Number = float | int
ROW_BYTES = 4  # int32: which training row a latent belongs to
SCALE_BYTES = 4  # fp32
PARTS: tuple[Literal["whole", "stream"], ...] = ("whole", "stream")  # of a JPEG
LATENT_DIM = 128  # of a BigGAN that is given by its size alone
START_OF_SCAN = b"\xff\xda"  # what stands before it is the same for every image of a set


@dataclass(frozen=True)
class Storage:
    """Bytes of a training set as a line in the number of its images.

    Attributes:
        name: what is stored, and how.
        fixed: bytes that are paid once, by part.
        each: bytes of one image, by part; for compressed files a mean.
    """

    name: str
    fixed: Mapping[str, Number]
    each: Mapping[str, Number]

    def parts(self, n: int) -> dict[str, int]:
        """Bytes of each part for n images."""
        names = dict.fromkeys((*self.fixed, *self.each))
        return {k: round(self.fixed.get(k, 0) + n * self.each.get(k, 0)) for k in names}

    def bytes(self, n: int) -> int:
        """Bytes of all parts for n images."""
        return round(sum(self.fixed.values()) + n * sum(self.each.values()))

    def bits_per_class(self, n: int, num_classes: int) -> float:
        """Bits of n images, all parts counted, for each class."""
        return 8 * self.bytes(n) / num_classes


def packed_bytes(shape: Sequence[int], dtype: Dtype, by: int = 0) -> int:
    """Bytes of a tensor of floats in a file.

    fp32 and fp16 take 4 and 2 bytes a number; int8 takes one, and a scale for each index of
    dimension ``by``, but leaves vectors in fp16.
    """
    count = math.prod(shape)
    if dtype == "fp32":
        return 4 * count
    if dtype == "fp16" or len(shape) < 2:
        return 2 * count
    return count + SCALE_BYTES * shape[by]


def generator_bytes(generator: StoredGenerator | BigGANShape, dtype: Dtype) -> int:
    """Bytes of a generator: a BigGAN's folded constants, or another's file as it is."""
    if isinstance(generator, BigGANShape):
        return sum(packed_bytes(shape, dtype) for shape in folded_shapes(generator).values())
    return sum(
        packed_bytes(t.shape, dtype) if t.is_floating_point() else t.numel() * t.element_size()
        for t in generator.tensors().values()
    )


def synthetic_storage(generator: StoredGenerator | BigGANShape, dtype: Dtype) -> Storage:
    """What ``SyntheticSet.save`` writes: generator, latents, labels and row numbers."""
    shape = _latent_shape(generator)
    one = packed_bytes((1, *shape), dtype, by=1)
    scales = SCALE_BYTES * shape[0] if dtype == "int8" else 0
    return Storage(
        f"synthetic {dtype}",
        {"generator": generator_bytes(generator, dtype), "latents": scales},
        {
            "latents": one - scales,
            "labels": label_bytes(generator.num_classes),
            "rows": ROW_BYTES,
        },
    )


def _latent_shape(generator: StoredGenerator | BigGANShape) -> tuple[int, ...]:
    if isinstance(generator, BigGANShape):
        return (generator.latent_dim,)
    return tuple(generator.latent_shape)


def real_storages(
    images: ImageSet, qualities: Sequence[int] = (75,), sample: int | None = None
) -> list[Storage]:
    """Real images as raw pixels, as PNG and as JPEG, each file really encoded.

    Args:
        images: the set.
        qualities: of the JPEGs, 1 ... 100; each comes as whole files, with the quantisation and
            Huffman tables of all in common, and with all that stands before the scan in common.
        sample: how many images are encoded, evenly spread over each class; all by default.
    """
    if sample is not None and sample < len(images):
        order = images.labels.argsort(stable=True)
        picks = (2 * torch.arange(sample) + 1) * len(images) // (2 * sample)
        images = images.select(order[picks])
    sizes: dict[str, int] = dict.fromkeys(
        ["png", *(f"{q} {p}" for q in qualities for p in PARTS)], 0
    )
    for row in track(range(len(images)), "encoding"):
        picture = images.images[row]
        sizes["png"] += len(to_png(picture))
        for quality in qualities:
            for part in PARTS:
                sizes[f"{quality} {part}"] += len(to_jpeg(picture, quality, part))
    means = {name: total / len(images) for name, total in sizes.items()}
    label = {"labels": label_bytes(images.num_classes)}

    def storage(name: str, each: Number, shared: int = 0) -> Storage:
        return Storage(name, {"images": shared}, {"images": each, **label})

    found = [storage("raw", math.prod(images.image_shape)), storage("png", means["png"])]
    for quality in qualities:
        tables = len(to_jpeg(images.images[0], quality, "tables"))
        head = to_jpeg(images.images[0], quality, "stream").index(START_OF_SCAN)
        stream = means[f"{quality} stream"]
        found += [
            storage(f"jpeg {quality}", means[f"{quality} whole"]),
            storage(f"jpeg {quality}, shared tables", stream, tables),
            storage(f"jpeg {quality}, shared headers", stream - head, tables + head),
        ]
    return found


def break_even(synthetic: Storage, real: Storage, num_classes: int) -> int | None:
    """From how many latents per class on the synthetic set is no larger than as many real images.

    Returns:
        The number, or None where a latent costs as much as an image, so that it never is.
    """
    saved = sum(real.each.values()) - sum(synthetic.each.values())
    ahead = sum(synthetic.fixed.values()) - sum(real.fixed.values())
    if saved <= 0:
        return None
    return max(1, math.ceil(ahead / (saved * num_classes)))


def count(config: LedgerConfig, synthetic: SyntheticSet | None = None) -> dict[str, Any]:
    """The ledger that a configuration asks for.

    Args:
        config: data set, generator or its shape, number of latents.
        synthetic: gives the generator and the number of latents where the config does not.

    Returns:
        See ``ledger``; with ``dataset``.

    Raises:
        InputError: nothing names a data set or a generator, or they do not fit.
    """
    if not config.dataset:
        raise InputError("ledger: the set names no data set; give --dataset")
    data = load_dataset(
        config.dataset,
        image_size=config.image_size,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    shape, latents = data.image_shape, len(data.train)
    if config.channels is not None:
        size = config.latent_dim or LATENT_DIM
        generator = BigGANShape(config.channels, data.num_classes, shape, size)
    elif config.generator is not None:
        classes = data.num_classes
        generator = load_generator(
            config.generator,
            latent_dim=config.latent_dim,
            num_classes=classes,
            image_shape=shape,
        )
    elif synthetic is not None and isinstance(synthetic.generator, StoredGenerator):
        generator = synthetic.generator
    else:
        raise InputError("ledger: give --generator, or --channels for the size of a BigGAN")
    if config.latents_per_class is not None:
        latents = config.latents_per_class * data.num_classes
    elif synthetic is not None:
        latents = len(synthetic)
    counted = ledger(generator, latents, data.train, config.qualities, config.sample)
    return {"dataset": data.name, **counted}


def ledger(
    generator: StoredGenerator | BigGANShape,
    latents: int,
    images: ImageSet,
    qualities: Sequence[int] = (75,),
    sample: int | None = None,
) -> dict[str, Any]:
    """All of it as JSON values.

    Args:
        generator: one that a file can hold, or the shape of a BigGAN.
        latents: how many.
        images: the real training images.
        qualities: of the JPEGs.
        sample: how many real images are encoded; all by default.

    Returns:
        ``synthetic``: for each storage type its parts, ``total``, ``bits_per_class``,
        ``share_of_raw`` (of all training images); ``real``: for each format ``each`` (mean bytes
        of an image and its label), ``total`` and ``bits_per_class`` of all training images,
        ``images`` (how many take the bytes of the fp32 set) and ``break_even`` by storage type.

    Raises:
        InputError: the generator makes other images.
    """
    classes, n = images.num_classes, len(images)
    if tuple(generator.image_shape) != images.image_shape or generator.num_classes != classes:
        raise InputError(
            f"generator: makes images of shape {tuple(generator.image_shape)} in "
            f"{generator.num_classes} classes, but the data set has {images.image_shape} in "
            f"{classes}; give its data set, or --image-size"
        )
    dtypes: tuple[Dtype, ...] = get_args(Dtype)
    stored = {dtype: synthetic_storage(generator, dtype) for dtype in dtypes}
    real = real_storages(images, qualities, sample)
    raw, budget = math.prod(images.image_shape) * n, stored["fp32"].bytes(latents)
    return {
        "classes": classes,
        "image_shape": list(images.image_shape),
        "latent_shape": list(_latent_shape(generator)),
        "latents": latents,
        "training_images": n,
        "encoded_images": min(sample or n, n),
        "synthetic": [
            {
                "dtype": dtype,
                **storage.parts(latents),
                "total": storage.bytes(latents),
                "bits_per_class": storage.bits_per_class(latents, classes),
                "share_of_raw": storage.bytes(latents) / raw,
            }
            for dtype, storage in stored.items()
        ],
        "real": [
            {
                "format": storage.name,
                "each": sum(storage.each.values()),
                "shared": round(sum(storage.fixed.values())),
                "total": storage.bytes(n),
                "bits_per_class": storage.bits_per_class(n, classes),
                "images": _fitting(storage, budget),
                "break_even": {d: break_even(s, storage, classes) for d, s in stored.items()},
            }
            for storage in real
        ],
    }


def _fitting(storage: Storage, budget: int) -> int:
    return max(0, int((budget - sum(storage.fixed.values())) // sum(storage.each.values())))


def human(count: Number) -> str:
    """Bytes for people, in binary units: 1,536 is 1.50 KiB."""
    power = min(max(int(count).bit_length() - 1, 0) // 10, 4)
    scaled = count / 1024**power
    digits = 0 if power == 0 else 2 if scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:.{digits}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def ledger_tables(counted: Mapping[str, Any]) -> list[Table]:
    """What ``count`` gives, for the terminal."""
    n, latents, classes = (counted[k] for k in ("training_images", "latents", "classes"))
    size = "x".join(map(str, counted["latent_shape"]))
    stored = _table(
        f"{latents:,} latents of {size}", ["generator", "latents", "labels", "rows", "total"]
    )
    for title in ("bits per class", "of raw pixels"):
        stored.add_column(title, justify="right")
    for row in counted["synthetic"]:
        sizes = [human(row[k]) for k in ("generator", "latents", "labels", "rows", "total")]
        share = f"{100 * row['share_of_raw']:.1f} %"
        stored.add_row(row["dtype"], *sizes, f"{row['bits_per_class']:,.0f}", share)
    size = "x".join(map(str, counted["image_shape"]))
    title = (
        f"{n:,} real images of {size} in {classes} classes, {counted['encoded_images']:,} encoded"
    )
    titles = ["bytes each", "in common", "all", "bits per class", "in the fp32 set's bytes"]
    real = _table(title, [*titles, *(f"even, {row['dtype']}" for row in counted["synthetic"])])
    for row in counted["real"]:
        evens = ["never" if k is None else f"{k:,}" for k in row["break_even"].values()]
        real.add_row(
            row["format"],
            f"{row['each']:,.1f}",
            f"{row['shared']:,}",
            human(row["total"]),
            f"{row['bits_per_class']:,.0f}",
            f"{row['images']:,}",
            *evens,
        )
    real.caption = "even: the number of latents per class from which on the set is no larger"
    return [stored, real]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("stored as", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
