"""Runs: every expensive result is a cell, named by the hash of what determines it.

A cell knows its kind, what determines it (config, seeds, hashes of data), the cells that it is
computed from, and how to compute it. A run directory keeps the values; to resume is to compute
what is missing. Only this module knows the paths inside a run directory.
"""

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import itgan
from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.configs import with_precision
from itgan.devices import knows_bf16, pick_device, resolve_precision
from itgan.embedding import NetworkSpec, SnapshotPool, load_network, save_network
from itgan.encoder import Encoder
from itgan.errors import InputError
from itgan.evaluation import Trial
from itgan.latents import LatentBank
from itgan.networks import Network
from itgan.progress import say
from itgan.run_configs import PLACES, RunConfig

# Raised when the same configuration begins to give other numbers: older cells are not reused.
NUMERICS = 4
# Fields that choose among cells, and change none.
VIEWS = ("sources", "latent_seeds", "network_seeds")


@dataclass(frozen=True, eq=False)
class Cell:
    """One expensive result.

    Attributes:
        kind: ``network``, ``encoder``, ``pool``, ``bank``, ``trial`` or ``number``: how it is
            stored.
        label: what a reader calls it.
        determinants: JSON values that determine it, beside its inputs.
        inputs: the cells it is computed from.
        compute: from the inputs' values, and a place for snapshots, to the value.
    """

    kind: str
    label: str
    determinants: Mapping[str, Any]
    inputs: tuple["Cell", ...]
    compute: Callable[..., Any]

    @property
    def name(self) -> str:
        """Stage and hash of all that determines the value."""
        inputs = [cell.name for cell in self.inputs]
        identity = [NUMERICS, self.kind, self.determinants, inputs]
        return f"{self.label.split()[0]}-{artefacts.json_digest(identity)[:16]}"


def with_inputs(
    cells: Iterable[Cell], there: Callable[[Cell], bool] = lambda _: False
) -> list[Cell]:
    """The cells and all they need, inputs first, each name once; those ``there`` need nothing."""
    found: dict[str, Cell] = {}

    def visit(cell: Cell) -> None:
        if cell.name not in found:
            for before in () if there(cell) else cell.inputs:
                visit(before)
            found[cell.name] = cell

    for cell in cells:
        visit(cell)
    return list(found.values())


def _save_network(path: Path, network: Network, cell: Cell) -> None:
    save_network(path, network, _spec(cell))


def _spec(cell: Cell) -> NetworkSpec:
    """From the run's own configuration, never from a file: it may name code to import."""
    return NetworkSpec(**cell.determinants["spec"])


def _load_network(path: Path, cell: Cell) -> Network:
    return load_network(path, _spec(cell))


def _load_pool(path: Path, cell: Cell) -> SnapshotPool:
    return SnapshotPool.load(path, _spec(cell))


def _load_encoder(path: Path, cell: Cell) -> Encoder:
    return Encoder.load(path)


def _load_bank(path: Path, cell: Cell) -> LatentBank:
    return LatentBank.load(path)


def _save_trial(path: Path, trial: Trial, cell: Cell) -> None:
    determinants = dict(cell.determinants)
    artefacts.write_json(path, {"trial": asdict(trial), "determinants": determinants})


def _load_trial(path: Path, cell: Cell) -> Trial:
    try:
        trial = Trial(**artefacts.read_json(path)["trial"])
        if not 0 <= trial.accuracy <= 1:
            raise ValueError("accuracy is a share")
        return trial
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a trial; remove it and run again") from error


def _save_number(path: Path, value: int, cell: Cell) -> None:
    artefacts.write_json(path, {"value": value, "determinants": dict(cell.determinants)})


def _load_number(path: Path, cell: Cell) -> int:
    value = artefacts.read_json(path).get("value")
    if type(value) is not int or value < 1:
        raise InputError(f"{path}: not a number from 1 on; remove it and run again")
    return value


def _save(path: Path, value: LatentBank | SnapshotPool | Encoder, cell: Cell) -> None:
    value.save(path)


STORAGE: dict[str, tuple[str, Callable[..., None], Callable[[Path, Cell], Any]]] = {
    "network": (".safetensors", _save_network, _load_network),
    "encoder": (".safetensors", _save, _load_encoder),
    "pool": (".safetensors", _save, _load_pool),
    "bank": (".safetensors", _save, _load_bank),
    "trial": (".json", _save_trial, _load_trial),
    "number": (".json", _save_number, _load_number),
}


class Run:
    """A directory with one configuration's results, and the cells that they are views of."""

    def __init__(
        self, path: Path, store: Path | None = None, checkpoint_seconds: float = 60.0
    ) -> None:
        """Cells are kept in ``path``, or in a ``store`` that several runs share.

        Nothing is written before it is needed; snapshots inside a cell are so far apart.
        """
        self.path = path
        self.store = store or path
        self.checkpoint_seconds = checkpoint_seconds
        self._values: dict[str, Any] = {}

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "config.json").exists()

    def config(self) -> RunConfig:
        """The configuration that the run was begun with.

        Raises:
            InputError: the file is damaged, or written by another version of itgan.
        """
        target = self.path / "config.json"
        try:
            return RunConfig.model_validate({**artefacts.read_json(target), "out": str(self.path)})
        except (ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{target}: not a configuration of this itgan; give another --out, or the recipe"
            ) from error

    def sweep(self) -> None:
        """Remove half-written files that a killed process has left."""
        for folder in (self.store / "cells", self.store / "partial", self.path / "sets"):
            artefacts.sweep(folder)

    def environment(self) -> dict[str, Any]:
        """Versions and hardware that the run was begun with; those of here before."""
        file = self.path / "environment.json"
        return artefacts.read_json(file) if file.exists() else environment()

    def precision(self) -> str | None:
        """What ``auto`` is in this run, wherever it goes on; None where it does not tell."""
        begun = self.exists() and (self.path / "environment.json").exists()
        told = self.environment().get("precision") if begun else None
        return told if told in ("fp32", "bf16") else None

    def open(self, config: RunConfig) -> None:
        """Claim the directory for a configuration; more sources and seeds join those it has.

        Raises:
            InputError: it holds another configuration's run; the message names the fields.
        """
        self.sweep()
        target = self.path / "config.json"
        if not target.exists():
            artefacts.write_json(self.path / "environment.json", environment(config.device))
            # A shared store is the same one from every directory.
            store = config.cells and str(Path(config.cells).absolute())
            kept = config.model_copy(update={"cells": store})
            artefacts.write_json(target, kept.model_dump(mode="json"))
            return
        kept = self.check(config)
        wider = {
            view: tuple(dict.fromkeys((*getattr(kept, view), *getattr(config, view))))
            for view in VIEWS
        }
        if any(wider[view] != getattr(kept, view) for view in VIEWS):
            artefacts.write_json(target, kept.model_copy(update=wider).model_dump(mode="json"))

    def check(self, config: RunConfig) -> RunConfig:
        """The configuration that is there, if it is this one but for sources and seeds.

        Raises:
            InputError: it is another one; the message names the fields.
        """
        # Through the config, so that fields added since then have their defaults.
        kept, auto = self.config(), self.precision()
        there, here = (
            (with_precision(one, auto) if auto else one).model_dump(
                mode="json", exclude=PLACES | set(VIEWS)
            )
            for one in (kept, config)
        )
        fields = ", ".join(differences(there, here))
        if fields:
            raise InputError(
                f"--out {self.path}: holds a run with another configuration; these fields "
                f"differ: {fields}; give another --out, or the values that it was begun with"
            )
        return kept

    def file(self, cell: Cell) -> Path:
        """Where a cell's value is kept."""
        return self.store / "cells" / (cell.name + STORAGE[cell.kind][0])

    def done(self, cell: Cell) -> bool:
        """Whether the value is there."""
        return self.file(cell).exists()

    def put(self, cell: Cell, value: object) -> None:
        """Keep a value that is known from elsewhere, if there is none."""
        if not self.done(cell):
            STORAGE[cell.kind][1](self.file(cell), value, cell)

    def value(self, cell: Cell, *, wait: bool = True) -> Any:  # noqa: ANN401 - what it computes
        """The value of a cell, from memory, from the disk, or computed now with all it needs.

        Raises:
            Busy: another process computes it, or what it needs, and this one is not to ``wait``.
        """
        if cell.name in self._values:
            return self._values[cell.name]
        path, load = self.file(cell), STORAGE[cell.kind][2]
        if not path.exists():
            inputs = [self.value(before, wait=wait) for before in cell.inputs]
            with self._owned(cell, wait):
                if not path.exists():  # another process may have been faster
                    self._compute(cell, inputs)
        self._values[cell.name] = load(path, cell)
        self._checkpoint(cell).clear()  # also one that a kill has left beside the value
        return self._values[cell.name]

    def values(self, cells: Sequence[Cell]) -> list[Any]:
        """The values of cells; those that other processes compute are taken from them."""
        waiting = list(cells)
        while waiting:
            busy = [cell for cell in waiting if not self._try(cell)]
            if len(busy) == len(waiting):
                say(f"waiting for another process: {busy[0].label}")
                self.value(busy[0])
            waiting = busy
        return [self.value(cell) for cell in cells]

    def _owned(self, cell: Cell, wait: bool) -> contextlib.AbstractContextManager[None]:
        """One process computes a cell of a shared store; a run of its own is locked whole."""
        if self.store == self.path:
            return contextlib.nullcontext()
        return artefacts.locked(self.store / "locks", cell.name, wait=wait)

    def _try(self, cell: Cell) -> bool:
        try:
            self.value(cell, wait=False)
        except artefacts.Busy:
            return False
        return True

    def _checkpoint(self, cell: Cell) -> Checkpoint:
        path = self.store / "partial" / f"{cell.name}.safetensors"
        return Checkpoint(path, cell.name, self.checkpoint_seconds)

    def _compute(self, cell: Cell, inputs: list[Any]) -> None:
        checkpoint = self._checkpoint(cell)
        say(f"{cell.label} ({cell.name})" + (" goes on" if checkpoint.begun() else ""))
        begun = time.perf_counter()
        value = cell.compute(*inputs, checkpoint=checkpoint)
        STORAGE[cell.kind][1](self.file(cell), value, cell)
        seconds = round(time.perf_counter() - begun, 3)
        artefacts.append_jsonl(
            self.path / "metrics.jsonl",
            {"cell": cell.name, "label": cell.label, "seconds": seconds, **_last(value)},
        )

    def write_trials(self, trials: Iterable[Trial], rows: list[dict[str, Any]]) -> None:
        """Write ``trials.jsonl`` and ``results.json``: views over the cells."""
        lines = "".join(json.dumps(asdict(trial)) + "\n" for trial in trials)
        artefacts.write_bytes(self.path / "trials.jsonl", lines.encode())
        artefacts.write_json(self.path / "results.json", rows)


def _last(value: object) -> dict[str, Any]:
    """What a metrics line says of a value: the last entry of each history."""
    if isinstance(value, LatentBank | Encoder):
        return {name: values[-1] for name, values in value.history.items() if values}
    return {"accuracy": value.accuracy} if isinstance(value, Trial) else {}


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The fields of two configurations that differ, with both values."""
    for key in sorted(a.keys() | b.keys()):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key} ({left} there, {right} here)"


def environment(device: str = "auto") -> dict[str, Any]:
    """Versions and hardware that results are computed with on a device."""
    return {
        "itgan": itgan.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "precision": resolve_precision(pick_device(device), "auto"),
        "bf16": knows_bf16(pick_device(device)),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
