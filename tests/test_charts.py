import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itgan.charts import MOST_POINTS, Axis, Curve, draw, spread


def curve(**series):
    return Curve("loss", "step", "value", series)


def corners(path):
    return [tuple(map(float, pair.split())) for pair in path.strip("MZ").split("L")]


@given(
    st.floats(-1e6, 1e6, allow_subnormal=False),
    st.floats(1e-3, 1e6),
    st.integers(3, 8),
)
def test_ticks_are_few_rising_and_inside(low, span, most):
    ticks = Axis(low, low + span).ticks(most)
    places = [place for place, _ in ticks]
    assert 1 <= len(ticks) <= 1.5 * most + 1
    assert places == sorted(places)
    assert all(-0.01 <= place <= 100.01 for place in places)


def test_ticks_stand_where_their_labels_say():
    axis = Axis(-7.0, 13.0)
    ticks = [(axis.at(v), t) for v, t in [(-5, "−5"), (0, "0"), (5, "5"), (10, "10")]]  # noqa: RUF001
    assert axis.ticks() == ticks


def test_log_ticks_are_powers_of_ten():
    axis = Axis.around([0.002, 3.0], log=True)
    assert axis.ticks() == [(axis.at(v), f"{v:g}") for v in (0.01, 0.1, 1)]


def test_a_scale_is_logarithmic_only_over_two_positive_decades():
    def labels(ys):
        return [t for _, t in draw([curve(a=[([0, 1], ys)])], [])[0].y.ticks()]

    assert labels([1.0, 1000.0]) == ["1", "10", "100", "1,000"]
    assert "10" not in labels([1.0, 90.0])
    assert "10" not in labels([0.0, 1000.0])


def test_mean_and_band_of_two_repetitions():
    (chart,) = draw([curve(a=[([0, 1, 2], [0, 0, 0]), ([0, 1, 2], [2, 4, 6])])], [])
    (line,) = chart.lines
    y = Axis.around([0.0, 6.0])
    assert [x for x, _ in corners(line.mean)] == [0, 50, 100]
    assert [100 - c[1] for c in corners(line.mean)] == pytest.approx([y.at(v) for v in (1, 2, 3)])
    assert [100 - c[1] for c in corners(line.band)] == pytest.approx(
        [y.at(v) for v in (2, 4, 6, 0, 0, 0)]
    )
    assert line.last == "3"
    assert chart.legend == "line: mean of 2 runs; band: lowest to highest"


def test_a_band_reaches_as_far_as_any_repetition():
    (chart,) = draw([curve(a=[([0, 1], [1, 1]), ([0, 1, 2], [3, 3, 3])])], [])
    assert chart.lines[0].last == "3"
    assert len(corners(chart.lines[0].mean)) == 3


def test_one_repetition_has_no_band_and_needs_no_legend():
    (chart,) = draw([curve(a=[([0, 1], [1, 2])])], [])
    assert chart.lines[0].band == ""
    assert chart.legend == ""


def test_what_is_not_finite_is_left_out():
    (chart,) = draw([curve(a=[([0, 1, 2], [1, math.nan, 2])], b=[([0], [math.inf])])], [])
    assert [line.name for line in chart.lines] == ["a"]
    assert len(corners(chart.lines[0].mean)) == 2
    assert draw([curve(), curve(a=[]), curve(a=[([], [])])], []) == []


def test_a_lone_point_is_a_dot_in_the_middle():
    (chart,) = draw([curve(a=[([3], [5])])], [])
    assert chart.lines[0].mean == "M50 50h0"


def test_long_series_are_averaged_and_say_so():
    xs = list(range(10 * MOST_POINTS))
    (chart,) = draw([curve(a=[(xs, [float(x) for x in xs])])], [])
    assert len(corners(chart.lines[0].mean)) == MOST_POINTS
    assert "averaged" in chart.legend


def test_a_name_keeps_its_colour():
    runs = [([0, 1], [1, 2])]
    charts = draw([curve(x=runs, gan=runs), curve(gan=runs, y=runs, x=runs)], ["real", "gan"])
    colours = [{line.name: line.colour for line in chart.lines} for chart in charts]
    assert colours[0]["gan"] == colours[1]["gan"] == 1
    assert colours[0]["x"] == colours[1]["x"]
    assert len(set(colours[1].values())) == 3


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0, 20))
def test_labels_stand_apart_in_their_order(places, gap):
    out = spread(places, gap)
    assert len(out) == len(places)
    assert all(0 <= place <= 100 for place in out)
    free = min(gap, 100 / max(len(places) - 1, 1))
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = [out[i] for i in order]
    assert all(b - a >= free - 0.02 for a, b in pairwise(moved))


def test_labels_move_no_more_than_they_must():
    assert spread([10, 50, 90], 6) == [10, 50, 90]
    assert spread([50, 52], 6) == [48, 54]
    assert spread([50, 50, 50], 6) == [44, 50, 56]
    assert spread([100, 99], 6) == [100, 94]
    assert spread([7], 6) == [7]


def test_names_stand_beside_lines_that_reach_the_end():
    runs, half = [([0, 10], [1, 2])], [([0, 5], [1, 3])]
    (chart,) = draw([curve(a=runs, b=runs, c=half)], [])
    a, b, c = (line.label for line in chart.lines)
    assert abs(a - b) == pytest.approx(6)
    assert c is None
    assert draw([curve(a=runs)], [])[0].lines[0].label is None
    assert not chart.wide
    assert draw([curve(a=runs, b=runs, c=runs, d=runs)], [])[0].wide
