"""Generators as TorchScript files: differentiable, and without Python code of their own.

A file must say how it is called. That is read from, in this order, the entry ``itgan.json`` that
``torch.jit.save(..., _extra_files=...)`` stores in the file, a file of the same name with the
suffix ``.json`` beside it, or attributes of the scripted module:

    {"latent_shape": [16], "num_classes": 10, "image_shape": [1, 8, 8],
     "value_range": [-1, 1], "labels": "index"}

``value_range`` and ``labels`` have these defaults. What a file may hold is in ``vetting``.
"""

import hashlib
import json
import warnings
import zipfile
from operator import index
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from itgan.errors import InputError
from itgan.generators.protocol import LabelForm, WrappedGenerator, wrap_generator
from itgan.generators.vetting import load_vetted

FIELDS = ("latent_shape", "num_classes", "image_shape", "value_range", "labels")
ENTRY = "itgan.json"


class TorchScriptGenerator(WrappedGenerator):
    """A wrapped TorchScript module that can be stored, since it is a file already."""

    payload: bytes

    def tensors(self) -> dict[str, Tensor]:
        """The file, as bytes."""
        return {"torchscript": torch.frombuffer(bytearray(self.payload), dtype=torch.uint8)}

    def conventions(self) -> dict[str, Any]:
        """How the module is called, as JSON."""
        return {
            "form": "torchscript",
            "latent_shape": list(self.latent_shape),
            "num_classes": self.num_classes,
            "image_shape": list(self.image_shape),
            "value_range": list(self.value_range),
            "labels": self.labels,
        }


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def load_torchscript(path: Path, device: torch.device) -> TorchScriptGenerator:
    """Load a TorchScript file as a generator, with all checks of ``wrap_generator``.

    Raises:
        InputError: the file is damaged, does not say how it is called, or fails a check.
    """
    try:
        return from_payload(path.read_bytes(), _beside(path), device)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def from_payload(
    payload: bytes, conventions: dict[str, Any], device: torch.device
) -> TorchScriptGenerator:
    """A generator from a file's bytes; conventions inside the file win.

    Raises:
        InputError: see ``load_torchscript``.
    """
    extra = {ENTRY: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is in maintenance, and says so
        module = load_vetted(payload, device, extra)
    module.eval()
    inside = {f: getattr(module, f) for f in FIELDS if hasattr(module, f)}
    found = {**inside, **conventions, **_parse(extra[ENTRY])}
    missing = [field for field in FIELDS[:3] if field not in found]
    if missing:
        raise InputError(
            f"a TorchScript file that does not tell its {', '.join(missing)}; write it into a "
            "file of the same name with the suffix .json beside it, as "
            '{"latent_shape": [16], "num_classes": 10, "image_shape": [1, 8, 8]}'
        )
    labels = found.get("labels", "index")
    if labels not in get_args(LabelForm):
        raise InputError(f"labels={labels!r}: choose {', '.join(get_args(LabelForm))}")
    try:
        low, high = found.get("value_range", (-1, 1))
        colours, height, width = found["image_shape"]
        checked = wrap_generator(
            module,
            latent_shape=tuple(index(n) for n in found["latent_shape"]),
            num_classes=index(found["num_classes"]),
            image_shape=(index(colours), index(height), index(width)),
            value_range=(low, high),
            labels=labels,
            device=device,
        )
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "its latent_shape or image_shape is no list of whole numbers, value_range no pair of "
            "numbers, or num_classes no whole number; correct its description"
        ) from error
    generator = TorchScriptGenerator(
        module,
        checked.latent_shape,
        checked.num_classes,
        checked.image_shape,
        checked.value_range,
        checked.labels,
        checked.device,
    )
    generator.payload = payload
    described = json.dumps(generator.conventions(), sort_keys=True).encode()
    generator.fingerprint = hashlib.sha256(payload + described).hexdigest()
    return generator


def _beside(path: Path) -> dict[str, Any]:
    sidecar = path.with_suffix(".json")
    return _parse(sidecar.read_bytes()) if sidecar.exists() else {}


def _parse(text: str | bytes) -> dict[str, Any]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("its description is not JSON") from error
    if not isinstance(found, dict):
        raise InputError("its description is not a JSON object")
    return {field: found[field] for field in FIELDS if field in found}
