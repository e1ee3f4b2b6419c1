"""The formats that real images come in, each read into one pair of uint8 splits.

A reader turns a file or folder into `Splits`; it knows nothing of validation, caching or what the
images are for.
"""

import errno
import glob
import math
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from itgan.errors import InputError, require_utf8
from itgan.pictures import as_pixels, decode
from itgan.splits import Splits, as_labels, hold_out, numbered

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm")
MOST_EXPANDED = 2**28  # bytes; beyond, a file may not expand to 100 times its size
HOLD_OUT = 6  # an undivided image folder gives every sixth image of a class to the test split
# Where a set has no test split of its own, its validation split is what one tests on.
TEST_NAMES = ("test", "validation", "valid", "val")
PARQUET_SPLIT = re.compile(rf"(train|{'|'.join(TEST_NAMES)})[^a-z]")
CIFAR100 = ("fine_label", "coarse_label")  # the former is what one learns, unless told
CIFAR_LAYOUTS = (  # folder, train files, test file, label bytes, file of class names
    ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", 1),
    ("cifar-100-binary", ["train.bin"], "test.bin", 2),
)
CIFAR_NAMES = {1: "batches.meta.txt", 2: "fine_label_names.txt"}


def read_digits() -> Splits:
    """Scikit-learn's 1,797 handwritten 8x8 digits; every third image of a class is for testing."""
    from sklearn.datasets import load_digits

    pixels, targets = (np.asarray(array) for array in load_digits(return_X_y=True))
    images = np.rint(pixels * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = targets.astype(np.int64)
    test = hold_out(labels, 3)
    names = tuple(str(digit) for digit in range(10))
    return Splits(images[~test], labels[~test], images[test], labels[test], names)


def _train_and_test(what: str, splits: Mapping[str, T]) -> dict[str, T]:
    test = next((name for name in TEST_NAMES if name in splits), None)
    if "train" not in splits or test is None:
        raise InputError(f"{what} has splits: {', '.join(splits) or 'none'}; needs train and test")
    return {"train": splits["train"], "test": splits[test]}


# --- folders of pictures ------------------------------------------------------------------------


def list_image_folder(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Split -> class -> files, sorted by name; one split "" if the classes lie in ``root`` itself.

    Raises:
        InputError: missing folders, fewer than two classes, a class without images.
    """
    if not root.is_dir():
        raise InputError(f"imagefolder:{root}: there is no such folder")
    present = {name: root / name for name in ("train", *TEST_NAMES) if (root / name).is_dir()}
    folders = _train_and_test(str(root), present) if present else {"": root}
    listing: dict[str, dict[str, list[Path]]] = {}
    for split, folder in folders.items():
        listing[split] = list_classes(folder)
        least = 1 if split == "test" else 2
        if len(listing[split]) < least:
            raise InputError(
                f"{folder} has {len(listing[split])} class folder(s); it needs {least} or more, "
                "one for each class"
            )
    if "" in listing and all(len(files) < HOLD_OUT for files in listing[""].values()):
        raise InputError(
            f"{root}: no class has {HOLD_OUT} images, of which one would be for testing; "
            "add images, or make train/ and test/ folders"
        )
    return listing


def list_classes(folder: Path) -> dict[str, list[Path]]:
    """Class -> files, sorted by name, of a folder of class folders.

    Raises:
        InputError: a class without images, or with a name that is not UTF-8.
    """
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    for c in classes:
        require_utf8(c.name, "class folder")
    listing = {c.name: _image_files(c) for c in classes}
    empty = next((c for c in classes if not listing[c.name]), None)
    if empty is not None:
        raise InputError(f"class folder {empty} holds no images; fill or remove it")
    return listing


def _image_files(folder: Path) -> list[Path]:
    files = (p for p in folder.rglob("*") if p.suffix.lower()[1:] in IMAGE_SUFFIXES)
    return sorted(p for p in files if p.is_file() and p.name[0] != ".")


def read_image_folder(
    root: Path, listing: dict[str, dict[str, list[Path]]], image_size: int | None
) -> Splits:
    """Read ``train/<class>/*`` and ``test/<class>/*``, or ``<class>/*`` with a fixed 5:1 split.

    Without train and test folders, every sixth image of each class (by name) is for testing.

    Raises:
        InputError: an image cannot be read, or a test class is not in the training set.
    """
    names = tuple(next(iter(listing.values())))
    strange = sorted(set(listing.get("test", {})) - set(names))
    if strange:
        raise InputError(f"{root}: test class {strange[0]!r} is not among the training classes")
    files = [(f, names.index(c)) for s in listing.values() for c, fs in s.items() for f in fs]
    labels = np.array([label for _, label in files], dtype=np.int64)
    images = decode(((str(f), f) for f, _ in files), len(files), image_size)
    if "train" in listing:
        test = np.arange(len(files)) >= sum(len(fs) for fs in listing["train"].values())
    else:
        test = hold_out(labels, HOLD_OUT)
    return Splits(images[~test], labels[~test], images[test], labels[test], names)


# --- Hugging Face -------------------------------------------------------------------------------


def list_parquet(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of the train and test splits, in ``folder`` or its ``data`` subfolder.

    Raises:
        InputError: there are none, or one of the splits is missing.
    """
    inside = next((d for d in (folder, folder / "data") if any(d.glob("*.parquet"))), None)
    if inside is None:
        raise InputError(
            f"{folder} holds no Parquet files; for pictures in class folders give "
            f"imagefolder:{folder}"
        )
    found: dict[str, list[Path]] = {}
    for file in sorted(inside.glob("*.parquet")):
        if name := PARQUET_SPLIT.match(file.name):
            found.setdefault(name[1], []).append(file)
    return _train_and_test(str(inside), found)


def read_parquet(
    folder: Path,
    files: dict[str, list[Path]],
    columns: tuple[str | None, str | None],
    image_size: int | None,
) -> Splits:
    """Read the files that `list_parquet` found; nothing is fetched from the network.

    Raises:
        InputError: a damaged file, or image and label columns that cannot be told apart.
    """
    import pyarrow as pa
    from pyarrow import parquet

    for split, parts in files.items():
        count = 0
        for file in parts:
            try:
                found = parquet.read_metadata(file)
                groups = [found.row_group(i) for i in range(found.num_row_groups)]
                count += sum(group.num_rows for group in groups)
                _check_expansion(str(file), sum(g.total_byte_size for g in groups), file)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file} is not a whole Parquet file; fetch it again") from error
        if not count:
            raise InputError(f"{folder}: the {split} split has no rows; fetch it again")
    with tempfile.TemporaryDirectory() as scratch:  # datasets keeps an Arrow copy while it reads
        paths = {split: _linked(fs, Path(scratch, split)) for split, fs in files.items()}
        splits = _load(str(folder), "parquet", data_files=paths, cache_dir=scratch)
        return _from_hugging_face(str(folder), splits, columns, image_size)


def _linked(files: list[Path], folder: Path) -> list[str]:
    """The same files under plain names: datasets takes theirs for patterns and addresses."""
    folder.mkdir()
    links = [folder / f"{number:05}.parquet" for number in range(len(files))]
    for link, file in zip(links, files, strict=True):
        link.symlink_to(file.resolve())
    return [glob.escape(str(link)) for link in links]


def read_hub(name: str, columns: tuple[str | None, str | None], image_size: int | None) -> Splits:
    """Read a data set of the Hugging Face hub, ``owner/name`` or ``owner/name:config``.

    Raises:
        InputError: no such set, no connection, or columns that cannot be told apart.
    """
    path, _, config = name.partition(":")
    splits = _load(f"hf:{name}", path, name=config or None)
    chosen = _train_and_test(f"hf:{name}", splits)
    return _from_hugging_face(f"hf:{name}", chosen, columns, image_size)


def _load(what: str, *args: str, **options: Any) -> "dict[str, datasets.Dataset]":  # noqa: ANN401
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:  # connection, permission, format: the library has a class for each
        cause = error.__cause__ or error
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOSPC:
            raise cause from None  # the machine's fault, not the input's
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{what} cannot be loaded ({type(error).__name__}: {reason}); "
            "check the name, the files and the connection"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _from_hugging_face(
    what: str,
    splits: "dict[str, datasets.Dataset]",
    columns: tuple[str | None, str | None],
    image_size: int | None,
) -> Splits:
    import datasets

    features = splits["train"].features
    pictures = [name for name, feature in features.items() if _is_image(feature)]
    classes = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)]
    values = [name for name, f in features.items() if isinstance(f, datasets.Value)]
    image = _column(what, "image_column", columns[0], pictures, pictures)
    told = [CIFAR100[0]] if set(classes) == set(CIFAR100) else classes
    label = _column(what, "label_column", columns[1], told, classes + values)
    labels, names = _labels(what, splits, label)
    raw = {k: s.cast_column(image, datasets.Image(decode=False)) for k, s in splits.items()}
    n = len(labels["train"])
    sources = (s for split, rows in raw.items() for s in _encoded(what, split, rows, image))
    images = decode(sources, n + len(labels["test"]), image_size)
    return Splits(images[:n], labels["train"], images[n:], labels["test"], names)


def _is_image(feature: object) -> bool:
    import datasets

    if isinstance(feature, dict):  # a file written without the library's metadata
        return {"bytes", "path"} <= feature.keys()
    encoded = isinstance(feature, datasets.Value) and feature.dtype.endswith("binary")
    return encoded or isinstance(feature, datasets.Image)


def _column(what: str, field: str, given: str | None, found: list[str], allowed: list[str]) -> str:
    if given is None and len(found) == 1:
        return found[0]
    if given in allowed:
        return given
    problem = f"{given!r} is none of them" if given else "the feature types do not single one out"
    raise InputError(f"{what}: set {field} to one of {', '.join(allowed) or '(none)'}: {problem}")


def _labels(
    what: str, splits: "dict[str, datasets.Dataset]", column: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    values = {split: np.asarray(rows[column][:]) for split, rows in splits.items()}
    if all(v.dtype.kind == "U" for v in values.values()):
        names = tuple(str(name) for name in np.unique(values["train"]))
        strange = sorted(set(values["test"].tolist()) - set(names))
        if strange:
            raise InputError(f"{what}: test label {strange[0]!r} is not among the training labels")
        return {k: np.searchsorted(names, v).astype(np.int64) for k, v in values.items()}, names
    labels = {split: as_labels(f"{what}: column {column!r}", v) for split, v in values.items()}
    names = getattr(splits["train"].features[column], "names", None)
    return labels, tuple(names or numbered(f"{what}: column {column!r}", labels["train"]))


def _encoded(
    what: str, split: str, rows: "datasets.Dataset", column: str
) -> Iterator[tuple[str, bytes | Path]]:
    batches: Iterator[dict[str, list[Any]]] = rows.iter(batch_size=1000)  # pyrefly: ignore
    cells = (cell for batch in batches for cell in batch[column])
    for row, cell in enumerate(cells):
        name = f"{what}: {split} row {row}, column {column!r}"
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise InputError(f"{name} is empty; remove the row")
        yield name, Path(cell["path"]) if cell["bytes"] is None else cell["bytes"]


# --- arrays -------------------------------------------------------------------------------------


def read_npz(path: Path) -> Splits:
    """Read ``x_train, y_train, x_test, y_test`` or ``train_images, train_labels, test_...``.

    Raises:
        InputError: no such file, a damaged one, missing arrays, or arrays of a wrong kind.
    """
    if not path.is_file():
        raise InputError(f"npz:{path}: there is no such file")
    arrays = read_arrays(
        path,
        (
            ("x_train", "y_train", "x_test", "y_test"),
            ("train_images", "train_labels", "test_images", "test_labels"),
        ),
    )
    names = [f"{path}, array {key}" for key in arrays]
    train, train_labels, test, test_labels = arrays.values()
    train, test = as_pixels(names[0], train), as_pixels(names[2], test)
    train_labels, test_labels = as_labels(names[1], train_labels), as_labels(names[3], test_labels)
    return Splits(train, train_labels, test, test_labels, numbered(names[1], train_labels))


def read_arrays(path: Path, schemes: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """The arrays of an npz file under the first set of names that it has in full.

    Raises:
        InputError: a damaged file, or missing arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {e.filename: e for e in archive.infolist() if e.filename.endswith(".npy")}
            present = {name.removesuffix(".npy") for name in entries}
            keys = next((scheme for scheme in schemes if present.issuperset(scheme)), None)
            if keys is None:
                raise InputError(
                    f"{path} must hold arrays {', '.join(schemes[0])}; "
                    f"it has {', '.join(sorted(present)) or 'none'}"
                )
            for key in keys:
                _check_array(f"{path}, array {key}", archive, entries[f"{key}.npy"], path)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys}
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damaged archives and headers raise nearly anything
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is not a whole npz file of plain arrays ({reason})") from error


def _check_array(what: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse an array whose header claims more numbers than the file has bytes for."""
    _check_expansion(what, entry.file_size, path)
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        first = version == (1, 0)
        read = (
            np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    if math.prod(shape) * dtype.itemsize > entry.file_size:
        raise InputError(f"{what} claims shape {shape}, for which it is too small; write it again")


def _check_expansion(what: str, size: int, file: Path) -> None:
    if size > max(MOST_EXPANDED, 100 * file.stat().st_size):
        raise InputError(f"{what} would expand to {size:,} bytes; the file is damaged or hostile")


def read_cifar_binary(path: Path) -> Splits:
    """Read the binary version of CIFAR-10 or CIFAR-100 (fine labels), in its official row order.

    A record is one label byte (CIFAR-100: coarse, fine) and 3 x 32 x 32 pixel bytes.

    Raises:
        InputError: missing files, or files that are not whole records.
    """
    for name, train, test, label_bytes in CIFAR_LAYOUTS:
        for folder in (path, path / name):
            if (folder / test).is_file():
                images, labels = _cifar_records([folder / f for f in train], label_bytes)
                test_images, test_labels = _cifar_records([folder / test], label_bytes)
                listed = folder / CIFAR_NAMES[label_bytes]
                names = (
                    listed.read_text("utf-8", errors="replace").split()
                    if listed.is_file()
                    else numbered(str(path), labels)
                )
                return Splits(images, labels, test_images, test_labels, tuple(names))
    raise InputError(f"cifar-binary:{path} holds no test_batch.bin or test.bin; check the folder")


def _cifar_records(files: list[Path], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    record = label_bytes + 3 * 32 * 32
    parts = []
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing; unpack the archive again")
        data = np.fromfile(file, dtype=np.uint8)
        if not len(data) or len(data) % record:
            raise InputError(f"{file} is not a whole number of {record}-byte records")
        parts.append(data.reshape(-1, record))
    records = np.concatenate(parts)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(images), records[:, label_bytes - 1].astype(np.int64)
