"""Artefacts on disk: safetensors with JSON metadata, written atomically, checked when read.

Every file carries its format version, its kind and the sha256 of its tensors. Nothing here
unpickles: foreign ``.pt`` files go through ``torch.load(weights_only=True)``.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from itgan.errors import InputError

FORMAT_VERSION = 1
_KEY = "itgan"


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

    What is beside is called ``.NAME.PID``; a killed process leaves it for ``sweep``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # held while this process lives
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name, too
    finally:
        os.close(directory)


def sweep(directory: Path) -> None:
    """Remove what killed processes were writing here, and nothing of a process that lives.

    Process numbers mean nothing to another machine or container, so a file must also be unlocked.
    """
    for beside in directory.glob(".*.*"):
        owner = beside.suffix[1:]
        if not (owner.isascii() and owner.isdigit()) or _lives(int(owner)):
            continue
        with contextlib.suppress(BlockingIOError, FileNotFoundError), beside.open("rb") as file:
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
    with contextlib.suppress(ValueError):
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    raise InputError(f"{path}: not a readable JSON file; remove it and run again")


def save(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Save tensors with metadata (``kind`` at least) atomically; equal input, equal bytes."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {**metadata, "format_version": FORMAT_VERSION, "sha256": digest(tensors)}
    # One metadata key: safetensors does not fix the order of several.
    payload = safetensors.torch.save(tensors, {_KEY: json.dumps(header, sort_keys=True)})
    write_bytes(Path(path), payload)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of an artefact, without its tensors.

    Raises:
        InputError: no such file, or not a safetensors file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return json.loads((file.metadata() or {}).get(_KEY, "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def load(path: Path | str, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load tensors and metadata; the hash is checked.

    Raises:
        InputError: no such file, not one of ours, of another kind or newer format, or damaged.
    """
    metadata = read_metadata(path)
    if "format_version" not in metadata:
        raise InputError(f"{path}: a safetensors file, but not one that itgan wrote")
    if metadata["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{path}: written in format {metadata['format_version']}, this itgan reads up to "
            f"{FORMAT_VERSION}; upgrade itgan"
        )
    if kind is not None and metadata.get("kind") != kind:
        raise InputError(f"{path}: holds a {metadata.get('kind')!r}, expected a {kind!r}")
    tensors = safetensors.torch.load_file(str(path))
    if digest(tensors) != metadata["sha256"]:
        raise InputError(
            f"{path}: damaged: its tensors do not have the recorded sha256 "
            f"{metadata['sha256'][:16]}…; fetch or make the file again"
        )
    return tensors, metadata


def load_foreign(path: Path | str) -> Any:  # noqa: ANN401 - whatever the file holds
    """Load a ``.pt`` or ``.pth`` of another project: tensors and plain containers only.

    Raises:
        InputError: no such file, unreadable, or it holds code that would have to be unpickled.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file loads or is refused in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors (loading would run code from the file), or is "
            "damaged; save its state dict alone and give that"
        ) from error
    except Exception as error:  # what a damaged file raises has no common type
        raise InputError(f"{path}: not a readable PyTorch file") from error


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
        path = self.path.with_name(f"{self.path.stem}.{name}{self.path.suffix}")
        return Checkpoint(path, f"{self.identity}/{name}", self.every_seconds)

    def _files(self) -> list[Path]:
        """Those that exist: the snapshot, and the parts' parts' too."""
        parts = self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}")
        return [path for path in {self.path, *parts} if path.exists()]

    def begun(self) -> bool:
        """Whether there is a snapshot to go on from."""
        return bool(self._files())

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest snapshot's tensors and metadata (``step`` among them), or None."""
        if not self.path.exists():
            return None
        tensors, metadata = load(self.path, "checkpoint")
        if metadata["identity"] != self.identity:
            raise InputError(f"{self.path}: belongs to another configuration; give another --out")
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
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Busy(InputError):
    """Another process works at this place."""


@contextlib.contextmanager
def locked(directory: Path, name: str = ".lock", *, wait: bool = False) -> Iterator[None]:
    """Own a directory, or a named part of it, for the length of the block.

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
