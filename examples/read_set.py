"""Read a synthetic set with torch and safetensors alone: a generator, latents and labels.

    python examples/read_set.py digits.itgan.safetensors

The file holds the constants of a BigGAN: a linear layer, blocks that double the resolution, an
output layer. Norms are tables `scale` and `shift`, with a row for each class. int8 tensors come
with a `.step` to multiply by.
"""

import json
import sys

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor


def read(path: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors as fp32 (labels as int64), and the metadata."""
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["itgan"])
    tensors = {}
    for name, tensor in stored.items():
        if name in ("labels", "rows"):
            tensors[name] = tensor.long()
        elif not name.endswith(".step"):
            tensors[name] = tensor.float() * stored.get(f"{name}.step", torch.ones(()))
    return tensors, metadata


def generate(t: dict[str, Tensor], latents: Tensor, labels: Tensor) -> Tensor:
    """Images [n, c, h, w] in [-1, 1]."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = t[f"generator.{name}.weight"]
        return F.conv2d(x, weight, t[f"generator.{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        scale, shift = t[f"generator.{name}.scale"], t[f"generator.{name}.shift"]
        if scale.ndim == 2:
            scale, shift = scale[labels], shift[labels]
        return F.relu(x * scale[..., None, None] + shift[..., None, None])

    x = F.linear(latents, t["generator.linear.weight"], t["generator.linear.bias"])
    x, block = x.unflatten(1, (-1, 4, 4)), 0
    while f"generator.blocks.{block}.conv1.weight" in t:
        name = f"blocks.{block}"
        h = F.interpolate(norm(f"{name}.bn1", x), scale_factor=2)
        h = conv(f"{name}.conv2", norm(f"{name}.bn2", conv(f"{name}.conv1", h)))
        x = h + F.interpolate(conv(f"{name}.conv_sc", x), scale_factor=2)
        block += 1
    return torch.tanh(conv("output.conv", norm("output.bn", x)))


if __name__ == "__main__":
    tensors, about = read(sys.argv[1])
    images = generate(tensors, tensors["latents"], tensors["labels"])
    print(about["stage"], "images", tuple(images.shape), "labels", tensors["labels"].tolist())
