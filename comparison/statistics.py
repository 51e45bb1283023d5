"""Statistics of a comparison: what each line of its table says.

Means, standard deviations and intervals are over seeds; a difference is that of two runs of the same student and seed.
A method helps if the 95 % t-interval of its mean difference to the baseline lies above 0.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from comparison.plan import Group
from comparison.scoring import Comparison, Cost, Result, Scored
from scoring.tables import lab_score, mean_over

DASH = "—"
WITHIN = "within noise"
LEAST_PAIRS = 3  # the interval of two is 18 times as wide as their distance from their mean
CONFIDENCE = 0.95


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

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t-interval of the mean: mean -+ t * std / sqrt(n); None of a single value."""
        if self.std is None:
            return None
        half = t_quantile(self.n - 1) * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half


def t_within(t: float, degrees: int) -> float:
    """P(|T| < t) of Student's t with so many degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    # Odd: cos + 2/3 cos^3 + 2/3 * 4/5 cos^5 ...; even: 1 + 1/2 cos^2 + 1/2 * 3/4 cos^4 ...; up to cos^(degrees - 2).
    term, series = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        series += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * series) if odd else math.sin(angle) * series


@functools.cache
def t_quantile(degrees: int) -> float:
    """The t with P(|T| < t) = 95 %, found by halving."""
    low, high = 1.9, 13.0  # it falls from 12.71 at one degree to 1.96
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, degrees) < CONFIDENCE else (low, middle)
    return high


@dataclass(frozen=True)
class Line:
    """A row of the table; shares are in 0..1, None where there is nothing to say.

    Attributes:
        kind: teacher, baseline or method.
        labels: how many masks were trained on; None: all of the split.
        seeds: of the finished runs.
        difference: paired, to the baseline.
        chosen, chosen_difference: the same two of the mIoU over the plan's chosen classes; None where it chooses none.
        share: of the teacher's mIoU.
        macs, ms: for one square image.
        steps: of the optimizer, mean over seeds.
        train_seconds: median over seeds.
        score: 4 * mIoU / (1 + millions of parameters), of the mean mIoU.
        iou: mean over seeds by class.
    """

    kind: str
    method: str
    student: str
    labels: int | None
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
    steps: float | None
    train_seconds: float | None
    score: float | None
    iou: Mapping[str, float | None]

    @property
    def group(self) -> Group:
        """What it is compared within."""
        return Group(self.student, self.labels)

    @property
    def pairs(self) -> int:
        """How many runs the difference is of."""
        return self.difference.n if self.difference else 0

    @property
    def helps(self) -> str:
        """Whether the paired difference is above 0 beyond chance, in a word."""
        return verdict(self.difference)


def verdict(difference: Spread | None) -> str:
    """yes, no (worse than the baseline) or within noise; a dash of fewer than `LEAST_PAIRS`, which say nothing."""
    if difference is None or difference.interval is None or difference.n < LEAST_PAIRS:
        return DASH
    low, high = difference.interval
    return "yes" if low > 0 else "no" if high < 0 else WITHIN


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Differences of values by seed to the baseline's of the same seed, where there is one."""
    return [value - baseline[seed] for seed, value in values.items() if seed in baseline]


def by_seed(results: Sequence[Result], value: Callable[[Result], float | None]) -> dict[int, float]:
    """A value of each run by its seed; a run that has none is left out."""
    values = {result.run.seed: value(result) for result in results}
    return {seed: value for seed, value in values.items() if value is not None}


def class_means(scores: Sequence[Scored]) -> dict[str, float | None]:
    """IoU by class, the mean of those scores that have one."""
    return {name: _mean_of_known(score.row["iou"][name] for score in scores) for name in scores[0].row["iou"]}


def class_gain(comparison: Comparison, line: Line, name: str) -> float | None:
    """Mean difference of a method's IoU of a class to the baseline's of the same seed; None where no pair has one."""

    def values(method: str) -> dict[int, float]:
        return by_seed(comparison.of(method, line.group), lambda result: result.row["iou"][name])

    return _mean_of_known(paired(values(line.method), values(comparison.plan.baseline)))


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def summarize(comparison: Comparison) -> list[Line]:
    """The table's rows: the teacher, then by group the baseline and the methods in the plan's order."""
    plan = comparison.plan
    lines = [_teacher_line(comparison, comparison.teacher)] if comparison.teacher else []
    for group in plan.groups:
        baseline = comparison.of(plan.baseline, group)
        for method in [plan.baseline, *(method for method in plan.methods if method != plan.baseline)]:
            results = comparison.of(method, group)
            if results:
                lines.append(_line(comparison, method, group, results, baseline))
    return lines


def _line(
    comparison: Comparison, method: str, group: Group, results: Sequence[Result], baseline: Sequence[Result]
) -> Line:
    cost = comparison.costs[group.student]
    is_baseline = method == comparison.plan.baseline

    def spreads(value: Callable[[Result], float | None]) -> tuple[Spread | None, Spread | None]:
        """Of a value of each run, and of its differences to the baseline."""
        values = by_seed(results, value)
        differences = [] if is_baseline else paired(values, by_seed(baseline, value))
        return Spread.of(list(values.values())), Spread.of(differences)

    miou, difference = spreads(lambda result: result.miou)
    chosen, chosen_difference = spreads(lambda result: mean_over(result.row, comparison.plan.report.classes))
    pixel_accuracy = Spread.of([result.row["pixel_accuracy"] for result in results])
    assert miou is not None and pixel_accuracy is not None  # there is a result
    return Line(
        kind="baseline" if is_baseline else "method",
        method=method,
        student=group.student,
        labels=group.labels,
        seeds=tuple(result.run.seed for result in results),
        miou=miou,
        pixel_accuracy=pixel_accuracy,
        difference=difference,
        chosen=chosen,
        chosen_difference=chosen_difference,
        share=miou.mean / comparison.teacher.miou if comparison.teacher and comparison.teacher.miou else None,
        parameters=cost.parameters,
        macs=cost.macs,
        ms=cost.ms,
        steps=_mean_of_known(result.steps for result in results),
        train_seconds=statistics.median(result.train_seconds for result in results),
        score=_score(miou.mean, cost),
        iou=class_means(results),
    )


def _teacher_line(comparison: Comparison, teacher: Scored) -> Line:
    plan, cost = comparison.plan, comparison.costs["teacher"]
    assert plan.teacher is not None  # it was scored
    chosen = mean_over(teacher.row, plan.report.classes)
    return Line(
        kind="teacher",
        method="teacher",
        student=plan.teacher.label,
        labels=None,
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
        steps=None,
        train_seconds=None,
        score=_score(teacher.miou, cost),
        iou=class_means([teacher]),
    )


def _score(miou: float, cost: Cost) -> float | None:
    """None where nobody can count the parameters."""
    return None if cost.parameters is None else lab_score(miou, cost.parameters)


def best_method(lines: Sequence[Line], group: Group) -> Line | None:
    """The method of this group that gains most on the baseline, seed by seed; those of enough pairs go first."""

    def rank(line: Line) -> tuple[int, float]:
        if line.difference is None:
            return 0, line.miou.mean
        return min(line.difference.n, LEAST_PAIRS), line.difference.mean

    methods = [line for line in lines if line.kind == "method" and line.group == group]
    return max(methods, key=rank, default=None)
