"""Scores of a plan's runs and of its teacher, by evaluate.py's protocol; each is computed once and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basics.checkpoint import file_sha256
from basics.device import pick_device
from basics.errors import UserError
from basics.files import write_text
from basics.machine import device_name, loader_processes
from basics.memory import explain_memory
from comparison.plan import Group, Plan, Run
from comparison.runs import refuse_mixed
from dataset import SegmentationDataset, build_split
from deploy.segmenter import load_segmenter
from deploy.teachers import FittedTeacher, load_teacher_for, remark_of
from kd.teacher_cache import weights_sha256
from networks import user_file
from networks.cost import count_macs, count_parameters, measure_latencies
from networks.onnx_teacher import OnnxTeacher
from networks.sources import is_source
from networks.working_size import working_size_of
from scoring.memory import memory_advice
from scoring.metrics import image_miou
from scoring.protocol import check_classes, evaluate_model, protocol_text, scoring_batch
from scoring.tables import SummaryRow, summary_row
from segdata.decode_cache import describe_sources
from training.made_from import fingerprint
from training.runlog import CONFIG, METRICS, read_metrics
from zoo import build_model, load_any_teacher

FORMAT = 2  # of the rows that are kept; 1: ONNX teachers were scored on averaged logits
# Loads a network when it is needed: its name, itself, how many parameters it has.
Load = Callable[[], tuple[str, nn.Module, int | None]]


@dataclass(frozen=True)
class Scored:
    """A network's scores on the split.

    Attributes:
        row: of the whole split.
        images: mIoU of each image by its id, over the classes in its truth or the prediction.
    """

    row: SummaryRow
    images: Mapping[str, float]

    @property
    def miou(self) -> float:
        return self.row["miou"]


@dataclass(frozen=True)
class Result(Scored):
    """A finished run with its scores.

    Attributes:
        run: what was trained.
        train_seconds: of training alone, validation and the making of a teacher's cache left out.
        metrics: rows of its metrics.csv.
        starts: how config.json describes each of its starts (device, versions, commit).
    """

    run: Run
    train_seconds: float
    metrics: list[dict[str, Any]]
    starts: list[Mapping[str, Any]]

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the run; None of a run of old, which did not write them down."""
        return self.metrics[-1].get("step") if self.metrics else None

    @property
    def best_epoch(self) -> int:
        """The epoch whose validation mIoU was the best."""
        mious = {row["epoch"]: row.get("val_miou") for row in self.metrics}
        scored = {epoch: miou for epoch, miou in mious.items() if miou is not None and math.isfinite(miou)}
        return max(scored, key=scored.__getitem__) if scored else 0


@dataclass(frozen=True)
class Cost:
    """What a network costs; MACs and milliseconds are for one square image. None: not to be had."""

    parameters: int | None
    macs: int | None
    ms: float
    device: str


@dataclass(frozen=True)
class Comparison:
    """Everything that tables and report are made from."""

    plan: Plan
    dataset: SegmentationDataset
    results: list[Result]
    missing: list[Run]
    teacher: Scored | None
    costs: dict[str, Cost] = field(default_factory=dict)  # by student; "teacher" for the teacher

    def of(self, method: str, group: Group) -> list[Result]:
        """The finished runs of a method, by seed."""
        found = [result for result in self.results if (result.run.method, result.run.group) == (method, group)]
        return sorted(found, key=lambda result: result.run.seed)


class ImageScores:
    """A `scoring.protocol.Watcher` that takes each prediction's mIoU."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.images: dict[str, float] = {}

    def update(self, batch: Mapping[str, Any], prediction: torch.Tensor) -> None:
        for name, truth, mask in zip(batch["id"], batch["mask"], prediction, strict=True):
            score = image_miou(mask, truth, self.num_classes)
            if not math.isnan(score):
                self.images[name] = score


def gather(plan: Plan, finished: list[Run]) -> Comparison:
    """Score what is finished and the teacher, and measure what they cost; what is known is not done again."""
    args = plan.args
    dataset = build_split(args, args.val_split)
    dataset.require_masks()
    refuse_mixed(finished)
    results = [score_run(run, plan, dataset) for run in finished]
    teacher = score_teacher(plan, dataset)
    done = {result.run.name for result in results}
    comparison = Comparison(plan, dataset, results, [run for run in plan.runs if run.name not in done], teacher)
    measure_costs(comparison)
    return comparison


# -- scores --------------------------------------------------------------------------------------


def score_run(run: Run, plan: Plan, dataset: SegmentationDataset) -> Result:
    """Score a run's checkpoint; its folder keeps the result as scores_best.json (or scores_last.json)."""
    path = run.folder / f"{plan.report.checkpoint}.pth"

    def load() -> tuple[str, nn.Module, int | None]:
        segmenter = load_segmenter(path, run.args.device)
        check_classes(str(path), segmenter.class_names, dataset)
        return segmenter.name, segmenter.model, segmenter.parameters

    kept = run.folder / f"scores_{plan.report.checkpoint}.json"
    scored = _score(run.name, kept, _digest(path), load, run, dataset, run.args.input_size)
    metrics: list[dict[str, Any]] = read_metrics(run.folder / METRICS)
    starts = json.loads((run.folder / CONFIG).read_text(encoding="utf-8"))["starts"]
    seconds = sum(row["epoch_s"] for row in metrics)
    return Result(scored.row, scored.images, run, seconds, metrics, starts)


def score_teacher(plan: Plan, dataset: SegmentationDataset) -> Scored | None:
    """Score the plan's teacher; the runs' common folder keeps the result as scores_teacher.json."""
    if plan.teacher is None:
        return None
    choice, device = plan.teacher, pick_device(plan.args.device)

    @cache
    def fitted() -> FittedTeacher:
        return load_teacher_for(choice, dataset)

    def load() -> tuple[str, nn.Module, int | None]:
        return choice.label, fitted().as_network().to(device), count_parameters(fitted().model)

    hashes = {role: _digest(path) for role, path in choice.files.items()}
    made_from = hashes.get("teacher", f"{choice.name} default")
    if is_source(choice.name):  # code of a user's, or what a hub has now: told by all that it is made of
        made_from = weights_sha256(fitted().model)
    made_from += f", class map {hashes['class map']}" if "class map" in hashes else ""
    made_from += f", pictures at {choice.input_size}" if choice.input_size else ""
    return _score("teacher", plan.folder / "scores_teacher.json", made_from, load, plan.runs[0], dataset)


def _score(
    label: str, kept: Path, digest: str, load: Load, run: Run, dataset: SegmentationDataset, input_size: int = 0
) -> Scored:
    """What ``kept`` holds, if it was made from the same weights and files; otherwise scored anew and kept.

    Args:
        input_size: the working size of the student; a teacher's is a part of what it was made from.
    """
    made_from = {
        "format": FORMAT,
        "weights": digest,
        "data set": f"{dataset.name}/{dataset.split}",
        "classes": dataset.class_names,
        "sources": fingerprint([json.dumps(source) for source in describe_sources(dataset.layout, dataset.files)]),
        "protocol": protocol_text(run.args.eval_tile, input_size),
    }
    known = _read_json(kept)
    if known.get("made_from") == made_from:
        return Scored(known["row"], known["images"])
    name, model, parameters = load()
    print(f"scoring {label} on {dataset.name}/{dataset.split}", flush=True)
    images = ImageScores(dataset.num_classes)
    device = pick_device(run.args.device)
    batch_size = scoring_batch(run.args.eval_batch_size, device)
    tile = 0 if working_size_of(model) else run.args.eval_tile  # of a teacher, where the students are cut
    with explain_memory(f"{memory_advice(batch_size, tile, '--eval-batch-size', input_size)}, in [common]"):
        evaluation = evaluate_model(
            model,
            dataset,
            device,
            batch_size=batch_size,
            tile=tile,
            workers=loader_processes(run.args.workers, device),
            watcher=images,
        )
    row = summary_row(label, name, parameters, evaluation, dataset.class_names)
    if remark := remark_of(model, row["iou"]):
        print(f"remark: {remark}")
    content = {"made_from": made_from, "row": row, "images": images.images}
    write_text(kept, json.dumps(content, indent=1) + "\n")
    return Scored(row, images.images)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; {} where there is none that can be read: it is made anew then."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


# -- costs ---------------------------------------------------------------------------------------


def measure_costs(comparison: Comparison) -> None:
    """Fill in ``comparison.costs``: once for each architecture, for all methods train the same one."""
    plan, classes = comparison.plan, comparison.dataset.num_classes
    path = plan.folder / "costs.json"
    known, device = _read_json(path), plan.args.device
    wanted: dict[str, tuple[str, Callable[[], nn.Module]]] = {
        student: (f"{student}{_version(student)}, {classes} classes", partial(build_model, student, classes))
        for student in plan.students
    }
    if plan.teacher:
        name, weights = plan.teacher.name, plan.teacher.weights
        wanted["teacher"] = (
            f"{name} {weights}{_version(name, plan.teacher.files.get('teacher'))}",
            partial(load_any_teacher, name, weights, classes),
        )
    measured_on = f"{plan.report.size} pixels, {device_name(device)}, torch {torch.__version__}"
    keys = {label: f"{title}, {measured_on}" for label, (title, _) in wanted.items()}
    if not known.keys() >= set(keys.values()):  # all of them in turn: they stand in one column
        costs = _measure([load().eval() for _, load in wanted.values()], plan.report.size, device)
        known |= {key: asdict(cost) for key, cost in zip(keys.values(), costs, strict=True)}
        write_text(path, json.dumps(known, indent=1) + "\n")
    comparison.costs.update({label: Cost(**known[key]) for label, key in keys.items()})


def _version(name: str, weights: Path | None = None) -> str:
    """What tells a network from another one of the same name later: hashes of the files that it is made of."""
    files = [user_file.file_of(name)] if user_file.is_spec(name) else []
    files += [weights] if weights else []
    return "".join(f" {_digest(path)[:12]}" for path in files)


def _measure(models: Sequence[nn.Module], size: int, device: str) -> list[Cost]:
    times = measure_latencies(models, size, pick_device(device))
    return [
        Cost(
            parameters=count_parameters(model),
            macs=None if isinstance(model, OnnxTeacher) else count_macs(model, size),
            ms=ms,
            device=device_name(device),
        )
        for model, ms in zip(models, times, strict=True)
    ]
