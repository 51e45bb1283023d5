"""Statistics of a comparison, and the same table as Markdown, CSV and LaTeX.

Means and standard deviations are over seeds; a difference is that of two runs of the same student and seed.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from basics.text import clock
from comparison.plan import Plan
from comparison.scoring import Comparison, Result, Scored
from scoring.tables import lab_score

DASH = "—"
WITHIN = "within noise"
LEAST_PAIRS = 3  # of two, without any difference, every fifth would be called one


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divided by ``n`` - 1) of ``n`` values; the latter is None of a single one."""

    mean: float
    std: float | None
    n: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None of no values."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Line:
    """A row of the table; shares are in 0..1, None where there is nothing to say.

    Attributes:
        kind: teacher, baseline or method.
        seeds: of the finished runs.
        difference: paired, to the baseline.
        chosen, chosen_difference: the same two of the mIoU over the plan's chosen classes; None where it chooses none.
        share: of the teacher's mIoU.
        macs, ms: for one square image.
        train_seconds: median over seeds.
        score: 4 * mIoU / (1 + millions of parameters), of the mean mIoU.
        iou: mean over seeds by class.
    """

    kind: str
    method: str
    student: str
    seeds: tuple[int, ...]
    miou: Spread
    pixel_accuracy: Spread
    difference: Spread | None
    chosen: Spread | None
    chosen_difference: Spread | None
    share: float | None
    parameters: int | None
    macs: int | None
    ms: float | None
    train_seconds: float | None
    score: float | None
    iou: Mapping[str, float | None]

    @property
    def pairs(self) -> int:
        """How many runs the difference is of."""
        return self.difference.n if self.difference else 0

    @property
    def helps(self) -> str:
        """Whether the paired difference is larger than twice its standard deviation, in a word."""
        return verdict(self.difference)


def seeds_in_words(comparison: Comparison) -> str:
    """How many seeds the plan has, and whether all runs of all methods are there."""
    seeds = len(comparison.plan.seeds)
    words = f"{seeds} seed{'s' * (seeds > 1)}"
    return f"up to {words} (some runs are not finished: see the column seeds)" if comparison.missing else words


def verdict(difference: Spread | None) -> str:
    """yes, no (worse than the baseline) or within noise; a dash of fewer than `LEAST_PAIRS`, which say nothing."""
    if difference is None or difference.n < LEAST_PAIRS:
        return DASH
    if abs(difference.mean) <= 2 * difference.std:
        return WITHIN
    return "yes" if difference.mean > 0 else "no"


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Differences of values by seed to the baseline's of the same seed, where there is one."""
    return [value - baseline[seed] for seed, value in values.items() if seed in baseline]


def chosen_miou(score: Scored, classes: Sequence[str]) -> float | None:
    """Mean IoU (0..1) of these classes, those left out that occur in neither truth nor prediction; None of none."""
    return _mean_of_known(score.row["iou"][name] for name in classes)


def by_seed(results: Sequence[Result], value: Callable[[Result], float | None]) -> dict[int, float]:
    """A value of each run by its seed; a run that has none is left out."""
    values = {result.run.seed: value(result) for result in results}
    return {seed: value for seed, value in values.items() if value is not None}


def class_means(scores: Sequence[Scored]) -> dict[str, float | None]:
    """IoU by class, the mean of those scores that have one."""
    return {name: _mean_of_known(score.row["iou"][name] for score in scores) for name in scores[0].row["iou"]}


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def summarize(comparison: Comparison) -> list[Line]:
    """The table's rows: the teacher, then by student the baseline and the methods in the plan's order."""
    plan = comparison.plan
    lines = [_teacher_line(comparison)] if comparison.teacher else []
    for student in plan.students:
        baseline = comparison.of(plan.baseline, student)
        for method in [plan.baseline, *(method for method in plan.methods if method != plan.baseline)]:
            results = comparison.of(method, student)
            if results:
                lines.append(_line(comparison, method, student, results, baseline))
    return lines


def _line(
    comparison: Comparison, method: str, student: str, results: Sequence[Result], baseline: Sequence[Result]
) -> Line:
    cost = comparison.costs[student]
    is_baseline = method == comparison.plan.baseline

    def spreads(value: Callable[[Result], float | None]) -> tuple[Spread | None, Spread | None]:
        """Of a value of each run, and of its differences to the baseline."""
        values = by_seed(results, value)
        differences = [] if is_baseline else paired(values, by_seed(baseline, value))
        return Spread.of(list(values.values())), Spread.of(differences)

    miou, difference = spreads(lambda result: result.miou)
    chosen, chosen_difference = spreads(lambda result: chosen_miou(result, comparison.plan.report.classes))
    return Line(
        kind="baseline" if is_baseline else "method",
        method=method,
        student=student,
        seeds=tuple(result.run.seed for result in results),
        miou=miou,
        pixel_accuracy=Spread.of([result.row["pixel_accuracy"] for result in results]),
        difference=difference,
        chosen=chosen,
        chosen_difference=chosen_difference,
        share=miou.mean / comparison.teacher.miou if comparison.teacher and comparison.teacher.miou else None,
        parameters=cost.parameters,
        macs=cost.macs,
        ms=cost.ms,
        train_seconds=statistics.median(result.train_seconds for result in results),
        score=lab_score(miou.mean, cost.parameters),
        iou=class_means(results),
    )


def _teacher_line(comparison: Comparison) -> Line:
    teacher, cost = comparison.teacher, comparison.costs["teacher"]
    chosen = chosen_miou(teacher, comparison.plan.report.classes)
    return Line(
        kind="teacher",
        method="teacher",
        student=comparison.plan.teacher[0],
        seeds=(),
        miou=Spread(teacher.miou, None),
        pixel_accuracy=Spread(teacher.row["pixel_accuracy"], None),
        difference=None,
        chosen=None if chosen is None else Spread(chosen, None),
        chosen_difference=None,
        share=1.0,
        parameters=cost.parameters,
        macs=cost.macs,
        ms=cost.ms,
        train_seconds=None,
        score=None if cost.parameters is None else lab_score(teacher.miou, cost.parameters),
        iou=class_means([teacher]),
    )


def best_method(lines: Sequence[Line], student: str) -> Line | None:
    """The method of this student with the highest mean mIoU, the baseline apart."""
    methods = [line for line in lines if line.kind == "method" and line.student == student]
    return max(methods, key=lambda line: line.miou.mean, default=None)


# -- cells ---------------------------------------------------------------------------------------


def percent(value: float | None, decimals: int = 2) -> str:
    return DASH if value is None else f"{100 * value:.{decimals}f}"


def spread_cell(spread: Spread | None, sign: bool = False) -> str:
    """mean ± standard deviation in percent; a dash for what a single value does not have."""
    if spread is None:
        return DASH
    return f"{signed(spread.mean) if sign else percent(spread.mean)} ± {percent(spread.std)}"


def signed(value: float, decimals: int = 2) -> str:
    """A difference in points, with its sign unless it rounds to nothing."""
    text = f"{100 * value:+.{decimals}f}"
    return text if float(text) else text[1:]


def amount(value: float | None, unit: float = 1.0, decimals: int = 2) -> str:
    return DASH if value is None else f"{value / unit:.{decimals}f}"


HELPS = "helps?"
# A column of the table: heading, cell of a line, value to sort by.
Column = tuple[str, Callable[[Line], str], Callable[[Line], object]]
FIRST_COLUMNS = (
    ("method", lambda line: line.method, lambda line: line.method),
    ("network", lambda line: line.student, lambda line: line.student),
    ("seeds", lambda line: str(len(line.seeds)) if line.seeds else DASH, lambda line: len(line.seeds)),
)
LAST_COLUMNS = (
    ("of teacher %", lambda line: percent(line.share, 1), lambda line: line.share),
    ("pixel acc %", lambda line: percent(line.pixel_accuracy.mean), lambda line: line.pixel_accuracy.mean),
    ("params M", lambda line: amount(line.parameters, 1e6, 3), lambda line: line.parameters),
    ("MACs G", lambda line: amount(line.macs, 1e9), lambda line: line.macs),
    ("ms", lambda line: amount(line.ms, 1, 1), lambda line: line.ms),
    ("training", lambda line: _time_cell(line), lambda line: line.train_seconds),
    ("score", lambda line: amount(line.score, 1, 3), lambda line: line.score),
)


def columns_of(plan: Plan) -> tuple[Column, ...]:
    """The table's columns; those of the chosen classes only where the plan chooses some."""
    columns = FIRST_COLUMNS + _miou_columns("mIoU %", "difference to baseline", HELPS, "miou", "difference")
    if plan.report.classes:
        name = f"mIoU-{len(plan.report.classes)}"
        columns += _miou_columns(f"{name} %", f"{name} difference", f"{name} {HELPS}", "chosen", "chosen_difference")
    return columns + LAST_COLUMNS


def _miou_columns(title: str, gain_title: str, helps_title: str, miou: str, difference: str) -> tuple[Column, ...]:
    """An mIoU, its difference to the baseline and the verdict on that; the last two name attributes of a `Line`."""
    miou, difference = attrgetter(miou), attrgetter(difference)
    return (
        (title, lambda line: _miou_cell(line, miou(line)), lambda line: _mean(miou(line))),
        (gain_title, lambda line: spread_cell(difference(line), sign=True), lambda line: _mean(difference(line))),
        (helps_title, lambda line: verdict(difference(line)), lambda line: verdict(difference(line))),
    )


def is_text(title: str) -> bool:
    """Whether the column of this heading holds words, not numbers."""
    return title in ("method", "network") or title.endswith(HELPS)


def _miou_cell(line: Line, miou: Spread | None) -> str:
    return percent(_mean(miou)) if line.kind == "teacher" else spread_cell(miou)


def _mean(spread: Spread | None) -> float | None:
    return spread.mean if spread else None


def _time_cell(line: Line) -> str:
    return DASH if line.train_seconds is None else clock(line.train_seconds)


# -- CSV -----------------------------------------------------------------------------------------


def runs_csv(comparison: Comparison) -> str:
    """A row a run, full precision: scores in 0..1, IoU by class, costs, seconds of training, command line."""
    rows = []
    for result in comparison.results:
        run, cost = result.run, comparison.costs[result.run.student]
        row = {"method": run.method, "student": run.student, "seed": run.seed}
        row |= {key: result.row[key] for key in ("miou", "pixel_accuracy", "loss")}
        row |= {
            "parameters": cost.parameters,
            "macs": cost.macs,
            "ms": cost.ms,
            "train_seconds": result.train_seconds,
            "best_epoch": result.checkpoint_epoch,
            "score": result.row["score"],
        }
        row |= {f"iou/{name}": value for name, value in result.row["iou"].items()}
        rows.append(row | {"protocol": result.row["protocol"], "command": run.command})
    return _csv(rows)


def summary_csv(lines: Sequence[Line]) -> str:
    """A row a line of the table, full precision; standard deviations of single runs are empty."""
    rows = []
    for line in lines:
        row = {"method": line.method, "student": line.student, "runs": len(line.seeds)}
        for name in ("miou", "pixel_accuracy", "difference", "chosen", "chosen_difference"):
            spread = getattr(line, name)
            row |= {f"{name}_mean": spread and spread.mean, f"{name}_std": spread and spread.std}
        row |= {"pairs": line.pairs, "helps": "" if line.helps == DASH else line.helps, "share_of_teacher": line.share}
        row |= {key: getattr(line, key) for key in ("parameters", "macs", "ms", "train_seconds", "score")}
        rows.append(row | {f"iou/{name}": value for name, value in line.iou.items()})
    return _csv(rows)


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# -- LaTeX ---------------------------------------------------------------------------------------

TEX_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", DASH: "---", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Plain text as LaTeX that prints it."""
    return "".join(TEX_SIGNS.get(sign, sign) for sign in text)


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
        f"are paired by seed. {comparison.results[0].row['protocol']}"
    )
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{tex_escape(caption)}}}",
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
