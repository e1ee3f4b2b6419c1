"""The images of a synthetic set as files that other programs read.

    OUT/train/<class>/<row>.png | OUT/train.npz | OUT/data/train-00000-of-00001.parquet
    OUT/provenance.json

Pixels have 8 bits, are stored without loss and equal those of ``SyntheticSet.materialise()``.
They are generated, encoded and written in chunks, so that memory does not grow with the set. OUT
appears when it is whole.
"""

import contextlib
import hashlib
import os
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

import itgan
from itgan import artefacts
from itgan.errors import InputError
from itgan.pictures import to_png
from itgan.progress import track
from itgan.sources import CHUNK, SyntheticSet

LONGEST_NAME = 60  # characters of a class name in a folder's name


def export_imagefolder(
    synthetic: SyntheticSet,
    out: Path | str,
    class_names: Sequence[str] | None = None,
    file: Path | None = None,
) -> None:
    """Write ``OUT/train/<class>/<row>.png``; folders in order of their names are the classes.

    Further images of a row, in an ensemble, are ``<row>-1.png`` and so on.

    Args:
        synthetic: the set.
        out: a new or empty directory.
        class_names: one per class; by default those of the set.
        file: that the set was read from, for ``provenance.json``.

    Raises:
        InputError: ``out`` is in use, or a class has no images or no name of its own.
    """
    names = _checked_names(synthetic, class_names)
    counts = torch.bincount(synthetic.labels, minlength=len(names))
    if int(counts.min()) == 0:
        raise InputError(
            f"class {names[int(counts.argmin())]!r} has no images, which an image folder cannot "
            "tell from no class; choose the format npz or parquet"
        )
    width = len(
        str(int(synthetic.bank.rows.max()))
    )  # files in order of names are in order of rows
    with _new_directory(synthetic, Path(out), file, names) as directory:
        folders = [directory / "train" / name for name in folder_names(names)]
        for folder in folders:
            folder.mkdir(parents=True)
        written: Counter[int] = Counter()  # images of a row
        for chunk in _chunks(synthetic):
            labels, rows = synthetic.labels[chunk].tolist(), synthetic.bank.rows[chunk].tolist()
            for image, label, row in zip(synthetic.pixels(chunk), labels, rows, strict=True):
                further = f"-{written[row]}" if written[row] else ""
                (folders[label] / f"{row:0{width}}{further}.png").write_bytes(to_png(image))
                written[row] += 1


def export_npz(synthetic: SyntheticSet, out: Path | str, file: Path | None = None) -> None:
    """Write ``OUT/train.npz`` without pickles.

    Arrays: ``train_images`` (uint8, n h w c, or n h w for grey ones), ``train_labels``, ``rows``
    and ``class_names``.

    Raises:
        InputError: ``out`` is in use.
    """
    channels, height, width = synthetic.generator.image_shape
    shape = (len(synthetic), height, width) + ((channels,) if channels > 1 else ())
    names = _checked_names(synthetic)
    small = {
        "train_labels": synthetic.labels.numpy(),
        "rows": synthetic.bank.rows.numpy(),
        "class_names": np.array(names),
    }
    with (
        _new_directory(synthetic, Path(out), file, names) as directory,
        zipfile.ZipFile(directory / "train.npz", "w") as archive,
    ):
        with archive.open("train_images.npy", "w", force_zip64=True) as array:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(array, header)
            for chunk in _chunks(synthetic):
                array.write(synthetic.pixels(chunk).permute(0, 2, 3, 1).numpy().tobytes())
        for name, values in small.items():
            with archive.open(f"{name}.npy", "w") as array:
                np.lib.format.write_array(array, values, allow_pickle=False)


def export_parquet(synthetic: SyntheticSet, out: Path | str, file: Path | None = None) -> None:
    """Write ``OUT/data/train-00000-of-00001.parquet``, which ``datasets.load_dataset(OUT)`` reads.

    Columns are those of ``SyntheticSet.to_hf_dataset()``: ``img``, ``label`` and ``row``.

    Raises:
        InputError: ``out`` is in use.
    """
    from pyarrow import parquet

    names = _checked_names(synthetic)
    with (
        _new_directory(synthetic, Path(out), file, names) as directory,
        contextlib.ExitStack() as stack,
    ):
        (directory / "data").mkdir()
        path, writer = directory / "data" / "train-00000-of-00001.parquet", None
        for chunk in _chunks(synthetic):
            part = synthetic.to_hf_dataset(chunk)
            if writer is None:
                writer = parquet.ParquetWriter(path, part.features.arrow_schema)
                stack.enter_context(writer)
            writer.write_table(part.data.table)


EXPORTERS: Mapping[str, Callable[..., None]] = {
    "imagefolder": export_imagefolder,
    "npz": export_npz,
    "parquet": export_parquet,
}


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Names that a file system takes, whose sorted order is the order of the classes.

    Numbers get leading zeros. Where sorting would reorder or merge classes, they are numbered.
    """
    width = len(str(len(class_names) - 1))
    if all(name == str(label) for label, name in enumerate(class_names)):
        return [f"{label:0{width}}" for label in range(len(class_names))]
    safe = [_safe(name) for name in class_names]
    if safe == sorted(safe) and len({name.casefold() for name in safe}) == len(safe):
        return safe
    return [f"{label:0{width}}-{name}" for label, name in enumerate(safe)]


def _safe(name: str) -> str:
    # Readers skip what begins with a dot or two underscores; Windows strips dots at the end.
    return re.sub(r"[^\w .-]+", "_", name)[:LONGEST_NAME].strip(" ._") or "class"


def _checked_names(
    synthetic: SyntheticSet, class_names: Sequence[str] | None = None
) -> tuple[str, ...]:
    names = tuple(class_names or synthetic.class_names)
    classes = synthetic.generator.num_classes
    if len(names) != classes or len(set(names)) != classes:
        raise InputError(
            f"class_names: {len(set(names))} different names, but the generator has {classes} "
            "classes; give each its own"
        )
    return names


def _chunks(synthetic: SyntheticSet) -> Iterator[Int[Tensor, " k"]]:
    """Positions, in the batches in which ``materialise`` generates them."""
    chunks = torch.arange(len(synthetic)).split(CHUNK)
    for k in track(range(len(chunks)), "writing images"):
        yield chunks[k]


@contextlib.contextmanager
def _new_directory(
    synthetic: SyntheticSet, out: Path, file: Path | None, class_names: Sequence[str]
) -> Iterator[Path]:
    """A directory beside ``out`` that replaces it when the block ends well, and else vanishes."""
    given, out = out, out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {given}: exists already; give another, or remove it")
    beside = out.with_name(f".{out.name}.{os.getpid()}.itgan")
    try:
        beside.mkdir(parents=True)
        yield beside
        written = {**provenance(synthetic, file), "class_names": list(class_names)}
        artefacts.write_json(beside / "provenance.json", written)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def provenance(synthetic: SyntheticSet, file: Path | None = None) -> dict[str, Any]:
    """Where the images come from: file, generator, stage, config, seed, data set, version."""
    fingerprint = synthetic.generator.fingerprint
    known = {"config": None, "seed": None, "generator": None, **synthetic.bank.provenance}
    return {
        "itgan": itgan.__version__,
        "file": None if file is None else {"name": file.name, "sha256": _sha256(file)},
        **{key: value for key, value in known.items() if key != "moved_from"},
        # A set in narrow types holds a rounded generator; this is the one it was made with.
        "generator": known.get("moved_from") or known["generator"] or fingerprint,
        "stage": synthetic.bank.stage,
        "dataset": synthetic.about.get("dataset"),
        "class_names": list(synthetic.class_names),
        "images": len(synthetic),
        "image_shape": list(synthetic.generator.image_shape),
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
