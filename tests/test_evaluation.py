import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itgan.configs import EvaluationConfig
from itgan.data import ImageSet
from itgan.errors import InputError
from itgan.evaluation import Trial, evaluate, paired_difference, summarize
from itgan.latents import sample_latents
from itgan.sources import FreshSamples, PixelSet, SyntheticSet

QUICK = EvaluationConfig(updates=3, batch_size=16)
FIELDS = {
    "dataset",
    "source",
    "variant",
    "network",
    "latents_per_class",
    "images",
    "bytes",
    "labels",
    "mean",
    "std",
    "n",
    "sets",
    "ci95",
}


def trial(accuracy=0.5, source="itgan", latent_seed=0, network_seed=0, **more):
    return Trial(
        source=source,
        network=more.pop("network", "convnet"),
        latent_seed=latent_seed,
        network_seed=network_seed,
        accuracy=accuracy,
        updates=1,
        seconds=0.1,
        **more,
    )


def grid(*sets, source="itgan"):
    """One list of accuracies in percent for each latent set."""
    return [
        trial(value / 100, source, latent_seed, network_seed)
        for latent_seed, values in enumerate(sets)
        for network_seed, value in enumerate(values)
    ]


def without_time(trials):
    return [{**vars(t), "seconds": 0} for t in trials]


# summarize


def test_a_row_has_the_fields_of_results_json():
    given = grid([50.0, 60.0], [70.0, 80.0])
    (row,) = summarize(
        trial(
            t.accuracy,
            latent_seed=t.latent_seed,
            network_seed=t.network_seed,
            dataset="digits",
            latents_per_class=10,
            images=100,
            bytes=1234,
        )
        for t in given
    )
    assert set(row) == FIELDS
    assert json.loads(json.dumps(row)) == row
    assert {k: row[k] for k in ("dataset", "source", "variant", "network", "labels")} == {
        "dataset": "digits",
        "source": "itgan",
        "variant": "",
        "network": "convnet",
        "labels": "hard",
    }
    assert (row["latents_per_class"], row["images"], row["bytes"]) == (10, 100, 1234)
    assert (row["n"], row["sets"]) == (4, 2)
    assert row["mean"] == 65
    assert row["std"] == pytest.approx(math.sqrt(125), abs=1e-3)  # ddof 0, over all four
    low, high = row["ci95"]
    assert 50 <= low < 65 < high <= 80


def test_every_distinct_group_is_a_row():
    base = {"source": "itgan", "dataset": "digits", "network": "convnet", "variant": "a"}
    others = [
        {"source": "gan"},
        {"dataset": "cifar10"},
        {"network": "resnet18"},
        {"variant": "b"},
        {"latents_per_class": 50},
        {"labels": "soft"},
    ]
    trials = [trial(**{**base, **change}) for change in [{}, *others] for _ in range(2)]
    rows = summarize(trials)
    assert len(rows) == 7
    assert {row["n"] for row in rows} == {2}


def test_rows_go_by_data_set_network_size_and_the_order_of_sources():
    names = [
        "real",
        "random",
        "gan",
        "gan-fresh",
        "inversion",
        "itgan",
        "itgan-plus",
        "dm",
        "dc",
        "herding",
    ]
    trials = [trial(source=name) for name in ["mine", *reversed(names)]]
    assert [row["source"] for row in summarize(trials)] == [*names, "mine"]
    keys = ("dataset", "network", "latents_per_class", "source")
    wanted = [
        ("a", "convnet", 5, "itgan"),
        ("a", "convnet", 50, "gan"),
        ("a", "resnet18", 5, "gan"),
        ("b", "convnet", None, "real"),
        ("b", "convnet", 5, "real"),
    ]
    made = [trial(**dict(zip(keys, values, strict=True))) for values in reversed(wanted)]
    assert [tuple(row[k] for k in keys) for row in summarize(made)] == wanted


def test_no_trials_make_no_rows():
    assert summarize([]) == []


# The bootstrap interval


@pytest.mark.parametrize("sets", [[[40.0]], [[40.0] * 3], [[40.0]] * 3, [[40.0, 40.0]] * 3])
def test_equal_values_have_a_degenerate_interval(sets):
    (row,) = summarize(grid(*sets))
    assert row["ci95"] == [40, 40]
    assert row["std"] == 0


@pytest.mark.parametrize("sets", [[[0.0, 100.0]], [[0.0], [100.0]]])
def test_of_two_values_the_interval_is_both(sets):
    # The resampled mean is 0, 50, 100 with probability 1/4, 1/2, 1/4.
    (row,) = summarize(grid(*sets))
    assert row["ci95"] == [0, 100]


def test_networks_of_one_set_do_not_hide_that_the_sets_differ():
    # Means of 0 and of 100: both sets equal with probability 1/4 each, so the interval is all.
    (row,) = summarize(grid([0.0] * 50, [100.0] * 50))
    assert row["ci95"] == [0, 100]
    (row,) = summarize(grid([0.0, 100.0] * 25, [0.0, 100.0] * 25))
    assert row["ci95"][1] - row["ci95"][0] < 30


def test_many_values_give_the_interval_of_the_normal_distribution():
    values = [50 + 10 * math.sin(7.1 * k) for k in range(100)]
    (row,) = summarize(grid(values))
    half = 1.96 * row["std"] / math.sqrt(100)
    low, high = row["ci95"]
    assert high - row["mean"] == pytest.approx(half, rel=0.08)
    assert row["mean"] - low == pytest.approx(half, rel=0.08)


def test_sets_of_unequal_size_count_by_their_trials():
    (row,) = summarize(grid([10.0], [40.0, 40.0, 40.0]))
    assert row["mean"] == 32.5
    assert row["ci95"] == [10, 40]


accuracies = st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=4), min_size=1, max_size=4)


@given(accuracies)
@settings(max_examples=15, deadline=None)
def test_the_interval_lies_within_the_values_and_is_reproducible(sets):
    (row,) = summarize(grid(*sets))
    values = [v for s in sets for v in s]
    low, high = row["ci95"]
    assert min(values) - 1e-3 <= low <= high <= max(values) + 1e-3
    assert summarize(grid(*sets)) == [row]


# paired differences


def test_a_paired_difference_has_the_noise_of_the_pairs_alone():
    a = grid([60.0, 20.0], [90.0, 30.0], source="itgan")
    b = grid([58.0, 18.0], [88.0, 28.0], source="gan")
    assert paired_difference(a, b) == {
        "a": "itgan",
        "b": "gan",
        "mean": 2.0,
        "ci95": [2.0, 2.0],
        "se": 0.0,
        "n": 4,
        "sets": 2,
    }


def test_the_standard_error_is_over_latent_sets():
    a = grid([10.0, 12.0], [20.0, 24.0], source="a")
    b = grid([10.0, 10.0], [10.0, 10.0], source="b")
    found = paired_difference(a, b)
    # Differences of the sets: 1 and 12; se = (11 / sqrt 2) / sqrt 2.
    assert found["mean"] == 6.5
    assert found["se"] == 5.5
    assert found["ci95"][0] >= 0
    assert found["ci95"][1] <= 14


def test_the_difference_changes_sign_with_its_sides():
    a, b = grid([60.0, 25.0], [90.0, 31.0]), grid([58.0, 18.0], [91.0, 28.0], source="gan")
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth["mean"] == -back["mean"]
    assert forth["ci95"] == pytest.approx([-x for x in reversed(back["ci95"])], abs=0.3)


def test_only_shared_seeds_are_compared():
    a = grid([60.0, 20.0], [99.0])
    b = grid([50.0], source="gan")
    found = paired_difference(a, b)
    assert (found["mean"], found["n"], found["sets"], found["se"]) == (10, 1, 1, None)
    with pytest.raises(ValueError, match="no pair of seeds"):
        paired_difference(a, [trial(latent_seed=9)])


def test_iterators_will_do():
    a, b = grid([60.0]), grid([50.0], source="gan")
    assert paired_difference(iter(a), iter(b)) == paired_difference(a, b)
    assert summarize(iter(a)) == summarize(a)


# evaluate


def test_a_trial_knows_its_seeds_and_its_budget(generator, bank, digits):
    test = digits.test.select(range(50))
    source = SyntheticSet(generator, bank)
    source.latent_seed = 4
    config = EvaluationConfig(updates=3, batch_size=16)
    trials = evaluate(source, test, config, [7, 2], dataset="digits", latents_per_class=4)
    assert [t.network_seed for t in trials] == [7, 2]
    for t in trials:
        assert (t.source, t.network, t.latent_seed) == ("gan", "convnet", 4)
        assert 0 <= t.accuracy <= 1
        assert (t.accuracy * 50) == pytest.approx(round(t.accuracy * 50))
        assert t.updates == 3
        assert t.seconds > 0
        assert (t.dataset, t.latents_per_class, t.images, t.labels) == ("digits", 4, 40, "hard")
        assert t.bytes == source.nbytes
        assert t.curve == []


def test_epochs_count_every_image_every_time(images):
    config = EvaluationConfig(epochs=3, batch_size=16)
    (found,) = evaluate(images, images, config, [0])
    assert found.updates == 3 * 3  # 40 images in batches of 16, 16, 8
    (found,) = evaluate(images, images, EvaluationConfig(epochs=2, batch_size=400), [0])
    assert found.updates == 2


def test_a_seed_does_not_depend_on_the_others_in_the_list(images, digits):
    test = digits.test.select(range(100))
    state = torch.get_rng_state()
    together = without_time(evaluate(images, test, QUICK, [0, 1, 2]))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    alone = [t for seed in (2, 0, 1) for t in without_time(evaluate(images, test, QUICK, [seed]))]
    assert sorted(alone, key=lambda t: t["network_seed"]) == together
    assert len({t["accuracy"] for t in together}) > 1


def test_classifiers_of_one_seed_are_paired(images):
    same = PixelSet(images.images, images.labels, "random")
    (a,), (b,) = (evaluate(source, images, QUICK, [3]) for source in (images, same))
    assert a.accuracy == b.accuracy
    assert (a.source, b.source) == ("real", "random")


def test_a_generated_set_is_trained_on_as_8_bit_images(generator, bank, images):
    source = SyntheticSet(generator, bank)
    config = QUICK.model_copy(update={"curve_points": 3})  # losses tell more than hits
    made, stored, floats = (
        without_time(evaluate(s, images, config, [0]))
        for s in (source, source.materialise(), PixelSet(source.images(), source.labels, "gan"))
    )
    assert made == stored
    assert made[0]["curve"] != floats[0]["curve"]


def test_the_curve_ends_in_the_accuracy(images):
    config = EvaluationConfig(updates=10, batch_size=16, curve_points=4)
    (found,) = evaluate(images, images, config, [0])
    assert [point["update"] for point in found.curve] == [2, 5, 8, 10]
    assert found.curve[-1]["accuracy"] == found.accuracy
    for point in found.curve:  # here the images that score are those that train
        assert set(point) == {"update", "loss", "accuracy", "training_accuracy"}
        assert point["training_accuracy"] == point["accuracy"]
    (plain,) = evaluate(images, images, config.model_copy(update={"curve_points": 0}), [0])
    assert plain.accuracy == found.accuracy


def stripes(n=60):
    """Two classes that anyone can tell apart."""
    labels = torch.arange(n) % 2
    noise = torch.randint(0, 60, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    noise[labels == 1, :, ::2] += 180
    noise[labels == 0, :, :, ::2] += 180
    return ImageSet(noise.byte(), labels)


def test_what_is_easy_is_learnt_and_scored():
    data = stripes()
    config = EvaluationConfig(updates=30, augmentation="none")
    (right,) = evaluate(data, data, config, [0])
    assert right.accuracy == 1
    wrong = PixelSet(data.images, 1 - data.labels)
    (found,) = evaluate(wrong, data, config, [0])
    assert found.accuracy == 0


def test_soft_labels_teach_as_their_hard_ones_do():
    data = stripes()
    config = EvaluationConfig(updates=30, augmentation="none")
    soft = PixelSet(data.images, torch.nn.functional.one_hot(data.labels).float())
    (found,) = evaluate(soft, data, config, [0])
    assert (found.accuracy, found.labels) == (1, "soft")


def test_fresh_samples_have_no_number_of_images(generator, images):
    source = FreshSamples(generator, images.labels, latent_seed=5)
    (found,) = evaluate(source, images, QUICK, [0])
    assert (found.source, found.images, found.latent_seed) == ("gan-fresh", None, 5)
    assert found.bytes == source.nbytes > 0


def test_any_source_with_a_name_a_length_and_batches_will_do(images):
    class Mine:
        name = "mine"

        def __len__(self):
            return 40

        def batches(self, rng, batch_size):
            return images.batches(rng, batch_size)

    (mine,), (theirs,) = (evaluate(s, images, QUICK, [0]) for s in (Mine(), images))
    assert (mine.source, mine.bytes, mine.labels) == ("mine", None, "hard")
    assert mine.accuracy == theirs.accuracy


def test_another_network_can_be_named(images):
    big = ImageSet(
        images.images.repeat_interleave(4, 2).repeat_interleave(4, 3),
        images.labels,
        class_names=images.class_names,
    )
    config = EvaluationConfig(network="mobilenetv2", updates=1, batch_size=4)
    (found,) = evaluate(big.select(range(4)), big.select(range(10)), config, [0])
    assert found.network == "mobilenetv2"


# Refusals


def test_an_unknown_network_is_refused_by_name(images):
    with pytest.raises(InputError, match="network: no 'perceptron'; choose convnet"):
        evaluate(images, images, EvaluationConfig(network="perceptron"), [0])


def test_a_training_that_diverges_is_refused_with_the_remedy(images):
    config = EvaluationConfig(updates=40, learning_rate=1000, weight_decay=1.0)
    with pytest.raises(
        InputError, match=r"train on real: the loss became \w+; lower learning_rate"
    ):
        evaluate(images, images, config, [0])


def test_an_absent_device_is_refused_by_name(images):
    with pytest.raises(InputError, match="device 'warp' cannot be used here"):
        evaluate(images, images, QUICK, [0], device="warp")


def test_latents_drawn_for_other_rows_are_other_sets(generator, images):
    config = EvaluationConfig(updates=5)
    found = [
        evaluate(
            SyntheticSet(generator, sample_latents(generator, images, s)), images, config, [0]
        )
        for s in (0, 1)
    ]
    assert found[0][0].accuracy != found[1][0].accuracy


def test_misfits_are_refused_before_training(digits, images):
    config = EvaluationConfig(updates=1)
    wrong = PixelSet(images.images, torch.full((len(images),), 12))
    with pytest.raises(InputError, match="labels of 13 classes, the test images have 10"):
        evaluate(wrong, digits.test, config, [0])
    small = PixelSet(images.images[..., :6], images.labels)
    with pytest.raises(InputError, match="images of shape"):
        evaluate(small, digits.test, config, [0])
    with pytest.raises(InputError, match="names a network twice"):
        evaluate(images, digits.test, config, [0, 0])


def test_a_generator_of_other_images_is_refused_before_any_is_made(generator, images):
    other = replace(images, images=images.images.repeat(1, 1, 2, 2))
    for source in (
        SyntheticSet(generator, sample_latents(generator, images)),
        FreshSamples(generator, images.labels),
    ):
        with pytest.raises(InputError, match=r"images of shape \(1, 8, 8\), the test images have"):
            evaluate(source, other, EvaluationConfig(updates=1))
