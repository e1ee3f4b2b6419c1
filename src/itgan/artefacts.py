"""Artefacts on disk: safetensors with JSON metadata, written atomically, checked when read.

Every file carries its format version, its kind, the sha256 of its tensors and that of its
metadata; files of older formats are migrated when read. Nothing here unpickles: foreign ``.pt``
files go through ``torch.load(weights_only=True)``.
"""

import contextlib
import fcntl
import glob
import hashlib
import io
import json
import os
import pickle
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from itgan.errors import InputError

FORMAT_VERSION = 2
_KEY = "itgan"
_FOLDER = 0x10  # of the attributes of an entry in a zip archive


def _from_1(metadata: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had no hash of the metadata, sets of one form only, and banks without a range."""
    added = {"synthetic": {"conventions": {"form": "biggan"}}, "bank": {"value_range": [-1, 1]}}
    return {**added.get(str(metadata.get("kind")), {}), **metadata}


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""From each older format to the next."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names, types, shapes and bytes, independent of the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def json_digest(value: object) -> str:
    """The sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_bytes(path: Path, payload: bytes) -> None:
    """Write beside, flush to the disk, rename: the file is the old one or the new one, whole.

    What is beside is called ``.NAME.PID.itgan``; a killed process leaves it for ``sweep``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.itgan")
    try:
        with beside.open("wb") as file:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)  # held while this process lives
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # nor can every one do this
        os.fsync(directory)  # the new name, too
    os.close(directory)


def write_pt(path: Path, content: Mapping[str, Any]) -> None:
    """Write a ``.pt`` file, whole or not at all; inside it is called by its own name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        beside = Path(folder, path.name)
        try:
            torch.save(content, beside)
            beside.replace(path)
        except RuntimeError:  # of a full disk; this way says so
            buffer = io.BytesIO()
            torch.save(content, buffer)
            write_bytes(path, buffer.getvalue())


def sweep(directory: Path) -> None:
    """Remove what killed processes were writing here, and nothing of a process that lives.

    Process numbers mean nothing to another machine or container, so a file must also be unlocked.
    """
    for beside in directory.glob(".*.*.itgan"):
        owner = beside.stem.rpartition(".")[2]
        if not (owner.isascii() and owner.isdigit()) or _lives(int(owner)):
            continue
        with contextlib.suppress(OSError), beside.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            beside.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run.

    Raises:
        InputError: it is none.
    """
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    raise InputError(f"{path}: not a readable JSON file; remove it and run again")


def save(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Save tensors with metadata (``kind`` at least) atomically; equal input, equal bytes."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {**metadata, "format_version": FORMAT_VERSION, "sha256": digest(tensors)}
    header = json.loads(json.dumps(header))  # tuples and numbers as keys, as they are read
    header["metadata_sha256"] = json_digest(header)
    # One metadata key: safetensors does not fix the order of several.
    payload = safetensors.torch.save(tensors, {_KEY: json.dumps(header, sort_keys=True)})
    write_bytes(Path(path), payload)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of an artefact, without its tensors; empty if another program wrote the file.

    Raises:
        InputError: no such file, not a safetensors file, a newer format, or damaged.
    """
    with _opened(path) as file:
        return _metadata(path, file)


def load(path: Path | str, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load tensors and metadata; the hashes are checked.

    Raises:
        InputError: no such file, not one of ours, of another kind or newer format, or damaged.
    """
    with _opened(path) as file:
        metadata = _metadata(path, file)
        if not metadata:
            raise InputError(
                f"{path}: a safetensors file, but not one that itgan wrote; give one that is"
            )
        if kind is not None and metadata.get("kind") != kind:
            raise InputError(
                f"{path}: holds a {metadata.get('kind')!r}, expected a {kind!r}; give such a file"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = digest(tensors)
    if found != metadata.get("sha256"):
        raise InputError(
            f"{path}: damaged: its tensors do not have the recorded sha256 "
            f"{str(metadata.get('sha256'))[:16]}…; fetch or make the file again"
        )
    return tensors, metadata


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            yield file
    except (InputError, MemoryError):
        raise
    except Exception as error:  # what a damaged file raises has no common type
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: not a readable safetensors file ({reason}); fetch or make it again"
        ) from error


def _metadata(path: Path | str, file: Any) -> dict[str, Any]:  # noqa: ANN401 - of safe_open
    """Our metadata, checked and brought to the present format; empty if there is none."""
    text = (file.metadata() or {}).get(_KEY)
    if text is None:
        return {}
    metadata = json.loads(text)
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise InputError(
            f"{path}: written in format {version}, this itgan reads up to {FORMAT_VERSION}; "
            "upgrade itgan"
        )
    if type(version) is not int or version < 1:
        raise InputError(f"{path}: damaged: its format is not known; fetch or make it again")
    recorded = metadata.pop("metadata_sha256", None)
    if recorded != (json_digest(metadata) if version > 1 else None):
        raise InputError(
            f"{path}: damaged: its metadata do not have the recorded sha256; fetch or make the "
            "file again"
        )
    for older in range(version, FORMAT_VERSION):
        metadata = MIGRATIONS[older](metadata)
    return metadata


def load_foreign(path: Path | str) -> Any:  # noqa: ANN401 - whatever the file holds
    """Load a ``.pt`` or ``.pth`` of another project: dense tensors and plain containers only.

    Raises:
        InputError: no such file, unreadable, tensors that claim to be larger than the file, or
            code that would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file loads or is refused in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(path, content)
    except (InputError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors (loading would run code from the file), or is "
            "damaged; save its state dict alone and give that"
        ) from error
    except Exception as error:  # what a damaged file raises has no common type
        raise InputError(
            f"{path}: not a readable PyTorch file; fetch it again, or save it with torch.save"
        ) from error
    return content


def _check_zip(path: Path) -> None:
    """PyTorch checks neither the sums of a zip archive nor what its entries expand to."""
    if not zipfile.is_zipfile(path):  # written by an old PyTorch
        _check_pickle(path, path.read_bytes())
        return
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise InputError(f"{path}: claims to hold more than its size; fetch it again")
        if (name := archive.testzip()) is not None:
            raise InputError(f"{path}: damaged: {name} has another sum; fetch it again")
        for entry in archive.infolist():
            # PyTorch leaves the memory of an entry that is marked as a folder as it finds it.
            if entry.is_dir() or entry.external_attr & _FOLDER:
                raise InputError(f"{path}: damaged: {entry.filename} is a folder; fetch it again")
            if entry.filename.endswith(".pkl"):
                _check_pickle(path, archive.read(entry))


def _check_pickle(path: Path, content: bytes) -> None:
    """PyTorch would make a bytearray of any size that a file names."""
    if b"bytearray" in content:
        raise InputError(f"{path}: holds a bytearray, not only tensors; save its state dict alone")


def _check_tensors(path: Path, content: object) -> None:
    """Refuse tensors whose numbers are not all in the file, however large they claim to be."""
    seen: dict[int, object] = {}
    storages: dict[int, int] = {}
    left = [content]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            left += value
        elif isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.is_meta:
                raise InputError(f"{path}: holds a tensor that is not dense; save dense ones")
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            size = value.numel() * value.element_size()
            if size > storage.nbytes() or sum(storages.values()) > path.stat().st_size:
                raise InputError(
                    f"{path}: a tensor of shape {tuple(value.shape)} claims to be larger than "
                    "what is stored of it; save it with .clone()"
                )


@contextlib.contextmanager
def described(path: Path | str) -> Iterator[None]:
    """Errors of making sense of what ``load`` gave, as one line that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{path}: its metadata or tensors are not as itgan writes them "
            f"({type(error).__name__}: {error}); make the file again"
        ) from error


class Checkpoint:
    """Periodic snapshots of a loop: named tensors and the number of finished steps.

    Random streams are derived from the step, so tensors and step are the whole state.
    """

    def __init__(self, path: Path, identity: str, every_seconds: float = 60.0) -> None:
        """Keep snapshots at ``path``; one of another ``identity`` (a hash) is refused."""
        self.path = path
        self.identity = identity
        self.every_seconds = every_seconds
        self._last = time.monotonic()

    def part(self, name: str | int) -> "Checkpoint":
        """A checkpoint of its own for one of several loops; it goes when the whole is cleared."""
        path = self.path.with_name(f"{self.path.stem}.part-{name}{self.path.suffix}")
        return Checkpoint(path, f"{self.identity}/{name}", self.every_seconds)

    def _files(self) -> list[Path]:
        """Those that exist: of the whole, and of its parts."""
        pattern = f"{glob.escape(self.path.stem)}.part-*{self.path.suffix}"
        return [path for path in (self.path, *self.path.parent.glob(pattern)) if path.exists()]

    def begun(self) -> bool:
        """Whether there is a snapshot to go on from."""
        return bool(self._files())

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest snapshot's tensors and metadata (``step`` among them), or None."""
        if not self.path.exists():
            return None
        tensors, metadata = load(self.path, "checkpoint")
        if metadata.get("identity") != self.identity:
            raise InputError(f"{self.path}: belongs to another configuration; give another --out")
        if type(metadata.get("step")) is not int:
            raise InputError(f"{self.path}: does not tell its step; remove it and run again")
        return tensors, metadata

    def offer(
        self, step: int, state: Callable[[], Mapping[str, Tensor]], *, force: bool = False
    ) -> bool:
        """Save ``state()`` if the last snapshot is old enough; tells whether it did."""
        if not force and time.monotonic() - self._last < self.every_seconds:
            return False
        save(self.path, state(), {"kind": "checkpoint", "identity": self.identity, "step": step})
        self._last = time.monotonic()
        return True

    def clear(self) -> None:
        """Remove the snapshot and those of all parts: the loops have ended."""
        for path in self._files():
            path.unlink(missing_ok=True)


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object; a line that a crash tore off before is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(row) + "\n").encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; torn ones are left out."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


class Busy(InputError):
    """Another process works at this place."""


@contextlib.contextmanager
def locked(directory: Path, name: str = ".lock", *, wait: bool = False) -> Iterator[None]:
    """Own a directory, or a named part of it, for the length of the block.

    What killed processes left here half-written is removed.

    Raises:
        Busy: another process does, and this one is not to ``wait`` for it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(
                f"{directory}: another process is working in this directory; wait for it or "
                "give another --out"
            ) from error
        sweep(directory)
        yield
