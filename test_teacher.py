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

from basics.errors import run_cli
from deploy.scored import score_teacher
from deploy.teachers import TeacherChoice, add_teacher_arguments
from scoring.in_turn import InTurn
from scoring.reporting import add_evaluation_arguments, split_to_score
from scoring.tables import format_summary, write_results


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "a row of zoo.py, or hf:PLACE, smp:PLACE, FILE.py:FUNCTION (default: fcn_resnet50)"
    add_teacher_arguments(parser, "fcn_resnet50", what)
    add_evaluation_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    dataset = split_to_score(args)
    (scored,) = score_teacher(TeacherChoice.of(args), dataset, args)
    in_turn = InTurn(dataset, args.eval_tile, args.amp)
    in_turn.add(scored.row, scored.network, scored.device)
    in_turn.time()
    print("\n" + format_summary([scored.row]))
    write_results([scored.row], args.json, args.csv)


if __name__ == "__main__":
    run_cli(main, get_args_parser)
