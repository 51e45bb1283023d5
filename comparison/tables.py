"""A comparison's table as cells, CSV and LaTeX; as Markdown and HTML it is in `comparison.markdown` and `.report`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from basics.text import clock, csv_text
from comparison.plan import Plan
from comparison.scoring import Comparison
from comparison.statistics import DASH, Line, Spread, verdict
from scoring.tables import iou_columns

# -- cells ---------------------------------------------------------------------------------------


def percent(value: float | None, decimals: int = 2) -> str:
    return DASH if value is None else f"{100 * value:.{decimals}f}"


def spread_cell(spread: Spread | None) -> str:
    """mean ± standard deviation in percent; a dash for what a single value does not have."""
    if spread is None:
        return DASH
    return f"{percent(spread.mean)} ± {percent(spread.std)}"


def gain_cell(gain: Spread | None) -> str:
    """A mean difference in points and its 95 % interval, which a single pair does not have."""
    if gain is None:
        return DASH
    if gain.interval is None:
        return signed(gain.mean)
    low, high = gain.interval
    return f"{signed(gain.mean)} ({signed(low)} to {signed(high)})"


def signed(value: float, decimals: int = 2) -> str:
    """A difference in points, with its sign unless it rounds to nothing."""
    text = f"{100 * value:+.{decimals}f}"
    return text if float(text) else text[1:]


def amount(value: float | None, unit: float = 1.0, decimals: int = 2) -> str:
    return DASH if value is None else f"{value / unit:.{decimals}f}"


HELPS = "helps?"
SortKey = float | str | None
# A column of the table: heading, cell of a line, value to sort by.
TableColumn = tuple[str, Callable[[Line], str], Callable[[Line], SortKey]]
FIRST_COLUMNS: tuple[TableColumn, ...] = (
    ("method", lambda line: line.method, lambda line: line.method),
    ("network", lambda line: line.student, lambda line: line.student),
    ("labels", lambda line: _labels_cell(line), lambda line: math.inf if line.labels is None else line.labels),
    ("seeds", lambda line: str(len(line.seeds)) if line.seeds else DASH, lambda line: len(line.seeds)),
)
LAST_COLUMNS: tuple[TableColumn, ...] = (
    ("of teacher %", lambda line: percent(line.share, 1), lambda line: line.share),
    ("pixel acc %", lambda line: percent(line.pixel_accuracy.mean), lambda line: line.pixel_accuracy.mean),
    ("params M", lambda line: amount(line.parameters, 1e6, 3), lambda line: line.parameters),
    ("MACs G", lambda line: amount(line.macs, 1e9), lambda line: line.macs),
    ("ms", lambda line: amount(line.ms, 1, 1), lambda line: line.ms),
    ("steps", lambda line: amount(line.steps, 1, 0), lambda line: line.steps),
    ("training", lambda line: _time_cell(line), lambda line: line.train_seconds),
    ("score", lambda line: amount(line.score, 1, 3), lambda line: line.score),
)


def columns_of(plan: Plan) -> tuple[TableColumn, ...]:
    """The table's columns; chosen classes only where the plan chooses some, labels and steps where they differ."""
    first = [column for column in FIRST_COLUMNS if column[0] != "labels" or plan.has_budgets]
    columns = tuple(first) + _miou_columns(
        "mIoU %", "difference to baseline", HELPS, lambda line: line.miou, lambda line: line.difference
    )
    if plan.report.classes:
        name = f"mIoU-{len(plan.report.classes)}"
        columns += _miou_columns(
            f"{name} %",
            f"{name} difference",
            f"{name} {HELPS}",
            lambda line: line.chosen,
            lambda line: line.chosen_difference,
        )
    equal_steps = plan.args.time_budget is None
    return columns + tuple(column for column in LAST_COLUMNS if column[0] != "steps" or not equal_steps)


def _miou_columns(
    title: str,
    gain_title: str,
    helps_title: str,
    miou: Callable[[Line], Spread | None],
    difference: Callable[[Line], Spread | None],
) -> tuple[TableColumn, ...]:
    """An mIoU, its difference to the baseline and the verdict on that."""
    return (
        (title, lambda line: _miou_cell(line, miou(line)), lambda line: _mean(miou(line))),
        (gain_title, lambda line: gain_cell(difference(line)), lambda line: _mean(difference(line))),
        (helps_title, lambda line: verdict(difference(line)), lambda line: verdict(difference(line))),
    )


def is_text(title: str) -> bool:
    """Whether the column of this heading holds words, not numbers."""
    return title in ("method", "network") or title.endswith(HELPS)


def _miou_cell(line: Line, miou: Spread | None) -> str:
    return percent(_mean(miou)) if line.kind == "teacher" else spread_cell(miou)


def _mean(spread: Spread | None) -> float | None:
    return spread.mean if spread else None


def _labels_cell(line: Line) -> str:
    if line.kind == "teacher":
        return DASH
    return "all" if line.labels is None else f"{line.labels:,}"


def _time_cell(line: Line) -> str:
    return DASH if line.train_seconds is None else clock(line.train_seconds)


def seeds_in_words(comparison: Comparison) -> str:
    """How many seeds the plan has, and whether all runs of all methods are there."""
    seeds = len(comparison.plan.seeds)
    words = f"{seeds} seed{'s' * (seeds > 1)}"
    return f"up to {words} (some runs are not finished: see the column seeds)" if comparison.missing else words


# -- CSV -----------------------------------------------------------------------------------------


def runs_csv(comparison: Comparison) -> str:
    """A row a run, full precision: scores in 0..1, IoU by class, costs, seconds of training, command line."""
    rows = []
    for result in comparison.results:
        run = result.run
        cost = comparison.costs[run.group.student]
        row = {
            "method": run.method,
            "student": run.group.student,
            "labels": run.group.labels,
            "seed": run.seed,
            "miou": result.row["miou"],
            "pixel_accuracy": result.row["pixel_accuracy"],
            "loss": result.row["loss"],
            "parameters": cost.parameters,
            "macs": cost.macs,
            "ms": cost.ms,
            "steps": result.steps,
            "train_seconds": result.train_seconds,
            "best_epoch": result.best_epoch,
            "score": result.row["score"],
            **iou_columns(result.row["iou"]),
            "protocol": result.row["protocol"],
            "command": run.command,
        }
        rows.append(row)
    return csv_text(rows)


def summary_csv(lines: Sequence[Line]) -> str:
    """A row a line of the table, full precision; what single runs do not have is empty."""
    rows = []
    for line in lines:
        row: dict[str, object] = {
            "method": line.method,
            "student": line.student,
            "labels": line.labels,
            "runs": len(line.seeds),
        }
        for name in ("miou", "pixel_accuracy", "difference", "chosen", "chosen_difference"):
            spread = getattr(line, name)
            row |= {f"{name}_mean": spread and spread.mean, f"{name}_std": spread and spread.std}
            if name.endswith("difference"):
                low, high = (spread and spread.interval) or (None, None)
                row |= {f"{name}_low": low, f"{name}_high": high}
        row |= {"pairs": line.pairs, "helps": "" if line.helps == DASH else line.helps, "share_of_teacher": line.share}
        row |= {key: getattr(line, key) for key in ("parameters", "macs", "ms", "steps", "train_seconds", "score")}
        rows.append(row | iou_columns(line.iou))
    return csv_text(rows)


# -- LaTeX ---------------------------------------------------------------------------------------

TEX_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", DASH: "---", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Plain text as LaTeX that prints it, a minus as one."""
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", "".join(TEX_SIGNS.get(sign, sign) for sign in text))


def to_tex(comparison: Comparison, lines: Sequence[Line]) -> str:
    """A booktabs table; needs \\usepackage{booktabs}."""
    left_out = {"pixel acc %", "training"} | (set() if comparison.missing else {"seeds"})
    shown = [column for column in columns_of(comparison.plan) if column[0] not in left_out]
    body = []
    for index, line in enumerate(lines):
        if index and (line.kind == "baseline"):
            body.append(r"\midrule")
        body.append(" & ".join(tex_escape(cell(line)) for _, cell, _ in shown) + r" \\")
    caption = (
        f"{comparison.plan.name}: mean and sample standard deviation over {seeds_in_words(comparison)}; differences "
        f"are paired by seed, with the 95 % t-interval of their mean. {comparison.results[0].row['protocol']}"
    )
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex_escape(caption)}}}",
            rf"\label{{tab:{comparison.plan.name}}}",
            rf"\begin{{tabular}}{{ll{'r' * (len(shown) - 2)}}}",
            r"\toprule",
            " & ".join(tex_escape(title) for title, _, _ in shown) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
