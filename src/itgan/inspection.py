"""What an artefact is, in words."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from itgan import artefacts
from itgan.errors import InputError


def describe(path: Path) -> str:
    """Kind, metadata and tensors of a file; its hash is checked.

    Raises:
        InputError: no such file, unreadable or damaged.
    """
    if path.suffix in (".pt", ".pth"):
        content = artefacts.load_foreign(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: holds a {type(content).__name__}, expected a state dict")
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        metadata: dict[str, Any] = {
            "kind": "foreign PyTorch file",
            "other entries": len(content) - len(tensors),
        }
    else:
        tensors, metadata = artefacts.load(path)
    with artefacts.described(path):
        return _describe(path, tensors, metadata)


def _describe(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    history = metadata.pop("history", {})
    lines = [f"{path}", f"{path.stat().st_size:,} bytes, of which tensors {total:,}", ""]
    lines += [f"{_text(key)}: {_text(value)}" for key, value in sorted(metadata.items())]
    for name, values in history.items():
        if len(values) == 1:
            told = f"{values[0]:.6g}"
        else:
            told = f"{len(values)} values" + (f", last {values[-1]:.6g}" if values else "")
        lines.append(f"history.{_text(name)}: {told}")
    lines.append("")
    for name, tensor in sorted(tensors.items()):
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        lines.append(f"  {_text(name):<36} {str(tensor.dtype).removeprefix('torch.'):<9} {shape}")
    return "\n".join(lines)


def _text(value: object) -> str:
    """Text as it is if it can be printed on one line: no control characters of a terminal."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
