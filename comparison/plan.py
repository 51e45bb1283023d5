"""The plan of a comparison: a small TOML file, checked by train_kd.py's own parser, as a list of runs.

name = "demo"                  # runs in checkpoints/demo/, results in results/demo/
seeds = [0, 1, 2]
students = ["compact"]
labels = [25, 100, "all"]      # all of it with so many masks of the training split; 0: the teacher alone; default: all
baseline = "baseline"          # what the other methods are compared with

[common]                       # arguments of train_kd.py, the same for every run
dataset = "demo"
epochs = 12

[methods.baseline]             # what a method may set: losses, teacher, pictures without masks, clip_norm, ema
[methods.kl]
alpha = 1
temperature = 2
loss = ["cwd=3"]

[teacher]                      # how the teacher is scored; by default the one in [common]
teacher = "fastlitessnet"
teacher_weights = "checkpoints/demo_teacher/best.pth"

[report]
panels = 4                     # best gains, and as many worst losses
size = 256                     # side of the square image that MACs and latency are for
checkpoint = "best"            # or "last": which file of a run is scored
classes = ["disk", "ring"]     # mIoU over these classes alone in three more columns; by default none
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from basics.errors import UserError, choose
from basics.files import read_text
from basics.toml_file import parse_toml
from comparison.words import (
    METHOD_ARGUMENTS,
    TEACHER_ARGUMENTS,
    needs_teacher,
    parse,
    place_of,
    section_arguments,
    to_words,
)
from datachecks import teacher_masks
from dataset import SegmentationDataset, layout_of
from deploy.teachers import TeacherChoice
from kd.class_matching import read_groups
from networks.sources import short_name
from training.arguments import Arguments
from training.data import make_sampler, with_pictures
from training.recipe import make_recipe, settle
from zoo import FILES, check_name

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class ReportOptions:
    """The section [report]; see the module's text."""

    panels: int = 4
    size: int = 256
    checkpoint: str = "best"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other: of one student, with so many masks (None: all there are)."""

    student: str
    labels: int | None = None

    @property
    def title(self) -> str:
        """Its name for people, among groups of several students and of several numbers of masks."""
        return self.student if self.labels is None else f"{self.student}, {self.labels:,} labels"

    @property
    def stem(self) -> str:
        """Its part of a folder's name."""
        return short_name(self.student) + ("" if self.labels is None else f"_labels{self.labels}")


@dataclass(frozen=True)
class Run:
    """One training run of the plan.

    Attributes:
        method, group, seed: what it is in the comparison.
        folder: where it is trained.
        words: its command line after ``train_kd.py``.
        args: the same, parsed.
        needs_teacher: some of its losses do.
    """

    method: str
    group: Group
    seed: int
    folder: Path
    words: tuple[str, ...]
    args: Arguments
    needs_teacher: bool

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def command(self) -> str:
        """To be pasted into a shell."""
        return shlex.join(["python", "train_kd.py", *self.words])


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Attributes:
        path, text: the TOML file.
        name: of the comparison.
        folder: where its runs are.
        groups: by student and number of masks, in the file's order.
        runs: by group, method and seed, in the file's order.
        teacher: the teacher to score; None where no run has one.
    """

    path: Path
    text: str
    name: str
    folder: Path
    seeds: tuple[int, ...]
    students: tuple[str, ...]
    groups: tuple[Group, ...]
    methods: tuple[str, ...]
    baseline: str
    runs: tuple[Run, ...]
    teacher: TeacherChoice | None
    report: ReportOptions

    @property
    def has_budgets(self) -> bool:
        """Whether it asks the same of several numbers of masks."""
        return len(self.groups) > len(self.students)

    @property
    def args(self) -> Arguments:
        """The arguments that all runs share."""
        return self.runs[0].args


def load_plan(path: Path, output_dir: Path) -> Plan:
    """Read and check the plan in ``path``; its runs lie below ``output_dir``/NAME.

    Raises:
        UserError: whatever is wrong with it, in one line that names the place.
    """
    text, content = _read_toml(path)
    tops = {"name", "seeds", "students", "labels", "baseline", "common", "methods", "teacher", "report"}
    for key in content:
        choose(dict.fromkeys(tops), key, f"entry in {path}:")
    name = content.get("name", path.stem)
    _check_name(name, path, "name")
    seeds = _list_of(content.get("seeds", [0]), path, "seeds", example=[0, 1, 2])
    students = _list_of(content.get("students", ["standard"]), path, "students", example=["standard"])
    for student in students:
        check_name(student, f"model in {path}: students:")
    if len({short_name(student).casefold() for student in students}) < len(students):
        raise UserError(f"{path}: students: two of them have the same short name, and would share a folder")
    methods = _table(content, "methods", path)
    for method in methods:
        _check_name(method, path, "methods")
    if len({method.casefold() for method in methods}) < len(methods):
        raise UserError(f"{path}: methods: names that differ in case alone are one folder on Windows and macOS")
    baseline = content.get("baseline", "baseline")
    if not isinstance(baseline, str) or baseline not in methods:
        raise UserError(f"{path}: baseline = {baseline!r} is not among its methods: {', '.join(methods) or 'none'}")
    common = section_arguments(_table(content, "common", path), path, "common", allowed=None)
    groups = tuple(Group(student, count) for student in students for count in _budgets(content, common, path))
    settings = {
        method: common | section_arguments(_table(methods, method, path), path, f"methods.{method}", METHOD_ARGUMENTS)
        for method in methods
    }
    folder = output_dir / name
    runs = tuple(
        _make_run(path, folder, method, group, seed, settings[method])
        for group in groups
        for method in methods
        for seed in seeds
        if group.labels != 0 or needs_teacher(settings[method], path, method)
    )
    if not runs:
        raise UserError(f"{path}: no runs: without masks (labels 0) a method wants a teacher")
    _require_equal_budgets(path, runs)
    return Plan(
        path=path,
        text=text,
        name=name,
        folder=folder,
        seeds=seeds,
        students=students,
        groups=groups,
        methods=tuple(methods),
        baseline=baseline,
        runs=runs,
        teacher=_teacher(_table(content, "teacher", path), path, runs),
        report=_report_options(_table(content, "report", path), path),
    )


def check_files(plan: Plan) -> None:
    """Find out before the first run what would end each of them: missing data, or missing weights.

    Raises:
        UserError: naming the file, or what the data set lacks.
    """
    layout = layout_of(plan.args)
    train_set, dataset = (SegmentationDataset(layout, split) for split in (plan.args.train_split, plan.args.val_split))
    dataset.require_masks()
    said = teacher_masks.unmended(dataset.files.masks or [])
    if said and len(said) == len(dataset):
        raise UserError(
            f"{plan.path}: all masks of {dataset.name}/{dataset.split} are a teacher's own: scores would be agreement "
            "with it, no mIoU; mend some and name them in a split of their own (val_split)"
        )
    if said:
        print(teacher_masks.warning(dataset, len(said)))
    _check_pictures(plan, train_set, dataset)
    for run in plan.runs:
        make_recipe(run.args).require_classes(dataset.num_classes)
    for name in plan.report.classes:
        choose(dict.fromkeys(dataset.class_names), name, f"class in {plan.path}: [report] classes:")
    teachers = [TeacherChoice.of(run.args) for run in plan.runs if run.needs_teacher]
    teachers += [plan.teacher] if plan.teacher else []
    weights = {Path(given) for run in plan.runs if (given := run.args.student_weights) not in ("default", "none")}
    weights |= {teacher.files["teacher"] for teacher in teachers if "teacher" in teacher.files}
    for path in sorted(weights):
        if not path.is_file():
            raise UserError(f"{plan.path}: no such file: {path}; train that network first, or name another file")
    for given in {teacher.class_map for teacher in teachers if teacher.class_map}:
        read_groups(given)


def _check_pictures(plan: Plan, train_set: SegmentationDataset, val_set: SegmentationDataset) -> None:
    """Number of masks and pictures without them, of every group and method, once; of the seeds the first will do."""
    seen = set()
    for run in plan.runs:
        args = run.args
        asked = args.labels, tuple(args.unlabelled), args.labelled_per_batch
        if asked not in seen and (args.labels is not None or args.unlabelled or args.labelled_per_batch):
            seen.add(asked)
            try:
                make_sampler(args, with_pictures(args, train_set, val_set)[0])
            except UserError as error:
                raise UserError(f"{plan.path}: {run.name}: {error}") from error


# -- reading -------------------------------------------------------------------------------------


def _read_toml(path: Path) -> tuple[str, dict]:
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; name the plan's TOML file") from error
    except ValueError as error:
        raise UserError(f"{path}: not a TOML file ({error})") from error
    return text, parse_toml(text, path)


def _table(content: Mapping, key: str, path: Path) -> dict:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{path}: [{key}] must be a section, not {table!r}")
    return table


def _list_of(values: object, path: Path, key: str, example: list) -> tuple:
    """A list of different values of the example's kind, not empty."""
    kind = type(example[0])
    of_a_kind = isinstance(values, list) and values and all(type(value) is kind for value in values)  # True: no seed
    if isinstance(values, list) and of_a_kind and len(set(values)) == len(values):
        return tuple(values)
    raise UserError(f"{path}: {key} must be a list of different values such as {example}, not {values!r}")


def _budgets(content: Mapping, common: Mapping, path: Path) -> list[int | None]:
    """The numbers of masks, None for all."""
    if "labels" not in content:
        return [None]
    values = content["labels"]
    known = isinstance(values, list) and all(value == "all" or (type(value) is int and value >= 0) for value in values)
    if not known or not values or len(set(values)) < len(values):
        raise UserError(
            f'{path}: labels must be a list of different numbers of masks such as [100, "all"], not {values!r}'
        )
    if "labels" in common:
        raise UserError(f"{path}: [common] labels and the list of labels exclude each other: take one of them out")
    if "epoch_images" not in common:
        raise UserError(
            f"{path}: with a list of labels [common] wants epoch_images = N, or more masks would mean more steps, too"
        )
    return [None if value == "all" else value for value in values]


def _require_equal_budgets(path: Path, runs: Sequence[Run]) -> None:
    """What no method may set itself must not follow from what it may: the length of an epoch, the learning rates.

    Raises:
        UserError: naming what [common] wants.
    """
    args = runs[0].args
    if len({tuple(run.args.unlabelled) for run in runs}) > 1 and not args.epoch_images and args.time_budget is None:
        raise UserError(
            f"{path}: where some methods have pictures without masks [common] wants epoch_images = N, or time_budget: "
            "more pictures would mean more steps, too"
        )
    rates: dict[str, set[tuple[float | None, float | None]]] = {}
    for run in runs:
        settled = argparse.Namespace(**vars(run.args))
        settle(settled, torch.device("cpu"))
        rates.setdefault(run.group.student, set()).add((settled.lr, settled.backbone_lr_factor))
    if several := next((each for each in rates.values() if len(each) > 1), None):
        raise UserError(
            f"{path}: the methods' weights to start from would bring learning rates of their own "
            f"({', '.join(f'{lr:g}' for lr, _ in sorted(several))}): [common] wants lr and backbone_lr_factor"
        )


def _check_name(name: object, path: Path, key: str) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{path}: {key}: {name!r} becomes a folder's name: use letters, digits and _ . + - only")


def _report_options(table: dict, path: Path) -> ReportOptions:
    known = {field.name: field for field in fields(ReportOptions)}
    if "classes" in table:
        table = table | {"classes": _list_of(table["classes"], path, "[report] classes", example=["cat", "dog"])}
    for key, value in table.items():
        field = choose(known, key, f"entry in {path}: [report]")
        if type(value) is not type(field.default):
            raise UserError(f"{path}: [report] {key} must be such as {field.default!r}, not {value!r}")
    options = ReportOptions(**table)
    if options.panels < 0 or options.size < 32 or options.checkpoint not in ("best", "last"):
        raise UserError(f'{path}: [report] wants panels >= 0, size >= 32, checkpoint "best" or "last"; has {table}')
    return options


def _teacher(table: dict, path: Path, runs: tuple[Run, ...]) -> TeacherChoice | None:
    """The teacher to score: that of the section, or of the first run that has one."""
    for key, value in table.items():
        kinds = {"teacher": str, "teacher_weights": str, "class_map": str, "teacher_size": int}
        if not isinstance(value, kind := choose(kinds, key, f"entry in {path}: [teacher]")):
            raise UserError(f"{path}: [teacher] {key} must be {'text' if kind is str else 'a number'}, not {value!r}")
    args = next((run.args for run in runs if run.needs_teacher), None)
    if not table and args is None:
        return None
    args = args or Arguments()
    name, weights = table.get("teacher", args.teacher), table.get("teacher_weights", args.teacher_weights)
    # A map and a size are for one teacher: another one in the section does not take over those of the run.
    same = (name, weights) == (args.teacher, args.teacher_weights)
    class_map = table.get("class_map", args.class_map if same else None)
    choice = TeacherChoice(name, weights, class_map, table.get("teacher_size", args.teacher_size if same else 0))
    if not weights.lower().endswith(".onnx") and Path(name).suffix.lower() not in FILES:
        check_name(name, f"teacher in {path}:")
    return choice


# -- runs -----------------------------------------------------------------------------------------


def _make_run(path: Path, folder: Path, method: str, group: Group, seed: int, arguments: dict[str, object]) -> Run:
    taught = needs_teacher(arguments, path, method)
    if not taught:  # then another teacher in the plan does not make it another run
        arguments = {key: value for key, value in arguments.items() if key not in TEACHER_ARGUMENTS}
    name = f"{method}_{group.stem}_seed{seed}"
    words = to_words(arguments | ({} if group.labels is None else {"labels": group.labels}))
    words += ["--student", group.student, "--seed", str(seed), "--output-dir", folder.as_posix(), "--name", name]
    words += ["--resume", "auto"]
    args, _ = parse(words, place_of(path, method))
    return Run(method, group, seed, folder / name, tuple(words), args, taught)
