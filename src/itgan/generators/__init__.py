"""Class-conditional generators: load a shipped or saved one, or wrap a function of your own."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from itgan import artefacts
from itgan.configs import Weights
from itgan.devices import pick_device
from itgan.errors import InputError
from itgan.generators.biggan import BigGAN, BigGANShape
from itgan.generators.diffusers import (
    PREFIX,
    DiffusersGenerator,
    load_diffusers,
    load_diffusers_encoder,
    restore_diffusers,
)
from itgan.generators.encoder import encoder_from_state
from itgan.generators.frozen import FrozenGenerator, folded_shapes
from itgan.generators.protocol import (
    ConditionalGenerator,
    Encoder,
    TunableGenerator,
    WrappedGenerator,
    wrap_generator,
)
from itgan.generators.torchscript import (
    TorchScriptGenerator,
    from_payload,
    is_torchscript,
    load_torchscript,
)
from itgan.splits import unpack_rows

RAW = "raw."  # before the names of the raw weights in a file
ENCODER = "encoder."  # before the names of an autoencoder's encoder
StoredGenerator = FrozenGenerator | TorchScriptGenerator | DiffusersGenerator
"""Generators that a file can hold."""

__all__ = [
    "BigGAN",
    "BigGANShape",
    "ConditionalGenerator",
    "DiffusersGenerator",
    "Encoder",
    "FrozenGenerator",
    "StoredGenerator",
    "TorchScriptGenerator",
    "TunableGenerator",
    "WrappedGenerator",
    "count_seen",
    "folded_shapes",
    "load_encoder",
    "load_generator",
    "restore_generator",
    "shipped",
    "wrap_generator",
]


def shipped(kind: str) -> dict[str, Path]:
    """Files of a kind (``generator``, ``synthetic``) that come with the package, by name."""
    zoo = Path(str(files("itgan") / "zoo"))
    paths = sorted(zoo.glob("*.safetensors"))
    return {p.stem: p for p in paths if artefacts.read_metadata(p).get("kind") == kind}


def find_generator(source: str | Path) -> Path:
    """The file of a generator, given by its path or a shipped name.

    Raises:
        InputError: neither a file's path nor a shipped name.
    """
    path = Path(source)
    if path.suffix or path.exists():
        return path
    names = shipped("generator")
    if str(source) not in names:
        raise InputError(
            f"generator {str(source)!r}: no such file, and not one of the shipped ones: "
            f"{', '.join(names)}"
        )
    return names[str(source)]


def load_generator(
    source: str | Path,
    device: str | torch.device = "cpu",
    weights: Weights = "average",
    recalibrate: bool = False,
    *,
    latent_dim: int | None = None,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> StoredGenerator:
    """Load a generator, frozen.

    Other weights, statistics or latents make another generator, with a fingerprint of its own.

    Args:
        source: a shipped name (see ``itgan zoo``), a ``.safetensors`` file of this project, a
            BigGAN state dict (``.pth``) in the layout of the public CIFAR generators, a
            TorchScript module (``.pt``) that says how it is called (``generators.torchscript``),
            or ``diffusers:`` and a folder with an ``AutoencoderKL`` (``generators.diffusers``).
        device: where it computes.
        weights: the average along the training, or the raw weights of its last step, where the
            file holds them.
        recalibrate: take the statistics of a BigGAN's norms anew, from 2,000 samples.
        latent_dim: keep so many dimensions of a BigGAN's latents
            (``FrozenGenerator.reduced``); all by default.
        num_classes: of the data, for a generator that takes no labels (diffusers).
        image_shape: of the data, for a generator that makes images of any size (diffusers).

    Raises:
        InputError: unknown name, a file that is damaged or of another layout, or one without the
            weights or the norms that are asked for.
    """
    where = pick_device(str(device))
    if str(source).startswith(PREFIX):
        _refuse_choices(str(source), weights, recalibrate, latent_dim)
        return load_diffusers(str(source), where, num_classes, image_shape)
    path = find_generator(source)
    if path.suffix == ".safetensors":
        tensors, _ = artefacts.load(path, "generator")
        state = _select_weights(path, tensors, weights)
    elif path.suffix in (".pt", ".pth"):
        if is_torchscript(path):
            _refuse_choices(str(path), weights, recalibrate, latent_dim)
            return load_torchscript(path, where)
        if weights == "raw":
            raise _only_one_set(str(path))
        state = artefacts.load_foreign(path)
    else:
        raise InputError(f"{path}: {_refusal(path)}")
    try:
        model = biggan_from_state(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if recalibrate:
        model.to(where if where.type == "cuda" else "cpu").recalibrate()
    generator = FrozenGenerator.from_biggan(model.cpu())  # folded alike wherever it computes
    return (generator if latent_dim is None else generator.reduced(latent_dim)).to(where)


def _refusal(path: Path) -> str:
    """Why a file of this format is not read, and what to do."""
    remedy = "export its PyTorch module with torch.jit.trace as a .pt file and give that"
    if path.suffix in (".pkl", ".pickle"):
        return f"a pickle runs code when it is loaded; where you trust it, {remedy}"
    if path.suffix == ".onnx":
        return f"an ONNX graph has no gradient in its latents; {remedy}"
    return (
        "generators are read from .safetensors, .pth or .pt files, and from diffusers:FOLDER; "
        "convert it to one of these first"
    )


def _refuse_choices(
    source: str, weights: Weights, recalibrate: bool, latent_dim: int | None
) -> None:
    """Weights, statistics and dimensions can be chosen of a BigGAN only."""
    if weights == "raw":
        raise _only_one_set(source)
    for name, given in (("recalibrate", recalibrate), ("latent_dim", latent_dim is not None)):
        if given:
            raise InputError(f"{source}: {name} is for BigGANs, and this is none; leave it out")


def _select_weights(
    path: Path, tensors: Mapping[str, Tensor], weights: Weights
) -> dict[str, Tensor]:
    """The averaged or the raw state dict of a file that may hold both, and an encoder.

    Raises:
        InputError: there are no raw weights.
    """
    if weights == "average":
        return {n: t for n, t in tensors.items() if not n.startswith((RAW, ENCODER))}
    raw = _under(tensors, RAW)
    if not raw:
        raise _only_one_set(str(path))
    return raw


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _only_one_set(source: str) -> InputError:
    return InputError(
        f"{source}: holds no raw weights beside its own; load it with weights average, or train a "
        "generator with itgan pretrain, whose files hold both"
    )


def count_seen(source: str | Path, dataset: str, rows: Int64[Tensor, " n"]) -> int | None:
    """How many of these training rows of a data set a generator was trained on, by its file.

    None if the file does not tell, or tells of another data set.

    Raises:
        InputError: no such generator, or its record is damaged.
    """
    if str(source).startswith(PREFIX) or find_generator(source).suffix != ".safetensors":
        return None
    path = find_generator(source)
    metadata = artefacts.read_metadata(path)
    with artefacts.described(path):
        record = metadata.get("trained_on", {}).get("rows")
        if record is None or metadata.get("dataset") != dataset:
            return None
        return int(torch.isin(rows, unpack_rows(record)).sum())


def load_encoder(source: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Load the encoder of an autoencoder: images in [-1, 1] and labels -> latents.

    Args:
        source: a shipped name, a ``.safetensors`` file from ``itgan pretrain``, or ``diffusers:``
            and a folder with an ``AutoencoderKL``.
        device: where it computes.

    Raises:
        InputError: the file is damaged, or holds a generator alone.
    """
    where = pick_device(str(device))
    if str(source).startswith(PREFIX):
        return load_diffusers_encoder(str(source), where)
    path = find_generator(source)
    stored = path.suffix == ".safetensors"
    tensors = artefacts.load(path, "generator")[0] if stored else {}
    encoder = _under(tensors, ENCODER)
    if not encoder:
        raise InputError(
            f"{path}: holds no encoder; give a file that `itgan pretrain ae-digits` or another "
            "autoencoder preset made, or diffusers:FOLDER"
        )
    try:
        shape = BigGANShape.of(_select_weights(path, tensors, "average"))
        model = encoder_from_state(encoder, shape)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return model.float().to(where)  # shipped files hold large tensors in 16 bits


def restore_generator(
    tensors: Mapping[str, Tensor], conventions: Mapping[str, Any], device: torch.device | str
) -> StoredGenerator:
    """A generator from what its ``tensors()`` and ``conventions()`` gave.

    Raises:
        InputError: tensors are missing, misshapen or unreadable, or the form is unknown.
    """
    form = conventions.get("form")
    if form == "biggan":
        return FrozenGenerator(tensors).to(device)
    if form == "torchscript" and "torchscript" in tensors:
        payload = tensors["torchscript"].numpy().tobytes()
        return from_payload(payload, dict(conventions), torch.device(device))
    if form == "diffusers":
        return restore_diffusers(tensors, conventions, torch.device(device))
    raise InputError(f"holds a generator of form {form!r}, which this itgan cannot read")


def biggan_from_state(state: object) -> BigGAN:
    """A BigGAN with the weights of a state dict; ``module.`` prefixes are dropped.

    Raises:
        InputError: tensors are missing, extra, misshapen or not finite.
    """
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError("not a state dict of tensors")
    if any(t.is_complex() for t in state.values()):
        raise InputError("not a state dict of real numbers")
    tensors = {str(name).removeprefix("module."): t.float() for name, t in state.items()}
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise InputError(f"tensor {bad[0]} holds numbers that are not finite")
    with torch.device("meta"):  # draws no random numbers, and takes no memory before the check
        model = BigGAN(BigGANShape.of(tensors))
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    wrong = sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))
    if wrong:
        raise InputError(
            f"tensor {wrong[0]} has shape {found.get(wrong[0], 'none')}, expected "
            f"{expected.get(wrong[0], 'none')} in a BigGAN state dict"
        )
    model.load_state_dict(tensors, assign=True)
    return model.eval()
