"""Behind ``train_kd.py --dry-run``: look at everything a run needs, write nothing, say all that is wrong at once.

(What was counted of the data is kept beside them, as whoever counts it keeps it: see `datachecks.census`. A class map
that must be filled in is written to be filled in: see `kd.class_matching`; a split by chance is: see
`datalayouts.splitting`.)

Where nothing is wrong the run is built as it would be for training, and two of its images go through one
step: what that keeps for the backward pass tells how much memory a whole batch will want.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch.utils.data import default_collate

from basics import distributed
from basics.batch import prepare_batch
from basics.device import pick_device, settle_amp
from basics.errors import UserError
from basics.files import free_bytes, nearest, require_room
from basics.machine import loader_processes
from basics.memory import explain_memory, free_memory
from datachecks.check import invitation, look_at
from dataset import SegmentationDataset, layout_of
from deploy.teachers import TeacherChoice, load_alone, load_teacher_for
from kd.mapped_teacher import MappedTeacher
from networks.weights import read_weights
from networks.working_size import at_working_size
from scoring.memory import memory_advice, scoring_bytes
from scoring.protocol import scoring_batch
from segdata.decode_cache import check_room, room_needed
from segdata.parallel import map_in_order
from segdata.reading import image_size
from segdata.transforms import TrainTransform
from training.arguments import Arguments, check_arguments
from training.data import judged_files, prefetched, training_split, with_pictures
from training.recipe import make_recipe, name_run
from training.runlog import METRICS, read_metrics, require_unused
from training.stages import Stages
from training.trainer import Trainer
from zoo import VOC_CLASS_COUNT, create_model

P = ParamSpec("P")
T = TypeVar("T")

SAMPLES = 8
SAMPLES_S = 3.0
TRIAL_IMAGES = 2
GB = 1e9
# Of the memory estimate: buffers of single operations, and what the allocators cannot give back.
HEADROOM = 1.25
BYTES_PER_PIXEL = 5  # of a collated sample: image uint8 x 3, mask uint8, valid
CACHED_BYTES = 12  # a pixel, about: of a cached teacher's word, logits of 21 classes and 64 channels of three maps


class Findings:
    """A line for everything looked at; what is wrong is counted."""

    def __init__(self) -> None:
        self.wrong = 0
        self._said: set[str] = set()

    def look(self, what: str, check: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """``check(*args)`` and its result; a string or None is the line to print, a `UserError` what is wrong."""
        try:
            with explain_memory("lower --batch-size or --crop-size"):
                found = check(*args, **options)
        except UserError as error:
            self.complain(what, str(error))
            return None
        if isinstance(found, str):
            print(f"ok     {what:<10} {found}")
        return found

    def complain(self, what: str, message: str) -> None:
        """Say and count what is wrong."""
        message = " ".join(message.split())
        if message not in self._said:  # the whole run and its student may fail by the same thing
            self._said.add(message)
            self.wrong += 1
            print(f"WRONG  {what:<10} {message}")


def examine(args: Arguments) -> int:
    """Check all that ``args`` ask for; returns the exit status: 0 if a run would start, 1 if something is wrong."""
    start = time.monotonic()
    findings = Findings()
    findings.look("arguments", check_arguments, args)
    crop_size = None if findings.wrong else args.crop_size
    recipe = findings.look("losses", make_recipe, args)
    if recipe is not None:
        name_run(args, recipe)
        print(f"ok     {'losses':<10} {', '.join(f'{weight:g} {name}' for name, weight in recipe.weights.items())}")
        findings.look("folder", check_folder, args)
    device = findings.look("device", pick_device, args.device)
    if device is not None:
        findings.look("device", check_device, device, args.amp)
    splits: dict[str, SegmentationDataset | None] = {"train": None, "val": None}
    if layout := findings.look("data", layout_of, args):
        splits["train"] = findings.look("data", training_split, args, layout)
        splits["val"] = findings.look("data", SegmentationDataset, layout, args.val_split)
    judged = [dataset for dataset in splits.values() if dataset is not None]  # a draw of masks may lack any class
    if splits["train"] and splits["val"] and (args.labels is not None or args.unlabelled):
        found = findings.look("data", with_pictures, args, splits["train"], splits["val"])
        splits["train"], lines = found or (None, [])
        for line in lines:
            print(f"ok     {'data':<10} {line}")
    if look_at_labels(findings, args, judged):
        for role, dataset in splits.items():
            if dataset is not None:
                findings.look("data", check_samples, dataset, crop_size if role == "train" else None)
    train_set = splits["train"]
    if train_set is not None:
        findings.look("batches", check_batches, args, train_set)
        if recipe is not None:
            findings.look("losses", recipe.require_classes, train_set.num_classes)
        if args.decode_cache:
            findings.look("decoding", check_decode_cache, args.decode_cache, train_set)
    findings.look("packages", check_packages, args)
    if device is not None:
        findings.look("workers", check_shared_memory, args, device)
    trainer = None
    if recipe is not None and not findings.wrong:  # as it would be trained, without caches that are not there yet
        trainer = findings.look("run", Trainer, args, recipe)
    if trainer is None:  # one thing hides the next: look at each by itself
        findings.look("student", check_student, args, train_set)
        if recipe is None or recipe.needs_teacher:
            findings.look("teacher", check_teacher, args, train_set)
    else:
        needed = findings.look("step", trial_step, trainer)
        if needed is not None:
            findings.look("memory", check_memory, trainer, needed)
            findings.look("scoring", check_scoring_memory, trainer)
        findings.look("disk", check_disk, trainer)
    seconds = time.monotonic() - start
    if findings.wrong:
        print(f"{findings.wrong} {'thing is' if findings.wrong == 1 else 'things are'} wrong ({seconds:.0f} s)")
        return 1
    budget = f"{args.epochs} epochs" if args.time_budget is None else f"for {args.time_budget:g} s"
    budget += f", {args.max_steps} steps at most," * (args.max_steps is not None)
    print(f"all is well ({seconds:.0f} s); without --dry-run this trains {budget} into {args.run_folder}")
    return 0


# -- before anything is built ----------------------------------------------------------------------


def check_folder(args: Arguments) -> str:
    """The run folder can be written and does not hold another run."""
    folder = args.run_folder
    there = nearest(folder)
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"cannot write {there}: {error.strerror or error}; name another --output-dir") from error
    epochs = len(read_metrics(folder / METRICS))
    if args.resume and args.resume != "auto" and not Path(args.resume).exists():
        raise UserError(f"--resume {args.resume}: no such file")
    if not args.resume:
        require_unused(folder)
    return f"{folder}, {f'to go on after {epochs} epochs' if epochs else 'new'}"


def check_device(device: torch.device, amp: str) -> str:
    amp = settle_amp(device, amp)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, amp {amp}"
    return f"{device.type}, {torch.get_num_threads()} threads, amp {amp}"


def look_at_labels(findings: Findings, args: Arguments, datasets: list[SegmentationDataset]) -> bool:
    """Say what a training would say of the data, a line each; returns whether all their files can be read."""
    if not datasets:
        return True
    verdict = look_at(datasets[0].layout, judged_files(args, *datasets), args.train_split, args.val_split)
    for finding in verdict.summary():
        if finding.stops:
            findings.complain("data", finding.line)
        else:
            print(f"remark {'data':<10} {finding.line}")
    if verdict.is_first:
        print(f"remark {'data':<10} {invitation(args)}")
    return not verdict.faults


def check_samples(dataset: SegmentationDataset, crop_size: int | None) -> str:
    """Read a few images and masks from all over the split; training images as crops, others whole."""
    dataset.transform = TrainTransform(crop_size) if crop_size else None
    indices = {round(position) for position in torch.linspace(0, len(dataset) - 1, SAMPLES).tolist()}
    start = time.perf_counter()
    samples = []
    for index in sorted(indices):
        samples.append(dataset[index])
        if time.perf_counter() - start > SAMPLES_S:
            break
    milliseconds = 1000 * (time.perf_counter() - start) / len(samples)
    masks = "" if dataset.num_labelled == len(dataset) else f" ({dataset.num_labelled or 'none'} with masks)"
    return (
        f"{dataset.name}/{dataset.split}: {len(dataset)} images{masks}, {dataset.num_classes} classes, "
        f"{milliseconds:.0f} ms to read one ({len(samples)} tried; dataset.py --check reads all)"
    )


def check_batches(args: Arguments, dataset: SegmentationDataset) -> str | None:
    if args.batch_size < 1:  # that is told of the arguments
        return None
    stages = Stages(args, len(dataset))
    steps = stages.steps_in(stages.of(args.freeze_epochs))
    whole = min(stages.total_steps, args.max_steps or stages.total_steps)
    total = f"{whole} in all" if args.time_budget is None else f"as many as {args.time_budget:g} s allow"
    return f"{steps} steps an epoch, {total}"


def check_decode_cache(folder: Path, dataset: SegmentationDataset) -> str:
    needed = room_needed(dataset.layout, dataset.split, dataset.files, folder, dataset.input_size)
    check_room(folder, needed)
    return f"{needed / GB:.2f} GB to write in {folder}" if needed else f"is there, in {folder}"


def check_packages(args: Arguments) -> str | None:
    wanted = [name for name in ("tensorboard", "wandb") if getattr(args, name)]
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"absent: {', '.join(absent)}; pip install {' '.join(absent)}")
    return ", ".join(wanted) or None


def check_shared_memory(args: Arguments, device: torch.device) -> str | None:
    """Loader processes hand batches over in /dev/shm, which containers keep small."""
    shared, workers = Path("/dev/shm"), loader_processes(args.workers, device)
    if not workers or not shared.is_dir():
        return None
    batch = args.batch_size * args.crop_size**2 * (BYTES_PER_PIXEL + (CACHED_BYTES if args.cache_teacher else 0))
    needed = batch * workers * (prefetched(device) + 1)  # fetched ahead by each, one at work
    require_room(shared, needed, f"{workers} workers", "lower --workers, or enlarge it (docker run --shm-size)")
    return f"{workers}, with {free_bytes(shared) / GB:.1f} GB of shared memory"


# -- models ----------------------------------------------------------------------------------------


def classes_of(weights: str, dataset: SegmentationDataset | None) -> int:
    """Number of classes: the data set's, or, without one, what the weights were made for."""
    if dataset is not None:
        return dataset.num_classes
    names = read_weights(weights).class_names if weights not in ("default", "none") else None
    return len(names) if names else VOC_CLASS_COUNT


def check_student(args: Arguments, dataset: SegmentationDataset | None) -> str:
    names = dataset.class_names if dataset is not None else None
    create_model(args.student, classes_of(args.student_weights, dataset), args.student_weights, names)
    return f"{args.student}, weights {args.student_weights}"


def check_teacher(args: Arguments, dataset: SegmentationDataset | None) -> str:
    if dataset is None:
        load_alone(TeacherChoice.of(args), VOC_CLASS_COUNT)
    else:
        load_teacher_for(TeacherChoice.of(args), dataset)
    return f"{args.teacher}, weights {args.teacher_weights}"


# -- the built run ---------------------------------------------------------------------------------


def trial_step(trainer: Trainer) -> int:
    """One step with a few images, without the optimizer's; returns the bytes a whole training step needs."""
    stage = trainer.stages.of(trainer.args.epochs - 1)
    trainer.enter_stage(stage)
    images = min(TRIAL_IMAGES, stage.batch_size)
    start = time.perf_counter()
    samples = [trainer.data.train_set[index, index] for index in range(images)]
    batch = prepare_batch(default_collate(samples), trainer.device)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = trainer.distiller.losses(batch)
        total = trainer.distiller.total(losses)
    total.backward()
    if not math.isfinite(total.item()):
        raise UserError(f"the loss of images {', '.join(batch['id'])} is {total.item()}")
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.models.model.parameters()}
    activations = sum(size for place, size in kept.items() if place not in weights)
    share = stage.batch_size / distributed.world_size() / images
    print(
        f"ok     {'step':<10} {images} images in {time.perf_counter() - start:.1f} s: "
        + ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
    )
    return int(HEADROOM * (lasting_bytes(trainer) + share * activations))


def lasting_bytes(trainer: Trainer) -> int:
    """Bytes of weights, gradients, two moments of each, and of the teacher's weights: there from first to last."""
    teacher = trainer.distiller.teacher
    teacher = getattr(teacher.teacher if isinstance(teacher, MappedTeacher) else teacher, "model", None)
    own = 4 * _bytes(trainer.models.model.parameters())
    return own + (_bytes(teacher.parameters()) if teacher is not None else 0)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_memory(trainer: Trainer, needed: int) -> str:
    what = f"--batch-size {trainer.args.batch_size} --crop-size {trainer.args.crop_size}"
    return _compare_memory(needed, f"for {what}", trainer.device, "lower one of them")


def check_scoring_memory(trainer: Trainer) -> str:
    """The validation pictures that take most, at their own size or in tiles."""
    args, dataset = trainer.args, trainer.data.val_set
    paths = [dataset.image_path(index) for index in range(len(dataset))]
    sizes = Counter(map_in_order(image_size, paths, desc="sizes", total=len(paths)))  # (width, height) -> how many
    batch_size = scoring_batch(args.eval_batch_size, trainer.device)
    batches = {size: min(count, batch_size) for size, count in sizes.items()}  # of equal sizes
    width, height = max(batches, key=lambda size: size[0] * size[1] * batches[size])
    images = batches[width, height]
    what = f"to score {images} picture{'s' * (images > 1)} of {width}x{height}"
    if args.eval_tile or args.input_size:
        what += f" in tiles of {args.eval_tile}" if args.eval_tile else f" at working size {args.input_size}"
    network = at_working_size(trainer.models.plain, args.input_size)
    needed = scoring_bytes(network, dataset.num_classes, (height, width), images, args.eval_tile)
    if needed is None:
        return f"not known what it takes {what}"
    if trainer.device.type == "cpu":  # what the loader has read lies in the same memory
        needed += (
            BYTES_PER_PIXEL * width * height * images * (3 + 2 * loader_processes(args.workers, trainer.device))
        )  # sample, batch, batch before
    needed = int(HEADROOM * (lasting_bytes(trainer) + needed))
    advice = memory_advice(batch_size, args.eval_tile, "--eval-batch-size", args.input_size)
    return _compare_memory(needed, what, trainer.device, advice)


def _compare_memory(needed: int, what: str, device: torch.device, advice: str) -> str:
    text, free = f"about {needed / GB:.2f} GB {what}", free_memory(device)
    if free is None:
        return text
    if needed > free:
        raise UserError(f"{text}, but {free / GB:.2f} GB are free on {device.type}: {advice}")
    return f"{text}; {free / GB:.2f} GB are free on {device.type}"


def check_disk(trainer: Trainer) -> str:
    """Room for best.pth and last.pth, each beside the one it replaces, and for the students kept on the way."""
    args, student = trainer.args, _bytes(trainer.student.state_dict().values())
    last = student + 3 * _bytes(trainer.models.model.parameters())  # adapters, and two moments of everything
    kept = args.epochs // args.save_every if args.save_every else 0
    needed = int(1.1 * (2 * last + (2 + kept) * student)) + 10_000_000
    there = nearest(trainer.folder)
    require_room(there, needed, "the run's files", "free some, name another --output-dir, or raise --save-every")
    return f"the run's files take about {needed / GB:.2f} GB, {free_bytes(there) / GB:.1f} GB are free in {there}"
