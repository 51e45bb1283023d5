"""Score the teacher by the students' own protocol: the upper bound of what distillation can pass on.

    python test_teacher.py --dataset voc
    python test_teacher.py --teacher deeplabv3_resnet50 --dataset voc --json teacher.json
    python test_teacher.py --teacher hf:nvidia/segformer-b4-finetuned-ade-512-512 --dataset ade20k
    python test_teacher.py --teacher standard --teacher-weights checkpoints/demo_teacher/best.pth --dataset demo

The protocol is that of evaluate.py, down to the code. (This is a script; the project's tests are in tests/.)
"""

from __future__ import annotations

import argparse

from basics.device import pick_device
from basics.errors import run_cli
from dataset import build_split
from scoring.reporting import add_evaluation_arguments, report
from scoring.tables import format_summary, write_results
from zoo import load_teacher, teacher_name


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher",
        default="fcn_resnet50",
        metavar="NAME",
        help="a row of zoo.py, or hf:PLACE, smp:PLACE, FILE.py:FUNCTION (default: fcn_resnet50)",
    )
    parser.add_argument(
        "--teacher-weights",
        default="default",
        metavar="default|PATH",
        help="the library's segmentation weights, a .pth of this project, a state_dict, or an .onnx of any network",
    )
    add_evaluation_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    dataset = build_split(args, args.val_split)
    dataset.require_masks()
    teacher = load_teacher(args.teacher, dataset.num_classes, args.teacher_weights, dataset.class_names)
    name = teacher_name(args.teacher, args.teacher_weights)
    label = name if args.teacher_weights == "default" else args.teacher_weights
    row = report(label, name, teacher.to(pick_device(args.device)), dataset, args)
    print("\n" + format_summary([row]))
    write_results([row], args.json, args.csv)


if __name__ == "__main__":
    run_cli(main, get_args_parser)
