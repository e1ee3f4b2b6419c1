import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itgan import distances


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def crosses(sizes, centre):
    """Points on the axes around a centre: the covariance is diagonal, (2 s^2 / (2d - 1))."""
    arms = torch.diag(torch.tensor(sizes, dtype=torch.float64))
    return torch.cat([arms, -arms]) + torch.tensor(centre, dtype=torch.float64)


def test_the_frechet_distance_of_known_moments():
    # d^2 = |m - m'|^2 + sum (sigma - sigma')^2 where both covariances are diagonal.
    a, b = crosses([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]), crosses([2.0, 2.0, 0.5], [1.0, -2.0, 0.0])
    scale = (2 / 5) ** 0.5  # from an arm to a standard deviation
    expected = 5 + scale**2 * (1**2 + 0**2 + 2.5**2)
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet(b, a) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_fewer_points_than_dimensions():
    few = randn(6, 40)
    assert distances.frechet(few, few) == pytest.approx(0, abs=1e-5)
    shift = torch.full((40,), 0.5, dtype=torch.float64)
    assert distances.frechet(few, few + shift) == pytest.approx(10, abs=1e-5)


def test_the_kernel_distance_of_all_points_by_hand():
    x, y = randn(7, 3), 1 + randn(7, 3, seed=1)

    def k(a, b):
        return (a @ b.T / 3 + 1) ** 3

    def off_diagonal(m):
        return (m.sum() - m.trace()) / (7 * 6)

    expected = float(off_diagonal(k(x, x)) + off_diagonal(k(y, y)) - 2 * k(x, y).mean())
    before = torch.get_rng_state()
    mean, std = distances.kernel(x, y, subsets=3, size=7)
    assert torch.equal(torch.get_rng_state(), before), "the global random state was used"
    assert mean == pytest.approx(expected, rel=1e-9)
    assert std == pytest.approx(0, abs=1e-12)


def test_the_subsets_of_the_kernel_distance_follow_from_the_seed():
    x, y = randn(50, 3), randn(50, 3, seed=1)
    assert distances.kernel(x, y, 4, 10) == distances.kernel(x, y, 4, 10)
    assert distances.kernel(x, y, 4, 10) != distances.kernel(x, y, 4, 10, seed=1)
    assert distances.kernel(x, y, 4, 10)[1] > 0


def line(*places):
    return torch.tensor(places, dtype=torch.float64)[:, None]


# Real images at 0, 1, 3 and 10: to the nearest other 1, 1, 2 and 7; to the second 3, 2, 3 and 9.
REAL = line(0.0, 1.0, 3.0, 10.0)


def test_the_radii_are_distances_to_the_kth_nearest_other():
    assert distances.radii(REAL, 1).tolist() == [1, 1, 2, 7]
    assert distances.radii(REAL, 2).tolist() == [3, 2, 3, 9]


@pytest.mark.parametrize(
    ("k", "precision", "recall", "density", "coverage"),
    [
        # Balls [-1, 1], [0, 2], [1, 5], [3, 17]: 0.5 is in two, 4 in two, -1.5 and 18 in none.
        # Of samples [-1.5, 2.5], [.5, 7.5], [-3.5, .5], [4, 32]: every real image is inside.
        (1, 2 / 4, 4 / 4, 4 / 4, 4 / 4),
        # [-3, 3], [-1, 3], [0, 6], [1, 19]: 0.5 is in three, 4 in two, -1.5 in one, 18 in one.
        (2, 4 / 4, 4 / 4, 7 / 8, 4 / 4),
    ],
)
def test_balls_on_a_line(k, precision, recall, density, coverage):
    samples = line(0.5, 4.0, -1.5, 18.0)
    assert distances.precision(REAL, samples, k) == precision
    assert distances.recall(REAL, samples, k) == recall
    assert distances.density(REAL, samples, k) == density
    assert distances.coverage(REAL, samples, k) == coverage


def test_samples_that_miss_most_real_images():
    # All samples beside the image at 0: precise, dense, but nothing else is covered.
    samples = line(0.1, 0.11, 0.12, 0.13)
    assert distances.precision(REAL, samples, 1) == 1
    assert distances.recall(REAL, samples, 1) == 0
    assert distances.density(REAL, samples, 1) == 2  # the balls of 0 and 1 hold each of them
    assert distances.coverage(REAL, samples, 1) == 2 / 4


@given(st.integers(0, 50), st.integers(1, 4))
def test_equal_sets_are_perfect(seed, k):
    x = randn(12, 3, seed=seed)
    assert distances.precision(x, x, k) == distances.recall(x, x, k) == 1
    assert distances.coverage(x, x, k) == 1
    # A sample lies in its own ball and in the balls of those that have it among their k nearest,
    # k on average.
    assert distances.density(x, x, k) == pytest.approx((k + 1) / k)


def test_far_sets_have_nothing_in_common():
    x = randn(12, 3)
    for figure in (distances.precision, distances.recall, distances.density, distances.coverage):
        assert figure(x, x + 100, 3) == 0


def test_rows_in_chunks(monkeypatch):
    x, y = randn(23, 3), 0.5 + randn(17, 3, seed=1)
    figures = (distances.precision, distances.recall, distances.density, distances.coverage)
    whole = [figure(x, y, 3) for figure in figures]
    monkeypatch.setattr(distances, "CHUNK", 5)
    assert [figure(x, y, 3) for figure in figures] == whole
    assert all(0 < value < 2 for value in whole)
