import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from itgan import matching

seeds = st.integers(0, 2**32)


def normal(seed, *shape):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# Eq. 9


def test_distribution_is_the_squared_distance_of_the_means():
    real = torch.tensor([[1.0, 0.0], [3.0, 4.0]])  # mean (2, 2)
    synthetic = torch.tensor([[5.0, -2.0]])
    assert float(matching.distribution(real, synthetic)) == 3**2 + 4**2


def test_class_means_sums_over_classes_and_elements():
    real = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    synthetic = torch.tensor([[0.0, 0.0], [3.0, -1.0]])
    assert float(matching.class_means(real, synthetic)) == 1 + 4 + 9 + 1


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_distribution_sees_sets_not_orders(seed, n, m, d):
    real, synthetic = normal(seed, n, d), normal(seed + 1, m, d)
    value = matching.distribution(real, synthetic)
    torch.testing.assert_close(matching.distribution(synthetic, real), value)
    torch.testing.assert_close(matching.distribution(real.flip(0), synthetic), value)
    torch.testing.assert_close(matching.distribution(real, synthetic.repeat(3, 1)), value)
    assert value >= 0
    assert float(matching.distribution(real, real)) == 0
    assert float(matching.distribution(real, real.flip(0))) < 1e-25


@given(seeds, st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_a_shift_costs_its_squared_length(seed, n, d):
    real, shift = normal(seed, n, d), normal(seed + 1, d)
    value = matching.distribution(real, real + shift)
    torch.testing.assert_close(value, shift.square().sum())


def test_the_gradient_of_eq_9_is_shared_equally_by_the_latents_of_a_class():
    real, synthetic = normal(0, 5, 3), normal(1, 4, 3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(matching.distribution(real, synthetic), synthetic)
    expected = 2 * (synthetic.mean(0) - real.mean(0)) / 4
    torch.testing.assert_close(gradient, expected.expand(4, 3))


# Eq. 10


def test_paired_is_the_squared_distance_of_each_pair():
    real = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    synthetic = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert matching.paired(real, synthetic).tolist() == [4.0, 25.0]


@given(seeds, st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_pairs_are_never_closer_than_means(seed, n, d):
    real, synthetic = normal(seed, n, d), normal(seed + 1, n, d)
    regulariser = matching.paired(real, synthetic).mean()
    assert regulariser >= matching.distribution(real, synthetic) * (1 - 1e-12)
    assert not matching.paired(real, real).any()


# regression


def test_regression_of_two_images_is_known_in_closed_form():
    # Centred, s = -a, a and y = (1/2, -1/2), (-1/2, 1/2); the second row of W is s.y / (s.s + c).
    a, ridge, r = 3.0, 0.5, 5.0
    synthetic = torch.tensor([[1.0 - a], [1.0 + a]], dtype=torch.float64)
    real = torch.tensor([[1.0 + r]], dtype=torch.float64)
    targets = torch.eye(2, dtype=torch.float64)
    slope = a / (2 * a**2 + ridge * a**2)  # of the second class; the first falls as it rises
    expected = (0.5 - slope * r) ** 2 + (0.5 + slope * r - 1) ** 2
    both = torch.cat([real, torch.full_like(real, 1.0)])  # one image of each class
    others = 0.5**2 + 0.5**2  # at the mean the guess is a half for each
    value = matching.regression(both, targets.flip(0), synthetic, targets, ridge)
    assert float(value) == pytest.approx(expected + others)


@given(seeds, st.integers(2, 9), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_regression_is_the_same_by_images_and_by_features(seed, n, d):
    real, synthetic = normal(seed, 6, d), normal(seed + 1, n, d)
    one, other = (torch.eye(2, dtype=torch.float64)[torch.arange(k) % 2] for k in (6, n))
    value = matching.regression(real, one, synthetic, other, 0.3)
    # Features that say nothing make the other of the two systems the smaller one.
    wide = [torch.cat([x, torch.zeros(len(x), n, dtype=x.dtype)], 1) for x in (real, synthetic)]
    torch.testing.assert_close(matching.regression(wide[0], one, wide[1], other, 0.3), value)


@given(seeds, st.floats(0.01, 100), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_regression_does_not_depend_on_place_scale_or_order(seed, scale, times):
    real, synthetic = normal(seed, 6, 3), normal(seed + 1, 8, 3)
    one, other = (torch.eye(2, dtype=torch.float64)[torch.arange(k) % 2] for k in (6, 8))
    value = matching.regression(real, one, synthetic, other)
    shift = normal(seed + 2, 3)
    moved = (scale * real + shift, one, scale * synthetic + shift, other)
    torch.testing.assert_close(matching.regression(*moved), value)
    turned = (real.flip(0), one.flip(0), synthetic.flip(0), other.flip(0))
    torch.testing.assert_close(matching.regression(*turned), value)
    # Classes weigh alike, however many real images they have.
    again = (torch.cat([real, *[real[::2]] * times]), torch.cat([one, *[one[::2]] * times]))
    torch.testing.assert_close(matching.regression(*again, synthetic, other), value)


def test_regression_of_images_that_are_all_alike_guesses_the_shares():
    same = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.eye(2, dtype=torch.float64).repeat(2, 1)
    value = matching.regression(normal(0, 4, 3), targets, same, targets)
    assert float(value.detach()) == pytest.approx(2 * (0.5**2 + 0.5**2))
    (gradient,) = torch.autograd.grad(value, same)
    assert gradient.isfinite().all()


def test_the_gradient_of_regression():
    real, synthetic = normal(0, 4, 3), normal(1, 4, 3).requires_grad_(True)
    targets = torch.eye(2, dtype=torch.float64).repeat(2, 1)
    assert gradcheck(lambda s: matching.regression(real, targets, s, targets), synthetic)


# gradient matching


def test_identical_gradients_have_no_distance():
    grads = [normal(0, 7, 5), normal(1, 4, 3, 3, 3), normal(2, 7)]
    assert abs(float(matching.gradient_distance(grads, grads))) < 1e-5


def test_orthogonal_gradients_cost_one_for_each_output_row():
    real = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    synthetic = torch.tensor([[0.0, 5.0], [1.0, 0.0], [-1.0, 1.0]])
    assert float(matching.gradient_distance([real], [synthetic])) == 3


def test_opposite_gradients_cost_two_for_each_output_row():
    real = normal(0, 6, 4)
    assert float(matching.gradient_distance([real], [-real])) == pytest.approx(12, abs=1e-5)


def test_golden_angle():
    # Rows at 60 and 45 degrees: 1 - 1/2 and 1 - 1/sqrt 2.
    real = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    synthetic = torch.tensor([[0.5, math.sqrt(3) / 2], [3.0, 3.0]], dtype=torch.float64)
    value = float(matching.gradient_distance([real], [synthetic]))
    assert value == pytest.approx(0.5 + 1 - math.sqrt(0.5), abs=1e-5)


def test_the_guard_is_1e_6_beside_the_product_of_the_norms():
    tiny = torch.tensor([[1e-3, 0.0]], dtype=torch.float64)
    value = float(matching.gradient_distance([tiny], [tiny]))
    assert value == pytest.approx(1 - 1e-6 / (1e-6 + 1e-6), rel=1e-9)


def test_one_dimensional_parameters_contribute_nothing():
    real, synthetic = [normal(0, 3, 2)], [normal(1, 3, 2)]
    value = matching.gradient_distance(real, synthetic)
    biases = [normal(2, 3)], [normal(3, 3)]
    assert matching.gradient_distance(real + biases[0], synthetic + biases[1]) == value
    assert matching.gradient_distance(biases[0] + real, biases[1] + synthetic) == value
    assert matching.gradient_distance(*biases) == 0


def test_a_convolution_has_a_row_for_each_output_channel():
    real, synthetic = normal(0, 4, 3, 3, 3), normal(1, 4, 3, 3, 3)
    torch.testing.assert_close(
        matching.gradient_distance([real], [synthetic]),
        matching.gradient_distance([real.flatten(1)], [synthetic.flatten(1)]),
    )


def test_vanished_gradients_cost_one_for_each_row_and_stay_finite():
    synthetic = torch.zeros(3, 4, requires_grad=True)
    value = matching.gradient_distance([torch.ones(3, 4)], [synthetic])
    assert float(value.detach()) == 3
    (gradient,) = torch.autograd.grad(value, synthetic)
    assert gradient.isfinite().all()


@given(seeds, st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 100))
@settings(max_examples=50, deadline=None)
def test_only_directions_count_and_the_distance_is_bounded(seed, rows, d, factor):
    real, synthetic = normal(seed, rows, d), normal(seed + 1, rows, d)
    value = float(matching.gradient_distance([real], [synthetic]))
    assert -1e-9 <= value <= 2 * rows + 1e-9
    scaled = [100 * real], [100 * factor * synthetic]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    permuted = [real[order]], [synthetic[order]]
    assert float(matching.gradient_distance(*permuted)) == pytest.approx(value, abs=1e-9)
    # The guard of 1e-6 is felt only by short rows.
    lengths = float((real.norm(dim=1) * synthetic.norm(dim=1)).min())
    if lengths > 1e-2:
        assert float(matching.gradient_distance(*scaled)) == pytest.approx(value, abs=1e-3 * rows)


def test_gradient_distance_is_differentiable_in_both():
    grads = [normal(0, 3, 4).requires_grad_(True), normal(1, 3, 4).requires_grad_(True)]
    assert gradcheck(lambda a, b: matching.gradient_distance([a], [b]), grads)


def test_networks_of_different_depth_are_refused():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        matching.gradient_distance([normal(0, 2, 2)] * 2, [normal(0, 2, 2)])
