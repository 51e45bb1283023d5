"""What a run is built of, from its arguments: its place and log, the data, the networks, the optimizer.

Each function returns an object and needs no more than it is given; `score_against_teacher` alone changes one. `Trainer`
calls them in turn.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import nn

from basics import distributed
from basics.checkpoint import file_sha256
from basics.device import tune_kernels
from basics.errors import UserError
from basics.files import remove_stale
from basics.machine import loader_processes
from datachecks.stats import class_weights
from dataset import SegmentationDataset
from deploy.quantized import FakeQuantModel
from deploy.teachers import FittedTeacher, TeacherChoice, load_teacher_for
from kd.cached_teacher import CachedTeacher
from kd.class_map import ClassMap
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe, Teacher
from kd.mapped_teacher import MappedTeacher
from kd.maps import require_maps
from kd.teacher_cache import open_teacher_cache, weights_sha256
from networks.base import SegmentationModel
from networks.folding import fold_batchnorm
from segdata.transforms import TrainTransform
from training.agreement import label_split
from training.arguments import Arguments
from training.average import AveragedStudent
from training.data import Data, scale_of
from training.goal import AGREEMENT
from training.made_from import MadeFrom
from training.optim import Optimization, make_optimizer, make_scheduler
from training.pace import Pace
from training.runlog import METRICS, RunLog, read_metrics, require_unused
from training.stages import Stage
from training.state import RunState, part_random_streams
from zoo import create_model, load_model_state, model_file_dict


def locate_run(args: Arguments) -> Path | None:
    """The last.pth to go on from; None for a run that begins.

    Raises:
        UserError: the run folder holds another run; or, with --resume auto, a history without its last.pth.
    """
    last = args.run_folder / "last.pth"
    if args.resume != "auto":
        resume_from = Path(args.resume) if args.resume else None
        if resume_from is None or not _is_in(resume_from, args.run_folder):  # said before hours of preparation
            require_unused(args.run_folder)
        return resume_from
    if last.exists():
        return last
    epochs = len(read_metrics(args.run_folder / METRICS))
    if epochs > 1:  # a kill leaves at most one before the first last.pth
        raise UserError(
            f"{args.run_folder} holds a run of {epochs} epochs, but not the last.pth to go on from: bring it back, "
            "or name another run with --name"
        )
    return None


def _is_in(path: Path, folder: Path) -> bool:
    return path.resolve().parent == folder.resolve()


def written_at(args: Arguments) -> int | None:
    """When the run's last.pth was written, in nanoseconds; None where there is none."""
    last = args.run_folder / "last.pth"
    return last.stat().st_mtime_ns if last.exists() else None


def open_log(
    args: Arguments, recipe: Recipe, data: Data, state: RunState, resume_from: Path | None, seen: int | None
) -> RunLog:
    """The run folder, which this process has locked, rid of what a killed run left there; see `RunLog`.

    Args:
        seen: `written_at` of before anything was read.

    Raises:
        UserError: another process has gone on with the run since then.
    """
    if written_at(args) != seen:
        raise UserError(f"{args.run_folder}: another process has gone on with this run meanwhile: start again")
    folder, made_from = args.run_folder, state.made_from
    remove_stale(folder)
    own = resume_from is not None and _is_in(resume_from, folder)
    config = {
        **made_from.arguments,
        "recipe": dict(recipe.weights),
        **data.describe(),
        "processes": distributed.world_size(),
        **{name: value for name, value in made_from.kept().items() if name != "arguments"},
    }
    return RunLog(
        folder,
        config,
        tensorboard=args.tensorboard,
        wandb=args.wandb,
        resume=args.resume == "auto" or own,  # "auto" also after a kill before the first last.pth
    )


# -- networks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """The networks of a run.

    Attributes:
        plain: the student as it is saved.
        student: the student as it is trained: ``plain``, or with --qat a graph of it that rounds as INT8 does, on the
            same parameters.
        model: the student with its adapters: what the optimizer trains.
        distiller: computes the losses.
        average: with --ema, the student of averaged weights.
        teacher_sha256: of what the teacher is: weights, normalisation, code; None without one.
    """

    plain: SegmentationModel
    student: SegmentationModel
    model: DistilledStudent
    distiller: Distiller
    average: AveragedStudent | None = None
    teacher_sha256: str | None = None

    @cached_property
    def backbone(self) -> list[nn.Parameter]:
        """What --freeze-epochs freezes: not what whoever built the student has frozen himself."""
        return [parameter for parameter in self.student.backbone.parameters() if parameter.requires_grad]

    @property
    def scored(self) -> SegmentationModel:
        """The student as it is scored."""
        return self.average.model if self.average else self.student

    def average_in(self, step: int) -> None:
        """Take the weights that the optimizer's ``step`` (from 0) has left into their average, if there is one."""
        if self.average:
            self.average.update(self.plain, step)

    def trained_weights(self) -> dict[str, object]:
        """What last.pth keeps beside the averaged student, to go on training."""
        return {"weights": self.plain.state_dict()} if self.average else {}

    def student_file(self, args: Arguments, data: Data, **info: object) -> dict[str, object]:
        """The student alone, as it is scored: a checkpoint that needs no flags to be used."""
        student = self.average.model if self.average else self.plain
        content = model_file_dict(args.student, student, data.train_set, info, args.input_size)
        return content | ({"qat": self.student.ranges()} if isinstance(self.student, FakeQuantModel) else {})

    def load(self, checkpoint: Mapping, path: Path) -> None:
        """Take over the student of a last.pth; a `UserError` if it is another network."""
        load_model_state(self.average.model if self.average else self.plain, checkpoint, path)
        trained = checkpoint["training"].get("weights", checkpoint["state_dict"])
        load_model_state(self.plain, {**checkpoint, "state_dict": trained}, path)
        if isinstance(self.student, FakeQuantModel):
            self.student.load_ranges(checkpoint.get("qat", {}))

    def enter(self, stage: Stage, device: torch.device, *, compiled: bool) -> None:
        """Set what is trained in the stage, whose batches are all of one size."""
        tune_kernels()
        for parameter in self.backbone:
            parameter.requires_grad_(not stage.frozen)
        model = distributed.wrap(self.model, device)
        # A stage has one size. Left to find that out, the second stage's would be free, and the modulo in the student's
        # dilated convolutions is then more than PyTorch can compile. (The result is a module, though the annotation of
        # torch.compile says no more than that it can be called.)
        self.distiller.model = cast(nn.Module, torch.compile(model, dynamic=False)) if compiled else model

    def train(self, stage: Stage) -> None:
        """Training mode, as far as the stage trains."""
        self.model.train()
        if stage.frozen:
            self.student.backbone.eval()  # its BatchNorm keeps the pretrained statistics, too


def build_models(args: Arguments, recipe: Recipe, data: Data, device: torch.device) -> Models:
    """Student, adapters and, if the recipe asks for one, the teacher, on ``device``; all ranks must call it.

    Raises:
        UserError: unknown names, weights that cannot be had or do not fit, a map that a loss needs and a network lacks,
            a loss that cannot act on so few classes.
    """
    recipe.require_classes(data.train_set.num_classes)
    torch.manual_seed(args.seed)
    teacher, teacher_sha256 = None, None
    with distributed.main_first():  # it fetches weights and fills the teacher's cache; the other ranks find them
        classes, names = data.train_set.num_classes, data.train_set.class_names
        student = create_model(args.student, classes, args.student_weights, names).to(device)
        if (args.freeze_epochs or args.backbone_lr_factor != 1) and next(student.backbone.parameters(), None) is None:
            raise UserError(
                f"{args.student}: has no module called backbone or encoder, of which --freeze-epochs and "
                "--backbone-lr-factor speak"
            )
        if student.input_size not in (0, args.input_size):
            print(
                f"remark: {args.student_weights} was trained at working size {student.input_size}, and this run's is "
                f"{args.input_size or 'native'}: --input-size {student.input_size} goes on as it was"
            )
        weights = None
        if args.class_weights and recipe.names("hard"):
            labelled = data.train_set.files.labelled
            weights = class_weights(args.class_weights, data.train_set.layout, args.train_split, labelled).to(device)
        if args.qat:
            _require_qat(device)
        require_maps(student, recipe)
        if recipe.needs_teacher:
            fitted = load_teacher_for(TeacherChoice.of(args), data.train_set)
            require_maps(student, recipe, fitted.model)  # before its cache is filled
            teacher_sha256 = weights_sha256(fitted.model)
            _check_known_classes(recipe, data.train_set, fitted)
            score_against_teacher(args, data, fitted, device)
            teacher = _make_teacher(args, recipe, data, fitted, device)
    plain = distributed.synchronize_batchnorm(student, device)
    trained = FakeQuantModel(plain) if args.qat else plain
    model = DistilledStudent(trained, recipe, teacher).to(device)
    distributed.synchronize_batchnorm(model.adapters, device)
    # Seeded anew: how many numbers the adapters took must not change the student's dropout.
    torch.manual_seed(args.seed)
    part_random_streams()
    average = AveragedStudent(plain, args.ema) if args.ema else None
    distiller = Distiller(model, trained, recipe, teacher, weights, amp=args.amp)
    return Models(plain, trained, model, distiller, average, teacher_sha256)


def _require_qat(device: torch.device) -> None:
    """A `UserError` where --qat cannot be."""
    if device.type == "mps":
        raise UserError("--qat: PyTorch has no fake quantization on MPS: use --device cpu")
    if distributed.world_size() > 1:
        raise UserError("--qat trains in one process, whose ranges are those of all images: leave torchrun out")


def _make_teacher(args: Arguments, recipe: Recipe, data: Data, fitted: FittedTeacher, device: torch.device) -> Teacher:
    """The teacher of the command line, run on every batch or read from its cache, its word in the data's classes."""
    teacher = _run_or_cached(args, recipe, data, fitted, device)
    if fitted.class_map is None and args.min_confidence == 0:
        return teacher
    class_map = fitted.class_map or ClassMap.identity(data.train_set.class_names)
    return MappedTeacher(teacher, class_map, args.min_confidence, tells=True)


def _check_known_classes(recipe: Recipe, train_set: SegmentationDataset, fitted: FittedTeacher) -> None:
    """Refuse, before all work, losses for which the teacher knows too few classes; say what nothing trains."""
    known = fitted.class_map.known if fitted.class_map else range(train_set.num_classes)
    recipe.require_classes(train_set.num_classes, len(known))
    if not recipe.names("hard") and distributed.is_main() and len(known) < train_set.num_classes:
        unknown = [name for place, name in enumerate(train_set.class_names) if place not in known]
        print(
            f"warning: no mask is learnt from, and the teacher does not know {', '.join(unknown)}: nothing trains "
            "what the student says of them; leave them out of the class list, or bring masks"
        )


def score_against_teacher(args: Arguments, data: Data, fitted: FittedTeacher, device: torch.device) -> None:
    """Where nobody has a mask of the validation split, give ``data`` what the teacher says of it to score against."""
    if data.val_set.has_masks:
        return
    if args.dry_run:
        data.goal = AGREEMENT
        return
    live = LiveTeacher(fold_batchnorm(fitted.model).to(device), name=fitted.label)
    source: list[object] = [fitted.label, weights_sha256(fitted.model)]
    if fitted.class_map is not None:
        source.append(fitted.class_map.groups)
    said = live if fitted.class_map is None else MappedTeacher(live, fitted.class_map)
    where = args.cache_dir, device, fitted.model.input_size, loader_processes(args.workers, device)
    data.score_against(label_split(data.val_set, said, source, *where))


def _run_or_cached(
    args: Arguments, recipe: Recipe, data: Data, fitted: FittedTeacher, device: torch.device
) -> LiveTeacher | CachedTeacher:
    """The teacher with its own classes; a cache keeps those, whatever they are mapped to."""
    train_set, name = copy.copy(data.train_set), fitted.label
    if args.cache_teacher:
        train_set.transform = TrainTransform(args.crop_size, scale_of(args))
        cached = open_teacher_cache(
            args.cache_dir,
            fitted.model,
            name,
            train_set,
            recipe=recipe,
            dtype=args.cache_teacher,
            device=device,
            batch_size=max(args.batch_size // distributed.world_size(), 1),
            workers=loader_processes(args.workers, device),
            build=not args.dry_run,
        )
        if cached:
            return cached
    own_size = fitted.model.input_size
    if not args.cache_teacher and own_size not in (0, args.input_size):
        print(
            f"remark: {name} was trained at working size {own_size}, and live it sees the student's crops: with "
            f"--cache-teacher it sees whole pictures at its own size, with --input-size {own_size} both see the same"
        )
    model = fold_batchnorm(fitted.model).to(device)
    compiled = args.compile and next(model.parameters(), None) is not None  # one in ONNX Runtime has none
    return LiveTeacher(model, args.amp, name, compiled=compiled)


def made_from(args: Arguments, recipe: Recipe, data: Data, models: Models) -> MadeFrom:
    """What a resumed run is compared by."""
    given: dict[str, str | Path] = {"student": args.student_weights, "class weights": args.class_weights or "none"}
    given |= TeacherChoice.of(args).files if recipe.needs_teacher else {}
    files = {role: file_sha256(path) for role, path in given.items() if str(path) not in ("default", "none", "auto")}
    if models.teacher_sha256:
        files["whole teacher"] = models.teacher_sha256
    teacher, names = models.distiller.teacher, data.train_set.class_names
    groups = teacher.class_map.groups if isinstance(teacher, MappedTeacher) else None
    return MadeFrom(args.as_plain(), data.images, data.val_images, data.masks, names, files, groups, data.goal.key)


# -- optimization ------------------------------------------------------------------------------------


def build_optimization(
    args: Arguments, model: nn.Module, student: SegmentationModel, pace: Pace, device: torch.device
) -> Optimization:
    """For the parameters of ``model``; those of the backbone of ``student``, a part of it, learn at their own rate."""
    assert args.lr is not None and args.backbone_lr_factor is not None  # see `training.recipe.settle`
    optimizer = make_optimizer(
        model, args.optimizer, args.lr, args.weight_decay, student.backbone, args.backbone_lr_factor
    )
    stages = pace.stages
    scheduler = make_scheduler(optimizer, stages.total_steps, stages.warmup_steps, args.schedule, pace.schedule_step)
    return Optimization(optimizer, scheduler, torch.amp.GradScaler(device.type, enabled=args.amp == "fp16"), device)
