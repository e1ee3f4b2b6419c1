"""Class-conditional generators: load a shipped or saved one, or wrap a function of your own."""

from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from itgan import artefacts
from itgan.devices import pick_device
from itgan.errors import InputError
from itgan.generators.biggan import BigGAN, BigGANShape
from itgan.generators.frozen import FrozenGenerator
from itgan.generators.protocol import ConditionalGenerator, WrappedGenerator, wrap_generator

__all__ = [
    "BigGAN",
    "BigGANShape",
    "ConditionalGenerator",
    "FrozenGenerator",
    "WrappedGenerator",
    "load_generator",
    "shipped",
    "wrap_generator",
]


def shipped(kind: str) -> dict[str, Path]:
    """Files of a kind (``generator``, ``synthetic``) that come with the package, by name."""
    zoo = Path(str(files("itgan") / "zoo"))
    paths = sorted(zoo.glob("*.safetensors"))
    return {p.stem: p for p in paths if artefacts.read_metadata(p).get("kind") == kind}


def load_generator(source: str | Path, device: str | torch.device = "cpu") -> FrozenGenerator:
    """Load a generator, frozen.

    Args:
        source: a shipped name (see ``itgan zoo``), a ``.safetensors`` file of this project, or
            a BigGAN state dict (``.pth``) in the layout of the public CIFAR generators.
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
