"""Make the shipped file and card of a finished training.

    python training/ship.py runs/NAME src/itgan/zoo/NAME

The file keeps the averaged weights alone, large tensors in 16 bits. The card is the training's,
whose figures were measured before that rounding, with the shipped file's size and hash. The log
and the configuration are copied beside this script.
"""

import shutil
import sys
from pathlib import Path

import torch

from itgan import artefacts
from itgan.generators import RAW, load_generator
from itgan.randomness import derive

LARGE = 4096  # elements


def moved(one: Path, other: Path) -> float:
    """The furthest that a pixel of 100 samples is from itself in another file."""
    a, b = load_generator(one, "cpu"), load_generator(other, "cpu")
    latents = torch.randn(100, *a.latent_shape, generator=derive(0, "shipped"))
    labels = torch.arange(100) % a.num_classes
    with torch.no_grad():
        return float((a(latents, labels) - b(latents, labels)).abs().max())


def main(run: Path, place: Path) -> None:
    """Write PLACE.safetensors and PLACE.md."""
    source, file = run / "generator.safetensors", place.with_suffix(".safetensors")
    tensors, metadata = artefacts.load(source, "generator")
    kept = {
        name: tensor.half() if tensor.numel() >= LARGE else tensor
        for name, tensor in tensors.items()
        if not name.startswith(RAW)
    }
    del metadata["sha256"], metadata["format_version"]
    metadata["weights"] = "average"
    metadata["config"]["out"] = None
    artefacts.save(file, kept, metadata)
    lines = (run / "card.md").read_text().splitlines()
    size, digest = file.stat().st_size, artefacts.read_metadata(file)["sha256"]
    for i, line in enumerate(lines):
        if line.startswith("- weights in the file:"):
            lines[i] = (
                "- weights in the file: average, in 16 bits; what is below was measured before "
                f"this rounding, which moves pixels by at most {moved(source, file):.1g} of the "
                "range of 2"
            )
        if line.startswith("- file:"):
            lines[i] = f"- file: {size:,} bytes, tensors' sha256 `{digest}`"
    place.with_suffix(".md").write_text("\n".join(lines) + "\n")
    log = Path(__file__).parent / place.name
    log.mkdir(exist_ok=True)
    shutil.copy(run / "metrics.jsonl", log / "metrics.jsonl")
    settings = artefacts.read_json(run / "config.json") | {
        "dataset": metadata["dataset"],
        "out": None,
    }
    artefacts.write_json(log / "config.json", settings)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
