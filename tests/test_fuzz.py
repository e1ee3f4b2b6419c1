"""Damaged files of every kind: a clear refusal, or the result that the whole file gives.

10,000 files by default; ITGAN_FUZZ=100000 makes more.
"""

import io
import json
import os
import random
import resource
import time

import numpy as np
import pytest
import torch
from PIL import Image

from itgan import artefacts
from itgan.artefacts import Checkpoint
from itgan.data import load_dataset
from itgan.embedding import NetworkSpec, SnapshotPool, load_network, save_network
from itgan.encoder import Encoder, EncoderSpec
from itgan.errors import InputError
from itgan.file_configs import ScoreConfig
from itgan.foreign import read_set
from itgan.generators import (
    ENCODER,
    BigGANShape,
    FrozenGenerator,
    load_encoder,
    load_generator,
)
from itgan.generators.encoder import ConvEncoder
from itgan.latents import LatentBank, sample_latents
from itgan.official import read_latents
from itgan.pictures import decode
from itgan.runs import Run
from itgan.sources import SyntheticSet

pytestmark = pytest.mark.filterwarnings("ignore")  # remarks of decoders on damaged files
FILES = int(os.environ.get("ITGAN_FUZZ", "10000"))
SECONDS, MEBIBYTES = 1.0, 1024  # that one file may take, of processor time and of memory
CONSTANTS = ScoreConfig(mean=(0.5,), std=(0.5,))


class Small(torch.nn.Module):
    """A generator of 1x8x8 images from four numbers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 64)

    def forward(self, z, y):
        return torch.tanh(self.layer(torch.cat([z, y], 1))).view(-1, 1, 8, 8)


def tensors_of(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


def bank_of(path):
    bank = LatentBank.load(path)
    return [bank.latents, bank.labels, bank.rows, bank.stage, bank.history, bank.provenance]


def set_of(path):
    made = SyntheticSet.load(path)
    return [made.images(), made.labels, made.dtype, dict(made.about), made.bank.provenance]


def pool_of(path):
    pool = SnapshotPool.load(path)
    return [pool.weights, pool.accuracies, pool.held_out, pool.spec]


def dataset_of(spec):
    data = load_dataset(spec)
    return [data.train.images, data.train.labels, data.test.images, data.class_names]


def images_of(generator):
    z = torch.ones(2, *generator.latent_shape)
    return generator(z, torch.tensor([0, 1])).detach()


def foreign_of(path, digits):
    made = read_set(path, digits, CONSTANTS if path.suffix == ".pt" else ScoreConfig())
    return [made.images, made.labels]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def whole(digits, make_biggan, tmp_path_factory):
    """Name -> (bytes of a small file, how to read it, whether sums protect all of it)."""
    root = tmp_path_factory.mktemp("whole")
    biggan = make_biggan(BigGANShape(1, 10, (1, 8, 8), 2))
    generator = FrozenGenerator.from_biggan(biggan)
    train = digits.train
    few = train.select(torch.cat([train.class_indices(label)[:2] for label in range(10)]))
    bank = sample_latents(generator, few, seed=0)
    bank.save(root / "bank.safetensors")
    SyntheticSet(generator, bank).save(root / "set.safetensors", dtype="int8")
    artefacts.save(root / "generator.safetensors", biggan.state_dict(), {"kind": "generator"})
    spec = NetworkSpec("convnet", (1, 8, 8), 2, (0.5,), (0.5,))
    network = spec.build()
    save_network(root / "network.safetensors", network, spec)
    weights = {name: t[None].half() for name, t in tensors_of(network).items()}
    pool = SnapshotPool(spec, weights, torch.ones(1), torch.arange(3))
    pool.save(root / "pool.safetensors")
    EncoderSpec((1, 8, 8), 10, (2,), 4).build().save(root / "encoder.safetensors")
    coder = ConvEncoder(biggan.shape).state_dict()
    both = biggan.state_dict() | {f"{ENCODER}{name}": t for name, t in coder.items()}
    artefacts.save(root / "autoencoder.safetensors", both, {"kind": "generator"})
    torch.save({"z_eff_all": bank.latents[:20]}, root / "latents.pt")
    checkpoint = Checkpoint(root / "checkpoint.safetensors", "mine")
    checkpoint.offer(3, lambda: {"latents": bank.latents}, force=True)

    pixels, labels = few.images.numpy(), few.labels.numpy()
    np.savez(root / "data.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    np.savez_compressed(root / "foreign.npz", images=pixels, labels=labels)
    torch.save({"data": [[few.floats(), few.labels]], "accs": [1.0]}, root / "distilled.pt")
    torch.save(biggan.state_dict(), root / "official.pth")
    torch.save(biggan.state_dict(), root / "legacy.pth", _use_new_zipfile_serialization=False)
    about = {"latent_shape": [4], "num_classes": 2, "image_shape": [1, 8, 8], "labels": "onehot"}
    extra = {"itgan.json": json.dumps(about)}
    torch.jit.save(torch.jit.script(Small()), root / "script.pt", _extra_files=extra)
    Image.fromarray(pixels[0, 0]).save(root / "picture.png")
    Image.fromarray(pixels[0, 0]).save(root / "picture.jpg")
    Image.fromarray(pixels[0, 0]).save(root / "picture.tiff")
    Image.fromarray(pixels[0, 0]).convert("P").save(root / "picture.gif")
    records = np.zeros((2, 3073), np.uint8)
    records[:, 0] = 0, 1
    (root / "cifar.bin").write_bytes(records.tobytes())
    Image.new("RGB", (8, 8)).save(png := io.BytesIO(), "png")
    import datasets

    rows = {"img": [{"bytes": png.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "train.parquet")
    from itgan.run_configs import RunConfig

    (root / "config.json").write_text(RunConfig().model_dump_json())

    def cifar(path):
        folder = path.with_suffix("")
        folder.mkdir(exist_ok=True)
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            (folder / name).unlink(missing_ok=True)
            (folder / name).hardlink_to(path)
        return dataset_of(f"cifar-binary:{folder}")

    def parquet(path):
        folder = path.with_suffix("")
        folder.mkdir(exist_ok=True)
        for name in ("train-0.parquet", "test-0.parquet"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).hardlink_to(path)
        return dataset_of(str(folder))

    def config(path):
        folder = path.with_suffix("")
        folder.mkdir(exist_ok=True)
        path.replace(folder / "config.json")
        return Run(folder).config()

    def picture(path):
        return torch.from_numpy(decode([(str(path), path)], 1, None))

    def generated(path):
        return images_of(load_generator(path))

    def checked(path):
        return list(Checkpoint(path, "mine").load())

    def released(path):
        read = read_latents(path, labels=bank.labels[:20])
        return [read.latents, read.labels, read.rows, read.stage]

    readers = {
        "encoder.safetensors": (lambda path: tensors_of(Encoder.load(path)), True),
        "autoencoder.safetensors": (lambda path: tensors_of(load_encoder(path)), True),
        "latents.pt": (released, True),
        "bank.safetensors": (bank_of, True),
        "set.safetensors": (set_of, True),
        "generator.safetensors": (generated, True),
        "network.safetensors": (lambda path: tensors_of(load_network(path)), True),
        "pool.safetensors": (pool_of, True),
        "checkpoint.safetensors": (checked, True),
        "data.npz": (lambda path: dataset_of(f"npz:{path}"), True),
        "foreign.npz": (lambda path: foreign_of(path, digits), True),
        "distilled.pt": (lambda path: foreign_of(path, digits), True),
        "official.pth": (generated, True),
        "legacy.pth": (generated, False),
        "script.pt": (generated, True),
        "picture.png": (picture, False),
        "picture.jpg": (picture, False),
        "picture.tiff": (picture, False),
        "picture.gif": (picture, False),
        "cifar.bin": (cifar, False),
        "train.parquet": (parquet, False),
        "config.json": (config, False),
    }
    return {name: ((root / name).read_bytes(), *reader) for name, reader in readers.items()}


# Of all files, the share of each kind; the slower a reader is, the fewer.
SHARES = {
    "bank.safetensors": 12,
    "set.safetensors": 12,
    "generator.safetensors": 8,
    "network.safetensors": 3,
    "pool.safetensors": 3,
    "checkpoint.safetensors": 5,
    "encoder.safetensors": 2,
    "autoencoder.safetensors": 2,
    "latents.pt": 2,
    "data.npz": 8,
    "foreign.npz": 8,
    "distilled.pt": 7,
    "official.pth": 3,
    "legacy.pth": 3,
    "script.pt": 4,
    "picture.png": 3,
    "picture.jpg": 3,
    "picture.tiff": 3,
    "picture.gif": 2,
    "cifar.bin": 2,
    "train.parquet": 0.5,
    "config.json": 4.5,
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes overwritten, a piece cut off, cut out, doubled or moved."""
    made = bytearray(content)
    n = len(made)
    # Half of the damage goes to the first or last kilobyte, where most of the structure is.
    at = rng.choice(
        [rng.randrange(n), rng.randrange(min(n, 512)), n - 1 - rng.randrange(min(n, 512))]
    )
    size = min(rng.choice([1, 2, 4, 8, 32, 200]), n - at)
    match rng.randrange(8):
        case 0 | 1:
            made[at] ^= 1 << rng.randrange(8)
        case 2:
            for _ in range(rng.randrange(1, 20)):
                made[rng.randrange(n)] = rng.randrange(256)
        case 3:
            del made[at:]
        case 4:
            del made[at : at + size]
        case 5:
            made[at:at] = made[at : at + size]
        case 6:
            made[at : at + size] = bytes([rng.choice([0, 0x7F, 0x80, 0xFF])]) * size
        case 7:
            start = rng.randrange(n)
            made[at : at + size] = made[start : start + size]
    return bytes(made)


@pytest.mark.parametrize("name", SHARES)
def test_a_damaged_file_is_refused_or_gives_what_the_whole_one_gives(
    whole, name, tmp_path, monkeypatch
):
    content, read, protected = whole[name]
    monkeypatch.setenv("ITGAN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / name
    path.write_bytes(content)
    expected = read(path)
    count = max(1, round(FILES * SHARES[name] / sum(SHARES.values())))
    rng = random.Random(f"{name} {FILES}")
    refused = 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(count):
        payload = damaged(content, rng)
        path.unlink(missing_ok=True)
        path.write_bytes(payload)
        begun = time.process_time()
        said, found = None, None
        try:
            found = read(path)
        except InputError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"file {index} of {name}: {payload[:2000]!r}") from error
        if said is None:
            assert not protected or same(found, expected), index
        else:
            assert "\n" not in said.strip()
            refused += 1
        seconds = time.process_time() - begun
        assert seconds < SECONDS, (index, seconds)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    assert grown < MEBIBYTES
    assert refused or not protected
