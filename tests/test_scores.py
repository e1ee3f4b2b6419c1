import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itgan.errors import InputError
from itgan.evaluation import Trial
from itgan.scores import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    score_trials,
)

ZERO = 1 / (1 + math.e)  # (1 - e^-1) / (e - e^-1), multiplied out
fractions = st.floats(0, 1)


def test_no_difference_has_the_score_of_zero():
    assert hard_label_recovery(0.93, 0.93) == improvement_over_random(0.4, 0.4) == 0
    assert label_robust_score(0, 0) == pytest.approx(ZERO)
    assert augmentation_robust_score(0.5, 0.5, 0.3, 0.3) == pytest.approx(ZERO)
    assert pytest.approx(0.2689414) == ZERO


def test_the_ends_are_zero_and_one():
    assert label_robust_score(hard_label_recovery(0, 1), improvement_over_random(1, 0)) == 1
    assert label_robust_score(1, -1) == 0
    assert augmentation_robust_score(1, 0, 1, 0) == 1
    assert augmentation_robust_score(0, 1, 0, 1) == 0


def test_values_by_hand():
    # 0.5 * 0.10 - 0.5 * 0.30 = -0.1
    expected = (math.exp(-0.1) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
    assert label_robust_score(0.30, 0.10) == pytest.approx(expected)
    # 0.25 * 0.2 + 0.75 * (-0.2) = -0.1
    assert augmentation_robust_score(0.7, 0.5, 0.3, 0.5, 0.25) == pytest.approx(expected)
    assert label_robust_score(0.7, -0.1, weight=1) == pytest.approx(expected)  # HLR has no part
    assert label_robust_score(0.1, 0.9, weight=0) == pytest.approx(expected)  # IOR has none


@given(fractions, fractions, fractions, fractions)
def test_scores_lie_between_zero_and_one(a, b, c, d):
    score = label_robust_score(hard_label_recovery(a, b), improvement_over_random(c, d))
    assert 0 <= score <= 1
    assert 0 <= augmentation_robust_score(a, b, c, d) <= 1


def test_scores_rise_with_what_is_better():
    steps = [k / 10 for k in range(11)]
    for rising in (
        [label_robust_score(0.2, ior) for ior in steps],
        [-label_robust_score(hlr, 0.2) for hlr in steps],
        [augmentation_robust_score(x, 0.5, 0.5, 0.5) for x in steps],
        [augmentation_robust_score(0.5, 0.5, x, 0.5) for x in steps],
        [-augmentation_robust_score(0.5, x, 0.5, 0.5) for x in steps],
        [-augmentation_robust_score(0.5, 0.5, 0.5, x) for x in steps],
    ):
        assert all(a < b for a, b in pairwise(rising))


@pytest.mark.parametrize("wrong", [93.4, 1.01, -0.1, math.nan])
def test_percentages_are_refused(wrong):
    for position in range(4):
        accuracies = [0.5] * 4
        accuracies[position] = wrong
        with pytest.raises(InputError, match=r"^scores: .* is not in \[0, 1\].* not in percent"):
            augmentation_robust_score(*accuracies)
    for function in (hard_label_recovery, improvement_over_random):
        for pair in ((wrong, 0.5), (0.5, wrong)):
            with pytest.raises(InputError, match="not in percent"):
                function(*pair)
    with pytest.raises(InputError, match="give fractions, not percent"):
        label_robust_score(-33.0, 0.1)
    with pytest.raises(InputError, match="give fractions, not percent"):
        label_robust_score(0.1, 20.0)


def trial(source, accuracy, variant="", **more):
    fields = {"dataset": "d", "latents_per_class": 10, **more}
    network = fields.pop("network", "convnet")
    return Trial(source, network, 0, 0, accuracy, 1, 1.0, variant=variant, **fields)


def test_means_over_trials_give_the_scores():
    trials = [
        trial("real", 0.9),
        trial("random", 0.5, "same-rows"),
        trial("random", 0.6, "same-rows"),
        trial("random", 0.99, "same-bytes-raw"),  # has no part
        trial("itgan", 0.7),
        trial("itgan", 0.8),
        trial("itgan", 0.2, "int8"),
    ]
    full, narrow = score_trials(trials)
    assert (full["source"], full["variant"], full["network"]) == ("itgan", "", "convnet")
    assert full["hlr"] == pytest.approx(0.15)
    assert full["ior"] == pytest.approx(0.2)
    assert full["lrs"] == pytest.approx(label_robust_score(0.15, 0.2), abs=1e-6)
    assert full["ars"] is None
    assert (narrow["variant"], narrow["hlr"]) == ("int8", pytest.approx(0.7))


def test_every_source_has_its_own_best_recipe():
    trials = [
        trial("real", 0.9),
        trial("random", 0.5, "same-rows"),
        trial("random", 0.55, "same-rows unaugmented"),
        trial("itgan", 0.7),
        trial("itgan", 0.4, "unaugmented"),
        trial("dm", 0.3),
        trial("dm", 0.6, "unaugmented"),
    ]
    itgan, dm = score_trials(trials)
    assert (itgan["hlr"], itgan["ior"]) == (pytest.approx(0.2), pytest.approx(0.15))
    assert (dm["hlr"], dm["ior"]) == (pytest.approx(0.3), pytest.approx(0.05))
    assert itgan["ars"] == pytest.approx(augmentation_robust_score(0.7, 0.5, 0.4, 0.55), abs=1e-6)
    assert dm["ars"] == pytest.approx(augmentation_robust_score(0.3, 0.5, 0.6, 0.55), abs=1e-6)


def test_soft_labels_count_for_ior_alone():
    trials = [trial("real", 0.9), trial("random", 0.5, "same-rows"), trial("dm", 0.4)]
    (row,) = score_trials([*trials, trial("dm", 0.7, labels="soft")])
    assert (row["hlr"], row["ior"]) == (pytest.approx(0.5), pytest.approx(0.2))


def test_without_the_trials_that_they_need_there_are_no_scores():
    real, random = trial("real", 0.9), trial("random", 0.5, "same-rows")
    itgan = trial("itgan", 0.7)
    assert score_trials([]) == score_trials([real, random]) == score_trials([itgan]) == []
    assert score_trials([real, itgan]) == score_trials([random, itgan]) == []
    other = trial("random", 0.5, "same-rows", network="vgg19")
    assert score_trials([real, other, itgan]) == []  # networks are not mixed
    plain = [trial("random", 0.4, "same-rows unaugmented"), trial("itgan", 0.5, "unaugmented")]
    (row,) = score_trials([random, itgan, *plain])
    assert (row["hlr"], row["lrs"]) == (None, None)
    assert row["ars"] is not None
