"""Segment your own pictures: files, folders, globs, videos, a camera.

    python predict.py photo.jpg                                      # with the student that comes along
    python predict.py photo.jpg --checkpoint checkpoints/RUN/best.pth
    python predict.py photos/ "more/**/*.png" --checkpoint model.onnx --save mask overlay panel
    python predict.py clip.mp4 camera:0 --checkpoint model.onnx --output-dir out
    python predict.py huge.tif --checkpoint checkpoints/RUN/best.pth --tile 512
    python predict.py --fps 256 512 640x480 --checkpoint model.onnx
    python predict.py --checkpoint checkpoints/RUN/best.pth          # asks for pictures, one after the other

What is written: DIR/mask (class numbers with a palette; of a video, class colours), DIR/overlay (the
classes over the picture, at its own size), DIR/panel (picture and prediction side by side), each with the
names and subfolders of what came in. A file that cannot be read is reported and skipped; the exit status
is then 1. --checkpoint takes .pth files of train_kd.py, and .onnx and .pt2 files of export.py and quantize.py;
without it the small student of checkpoints/animals is taken, whose README.md says what it can do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from basics.device import add_device_argument
from basics.errors import UserError, run_cli
from basics.machine import device_name
from basics.tiling import check_tile
from deploy.exporting import LEAST_SIZE
from deploy.predictor import KINDS, Predictor
from deploy.segmenter import load_segmenter
from deploy.speed import TIMED_RUNS, size_table

DEFAULT_STUDENT = Path(__file__).resolve().parent / "checkpoints" / "animals" / "student.pth"


def ask(predict: Callable[[str], object]) -> None:
    """Ask for inputs on the terminal, one a line, until an empty line or the end of the input."""
    print("a picture, folder, glob, video or camera:N; an empty line ends")
    while True:
        try:
            text = input("> ").strip().strip("'\"")  # terminals quote the path of a file dropped on them
        except EOFError:
            return
        if not text:
            return
        try:
            predict(text)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)


def parse_size(text: str) -> tuple[int, int]:
    """``512`` or ``WIDTHxHEIGHT`` -> (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) >= LEAST_SIZE for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: give a side or WIDTHxHEIGHT in pixels, at least {LEAST_SIZE}")
    return int(sides[-1]), int(sides[0])


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="picture, folder, glob, video or camera:N")
    parser.add_argument(
        "--checkpoint", type=Path, default=DEFAULT_STUDENT, metavar="PATH",
        help=".pth, .onnx or .pt2; default: the student in checkpoints/animals",
    )  # fmt: skip
    parser.add_argument("--save", nargs="+", choices=KINDS, default=["mask", "overlay"], help="(mask overlay)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="default: predictions/ beside the checkpoint")
    parser.add_argument("--tile", type=int, default=0, metavar="PIXELS",
                        help="cut larger pictures into overlapping squares of this side, and blend")  # fmt: skip
    parser.add_argument("--max-frames", type=int, metavar="N", help="of each video or camera")
    parser.add_argument("--fps", nargs="*", type=parse_size, metavar="SIZE", help="measure speed at these sizes (512)")
    add_device_argument(parser)
    return parser


def main(args: argparse.Namespace) -> int | None:
    check_tile("--tile", args.tile)
    if args.max_frames is not None and args.max_frames < 1:
        raise UserError(f"--max-frames must be at least 1, not {args.max_frames}")
    interactive = not args.inputs and args.fps is None
    if interactive and not sys.stdin.isatty():
        raise UserError("no INPUT: give a picture, a folder, a glob, a video or camera:0")
    segmenter = load_segmenter(args.checkpoint, args.device)
    if args.fps is not None:
        where = device_name(segmenter.device.type)
        print(
            f"{segmenter.name}, picture in memory -> mask, one at a time, {TIMED_RUNS} runs after warm-up, on {where}"
        )
        print(size_table(segmenter, args.fps or [(512, 512)]))
    folder = args.output_dir or args.checkpoint.parent / "predictions"
    predictor = Predictor(segmenter, list(dict.fromkeys(args.save)), folder, args.tile, args.max_frames)
    if interactive:
        ask(lambda text: report(predictor, [text]))
        return None
    if args.inputs:
        return report(predictor, args.inputs)
    return None


def report(predictor: Predictor, inputs: list[str]) -> int:
    """Predict ``inputs``, say what became of them; the exit status: 1 if anything was skipped."""
    tally = predictor.predict(inputs)
    print(tally.summary(predictor.folder))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    run_cli(main, get_args_parser)
