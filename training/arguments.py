"""Every flag of a training, each as one field: default, help, bounds, scope, and whether it may change on resume.

    args = get_args_parser(__doc__).parse_args()    # an `Arguments`
    check_arguments(args)

The parser, the checks, what a resumed run may change and what the methods of a comparison may set are derived from
the fields of `Arguments`; a new flag is a new field.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from pathlib import Path

from basics import distributed
from basics.device import AMP_HELP, AMP_TYPES, add_device_argument
from basics.errors import UserError
from basics.machine import WORKERS_HELP, number_or_auto
from basics.tiling import fault_of_tile
from dataset import add_data_arguments
from deploy.teachers import CLASS_MAP_HELP, TEACHER_SIZE_HELP
from kd.cache_store import DTYPES
from kd.losses import LOSSES, PRESETS
from kd.teacher_cache import DEFAULT_FOLDER as TEACHER_FOLDER
from networks.working_size import fault_of_size
from scoring.protocol import SCORING_HELP
from segdata.decode_cache import DEFAULT_FOLDER as DECODED_FOLDER
from training.flags import Flag, Scope, fault_of_bounds, flag, parser_options
from training.optim import OPTIMIZERS, SCHEDULES

EVAL_EVERY_HELP = (
    "epochs between validations (auto: 1; on an NVIDIA GPU so many that they take no more than a fifth of the pictures "
    "read, but ten validations in --epochs; 1 with --patience)"
)
GROUPS = {
    "data": "data",
    "pictures": "pictures with masks and without (docs/unlabelled.md)",
    "models": "models (python zoo.py lists them, and how others are named: hf:, smp:, FILE.py:)",
    "losses": "losses",
    "optimization": "optimization",
    "machine": "machine",
    "run": "run",
}


@dataclass
class Arguments(argparse.Namespace):
    """The arguments of one training run."""

    dataset: str = flag("data", "budget", "voc", shared=True)
    data_dir: Path = flag("data", "machine", Path("data"), may_change=True, shared=True)
    classes: Path | None = flag("data", "budget", None, shared=True)
    train_split: str = flag("data", "budget", "train", shared=True)
    val_split: str = flag("data", "budget", "val", shared=True)
    val_share: float | None = flag("data", "budget", None, shared=True)

    labels: int | None = flag(
        "pictures",
        "budget",
        None,
        "use N masks of the training split alone, drawn from --seed; a larger draw holds a smaller one (all)",
        least=0,
        metavar="N",
    )
    unlabelled: list[str] = flag(
        "pictures",
        "method",
        [],
        "pictures without masks join the training, for the teacher to speak of: a split, or a folder; repeatable",
        metavar="DIR|SPLIT",
    )
    labelled_per_batch: int | None = flag(
        "pictures", "method", None, "so many pictures of each batch have masks (by their share)", least=1, metavar="N"
    )

    student: str = flag("models", "run", "standard", "the network that is trained")
    student_weights: str = flag(
        "models",
        "method",
        "default",
        "start of the student: what is published (ImageNet backbone, or more), random, or a file",
        metavar="default|none|PATH",
    )
    qat: bool = flag(
        "models",
        "budget",
        False,
        "train with the rounding of INT8; give a trained student by --student-weights and a small --lr, then make the "
        "file with quantize.py",
    )
    teacher: str = flag("models", "teacher", "fcn_resnet50", "built only if a loss needs it")
    teacher_weights: str = flag(
        "models", "teacher", "default", "those published, or a file; .onnx: any network", metavar="default|PATH"
    )
    class_map: str | None = flag("models", "teacher", None, CLASS_MAP_HELP, metavar="FILE|NAME")
    teacher_size: int = flag("models", "teacher", 0, f"if cached: {TEACHER_SIZE_HELP}", least=0, metavar="N")
    min_confidence: float = flag(
        "models",
        "teacher",
        0.0,
        "leave out of the losses on logits where the teacher's likeliest class has less probability (0: nothing)",
        least=0,
        most=1,
        metavar="P",
    )
    cache_teacher: str | None = flag(
        "models",
        "teacher",
        None,
        "compute the teacher's outputs once and read them ever after; as fp16, or uint8 in half the space",
        nargs="?",
        const="fp16",
        choices=sorted(DTYPES),
    )
    cache_dir: Path = flag(
        "models",
        "teacher",
        TEACHER_FOLDER,
        f"where the teacher's caches lie ({TEACHER_FOLDER})",
        may_change=True,
        metavar="DIR",
    )

    preset: str | None = flag(
        "losses", "method", None, f"a published mix: {', '.join(sorted(PRESETS))}", metavar="NAME"
    )
    alpha: float | None = flag("losses", "method", None, "weight of the softened KL on logits (the preset's, or 0)")
    beta: float | None = flag("losses", "method", None, "weight of the cosine feature loss (the preset's, or 0)")
    temperature: float | None = flag("losses", "method", None, "T of losses on logits, cwd_feat (the preset's, or 4)")
    loss: list[str] = flag(
        "losses",
        "method",
        [],
        f"any further term, or another weight of ce (1): {', '.join(sorted(LOSSES))}; a feature loss on other maps "
        "than its own: NAME@TAP+TAP, of low, mid, high, decoder; ce@high=0.5: another loss, on an auxiliary head there",
        metavar="NAME[@TAP]=WEIGHT",
    )
    class_weights: str | None = flag(
        "losses",
        "method",
        None,
        "weights of the hard losses: inverse class frequencies, or a file (dataset.py --stats writes one)",
        metavar="auto|PATH",
    )
    pa_lambda: float | None = flag(
        "losses", "method", None, "weight of pairwise, in its paper's scale", option="--pa_lambda"
    )
    pi_lambda: float | None = flag(
        "losses", "method", None, "weight of pixelwise, in its paper's scale", option="--pi_lambda"
    )

    epochs: int = flag("optimization", "budget", 60, "passes over the training pictures (60)", least=1)
    time_budget: float | None = flag(
        "optimization",
        "budget",
        None,
        "instead of --epochs: end after so many seconds of training (docs/comparing.md); never the same to the bit",
        above=0,
        metavar="SECONDS",
    )
    epoch_images: int | None = flag(
        "optimization",
        "budget",
        None,
        "an epoch is N images, however many there are: equal budgets for unequal data (all of them, once)",
        least=1,
        metavar="N",
    )
    batch_size: int = flag("optimization", "budget", 16, "crops a step, of all processes together (16)", least=1)
    lr: float | None = flag("optimization", "budget", None, "learning rate (by student: docs/losses.md)", above=0)
    backbone_lr_factor: float | None = flag(
        "optimization", "budget", None, "the backbone's share of --lr (by student; 1 if --lr is)", least=0, metavar="F"
    )
    weight_decay: float = flag("optimization", "budget", 1e-2, "of convolution weights alone (0.01)", least=0)
    optimizer: str = flag("optimization", "budget", "adamw", "default: adamw", choices=OPTIMIZERS)
    schedule: str = flag("optimization", "budget", "poly", "of the learning rate (poly)", choices=sorted(SCHEDULES))
    warmup_epochs: float = flag("optimization", "budget", 1.0, "of linear warm-up (1)", least=0)
    input_size: int = flag(
        "optimization",
        "budget",
        0,
        "the working size: pictures are brought to N pixels on the longer side for training, scoring and prediction "
        "(docs/working_size.md); 0: their own size",
        least=0,
        metavar="N",
    )
    crop_size: int = flag("optimization", "budget", 384, "side of the square training crop, pixels (384)", least=32)
    scale_range: list[float] = flag(
        "optimization",
        "budget",
        [0.5, 2.0],
        "images, at their working size, are magnified by a factor drawn from this range before the crop (0.5 2)",
        nargs=2,
        metavar=("LOW", "HIGH"),
    )
    clip_norm: float | None = flag(
        "optimization", "method", None, "cut the norm of all gradients together to this (no clipping)", above=0
    )
    ema: float = flag(
        "optimization",
        "method",
        0.0,
        "score and save the mean of the student's weights over steps, in which the last step counts 1 - DECAY, such as "
        "0.999; 0: the weights of the last step",
        least=0,
        most=0.99999,
        metavar="DECAY",
    )
    freeze_epochs: int = flag(
        "optimization", "budget", 0, "train without the backbone for the first N epochs", least=0, metavar="N"
    )
    freeze_batch_size: int | None = flag(
        "optimization", "budget", None, "batch size of those epochs (--batch-size)", least=1
    )
    freeze_crop_size: int | None = flag(
        "optimization", "budget", None, "crop size of those epochs (--crop-size)", least=32
    )
    max_steps: int | None = flag(
        "optimization", "budget", None, "end after so many optimizer steps (smoke runs)", may_change=True, least=1
    )

    device: str = flag("machine", "machine", "auto", may_change=True, shared=True)
    amp: str = flag("machine", "budget", "auto", AMP_HELP, choices=["auto", "off", *AMP_TYPES])
    compile: bool = flag("machine", "machine", False, "torch.compile the student, and a live teacher", may_change=True)
    decode_cache: Path | None = flag(
        "machine",
        "machine",
        None,
        f"decode the training images once, into a file in DIR ({DECODED_FOLDER})",
        may_change=True,
        nargs="?",
        const=DECODED_FOLDER,
        metavar="DIR",
    )
    workers: int | None = flag(
        "machine", "machine", None, WORKERS_HELP, may_change=True, least=0, parse=number_or_auto, metavar="auto|N"
    )
    seed: int = flag("machine", "run", 0, "of everything that is drawn by chance (0)", least=0, most=2**32 - 1)
    deterministic: bool = flag("machine", "budget", False, "the same numbers at every run on a GPU, too")
    dist_timeout: float = flag(
        "machine",
        "machine",
        distributed.TIMEOUT_S,
        "torchrun: how long a process waits for the others (600)",
        may_change=True,
        above=0,
        metavar="SECONDS",
    )

    output_dir: Path = flag("run", "run", Path("checkpoints"), "of all runs (checkpoints)", may_change=True)
    name: str | None = flag(
        "run", "run", None, "run folder below --output-dir; made from the arguments by default", may_change=True
    )
    eval_every: int | None = flag(
        "run", "budget", None, EVAL_EVERY_HELP, may_change=True, least=1, parse=number_or_auto, metavar="auto|N"
    )
    eval_batch_size: int | None = flag(
        "run", "machine", None, SCORING_HELP, may_change=True, least=1, parse=number_or_auto, metavar="auto|N"
    )
    eval_tile: int = flag(
        "run", "budget", 0, "score larger pictures in blended tiles of this side; 0: whole", least=0, metavar="PIXELS"
    )
    patience: int = flag(
        "run", "budget", 0, "stop after so many evaluations without a gain; 0: never", may_change=True, least=0
    )
    save_every: int = flag(
        "run", "machine", 0, "also keep epoch_N.pth; 0: never", may_change=True, least=0, metavar="EPOCHS"
    )
    save_steps: int = flag(
        "run", "machine", 0, "save last.pth within epochs; 0: never", may_change=True, least=0, metavar="STEPS"
    )
    resume: str | None = flag(
        "run",
        "run",
        None,
        "a last.pth, or auto: the run folder's own if there is one",
        may_change=True,
        metavar="PATH|auto",
    )
    allow_changed: bool = flag("run", "run", False, "resume even with other arguments", may_change=True)
    dry_run: bool = flag(
        "run", "run", False, "check all that the run needs, say all that is wrong, end", may_change=True
    )
    tensorboard: bool = flag("run", "machine", False, "log to TensorBoard as well", may_change=True)
    wandb: bool = flag("run", "machine", False, "log to Weights & Biases as well", may_change=True)

    def as_plain(self) -> dict[str, object]:
        """By name, paths as text: for config.json and last.pth."""
        return {key: value.as_posix() if isinstance(value, Path) else value for key, value in vars(self).items()}

    @property
    def run_folder(self) -> Path:
        """OUTPUT_DIR/NAME, once `name_run` has filled in the name."""
        assert self.name is not None
        return self.output_dir / self.name


# -- derived from the fields -------------------------------------------------------------------------


def flags() -> Iterator[tuple[Field, Flag]]:
    """Every field of `Arguments` with what it says of its flag."""
    return ((each, each.metadata["flag"]) for each in fields(Arguments))


def names_of(*scopes: Scope) -> frozenset[str]:
    """The arguments of these scopes."""
    return frozenset(each.name for each, about in flags() if about.scope in scopes)


# What may differ when a run is resumed: where and how it runs, not what is computed.
MAY_CHANGE = frozenset(each.name for each, about in flags() if about.may_change)


def teacher_options(args: Arguments) -> list[str]:
    """The flags given that say something of a teacher."""
    defaults = Arguments()
    return [option_of(name) for name in sorted(names_of("teacher")) if getattr(args, name) != getattr(defaults, name)]


def option_of(name: str) -> str:
    """The flag of an argument, as people type it."""
    given = {each.name: about.option for each, about in flags()}
    return given.get(name) or f"--{name.replace('_', '-')}"  # perhaps one of another version


class Parser(argparse.ArgumentParser):
    """Gives `Arguments` instead of a bare namespace."""

    def parse_args(self, args=None, namespace=None) -> Arguments:  # type: ignore[no-untyped-def, override]
        return super().parse_args(args, namespace or Arguments())


def get_args_parser(description: str | None = None, kind: type[Parser] = Parser) -> Parser:
    """The parser of a training's command line; ``kind`` decides what becomes of mistakes."""
    parser = kind(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items() if name != "data"}
    hints = typing.get_type_hints(Arguments)
    for each, about in flags():
        if each.name == "device":
            add_device_argument(groups[about.group])
        elif not about.shared:
            groups[about.group].add_argument(option_of(each.name), **parser_options(each, about, hints[each.name]))
    return parser


def check_arguments(args: Arguments) -> None:
    """Refuse numbers that make no sense, all of them at once, before any work is done.

    Raises:
        UserError: naming each flag and its bound.
    """
    values = ((getattr(args, each.name), about, option_of(each.name)) for each, about in flags())
    faults = [
        fault
        for value, about, option in values
        if value is not None and (fault := fault_of_bounds(value, about, option))
    ]
    low, high = args.scale_range
    if not 0.1 <= low <= high <= 10:
        faults.append(f"--scale-range must be two factors from 0.1 to 10, the lower first, not {low:g} {high:g}")
    if args.eval_tile > 0 and (fault := fault_of_tile("--eval-tile", args.eval_tile)):
        faults.append(fault)
    sizes = {"--input-size": args.input_size, "--teacher-size": args.teacher_size}
    # Negative ones were told above.
    faults += [fault for option, size in sizes.items() if size > 0 and (fault := fault_of_size(option, size))]
    if args.teacher_size and not args.cache_teacher:
        faults.append("--teacher-size wants --cache-teacher: live, the teacher sees the student's crops")
    if args.input_size and args.eval_tile:
        faults.append("--input-size leaves no picture larger than itself, and --eval-tile nothing to cut: give one")
    smallest = min(args.batch_size, args.freeze_batch_size or args.batch_size)
    if args.labelled_per_batch and args.labelled_per_batch >= smallest:
        faults.append(f"--labelled-per-batch {args.labelled_per_batch} leaves a batch of {smallest} no other pictures")
    if args.qat:
        clashes = {"--amp": args.amp not in ("auto", "off"), "--compile": args.compile}
        clashes |= {"--freeze-epochs": args.freeze_epochs > 0, "--ema": args.ema > 0}
        faults += [f"--qat and {name} exclude each other" for name, given in clashes.items() if given]
    if faults:
        raise UserError("; ".join(faults))
