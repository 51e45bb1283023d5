"""Train a segmentation network, alone or guided by a frozen teacher.

    python train_kd.py --alpha 0 --beta 0                      # baseline: cross-entropy only, no teacher
    python train_kd.py --alpha 1.0 --temperature 4             # response: + temperature-scaled KL
    python train_kd.py --beta 0.5                              # feature: + cosine of low/mid/high maps
    python train_kd.py --alpha 1.0 --cache-teacher             # the teacher computed once, then read
    python train_kd.py --preset papi --teacher deeplabv3plus_resnet101 --student deeplabv3plus_resnet18
    python train_kd.py --qat --student-weights RUN/best.pth --lr 1e-4 --alpha 1.0    # fit a student for INT8
    python train_kd.py --resume auto --name RUN                # go on where RUN stopped
    python train_kd.py --dry-run                               # is all there that the run needs?

total = hard + alpha * kl + beta * cosine (+ any --loss NAME=WEIGHT); see kd/losses.py for all of them.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from basics import distributed
from basics.device import add_device_argument, make_deterministic
from basics.errors import UserError, choose, run_cli
from basics.memory import explain_memory
from dataset import add_data_arguments
from kd.cache_store import DTYPES
from kd.distiller import Recipe
from kd.losses import LOSSES, PAPER_LAMBDAS, PRESETS
from kd.teacher_cache import DEFAULT_FOLDER as TEACHER_FOLDER
from segdata.decode_cache import DEFAULT_FOLDER as DECODED_FOLDER
from training.doctor import examine
from training.optim import OPTIMIZERS, SCHEDULES
from training.trainer import Trainer


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)

    models = parser.add_argument_group("models (python zoo.py lists them)")
    models.add_argument("--student", default="standard", help="the network that is trained")
    models.add_argument("--student-weights", default="default", metavar="default|none|PATH",
                        help="start of the student: ImageNet backbone, random, or a file")  # fmt: skip
    models.add_argument(
        "--qat",
        action="store_true",
        help="train with the rounding of INT8; give a trained student by --student-weights and a small --lr, "
        "then make the file with quantize.py",
    )
    models.add_argument("--teacher", default="fcn_resnet50", help="built only if a loss needs it")
    models.add_argument("--teacher-weights", default="default", metavar="default|PATH",
                        help="torchvision's COCO_WITH_VOC_LABELS weights, or a file; .onnx: any network")  # fmt: skip
    models.add_argument(
        "--cache-teacher",
        nargs="?",
        const="fp16",
        choices=sorted(DTYPES),
        help="compute the teacher's outputs once and read them ever after; as fp16, or uint8 in half the space",
    )
    models.add_argument("--cache-dir", type=Path, default=TEACHER_FOLDER, metavar="DIR",
                        help=f"where the teacher's caches lie ({TEACHER_FOLDER})")  # fmt: skip

    losses = parser.add_argument_group("losses")
    losses.add_argument("--preset", metavar="NAME", help=f"a published mix: {', '.join(sorted(PRESETS))}")
    losses.add_argument("--alpha", type=float, help="weight of the temperature-scaled KL on logits (0)")
    losses.add_argument("--beta", type=float, help="weight of the cosine feature loss (0)")
    losses.add_argument("--temperature", type=float, help="T of the losses on softened logits (4)")
    losses.add_argument("--loss", action="append", default=[], metavar="NAME=WEIGHT",
                        help=f"any further term, or another weight of ce (1): {', '.join(sorted(LOSSES))}")  # fmt: skip
    losses.add_argument(
        "--class-weights",
        metavar="auto|PATH",
        help="weights of the hard losses: inverse class frequencies, or a file (dataset.py --stats writes one)",
    )
    losses.add_argument("--pa_lambda", type=float, help="weight of pairwise, in its paper's scale")
    losses.add_argument("--pi_lambda", type=float, help="weight of pixelwise, in its paper's scale")

    optimization = parser.add_argument_group("optimization")
    optimization.add_argument("--epochs", type=int, default=60)
    optimization.add_argument("--batch-size", type=int, default=16)
    optimization.add_argument("--lr", type=float, default=5e-4, help="base learning rate")
    optimization.add_argument(
        "--backbone-lr-factor", type=float, default=1.0, metavar="F",
        help="the pretrained backbone learns at F times that rate",
    )  # fmt: skip
    optimization.add_argument("--weight-decay", type=float, default=1e-2)
    optimization.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    optimization.add_argument("--schedule", choices=sorted(SCHEDULES), default="poly")
    optimization.add_argument("--warmup-epochs", type=float, default=1.0)
    optimization.add_argument("--crop-size", type=int, default=384, help="side of the square training crop, pixels")
    optimization.add_argument(
        "--scale-range", type=float, nargs=2, default=[0.5, 2.0], metavar=("LOW", "HIGH"),
        help="images are magnified by a factor drawn from this range before the crop (0.5 2)",
    )  # fmt: skip
    optimization.add_argument(
        "--freeze-epochs", type=int, default=0, metavar="N", help="train without the backbone for the first N epochs"
    )
    optimization.add_argument("--freeze-batch-size", type=int, help="batch size of those epochs (--batch-size)")
    optimization.add_argument("--freeze-crop-size", type=int, help="crop size of those epochs (--crop-size)")
    optimization.add_argument("--max-steps", type=int, help="end after so many optimizer steps (smoke runs)")

    machine = parser.add_argument_group("machine")
    add_device_argument(machine)
    machine.add_argument("--amp", default="off", choices=["off", "bf16", "fp16"], help="mixed precision")
    machine.add_argument("--compile", action="store_true", help="torch.compile the student")
    machine.add_argument(
        "--decode-cache",
        type=Path,
        nargs="?",
        const=DECODED_FOLDER,
        metavar="DIR",
        help=f"decode the training images once, into a file in DIR ({DECODED_FOLDER})",
    )
    machine.add_argument("--workers", type=int, default=2, help="loader processes; does not change the result")
    machine.add_argument("--seed", type=int, default=0)
    machine.add_argument("--deterministic", action="store_true", help="the same numbers at every run on a GPU, too")
    machine.add_argument("--dist-timeout", type=float, default=distributed.TIMEOUT_S, metavar="SECONDS",
                         help="torchrun: how long a process waits for the others (600)")  # fmt: skip

    run = parser.add_argument_group("run")
    run.add_argument("--output-dir", type=Path, default=Path("checkpoints"))
    run.add_argument("--name", help="run folder below --output-dir; made from the arguments by default")
    run.add_argument("--eval-every", type=int, default=1, metavar="EPOCHS")
    run.add_argument("--eval-batch-size", type=int, default=1, help="only images of equal size share a batch")
    run.add_argument("--patience", type=int, default=0, help="stop after so many evaluations without a gain; 0: never")
    run.add_argument("--save-every", type=int, default=0, metavar="EPOCHS", help="also keep epoch_N.pth; 0: never")
    run.add_argument("--save-steps", type=int, default=0, metavar="STEPS", help="save last.pth within epochs; 0: never")
    run.add_argument("--resume", metavar="PATH|auto", help="a last.pth, or auto: the run folder's own if there is one")
    run.add_argument("--allow-changed", action="store_true", help="resume even with other arguments")
    run.add_argument("--dry-run", action="store_true", help="check all that the run needs, say all that is wrong, end")
    run.add_argument("--tensorboard", action="store_true")
    run.add_argument("--wandb", action="store_true")
    return parser


def make_recipe(args: argparse.Namespace) -> Recipe:
    """The losses of the command line: the preset's, or cross-entropy; then what is given explicitly."""
    preset = choose(PRESETS, args.preset, "preset") if args.preset else None
    weights = preset.dials if preset else {"ce": 1.0}
    explicit = {"kl": args.alpha, "cosine": args.beta}
    for option, (name, factor) in PAPER_LAMBDAS.items():
        value = getattr(args, option)
        explicit[name] = None if value is None else factor * value
    weights |= {name: weight for name, weight in explicit.items() if weight is not None}
    for term in args.loss:
        name, _, weight = term.partition("=")
        choose(LOSSES, name, "loss")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise UserError(f"--loss {term}: give NAME=WEIGHT, such as --loss {name}=0.5") from None
    temperature = args.temperature
    if temperature is None:
        temperature = preset.temperature if preset else 4.0
    return Recipe(weights, temperature=temperature, adaptive=bool(preset and preset.adaptive))


def name_run(args: argparse.Namespace, recipe: Recipe) -> None:
    """Fill in --name: the resumed run's own, or one that tells runs of different settings apart."""
    if args.name:
        return
    if args.resume and args.resume != "auto":
        folder = Path(args.resume).resolve().parent
        args.output_dir, args.name = folder.parent, folder.name
        return
    terms = "_".join(f"{name}{weight:g}" for name, weight in recipe.weights.items() if (name, weight) != ("ce", 1.0))
    qat = "_qat" if args.qat else ""
    args.name = f"{args.dataset}_{args.student}_{terms or 'baseline'}{qat}_seed{args.seed}"


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense, all of them at once, before any work is done."""
    faults = []
    for name, least in (
        ("epochs", 1), ("batch_size", 1), ("crop_size", 32), ("workers", 0), ("eval_every", 1), ("eval_batch_size", 1),
        ("patience", 0), ("save_every", 0), ("save_steps", 0), ("warmup_epochs", 0), ("weight_decay", 0),
        ("freeze_epochs", 0), ("freeze_batch_size", 1), ("freeze_crop_size", 32), ("max_steps", 1),
        ("backbone_lr_factor", 0),
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            faults.append(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if not 0 <= args.seed < 2**32:
        faults.append(f"--seed must be from 0 to {2**32 - 1}, not {args.seed}")
    for name, value in (("lr", args.lr), ("dist-timeout", args.dist_timeout)):
        if not 0 < value < math.inf:
            faults.append(f"--{name} must be above 0, not {value}")
    low, high = args.scale_range
    if not 0.1 <= low <= high <= 10:
        faults.append(f"--scale-range must be two factors from 0.1 to 10, the lower first, not {low:g} {high:g}")
    if args.qat:
        clashes = [
            ("--amp", args.amp != "off"), ("--compile", args.compile), ("--freeze-epochs", args.freeze_epochs > 0)
        ]  # fmt: skip
        faults += [f"--qat and {name} exclude each other" for name, given in clashes if given]
    if faults:
        raise UserError("; ".join(faults))


def main(args: argparse.Namespace) -> int:
    if args.dry_run:
        return examine(args, check_arguments, make_recipe, name_run)
    check_arguments(args)
    recipe = make_recipe(args)
    name_run(args, recipe)
    if args.deterministic:
        make_deterministic()
    lower = "--batch-size, --crop-size or --eval-batch-size, or use --amp"
    with distributed.session(args.device, args.dist_timeout), explain_memory(lower):
        return Trainer(args, recipe).run()


if __name__ == "__main__":
    run_cli(main, get_args_parser)
