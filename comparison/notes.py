"""What has to be said beside a comparison's table: how to read it, how it was made, with what."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from basics.machine import describe_start
from comparison.plan import Group, Plan, Run
from comparison.scoring import Comparison
from comparison.statistics import DASH, LEAST_PAIRS, Line, best_method
from comparison.tables import gain_cell, seeds_in_words


def reading_notes(comparison: Comparison) -> list[str]:
    """How to read the table, a sentence or two each."""
    plan = comparison.plan
    several = len(plan.seeds) > 1
    which = "its last epoch"
    if plan.report.checkpoint == "best":
        which = "its best epoch by mIoU on this very split, for the baseline as for all others,"
    costs = comparison.costs[plan.students[0]]
    notes = [
        f"Every run has the same budget, data and code; of each run the weights of {which} are scored.",
        f"mIoU %: mean ± sample standard deviation over {seeds_in_words(comparison)}."
        if several
        else f"One seed only: there is no standard deviation ({DASH}), and a difference may be chance.",
        "difference to baseline: points of mIoU to the baseline's run of the same seed, the mean of these paired "
        "differences over seeds and, in brackets, its 95 % t-interval.",
        'helps?: "yes" where that interval lies above 0, "no" where it lies below, "within noise" otherwise; '
        f"{DASH} of fewer than {LEAST_PAIRS} pairs. Of twenty methods that change nothing, one is called yes or no by "
        "chance.",
        *_chosen_note(plan),
        "score: 4 · mIoU / (1 + millions of parameters).",
        f"MACs and ms: one image of {plan.report.size} x {plan.report.size} pixels, float32, batch 1; ms is the median "
        f"after a warm-up on {costs.device}.",
        "training: h:mm:ss of optimizer steps, median over seeds; validation and the making of a teacher's cache are "
        "not in it.",
    ]
    if plan.args.time_budget is not None:
        notes.append(
            f"steps: of the optimizer, mean over seeds. The time is equal, not the steps: every run trained for "
            f"{plan.args.time_budget:g} s (whole steps; validation and the making of a teacher's cache are not in it), "
            "and its schedule followed that time."
        )
    if plan.has_budgets:
        same = "the same number of steps" if plan.args.time_budget is None else "the same time"
        notes.append(
            "labels: so many masks of the training split, drawn from the run's seed, a larger draw holding a smaller "
            f"one; all budgets have {same}."
        )
    if comparison.missing:
        names = ", ".join(run.name for run in comparison.missing)
        notes.append(f"Not in the table, because not finished: {names}.")
    return notes


def _chosen_note(plan: Plan) -> list[str]:
    classes = plan.report.classes
    if not classes:
        return []
    return [f"mIoU-{len(classes)}: the same over these classes alone, chosen in the plan: {', '.join(classes)}."]


def plain_words(lines: Sequence[Line]) -> list[str]:
    """A sentence a group: which method gains most, by how much, and which do not help."""
    sentences = []
    for group in dict.fromkeys(line.group for line in lines if line.kind != "teacher"):
        methods = [
            (line, line.difference)
            for line in lines
            if line.kind == "method" and line.group == group and line.difference
        ]
        if not methods:
            continue
        best = best_method(lines, group)
        assert best is not None and best.difference is not None  # there are methods with differences
        difference = best.difference
        gain = gain_cell(difference).replace(" (", " points (95 % interval ", 1)
        points = "" if difference.interval else " points"
        sentence = f"{group.title}: the largest difference to the baseline is that of {best.method}, {gain}{points}."
        if few := [line.method for line, gained in methods if gained.n < min(LEAST_PAIRS, difference.n)]:
            sentence += f" (Left out, of fewer pairs: {', '.join(few)}.)"
        if not difference.interval:
            sentence += " With one pair of runs nothing says whether that is chance."
        else:
            helping = [line.method for line, _ in methods if line.helps == "yes"]
            others = [line.method for line, _ in methods if line.helps != "yes"]
            sentence += f" Helps: {', '.join(helping) or 'none'}; not shown to help: {', '.join(others) or 'none'}."
        sentences.append(sentence)
    return sentences


def protocol(comparison: Comparison) -> str:
    """The protocol of all scores, in evaluate.py's words; the teacher's, too, where it has another working size."""
    said, teacher = comparison.results[0].row["protocol"], comparison.teacher
    if teacher is None or teacher.row["protocol"] == said:
        return said
    return f"{said}; the teacher: {teacher.row['protocol'].partition(': ')[2]}"


def made_with(comparison: Comparison) -> list[tuple[str, str]]:
    """Machine, versions and commit: of the training runs (all that occur), then of the scoring now."""
    starts = [start for result in comparison.results for start in result.starts]
    rows = [
        ("trained on", _distinct(start["device"] for start in starts)),
        ("trained at commit", _distinct(start["git commit"] for start in starts)),
        ("trained with", _distinct(_versions(start["versions"]) for start in starts)),
    ]
    now: Mapping[str, Any] = describe_start(comparison.plan.args.device)
    return [
        *rows,
        ("tables made on", f"{now['device']}, {now['platform']}"),
        ("tables made at commit", str(now["git commit"] or "unknown")),
        ("tables made with", _versions(now["versions"])),
        ("made", now["time"]),
    ]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _distinct(values: Iterable[object]) -> str:
    return "; ".join(dict.fromkeys(str(value or "unknown") for value in values))


def commands(comparison: Comparison) -> list[tuple[str, str]]:
    """What to paste: the whole comparison, then the first finished run of each method and group."""
    firsts: dict[tuple[str, Group], Run] = {}
    for result in comparison.results:
        firsts.setdefault((result.run.method, result.run.group), result.run)
    where = comparison.plan.folder.parent
    words = ["python", "compare.py", comparison.plan.path.as_posix()]
    everything = shlex.join([*words, *([] if where == Path("checkpoints") else ["--output-dir", where.as_posix()])])
    return [
        ("everything", everything),
        *((f"{run.method}, {run.group.title}, seed {run.seed}", run.command) for run in firsts.values()),
    ]
