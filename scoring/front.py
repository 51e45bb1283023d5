"""The chart of accuracy over speed: which of several networks is worth its milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from basics.charts import COLOURS, GREY, MARKERS, plain_axes
from basics.errors import UserError
from basics.files import replacing
from basics.fonts import fonts_for
from scoring.tables import SummaryRow


def read_rows(path: Path) -> list[SummaryRow]:
    """The rows that evaluate.py or test_teacher.py wrote with --json.

    Raises:
        UserError: the file cannot be read, or is another one.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            row["miou"] + row["ms_per_image"], row["checkpoint"] + row["model"] + row["protocol"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = error.strerror if isinstance(error, OSError) else "no rows of evaluate.py or test_teacher.py --json"
        raise UserError(f"--beside {path}: {fault}") from error
    return cast("list[SummaryRow]", rows)


def require_same_data(rows: Sequence[SummaryRow], data: str) -> None:
    """A `UserError` where one of ``rows`` was scored on something else than ``data``, as its protocol begins."""
    for row in rows:
        if not row["protocol"].startswith(f"{data}: "):
            theirs = row["protocol"].partition(":")[0]
            raise UserError(f"--beside: {row['checkpoint']} was scored on {theirs}, not on {data}")


def on_front(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """The rows that no other one beats: of all that are as fast or faster, the best; fastest first."""
    front: list[SummaryRow] = []
    for row in sorted(rows, key=lambda row: (row["ms_per_image"], -row["miou"])):
        if not front or row["miou"] > front[-1]["miou"]:
            front.append(row)
    return front


def draw_front(rows: Sequence[SummaryRow], path: Path) -> None:
    """Draw mIoU over milliseconds an image, both of ``rows``: a line a file, through the sizes it was scored at.

    Points that no other beats stand on a dashed line.

    Args:
        path: picture to write; its suffix chooses the format.

    Raises:
        UserError: it cannot be written there.
    """
    files = list(dict.fromkeys(row["checkpoint"] for row in rows))
    names = dict(zip(files, short_names(files), strict=True))
    figure = Figure(figsize=(7.2, 4.5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    with fonts_for(names.values()):
        front = on_front(rows)
        axes.plot([row["ms_per_image"] for row in front], [100 * row["miou"] for row in front], "--", color=GREY,
                  linewidth=1, drawstyle="steps-post", label="none faster is better", zorder=1)  # fmt: skip
        for index, file in enumerate(files):
            points = sorted((row for row in rows if row["checkpoint"] == file), key=lambda row: row["ms_per_image"])
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            times, scores = [row["ms_per_image"] for row in points], [100 * row["miou"] for row in points]
            axes.plot(times, scores, label=names[file], linewidth=1.5, color=colour, marker=marker)
            for row, time, score in zip(points, times, scores, strict=True):
                if len(points) > 1:
                    axes.annotate(row["model"].rpartition(" at ")[2], (time, score), (4, 4), fontsize=8,
                                  textcoords="offset points", color=colour)  # fmt: skip
        plain_axes(axes, "ms an image", "mIoU, %")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        with replacing(path) as partial:
            figure.savefig(partial, dpi=130)


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
    if path.is_dir() or path.suffix.lstrip(".").lower() not in Figure().canvas.get_supported_filetypes():
        raise UserError(f"--chart {path}: name a picture, such as front.png")
