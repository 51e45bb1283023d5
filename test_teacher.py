"""Score the teacher by the students' own protocol: the upper bound of what distillation can pass on.

    python test_teacher.py --dataset voc
    python test_teacher.py --teacher deeplabv3_resnet50 --dataset voc --json teacher.json
    python test_teacher.py --teacher hf:nvidia/segformer-b4-finetuned-ade-512-512 --dataset ade20k
    python test_teacher.py --teacher hf:nvidia/segformer-b4-finetuned-ade-512-512 --dataset voc --class-map ade20k_voc
    python test_teacher.py --teacher checkpoints/demo_teacher/best.pth --dataset demo

The protocol is that of evaluate.py, down to the code. A teacher of other classes is scored by what they mean in the
data's (docs/teachers.md); where it says a class that means nothing, its likeliest other one counts, and how often that
was so is told. (This is a script; the project's tests are in tests/.)
"""

from __future__ import annotations

import argparse

from basics.device import pick_device
from basics.errors import run_cli
from datachecks import teacher_masks
from dataset import build_split
from deploy.teachers import MappedNetwork, TeacherChoice, add_teacher_arguments, load_teacher_for
from networks.cost import count_parameters
from scoring.in_turn import InTurn
from scoring.reporting import add_evaluation_arguments, report
from scoring.tables import format_summary, write_results


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "a row of zoo.py, or hf:PLACE, smp:PLACE, FILE.py:FUNCTION (default: fcn_resnet50)"
    add_teacher_arguments(parser, "fcn_resnet50", what)
    add_evaluation_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    dataset = build_split(args, args.val_split)
    dataset.require_masks()
    teacher_masks.warn(dataset)
    teacher = load_teacher_for(TeacherChoice.of(args), dataset)
    label = teacher.label if args.teacher_weights == "default" else args.teacher_weights
    network, parameters = teacher.as_network().to(pick_device(args.device)), count_parameters(teacher.model)
    row = report(label, teacher.label, network, dataset, args, parameters=parameters)
    if isinstance(network, MappedNetwork) and (remark := network.remark(row["iou"])):
        print(f"remark: {remark}")
    in_turn = InTurn(dataset, args.eval_tile, args.amp)
    in_turn.add(row, network, pick_device(args.device))
    in_turn.time()
    print("\n" + format_summary([row]))
    write_results([row], args.json, args.csv)


if __name__ == "__main__":
    run_cli(main, get_args_parser)
