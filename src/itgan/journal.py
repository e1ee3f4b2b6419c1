"""What a training tells along its way: ``metrics.jsonl``, sample grids, and TensorBoard's log.

A training that goes on from step n drops what an interrupted one told of later steps, so that
every step is there once.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from itgan import artefacts
from itgan.progress import say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Journal:
    """The log of one training in its directory."""

    def __init__(self, out: Path, begun: int) -> None:
        """Open the log of ``out`` for a training with ``begun`` finished steps."""
        self.out, self.file = out, out / "metrics.jsonl"
        kept = [row for row in self.rows() if row["step"] <= begun]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        artefacts.write_bytes(self.file, lines.encode())
        self._board = _tensorboard(out / "tensorboard", begun)

    def rows(self) -> list[dict[str, Any]]:
        """Every line of ``metrics.jsonl``."""
        return artefacts.read_jsonl(self.file)

    def numbers(
        self, step: int, values: Mapping[str, float], seconds: Mapping[str, float]
    ) -> None:
        """Note numbers of a step, and the ``seconds`` (by name) that went by; on disk at once."""
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        artefacts.append_jsonl(self.file, {"step": step, **values, **rounded})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def picture(self, step: int, image: Image.Image) -> None:
        """Keep a grid of samples."""
        content = io.BytesIO()
        image.save(content, "PNG")
        artefacts.write_bytes(self.out / "samples" / f"{step:07d}.png", content.getvalue())
        if self._board is not None:
            pixels = np.asarray(image.convert("RGB"))
            self._board.add_image("samples", pixels, step, dataformats="HWC")
            self._board.flush()

    def close(self) -> None:
        """End the log."""
        if self._board is not None:
            self._board.close()


def _tensorboard(directory: Path, begun: int) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say(
            "TensorBoard is not installed: the log goes to metrics.jsonl alone; to have both: "
            "pip install 'itgan[tensorboard]'"
        )
        return None
    return SummaryWriter(str(directory), purge_step=begun + 1)
