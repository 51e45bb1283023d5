"""Small comparisons for the tests of compare.py: plan files, and results that are invented."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from comparison.plan import Plan, load_plan
from comparison.scoring import Comparison, Cost, Result, Scored
from scoring.tables import lab_score

PARAMETERS = 400_000
START = {"device": "a <machine>", "git commit": "abc123", "versions": {"python": "3.x", "torch": "2.x"}}


def write_plan(folder: Path, data: Path, text: str = "", *, methods: str, seeds: Sequence[int] = (0, 1)) -> Path:
    """A plan on the demo data, small enough to be trained in seconds; ``text`` goes into [common]."""
    path = folder / "plan.toml"
    path.write_text(
        f"""name = "tiny"
seeds = {list(seeds)}
students = ["compact"]

[common]
dataset = "demo"
data_dir = "{data}"
student_weights = "none"
epochs = 3
max_steps = 1
batch_size = 4
crop_size = 64
workers = 0
device = "cpu"
{text}
{methods}
"""
    )
    return path


def invent(plan: Plan, dataset, mious: Mapping[str, Sequence[float]], teacher: float | None = 0.8) -> Comparison:
    """A comparison in which the methods have these mIoUs, one a seed; fewer of them are runs not finished.

    The first class has the mIoU, the last none, the others 0.5; image number i is better than the mIoU by i points
    under all methods but the baseline, where it is better by 2 points.
    """
    results, missing = [], []
    for run in plan.runs:
        index = plan.seeds.index(run.seed)
        if index >= len(mious.get(run.method, ())):
            missing.append(run)
            continue
        miou = mious[run.method][index]
        step = 0 if run.method == plan.baseline else 0.01
        images = {name: miou + (number * step if step else 0.02) for number, name in enumerate(dataset.ids)}
        metrics = [
            {
                "epoch": epoch,
                "step": 10 * epoch + run.seed,
                "val_miou": miou * epoch / 3 if epoch != 2 else None,
                "epoch_s": 10.0 + run.seed,
            }
            for epoch in (1, 2, 3)
        ]
        results.append(Result(_row(run.name, miou, dataset), images, run, 30.0 + 3 * run.seed, metrics, [START]))
    scored = None
    if teacher is not None:
        scored = Scored(_row("teacher", teacher, dataset), {name: teacher for name in dataset.ids})
    costs = {student: Cost(PARAMETERS, 120_000_000, 12.5, "a <machine>") for student in plan.students}
    costs["teacher"] = Cost(2_000_000, None, 50.0, "a <machine>")
    return Comparison(plan, dataset, results, missing, scored, costs)


def _row(label: str, miou: float, dataset) -> dict:
    first, *middle, last = dataset.class_names
    return {
        "checkpoint": label,
        "model": "compact",
        "miou": miou,
        "pixel_accuracy": miou + 0.1,
        "loss": 1.0,
        "parameters": PARAMETERS,
        "score": lab_score(miou, PARAMETERS),
        "protocol": f"demo/val, {len(dataset)} images: native resolution",
        "iou": {first: miou, **dict.fromkeys(middle, 0.5), last: None},
    }


def pretend_done(plan: Plan, names: Sequence[str] | None = None) -> None:
    """Folders as finished runs leave them, without a network inside."""
    for run in plan.runs:
        if names is None or run.name in names:
            run.folder.mkdir(parents=True, exist_ok=True)
            arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(run.args).items()}
            (run.folder / "config.json").write_text(json.dumps({"arguments": arguments, "starts": [START]}))
            (run.folder / "metrics.csv").write_text("epoch,val_miou,epoch_s\n1,0.5,10.0\n")
            (run.folder / "report.txt").write_text("done\n")
            (run.folder / "best.pth").write_bytes(b"")


def read_plan(path: Path, folder: Path) -> Plan:
    return load_plan(path, folder / "runs")
