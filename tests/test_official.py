import errno
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from itgan import artefacts
from itgan.condensation import condense
from itgan.configs import CondensationConfig, EvaluationConfig, InversionConfig
from itgan.data import CIFAR10, CIFAR100, PUBLISHED, Dataset, ImageSet, load_dataset
from itgan.embedding import NetworkPool
from itgan.errors import InputError
from itgan.file_configs import ExportConfig, ImportConfig, ScoreConfig
from itgan.foreign import read_set, write_set
from itgan.inversion import invert
from itgan.latents import LatentBank
from itgan.networks import build_network
from itgan.official import (
    export_official,
    import_latents,
    load_convnet,
    read_latents,
    save_convnet,
    write_pieces,
    write_whole,
)
from itgan.sources import SyntheticSet
from itgan.training import accuracy

LABELS = torch.tensor([6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 0, 5] * 5)  # no order at all, as CIFAR's


def latents(n=60, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """The binary version of a CIFAR-10 of 60 noise images, in the official order."""
    root = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    root.mkdir()
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (60, 3073), dtype=np.uint8)
    records[:, 0] = LABELS.numpy()
    for i in range(5):
        (root / f"data_batch_{i + 1}.bin").write_bytes(records[12 * i : 12 * i + 12].tobytes())
    (root / "test_batch.bin").write_bytes(records[:12].tobytes())
    return root


@pytest.fixture
def known(tmp_path):
    """Import options with the labels in a file."""
    np.save(tmp_path / "labels.npy", LABELS.numpy())
    return ImportConfig(labels=str(tmp_path / "labels.npy"))


def pieces(rows_by_class, z, **more):
    """As a run of the authors' code writes them."""
    return {
        "z_split": [z[rows].clone().requires_grad_() for rows in rows_by_class],
        "idx_split": rows_by_class,
        "train_iter": 5000,
        **more,
    }


def rows_of(classes, part=slice(None)):
    return [(c == LABELS).nonzero().flatten().tolist()[part] for c in classes]


# Latents in the whole


@pytest.mark.parametrize(
    ("key", "stage"), [("z_inverse_all", "inverted"), ("z_eff_all", "condensed")]
)
def test_released_latents_come_and_go_bit_equal(tmp_path, binary, key, stage):
    z = latents()
    released = tmp_path / "EfficientGAN_final.pt"
    torch.save({key: z}, released)
    bank = import_latents([released], ImportConfig(dataset=f"cifar-binary:{binary.parent}"))
    assert torch.equal(bank.latents, z)
    assert torch.equal(bank.labels, LABELS)
    assert (bank.rows.tolist(), bank.stage) == (list(range(60)), stage)
    bank.save(tmp_path / "bank.safetensors")
    out = tmp_path / "again" / released.name
    said = export_official(tmp_path / "bank.safetensors", ExportConfig(out=str(out)))
    assert said == "60 latents, whole"
    assert out.read_bytes() == released.read_bytes()
    assert torch.equal(torch.load(out, weights_only=True)[key], z)


def test_a_bank_in_another_order_is_written_in_the_official_one(tmp_path, known):
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    z = latents()
    write_whole(LatentBank(z[order], LABELS[order], order, "condensed"), tmp_path / "a.pt")
    back = import_latents([tmp_path / "a.pt"], known)
    assert torch.equal(back.latents, z)
    assert torch.equal(back.labels, LABELS)


@pytest.mark.parametrize("form", ["a.npy", "a.pt", "a.txt", "a.csv", "a.json"])
def test_labels_from_a_file(tmp_path, form):
    path = tmp_path / form
    if form == "a.npy":
        np.save(path, LABELS.numpy().astype(np.uint8))
    elif form == "a.pt":
        torch.save(LABELS, path)
    elif form == "a.json":
        path.write_text(str(LABELS.tolist()))
    else:
        path.write_text(("\n" if form == "a.txt" else ",").join(map(str, LABELS.tolist())))
    torch.save({"z_eff_all": latents()}, tmp_path / "z.pt")
    bank = import_latents([tmp_path / "z.pt"], ImportConfig(labels=str(path)))
    assert torch.equal(bank.labels, LABELS)


def test_the_generator_is_checked_and_named(tmp_path, known, biggan, make_biggan):
    file = tmp_path / "g.safetensors"
    artefacts.save(file, biggan.state_dict(), {"kind": "generator"})
    torch.save({"z_eff_all": latents()}, tmp_path / "z.pt")
    config = known.model_copy(update={"generator": str(file)})
    bank = import_latents([tmp_path / "z.pt"], config)
    assert len(bank.provenance["generator"]) == 64
    torch.save({"z_eff_all": latents(d=9)}, tmp_path / "z.pt")
    with pytest.raises(InputError, match=r"latents of shape \(9,\), but the generator takes"):
        import_latents([tmp_path / "z.pt"], config)


@pytest.mark.parametrize("spec", ["hf:uoft-cs/cifar10", "cifar10", "imagefolder:x", "npz:x.npz"])
def test_other_orders_are_refused_with_the_remedy(tmp_path, spec):
    torch.save({"z_eff_all": latents()}, tmp_path / "z.pt")
    with pytest.raises(
        InputError, match=r"not in the official order .*cifar-binary:PATH.*--label"
    ):
        import_latents([tmp_path / "z.pt"], ImportConfig(dataset=spec))


def test_labels_are_needed_once(tmp_path, known, binary):
    torch.save({"z_eff_all": latents()}, tmp_path / "z.pt")
    both = known.model_copy(update={"dataset": f"cifar-binary:{binary}"})
    for config in (ImportConfig(), both):
        with pytest.raises(InputError, match=r"^dataset, labels: give one of --dataset cifar-bin"):
            import_latents([tmp_path / "z.pt"], config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one two", "holds no integers; give"),
        ("", "must hold class numbers from 0 on"),
        ("1 -1", "must hold class numbers from 0 on"),
        (None, "no such file"),
    ],
)
def test_files_that_hold_no_labels(tmp_path, text, message):
    path = tmp_path / "labels.txt"
    if text is not None:
        path.write_text(text)
    torch.save({"z_eff_all": latents()}, tmp_path / "z.pt")
    with pytest.raises(InputError, match=f"^labels: .*{message}"):
        import_latents([tmp_path / "z.pt"], ImportConfig(labels=str(path)))


# Pieces


def test_a_piece_comes_and_goes_bit_equal(tmp_path, known):
    z = latents()
    content = pieces(rows_of(range(10), slice(0, 3)), z)
    torch.save(content, tmp_path / "p.pt")
    bank = import_latents([tmp_path / "p.pt"], known)
    assert (bank.stage, bank.provenance["train_iter"]) == ("condensed", 5000)
    assert torch.equal(bank.latents, z[bank.rows])
    assert torch.equal(bank.labels, LABELS[bank.rows])
    bank.save(tmp_path / "bank.safetensors")
    out = tmp_path / "again" / "p.pt"
    said = export_official(tmp_path / "bank.safetensors", ExportConfig(out=str(out)))
    assert said == f"{len(bank)} latents, in pieces"
    back = torch.load(out, weights_only=True)
    assert back.keys() == content.keys()
    assert back["idx_split"] == content["idx_split"]
    assert back["train_iter"] == 5000
    assert all(map(torch.equal, back["z_split"], content["z_split"]))
    again = import_latents([out], known)
    again.save(tmp_path / "bank.safetensors")
    export_official(tmp_path / "bank.safetensors", ExportConfig(out=str(tmp_path / "p.pt")))
    assert (tmp_path / "p.pt").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("numpy", ["numpy._core", "numpy.core"])
def test_classes_apart_are_named_by_an_array_of_numpy(tmp_path, known, numpy):
    classes = [7, 2, 9]
    content = pieces(rows_of(classes), latents(), classes_split=np.array(classes))
    path = tmp_path / "p.pt"
    torch.save(content, path)
    if numpy == "numpy.core":  # as NumPy 1 wrote it
        torch.save(content, path, _use_new_zipfile_serialization=False)
        payload = path.read_bytes()
        assert b"cnumpy._core.multiarray\n" in payload
        path.write_bytes(
            payload.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        )
    with pytest.raises(InputError, match="holds more than tensors"):
        artefacts.load_foreign(path)  # what is let through here stays shut elsewhere
    bank = import_latents([path], known)
    assert bank.rows.tolist() == [row for rows in content["idx_split"] for row in rows]
    assert bank.labels.unique_consecutive().tolist() == classes
    write_pieces(bank, tmp_path / "q.pt")
    with torch.serialization.safe_globals(
        [np._core.multiarray._reconstruct, np.ndarray, np.dtype, np.dtypes.Int64DType]
    ):
        back = torch.load(tmp_path / "q.pt", weights_only=True)
    assert isinstance(back["classes_split"], np.ndarray)
    assert back["classes_split"].tolist() == classes
    assert back["idx_split"] == content["idx_split"]
    assert all(map(torch.equal, back["z_split"], content["z_split"]))


def test_pieces_merge_to_the_whole(tmp_path, known):
    z = latents()
    parts = [(range(5), slice(0, 3)), (range(5), slice(3, None)), (range(5, 10), slice(None))]
    paths = []
    for k, (classes, part) in enumerate(parts):
        more = {"classes_split": np.array(classes)} if k == 2 else {}
        paths.append(tmp_path / f"{k}.pt")
        torch.save(pieces(rows_of(classes, part), z, **more), paths[-1])
    bank = import_latents(paths, known)
    assert torch.equal(bank.latents, z)
    assert torch.equal(bank.labels, LABELS)
    assert bank.provenance["files"] == ["0.pt", "1.pt", "2.pt"]
    with pytest.raises(InputError, match="training row 3 appears twice"):
        import_latents([*paths, paths[0]], known)
    write_pieces(bank, tmp_path / "all.pt")
    assert torch.equal(
        import_latents([tmp_path / "all.pt"], known).latents.sort(0).values, z.sort(0).values
    )
    assert "classes_split" not in torch.load(tmp_path / "all.pt", weights_only=True)


def test_pieces_of_inverted_latents_say_so(tmp_path, known):
    torch.save(pieces(rows_of(range(10)), latents()), tmp_path / "p.pt")
    config = known.model_copy(update={"stage": "inverted"})
    assert import_latents([tmp_path / "p.pt"], config).stage == "inverted"
    torch.save({"z_eff_all": latents()}, tmp_path / "z.pt")
    with pytest.raises(InputError, match=r"^stage: .* holds z_eff_all, which is condensed"):
        import_latents([tmp_path / "z.pt"], config)


def test_files_of_other_layouts(tmp_path):
    rows, z = rows_of(range(10)), latents()
    good = pieces(rows, z)
    swapped = {name: good[name][::-1] for name in ("z_split", "idx_split")}
    twice = {"z_split": [z[:10]], "idx_split": [2 * rows[0]]}
    path = tmp_path / "x.pt"
    for content, message in (
        (z, "holds a Tensor, expected a dict of latents"),
        ({}, "holds nothing; expected z_inverse_all or z_eff_all, or lists z_split and idx_split"),
        ({"z": z}, "holds z; expected z_inverse_all"),
        ({"z_eff_all": z[:59]}, "59 latents, but 60 labels; the layout has one latent for each"),
        ({"z_eff_all": latents(61)}, r"latents of rows 0\.\.\.60, but there are 60 labels"),
        ({"z_eff_all": z[0]}, r"z_eff_all must be a dense float tensor \[n, d\]"),
        ({"z_eff_all": z[:, :0]}, "z_eff_all must be a dense float tensor"),
        ({"z_eff_all": z.long()}, "z_eff_all must be a dense float tensor"),
        ({"z_eff_all": z.to_sparse()}, "holds a tensor that is not dense"),
        ({"z_eff_all": [z]}, "z_eff_all must be a dense float tensor"),
        ({"z_eff_all": z / 0}, r"x\.pt: latent bank: latents hold NaN or infinity"),
        ({"z_eff_all": torch.zeros(1, 8).expand(60, 8)}, "claims to be larger"),
        ({**good, "idx_split": rows[:9]}, "10 tensors in z_split and 9 lists in idx_split"),
        ({**good, "z_split": [], "idx_split": []}, "0 tensors in z_split and 0 lists"),
        ({**good, "classes_split": np.arange(9)}, "must be an array of 10 class numbers"),
        ({**good, "classes_split": np.arange(10.0)}, "holds more than tensors"),
        ({**good, "classes_split": np.array(["a"])}, "holds more than tensors"),
        ({**good, "classes_split": 3}, "classes_split must be an array of 10 class"),
        ({**good, "idx_split": [r[1:] for r in rows]}, r"z_split\[0\] has 5 latents for 4 rows"),
        ({**good, "idx_split": [[0.5]] * 10}, r"idx_split\[0\] must be a list of row numbers"),
        ({**good, "idx_split": [[-1]] * 10}, r"idx_split\[0\] must name rows from 0 on"),
        ({**good, "idx_split": [[2**40]] * 10}, r"idx_split\[0\] must name rows from 0 on"),
        ({**good, "idx_split": [[r + 55 for r in rs] for rs in rows]}, "but there are 60 labels"),
        ({**good, **swapped}, "is of class 0 there, but of class 9 by the labels"),
        ({**good, **twice}, "appears twice"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            read_latents(path, LABELS)
    with pytest.raises(InputError, match="no such file"):
        read_latents(tmp_path / "none.pt", LABELS)


class Command:
    def __init__(self, line):
        self.line = line

    def __reduce__(self):
        return (subprocess.check_call, (self.line,))


def test_the_door_for_numpy_is_open_for_nothing_else(tmp_path):
    hostile = Command(["touch", str(tmp_path / "done")])
    for value in (hostile, np.array([hostile], dtype=object), np.float64(1.0)):
        torch.save(pieces(rows_of(range(10)), latents(), classes_split=value), tmp_path / "x.pt")
        with pytest.raises(InputError, match="holds more than tensors"):
            read_latents(tmp_path / "x.pt", LABELS)
    assert not (tmp_path / "done").exists()


# Writing


def test_what_cannot_be_written(tmp_path, bank):
    inverted = LatentBank(bank.latents, bank.labels, bank.rows, "inverted")
    with pytest.raises(InputError, match=r"^layout: whole needs a latent for every row .* pieces"):
        write_whole(inverted, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"^stage: random latents have no layout"):
        write_whole(bank, tmp_path / "a.pt")
    spatial = LatentBank(
        torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2), "inverted"
    )
    for write in (write_whole, write_pieces):
        with pytest.raises(InputError, match=r"latents of shape \(1, 2, 2\): .* vectors alone"):
            write(spatial, tmp_path / "a.pt")
    bank.save(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"^out: give the file"):
        export_official(tmp_path / "b.safetensors", ExportConfig())
    pixels = ExportConfig(layout="pixels", out="x.pt")
    with pytest.raises(InputError, match=r"^layout: .* is no synthetic set"):
        export_official(tmp_path / "b.safetensors", pixels)
    scaled = ExportConfig(mean=(0.5,), std=(0.5,), out="x.pt")
    with pytest.raises(InputError, match=r"^mean, std: for --layout pixels"):
        export_official(tmp_path / "b.safetensors", scaled)
    assert not (tmp_path / "a.pt").exists()


def test_latents_of_a_synthetic_set_are_written_too(tmp_path, generator, bank):
    SyntheticSet(generator, bank).save(tmp_path / "set.safetensors")
    said = export_official(tmp_path / "set.safetensors", ExportConfig(out=str(tmp_path / "x.pt")))
    assert said == "40 latents, in pieces"
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(torch.cat(content["z_split"]), bank.latents)
    assert content["idx_split"] == bank.rows.view(10, 4).tolist()


@pytest.mark.parametrize("name", ["cifar10-mini", "digits"])
def test_pixels_are_read_by_those_who_score_them(tmp_path, generator, bank, images, name):
    synthetic = SyntheticSet(generator, bank, about={"dataset": name})
    synthetic.save(tmp_path / "set.safetensors")
    out = tmp_path / "pixels.pt"
    given = ExportConfig(layout="pixels", mean=(0.3,), std=(0.2,), out=str(out))
    assert export_official(tmp_path / "set.safetensors", given) == "40 normalised images"
    content = torch.load(out, weights_only=True)
    made = synthetic.materialise()
    expected = (made.images.float() / 255 - 0.3) / 0.2
    torch.testing.assert_close(content["data"][-1][0], expected)
    data = Dataset(name, images, None, images)
    back = read_set(out, data, ScoreConfig(mean=(0.3,), std=(0.2,)))
    torch.testing.assert_close(back.images, made.images / 127.5 - 1, atol=1e-6, rtol=0)
    assert torch.equal(back.labels, made.labels)
    with pytest.raises(InputError, match=r"^mean, std: "):  # not CIFAR, or not three channels
        export_official(tmp_path / "set.safetensors", ExportConfig(layout="pixels", out=str(out)))


def test_a_full_disk_is_told_as_one_and_leaves_the_file_that_was(tmp_path, monkeypatch):
    out = tmp_path / "x.pt"
    out.write_bytes(b"what was there")

    def full(*_, **__):
        raise RuntimeError("unexpected pos 704 vs 662")

    def fuller(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda c, f: full() if isinstance(f, Path) else save(c, f))
    monkeypatch.setattr(artefacts, "write_bytes", fuller)
    with pytest.raises(OSError, match="No space left"):
        artefacts.write_pt(out, {"data": torch.zeros(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
    assert out.read_bytes() == b"what was there"


def test_pixels_of_the_family_come_and_go(tmp_path):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=rng)
    images = ImageSet(pixels, torch.arange(20) % 10)
    write_set(tmp_path / "a.pt", pixels, images.labels, *CIFAR10)
    data = Dataset("cifar10", images, None, images)
    back = read_set(tmp_path / "a.pt", data, ScoreConfig())
    torch.testing.assert_close(back.images, images.floats(), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match=r"^mean, std: 1 and 1 numbers for images of 3 channels"):
        write_set(tmp_path / "a.pt", pixels, images.labels, (0.5,), (0.5,))


# Networks


def family_state(width=128, classes=10, seed=0):
    """A state dict as the family's code writes it: plain modules under its names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for inputs in (3, width, width):
            layers += [
                torch.nn.Conv2d(inputs, width, 3, padding=1),
                torch.nn.GroupNorm(width, width),
                torch.nn.ReLU(),
                torch.nn.AvgPool2d(2),
            ]
        model = torch.nn.ModuleDict(
            {
                "features": torch.nn.Sequential(*layers),
                "classifier": torch.nn.Linear(16 * width, classes),
            }
        )
        for name, tensor in model.state_dict().items():
            if ".1." in name or ".5." in name or ".9." in name:
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return model


@pytest.mark.parametrize("constants", [CIFAR10, CIFAR100])
def test_a_network_of_the_family_computes_the_same(tmp_path, constants):
    model = family_state(classes=100 if constants is CIFAR100 else 10)
    path = tmp_path / "net.pt"
    torch.save(model.state_dict(), path)
    network = load_convnet(path, *constants)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = (torch.tensor(values)[:, None, None] for values in constants)
    with torch.no_grad():
        features = model["features"](((images + 1) / 2 - mean) / std).flatten(1)
        torch.testing.assert_close(network.embed(images), features, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            network(images), model["classifier"](features), atol=1e-5, rtol=1e-5
        )
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    out = tmp_path / "again" / "net.pt"
    save_convnet(network, out)
    back = torch.load(out, weights_only=True)
    assert list(back) == list(model.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 16, "depth": 2},
        {"norm": "batch", "width": 8},
        {"norm": "none", "width": 8, "depth": 1},
    ],
)
def test_other_sizes_are_read_off_the_tensors(tmp_path, options):
    made = build_network("convnet", (1, 16, 16), 7, **options)
    save_convnet(made, tmp_path / "net.pt")
    found = load_convnet(tmp_path / "net.pt")
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(found(images), made.eval()(images))


def test_a_norm_that_leaves_no_trace_can_be_named(tmp_path):
    made = build_network("convnet", (1, 16, 16), 7, norm="group", width=8)
    save_convnet(made, tmp_path / "net.pt")
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = made.eval()(images)
        named = load_convnet(tmp_path / "net.pt", norm="group")(images)
        assert not torch.allclose(load_convnet(tmp_path / "net.pt")(images), expected)
    torch.testing.assert_close(named, expected)


def test_a_network_of_the_family_extracts_matches_and_is_scored(tmp_path, generator, images):
    for seed in (0, 1):
        made = build_network("convnet", (1, 8, 8), 10, seed=seed, width=8)
        torch.save(made.state_dict(), tmp_path / f"{seed}.pt")
    networks = [load_convnet(tmp_path / f"{k}.pt", images.mean, images.std) for k in (0, 1)]
    bank = invert(generator, images, InversionConfig(steps=2), extractor=networks[0])
    config = CondensationConfig(steps=2, real_per_class=4)
    made = condense(generator, bank, images, config, pool=NetworkPool(networks))
    assert len(made.history["loss"]) == 2
    assert 0 <= accuracy(networks[1], images, EvaluationConfig()) <= 1


def test_a_pool_of_given_networks_draws_each(images):
    networks = [build_network("convnet", (1, 8, 8), 10, seed=k, width=2) for k in range(3)]
    pool, rng = NetworkPool(networks), torch.Generator().manual_seed(0)
    drawn = [pool.draw(rng) for _ in range(60)]
    found = {
        next(
            i
            for i, n in enumerate(networks)
            if torch.equal(n.classifier.weight, d.classifier.weight)
        )
        for d in drawn
    }
    assert found == {0, 1, 2}
    with torch.no_grad():
        drawn[0].classifier.weight.zero_()
    assert all(bool(n.classifier.weight.any()) for n in networks)
    with pytest.raises(InputError, match="pool: give at least one network"):
        NetworkPool([])


def test_networks_that_are_none_of_the_family(tmp_path):
    state = family_state(width=8).state_dict()
    path = tmp_path / "net.pt"
    for change, message in (
        ([1], "not a state dict of tensors"),
        ({"a": 1}, "not a state dict of tensors"),
        ({k: t for k, t in state.items() if k != "classifier.weight"}, "no ConvNet of the family"),
        ({**state, "classifier.weight": torch.zeros(3)}, "no ConvNet of the family"),
        ({**state, "classifier.weight": torch.zeros(10, 999)}, "do not fit a ConvNet"),
        ({**state, "extra": torch.zeros(1)}, "do not fit a ConvNet"),
        ({k: t for k, t in state.items() if k != "features.5.bias"}, "do not fit a ConvNet"),
        ({**state, "features.4.weight": torch.zeros(8, 7, 3, 3)}, "do not fit a ConvNet"),
    ):
        torch.save(change, path)
        with pytest.raises(InputError, match=rf"net\.pt: .*{message}"):
            load_convnet(path)
    torch.save(state, path)
    with pytest.raises(InputError, match=r"^mean: 2 values for images of 3 channels"):
        load_convnet(path, (0.1, 0.2), (1.0, 1.0))
    with pytest.raises(InputError, match="a ResNet18, not a ConvNet"):
        save_convnet(build_network("resnet18", (3, 32, 32), 10), path)


# Published constants


def test_published_constants_of_a_data_set(binary, tmp_path):
    spec = f"cifar-binary:{binary}"
    data = load_dataset(spec, validation=10, normalisation="published")
    for split in (data.train, data.validation, data.test):
        assert (split.mean, split.std) == CIFAR10 == PUBLISHED[10]
    measured = load_dataset(spec, validation=10)
    assert measured.mean != data.mean
    assert measured.fingerprint == data.fingerprint
    with pytest.raises(
        InputError, match=r"^normalisation: no published constants are known for d"
    ):
        load_dataset("digits", normalisation="published")
