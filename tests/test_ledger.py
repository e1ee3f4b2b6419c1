import io
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from itgan.configs import EvaluationConfig
from itgan.data import ImageSet
from itgan.errors import InputError
from itgan.evaluation import evaluate
from itgan.file_configs import LedgerConfig
from itgan.generators import BigGANShape, FrozenGenerator
from itgan.latents import LatentBank
from itgan.ledger import (
    Storage,
    break_even,
    count,
    generator_bytes,
    human,
    ledger,
    ledger_tables,
    packed_bytes,
    real_storages,
    synthetic_storage,
)
from itgan.pictures import to_jpeg, to_png
from itgan.sources import SyntheticSet

MIB = 2**20
PAPER = BigGANShape(64, 10, (3, 32, 32), 128)
DTYPES = ("fp32", "fp16", "int8")
LATENTS = st.integers(1, 500)


@pytest.fixture(scope="module")
def noise():
    """30 images of 3x32x32 noise, three of each class."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return ImageSet(pixels, torch.arange(30) % 10)


# Synthetic sets


def test_the_figures_of_the_paper():
    assert generator_bytes(PAPER, "fp32") == 4 * 4_304_387
    storage = synthetic_storage(PAPER, "fp32")
    parts = storage.parts(50_000)
    assert parts["latents"] == 50_000 * 128 * 4
    assert [round(parts[k] / MIB, 2) for k in ("generator", "latents")] == [16.42, 24.41]
    both, raw = parts["generator"] + parts["latents"], 50_000 * 3 * 32 * 32
    assert round(both / MIB, 1) == 40.8
    assert round(raw / MIB, 1) == 146.5
    assert round(100 * both / raw) == 28
    assert storage.bytes(50_000) == both + 50_000 * (1 + 4)  # labels and row numbers
    bits = storage.bits_per_class(50_000, 10)
    assert bits == 8 * (both + 250_000) / 10


def test_narrow_types_of_the_paper_by_hand():
    width, classes = 256, 10
    matrices = 4096 * 128 + 3 * (2 * 9 + 1) * width**2 + 3 * 9 * width + 12 * classes * width
    vectors = 4096 + 3 * 3 * width + 2 * width + 3  # biases, and the output norm
    assert matrices + vectors == 4_304_387
    assert generator_bytes(PAPER, "fp16") == 2 * 4_304_387
    scales = 4096 + 3 * 3 * width + 3 + 12 * classes
    assert generator_bytes(PAPER, "int8") == matrices + 2 * vectors + 4 * scales
    assert synthetic_storage(PAPER, "fp16").parts(7)["latents"] == 7 * 128 * 2
    assert synthetic_storage(PAPER, "int8").parts(7)["latents"] == 7 * 128 + 128 * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        BigGANShape(4, 10, (1, 8, 8), 8),
        BigGANShape(1, 300, (1, 8, 8), 2),
        BigGANShape(2, 3, (3, 32, 32), 5),
    ],
)
def test_files_hold_what_the_ledger_counts(make_biggan, tmp_path, dtype, shape):
    generator = FrozenGenerator.from_biggan(make_biggan(shape))
    n = 6
    latents = torch.randn(n, shape.latent_dim, generator=torch.Generator().manual_seed(0))
    bank = LatentBank(latents, torch.arange(n) % 3, torch.arange(n), "random")
    synthetic = SyntheticSet(generator, bank, dtype)
    storage = synthetic_storage(shape, dtype)
    assert storage == synthetic_storage(generator, dtype)
    path = tmp_path / "set.safetensors"
    synthetic.save(path)
    tensors = load_file(path)
    sizes = dict.fromkeys(("generator", "latents", "labels", "rows"), 0)
    for name, tensor in tensors.items():
        sizes[name.split(".")[0]] += tensor.numel() * tensor.element_size()
    assert storage.parts(n) == sizes
    assert storage.bytes(n) == sum(sizes.values()) == synthetic.nbytes
    payload = path.read_bytes()
    header = 8 + int.from_bytes(payload[:8], "little")
    assert len(payload) == header + storage.bytes(n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_results_say_what_the_ledger_says(generator, bank, images, dtype):
    source = SyntheticSet(generator, bank).stored_as(dtype)
    (trial,) = evaluate(source, images, EvaluationConfig(updates=1), [0], "cpu")
    assert trial.bytes == synthetic_storage(generator, dtype).bytes(len(bank))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_bytes_of_a_tensor(shape):
    count = math.prod(shape)
    assert packed_bytes(shape, "fp32") == 4 * count
    assert packed_bytes(shape, "fp16") == 2 * count
    expected = 2 * count if len(shape) == 1 else count + 4 * shape[-1]
    assert packed_bytes(shape, "int8", by=len(shape) - 1) == expected


# Real images


def test_real_images_are_really_encoded(noise):
    raw, png, whole, tables, headers = real_storages(noise, (75,))
    assert [s.name for s in (raw, png, whole, tables, headers)] == [
        "raw",
        "png",
        "jpeg 75",
        "jpeg 75, shared tables",
        "jpeg 75, shared headers",
    ]
    assert raw.bytes(30) == 30 * (3 * 32 * 32 + 1)
    assert png.bytes(30) == sum(len(to_png(image)) for image in noise.images) + 30
    files = [to_jpeg(image, 75) for image in noise.images]
    assert whole.bytes(30) == sum(map(len, files)) + 30
    assert headers.bytes(30) < tables.bytes(30) < whole.bytes(30)
    assert tables.fixed["images"] == len(to_jpeg(noise.images[5], 75, "tables"))
    starts = {to_jpeg(image, 75, "stream").split(b"\xff\xda")[0] for image in noise.images}
    (start,) = starts  # what is counted once is the same for all
    assert headers.each["images"] == pytest.approx(tables.each["images"] - len(start))
    assert headers.fixed["images"] == tables.fixed["images"] + len(start)


def test_lower_qualities_are_smaller(noise):
    sizes = {s.name: s.bytes(1000) for s in real_storages(noise, (90, 50, 10))}
    assert sizes["jpeg 90"] > sizes["jpeg 50"] > sizes["jpeg 10"]


def test_a_sample_is_spread_over_the_classes(noise):
    blank = noise.images.clone()
    blank[noise.labels >= 5] = 0  # half of the classes are cheap
    images = ImageSet(blank, noise.labels)
    whole, half = (real_storages(images, (), k)[1].each["images"] for k in (None, 10))
    assert half == pytest.approx(whole, rel=0.02)
    assert real_storages(images, (), 10**6) == real_storages(images, ())
    assert real_storages(images, (), 1)[1].each["images"] > 0


# Break-even


@given(LATENTS, LATENTS, st.integers(0, 10**6), st.integers(0, 1000), st.integers(1, 20))
def test_break_even_is_the_least_number(each, image, fixed, shared, classes):
    synthetic = Storage("s", {"generator": fixed}, {"latents": each})
    real = Storage("r", {"images": shared}, {"images": image})
    found = break_even(synthetic, real, classes)
    if found is None:
        assert each >= image
        return
    assert synthetic.bytes(found * classes) <= real.bytes(found * classes)
    before = (found - 1) * classes
    assert found == 1 or synthetic.bytes(before) > real.bytes(before)


def test_break_even_of_the_paper_against_raw_pixels():
    raw = Storage("raw", {}, {"images": 3072, "labels": 1})
    even = break_even(synthetic_storage(PAPER, "fp32"), raw, 10)
    assert even == math.ceil(17_217_548 / (10 * (3073 - 517))) == 674


# The whole ledger


def test_the_ledger_of_a_set(generator, digits):
    counted = ledger(generator, 100, digits.train, (75,), 50)
    assert (counted["training_images"], counted["encoded_images"]) == (len(digits.train), 50)
    assert [row["dtype"] for row in counted["synthetic"]] == list(DTYPES)
    for row in counted["synthetic"]:
        assert row["total"] == sum(row[k] for k in ("generator", "latents", "labels", "rows"))
        assert row["bits_per_class"] == pytest.approx(row["total"] * 8 / 10)
        assert row["share_of_raw"] == pytest.approx(row["total"] / (64 * len(digits.train)))
    raw = counted["real"][0]
    assert raw["total"] == 65 * len(digits.train)
    assert raw["images"] == counted["synthetic"][0]["total"] // 65
    json.dumps(counted)
    fewer = ImageSet(digits.train.images, digits.train.labels // 2)
    with pytest.raises(InputError, match=r"^generator: makes images of shape \(1, 8, 8\) in 10"):
        ledger(generator, 100, fewer)


def test_size_resolution_and_latents_are_variables():
    def total(**changes):
        config = LedgerConfig(dataset="digits", sample=5, qualities=(), **changes)
        return count(config)["synthetic"][0]["total"]

    small = total(channels=4, latent_dim=8, latents_per_class=1)
    more = total(channels=4, latent_dim=8, latents_per_class=3)
    assert more - small == 20 * (4 * 8 + 1 + 4)
    longer = total(channels=4, latent_dim=9, latents_per_class=1)
    assert longer - small == 4 * (16 * 16 + 10)  # a column of the first layer, ten numbers
    larger = total(channels=4, latent_dim=8, latents_per_class=1, image_size=16)
    block = 2 * (9 * 16 * 16 + 16) + 16 * 16 + 16 + 4 * 10 * 16
    assert larger - small == 4 * block
    every = total(channels=4, latent_dim=8)
    assert every - small == (1201 - 10) * (4 * 8 + 1 + 4)


def test_what_a_ledger_must_know(generator, bank):
    with pytest.raises(InputError, match="names no data set; give --dataset"):
        count(LedgerConfig())
    with pytest.raises(InputError, match="give --generator, or --channels"):
        count(LedgerConfig(dataset="digits"))
    synthetic = SyntheticSet(generator, bank)
    config = LedgerConfig(dataset="digits", sample=5)
    assert count(config, synthetic)["latents"] == len(bank)
    assert count(config, synthetic)["synthetic"][0]["total"] == synthetic.nbytes


def test_tables_show_every_row(generator, digits):
    counted = {"dataset": "digits", **ledger(generator, 100, digits.train, (75,), 5)}
    console = Console(width=160, record=True, file=io.StringIO())
    for table in ledger_tables(counted):
        console.print(table)
    text = console.export_text()
    for word in (
        "fp16",
        "int8",
        "png",
        "jpeg 75, shared headers",
        human(counted["real"][0]["total"]),
    ):
        assert word in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (40.8 * MIB, "40.8 MiB"),
        (2**30, "1.00 GiB"),
    ],
)
def test_bytes_for_people(size, text):
    assert human(size) == text
