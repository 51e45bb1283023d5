"""Charts of the report as inline SVG, coloured by the style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from comparison.markup import Element, element
from comparison.scoring import Result
from comparison.statistics import Spread

STYLES = 8  # line styles that the style sheet knows: series-0 .. series-7
WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
NAMES, ROW = 150, 24  # of the chart of gains: its left margin, and the height of a method
MOST_LETTERS = 22  # that fit there


@dataclass(frozen=True)
class Curve:
    """Validation mIoU of one method: epoch -> (mean, lowest, highest) over its seeds, in 0..1."""

    name: str
    style: int
    points: Mapping[int, tuple[float, float, float]]


def make_curve(name: str, style: int, results: Sequence[Result]) -> Curve:
    """The curve of a method's runs, at the epochs that all of them scored."""
    runs = []
    for result in results:
        scored = {row["epoch"]: row.get("val_miou") for row in result.metrics}
        runs.append({epoch: miou for epoch, miou in scored.items() if miou is not None and math.isfinite(miou)})
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    points = {}
    for epoch in shared:
        values = [run[epoch] for run in runs]
        points[epoch] = (statistics.fmean(values), min(values), max(values))
    return Curve(name, style % STYLES, points)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about ``count`` of them, from at most ``low`` to at least ``high``."""
    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    return list(map(float, locator.tick_values(low, high if high > low else low + 1)))


def curves_svg(name: str, curves: Sequence[Curve], teacher: float | None, label: str) -> Element:
    """A chart: lines of the means over bands from the lowest to the highest seed, the teacher's mIoU as a level.

    ``name`` tells the charts of a page apart, ``label`` says in words what is to be seen.
    """
    curves = [curve for curve in curves if curve.points]
    epochs = [epoch for curve in curves for epoch in curve.points]
    first, last = min(epochs), max(epochs)
    # The steep beginning would press everything that is to be compared into one thick line.
    late = first + (last - first) / 4
    values = [value for curve in curves for epoch in curve.points if epoch >= late for value in curve.points[epoch]]
    values += [teacher] if teacher is not None else []
    ticks = nice_ticks(100 * min(values), 100 * max(values))

    def x(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (100 * share - ticks[0]) / (ticks[-1] - ticks[0])

    svg = element("svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, class_="curves")
    for tick in ticks:
        height = _fixed(y(tick / 100))
        svg.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height))
        svg.append(element("text", f"{tick:g}", x=LEFT - 8, y=height, class_="tick left"))
    for tick in _epoch_ticks(first, last):
        svg.append(element("text", str(tick), x=_fixed(x(tick)), y=HEIGHT - BOTTOM + 18, class_="tick below"))
    svg.append(element("text", "epoch", x=_fixed((LEFT + WIDTH - RIGHT) / 2), y=HEIGHT - 4, class_="tick below"))
    if teacher is not None:
        level = _fixed(y(teacher))
        svg.append(element("line", class_="level", x1=LEFT, x2=WIDTH - RIGHT, y1=level, y2=level))
    frame = element("rect", x=LEFT, y=TOP - 4, width=WIDTH - LEFT - RIGHT, height=HEIGHT - TOP - BOTTOM + 4)
    svg.append(element("clipPath", frame, id=f"frame-{name}"))
    drawing = element("g", clip_path=f"url(#frame-{name})")
    for curve in curves:
        drawing.extend(_draw(curve, x, y))
    svg.append(drawing)
    return svg


def _draw(curve: Curve, x: Callable[[float], float], y: Callable[[float], float]) -> list[Element]:
    lower = [f"{_fixed(x(epoch))},{_fixed(y(low))}" for epoch, (_, low, _) in curve.points.items()]
    upper = [f"{_fixed(x(epoch))},{_fixed(y(high))}" for epoch, (_, _, high) in curve.points.items()]
    means = [(_fixed(x(epoch)), _fixed(y(mean))) for epoch, (mean, _, _) in curve.points.items()]
    style = f"series-{curve.style}"
    shapes = [
        element("polygon", points=" ".join(lower + upper[::-1]), class_=f"band {style}"),
        element("polyline", points=" ".join(f"{a},{b}" for a, b in means), class_=f"line {style}"),
    ]
    if len(means) <= 3:  # a curve of one epoch has no line to draw
        shapes += [element("circle", cx=a, cy=b, r=2.5, class_=f"dot {style}") for a, b in means]
    return shapes


def _epoch_ticks(first: int, last: int) -> list[int]:
    """Whole epochs for the axis, at most nine."""
    ticks = MaxNLocator(8, integer=True).tick_values(first, last)
    return [round(tick) for tick in ticks if first <= tick <= last]


def gains_svg(gains: Sequence[tuple[str, Spread]], label: str) -> Element:
    """A row a method: the mean of its differences in points as a dot on its 95 % interval, about the line of 0."""
    rows = [(name, gain, gain.interval or (gain.mean, gain.mean)) for name, gain in gains]
    ticks = nice_ticks(
        100 * min(0.0, *(low for _, _, (low, _) in rows)), 100 * max(0.0, *(high for *_, (_, high) in rows))
    )
    height = TOP + ROW * len(rows)

    def x(share: float) -> str:
        return _fixed(NAMES + (WIDTH - NAMES - RIGHT) * (100 * share - ticks[0]) / (ticks[-1] - ticks[0]))

    svg = element("svg", viewBox=f"0 0 {WIDTH} {height + BOTTOM}", role="img", aria_label=label, class_="curves")
    for tick in ticks:
        kind, place = "level" if tick == 0 else "grid", x(tick / 100)
        svg.append(element("line", class_=kind, x1=place, x2=place, y1=TOP - 4, y2=height))
        svg.append(element("text", f"{tick:g}", x=place, y=height + 18, class_="tick below"))
    for number, (name, gain, (low, high)) in enumerate(rows):
        y = _fixed(TOP + ROW * (number + 0.5))
        shown = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
        svg.append(element("text", shown, x=NAMES - 8, y=y, class_="tick left"))
        svg.append(element("line", x1=x(low), x2=x(high), y1=y, y2=y, class_="whisker series-1"))
        svg.append(element("circle", cx=x(gain.mean), cy=y, r=4, class_="dot series-1"))
    return svg


def swatch(kind: str) -> Element:
    """A piece of line for a legend; ``kind`` is a class such as ``series-2`` or ``level``."""
    line = element("line", x1=1, x2=27, y1=6, y2=6, class_=kind if kind == "level" else f"line {kind}")
    return element("svg", line, viewBox="0 0 28 12", class_="swatch", aria_hidden="true")


def bars_svg(values: Sequence[tuple[str, float | None]]) -> Element:
    """Horizontal bars under one another, one each (class of the style sheet, share in 0..1); for eyes only."""
    height = 9
    svg = element(
        "svg", viewBox=f"0 0 100 {height * len(values)}", preserveAspectRatio="none", aria_hidden="true", class_="bars"
    )
    svg.set("style", f"height:{height * len(values)}px")
    for index, (kind, share) in enumerate(values):
        if share is not None:
            width = _fixed(max(100 * share, 0.3))  # a class at zero still shows a line
            svg.append(element("rect", x=0, y=index * height + 1, width=width, height=height - 2, class_=f"bar {kind}"))
    return svg


def _fixed(value: float) -> str:
    return f"{value:.1f}"
