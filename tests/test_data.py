"""Every format is written by the foreign library and read back bit for bit."""

import io
import math
import os
import warnings
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from itgan import data, pictures, readers
from itgan.data import ImageSet, load_dataset, pixel_constants, shuffled
from itgan.errors import InputError
from itgan.randomness import derive
from itgan.splits import hold_out, pack_rows, stratified, unpack_rows, validation_count

LABELS = [0, 1, 2] * 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ITGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def an_image_set(n=9, classes=3, channels=1):
    return ImageSet(
        torch.from_numpy(noise(n, channels, 4, 4)), torch.arange(n) % classes, torch.arange(n) * 7
    )


# --- splits -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=2, max_size=200), st.data())
def test_stratified_takes_the_exact_count_in_proportion(labels, draw):
    labels = torch.tensor(labels)
    count = draw.draw(st.integers(0, len(labels) - 1))
    sizes = torch.bincount(labels)
    try:
        mask = stratified(labels, count)
    except InputError:  # only where a class's rounded share is the whole class
        assert (-(-count * sizes // len(labels)) >= sizes)[sizes > 0].any()
        return
    assert int(mask.sum()) == count
    taken = torch.bincount(labels[mask], minlength=len(sizes))
    assert ((taken - count * sizes / len(labels)).abs() < 1).all()
    assert (taken < sizes)[sizes > 0].all()
    assert torch.equal(mask, stratified(labels, count))


@given(st.integers(2, 60), st.data())
def test_stratified_picks_are_evenly_spread(size, draw):
    count = draw.draw(st.integers(1, size - 1))
    picks = stratified(torch.zeros(size, dtype=torch.int64), count).nonzero().flatten()
    ideal = (torch.arange(count) + 0.5) * size / count
    assert ((ideal - picks) < 1).all()
    assert ((ideal - picks) >= 0).all()


def test_stratified_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 0])
    # shares of 4: 7 * 4 / 10 = 2.8 and 3 * 4 / 10 = 1.2, so 3 and 1
    assert stratified(labels, 4).nonzero().flatten().tolist() == [1, 3, 5, 7]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(2, 7))
def test_hold_out_takes_every_kth_of_each_class(labels, every):
    labels = np.array(labels)
    mask = hold_out(labels, every)
    for label in np.unique(labels):
        assert mask[labels == label].tolist() == [
            i % every == every - 1 for i in range((labels == label).sum())
        ]


@pytest.mark.parametrize(("validation", "count"), [(0, 0), (0.0, 0), (7, 7), (0.25, 25)])
def test_validation_count(validation, count):
    assert validation_count(validation, 100) == count


@pytest.mark.parametrize(
    "validation", [-1, 100, 10**12, 1.0, 2.5, -0.1, 1e-9, float("nan"), float("inf")]
)
def test_validation_out_of_range(validation):
    with pytest.raises(InputError, match=r"^validation must be"):
        validation_count(validation, 100)


# --- ImageSet -----------------------------------------------------------------------------------


def test_image_set_defaults():
    images = an_image_set(channels=3)
    assert len(images) == 9
    assert images.class_names == ("0", "1", "2")
    assert images.mean == images.std == (0.5, 0.5, 0.5)
    assert images.image_shape == (3, 4, 4)
    assert ImageSet(images.images, images.labels).rows.tolist() == list(range(9))


def test_floats_span_minus_one_to_one():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = ImageSet(levels, torch.tensor([0])).floats()
    assert floats.dtype == torch.float32
    assert floats.min() == -1
    assert floats.max() == 1
    back = ((floats.double() + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(back, levels)


def test_select_keeps_rows_and_classes():
    images = an_image_set()
    few = images.select([3, 0])
    assert few.rows.tolist() == [21, 0]
    assert few.labels.tolist() == [0, 0]
    assert few.num_classes == 3
    assert torch.equal(few.images, images.images[[3, 0]])
    assert images.class_indices(1).tolist() == [1, 4, 7]
    assert images.select(images.labels == 1).rows.tolist() == [7, 28, 49]
    assert images.select(np.array([8])).rows.tolist() == [56]
    assert torch.equal(images.floats([3, 0]), few.floats())


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (5, [5]),
        (64, [64]),
        (65, [33, 32]),
        (129, [64, 33, 32]),
        (159, [64, 48, 47]),
        (160, [64, 64, 32]),
        (500, [64] * 7 + [52]),
    ],
)
def test_a_small_last_batch_shares_with_the_one_before_it(n, sizes):
    batches = shuffled(n, derive(0, "order"), 64)
    assert [len(rows) for rows in batches] == sizes
    assert torch.equal(torch.cat(batches), torch.randperm(n, generator=derive(0, "order")))


def test_batches_visit_every_image_once():
    images = an_image_set()
    batches = list(images.batches(torch.Generator().manual_seed(0), 4))
    assert [len(labels) for _, labels in batches] == [4, 3, 2]
    seen = torch.cat([x for x, _ in batches]).flatten(1)
    assert sorted(seen.tolist()) == sorted(images.floats().flatten(1).tolist())
    for x, labels in batches:
        for one, label in zip(x, labels, strict=True):
            at = (images.floats() == one).flatten(1).all(1)
            assert images.labels[at] == label
    again = list(images.batches(torch.Generator().manual_seed(0), 4))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches, again, strict=True))
    other = list(images.batches(torch.Generator().manual_seed(1), 4))
    assert not all(torch.equal(a, b) for (_, a), (_, b) in zip(batches, other, strict=True))


def test_fingerprint_depends_on_images_labels_and_rows():
    images = an_image_set()
    changed_pixel, changed_label = images.images.clone(), images.labels.clone()
    changed_pixel[0, 0, 0, 0] ^= 1
    changed_label[0] = 2
    prints = {
        images.fingerprint,
        ImageSet(changed_pixel, images.labels, images.rows).fingerprint,
        ImageSet(images.images, changed_label, images.rows).fingerprint,
        ImageSet(images.images, images.labels, images.rows + 1).fingerprint,
        ImageSet(images.images.reshape(9, 1, 2, 8), images.labels, images.rows).fingerprint,
    }
    assert len(prints) == 5
    assert all(len(p) == 64 for p in prints)
    assert an_image_set().fingerprint == images.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(2, 1, 4, 4)}, "images must be uint8"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, "images must be uint8 of shape"),
        ({"images": torch.zeros(2, 2, 4, 4, dtype=torch.uint8)}, "1 or 3 channels"),
        ({"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8)}, "images are empty"),
        ({"labels": torch.tensor([0, 1, 1])}, "labels must be int64, one for each"),
        ({"labels": torch.tensor([0, 1], dtype=torch.int32)}, "labels must be int64"),
        ({"labels": torch.tensor([0, -1])}, "labels must not be negative"),
        ({"labels": torch.tensor([0, 2]), "class_names": ("a", "b")}, "labels must lie in 0...1"),
        ({"labels": torch.tensor([0, 10**12])}, "labels must lie below"),
        ({"rows": torch.tensor([1])}, "rows must be int64"),
        ({"rows": torch.tensor([1, -2])}, "rows must not be negative"),
        ({"mean": (0.5, 0.5)}, "mean must have one value"),
        ({"std": (0.5, 0.5)}, "std must have one value"),
    ],
)
def test_image_set_refuses(changes, message):
    good = {
        "images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
    }
    with pytest.raises(InputError, match=message):
        ImageSet(**{**good, **changes})


def test_pixel_constants_are_those_of_all_pixels():
    images = torch.from_numpy(noise(50, 3, 5, 7))
    mean, std = pixel_constants(images)
    scaled = images.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean).double(), scaled.mean(1))
    torch.testing.assert_close(torch.tensor(std).double(), scaled.std(1, correction=0))
    assert pixel_constants(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)) == (
        (1.0,),
        (1 / 255,),
    )


def test_pixel_constants_are_rounded_once_from_whole_numbers():
    """So names of results that hold them are the same on every processor."""
    images = torch.from_numpy(noise(50, 1, 5, 7))
    values = [Fraction(v, 255) for v in images.flatten().tolist()]
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    assert pixel_constants(images) == ((float(mean),), (math.sqrt(variance * 255**2) / 255,))


# --- digits -------------------------------------------------------------------------------------


def test_digits_with_validation():
    whole, digits = load_dataset("digits"), load_dataset("digits", validation=150)
    assert (len(whole.train), len(whole.test), whole.validation) == (1201, 596, None)
    assert digits.validation is not None
    assert (len(digits.train), len(digits.validation)) == (1051, 150)
    assert (digits.name, digits.image_shape, digits.num_classes) == ("digits", (1, 8, 8), 10)
    assert torch.bincount(digits.test.labels).min() >= 50
    assert {digits.train.images.min().item(), digits.train.images.max().item()} == {0, 255}
    # rows number the whole training split
    for split in (digits.train, digits.validation):
        assert torch.equal(split.images, whole.train.images[split.rows])
    together = torch.cat([digits.train.rows, digits.validation.rows]).sort().values
    assert torch.equal(together, whole.train.rows)
    # the constants are those of what is left
    assert (digits.mean, digits.std) == pixel_constants(digits.train.images)
    assert digits.mean == digits.test.mean == digits.validation.mean
    assert digits.fingerprint != whole.fingerprint
    assert load_dataset("digits", validation=150).fingerprint == digits.fingerprint


# --- Parquet and the hub ------------------------------------------------------------------------


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def hf_split(images, labels, names=("cat", "dog", "eel")):
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))}
    )
    cells = [{"bytes": png(image), "path": None} for image in images]
    return datasets.Dataset.from_dict({"picture": cells, "kind": labels}, features=features)


def test_the_fine_labels_of_cifar100_are_learned_unless_told(tmp_path, quiet):
    features = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=["cat", "dog", "eel"]),
        coarse_label=datasets.ClassLabel(names=["furry", "wet"]),
    )
    cells = [{"bytes": png(image), "path": None} for image in noise(12, 6, 6, 3)]
    labels = {"fine_label": LABELS, "coarse_label": [label // 2 for label in LABELS]}
    split = datasets.Dataset.from_dict({"img": cells, **labels}, features=features)
    for name in ("train", "test"):
        split.to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    assert load_dataset(str(tmp_path)).class_names == ("cat", "dog", "eel")
    coarse = load_dataset(str(tmp_path), label_column="coarse_label")
    assert coarse.class_names == ("furry", "wet")


@pytest.fixture
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def parquet(tmp_path, quiet):
    folder = tmp_path / "pets"
    (folder / "data").mkdir(parents=True)
    train, test = noise(12, 6, 6, 3), noise(3, 6, 6, 3, seed=1)
    split = hf_split(train, LABELS)
    for i in (0, 1):
        rows = range(6 * i, 6 * i + 6)
        split.select(rows).to_parquet(folder / "data" / f"train-0000{i}-of-00002.parquet")
    hf_split(test, [2, 1, 0]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder, train, test


def test_parquet_round_trip(parquet):
    folder, train, test = parquet
    pets = load_dataset(str(folder))
    assert (pets.name, pets.class_names) == ("pets", ("cat", "dog", "eel"))
    assert np.array_equal(pets.train.images.permute(0, 2, 3, 1), train)
    assert np.array_equal(pets.test.images.permute(0, 2, 3, 1), test)
    assert pets.train.labels.tolist() == LABELS
    assert pets.test.labels.tolist() == [2, 1, 0]
    assert pets.train.rows.tolist() == list(range(12))


@pytest.mark.parametrize("name", ["pets[1]", "p*", "p?ts", "**", "a::b", "{pets}", 'o\'p "q"'])
def test_a_folder_is_read_whatever_its_name(parquet, name):
    """As a pattern ``pets[1]`` would be its neighbour, and ``p*`` both."""
    folder, train, _ = parquet
    write_parquet(folder.with_name("pets1"), [a_cell()] * 3, [0, 1, 2])
    odd = folder.rename(folder.with_name(name))
    pets = load_dataset(str(odd))
    assert pets.name == name
    assert np.array_equal(pets.train.images.permute(0, 2, 3, 1), train)


def test_without_a_home_nothing_is_cached(parquet, monkeypatch):
    monkeypatch.delenv("ITGAN_CACHE")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user of no entry
    monkeypatch.chdir(parquet[0])
    assert len(load_dataset("../pets").train) == 12
    assert not Path("~").exists()


def test_second_load_reads_the_cache(parquet, cache, monkeypatch):
    folder, _, _ = parquet
    first = load_dataset(str(folder), validation=3)
    assert len(list(cache.iterdir())) == 1

    def fail(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(readers, "decode", fail)
        assert load_dataset(str(folder), validation=3).fingerprint == first.fingerprint
        assert load_dataset(str(folder), validation=3).class_names == first.class_names
        with pytest.raises(AssertionError, match="decoded again"):
            load_dataset(str(folder), image_size=4)
        # However the place is written.
        monkeypatch.chdir(folder / "data")
        assert load_dataset("..", validation=3).name == "pets"
    file = next((folder / "data").glob("train-00000*"))
    hf_split(noise(6, 6, 6, 3, seed=9), LABELS[:6]).to_parquet(file)
    assert load_dataset(str(folder), validation=3).fingerprint != first.fingerprint


def test_a_link_names_the_data_set(parquet, tmp_path):
    folder, _, _ = parquet
    (tmp_path / "beasts").symlink_to(folder)
    assert load_dataset(str(tmp_path / "beasts")).name == "beasts"


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign"])
def test_damaged_cache_is_repaired(parquet, cache, damage):
    folder, _, _ = parquet
    first = load_dataset(str(folder)).fingerprint
    file = next(cache.iterdir())
    good = file.read_bytes()
    bad = {
        "truncate": good[: len(good) // 2],
        "flip": good[:-9] + bytes([good[-9] ^ 255]) + good[-8:],
        "foreign": b"not safetensors",
    }
    file.write_bytes(bad[damage])
    assert load_dataset(str(folder)).fingerprint == first
    assert file.read_bytes() == good


def test_cache_that_cannot_be_written_is_done_without(parquet, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert len(load_dataset(str(parquet[0]), cache_dir=blocked).train) == 12


def test_parquet_without_feature_types(tmp_path, quiet):
    images = noise(4, 5, 5)
    cells = [{"bytes": png(image), "path": None} for image in images]
    for split in ("train", "test"):
        table = pa.table({"image": cells, "n": [0, 1, 0, 1], "word": ["b", "a", "b", "a"]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match="set label_column to one of n, word"):
        load_dataset(str(tmp_path))
    by_number = load_dataset(str(tmp_path), label_column="n")
    assert by_number.class_names == ("0", "1")
    assert np.array_equal(by_number.train.images[:, 0], images)
    by_word = load_dataset(str(tmp_path), label_column="word")
    assert by_word.class_names == ("a", "b")
    assert by_word.train.labels.tolist() == [1, 0, 1, 0]


def test_parquet_with_bare_bytes(tmp_path, quiet):
    images = noise(2, 5, 5)
    table = pa.table({"image": [png(image) for image in images], "n": [0, 1]})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    loaded = load_dataset(str(tmp_path), label_column="n")
    assert np.array_equal(loaded.test.images[:, 0], images)


def test_hub(monkeypatch, quiet):
    images = noise(12, 6, 6)
    splits = {"train": hf_split(images, LABELS), "validation": hf_split(images[:3], [0, 1, 2])}
    asked = []

    def fake(path, name=None):
        asked.append((path, name))
        return splits

    monkeypatch.setattr(datasets, "load_dataset", fake)
    pets = load_dataset("hf:owner/pets:small")
    assert asked == [("owner/pets", "small")]
    assert np.array_equal(pets.train.images[:, 0], images)
    assert len(pets.test) == 3  # no test split, so validation is what one tests on


def test_hub_name_that_is_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    with pytest.raises(InputError, match="give the folder without hf:"):
        load_dataset("hf:pets")


def test_hub_out_of_reach(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("Couldn't reach it\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"^hf:owner/pets cannot be loaded.*connection$"):
        load_dataset("hf:owner/pets")


def test_full_disk_is_not_the_users_fault(monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(OSError, match="No space left"):
        load_dataset("hf:owner/pets")


def write_parquet(folder, cells, labels, test_labels=None, names=("cat", "dog", "eel")):
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))}
    )
    for split, values in (("train", labels), ("test", test_labels or labels)):
        rows = {"picture": cells[: len(values)], "kind": values}
        made = datasets.Dataset.from_dict(rows, features=features)
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def a_cell(size=4):
    return {"bytes": png(noise(size, size)), "path": None}


def parquet_truncated(folder):
    write_parquet(folder, [a_cell()] * 3, [0, 1, 2])
    file = folder / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])


def parquet_no_test(folder):
    write_parquet(folder, [a_cell()] * 3, [0, 1, 2])
    (folder / "test-00000-of-00001.parquet").unlink()


def parquet_empty(folder):
    write_parquet(folder, [], [])


def parquet_no_image(folder):
    write_parquet(
        folder, [a_cell(), {"bytes": b"GIF89a nonsense", "path": None}, a_cell()], [0, 1, 2]
    )


def parquet_null_image(folder):
    write_parquet(folder, [a_cell(), None, a_cell()], [0, 1, 2])


def parquet_class_without_images(folder):
    write_parquet(folder, [a_cell()] * 3, [0, 2, 2])


def parquet_hidden_labels(folder):
    write_parquet(folder, [a_cell()] * 3, [0, 1, 2], [-1, -1, -1])


def parquet_null_labels(folder):
    write_parquet(folder, [a_cell()] * 3, [0, None, 2])


def parquet_one_class(folder):
    write_parquet(folder, [a_cell()] * 3, [0, 0, 0], names=["cat"])


def parquet_mixed_sizes(folder):
    write_parquet(folder, [a_cell(), a_cell(5), a_cell()], [0, 1, 2])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda _: None, "holds no Parquet files; .* imagefolder:"),
        (parquet_truncated, r"train-00000-of-00001\.parquet is not a whole Parquet file"),
        (parquet_no_test, "has splits: train; needs train and test"),
        (parquet_empty, "the train split has no rows"),
        (parquet_no_image, "train row 1, column 'picture' cannot be read as an image"),
        (parquet_null_image, "train row 1, column 'picture' is empty"),
        (parquet_class_without_images, "class 'dog' has no training images"),
        (parquet_hidden_labels, "test split: labels must not be negative"),
        (parquet_null_labels, "column 'kind' must hold one integer label"),
        (parquet_one_class, r"has 1 class\(es\)"),
        (parquet_mixed_sizes, "is 5x5 and images before it are 4x4; pass image_size"),
    ],
)
def test_bad_parquet(tmp_path, quiet, write, message):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "photo"}, "set image_column to one of picture: 'photo'"),
        ({"image_column": "kind"}, "set image_column to one of picture: 'kind'"),
        ({"label_column": "picture"}, "set label_column to one of kind: 'picture'"),
        ({"image_size": 0}, "image_size must lie in"),
        ({"image_size": 10**9}, "image_size must lie in"),
        ({"validation": 12}, "validation must be"),
        ({"validation": 11}, "validation takes all 4 training"),
    ],
)
def test_bad_options(parquet, options, message):
    with pytest.raises(InputError, match=message):
        load_dataset(str(parquet[0]), **options)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "cifar",
        "digits ",
        "npz:",
        "imagefolder:",
        "hf:",
        "x:y",
        "/nowhere",
        "x" * 5000,
        "~nobody-here/x",
        "npz:a\0",
    ],
)
def test_unknown_data_set(spec):
    with pytest.raises(InputError, match="data set '") as caught:
        load_dataset(spec)
    assert "\n" not in str(caught.value)


# --- folders of pictures ------------------------------------------------------------------------


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def test_image_folder_with_splits(tmp_path):
    pixels = noise(6, 7, 5, 3)
    for i, image in enumerate(pixels[:4]):
        save(tmp_path / "train" / "ab"[i // 2] / f"{i}.png", image)
    for i, image in enumerate(pixels[4:]):
        save(tmp_path / "test" / "ab"[i] / "deep" / f"{i}.bmp", image)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("not a picture")
    loaded = load_dataset(f"imagefolder:{tmp_path}")
    assert loaded.image_shape == (3, 7, 5)
    assert np.array_equal(loaded.train.images.permute(0, 2, 3, 1), pixels[:4])
    assert np.array_equal(loaded.test.images.permute(0, 2, 3, 1), pixels[4:])
    assert loaded.train.labels.tolist() == [0, 0, 1, 1]
    assert loaded.class_names == ("a", "b")


def test_image_folder_without_splits(tmp_path):
    pixels = noise(19, 4, 4)
    for i, image in enumerate(pixels):
        save(tmp_path / ("cat" if i < 12 else "dog") / f"{i:02}.png", image)
    loaded = load_dataset(f"imagefolder:{tmp_path}")
    assert loaded.test.labels.tolist() == [0, 0, 1]
    assert np.array_equal(loaded.test.images[:, 0], pixels[[5, 11, 17]])
    assert np.array_equal(loaded.train.images[:, 0], np.delete(pixels, [5, 11, 17], axis=0))
    assert loaded.train.rows.tolist() == list(range(16))


def test_grey_and_colour_together_make_three_channels(tmp_path):
    grey, colour = noise(4, 4), noise(4, 4, 3)
    for split in ("train", "test"):
        save(tmp_path / split / "a" / "0.png", grey)
        save(tmp_path / split / "b" / "0.png", colour)
    loaded = load_dataset(f"imagefolder:{tmp_path}")
    assert np.array_equal(loaded.train.images[0], np.stack([grey] * 3))
    assert np.array_equal(loaded.train.images[1], colour.transpose(2, 0, 1))


def reload(image, suffix="png", **options):
    """What `to_grey_or_rgb` makes of a picture that went through a file."""
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return np.asarray(pictures.to_grey_or_rgb(Image.open(stream)))


def test_modes_of_pictures():
    grey, colour = noise(4, 4), noise(4, 4, 3)
    assert np.array_equal(reload(Image.fromarray(grey)), grey)
    assert np.array_equal(reload(Image.fromarray(colour)), colour)
    bits = Image.fromarray(grey > 127)
    assert np.array_equal(reload(bits), (grey > 127) * np.uint8(255))
    assert np.array_equal(reload(Image.fromarray(grey.astype(np.uint16) * 257)), grey)
    assert np.array_equal(reload(Image.fromarray(grey.astype(np.int32) * 257), "tiff"), grey)
    unit = Image.fromarray((grey / 255).astype(np.float32))
    assert np.array_equal(reload(unit, "tiff"), grey)


def test_palettes():
    palette = Image.fromarray(noise(4, 4) % 4, "L")
    indices = np.asarray(palette)
    image = Image.fromarray(indices)
    colours = noise(4, 3)
    image.putpalette(colours.tobytes())
    assert np.array_equal(reload(image), colours[indices])
    greys = np.repeat(noise(4, 1), 3, axis=1)
    image.putpalette(greys.tobytes())
    assert np.array_equal(reload(image), greys[indices, 0])
    image.putpalette(colours.tobytes())
    expected = colours[indices]
    expected[indices == 2] = 255
    assert np.array_equal(reload(image, transparency=2), expected)


def test_transparency_is_white():
    rgba = noise(4, 4, 4)
    rgba[..., 3] = [0, 255, 0, 255]
    expected = np.where(rgba[..., 3:] == 255, rgba[..., :3], 255)
    assert np.array_equal(reload(Image.fromarray(rgba)), expected)
    la = Image.fromarray(noise(4, 4, 2))
    expected = np.where(np.asarray(la)[..., 1] > 127, np.asarray(la)[..., 0], 255)
    la.putalpha(la.getchannel("A").point(lambda a: 255 * (a > 127)))
    assert np.array_equal(reload(la), expected)
    keyed = Image.new("RGB", (2, 1), (9, 8, 7))
    keyed.putpixel((1, 0), (1, 2, 3))
    assert reload(keyed, transparency=(9, 8, 7)).tolist() == [[[255] * 3, [1, 2, 3]]]


def test_cmyk_and_orientation():
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert reload(cmyk, "tiff").tolist() == [[[255, 0, 0]] * 2] * 2
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    image = Image.fromarray(noise(3, 5))
    turned = reload(image, exif=exif)
    assert np.array_equal(turned, np.rot90(np.asarray(image), -1))


def test_mixed_sizes_are_cropped_and_resampled(tmp_path):
    wide, tall = np.zeros((8, 16), np.uint8), np.zeros((20, 4), np.uint8)
    wide[:, 4:12], tall[8:12] = 200, 100  # their central squares
    for split in ("train", "test"):
        save(tmp_path / split / "a" / "0.png", wide)
        save(tmp_path / split / "b" / "0.png", tall)
    with pytest.raises(InputError, match=r"b/0\.png is 4x20 .* 16x8; pass image_size"):
        load_dataset(f"imagefolder:{tmp_path}")
    loaded = load_dataset(f"imagefolder:{tmp_path}", image_size=6)
    assert loaded.image_shape == (1, 6, 6)
    assert (loaded.train.images[0] == 200).all()
    assert (loaded.train.images[1] == 100).all()
    unchanged = noise(6, 6)
    assert np.array_equal(pictures.fit(Image.fromarray(unchanged), 6), unchanged)


def folder_few(root):
    for c in "ab":
        save(root / c / "0.png", noise(4, 4))


def folder_one_class(root):
    save(root / "a" / "0.png", noise(4, 4))


def folder_no_classes(root):
    save(root / "0.png", noise(4, 4))


def folder_latin_class(root):
    folder_one_class(root)
    (root / os.fsdecode(b"caf\xe9")).mkdir()


def folder_empty_class(root):
    save(root / "a" / "0.png", noise(4, 4))
    (root / "b").mkdir()


def folder_no_test(root):
    for c in "ab":
        save(root / "train" / c / "0.png", noise(4, 4))


def folder_no_train(root):
    for c in "ab":
        save(root / "test" / c / "0.png", noise(4, 4))


def folder_strange_test_class(root):
    folder_no_test(root)
    save(root / "test" / "z" / "0.png", noise(4, 4))


def folder_empty_test(root):
    folder_no_test(root)
    (root / "test").mkdir()


def folder_no_image(root):
    for i in range(6):
        save(root / "a" / f"{i}.png", noise(4, 4))
    (root / "b").mkdir()
    (root / "b" / "0.png").write_text("hello")


def folder_truncated_image(root):
    folder_no_image(root)
    (root / "b" / "0.png").write_bytes(png(noise(64, 64))[:2000])


def folder_wild_float(root):
    folder_no_image(root)
    (root / "b" / "0.png").unlink()
    save(root / "b" / "0.tiff", np.full((4, 4), np.nan, np.float32))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda _: None, r"has 0 class folder\(s\); it needs 2 or more"),
        (folder_no_classes, r"has 0 class folder\(s\)"),
        (folder_one_class, r"has 1 class folder\(s\); it needs 2 or more"),
        (folder_empty_class, "class folder .*b holds no images"),
        (folder_latin_class, r"class folder 'caf\\udce9' is not UTF-8; give another name"),
        (folder_no_test, "has splits: train; needs train and test"),
        (folder_no_train, "has splits: test; needs train and test"),
        (folder_strange_test_class, "test class 'z' is not among the training classes"),
        (folder_empty_test, r"test has 0 class folder\(s\); it needs 1"),
        (folder_few, "no class has 6 images"),
        (folder_no_image, r"b/0\.png cannot be read as an image"),
        (folder_truncated_image, r"b/0\.png cannot be read as an image"),
        (folder_wild_float, r"b/0\.tiff cannot be read as an image \(its pixels are not in"),
    ],
)
def test_bad_image_folder(tmp_path, write, message):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(f"imagefolder:{folder}")
    assert "\n" not in str(caught.value)


def test_missing_folder_and_bomb(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="there is no such folder"):
        load_dataset(f"imagefolder:{tmp_path / 'nothing'}")
    folder_no_test(tmp_path)
    save(tmp_path / "test" / "a" / "0.png", noise(4, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match="decompression bomb"):
        load_dataset(f"imagefolder:{tmp_path}")


# --- arrays -------------------------------------------------------------------------------------


def arrays(**changes):
    good = {
        "x_train": noise(6, 4, 5, 3),
        "y_train": np.array([0, 1, 2] * 2),
        "x_test": noise(3, 4, 5, 3, seed=1),
        "y_test": np.array([0, 1, 2]),
    }
    return {**good, **changes}


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "nhw", "float", "int"])
def test_npz_layouts(tmp_path, layout, cache):
    train, test = noise(6, 4, 5, 3), noise(3, 4, 5, 3, seed=1)
    if layout == "nhw":
        train, test = train[..., :1], test[..., :1]
    written = {
        "nhwc": lambda x: x,
        "nchw": lambda x: x.transpose(0, 3, 1, 2),
        "nhw": lambda x: x[..., 0],
        "float": lambda x: (x / 255).astype(np.float32),
        "int": lambda x: x.astype(np.int64),
    }[layout]
    np.savez(tmp_path / "a.npz", **arrays(x_train=written(train), x_test=written(test)))
    loaded = load_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert np.array_equal(loaded.train.images.permute(0, 2, 3, 1), train)
    assert np.array_equal(loaded.test.images.permute(0, 2, 3, 1), test)
    assert loaded.name == "a"
    assert not cache.exists()


def test_npz_as_in_medmnist_and_resized(tmp_path):
    names = {"x_train": "train_images", "y_train": "train_labels"}
    names |= {"x_test": "test_images", "y_test": "test_labels"}
    held = {names[key]: value for key, value in arrays().items()}
    for key in ("train_labels", "test_labels"):
        held[key] = held[key].astype(np.uint8)[:, None]
    np.savez(tmp_path / "a.npz", val_images=noise(1, 4, 5, 3), **held)
    loaded = load_dataset(f"npz:{tmp_path / 'a.npz'}", image_size=8)
    assert loaded.train.labels.tolist() == [0, 1, 2] * 2
    assert loaded.image_shape == (3, 8, 8)
    plane = Image.fromarray(held["train_images"][1, ..., 2])
    assert np.array_equal(loaded.train.images[1, 2], pictures.fit(plane, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.full((6, 4, 5, 3), np.nan)}, "array x_train holds NaN pixels"),
        ({"x_test": np.full((3, 4, 5, 3), 2.0)}, r"array x_test has values in \[2, 2\]"),
        ({"x_train": np.full((6, 4, 5, 3), -1)}, r"has values in \[-1, -1\]"),
        ({"x_train": np.full((6, 4, 5, 3), np.inf)}, r"has values in \[inf, inf\]"),
        ({"x_train": np.zeros((6, 4, 5, 3), bool)}, "must hold uint8 pixels, found bool"),
        ({"x_train": np.zeros((6, 4, 5, 4), np.uint8)}, "must have shape n h w, n h w c"),
        ({"x_train": np.zeros((6, 20), np.uint8)}, "must have shape n h w"),
        ({"x_train": np.zeros((0, 4, 5, 3), np.uint8)}, "images are empty"),
        ({"y_train": np.array([0, 1, 2])}, "train split: labels must be int64, one for each"),
        ({"y_train": np.eye(6)}, "must hold one integer label per image"),
        ({"y_train": np.array([0.0, 1, 2, 0, 1, 2])}, "must hold one integer label per image"),
        ({"y_train": np.array([0, 1, 3] * 2)}, "class '2' has no training images"),
        ({"y_train": np.array([0, 1, -1] * 2)}, "labels must not be negative"),
        ({"y_train": np.array([0, 1, 10**15] * 2)}, "array y_train must lie below"),
        ({"y_test": np.array([0, 1, 3])}, "test split: labels must lie in 0...2, found 3"),
        ({"y_train": np.zeros(6, int)}, r"has 1 class\(es\)"),
        ({"x_test": np.zeros((3, 5, 5, 3), np.uint8)}, "bring them to one shape"),
        ({"y_test": np.array([0, None, 2], dtype=object)}, "not a whole npz file of plain arrays"),
    ],
)
def test_bad_npz(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert "\n" not in str(caught.value)
    assert "a.npz" in str(caught.value)


def test_npz_that_is_none(tmp_path):
    file = tmp_path / "a.npz"
    with pytest.raises(InputError, match="there is no such file"):
        load_dataset(f"npz:{file}")
    np.savez(file, x=1)
    with pytest.raises(InputError, match=r"must hold arrays x_train, .*; it has x"):
        load_dataset(f"npz:{file}")
    np.savez_compressed(file, **arrays())
    whole = file.read_bytes()
    for broken in (b"", b"nonsense", whole[:-30], whole[:60] + b"\xff" * 40 + whole[100:]):
        file.write_bytes(broken)
        with pytest.raises(InputError, match="not a whole npz file"):
            load_dataset(f"npz:{file}")


def cifar_files(root, coarse=False, n=4):
    rng = np.random.default_rng(0)
    train = ["train.bin"] if coarse else [f"data_batch_{i}.bin" for i in range(1, 6)]
    root.mkdir(parents=True, exist_ok=True)
    images, labels = {}, {}
    for name in [*train, "test.bin" if coarse else "test_batch.bin"]:
        images[name] = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        labels[name] = np.arange(n, dtype=np.uint8) % 3
        columns = [labels[name][:, None], images[name].reshape(n, -1)]
        if coarse:
            columns.insert(0, np.full((n, 1), 7, np.uint8))
        np.concatenate(columns, axis=1).tofile(root / name)
    return np.concatenate([images[name] for name in train]), images, labels


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_cifar_binary(tmp_path, coarse, nested):
    inner = "cifar-100-binary" if coarse else "cifar-10-batches-bin"
    root = tmp_path / inner if nested else tmp_path
    train, images, labels = cifar_files(root, coarse)
    names = "fine_label_names.txt" if coarse else "batches.meta.txt"
    (root / names).write_text("apple\nbear\ncup\n\n")
    loaded = load_dataset(f"cifar-binary:{tmp_path}")
    assert loaded.class_names == ("apple", "bear", "cup")
    assert np.array_equal(loaded.train.images, train)
    test = list(images)[-1]
    assert np.array_equal(loaded.test.images, images[test])
    assert np.array_equal(loaded.test.labels, labels[test])
    (root / names).unlink()
    assert load_dataset(f"cifar-binary:{tmp_path}").class_names == ("0", "1", "2")


def test_bad_cifar_binary(tmp_path):
    with pytest.raises(InputError, match=r"holds no test_batch\.bin or test\.bin"):
        load_dataset(f"cifar-binary:{tmp_path}")
    cifar_files(tmp_path)
    third = tmp_path / "data_batch_3.bin"
    third.write_bytes(third.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_3\.bin is not a whole number of 3073-byte"):
        load_dataset(f"cifar-binary:{tmp_path}")
    third.unlink()
    with pytest.raises(InputError, match=r"data_batch_3\.bin is missing"):
        load_dataset(f"cifar-binary:{tmp_path}")


def test_decoding_keeps_the_warning_filters(tmp_path):
    before = list(warnings.filters)
    pictures.decode([("a", png(noise(4, 4)))], 1, None)
    assert list(warnings.filters) == before


def test_cache_key_ignores_nothing_that_matters(tmp_path):
    file = tmp_path / "f"
    file.write_text("1")
    keys = {
        data._cache_file(Path("c"), options, files).name
        for options, files in (
            (["a", None], [file]),
            (["b", None], [file]),
            (["a", 8], [file]),
            (["a", None], []),
        )
    }
    assert len(keys) == 4


@given(st.sets(st.integers(0, 5000), max_size=60))
def test_row_numbers_survive_packing(rows):
    packed = pack_rows(torch.tensor(sorted(rows, reverse=True), dtype=torch.int64))
    assert unpack_rows(packed).tolist() == sorted(rows)
    assert len(packed) <= 4 * (max(rows, default=0) // 24 + 1)


def test_what_packs_no_rows_is_refused():
    with pytest.raises(InputError, match="rows: not a set of row numbers"):
        unpack_rows("no base64!")
