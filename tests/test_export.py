import hashlib
import json
import zipfile

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import itgan
from itgan import export, sources
from itgan.data import ImageSet, load_dataset
from itgan.errors import InputError
from itgan.export import EXPORTERS, export_imagefolder, export_npz, export_parquet, folder_names
from itgan.generators import BigGANShape, FrozenGenerator, wrap_generator
from itgan.latents import LatentBank, sample_latents
from itgan.sources import SyntheticSet

NAMES = ("zebra", "ant/hill", "ant:hill")


@pytest.fixture(scope="module")
def synthetic(generator, digits):
    """60 grey images, six of each class, in no order of label or row."""
    train = digits.train
    rows = torch.cat([train.class_indices(label)[20:26] for label in range(10)])
    rows = rows[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    bank = sample_latents(generator, train.select(rows))
    about = {"dataset": "digits", "class_names": list(digits.class_names)}
    return SyntheticSet(generator, bank, about=about)


@pytest.fixture(scope="module")
def coloured(make_biggan):
    """12 images of 3x16x16, of classes whose names no file system takes, the last row first."""
    generator = FrozenGenerator.from_biggan(make_biggan(BigGANShape(2, 3, (3, 16, 16), 4)))
    pixels = torch.zeros(12, 3, 16, 16, dtype=torch.uint8)
    rows = torch.arange(11, -1, -1) * 9
    images = ImageSet(pixels, torch.arange(12) % 3, rows, class_names=NAMES)
    bank = sample_latents(generator, images, seed=3)
    return SyntheticSet(generator, bank, about={"class_names": list(NAMES)})


@pytest.fixture(params=["synthetic", "coloured"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "CHUNK", 16)
    monkeypatch.setattr(sources, "CHUNK", 16)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def channels_last(made):
    """What every format must hold: uint8 n h w, or n h w c."""
    return made.materialise().images.permute(0, 2, 3, 1).squeeze(3).numpy()


def by_row(made, rows):
    """Positions in the set of these row numbers."""
    where = {row: i for i, row in enumerate(made.bank.rows.tolist())}
    return [where[int(row)] for row in rows]


def check_hugging_face(made, found):
    assert found.column_names == ["img", "label", "row"]
    assert isinstance(found.features["img"], datasets.Image)
    assert found.features["label"].names == list(made.class_names)
    assert found["row"][:] == made.bank.rows.tolist()
    assert found["label"][:] == made.labels.tolist()
    pictures = np.stack([np.asarray(image) for image in found["img"]])
    np.testing.assert_array_equal(pictures, channels_last(made))


# --- the three formats, read by others ----------------------------------------------------------


def test_an_image_folder_is_read_by_pillow(either, tmp_path):
    export_imagefolder(either, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["provenance.json", "train"]
    classes = sorted((tmp_path / "out" / "train").iterdir())
    expected = channels_last(either)
    seen = []
    for label, folder in enumerate(classes):
        files = sorted(folder.iterdir())
        rows = [int(file.stem) for file in files]
        assert rows == sorted(rows)
        for file, i in zip(files, by_row(either, rows), strict=True):
            assert either.labels[i] == label
            with Image.open(file) as image:
                assert image.format == "PNG"
                np.testing.assert_array_equal(np.asarray(image), expected[i])
            seen.append(i)
    assert sorted(seen) == list(range(len(either)))


def test_an_ensemble_loses_no_image(generator, digits, tmp_path):
    """Several latents of a row, each with a file of its own."""
    rows = digits.train.select(torch.cat([digits.train.class_indices(c)[:2] for c in range(10)]))
    banks = [sample_latents(generator, rows, seed) for seed in (0, 1, 2)]
    both = SyntheticSet(generator, LatentBank.merge(banks, repeat_rows=True))
    export_imagefolder(both, tmp_path / "out")
    files = sorted((tmp_path / "out" / "train").glob("*/*.png"))
    assert len(files) == len(both) == 60
    assert len({file.read_bytes() for file in files}) == 60
    stems = {file.stem for file in files if file.stem.lstrip("0").startswith(f"{rows.rows[3]}-")}
    assert len(stems) == 2


def test_an_image_folder_is_read_by_hugging_face(either, tmp_path):
    export_imagefolder(either, tmp_path / "out")
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"))
    assert list(found) == ["train"]
    classes = sorted((tmp_path / "out" / "train").iterdir())
    assert found["train"].features["label"].names == [folder.name for folder in classes]
    order = [
        i
        for label in range(either.generator.num_classes)
        for i in by_row(either, sorted(either.bank.rows[either.labels == label].tolist()))
    ]
    assert found["train"]["label"][:] == either.labels[order].tolist()
    pictures = np.stack([np.asarray(image) for image in found["train"]["image"]])
    np.testing.assert_array_equal(pictures, channels_last(either)[order])


def test_an_image_folder_is_read_by_our_own_reader(synthetic, tmp_path):
    export_imagefolder(synthetic, tmp_path / "out")
    spec = f"imagefolder:{tmp_path / 'out' / 'train'}"
    found = load_dataset(spec, cache_dir=tmp_path / "cache")
    assert found.class_names == synthetic.class_names
    everything = synthetic.materialise().images
    for label in range(10):  # five of each class for training, the sixth for testing
        rows = sorted(synthetic.bank.rows[synthetic.labels == label].tolist())
        expected = everything[by_row(synthetic, rows)]
        split = [s.images[s.class_indices(label)] for s in (found.train, found.test)]
        assert torch.equal(torch.cat(split), expected)


def test_an_npz_is_read_by_numpy(either, tmp_path):
    export_npz(either, tmp_path / "out")
    with np.load(tmp_path / "out" / "train.npz", allow_pickle=False) as found:
        assert sorted(found) == ["class_names", "rows", "train_images", "train_labels"]
        assert found["train_images"].dtype == np.uint8
        np.testing.assert_array_equal(found["train_images"], channels_last(either))
        assert found["train_labels"].tolist() == either.labels.tolist()
        assert found["rows"].tolist() == either.bank.rows.tolist()
        assert found["class_names"].tolist() == list(either.class_names)


def test_an_npz_with_test_images_is_a_data_set(synthetic, digits, tmp_path):
    export_npz(synthetic, tmp_path / "out")
    with np.load(tmp_path / "out" / "train.npz") as made:
        test = {
            "test_images": digits.test.images.numpy(),
            "test_labels": digits.test.labels.numpy(),
        }
        np.savez(tmp_path / "whole.npz", **made, **test)
    found = load_dataset(f"npz:{tmp_path / 'whole.npz'}")
    assert torch.equal(found.train.images, synthetic.materialise().images)
    assert torch.equal(found.train.labels, synthetic.labels)


@pytest.mark.parametrize("how", ["folder", "data_dir"])
def test_parquet_is_read_by_hugging_face(either, tmp_path, how):
    out = tmp_path / "out"
    export_parquet(either, out)
    found = (
        datasets.load_dataset(str(out))
        if how == "folder"
        else datasets.load_dataset("parquet", data_dir=str(out))
    )
    assert list(found) == ["train"]
    check_hugging_face(either, found["train"])


def test_parquet_beside_test_images_is_a_data_set(synthetic, tmp_path):
    export_parquet(synthetic, tmp_path / "out")
    data = tmp_path / "out" / "data"
    copy = (data / "train-00000-of-00001.parquet").read_bytes()
    (data / "test-00000-of-00001.parquet").write_bytes(copy)
    found = load_dataset(str(tmp_path / "out"), cache_dir=tmp_path / "cache")
    assert torch.equal(found.train.images, synthetic.materialise().images)
    assert torch.equal(found.train.labels, synthetic.labels)
    assert found.class_names == synthetic.class_names


def test_a_set_becomes_a_hugging_face_data_set(either):
    check_hugging_face(either, either.to_hf_dataset())
    some = either.to_hf_dataset(torch.tensor([7, 0]))
    assert some["row"][:] == either.bank.rows[[7, 0]].tolist()


def test_a_stored_set_on_a_device_is_written_alike(synthetic, tmp_path):
    synthetic.save(tmp_path / "set.safetensors")
    found = SyntheticSet.load(tmp_path / "set.safetensors", torch.device("cpu"))
    for name, made in (("a", synthetic), ("b", found)):
        export_npz(made, tmp_path / name)
    assert (tmp_path / "a/train.npz").read_bytes() == (tmp_path / "b/train.npz").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", EXPORTERS)
def test_a_set_on_a_gpu_is_written(synthetic, tmp_path, form):
    synthetic.save(tmp_path / "set.safetensors")
    made = SyntheticSet.load(tmp_path / "set.safetensors", "cuda")
    EXPORTERS[form](made, tmp_path / "out")
    check_hugging_face(made, made.to_hf_dataset())
    difference = made.pixels().int() - synthetic.pixels().int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("form", EXPORTERS)
def test_images_are_made_in_chunks(synthetic, tmp_path, form, monkeypatch):
    sizes = []
    pixels = SyntheticSet.pixels

    def watched(self, indices):
        sizes.append(len(indices))
        return pixels(self, indices)

    monkeypatch.setattr(SyntheticSet, "pixels", watched)
    EXPORTERS[form](synthetic, tmp_path / "out")
    assert sizes == [16, 16, 16, 12]


# --- provenance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", EXPORTERS)
def test_provenance_says_where_the_images_come_from(generator, bank, tmp_path, form):
    provenance = {
        "generator": generator.fingerprint,
        "seed": 5,
        "config": {"steps": 3},
        "start": "inverted",
    }
    bank = LatentBank(bank.latents, bank.labels, bank.rows, "condensed", {}, provenance)
    made = SyntheticSet(generator, bank, about={"dataset": "digits"})
    file = tmp_path / "digits.itgan.safetensors"
    made.save(file)
    EXPORTERS[form](made, tmp_path / "out", file=file)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text()) == {
        "itgan": itgan.__version__,
        "file": {
            "name": "digits.itgan.safetensors",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        },
        **provenance,
        "stage": "condensed",
        "dataset": "digits",
        "class_names": [str(label) for label in range(10)],
        "images": 40,
        "image_shape": [1, 8, 8],
    }


def test_without_a_file_the_generator_is_named_all_the_same(generator, bank, tmp_path):
    plain = LatentBank(bank.latents, bank.labels, bank.rows, "random")
    export_npz(SyntheticSet(generator, plain), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert found["generator"] == generator.fingerprint
    assert (found["file"], found["config"], found["seed"]) == (None, None, None)


# --- names of classes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["dog", "cat"], ["0-dog", "1-cat"]),
        (["Cat", "cat"], ["0-Cat", "1-cat"]),  # one folder where letter case does not count
        (["a/b", "a:b"], ["0-a_b", "1-a_b"]),
        (["", ".."], ["0-class", "1-class"]),
        (["a b", "été"], ["a b", "été"]),
        ([".git", "x" * 300], ["git", "x" * 60]),
        ([str(i) for i in range(10)], [str(i) for i in range(10)]),
        ([str(i) for i in range(11)], [f"{i:02}" for i in range(11)]),
        ([str(i) for i in range(1, 11)], [f"{i - 1}-{i}" for i in range(1, 11)]),
    ],
)
def test_folders_of_classes(names, expected):
    assert folder_names(names) == expected


@given(st.lists(st.text(), min_size=2, max_size=12, unique=True))
def test_any_names_make_folders_in_their_order(names):
    folders = folder_names(names)
    assert folders == sorted(folders)
    assert len({folder.casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert 0 < len(folder.encode()) < 255
        assert folder[0] not in "._ "
        assert not set(folder) & set('/\\\0\n:*?"<>|')


def test_other_names_can_be_given(coloured, tmp_path):
    export_imagefolder(coloured, tmp_path / "out", ["a", "b", "c"])
    assert sorted(p.name for p in (tmp_path / "out/train").iterdir()) == ["a", "b", "c"]
    found = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert found["class_names"] == ["a", "b", "c"]
    for names in (["a", "b"], ["a", "b", "b"]):
        with pytest.raises(
            InputError, match=r"^class_names: 2 different names, but the gen.* 3 cl"
        ):
            export_imagefolder(coloured, tmp_path / "new", names)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", EXPORTERS)
def test_a_directory_in_use_is_refused(synthetic, tmp_path, form):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match=r"^--out .*: exists already; give another"):
            EXPORTERS[form](synthetic, out)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    EXPORTERS[form](synthetic, tmp_path / "link")
    assert (tmp_path / "empty" / "provenance.json").is_file()


@pytest.mark.parametrize("form", EXPORTERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_what_breaks_off_leaves_nothing(synthetic, tmp_path, form, error, monkeypatch):
    pixels = SyntheticSet.pixels
    begun = []

    def broken(self, indices):
        if 40 in indices:
            begun.extend(p for p in tmp_path.rglob("*") if p.is_file())
            raise error
        return pixels(self, indices)

    monkeypatch.setattr(SyntheticSet, "pixels", broken)
    with pytest.raises(error):
        EXPORTERS[form](synthetic, tmp_path / "out")
    assert begun
    assert list(tmp_path.iterdir()) == []


def test_a_class_without_images_is_refused_where_it_would_be_lost(synthetic, tmp_path):
    keep = (synthetic.labels != 4).nonzero().flatten()
    made = SyntheticSet(synthetic.generator, synthetic.bank.select(keep), about=synthetic.about)
    with pytest.raises(InputError, match=r"^class '4' has no images.*npz or parquet"):
        export_imagefolder(made, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    check_hugging_face(made, made.to_hf_dataset())


def test_channels_that_no_picture_has(tmp_path):
    generator = wrap_generator(
        lambda z, y: torch.tanh(z.view(-1, 2, 2, 2) + y.float().view(-1, 1, 1, 1)),
        latent_shape=(8,),
        num_classes=2,
        image_shape=(2, 2, 2),
        value_range=(-1, 1),
    )
    bank = LatentBank(torch.randn(4, 8), torch.arange(4) % 2, torch.arange(4), "random")
    made = SyntheticSet(generator, bank)
    for form in ("imagefolder", "parquet"):
        with pytest.raises(InputError, match="a PNG has 1 or 3 channels, not 2; write npz"):
            EXPORTERS[form](made, tmp_path / "out")
    export_npz(made, tmp_path / "out")
    with np.load(tmp_path / "out" / "train.npz") as found:
        np.testing.assert_array_equal(found["train_images"], channels_last(made))


def test_an_npz_is_the_same_at_any_time(synthetic, tmp_path):
    export_npz(synthetic, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "train.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
