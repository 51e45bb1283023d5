"""The chart of accuracy over speed: which of several networks is worth its milliseconds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from basics.charts import COLOURS, GREY, MARKERS, plain_axes
from basics.errors import UserError
from basics.files import replacing
from basics.fonts import fonts_for
from scoring.tables import SummaryRow, mean_over

CHARTS = (".png", ".svg", ".pdf", ".jpg", ".webp")
SIZE = re.compile(r" at (\d+(?:x\d+)?)$")  # of a segmenter's name
WORKING_SIZE = re.compile(r": working size (\d+),")  # of a protocol


def read_rows(path: Path) -> list[SummaryRow]:
    """The rows that evaluate.py or test_teacher.py wrote with --json.

    Raises:
        UserError: the file cannot be read, or is another one.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--beside {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not rows or not all(map(_is_row, rows)):
        raise UserError(f"--beside {path}: no results of evaluate.py or test_teacher.py --json: make them again")
    return cast("list[SummaryRow]", rows)


def _is_row(row: object) -> bool:
    """Whether it has all that a table and a chart want."""
    if not isinstance(row, dict):
        return False
    texts = [row.get(key) for key in ("checkpoint", "model", "protocol")]
    numbers = [row.get(key) for key in ("miou", "pixel_accuracy", "ms_per_image", "file_mb", "agreement") if key in row]
    perhaps = [row[key] for key in ("parameters", "score") if row.get(key) is not None]
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int | float) for number in numbers + perhaps)
        and {"miou", "pixel_accuracy", "ms_per_image", "parameters", "score", "pixels"} <= set(row)
        and all(isinstance(row.get(key), dict) for key in ("iou", "class_pixels"))
    )


def require_same_data(row: SummaryRow, others: Sequence[SummaryRow]) -> None:
    """A `UserError` where one of ``others`` was scored on other masks than ``row``."""
    for other in others:
        if row["class_pixels"] != other["class_pixels"]:
            raise UserError(
                f"--beside: {other['checkpoint']} was scored on other masks ({_data(other)}) than {row['checkpoint']} "
                f"({_data(row)}): the two cannot stand side by side"
            )


def _data(row: SummaryRow) -> str:
    return f"{row['protocol'].partition(':')[0]}, {row['pixels']:,} labelled pixels"


@dataclass(frozen=True)
class Point:
    """A row's place in the chart: milliseconds an image, percent, and the size that its pictures had, in words."""

    ms: float
    percent: float
    size: str = "native"


def size_of(row: SummaryRow) -> str:
    """The working size of a row, in words; a teacher's name does not tell it, its protocol does."""
    match = SIZE.search(row["model"]) or WORKING_SIZE.search(row["protocol"])
    return match[1] if match else "native"


def _pixels(point: Point) -> int:
    return int(point.size.partition("x")[0])


def on_front(points: Iterable[Point]) -> list[Point]:
    """Those that no other one beats: of all that are as fast or faster, the best; fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ms, -point.percent)):
        if not front or point.percent > front[-1].percent:
            front.append(point)
    return front


def draw_front(rows: Sequence[SummaryRow], path: Path, classes: Sequence[str] = ()) -> None:
    """Draw mIoU over milliseconds an image, both of ``rows``: a line a file, from its smallest working size to its
    largest, and a point for pictures at their own.

    Points that no other beats stand on a dashed line.

    Args:
        path: picture to write; its suffix chooses the format.
        classes: the mean is over these alone.

    Raises:
        UserError: it cannot be written there.
    """
    lines: dict[str, list[Point]] = {}
    for row in rows:
        score = mean_over(row, classes) if classes else row["miou"]
        if score is not None:
            lines.setdefault(row["checkpoint"], []).append(Point(row["ms_per_image"], 100 * score, size_of(row)))
    names = [name.encode("utf-8", "backslashreplace").decode() for name in short_names(list(lines))]
    labels: list[tuple[bool, Point, str]] = []
    figure = Figure(figsize=(7.2, 4.5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    with fonts_for(names):
        front = on_front(point for points in lines.values() for point in points)
        axes.plot([point.ms for point in front], [point.percent for point in front], "--", color=GREY, linewidth=1,
                  drawstyle="steps-post", label="none faster is better", zorder=1)  # fmt: skip
        for index, (name, points) in enumerate(zip(names, lines.values(), strict=True)):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            name = f" {name}" if name.startswith("_") else name
            sized = sorted((point for point in points if point.size != "native"), key=_pixels)
            for part in (sized, [point for point in points if point.size == "native"]):  # which is no size among them
                if part:
                    axes.plot([point.ms for point in part], [point.percent for point in part], color=colour,
                              marker=marker, linewidth=1.5, label=name)  # fmt: skip
                    name = "_" + name  # is told once
            labels += [(point not in front, point, colour) for point in points if len(points) > 1]
        plain_axes(axes, "ms an image", f"mIoU over {len(classes)} classes, %" if classes else "mIoU, %")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        place_legend(figure, axes, (point for points in lines.values() for point in points))
        label_sizes(figure, axes, [(point, colour) for _, point, colour in sorted(labels, key=lambda label: label[0])])
        with replacing(path) as partial:
            figure.savefig(partial, dpi=130)


def place_legend(figure: Figure, axes: Axes, points: Iterable[Point]) -> None:
    """Put the legend into the corner where it covers the fewest points, and keep it there: matplotlib's own search for
    the best place comes anew with each drawing, and to other results once labels stand there.
    """
    legend, places = axes.get_legend(), [(point.ms, point.percent) for point in points]
    assert legend is not None  # the front has a name
    covered: dict[int, int] = {}
    for corner in (2, 4, 3, 1):  # upper left, lower right, lower left, upper right
        legend.set_loc(corner)
        figure.draw_without_rendering()
        box = legend.get_window_extent()
        covered[corner] = sum(box.contains(*at) for at in axes.transData.transform(places))
    least, *_ = sorted(covered, key=covered.__getitem__)
    legend.set_loc(least)


def label_sizes(figure: Figure, axes: Axes, points: Sequence[tuple[Point, str]]) -> None:
    """Write each point's size beside it, in its colour, where that covers no other size and not the legend.

    What finds no place is left out; the first come first.
    """
    figure.draw_without_rendering()  # only now things have their places
    legend = axes.get_legend()
    taken = [legend.get_window_extent()] if legend else []
    for point, colour in points:
        for offset in ((4, 4), (4, -11), (-20, 4), (-20, -11)):
            text = axes.annotate(point.size, (point.ms, point.percent), offset, textcoords="offset points", fontsize=8,
                                 color=colour)  # fmt: skip
            place = text.get_window_extent()
            if not any(place.overlaps(other) for other in taken):
                taken.append(place)
                break
            text.remove()


def short_names(files: Sequence[str]) -> list[str]:
    """Each file's last part, or as many of its parts as tell it from the others."""
    parts = [Path(file).parts for file in files]
    most = max(map(len, parts), default=1)
    for count in range(1, most + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def check_chart(path: Path) -> None:
    """A `UserError` for what is no name of a picture that can be drawn."""
    if path.is_dir() or path.suffix.lower() not in CHARTS:
        raise UserError(f"--chart {path}: name a picture, {', '.join(CHARTS)}")
