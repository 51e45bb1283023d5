"""Look at what the networks see: Input | Ground truth | Prediction panels, and overlays at original size.

    python visualize.py checkpoints/RUN/best.pth --dataset voc --num 8
    python visualize.py checkpoints/BASELINE/best.pth checkpoints/DISTILLED/best.pth --worst --best --num 5
    python visualize.py checkpoints/RUN/best.pth --ids 2007_000033 2007_000129 --overlays
    python visualize.py checkpoints/RUN/best.pth --teacher fcn_resnet50

One prediction column a checkpoint, with the image's own mIoU above it (over the classes in its truth or
its prediction, void left out). --best and --worst rank the whole split by the first checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from basics.errors import UserError, run_cli  # first: Ctrl-C while torch is imported ends quietly
from basics.progress import ProgressBar

# isort: split
from basics.device import add_device_argument
from basics.files import expanded
from dataset import SegmentationDataset, add_data_arguments, build_split
from deploy.columns import (
    Column,
    checkpoint_column,
    column_titles,
    find_ids,
    make_row,
    rank_images,
    teacher_column,
    write_overlays,
    write_sheets,
)
from deploy.teachers import TeacherChoice, add_teacher_arguments, refuse_without_teacher


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help=".pth or exported files")
    add_data_arguments(parser, train=False)
    pick = parser.add_argument_group("which images (spread over the split by default)")
    pick.add_argument("--ids", nargs="+", metavar="ID", help="these images")
    pick.add_argument("--best", action="store_true", help="those the first checkpoint does best")
    pick.add_argument("--worst", action="store_true", help="those the first checkpoint does worst")
    pick.add_argument("--num", type=int, default=6, help="how many (default: 6)")
    add_teacher_arguments(parser, None, "add the column of a teacher: fcn_resnet50, hf:PLACE, ...")
    parser.add_argument("--overlays", action="store_true", help="also write overlays at original size")
    parser.add_argument("--rows", type=int, default=6, help="images a sheet (default: 6)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="default: pictures/ beside the first checkpoint")
    add_device_argument(parser)
    return parser


def load_columns(args: argparse.Namespace, dataset: SegmentationDataset) -> list[Column]:
    """The checkpoints' networks in the order given; the teacher, if any, comes last here."""
    titles = column_titles(args.checkpoints)
    columns = [
        checkpoint_column(title, path, dataset, args.device)
        for title, path in zip(titles, args.checkpoints, strict=True)
    ]
    if args.teacher:
        choice = TeacherChoice.of(args)
        columns.append(teacher_column(f"teacher: {choice.label}", choice, dataset, args.device))
    return columns


def choose_images(args: argparse.Namespace, dataset: SegmentationDataset, column: Column) -> dict[str, list[int]]:
    """Name of each sheet -> the indices of its images, as the command line asks for them."""
    if args.ids:
        return {"images": find_ids(dataset, args.ids)}
    if args.best or args.worst:
        if not dataset.has_masks:
            raise UserError(f"split {dataset.split!r} has no masks to rank images by: leave --best and --worst out")
        ranked = rank_images(column, dataset)
        chosen = {}
        if args.best:
            chosen["best"] = ranked[::-1][: args.num]
        if args.worst:
            chosen["worst"] = ranked[: args.num]
        return chosen
    count = min(args.num, len(dataset))
    # Spread over the split: neighbours in a list are often frames or objects alike.
    return {"images": [index * len(dataset) // count for index in range(count)]}


def main(args: argparse.Namespace) -> None:
    args.checkpoints = expanded(args.checkpoints)
    if args.num < 1 or args.rows < 1:
        raise UserError("--num and --rows must be at least 1")
    refuse_without_teacher(args)
    if args.ids and (args.best or args.worst):
        raise UserError("--ids names the images, --best and --worst rank them: give one or the other")
    dataset = build_split(args, args.val_split)
    columns = load_columns(args, dataset)
    chosen = choose_images(args, dataset, columns[0])
    if args.teacher:  # ranked by a student, shown before the students
        columns = [columns[-1], *columns[:-1]]
    args.output_dir = args.output_dir or args.checkpoints[0].parent / "pictures"
    titles = [*(["Ground truth"] if dataset.has_masks else []), *(column.title for column in columns)]
    for name, indices in chosen.items():
        bar = ProgressBar(indices, desc=name, unit="img")
        rows = [make_row(dataset, index, columns) for index in bar]
        paths = write_sheets(name, rows, titles, dataset, args.output_dir, args.rows)
        print("\n".join(map(str, paths)))
        if args.overlays:
            folder = args.output_dir / "overlays"
            count = sum(write_overlays(row, titles, dataset, folder) for row in rows)
            print(f"{folder}/: {count} overlays of {len(rows)} images")


if __name__ == "__main__":
    run_cli(main, get_args_parser)
