import json
from pathlib import Path

import pytest
import torch

from itgan import artefacts, metrics
from itgan.configs import EvaluationConfig
from itgan.data import Dataset, load_dataset
from itgan.errors import InputError
from itgan.generator_configs import MeasureConfig, MetricsConfig
from itgan.generators import wrap_generator
from itgan.metrics import classifier_accuracy_score, find_features, measure, record, sample
from itgan.splits import pack_rows

BALLS = ("precision", "recall", "density", "coverage")
QUICK = MetricsConfig(
    figures=BALLS,
    extractor=EvaluationConfig(updates=3, batch_size=32),
    samples=60,
    neighbours=3,
    subsets=2,
    subset_size=20,
    cas=EvaluationConfig(updates=2, batch_size=16),
    cas_per_class=3,
    cas_seeds=(0, 1),
)


def quick(**changes):
    return QUICK.model_copy(update=changes)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", validation=100)


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """Where the quick extractor is kept for all tests."""
    return tmp_path_factory.mktemp("extractors")


def remembering(real):
    """A generator that knows real images: the first latent number chooses one of the label's."""
    images = real.floats(torch.arange(len(real)))
    members = [images[real.labels == label] for label in range(real.num_classes)]

    def make(latents, labels):
        u = (latents[:, 0].erf() + 1) / 2
        chosen = [
            members[y][int(u[i] * (len(members[y]) - 1e-3))] for i, y in enumerate(labels.tolist())
        ]
        return torch.stack(chosen) + 1e-7 * latents[:, 0].tanh()[:, None, None, None]

    shape = real.image_shape
    return wrap_generator(make, latent_shape=(1,), num_classes=10, image_shape=shape)


def values(figures):
    return {figure.figure: figure.value for figure in figures}


def test_real_images_measure_better_than_noise(generator, data, keep):
    good = values(measure(remembering(data.validation), data, QUICK, keep, "cpu"))
    bad = values(measure(generator, data, QUICK, keep, "cpu"))
    assert list(good) == list(BALLS), "in the order of the config"
    assert good["precision"] == 1  # a sample is a held-out image, in the ball of itself
    assert good["coverage"] > 0.8
    assert all(good[figure] > bad[figure] for figure in BALLS)
    assert measure(generator, data, quick(figures=()), keep) == []


def test_measuring_again_gives_the_same(generator, data, keep):
    before = torch.get_rng_state()
    config = quick(figures=("kernel", "precision"))
    first = measure(generator, data, config, keep, "cpu")
    assert torch.equal(torch.get_rng_state(), before), "the global random state was used"
    assert measure(generator, data, config, keep, "cpu") == first
    assert first[0].std > 0
    other = measure(generator, data, config.model_copy(update={"seed": 1}), keep, "cpu")
    assert other[0].value != first[0].value


def test_the_protocol_is_in_the_name(generator, data, keep):
    config = quick(figures=("kernel", "recall", "cas"))
    kernel, recall, cas = (f.name for f in measure(generator, data, config, keep, "cpu"))
    (file,) = keep.glob("extractor-*.safetensors")
    weights = artefacts.read_metadata(file)["sha256"][:8]
    protocol = (
        f"ConvNet features of digits, extractor {weights}, 60 samples against 100 validation "
        "images, seed 0)"
    )
    assert kernel == f"kernel distance (MMD², 2 subsets of 20, {protocol}"
    assert recall == f"recall (k = 3, {protocol}"
    assert cas.startswith("classifier accuracy score, % (ConvNet, 2 updates of 30 fresh samples, ")
    digest = data.validation.fingerprint[:8]
    assert cas.endswith(f", networks 0 1, 100 validation images of digits, sha256 {digest})")


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 61},
        {"neighbours": 2},
        {"seed": 1},
        {"extractor": EvaluationConfig(updates=4, batch_size=32)},
    ],
)
def test_what_is_measured_otherwise_has_another_name(generator, data, keep, tmp_path, change):
    figure = quick(figures=("precision",))
    (one,) = measure(generator, data, figure, keep, "cpu")
    (other,) = measure(generator, data, figure.model_copy(update=change), tmp_path, "cpu")
    assert one.name != other.name


@pytest.mark.parametrize(
    "change",
    [
        {"cas_per_class": 4},
        {"cas_seeds": (0, 2)},
        {"cas": EvaluationConfig(updates=2, batch_size=17)},
        {"cas": EvaluationConfig(updates=2, batch_size=16, augmentation="none")},
    ],
)
def test_so_has_another_accuracy_score(generator, data, change):
    one, other = (
        classifier_accuracy_score(generator, data, config, "cpu")
        for config in (QUICK, quick(**change))
    )
    assert one.name != other.name


def test_test_images_are_said_to_be_such(generator, data, digits, tmp_path):
    (figure,) = measure(generator, digits, quick(figures=("precision",)), tmp_path, "cpu")
    assert "against 596 test images" in figure.name
    assert "596 test images of digits" in classifier_accuracy_score(generator, digits, QUICK).name


def test_the_extractor_sees_training_images_only(data, tmp_path):
    """Other held-out images do not change it; other training images do."""
    noise = data.test.select(torch.arange(50))

    def weights(train, validation, test, name):
        found = find_features(
            Dataset("digits", train, validation, test), QUICK, tmp_path / name, "cpu"
        )
        return found.name

    expected = weights(data.train, data.validation, data.test, "a")
    assert weights(data.train, noise, noise, "b") == expected
    assert weights(data.train, None, noise, "c") == expected
    assert weights(data.train.select(torch.arange(900)), noise, noise, "d") != expected


def test_the_extractor_is_trained_once(data, tmp_path, monkeypatch):
    find_features(data, QUICK, tmp_path, "cpu")
    monkeypatch.setattr(metrics, "train_extractor", lambda *_: pytest.fail("trained again"))
    assert find_features(data, quick(samples=7, seed=5), tmp_path, "cpu")
    assert len(list(tmp_path.iterdir())) == 1


def test_features_are_those_of_the_images_in_order(data, keep, monkeypatch):
    found = find_features(data, QUICK, keep, "cpu")
    images = data.test.images[:7]
    whole = found.of(images, "some")
    assert whole.dtype == torch.float64
    assert whole.shape == (7, 2048)
    monkeypatch.setattr(metrics, "CHUNK", 3)
    in_pieces = found.of(images, "some").float()  # as the network computes
    torch.testing.assert_close(in_pieces, whole.float())


def test_samples_follow_from_the_seed_and_have_their_labels(data, generator, monkeypatch):
    real = data.validation
    labels = torch.arange(12) % 10
    made = sample(remembering(real), labels, seed=0)
    for image, label in zip(made, labels.tolist(), strict=True):
        assert (real.images[real.labels == label] == image).all((1, 2, 3)).any()
    first = sample(generator, labels, seed=0)
    assert not torch.equal(sample(generator, labels, seed=1), first)
    monkeypatch.setattr(metrics, "CHUNK", 5)
    difference = sample(generator, labels, seed=0).int() - first.int()
    assert difference.abs().max() <= 1  # rounding


def test_labels_are_those_of_the_held_out_images(data):
    labels = metrics._labels_like(data.validation, quick(samples=250))
    counts = data.validation.labels.bincount()
    found = labels.bincount(minlength=10)
    assert ((found >= 2 * counts) & (found <= 3 * counts)).all()
    assert len(labels) == 250


def test_the_accuracy_score_of_a_generator_that_knows_its_classes(data):
    config = quick(cas=EvaluationConfig(updates=60, batch_size=64, augmentation="none"))
    known = classifier_accuracy_score(remembering(data.train), data, config, "cpu")
    assert known.value > 80
    assert 0 <= known.std < 10
    alone = classifier_accuracy_score(
        remembering(data.train), data, config.model_copy(update={"cas_seeds": (0,)}), "cpu"
    )
    assert alone.std is None


def test_too_few_images(generator, data, keep):
    few = Dataset("digits", data.train, data.validation.select(torch.arange(3)), data.test)
    with pytest.raises(InputError, match=r"^neighbours=3: there are only 3 held-out images; give"):
        measure(generator, few, QUICK, keep)
    with pytest.raises(InputError, match=r"^neighbours=3: there are only 2 samples; give fewer"):
        measure(generator, data, quick(samples=2), keep)
    one = Dataset("digits", data.train, data.validation.select([0]), data.test)
    with pytest.raises(InputError, match="there is only one held-out image; hold out more"):
        measure(generator, one, quick(figures=("frechet",)), keep)


def test_a_generator_of_other_images(make_biggan, data, keep):
    other = wrap_generator(
        lambda z, y: (
            (z[:, 0, None, None, None] + y[:, None, None, None]).tanh().expand(-1, 1, 9, 9)
        ),
        latent_shape=(1,),
        num_classes=10,
        image_shape=(1, 9, 9),
    )
    with pytest.raises(InputError, match=r"generator: makes images of shape \(1, 9, 9\)"):
        measure(other, data, QUICK, keep)


def test_inception_without_its_package_is_refused(generator, data, keep, monkeypatch):
    monkeypatch.setattr(metrics, "INCEPTION", "no_such_package")
    with pytest.raises(InputError, match=r"^features inception: needs the package torch-fidelity"):
        measure(generator, data, quick(features="inception"), keep)


def test_inception_without_its_weights_is_refused(generator, data, keep, monkeypatch, tmp_path):
    (tmp_path / "inception_named_here.py").write_text('URL_INCEPTION_V3 = "https://x/w-1.pth"\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metrics, "INCEPTION", "inception_named_here")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        InputError,
        match=r"no weights at .*checkpoints.w-1.pth; fetch https://x/w-1.pth to that place, or",
    ):
        measure(generator, data, quick(features="inception"), keep)


def test_a_record_is_json_and_says_what_it_is_of(generator, data, keep):
    config = MeasureConfig(**{**QUICK.model_dump(), "figures": ("recall",)})
    figures = measure(generator, data, config, keep, "cpu")
    made = json.loads(json.dumps(record("mine", generator, data, config, figures)))
    assert made["fingerprint"] == generator.fingerprint
    assert made["against"]["sha256"] == data.validation.fingerprint
    assert made["config"]["samples"] == 60
    (row,) = made["figures"]
    assert row["value"] == figures[0].value
    assert row["name"] == figures[0].name


def test_a_generator_that_may_have_seen_the_held_out_images(data, tmp_path, biggan, capsys):
    file = str(tmp_path / "mine.safetensors")

    def said(**metadata):
        artefacts.save(file, biggan.state_dict(), {"kind": "generator", **metadata})
        metrics.say_if_seen(file, data)
        return capsys.readouterr().err

    held, known = len(data.validation), {"dataset": data.name}
    assert said(**known, trained_on=data.train.record) == ""
    both = torch.cat([data.train.rows, data.validation.rows[:3]])
    told = said(**known, trained_on={"rows": pack_rows(both), "sha256": "x"})
    assert told == (
        f"measure: {file} was trained on 3 of these {held} validation images; give the "
        "--validation of its training\n"
    )
    # Files that keep no rows.
    assert said(trained_on={"images": 1101, "sha256": data.train.fingerprint}) == ""
    assert said() == ""
    told = said(trained_on={"images": 1201, "sha256": "of other images"})
    assert told.startswith(f"measure: {file} was trained on other images than these")
    with pytest.raises(InputError, match="make the file again"):
        said(trained_on=3)
    Path(tmp_path / "theirs.pth").touch()
    metrics.say_if_seen(str(tmp_path / "theirs.pth"), data)
    assert capsys.readouterr().err == ""
