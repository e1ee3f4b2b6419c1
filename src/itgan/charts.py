"""Curves -> drawings: scales with round ticks, and paths in percent of the plot.

The page stretches a plot to the width it has and writes the labels beside it in its own type, so
everything here is a position between 0 and 100, and nothing a colour or a size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import isotonic_regression

Number = float | int
Numbers = Sequence[Number]
Repetition = tuple[Numbers, Numbers]

MOST_POINTS = 400  # a curve has no more: the page stays small, and a screen shows no more
LABEL_GAP = 6.0  # percent of a plot's height that a line of text takes
MANY_LINES = 3  # a chart of more has the whole width
_COLOURS = (4, 5, 7, 2, 6, 8, 9, 1, 3, 0)  # for series that have no colour of their own, in turn


def typeset(number: str) -> str:
    """A formatted number with a true minus sign."""
    return number.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Curve:
    """One chart: every series is a list of repetitions (xs, ys), drawn as a mean with a band.

    The band runs from the lowest to the highest repetition. The y axis is logarithmic where all
    values are positive and span more than two decades. Points that are not finite are left out.
    """

    name: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Repetition]]


@dataclass(frozen=True)
class Axis:
    """A scale: values -> percent of a width or height; if log, low and high are exponents."""

    low: Number
    high: Number
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[Number], *, log: bool = False, pad: float = 0.04) -> "Axis":
        """The scale that holds all values, with ``pad`` of their span free at either end."""
        values = [math.log10(value) if log else value for value in values]
        low, high = min(values), max(values)
        margin = pad * (high - low) if high > low else 0.04 * abs(high) or 1.0
        return cls(low - margin, high + margin, log)

    def at(self, value: Number) -> float:
        """Where the value stands, 0 ... 100."""
        value = math.log10(value) if self.log else value
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Round values, about ``most`` of them: position and label."""
        rough = (self.high - self.low) / most
        if self.log:
            step = max(1, math.ceil(rough))
        else:
            power = 10.0 ** math.floor(math.log10(rough))
            step = power * next(m for m in (1, 2, 5, 10) if rough < 1.5 * m * power)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)]
        if self.log:
            return [(self.at(10.0**v), typeset(f"{10.0**v:,g}")) for v in values]
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(self.at(v), typeset(f"{v:,.{digits}f}")) for v in values]


@dataclass(frozen=True)
class Line:
    """One series: its colour's number, SVG paths of mean and band (if any), the mean's end.

    ``label`` is where its name stands beside the plot, if it ends there: near the line's end, and
    apart from other names.
    """

    name: str
    colour: int
    mean: str
    band: str
    last: str
    label: float | None


@dataclass(frozen=True)
class Chart:
    """What the page draws of a curve."""

    curve: Curve
    x: Axis
    y: Axis
    lines: list[Line]
    legend: str

    @property
    def wide(self) -> bool:
        """Whether it has so many lines that it needs room."""
        return len(self.lines) > MANY_LINES


def draw(curves: Sequence[Curve], palette: Sequence[str]) -> list[Chart]:
    """The charts of all curves that have a finite point.

    A series that ``palette`` names has its place there for a colour; the others share what is
    left, and a name has the same colour in every chart.
    """
    names = list(dict.fromkeys(name for curve in curves for name in curve.series))
    colours = {name: palette.index(name) for name in names if name in palette}
    free = [colour for colour in _COLOURS if colour not in colours.values()] or _COLOURS
    others = [name for name in names if name not in palette]
    colours |= {name: free[i % len(free)] for i, name in enumerate(others)}
    return [chart for curve in curves if (chart := _chart(curve, colours))]


def _chart(curve: Curve, colours: Mapping[str, int]) -> Chart | None:
    bands = {name: _band(repetitions) for name, repetitions in curve.series.items()}
    bands = {name: band for name, band in bands.items() if len(band)}
    if not bands:
        return None
    every = np.concatenate(list(bands.values()))  # n (x, mean, lowest, highest)
    lowest, highest = every[:, 2].min().item(), every[:, 3].max().item()
    x = Axis.around([every[:, 0].min().item(), every[:, 0].max().item()], pad=0.0)
    y = Axis.around([lowest, highest], log=lowest > 0 and highest > 100 * lowest)
    ends = {n: y.at(b[-1, 1].item()) for n, b in bands.items() if x.at(b[-1, 0].item()) > 95}
    labels = dict(zip(ends, spread(list(ends.values()), LABEL_GAP), strict=True))
    lines = [
        Line(
            name,
            colours[name],
            _path(band[:, [0, 1]], x, y),
            _outline(band, x, y) if len(curve.series[name]) > 1 else "",
            typeset(f"{band[-1, 1]:,.3g}"),
            labels.get(name) if len(bands) > 1 else None,
        )
        for name, band in bands.items()
    ]
    return Chart(curve, x, y, lines, _legend(curve))


def spread(places: Numbers, gap: Number) -> list[Number]:
    """Places between 0 and 100 at least ``gap`` apart, in their order, each as near as it can be.

    The sum of squared moves is least: a monotone regression once the gaps are taken out. Where
    there are too many for the gap they stand as far apart as they can.
    """
    if len(places) < 2:
        return list(places)
    order = np.argsort(places, kind="stable")
    gap = min(gap, 100 / (len(places) - 1))
    gaps = gap * np.arange(len(places))
    fitted = isotonic_regression(np.asarray(places)[order] - gaps, y_min=0, y_max=100 - gaps[-1])
    out = np.empty(len(places))
    out[order] = fitted + gaps
    return [round(place, 2) for place in out.tolist()]


def _legend(curve: Curve) -> str:
    """What line and band are, where that is not plain."""
    counts = [len(repetitions) for repetitions in curve.series.values()]
    parts = []
    if max(counts) > 1:
        of = "" if len(set(counts)) == 1 else "up to "
        parts.append(f"line: mean of {of}{max(counts)} runs; band: lowest to highest")
    if any(len(xs) > MOST_POINTS for runs in curve.series.values() for xs, _ in runs):
        parts.append("neighbouring points averaged")
    return "; ".join(parts)


def _thinned(repetition: Repetition) -> np.ndarray:
    """The finite points (x, y) by rising x; neighbours are averaged where there are too many."""
    points = np.array(sorted(zip(*repetition, strict=True)), float).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    if len(points) <= MOST_POINTS:
        return points
    return np.stack([group.mean(0) for group in np.array_split(points, MOST_POINTS)])


def _band(repetitions: Sequence[Repetition]) -> np.ndarray:
    """Columns x, mean, lowest, highest; at every x over the repetitions that reach it."""
    kept = [points for points in map(_thinned, repetitions) if len(points)]
    if not kept:
        return np.empty((0, 4))
    grid = np.unique(np.concatenate([points[:, 0] for points in kept]))
    values = np.stack(
        [np.interp(grid, points[:, 0], points[:, 1], np.nan, np.nan) for points in kept]
    )
    mean, lowest, highest = (f(values, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))
    return np.stack([grid, mean, lowest, highest], 1)


def _outline(band: np.ndarray, x: Axis, y: Axis) -> str:
    return _path(np.concatenate([band[:, [0, 3]], band[::-1, [0, 2]]]), x, y) + "Z"


def _path(points: np.ndarray, x: Axis, y: Axis) -> str:
    """An SVG path; a lone point is a line of no length, which round caps make a dot."""
    corners = [f"{x.at(a):g} {100 - y.at(b):.5g}" for a, b in points.tolist()]
    return "M" + "L".join(corners) + ("h0" if len(corners) == 1 else "")
