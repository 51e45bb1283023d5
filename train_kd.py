"""Train a segmentation network, alone or guided by a frozen teacher.

    python train_kd.py --alpha 0 --beta 0                      # baseline: cross-entropy only, no teacher
    python train_kd.py --alpha 1.0 --temperature 1             # response: + temperature-scaled KL
    python train_kd.py --beta 0.5                              # feature: + cosine of low/mid/high maps
    python train_kd.py --alpha 1.0 --temperature 1 --cache-teacher   # the teacher computed once, then read
    python train_kd.py --preset aicsd --teacher deeplabv3_resnet50   # a published mix of losses
    python train_kd.py --qat --student-weights RUN/best.pth --lr 1e-4 --alpha 1.0    # fit RUN's --student for INT8
    python train_kd.py --resume auto --name RUN                # go on where RUN stopped
    python train_kd.py --dry-run                               # is all there that the run needs?

total = hard + alpha * kl + beta * cosine (+ any --loss NAME=WEIGHT); see kd/losses.py for all of them.
"""

from __future__ import annotations

from basics import distributed
from basics.device import make_deterministic
from basics.errors import run_cli
from basics.memory import explain_memory
from training import arguments
from training.arguments import Arguments, check_arguments
from training.doctor import examine
from training.recipe import make_recipe, name_run
from training.trainer import Trainer


def get_args_parser() -> arguments.Parser:
    return arguments.get_args_parser(__doc__)


def main(args: Arguments) -> int:
    if args.dry_run:
        return examine(args)
    check_arguments(args)
    recipe = make_recipe(args)
    name_run(args, recipe)
    if args.deterministic:
        make_deterministic()
    advice = "lower --batch-size or --crop-size, or use --amp"
    with distributed.session(args.device, args.dist_timeout), explain_memory(advice):
        return Trainer(args, recipe).run()


if __name__ == "__main__":
    run_cli(main, get_args_parser)
