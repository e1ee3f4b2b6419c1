"""Class-conditional generators: load a shipped or saved one, or wrap a function of your own."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itgan import artefacts
from itgan.devices import pick_device
from itgan.errors import InputError
from itgan.generators.biggan import BigGAN, BigGANShape
from itgan.generators.frozen import FrozenGenerator, folded_shapes
from itgan.generators.protocol import ConditionalGenerator, WrappedGenerator, wrap_generator
from itgan.generators.torchscript import (
    TorchScriptGenerator,
    from_payload,
    is_torchscript,
    load_torchscript,
)

StoredGenerator = FrozenGenerator | TorchScriptGenerator
"""Generators that a file can hold."""

__all__ = [
    "BigGAN",
    "BigGANShape",
    "ConditionalGenerator",
    "FrozenGenerator",
    "StoredGenerator",
    "TorchScriptGenerator",
    "WrappedGenerator",
    "folded_shapes",
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


def load_generator(source: str | Path, device: str | torch.device = "cpu") -> StoredGenerator:
    """Load a generator, frozen.

    Args:
        source: a shipped name (see ``itgan zoo``), a ``.safetensors`` file of this project, a
            BigGAN state dict (``.pth``) in the layout of the public CIFAR generators, or a
            TorchScript module (``.pt``) that says how it is called (``generators.torchscript``).
        device: where it computes.

    Raises:
        InputError: unknown name, or a file that is damaged or of another layout.
    """
    path = Path(source)
    if path.suffix == "" and not path.exists():
        names = shipped("generator")
        if str(source) not in names:
            raise InputError(
                f"generator {str(source)!r}: no such file, and not one of the shipped ones: "
                f"{', '.join(names)}"
            )
        path = names[str(source)]
    if path.suffix == ".safetensors":
        state, _ = artefacts.load(path, "generator")
    elif path.suffix in (".pt", ".pth"):
        if is_torchscript(path):
            return load_torchscript(path, pick_device(str(device)))
        state = artefacts.load_foreign(path)
    else:
        raise InputError(
            f"{path}: generators are read from .safetensors, .pth or .pt files; formats that "
            "run code when loaded, or have no gradient, must be converted to one of these first"
        )
    try:
        frozen = FrozenGenerator.from_biggan(biggan_from_state(state))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return frozen.to(pick_device(str(device)))


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
    raise InputError(f"holds a generator of form {form!r}, which this itgan cannot read")


def biggan_from_state(state: object) -> BigGAN:
    """A BigGAN with the weights of a state dict; ``module.`` prefixes are dropped.

    Raises:
        InputError: tensors are missing, extra, misshapen or not finite.
    """
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError("not a state dict of tensors")
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
