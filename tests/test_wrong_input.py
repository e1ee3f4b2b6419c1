"""Wrong input of every kind: one line that names it and the remedy, and nothing half-written.

`docs/wrong-input.md` is made from this table: ITGAN_WRITE_DOCS=1 writes it anew.
"""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from itgan import artefacts, cli, configs, flags, run_configs
from itgan.claims import read_figures
from itgan.cli import main
from itgan.data import ImageSet
from itgan.embedding import NetworkSpec, load_network
from itgan.errors import InputError
from itgan.file_configs import GenerateConfig, ScoreConfig
from itgan.generator_configs import PretrainingConfig
from itgan.generators import FrozenGenerator, wrap_generator
from itgan.generators.frozen import fold
from itgan.latents import LatentBank, check_fits, sample_latents
from itgan.recipes import PRETRAININGS, RECIPES
from itgan.sources import PixelSet, SyntheticSet

PAGE = Path(__file__).parents[1] / "docs" / "wrong-input.md"
SMALL = {"latent_shape": (4,), "num_classes": 10, "image_shape": (1, 8, 8)}


class Case(NamedTuple):
    """A kind of wrong input: how to make it, what is called, what must be said."""

    kind: str
    call: str | Callable[..., object]  # arguments of `itgan`, or a function of ``Things``
    told: str
    make: Callable[..., object] | None = None


class Things:
    """What cases are made from; files go into the present directory."""

    def __init__(self, generator, bank, images, biggan):
        self.generator, self.bank, self.images, self.biggan = generator, bank, images, biggan
        artefacts.save("g.safetensors", biggan.state_dict(), {"kind": "generator"})
        SyntheticSet(generator, bank, about={"dataset": "digits"}).save("s.safetensors")
        bank.save("b.safetensors")

    def bank_with(self, **change):
        fields = ("latents", "labels", "rows", "stage", "history", "provenance")
        return LatentBank(**{f: change.get(f, getattr(self.bank, f)) for f in fields})

    def images_with(self, **change):
        fields = ("images", "labels", "rows", "class_names", "mean", "std")
        return ImageSet(**{f: change.get(f, getattr(self.images, f)) for f in fields})


def resealed(path, change=None, tensors=None):
    """The set in s.safetensors with other metadata or tensors, its hashes in order."""
    found, metadata = artefacts.load("s.safetensors")
    metadata.pop("format_version"), metadata.pop("sha256")
    artefacts.save(path, {**found, **(tensors or {})}, {**metadata, **(change or {})})


def kept(name, text):
    Path("kept").mkdir()
    Path("kept", name).write_text(text)


def flipped(path, target, offset):
    content = bytearray(Path(path).read_bytes())
    content[offset] ^= 1
    Path(target).write_bytes(content)


def flip_metadata(things):
    content = Path("s.safetensors").read_bytes()
    assert b"digits" in content
    Path("x.safetensors").write_bytes(content.replace(b"digits", b"digitt"))


class Canary:
    """Unpickling this makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("canary"),)


def folder_of(classes, size=8, name="folder"):
    for label in range(classes):
        (Path(name) / f"c{label}").mkdir(parents=True)
        for i in range(6):
            Image.new("L", (size, size)).save(Path(name) / f"c{label}" / f"{i}.png")
    return Path(name)


def arrays(**change):
    n = np.arange(20)
    good = {
        "x_train": np.zeros((20, 8, 8), np.uint8),
        "y_train": n % 2,
        "x_test": np.zeros((20, 8, 8), np.uint8),
        "y_test": n % 2,
    }
    made = {k: v for k, v in {**good, **change}.items() if v is not None}
    np.savez("x.npz", **made)


def claiming(shape):
    """An npz whose header claims a shape."""
    arrays()
    with np.load("x.npz") as file:
        content = {key: file[key] for key in file.files}
    with zipfile.ZipFile("x.npz", "w") as archive:
        for key, array in content.items():
            stream = io.BytesIO()
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
            if key == "x_train":
                header["shape"] = shape
            np.lib.format.write_array_header_1_0(stream, header)
            archive.writestr(f"{key}.npy", stream.getvalue() + array.tobytes())


def pt(images, labels):
    torch.save({"data": [[images, labels]]}, "x.pt")


class Scripted(torch.nn.Module):
    """A TorchScript generator of digits."""

    def forward(self, z, y):
        return torch.tanh(z + y[:, None]).view(-1, 1, 8, 8)


class Writes(Scripted):
    """Its code writes a file."""

    def forward(self, z, y):
        torch.save(z, "canary")
        return z.view(-1, 1, 8, 8)


class Endless(Scripted):
    """Its code never ends."""

    def forward(self, z, y):
        n = 0
        while n < 1:
            n -= 1
        return (z + n).view(-1, 1, 8, 8)


class AtLoading(torch.nn.Module):
    """Its code would run while it is loaded."""

    def __init__(self):
        super().__init__()
        self.training = False

    def forward(self, z, y):
        return z.view(-1, 1, 8, 8)

    @torch.jit.export
    def __getstate__(self):
        return (torch.zeros(1), self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        torch.save(state[0], "canary")
        self.training = state[1]


def script(module, edit=None, **change):
    about = {"latent_shape": [64], "num_classes": 10, "image_shape": [1, 8, 8], **change}
    torch.jit.save(
        torch.jit.script(module), "x.pt", _extra_files={"itgan.json": json.dumps(about)}
    )
    Path("canary").unlink(missing_ok=True)
    if edit:
        with zipfile.ZipFile("x.pt") as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile("x.pt", "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, edit(name, content))


def hidden_call(name, content):
    """A call that a look for ``save(`` does not find."""
    return content.replace(b'torch.save(z, "canary")', b'_9 = [(torch.save # x\n(z, "canary"))]')


def pickled_canary(name, content):
    return pickle.dumps(Canary(), 2) if name.endswith("data.pkl") else content


def run_of(**fields):
    folder = Path("run")
    folder.mkdir()
    config = RECIPES["digits"]().model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def training_of():
    Path("run").mkdir()
    Path("run/config.json").write_text(PRETRAININGS["digits"]().model_dump_json())


def wrap(fn, **change):
    return lambda things: wrap_generator(fn, **{**SMALL, **change})


def linear(z, y):
    weight = torch.linspace(-1, 1, 256).view(4, 64)
    return torch.tanh(z @ weight + y[:, None] / 10).view(-1, 1, 8, 8)


CASES = [
    # What is named and does not exist
    Case("an unknown command", "bogus", "command 'bogus': choose one of plan, run, "),
    Case("no recipe", "run", "run: name a recipe: digits"),
    Case("an unknown recipe", "run nobody", "recipe 'nobody': choose one of digits"),
    Case("an unknown preset", "pretrain nobody", "preset 'nobody': choose one of digits"),
    Case("an unknown flag", "run digits --sed 3", "--sed, 3; perhaps --seed"),
    Case("a stray word", "run digits stray", "stray"),
    Case("a flag without a value", "run digits --seed", "'--seed'"),
    Case("an unknown source", "run digits --sources elsewhere", "'--sources'. Expected one of"),
    Case("a source twice", "run digits --sources gan gan", "sources: give at least one value"),
    Case("an unknown data set", "run digits --dataset nowhere", "data set 'nowhere' is unknown"),
    Case("an unknown network", "run digits --evaluation.network x", "evaluation.network: no 'x'"),
    Case(
        "a network that cannot be imported",
        "run digits --evaluation.network no.such:net",
        "evaluation.network: cannot import 'no.such:net'",
    ),
    Case(
        "an unknown operation", "run digits --dm.augmentation blur", "dm.augmentation: no operat"
    ),
    Case(
        "an unknown generator", "run digits --generator x", "generator 'x': no such file, and not"
    ),
    Case(
        "a format that runs code",
        "run digits --generator x.pkl",
        "x.pkl: a pickle runs code when it is loaded; ",
    ),
    Case("an unknown device", "run digits --device warp", "device 'warp' cannot be used here"),
    Case(
        "an unknown precision", "run digits --dm.precision fp8", "'--dm.precision'. Expected one"
    ),
    Case("an unknown set", "score x", "x: no such file, and not a shipped set"),
    Case("an unknown file", "inspect x", "x: no such file"),
    Case("an unknown format", "generate digits-10 --format bmp", "'--format'. Expected one of"),
    # Numbers
    Case(
        "a number below its bounds", "run digits --seed=-4", "seed: input should be greater than"
    ),
    Case(
        "zero steps", "run digits --dm.steps 0", "dm.steps: input should be greater than or equal"
    ),
    Case(
        "layers of gradients",
        "run digits --condensation.matching gradient --condensation.layers all",
        "layers: gradients are of all layers already",
    ),
    Case(
        "a regression in a network for each class",
        "run digits --condensation.matching regression --condensation.network-per class",
        "network_per: a regression tells classes apart",
    ),
    Case(
        "untrained networks that classify",
        "run digits --condensation.lambda-class 1",
        "condensation.lambda_class=1: untrained networks cannot classify; give pool.kind snapsho",
    ),
    Case(
        "gains in several shards",
        "run digits --sources itgan-plus --plus.shard-per-class 3 --plus.gains-rate 0.001",
        "plus.gains_rate=0.001: shard_per_class=3 deals the 10 latents of a class into",
    ),
    Case(
        "NaN", "run digits --dm.learning-rate nan", "dm.learning_rate: input should be a finite n"
    ),
    Case(
        "infinity", "run digits --dm.learning-rate 1e400", "dm.learning_rate: input should be a fi"
    ),
    Case("half a step", "run digits --dm.steps 0.5", "--dm.steps"),
    Case("no number", "run digits --dm.steps many", "--dm.steps"),
    Case(
        "half an image held out", "run digits --validation 1.5", "validation: give 0, a whole numb"
    ),
    Case(
        "all images held out",
        "run digits --validation 100000",
        "validation must be 0, a number of",
    ),
    Case("more latents than images", "run digits --latents-per-class 5000", "class '0' has only"),
    Case("no seeds", "run digits --latent-seeds", "latent_seeds: "),
    Case(
        "a window upside down",
        "run digits --condensation.pool.window 0.9 0.1",
        "pool.window: 0.9 is above 0.1; give the lower bound first",
    ),
    Case("a constant too few", "score digits-10 --mean 0.5", "mean, std: give both"),
    # Files of ours
    Case(
        "a truncated file",
        "inspect x.safetensors",
        "x.safetensors: not a readable safetensors",
        lambda t: Path("x.safetensors").write_bytes(Path("s.safetensors").read_bytes()[:-9]),
    ),
    Case(
        "a flipped bit in a tensor",
        "score x.safetensors",
        "x.safetensors: damaged: its tensors",
        lambda t: flipped("s.safetensors", "x.safetensors", -1),
    ),
    Case(
        "a changed letter in the metadata",
        "score x.safetensors",
        "damaged: its metadata do not",
        flip_metadata,
    ),
    Case(
        "a foreign safetensors file",
        "inspect x.safetensors",
        "but not one that itgan wrote",
        lambda t: safetensors.torch.save_file({"a": torch.zeros(1)}, "x.safetensors"),
    ),
    Case(
        "a file of another kind", "score b.safetensors", "holds a 'bank', expected a 'synthetic'"
    ),
    Case(
        "a bank as a generator", "run digits --generator b.safetensors", "holds a 'bank', expected"
    ),
    Case(
        "metadata nested 100,000 deep",
        "inspect x.safetensors",
        "not a readable safetensors file",
        lambda t: safetensors.torch.save_file(
            {}, "x.safetensors", {"itgan": "[" * 100_000 + "]" * 100_000}
        ),
    ),
    Case(
        "a header that claims 10^12 numbers",
        "inspect x.safetensors",
        "not a readable safetensors",
        lambda t: Path("x.safetensors").write_bytes(
            (66).to_bytes(8, "little")
            + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
            + b"0000"
        ),
    ),
    Case(
        "a set without its rows",
        "score x.safetensors",
        "metadata or tensors are not as itgan writes",
        lambda t: artefacts.save(
            "x.safetensors",
            {k: v for k, v in artefacts.load("s.safetensors")[0].items() if k != "rows"},
            {k: v for k, v in artefacts.load("s.safetensors")[1].items() if k != "sha256"},
        ),
    ),
    Case(
        "a set of an unknown stage",
        "score x.safetensors",
        "latent bank: stage 'x'; give one of",
        lambda t: resealed("x.safetensors", {"stage": "x"}),
    ),
    Case(
        "a set with a class name too few",
        "score x.safetensors",
        "9 class names for 10 classes",
        lambda t: resealed("x.safetensors", {"about": {"class_names": list("abcdefghi")}}),
    ),
    Case(
        "a set of labels beyond the classes",
        "score x.safetensors",
        "label 200, but the generator",
        lambda t: resealed(
            "x.safetensors", tensors={"labels": torch.full((40,), 200, dtype=torch.uint8)}
        ),
    ),
    Case(
        "a set whose generator holds infinity",
        "score x.safetensors",
        "holds NaN or infinity",
        lambda t: resealed(
            "x.safetensors", tensors={"generator.output.conv.bias": torch.tensor([torch.inf])}
        ),
    ),
    Case(
        "a scale that would fill the memory",
        "score x.safetensors",
        "latents.step does not fit",
        lambda t: resealed(
            "x.safetensors",
            tensors={
                "latents": torch.zeros(100_000, 1, dtype=torch.int8),
                "latents.step": torch.zeros(1, 100_000),
            },
        ),
    ),
    Case(
        "a network of unlikely size",
        lambda t: load_network(Path("x.safetensors")),
        "are too large; make it again",
        lambda t: artefacts.save(
            "x.safetensors",
            {},
            {
                "kind": "network",
                "spec": {
                    "name": "convnet",
                    "image_shape": [3, 10**9, 8],
                    "num_classes": 2,
                    "mean": [0.5],
                    "std": [0.5],
                },
            },
        ),
    ),
    Case(
        "weights of another network",
        lambda t: load_network(Path("x.safetensors")),
        "its weights do not fit vgg19",
        lambda t: artefacts.save(
            "x.safetensors",
            {},
            {
                "kind": "network",
                "spec": vars(NetworkSpec("vgg19", (3, 32, 32), 10, (0.5,), (0.5,))),
            },
        ),
    ),
    # Banks
    Case(
        "a bank of another generator",
        lambda t: check_fits(t.generator, t.bank_with(provenance={"generator": "feed"}), t.images),
        "latent bank: made with generator feed…, but this one is",
    ),
    Case(
        "latents of another shape",
        lambda t: check_fits(t.generator, t.bank_with(latents=torch.zeros(40, 5)), t.images),
        "latents of shape (5,), but the generator takes (8,)",
    ),
    Case(
        "a bank of more classes",
        lambda t: check_fits(t.generator, t.bank_with(labels=t.bank.labels + 1), t.images),
        "label 10, but the generator has only classes 0...9",
    ),
    Case(
        "data of more classes",
        lambda t: check_fits(t.generator, t.bank, t.images_with(class_names=tuple("abcdefghijk"))),
        "has 10 classes, but the data set has 11",
    ),
    Case(
        "latents that are NaN",
        lambda t: t.bank_with(latents=t.bank.latents * torch.nan),
        "latents hold NaN or infinity",
    ),
    Case(
        "labels of another length",
        lambda t: t.bank_with(labels=t.bank.labels[1:]),
        "40 latents, but labels of shape (39,)",
    ),
    Case(
        "an empty bank",
        lambda t: t.bank.select(torch.tensor([], dtype=torch.int64)),
        "it is empty",
    ),
    Case(
        "banks of different shapes to merge",
        lambda t: LatentBank.merge([t.bank, t.bank_with(latents=torch.zeros(40, 3))]),
        "the banks have different latent shapes",
    ),
    Case(
        "weights beyond fp16",
        lambda t: SyntheticSet(t.generator, t.bank_with(latents=t.bank.latents + 1e6)).save(
            "x.safetensors", "fp16"
        ),
        "dtype fp16: latents goes beyond 65504, the end of fp16; use fp32",
    ),
    # Generators
    Case(
        "a text as a generator",
        "run digits --generator x.pth",
        "x.pth: holds more than tensors",
        lambda t: Path("x.pth").write_text("<html>404 Not Found</html>"),
    ),
    Case(
        "a pickle that would run a command",
        "run digits --generator x.pth",
        "x.pth: holds more than tensors",
        lambda t: torch.save({"a": Canary()}, "x.pth"),
    ),
    Case(
        "such a pickle in a set",
        "score x.pt --dataset digits",
        "x.pt: holds more than tensors",
        lambda t: torch.save({"data": [[Canary(), Canary()]]}, "x.pt"),
    ),
    Case(
        "a damaged entry in a .pth",
        "run digits --generator x.pth",
        "has another sum",
        lambda t: (torch.save(t.biggan.state_dict(), "y.pth"), flipped("y.pth", "x.pth", 5000)),
    ),
    Case(
        "a tensor larger than its file",
        "run digits --generator x.pth",
        "claims to be larger than",
        lambda t: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, "x.pth"),
    ),
    Case(
        "a bytearray of any size",
        "run digits --generator x.pth",
        "holds a bytearray",
        lambda t: torch.save({"a": bytearray(8)}, "x.pth"),
    ),
    Case(
        "a sparse tensor",
        "run digits --generator x.pth",
        "holds a tensor that is not dense",
        lambda t: torch.save({"a": torch.eye(3).to_sparse()}, "x.pth"),
    ),
    Case(
        "a state dict of another network",
        "run digits --generator x.pth",
        "not a BigGAN state dict",
        lambda t: torch.save(torch.nn.Linear(2, 2).state_dict(), "x.pth"),
    ),
    Case(
        "weights that are NaN",
        lambda t: FrozenGenerator({k: v * torch.nan for k, v in fold(t.biggan).items()}),
        "holds NaN or infinity; train it anew",
    ),
    Case(
        "TorchScript that does not say how it is called",
        "run digits --generator x.pt",
        "does not tell its latent_shape, num_classes, image_shape",
        lambda t: torch.jit.save(torch.jit.script(Scripted()), "x.pt"),
    ),
    Case(
        "TorchScript that writes a file",
        "run digits --generator x.pt",
        "the operator aten::save",
        lambda t: script(Writes()),
    ),
    Case(
        "the same, with the call disguised",
        "run digits --generator x.pt",
        "operator aten::save",
        lambda t: script(Writes(), hidden_call),
    ),
    Case(
        "TorchScript that runs while it is loaded",
        "run digits --generator x.pt",
        "which would run while it is loaded",
        lambda t: script(AtLoading()),
    ),
    Case(
        "TorchScript with a command in its pickle",
        "run digits --generator x.pt",
        "a TorchScript file that holds a",
        lambda t: script(Scripted(), pickled_canary),
    ),
    Case(
        "TorchScript that never ends",
        "run digits --generator x.pt",
        "a loop that may never end",
        lambda t: script(Endless()),
    ),
    Case(
        "TorchScript of 10^12 latent numbers",
        "run digits --generator x.pt",
        "give 1 to 1,000,000",
        lambda t: script(Scripted(), latent_shape=[10**12]),
    ),
    Case(
        "TorchScript described wrongly",
        "run digits --generator x.pt",
        "is no list of whole numbers",
        lambda t: script(Scripted(), image_shape=8),
    ),
    Case(
        "a generator for other images",
        "run digits --image-size 16",
        "makes images of shape (1, 8,",
    ),
    Case(
        "a function of another shape", wrap(lambda z, y: z), "returns shape (10, 4) for 10 latents"
    ),
    Case("a function out of its range", wrap(lambda z, y: 9 * linear(z, y)), "leave value_range="),
    Case(
        "a function without a gradient",
        wrap(lambda z, y: linear(z, y).detach()),
        "the gradient of its images in the latents is missing",
    ),
    Case(
        "a function that makes NaN", wrap(lambda z, y: linear(z, y) * torch.nan), "must be finite"
    ),
    Case(
        "a function with noise",
        wrap(lambda z, y: 0.9 * linear(z, y) + 0.1 * torch.rand(len(z), 1, 8, 8)),
        "two calls with the same latents differ",
    ),
    Case(
        "a function that couples images",
        wrap(lambda z, y: (linear(z, y) + linear(z, y).mean(0, keepdim=True)) / 2),
        "an image changes with the other latents of its batch",
    ),
    Case(
        "a function that ignores labels", wrap(lambda z, y: linear(z, y * 0)), "labels change noth"
    ),
    Case(
        "a function that raises an error", wrap(lambda z, y: z @ z), "generator: fails on latents"
    ),
    Case(
        "a function that returns no tensor", wrap(lambda z, y: [z]), "returns a list, not a tensor"
    ),
    Case("one class", wrap(linear, num_classes=1), "num_classes=1: give 2 to 100000"),
    Case(
        "a Python function to be stored",
        lambda t: SyntheticSet(
            g := wrap_generator(linear, **SMALL), sample_latents(g, t.images)
        ).save("x"),
        "which cannot be stored; store its images: synthetic.materialise()",
    ),
    # Data sets
    Case("no such array file", "run digits --dataset npz:x.npz", "x.npz: there is no such file"),
    Case(
        "a missing array",
        "run digits --dataset npz:x.npz",
        "x.npz must hold arrays x_train",
        lambda t: arrays(y_test=None),
    ),
    Case(
        "pixels that are NaN",
        "run digits --dataset npz:x.npz",
        "holds NaN pixels; replace them",
        lambda t: arrays(x_train=np.full((20, 8, 8), np.nan)),
    ),
    Case(
        "pixels beyond 255",
        "run digits --dataset npz:x.npz",
        "pixels must lie in [0, 255], so res",
        lambda t: arrays(x_train=np.full((20, 8, 8), 300)),
    ),
    Case(
        "labels of another length",
        "run digits --dataset npz:x.npz",
        "labels must be int64, one for",
        lambda t: arrays(y_train=np.arange(3)),
    ),
    Case(
        "negative labels",
        "run digits --dataset npz:x.npz",
        "labels must not be negative, found -1",
        lambda t: arrays(y_train=np.arange(20) - 1),
    ),
    Case(
        "labels of test images alone",
        "run digits --dataset npz:x.npz",
        "labels must lie in 0...1",
        lambda t: arrays(y_test=np.arange(20)),
    ),
    Case(
        "a class without training images",
        "run digits --dataset npz:x.npz",
        "class '1' has no training images",
        lambda t: arrays(y_train=2 * (np.arange(20) % 2)),
    ),
    Case(
        "labels that are objects",
        "run digits --dataset npz:x.npz",
        "not a whole npz file of plain",
        lambda t: arrays(y_train=np.array([Canary()] * 20, dtype=object)),
    ),
    Case(
        "an array that claims 10^12 images",
        "run digits --dataset npz:x.npz",
        "claims shape (1000000000000, 8, 8), for which it is too small",
        lambda t: claiming((10**12, 8, 8)),
    ),
    Case("no such folder", "run digits --dataset imagefolder:x", "x: there is no such folder"),
    Case(
        "a folder with one class",
        "run digits --dataset imagefolder:folder",
        "has 1 class folder(s)",
        lambda t: folder_of(1),
    ),
    Case(
        "an empty class",
        "run digits --dataset imagefolder:folder",
        "holds no images; fill or rem",
        lambda t: (folder_of(2) / "c9").mkdir(),
    ),
    Case(
        "a text as an image",
        "run digits --dataset imagefolder:folder",
        "cannot be read as an image",
        lambda t: (folder_of(2) / "c0" / "0.png").write_text("hello"),
    ),
    Case(
        "a PostScript program as an image",
        "run digits --dataset imagefolder:folder",
        "cannot be read as an image",
        lambda t: (folder_of(2) / "c0" / "0.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n"),
    ),
    Case(
        "a picture that expands too far",
        "run digits --dataset imagefolder:folder",
        "too many to decode",
        lambda t: Image.new("1", (6000, 6000)).save(folder_of(2) / "c0" / "0.png"),
    ),
    Case(
        "pictures of different sizes",
        "run digits --dataset imagefolder:folder",
        "pass image_size",
        lambda t: Image.new("L", (9, 8)).save(folder_of(2) / "c0" / "0.png"),
    ),
    Case(
        "a folder without Parquet files",
        "run digits --dataset folder",
        "holds no Parquet files",
        lambda t: folder_of(2),
    ),
    Case(
        "a Parquet file that is none",
        "run digits --dataset x",
        "is not a whole Parquet file",
        lambda t: (
            Path("x").mkdir(),
            Path("x/train.parquet").write_text("x"),
            Path("x/test.parquet").write_text("x"),
        ),
    ),
    Case(
        "CIFAR files cut short",
        "run digits --dataset cifar-binary:x",
        "whole number of 3073-byte",
        lambda t: (
            Path("x").mkdir(),
            [
                Path("x", n).write_bytes(b"x" * 99)
                for n in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
            ],
        ),
    ),
    Case("no such user", "run digits --dataset ~nobody-here/x", "data set '~nobody-here/x'"),
    # Sets of others
    Case(
        "a set without a data set",
        "score x.pt",
        "x.pt names no data set; give --dataset",
        lambda t: pt(t.images.images, t.images.labels),
    ),
    Case(
        "constants that are not known",
        "score x.pt --dataset digits",
        "give --mean and --std",
        lambda t: pt(t.images.floats(), t.images.labels),
    ),
    Case(
        "constants of other images",
        "score x.pt --dataset digits --mean 0.5 --std 50",
        "these constants look wrong",
        lambda t: pt(t.images.floats(), t.images.labels),
    ),
    Case(
        "labels beyond the data set's",
        "score x.pt --dataset digits",
        "labels lie in 1...10, but da",
        lambda t: pt(t.images.images, t.images.labels + 1),
    ),
    Case(
        "images of another shape",
        "score x.pt --dataset digits",
        "bring them to that shape",
        lambda t: pt(t.images.images[..., 1:], t.images.labels),
    ),
    Case(
        "soft labels that are logits",
        "score x.pt --dataset digits",
        "give --logits if they are",
        lambda t: pt(t.images.images, torch.randn(40, 10)),
    ),
    Case(
        "an entry that is not there",
        "score x.pt --dataset digits --entry 7",
        "holds 1 set(s)",
        lambda t: pt(t.images.images, t.images.labels),
    ),
    Case(
        "float pixels far outside",
        lambda t: PixelSet(t.images.floats() * 9, t.images.labels),
        "float images must be finite and lie in [-1, 1]",
    ),
    # Places
    Case(
        "a file where a directory goes",
        "run digits --out x",
        "x: ",
        lambda t: Path("x").write_text(""),
    ),
    Case(
        "--out of another configuration",
        "run digits --out run --seed 5",
        "another configuration; these fields differ: seed (0 there, 5 here)",
        lambda t: run_of(out="run"),
    ),
    Case(
        "--out of another training",
        "pretrain digits --out run --seed 5 --steps 9",
        "another configuration; these fields differ: seed (0 there, 5 here)",
        lambda t: training_of(),
    ),
    Case(
        "a directory that names code",
        "run run",
        "run/config.json names the network 'os:path', whose code would be imported",
        lambda t: run_of(evaluation={"network": "os:path"}),
    ),
    Case(
        "a configuration of another itgan",
        "run run",
        "config.json: not a configuration of this",
        lambda t: run_of(bogus=1),
    ),
    Case("a report of nothing", "report digits --out run", "no classifier has been trained yet"),
    Case(
        "a directory that another process uses",
        "run digits --out run",
        "another process is working in this directory",
    ),
    # Kept figures and claims
    Case(
        "kept figures that are something else",
        "reproduce table5 --scale smoke --results kept --out run",
        "table5.json: not the figures of a study; remove it",
        lambda t: kept("table5.json", '{"mean": NaN}'),
    ),
    Case(
        "a register that is no TOML",
        "reproduce table5 --scale smoke --claims kept/claims.toml --out run",
        "claims.toml: not a register of claims",
        lambda t: kept("claims.toml", "[[claim]"),
    ),
    Case(
        "a page of no figures",
        lambda t: read_figures(Path("kept")),
        "holds no figures; itgan reproduce STUDY --results kept",
        lambda t: Path("kept").mkdir(),
    ),
]


def said_of(case, things, capsys):
    """The line that a case gives."""
    if case.make:
        case.make(things)
    before = {path for path in Path().rglob("*") if path.name != ".lock"}
    if callable(case.call):
        with pytest.raises(InputError) as error:
            case.call(things)
        line = str(error.value)
        assert "\n" not in line
    else:
        assert main(case.call.split()) == 2
        lines = [s for s in capsys.readouterr().err.splitlines() if s.startswith("itgan: ")]
        (line,) = lines
        line = line.removeprefix("itgan: ")
    after = {path for path in Path().rglob("*") if path.name not in (".lock", "config.json")}
    assert not Path("canary").exists(), "code of the file ran"
    left = {
        path for path in after - before if path != Path("run") and path.name != "environment.json"
    }
    assert not left, f"left behind: {left}"
    return line


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*sparse.*:UserWarning")
def test_every_case_is_told_in_one_line_and_listed(
    capsys, tmp_path, monkeypatch, generator, bank, images, biggan
):
    rows, wrong = [], []
    for index, case in enumerate(CASES):
        own = tmp_path / str(index)
        own.mkdir()
        monkeypatch.chdir(own)
        fresh = Things(generator, bank, images, biggan)
        try:
            if case.kind == "a directory that another process uses":
                with artefacts.locked(Path("run")):
                    line = said_of(case, fresh, capsys)
            else:
                line = said_of(case, fresh, capsys)
            if case.told not in line:
                wrong.append((case.kind, line))
            rows.append((case.kind, line.replace(f"{own}/", "").replace(str(own), "DIR")))
        except BaseException as error:
            wrong.append((case.kind, repr(error)[:600]))
    assert not wrong, "\n".join(map(str, wrong))
    page = page_of(rows)
    if os.environ.get("ITGAN_WRITE_DOCS"):
        PAGE.write_text(page)
    assert page == PAGE.read_text(), "write it anew with ITGAN_WRITE_DOCS=1"


def page_of(rows):
    lines = [
        "# Wrong input, and what itgan says",
        "",
        "One line on stderr, exit code 2, no traceback, nothing half-written. Made from the table",
        "in `tests/test_wrong_input.py`, which tries every line.",
        "",
        "| what is wrong | what itgan says |",
        "|---|---|",
    ]
    for kind, line in rows:
        line = re.sub(r"[0-9a-f]{16}…", "HASH…", line).replace("|", "\\|").replace("`", "'")
        lines.append(f"| {kind} | `{line}` |")
    return "\n".join(lines) + "\n"


# --- numbers, from the schema -------------------------------------------------------------------


def numeric(kind, prefix="--"):
    """Flag, how many values, and name of every numeric field of a config."""
    for name, field in kind.model_fields.items():
        flag = f"{prefix}{name.replace('_', '-')}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, configs.Config):
            yield from numeric(field.annotation, f"{flag}.")
            continue
        schema = kind.model_json_schema()["properties"][name]
        several = [schema["items"]] if "items" in schema else schema.get("prefixItems", [])
        forms = [schema, *several, *schema.get("anyOf", [])]
        if {form.get("type") for form in forms} & {"integer", "number"}:
            yield flag, max(1, len(several)), name


COMMANDS = {
    "run digits": run_configs.RunConfig,
    "pretrain digits": PretrainingConfig,
    "score digits-10": ScoreConfig,
    "generate digits-10": GenerateConfig,
}
FIELDS = [(command, *found) for command, kind in COMMANDS.items() for found in numeric(kind)]
HUGE = st.integers(min_value=2**63).map(str) | st.sampled_from(["1e19", "1e308", "9" * 400])
BELOW = st.floats(max_value=-1e-300, allow_infinity=True).map(repr) | st.integers(
    max_value=-1
).map(str)
NONSENSE = st.sampled_from(
    ["nan", "-inf", "inf", "1e400", "-1e400", "NaN", "many", "0x10", "", "1,5"]
)


@given(field=st.sampled_from(FIELDS), text=HUGE | BELOW | NONSENSE, joined=st.booleans())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_numbers_out_of_bounds_are_refused_by_every_command(capsys, field, text, joined):
    command, flag, several, name = field
    words = [f"{flag}={text}"] if joined and several == 1 else [flag, *[text] * several]
    assert main([*command.split(), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert flag in line or flag[2:].replace("-", "_") in line or name in line, line


def test_every_number_has_an_upper_bound(capsys):
    for command, flag, several, _ in FIELDS:
        assert main([*command.split(), flag, *["9" * 30] * several]) == 2, flag
        assert len(capsys.readouterr().err.splitlines()) == 1


# --- code and files -----------------------------------------------------------------------------


def test_a_set_that_names_code_is_scored_with_convnet_and_says_so(
    generator, bank, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('canary').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    about = {"dataset": "digits", "evaluation": {"network": "evil:net", "updates": 1}}
    SyntheticSet(generator, bank, about=about).save("s.safetensors")
    assert main(["score", "s.safetensors", "--network-seeds", "0"]) == 0
    said = capsys.readouterr().err
    assert "s.safetensors names the network 'evil:net', but no file may choose code" in said
    assert not Path("canary").exists()
    assert main(["score", "s.safetensors", "--evaluation.network", "evil:net"]) == 2
    assert Path("canary").exists(), "the flag does import it"


def test_a_directory_that_names_code_needs_the_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('canary').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    run_of(condensation={"pool": {"training": {"network": "evil:net"}}})
    for command in ("plan", "run", "embed", "report"):
        assert main([command, "run"]) == 2
        told = capsys.readouterr().err
        assert "give --condensation.pool.training.network evil:net" in told
    assert not Path("canary").exists()


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.npz", "x.safetensors", "x.json"])
def test_a_pickle_is_run_by_no_command(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps(Canary()))
    Path("run").mkdir()
    Path("run/config.json").write_bytes(pickle.dumps(Canary()))
    for command in (
        f"inspect {name}",
        f"score {name} --dataset digits",
        f"generate {name}",
        f"run digits --generator {name}",
        f"run digits --dataset npz:{name}",
        f"pretrain digits --dataset npz:{name}",
        "run run",
    ):
        assert main(command.split()) == 2, command
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not Path("canary").exists(), command


def test_metadata_print_no_control_characters(tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    artefacts.save(
        file, {"a\x1b[2J": torch.zeros(1)}, {"kind": "\x1b]0;title\x07", "\x1bk": "\ud800"}
    )
    assert main(["inspect", str(file)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_none_is_spelled_in_any_case(capsys):
    parse = flags.parse
    for words in (["--latents-per-class", "none"], ["--latents_per_class=NONE"]):
        made = parse(run_configs.RunConfig, words, "itgan", RECIPES["digits"]())
        assert made.latents_per_class is None
    made = parse(
        run_configs.RunConfig, ["--dm.augmentation", "none"], "itgan", RECIPES["digits"]()
    )
    assert made.dm.augmentation == "none"
    made = parse(
        PretrainingConfig,
        ["--validation", "0.1"],
        "itgan",
        PRETRAININGS["digits"](),
    )
    assert made.validation == 0.1


def test_in_a_process_of_its_own(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    result = subprocess.run(
        [sys.executable, "-m", "itgan.cli", "inspect", "x.safetensors"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("itgan: x.safetensors: not a readable safetensors file")
