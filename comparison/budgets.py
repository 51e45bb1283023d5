"""The chart of a comparison with several label budgets: score over the number of masks, a line a method."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basics.charts import COLOURS, GREY, MARKERS, plain_axes
from basics.fonts import fonts_for
from comparison.plan import Plan
from comparison.scoring import Comparison
from comparison.statistics import Line, Spread

BUDGETS = "labels.png"


def budgets_png(comparison: Comparison, lines: Sequence[Line]) -> bytes:
    """Mean score over seeds with its standard deviation, by number of masks; one panel a student."""
    plan = comparison.plan
    with fonts_for([*plan.methods, *plan.students]):
        figure = Figure(figsize=(5.4 * len(plan.students), 4), layout="constrained", facecolor="white")
        panels = figure.subplots(1, len(plan.students), squeeze=False, sharey=True)[0]
        for axes, student in zip(panels, plan.students, strict=True):
            _draw(axes, plan, student, [line for line in lines if line.kind == "teacher" or line.student == student])
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=130)
    return content.getvalue()


def budgets_source(png: bytes) -> str:
    """The chart as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def budgets_words(comparison: Comparison, lines: Sequence[Line]) -> str:
    """The chart in words, for those who cannot see it."""
    parts = []
    for line in lines:
        spread = _score(comparison.plan, line)
        if line.kind != "teacher" and spread:
            parts.append(f"{line.method}, {_masks(line.labels)} masks: {100 * spread.mean:.1f} %")
    return f"{_title(comparison.plan)} by number of masks. " + "; ".join(parts)


def _draw(axes: Axes, plan: Plan, student: str, lines: Sequence[Line]) -> None:
    budgets = [group.labels for group in plan.groups if group.student == student]
    for index, method in enumerate(plan.methods):
        found = {line.labels: _score(plan, line) for line in lines if line.kind != "teacher" and line.method == method}
        points = [(place, found[count]) for place, count in enumerate(budgets) if found.get(count)]
        if points:
            places, spreads = zip(*points, strict=True)
            colour = COLOURS[index % len(COLOURS)]
            axes.errorbar(
                places,
                [100 * spread.mean for spread in spreads],
                [100 * (spread.std or 0) for spread in spreads],
                color=colour,
                marker=MARKERS[index % len(MARKERS)],
                label=method,
                capsize=3,
                linewidth=1.8,
            )
    teacher = next((_score(plan, line) for line in lines if line.kind == "teacher"), None)
    if teacher:
        axes.axhline(100 * teacher.mean, color=GREY, linestyle="--", linewidth=1.2, label="teacher")
    axes.set_xticks(range(len(budgets)), [_masks(count) for count in budgets])
    axes.set_ylim(bottom=0)
    plain_axes(axes, "masks of the training split", _title(plan))
    if len(plan.students) > 1:
        axes.set_title(student, fontsize=11, loc="left", parse_math=False)


def _score(plan: Plan, line: Line) -> Spread | None:
    return line.chosen if plan.report.classes else line.miou


def _title(plan: Plan) -> str:
    return f"mIoU over {len(plan.report.classes)} classes, %" if plan.report.classes else "mIoU, %"


def _masks(count: int | None) -> str:
    return "all" if count is None else f"{count:,}"
