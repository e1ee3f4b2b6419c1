from dataclasses import replace

import numpy as np
import pytest
import torch

import itgan.scoring
from itgan.errors import InputError
from itgan.evaluation import evaluate, summarize
from itgan.export import EXPORTERS
from itgan.file_configs import ScoreConfig
from itgan.generators import BigGANShape, FrozenGenerator
from itgan.latents import LatentBank, sample_latents
from itgan.scoring import find_set, load_set, score, score_foreign
from itgan.sources import PixelSet, SyntheticSet

QUICK = ScoreConfig.model_validate(
    {"network_seeds": (0, 1), "evaluation": {"updates": 2, "batch_size": 16}}
)


@pytest.fixture
def stored(generator, bank, tmp_path):
    """A set on the disk that names its data set."""
    path = tmp_path / "digits.itgan.safetensors"
    made = LatentBank(bank.latents, bank.labels, bank.rows, "condensed")
    SyntheticSet(generator, made, about={"dataset": "digits"}).save(path)
    return path


@pytest.fixture(autouse=True)
def _one_loading(digits, monkeypatch):
    """Digits are loaded once for all tests."""
    load = itgan.scoring.load_dataset
    monkeypatch.setattr(
        itgan.scoring,
        "load_dataset",
        lambda spec, **read: digits if spec == "digits" else load(spec, **read),
    )


def test_a_stored_set_is_scored_as_the_set_itself(stored, generator, digits):
    (row,) = score(load_set(str(stored)), QUICK)
    trials = evaluate(
        SyntheticSet.load(stored),
        digits.test,
        QUICK.evaluation,
        QUICK.network_seeds,
        dataset="digits",
        latents_per_class=4,
    )
    assert row == summarize(trials)[0]
    assert (row["source"], row["dataset"], row["latents_per_class"]) == ("itgan", "digits", 4)
    assert (row["images"], row["n"], row["sets"]) == (40, 2, 1)


def test_one_call_scores_across_architectures(stored, monkeypatch):
    synthetic = load_set(str(stored))
    names = ("convnet", "resnet18", "mobilenetv2")
    rows = score(synthetic, QUICK.model_copy(update={"networks": names}))
    assert {row["network"] for row in rows} == set(names)
    for row in rows:
        evaluation = QUICK.evaluation.model_copy(update={"network": row["network"]})
        assert [row] == score(synthetic, QUICK.model_copy(update={"evaluation": evaluation}))
    monkeypatch.setattr(itgan.scoring, "evaluate", None)
    with pytest.raises(InputError, match="network: vgg19 needs images of at least 32x32"):
        score(synthetic, QUICK.model_copy(update={"networks": ("convnet", "vgg19")}))
    with pytest.raises(ValueError, match="networks: give each once"):
        ScoreConfig(networks=("convnet", "convnet"))


def test_a_named_data_set_goes_before_the_set_s_own(generator, bank, digits):
    synthetic = SyntheticSet(generator, bank, about={"dataset": "/nowhere"})
    (row,) = score(synthetic, QUICK.model_copy(update={"dataset": "digits"}))
    assert row["dataset"] == "digits"
    with pytest.raises(InputError, match="'/nowhere'"):
        score(synthetic, QUICK)


def test_a_set_of_resized_images_is_scored_at_its_size(generator, bank, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{kind}": values
        for split in ("train", "test")
        for kind, values in (
            ("images", rng.integers(0, 256, (40, 16, 16), dtype=np.uint8)),
            ("labels", np.arange(40) % 10),
        )
    }
    np.savez(tmp_path / "large.npz", **arrays)
    place = f"npz:{tmp_path / 'large.npz'}"
    with pytest.raises(InputError, match="or --image-size"):
        score(SyntheticSet(generator, bank, about={"dataset": place}), QUICK)
    asked = QUICK.model_copy(update={"image_size": 8})
    (by_flag,) = score(SyntheticSet(generator, bank, about={"dataset": place}), asked)
    told = SyntheticSet(generator, bank, about={"dataset": place, "image_size": 8})
    assert score(told, QUICK) == [by_flag]
    # A file may claim anything.
    odd = SyntheticSet(generator, bank, about={"dataset": place, "image_size": "8"})
    with pytest.raises(InputError, match="or --image-size"):
        score(odd, QUICK)


def test_a_shipped_set_goes_by_its_name(stored, monkeypatch):
    files = {"synthetic": {"demo": stored}}
    monkeypatch.setattr(itgan.scoring, "shipped", files.get)
    assert len(load_set("demo")) == 40
    with pytest.raises(InputError, match="demi: no such file, and not a shipped set: demo"):
        load_set("demi")


def test_what_is_no_synthetic_set_is_refused(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    with pytest.raises(InputError, match=r"bank\.safetensors: holds a 'bank', expected a 'synth"):
        load_set(str(path))


def test_a_set_that_names_no_data_set_is_refused(generator, bank):
    bank = replace(bank, provenance={})
    with pytest.raises(InputError, match="names no data set; give --dataset"):
        score(SyntheticSet(generator, bank), QUICK)


def test_a_set_of_other_images_is_refused(make_biggan, images):
    other = FrozenGenerator.from_biggan(make_biggan(BigGANShape(2, 10, (3, 16, 16), 4)))
    made = SyntheticSet(other, sample_latents(other, images), about={"dataset": "digits"})
    with pytest.raises(InputError, match=r"makes images of shape \(3, 16, 16\), but the data set"):
        score(made, QUICK)


def test_a_shipped_set_s_file_is_found():
    assert find_set("digits-10").is_file()
    assert len(load_set("digits-10")) == 100


@pytest.mark.parametrize("change", [{"mean": (0.5,), "std": (0.5,)}, {"entry": 0}, {"logits": 1}])
def test_what_a_synthetic_set_has_no_use_for_is_refused(stored, change):
    config = ScoreConfig.model_validate(change)
    with pytest.raises(InputError, match=rf"^{next(iter(change))}: for sets of other formats"):
        score(load_set(str(stored)), config)


# Sets of others

DIGITS = QUICK.model_copy(update={"dataset": "digits"})


@pytest.mark.parametrize("form", ["imagefolder", "npz"])
def test_exported_images_score_as_the_set_itself(stored, tmp_path, form):
    EXPORTERS[form](SyntheticSet.load(stored), tmp_path / "out")
    path = {"imagefolder": tmp_path / "out", "npz": tmp_path / "out" / "train.npz"}[form]
    (row,) = score_foreign(path, DIGITS)
    (own,) = score(load_set(str(stored)), DIGITS)
    assert row["source"] == path.stem
    assert row["bytes"] == 40 * (64 + 1)
    if form == "npz":  # folders are sorted, which shuffles the batches otherwise
        assert {**row, "source": "itgan", "bytes": own["bytes"]} == own


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_file_of_the_distillation_family_is_scored(images, digits, tmp_path, kind):
    labels = {"hard": images.labels, "soft": torch.eye(10)[images.labels]}[kind]
    mean, std = 0.3, 0.4
    normalised = (images.images.float() / 255 - mean) / std
    path = tmp_path / "res_DM.pt"
    torch.save({"data": [[normalised, labels]]}, path)
    config = DIGITS.model_copy(update={"mean": (mean,), "std": (std,)})
    (row,) = score_foreign(path, config)
    same = PixelSet(((normalised * std + mean) * 2 - 1).clamp(-1, 1), labels, "res_DM")
    trials = evaluate(
        same,
        digits.test,
        QUICK.evaluation,
        QUICK.network_seeds,
        dataset="digits",
        latents_per_class=4,
    )
    assert row == summarize(trials)[0]
    assert (row["labels"], row["images"], row["bytes"]) == (kind, 40, same.nbytes)


def test_a_set_of_others_needs_a_data_set(images, tmp_path):
    np.savez(tmp_path / "x.npz", images=images.images, labels=images.labels)
    with pytest.raises(InputError, match=r"^score: .*x\.npz names no data set; give --dataset"):
        score_foreign(tmp_path / "x.npz", QUICK)
    assert score_foreign(tmp_path / "x.npz", DIGITS)[0]["source"] == "x"
