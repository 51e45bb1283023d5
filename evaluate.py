"""Score saved students on a split: one table by class, one line by checkpoint.

    python evaluate.py checkpoints/RUN/best.pth --dataset voc
    python evaluate.py checkpoints/*/best.pth --dataset voc --csv scores.csv --json scores.json
    python evaluate.py checkpoints/RUN/best.pth ptq_int8.onnx qat_int8.onnx --agreement
    python evaluate.py best.pth best_int8.onnx --teacher hf:... --input-size 192 256 384 --chart front.png
    python evaluate.py checkpoints/RUN/best.pth --submission voc_test.tgz        # for VOC's evaluation server

Architecture, classes, normalisation and working size come from the checkpoint. The protocol: native resolution, or
the checkpoint's working size, one scale, no flip; logits are resized to the mask, never the mask to the logits; only
255 is left out. The column "score" is 4 * mIoU / (1 + millions of parameters), with mIoU in 0..1; ms/image is the
median forward time of one picture, of 20 spread over the split, all networks in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from basics.errors import UserError, run_cli
from basics.files import expanded, nearest
from basics.tiling import check_tile
from dataset import SegmentationDataset, build_split
from deploy.scored import ScoredNetwork, score_files, score_teacher
from deploy.segmenter import load_segmenter
from deploy.teachers import TeacherChoice, add_teacher_arguments, refuse_without_teacher
from networks.working_size import fault_of_size
from scoring.front import check_chart, draw_front, read_rows, require_same_data
from scoring.in_turn import InTurn
from scoring.protocol import Agreement, check_classes, check_untiled
from scoring.reporting import add_evaluation_arguments, split_to_score
from scoring.submission import refuse_scores, submit
from scoring.tables import SummaryRow, format_summary, write_results


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help=".pth or exported files")
    parser.add_argument("--agreement", action="store_true", help="share of pixels each decides as the first one")
    parser.add_argument("--input-size", type=int, nargs="+", metavar="N",
                        help="score at these working sizes, 0 for native, instead of the checkpoint's own")  # fmt: skip
    parser.add_argument("--mean-over", nargs="+", default=[], metavar="CLASS",
                        help="the mean over these classes alone is told, too, and drawn")  # fmt: skip
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw mIoU over milliseconds an image")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="FILE.json",
                        help="results of this script or of test_teacher.py, for the table and the chart")  # fmt: skip
    parser.add_argument("--submission", type=Path, metavar="FILE.tgz", help="write the masks of VOC's test split")
    add_teacher_arguments(parser, None, "score and time it, too; as for test_teacher.py")
    add_evaluation_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    args.checkpoints, args.beside = expanded(args.checkpoints), expanded(args.beside)
    refuse_without_teacher(args)
    check_tile("--eval-tile", args.eval_tile)
    if faults := list(filter(None, (fault_of_size("--input-size", size) for size in args.input_size or ()))):
        raise UserError(faults[0])
    if args.submission:
        return write_submission(args)
    dataset = split_to_score(args)
    check_arguments(args, dataset)
    others = [row for path in args.beside for row in read_rows(path)]
    rows: list[SummaryRow] = []
    in_turn = InTurn(dataset, args.eval_tile, args.amp)
    beside: list[SummaryRow] = []  # once they are known to be of the same masks
    try:
        for scored in score_all(args, dataset):
            rows.append(scored.row)
            require_same_data(scored.row, others)
            beside = others
            in_turn.add(scored.row, scored.network, scored.device)
        write_results(rows, args.json, args.csv)  # with the times of scoring, should there be no more memory
        in_turn.time()
    finally:  # what was scored before one that could not be is not lost
        if rows:
            print("\n" + format_summary([*beside, *rows], args.mean_over))
            write_results(rows, args.json, args.csv)
            if args.chart is not None:
                draw_front([*beside, *rows], args.chart, args.mean_over)


def write_submission(args: argparse.Namespace) -> None:
    """The masks of VOC's test split, which has no truth here to score against."""
    refuse_scores(args)
    path, dataset = args.checkpoints[0], build_split(args, "test")
    segmenter = load_segmenter(path, args.device)
    segmenter = segmenter.at(args.input_size[0]) if args.input_size else segmenter
    check_untiled(str(path), segmenter.input_size, "--eval-tile", args.eval_tile)
    check_classes(str(path), segmenter.class_names, dataset)
    submit(args.submission, lambda image: segmenter.mask(image, args.eval_tile), dataset)


def check_arguments(args: argparse.Namespace, dataset: SegmentationDataset) -> None:
    """A `UserError` for what would only be found out after everything is scored."""
    if args.chart is not None:
        check_chart(args.chart)
    for name in args.mean_over:
        if name not in dataset.class_names:
            raise UserError(f"--mean-over {name}: no such class; there are {', '.join(dataset.class_names)}")
    for path in (args.json, args.csv, args.chart):
        if path is not None and (path.is_dir() or nearest(path.parent).is_file()):
            raise UserError(f"{path}: {'a folder' if path.is_dir() else 'a file lies where its folder should be'}; "
                            "name a file for the results")  # fmt: skip


def score_all(args: argparse.Namespace, dataset: SegmentationDataset) -> Iterator[ScoredNetwork]:
    """The teacher, if one is named, and each checkpoint, as soon as it is scored."""
    sizes = args.input_size or []
    if args.teacher:
        teacher = TeacherChoice.of(args)
        yield from score_teacher(teacher, dataset, args, [] if teacher.input_size else sizes)
    yield from score_files(args.checkpoints, dataset, args, sizes, Agreement() if args.agreement else None)


if __name__ == "__main__":
    run_cli(main, get_args_parser)
