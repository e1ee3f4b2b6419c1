import pickle
import resource
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itgan.data import PUBLISHED, Dataset, ImageSet
from itgan.errors import InputError
from itgan.file_configs import ScoreConfig
from itgan.foreign import is_foreign, read_set

NONE = ScoreConfig()
NAMES = ("zebra", "ant", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


@pytest.fixture(scope="module")
def grey(images, digits):
    """40 digits, four of each class, and their data set under names out of alphabetical order."""
    images = replace(images, class_names=NAMES)
    return Dataset("letters", images, None, images)


@pytest.fixture(scope="module")
def coloured():
    """20 images of 3x32x32 noise, two of each class."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=rng)
    images = ImageSet(pixels, torch.arange(20) % 10, class_names=NAMES)
    return Dataset("cifar10-mini", images, None, images)


def write_folder(root, images, names):
    for row, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(folder / f"{row:03}.png")


def normalised(images, mean, std):
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (images.images.float() / 255 - mean) / std


def write_pt(path, *entries, **beside):
    torch.save({"data": [list(entry) for entry in entries], **beside}, path)
    return path


def constants(mean, std):
    return ScoreConfig(mean=tuple(mean), std=tuple(std))


@pytest.fixture
def family(tmp_path, coloured):
    """A file of the distillation family, with CIFAR-10's constants and what lies beside."""
    train = coloured.train
    images = normalised(train, *PUBLISHED[10])
    path = tmp_path / "res_DM_CIFAR10_ConvNet_1ipc.pt"
    accuracies = {"ConvNet": [np.float64(0.26), np.float32(0.3), 0.25], "n": np.int64(3)}
    noise = torch.randn(20, 3, 32, 32)
    first = (noise.clamp(-1, 1), train.labels)
    return write_pt(path, first, (images, train.labels), accs_all_exps=accuracies)


# --- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "train"])
def test_folders_are_matched_to_classes_by_name(tmp_path, grey, inside, capsys):
    write_folder(tmp_path / "set" / inside, grey.train, NAMES)
    found = read_set(tmp_path / "set", grey, NONE)
    assert torch.equal(found.images, grey.train.images)
    assert torch.equal(found.labels, grey.train.labels)
    assert (found.name, found.nbytes) == ("set", 40 * 64 + 40)
    assert capsys.readouterr().err == ""


def test_other_folders_are_classes_in_order_with_a_note(tmp_path, grey, capsys):
    write_folder(tmp_path / "set", grey.train, [f"{9 - label}-x" for label in range(10)])
    found = read_set(tmp_path / "set", grey, NONE)
    assert torch.equal(found.labels, grey.train.labels)
    backwards = grey.train.images.view(10, 4, 1, 8, 8).flip(0).reshape(40, 1, 8, 8)
    assert torch.equal(found.images, backwards)
    (line,) = capsys.readouterr().err.splitlines()
    assert "in sorted order are taken for classes 0...9" in line


def test_a_set_is_named_after_its_folder(tmp_path, grey, monkeypatch):
    write_folder(tmp_path / "set-1.5", grey.train, NAMES)
    monkeypatch.chdir(tmp_path / "set-1.5")
    assert read_set(Path(), grey, NONE).name == "set-1.5"


def test_folders_that_do_not_fit(tmp_path, grey, coloured):
    write_folder(tmp_path / "set", grey.train, NAMES)
    with pytest.raises(
        InputError, match=r"images of shape \(1, 8, 8\), but data set 'cifar10-min"
    ):
        read_set(tmp_path / "set", coloured, NONE)
    with pytest.raises(InputError, match=r"^mean, std: .* holds 8-bit pixels; leave them out"):
        read_set(tmp_path / "set", grey, constants([0.5], [0.5]))
    with pytest.raises(InputError, match=r"^logits: .* has hard labels; leave it out"):
        read_set(tmp_path / "set", grey, ScoreConfig(logits=True))
    with pytest.raises(InputError, match=r"^entry: .* holds one set; leave it out"):
        read_set(tmp_path / "set", grey, ScoreConfig(entry=0))
    (tmp_path / "set" / "zebra" / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png cannot be read as an image"):
        read_set(tmp_path / "set", grey, NONE)
    (tmp_path / "set" / "extra").mkdir()
    with pytest.raises(InputError, match=r"class folder .*extra holds no images; fill or remove"):
        read_set(tmp_path / "set", grey, NONE)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"bare has 0 class folders, but .* has 10 classes; give"):
        read_set(tmp_path / "bare", grey, NONE)


# --- npz ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["train_images train_labels", "x_train y_train", "images labels"])
@pytest.mark.parametrize("layout", ["n h w", "n h w c", "n c h w"])
def test_arrays_of_any_layout(tmp_path, grey, keys, layout):
    pixels = grey.train.images.numpy()
    shaped = {"n h w": pixels[:, 0], "n h w c": pixels.transpose(0, 2, 3, 1), "n c h w": pixels}
    labels = grey.train.labels.numpy().astype(np.uint8)
    arrays = dict(zip(keys.split(), (shaped[layout], labels), strict=True))
    np.savez(tmp_path / "set.npz", **arrays)
    found = read_set(tmp_path / "set.npz", grey, NONE)
    assert torch.equal(found.images, grey.train.images)
    assert torch.equal(found.labels, grey.train.labels)
    assert found.name == "set"


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, ">f4"])
def test_floats_stay_floats(tmp_path, grey, kind):
    unit = grey.train.images.numpy().astype(np.float64) / 255
    soft = np.eye(10)[grey.train.labels.numpy()].astype(kind)
    np.savez(tmp_path / "a.npz", images=unit.astype(kind), labels=soft)
    found = read_set(tmp_path / "a.npz", grey, NONE)
    assert found.images.dtype == found.labels.dtype == torch.float32
    torch.testing.assert_close(found.images, grey.train.floats(), rtol=0, atol=2e-3)
    assert torch.equal(found.labels, torch.eye(10)[grey.train.labels])
    assert found.images.abs().max() <= 1
    np.savez(tmp_path / "b.npz", images=(2 * unit - 1).astype(kind), labels=soft)
    with pytest.raises(InputError, match=r"with mean \(0.0,\) and .* \[-1, 1\], not in \[0, 1\]"):
        read_set(tmp_path / "b.npz", grey, NONE)
    found = read_set(tmp_path / "b.npz", grey, constants([0.5], [0.5]))
    torch.testing.assert_close(found.images, grey.train.floats(), rtol=0, atol=2e-3)


def test_arrays_that_are_wrong(tmp_path, grey):
    pixels, labels = grey.train.images.numpy(), grey.train.labels.numpy()
    path = tmp_path / "set.npz"
    for arrays, message in (
        ({"pixels": pixels}, "must hold arrays train_images, train_labels; it has pixels"),
        ({"images": pixels, "labels": labels[:7]}, "40 images and 7 labels; give one"),
        ({"images": pixels[:0], "labels": labels[:0]}, "0 images and 0 labels"),
        ({"images": pixels.reshape(40, 64), "labels": labels}, "must have shape n h w"),
        ({"images": pixels[..., :4], "labels": labels}, r"images of shape \(1, 8, 4\), but"),
        ({"images": pixels, "labels": labels + 1}, r"labels lie in 1\.\.\.10, but .* 0\.\.\.9"),
        ({"images": pixels, "labels": labels - 1}, r"labels lie in -1\.\.\.8, but data set"),
        ({"images": pixels, "labels": labels / 1}, "must hold one integer label per image"),
        ({"images": pixels, "labels": np.eye(9)[labels % 9]}, "soft labels over 9 classes, but"),
        ({"images": pixels / 255, "labels": np.eye(10)[labels] * 2}, "no probabilities"),
        ({"images": pixels, "labels": np.eye(10)[labels] * np.nan}, "labels hold NaN"),
        ({"images": pixels * np.nan, "labels": labels}, "images hold NaN or infinity"),
        ({"images": pixels.astype("i4") - 1, "labels": labels}, r"pixels must lie in \[0, 255\]"),
        ({"images": np.array([{}]), "labels": labels}, "not a whole npz file of plain arrays"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=message):
            read_set(path, grey, NONE)
    path.write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match="not a whole npz file of plain arrays"):
        read_set(path, grey, NONE)


# --- the distillation family --------------------------------------------------------------------


def test_the_last_entry_is_read_with_known_constants(family, coloured):
    found = read_set(family, coloured, NONE)
    assert found.images.dtype == torch.float32
    torch.testing.assert_close(found.images, coloured.train.floats(), rtol=0, atol=1e-5)
    assert found.images.abs().max() <= 1
    assert torch.equal(found.labels, coloured.train.labels)
    assert found.name == "res_DM_CIFAR10_ConvNet_1ipc"
    assert found.nbytes == 20 * 3 * 32 * 32 * 4 + 20


def test_another_entry_can_be_chosen(family, coloured):
    last, first = (read_set(family, coloured, ScoreConfig(entry=k)) for k in (1, 0))
    assert torch.equal(last.images, read_set(family, coloured, NONE).images)
    assert not torch.equal(last.images, first.images)
    with pytest.raises(InputError, match=r"^entry 2: .* holds 2 set\(s\), counted from 0"):
        read_set(family, coloured, ScoreConfig(entry=2))


def test_constants_are_known_for_cifar_alone(tmp_path, family, coloured, grey):
    for other in (
        replace(coloured, name="svhn"),
        replace(coloured, train=replace(coloured.train, class_names=(*NAMES, "kiwi"))),
    ):
        with pytest.raises(InputError, match=r"^mean, std: .* are not known for .*give --mean an"):
            read_set(family, other, NONE)
    unnamed = replace(coloured, name="download")  # the format tells what it is
    found = read_set(family, unnamed, ScoreConfig(dataset="cifar-binary:download"))
    assert torch.equal(found.images, read_set(family, coloured, NONE).images)
    path = write_pt(tmp_path / "x.pt", (normalised(grey.train, [0.3], [0.4]), grey.train.labels))
    found = read_set(path, grey, constants([0.3], [0.4]))
    torch.testing.assert_close(found.images, grey.train.floats(), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"^mean, std: 3 numbers for images of 1 channels"):
        read_set(path, grey, constants([0.3] * 3, [0.4] * 3))


def test_the_constants_of_cifar100(tmp_path, coloured):
    train = replace(coloured.train, class_names=tuple(f"{i}" for i in range(100)))
    data = Dataset("cifar100", train, None, train)
    path = write_pt(tmp_path / "x.pt", (normalised(train, *PUBLISHED[100]), train.labels))
    torch.testing.assert_close(
        read_set(path, data, NONE).images, train.floats(), rtol=0, atol=1e-5
    )


def test_wrong_constants_are_noticed(family, coloured):
    for mean, std in (([0.5] * 3, [1.0] * 3), ([0.0] * 3, [0.2] * 3)):
        with pytest.raises(InputError, match="these constants look wrong: give --mean and --std"):
            read_set(family, coloured, constants(mean, std))


def test_what_optimisation_carried_outside_is_clamped_aloud(tmp_path, grey, capsys):
    images = grey.train.floats().clone()
    images.clamp_(-0.9, 0.9)
    images[0, 0, 0, :2] = torch.tensor([1.009, -1.009])
    path = write_pt(tmp_path / "x.pt", (images, grey.train.labels))
    config = constants([0.5], [0.5])
    found = read_set(path, grey, config)
    assert found.images[0, 0, 0, :2].tolist() == [1, -1]
    assert capsys.readouterr().err == ""
    images[0, 0, 1] = 2.5
    found = read_set(write_pt(path, (images, grey.train.labels)), grey, config)
    assert found.images[0, 0, 1].tolist() == [1] * 8
    assert "0.31% of the pixel values lie outside [0, 1]" in capsys.readouterr().err
    for change in (lambda x: x * 0.5 + 0.75, lambda x: x.index_fill(0, torch.tensor([3]), 3.1)):
        write_pt(path, (change(images), grey.train.labels))
        with pytest.raises(InputError, match="constants look wrong"):
            read_set(path, grey, config)


def test_soft_labels_and_logits(tmp_path, coloured):
    images = normalised(coloured.train, *PUBLISHED[10])
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    path = write_pt(tmp_path / "x.pt", (images, logits.softmax(1).double()))
    found = read_set(path, coloured, NONE)
    torch.testing.assert_close(found.labels, logits.softmax(1))
    write_pt(path, (images, logits.requires_grad_()))
    with pytest.raises(InputError, match=r"no probabilities .*; give --logits if they are logits"):
        read_set(path, coloured, NONE)
    found = read_set(path, coloured, ScoreConfig(logits=True))
    torch.testing.assert_close(found.labels, logits.detach().softmax(1))
    assert not found.labels.requires_grad


def test_integer_pixels_and_narrow_floats(tmp_path, coloured, capsys):
    train = coloured.train
    path = write_pt(tmp_path / "x.pt", (train.images, train.labels.int()))
    found = read_set(path, coloured, NONE)
    assert torch.equal(found.images, train.images)
    write_pt(path, (normalised(train, *PUBLISHED[10]).bfloat16(), train.labels))
    found = read_set(path, coloured, NONE)
    torch.testing.assert_close(found.images, train.floats(), rtol=0, atol=0.01)
    write_pt(path, (train.images[:5], train.labels[:5]))
    read_set(path, coloured, NONE)
    assert "only 5 of 10 classes have images" in capsys.readouterr().err


def test_files_of_the_family_that_are_wrong(tmp_path, coloured):
    images, labels = normalised(coloured.train, *PUBLISHED[10]), coloured.train.labels
    path = tmp_path / "x.pt"
    for content, message in (
        ([images, labels], r"must hold a dict with 'data': \[\[images, labels\], \.\.\.\]"),
        ({"images": images}, "must hold a dict with 'data'"),
        ({"data": []}, "must hold a dict with 'data'"),
        ({"data": images}, "must hold a dict with 'data'"),
        ({"data": [images]}, "must be two dense tensors"),
        ({"data": [[images]]}, "must be two dense tensors"),
        ({"data": [[images, 3]]}, "must be two dense tensors"),
        ({"data": [[images.to_sparse(), labels]]}, "a tensor that is not dense"),
        ({"data": [[images.long(), labels]]}, "images are torch.int64"),
        ({"data": [[images[0], labels[:3]]]}, r"images are torch.float32 of shape \(3, 32, 32\)"),
        ({"data": [[images, labels.bfloat16()]]}, "must hold one integer label per image"),
        ({"data": [[images, labels[:3]]]}, "20 images and 3 labels"),
        ({"data": [[images / 0, labels]]}, "images hold NaN or infinity"),
        ({"data": [[images[..., :16], labels]]}, r"images of shape \(3, 32, 16\)"),
        ({"data": [[images, labels + 1]]}, r"labels lie in 1\.\.\.10"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            read_set(path, coloured, NONE)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"x\.pt: "):
        read_set(path, coloured, NONE)


class Command:
    def __init__(self, line):
        self.line = line

    def __reduce__(self):
        return (subprocess.check_call, (self.line,))


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_file_that_would_run_a_command_does_not(tmp_path, coloured, save):
    images, labels = coloured.train.images, coloured.train.labels
    hostile = Command(["touch", str(tmp_path / "done")])
    for content in (
        {"data": [[images, labels]], "accs_all_exps": hostile},
        {"data": [[images, labels]], "accs_all_exps": np.array([hostile], dtype=object)},
    ):
        save(content, tmp_path / "x.pt")
        with pytest.raises(InputError, match="holds more than tensors"):
            read_set(tmp_path / "x.pt", coloured, NONE)
    assert not (tmp_path / "done").exists()


def test_which_paths_are_for_this_reader(tmp_path):
    for name in ("a.npz", "a.pt", "a.pth", "a.safetensors", "a"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    foreign = {p.name for p in (*tmp_path.iterdir(), tmp_path / "none.npz") if is_foreign(p)}
    assert foreign == {"a.npz", "a.pt", "a.pth", "folder"}


class Blank:
    """A number of NumPy's that claims to have two billion bytes."""

    def __reduce__(self):
        return (np._core.multiarray.scalar, (np.dtype("V2000000000"),))


def test_numbers_of_numpy_are_not_built(tmp_path, coloured):
    path = write_pt(tmp_path / "x.pt", (coloured.train.images, coloured.train.labels), n=Blank())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(read_set(path, coloured, NONE)) == 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
