"""Label budgets as an axis of a comparison: which runs a plan makes, what is paired with what, the chart."""

from __future__ import annotations

import io
import math

import pytest
from matplotlib.axes import Axes
from PIL import Image

from basics.errors import UserError
from comparison.budgets import budgets_png, budgets_words
from comparison.plan import Group, load_plan
from comparison.statistics import class_gain, summarize
from comparison.tables import columns_of
from dataset import build_dataset
from tests.comparisons import invent, read_plan, write_plan

METHODS = '[methods.baseline]\n[methods.kl]\nalpha = 1\nunlabelled = ["train"]\n'


def plan_with(tmp_path, demo_data, labels='labels = [0, 3, "all"]', common="epoch_images = 16"):
    path = write_plan(tmp_path, demo_data, common, methods=METHODS)
    path.write_text(f"{labels}\n{path.read_text()}")
    return path


def test_every_budget_has_its_runs_and_nothing_is_learnt_from_no_mask_without_a_teacher(tmp_path, demo_data):
    plan = read_plan(plan_with(tmp_path, demo_data), tmp_path)
    assert plan.has_budgets and plan.groups == tuple(Group("compact", count) for count in (0, 3, None))
    names = [run.name for run in plan.runs if run.seed == 0]
    assert names == [
        "kl_compact_labels0_seed0",
        "baseline_compact_labels3_seed0",
        "kl_compact_labels3_seed0",
        "baseline_compact_seed0",
        "kl_compact_seed0",
    ]
    assert [run.args.labels for run in plan.runs if run.seed == 0] == [0, 3, 3, None, None]


@pytest.mark.parametrize(
    ("labels", "common", "words"),
    [
        ("labels = [3]", "", "wants epoch_images = N"),
        ("labels = [3]", "epoch_images = 16\nlabels = 3", "exclude each other"),
        ("labels = [3, 3]", "epoch_images = 16", "a list of different numbers of masks"),
        ("labels = 3", "epoch_images = 16", "a list of different numbers of masks"),
        ("labels = [true]", "epoch_images = 16", "a list of different numbers of masks"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(tmp_path, demo_data, labels, common, words):
    with pytest.raises(UserError, match=words):
        load_plan(plan_with(tmp_path, demo_data, labels, common), tmp_path)


def test_no_mask_and_no_teacher_leave_no_run(tmp_path, demo_data):
    path = write_plan(tmp_path, demo_data, "epoch_images = 16", methods="[methods.baseline]\n")
    path.write_text(f"labels = [0]\n{path.read_text()}")
    with pytest.raises(UserError, match="no runs: without masks"):
        load_plan(path, tmp_path)


def test_differences_are_paired_within_a_budget(tmp_path, demo_data):
    """By hand: 0.1 within every budget, though the budgets themselves differ; without masks there is no baseline."""
    plan = read_plan(plan_with(tmp_path, demo_data), tmp_path)
    comparison = invent(plan, build_dataset("demo", demo_data, "val"), {"baseline": [0.4, 0.5], "kl": [0.5, 0.6]})
    lines = {(line.method, line.labels): line for line in summarize(comparison) if line.kind != "teacher"}
    assert set(lines) == {("kl", 0), ("baseline", 3), ("kl", 3), ("baseline", None), ("kl", None)}
    assert lines["kl", 0].difference is None
    assert lines["kl", 3].difference.mean == pytest.approx(0.1)
    (cell,) = (show for title, show, _ in columns_of(plan) if title == "labels")
    assert [cell(lines["kl", count]) for count in (0, 3, None)] == ["0", "3", "all"]


def test_the_chart_says_what_it_shows(tmp_path, demo_data):
    plan = read_plan(plan_with(tmp_path, demo_data), tmp_path)
    comparison = invent(plan, build_dataset("demo", demo_data, "val"), {"baseline": [0.4, 0.5], "kl": [0.5, 0.6]})
    lines = summarize(comparison)
    words = budgets_words(comparison, lines)
    assert "kl, 0 masks: 55.0 %" in words and "baseline, all masks: 45.0 %" in words
    assert Image.open(io.BytesIO(budgets_png(comparison, lines))).size[0] > 400


def test_gains_of_classes_are_paired_by_seed(tmp_path, demo_data):
    """The baseline's second seed is not there yet: 0.5 against 0.4, not against the mean of 0.4 and 0.9."""
    plan = read_plan(plan_with(tmp_path, demo_data), tmp_path)
    comparison = invent(plan, build_dataset("demo", demo_data, "val"), {"baseline": [0.4, 0.9], "kl": [0.5]})
    line = next(line for line in summarize(comparison) if (line.method, line.labels) == ("kl", 3))
    first, *_, last = comparison.dataset.class_names
    assert class_gain(comparison, line, first) == pytest.approx(0.1)
    assert class_gain(comparison, line, last) is None


def test_bars_in_the_chart_are_standard_deviations(tmp_path, demo_data, monkeypatch):
    plan = read_plan(plan_with(tmp_path, demo_data), tmp_path)
    comparison = invent(plan, build_dataset("demo", demo_data, "val"), {"baseline": [0.4, 0.5], "kl": [0.5, 0.6]})
    drawn, draw = {}, Axes.errorbar

    def spy(self, places, values, heights, **style):
        drawn[style["label"]] = values, heights
        return draw(self, places, values, heights, **style)

    monkeypatch.setattr(Axes, "errorbar", spy)
    budgets_png(comparison, summarize(comparison))
    deviation = 100 * math.sqrt(0.05**2 + 0.05**2)  # of two values, their mean between them
    assert drawn["baseline"] == (pytest.approx([45, 45]), pytest.approx([deviation] * 2))
    assert drawn["kl"] == (pytest.approx([55, 55, 55]), pytest.approx([deviation] * 3))
