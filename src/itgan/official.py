"""Released latents and networks of this field, read and written in their own layouts.

    whole    {"z_inverse_all" or "z_eff_all": float [n, d]}       row i of the official order
    pieces   {"z_split": [float [k, d], ...],                     a tensor for each class
              "idx_split": [[row, ...], ...], "train_iter": steps,
              "classes_split": array}                             only where classes are apart
    pixels   {"data": [[normalised images, labels]]}              see ``foreign``
    network  features.{0,4,8}.*, features.{1,5,9}.*, classifier.*

Row i of a bank is row i of CIFAR's official training order (data_batch_1 ... 5), which no other
distribution of CIFAR has: labels come from the official binary files, or from a file of them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from itgan import artefacts
from itgan.artefacts import load_foreign
from itgan.data import PUBLISHED, load_dataset
from itgan.errors import InputError
from itgan.file_configs import ExportConfig, ImportConfig
from itgan.foreign import write_set
from itgan.generators import load_generator
from itgan.latents import LatentBank, Stage, check_bank
from itgan.networks import Network, build_network
from itgan.networks.base import Norm, PixelConstants
from itgan.networks.convnet import ConvNet
from itgan.sources import SyntheticSet
from itgan.splits import as_labels

WHOLE: dict[str, Stage] = {"z_inverse_all": "inverted", "z_eff_all": "condensed"}
PIECES = ("z_split", "idx_split")
# What rebuilds an array of integers, and nothing wider. NumPy 1 had it at another address.
_INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
RECONSTRUCTORS: list[Any] = [
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    (np._core.multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in _INTEGERS),
]


def import_latents(paths: Sequence[Path], config: ImportConfig) -> LatentBank:
    """Read released latents as a bank; several pieces become one.

    Raises:
        InputError: a file of another layout, labels that are missing, of another order or do not
            fit, or a generator that does not take the latents.
    """
    labels = official_labels(config)
    generator = load_generator(config.generator) if config.generator else None
    banks = [read_latents(path, labels, config.stage) for path in paths]
    bank = banks[0] if len(banks) == 1 else LatentBank.merge(banks)
    provenance = {**bank.provenance, "files": [path.name for path in paths]}
    if generator is not None:
        check_bank(generator, bank)
        provenance["generator"] = generator.fingerprint
    return LatentBank(bank.latents, bank.labels, bank.rows, bank.stage, {}, provenance)


def official_labels(config: ImportConfig) -> Int64[Tensor, " n"]:
    """Labels of the training rows in the official order, from the data set or the file named.

    Raises:
        InputError: neither or both are given, or the data set has another order.
    """
    if (config.dataset is None) == (config.labels is None):
        raise InputError(
            "dataset, labels: give one of --dataset cifar-binary:PATH and --labels FILE; latents "
            "belong to rows of the official training order, whose labels they take"
        )
    if config.labels is not None:
        return _read_labels(Path(config.labels))
    if not (config.dataset or "").startswith("cifar-binary:"):
        raise InputError(
            f"dataset: rows of {config.dataset} are not in the official order that latents "
            "belong to; give --dataset cifar-binary:PATH (the binary version of CIFAR), or "
            "--labels FILE"
        )
    return load_dataset(config.dataset or "").train.labels


def _read_labels(path: Path) -> Int64[Tensor, " n"]:
    if not path.is_file():
        raise InputError(f"labels: {path}: no such file")
    if path.suffix in (".pt", ".pth"):
        found = load_foreign(path)
        values = found.numpy() if isinstance(found, Tensor) else np.array(None)
    else:
        try:
            if path.suffix == ".npy":
                values = np.load(path, allow_pickle=False)
            else:
                words = path.read_text().translate(str.maketrans("[],;", "    ")).split()
                values = np.array([int(word) for word in words], dtype=np.int64)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(
                f"labels: {path} holds no integers; give .npy, a tensor in .pt, or text"
            ) from error
    labels = as_labels(f"labels: {path}", values)
    if not len(labels) or labels.min() < 0:
        raise InputError(f"labels: {path} must hold class numbers from 0 on")
    return torch.from_numpy(labels)


def read_latents(
    path: Path, labels: Int64[Tensor, " n"], stage: Stage | None = None
) -> LatentBank:
    """A bank from one released file.

    Args:
        path: of any layout above.
        labels: of the official training rows.
        stage: where the layout does not tell it; pieces are taken for condensed.

    Raises:
        InputError: another layout, or rows and labels that do not fit together.
    """
    with torch.serialization.safe_globals(RECONSTRUCTORS):
        content = load_foreign(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a dict of latents")
    for key, told in WHOLE.items():
        if key in content:
            if stage not in (None, told):
                raise InputError(f"stage: {path} holds {key}, which is {told}; leave it out")
            latents = _latents(path, key, content[key])
            rows = torch.arange(len(latents))
            return _bank(path, latents, rows, labels, told, {"layout": "whole"})
    if not all(isinstance(content.get(key), list | tuple) for key in PIECES):
        raise InputError(
            f"{path}: holds {', '.join(map(str, content)) or 'nothing'}; expected "
            f"{' or '.join(WHOLE)}, or lists {' and '.join(PIECES)}"
        )
    return _from_pieces(path, content, labels, stage or "condensed")


def _from_pieces(
    path: Path, content: dict[str, Any], labels: Int64[Tensor, " n"], stage: Stage
) -> LatentBank:
    parts = [_latents(path, f"z_split[{i}]", z) for i, z in enumerate(content["z_split"])]
    index = [_rows(path, i, rows) for i, rows in enumerate(content["idx_split"])]
    classes = content.get("classes_split")
    numbers = list(range(len(parts))) if classes is None else _classes(path, classes, len(parts))
    if not parts or len(parts) != len(index):
        raise InputError(
            f"{path}: {len(parts)} tensors in z_split and {len(index)} lists in idx_split; "
            "expected as many of each, one for each class"
        )
    for i, (part, rows) in enumerate(zip(parts, index, strict=True)):
        if len(part) != len(rows):
            raise InputError(f"{path}: z_split[{i}] has {len(part)} latents for {len(rows)} rows")
    if len({part.shape[1] for part in parts}) > 1:
        raise InputError(f"{path}: latents of z_split differ in length")
    steps = content.get("train_iter", 0)
    known: dict[str, Any] = {
        "layout": "pieces",
        "train_iter": steps if isinstance(steps, int) else 0,
    }
    if classes is not None:
        known["classes_split"] = numbers
    rows = torch.cat(index)
    bank = _bank(path, torch.cat(parts), rows, labels, stage, known)
    said = torch.cat([torch.full((len(r),), c) for r, c in zip(index, numbers, strict=True)])
    if not torch.equal(bank.labels, said):
        wrong = int((bank.labels != said).nonzero()[0])
        raise InputError(
            f"{path}: row {int(rows[wrong])} is of class {int(said[wrong])} there, but of class "
            f"{int(bank.labels[wrong])} by the labels given; are these the official labels?"
        )
    return bank


def _bank(
    path: Path,
    latents: Tensor,
    rows: Tensor,
    labels: Tensor,
    stage: Stage,
    known: dict[str, Any],
) -> LatentBank:
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= len(labels):
        raise InputError(
            f"{path}: latents of rows {low}...{high}, but there are {len(labels)} labels; give "
            "those of the data set that the latents were made for"
        )
    if len(rows.unique()) != len(rows):
        raise InputError(f"{path}: a training row appears twice; drop one of its latents")
    if known["layout"] == "whole" and len(rows) != len(labels):
        raise InputError(
            f"{path}: {len(rows)} latents, but {len(labels)} labels; the layout has one latent "
            "for each training row: give the labels of its data set"
        )
    try:
        return LatentBank(latents, labels[rows], rows, stage, {}, known)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _latents(path: Path, name: str, value: object) -> Tensor:
    if (
        not isinstance(value, Tensor)
        or value.layout is not torch.strided
        or not (value.ndim == 2 and value.numel() and value.is_floating_point())
        # A file of a few bytes can hold a tensor that repeats them over gigabytes.
        or value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise InputError(f"{path}: {name} must be a dense float tensor [n, d] with n, d from 1")
    return value.detach().float().clone()


def _rows(path: Path, i: int, value: object) -> Tensor:
    if not isinstance(value, list | tuple) or not all(type(row) is int for row in value):
        raise InputError(f"{path}: idx_split[{i}] must be a list of row numbers")
    if not value or not all(0 <= row < 2**31 for row in value):
        raise InputError(f"{path}: idx_split[{i}] must name rows from 0 on")
    return torch.tensor(value, dtype=torch.int64)


def _classes(path: Path, value: object, count: int) -> list[int]:
    if isinstance(value, np.ndarray) and value.shape == (count,) and value.dtype.kind in "iu":
        return value.tolist()
    raise InputError(
        f"{path}: classes_split must be an array of {count} class numbers, one for each tensor"
    )


# --- writing ------------------------------------------------------------------------------------


def export_official(path: Path, config: ExportConfig) -> str:
    """Write a stored bank or synthetic set in the layout that the config names.

    ``auto`` is whole where the bank has every row from 0 on, else pieces.

    Returns:
        What was written, in words.

    Raises:
        InputError: the file is neither, or cannot be written in that layout.
    """
    if config.out is None:
        raise InputError("out: give the file to write, --out FILE.pt")
    kind = artefacts.read_metadata(path).get("kind")
    synthetic = SyntheticSet.load(path) if kind == "synthetic" else None
    if config.layout == "pixels":
        if synthetic is None:
            raise InputError(
                f"layout: {path} is no synthetic set, whose generator makes the pixels; give one"
            )
        return _export_pixels(synthetic, config)
    if config.mean or config.std:
        raise InputError("mean, std: for --layout pixels; latents are not normalised")
    bank = LatentBank.load(path) if synthetic is None else synthetic.bank
    complete = torch.equal(bank.rows.sort().values, torch.arange(len(bank)))
    whole = config.layout == "whole" or (config.layout == "auto" and complete)
    out = Path(config.out)
    (write_whole if whole else write_pieces)(bank, out)
    return f"{len(bank):,} latents, {'whole' if whole else 'in pieces'}"


def write_whole(bank: LatentBank, path: Path) -> None:
    """Write ``z_inverse_all`` or ``z_eff_all``, by the bank's stage.

    Raises:
        InputError: a row of 0 ... n-1 is missing, or the latents are random or no vectors.
    """
    layouts: dict[str, str] = {stage: key for key, stage in WHOLE.items()}
    key = layouts.get(_vectors(bank).stage)
    if key is None:
        raise InputError(f"stage: {bank.stage} latents have no layout; give inverted or condensed")
    order = bank.rows.argsort()
    if not torch.equal(bank.rows[order], torch.arange(len(bank))):
        raise InputError(
            "layout: whole needs a latent for every row from 0 on, and some are missing; write "
            "--layout pieces"
        )
    artefacts.write_pt(path, {key: bank.latents[order].contiguous()})


def write_pieces(bank: LatentBank, path: Path) -> None:
    """Write ``z_split``, ``idx_split``, ``train_iter``, and ``classes_split`` where it is needed.

    It is needed where classes are missing; a bank that was read from pieces keeps its order.

    Raises:
        InputError: the latents are no vectors.
    """
    known = _vectors(bank).provenance
    classes = known.get("classes_split") or sorted(set(bank.labels.tolist()))
    members = [(bank.labels == label).nonzero().flatten() for label in classes]
    content: dict[str, Any] = {
        "z_split": [bank.latents[rows].contiguous() for rows in members],
        "idx_split": [bank.rows[rows].tolist() for rows in members],
        "train_iter": known.get("train_iter") or known.get("config", {}).get("steps", 0),
    }
    if "classes_split" in known or classes != list(range(len(classes))):
        content["classes_split"] = np.array(classes)
    artefacts.write_pt(path, content)


def _vectors(bank: LatentBank) -> LatentBank:
    if bank.latents.ndim != 2:
        raise InputError(
            f"latents of shape {tuple(bank.latents.shape[1:])}: the layouts of the field hold "
            "vectors alone"
        )
    if bank.tables:
        raise InputError(
            "latent bank: brings class tables of its own, which the layouts of the field cannot "
            "hold; write --layout pixels of its set"
        )
    return bank


def _export_pixels(synthetic: SyntheticSet, config: ExportConfig) -> str:
    mean, std = config.mean, config.std
    if not mean:
        named = "cifar" in str(synthetic.about.get("dataset", "")).lower()
        known = PUBLISHED.get(synthetic.generator.num_classes) if named else None
        if known is None:
            raise InputError(
                "mean, std: no published constants are known for the set's data set; give --mean "
                "and --std, and the same to who reads the file"
            )
        mean, std = known
    made = synthetic.materialise()
    write_set(Path(config.out or ""), made.images, made.labels, mean, std)
    return f"{len(made):,} normalised images"


# --- networks -----------------------------------------------------------------------------------


def load_convnet(
    path: Path | str,
    mean: PixelConstants = None,
    std: PixelConstants = None,
    norm: Norm | None = None,
) -> Network:
    """A ConvNet of the dataset-condensation family from its plain state dict.

    Width, depth, classes and image size are read off the tensors; activation (ReLU) and pooling
    (average) leave no trace there and are taken for the family's own. Instance, group and layer
    norm look alike there: without ``norm`` it is the family's own, instance norm.

    Args:
        path: a ``.pt`` file.
        mean: that the network's input is normalised with, per channel in [0, 1] units; for
            CIFAR ``data.CIFAR10`` or ``data.CIFAR100`` has both. By default 0.5.
        std: likewise.
        norm: of the file's network, where it is neither instance norm nor none.

    Returns:
        The network, frozen and in evaluation mode: an extractor, a member of a
        ``embedding.NetworkPool``, or to be scored.

    Raises:
        InputError: not a state dict of that layout.
    """
    content = load_foreign(path)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise InputError(f"{path}: not a state dict of tensors")
    state = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    try:
        width, channels = state["features.0.weight"].shape[:2]
        classes, features = state["classifier.weight"].shape
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: no ConvNet of the family: features.0.weight or classifier.weight is missing "
            "or misshapen"
        ) from error
    depth = sum(name.startswith("features.") and t.ndim == 4 for name, t in state.items())
    side = math.isqrt(features // width) << depth
    if norm is None and any("running_mean" in name for name in state):
        norm = "batch"
    if norm is None:
        norm = "instance" if "features.1.weight" in state else "none"
    try:
        network = build_network(
            "convnet",
            (channels, side, side),
            classes,
            mean=mean,
            std=std,
            norm=norm,
            width=width,
            depth=depth,
        )
        network.load_state_dict(state)
    except (RuntimeError, InputError) as error:
        if isinstance(error, InputError) and str(error).startswith(("mean", "std")):
            raise
        raise InputError(f"{path}: its tensors do not fit a ConvNet of the family") from error
    return network.requires_grad_(False).eval()


def save_convnet(network: Network, path: Path | str) -> None:
    """Write the plain state dict that ``load_convnet`` and the family's own code read.

    Raises:
        InputError: it is no ConvNet.
    """
    if not isinstance(network, ConvNet):
        raise InputError(f"network: a {type(network).__name__}, not a ConvNet of the family")
    artefacts.write_pt(
        Path(path), {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    )
