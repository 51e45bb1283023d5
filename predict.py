"""Segment your own pictures: files, folders, globs, videos, streams, a camera.

    python predict.py photo.jpg                                      # with the student that comes along
    python predict.py photo.jpg --checkpoint checkpoints/RUN/best.pth
    python predict.py photos/ "more/**/*.png" --checkpoint model.onnx --save mask overlay panel
    python predict.py clip.mp4 camera:0 rtsp://10.0.0.7/live --checkpoint model.onnx --output-dir out
    python predict.py slides/ --save csv confidence                  # how much of each class, and how sure
    python predict.py huge.tif --checkpoint checkpoints/RUN/best.pth --tile 512
    python predict.py --fps 256 512 480x640 --checkpoint model.onnx
    python predict.py photos/ --teacher fcn_resnet50 --save mask confidence    # labels for a training: docs/teachers.md
    python predict.py --checkpoint checkpoints/RUN/best.pth          # asks for pictures, one after the other

What is written: DIR/mask (class numbers with a palette), DIR/overlay (the classes over the picture, at its own size),
DIR/panel (picture and prediction side by side), DIR/confidence (the probability of the class in the mask, 0..255), each
with the names and subfolders of what came in, and DIR/areas.csv (pixels of each class). Of a video, overlay and panel
are videos, mask and confidence a picture a frame. A file that cannot be read is reported and skipped; the exit status
is then 1. docs/prediction.md says more. --checkpoint takes .pth files of train_kd.py, and whatever export.py and
quantize.py write (docs/formats.md); without it the student of checkpoints/animals is taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from basics.device import add_device_argument
from basics.errors import UserError, run_cli
from basics.tiling import check_tile
from deploy.exporting import parse_size
from deploy.formats import refuse_networks
from deploy.labelling import add_label_arguments, check_label_arguments, make_labeller
from deploy.predictor import Options, Predictor
from deploy.results import KINDS
from deploy.segmenter import load_segmenter
from deploy.speed import print_speed
from segdata.inputs import unquoted

DEFAULT_STUDENT = Path(__file__).resolve().parent / "checkpoints" / "animals" / "student.pth"


def ask(predict: Callable[[str], object]) -> None:
    """Ask for inputs on the terminal, one a line, until an empty line or the end of the input."""
    print("a picture, folder, glob, video, URL or camera:N; an empty line ends")
    while True:
        try:
            text = unquoted(input("> ").strip())
        except EOFError:
            return
        if not text:
            return
        try:
            predict(text)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="picture, folder, glob, video, URL or camera:N")
    parser.add_argument("--checkpoint", type=Path, metavar="PATH",
                        help=".pth or exported file; default: the student in checkpoints/animals")  # fmt: skip
    parser.add_argument("--save", nargs="+", choices=KINDS, default=["mask", "overlay"], help="(mask overlay)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR",
                        help="default: predictions/ beside the checkpoint; with --teacher labels_NAME/")  # fmt: skip
    parser.add_argument("--tile", type=int, default=0, metavar="PIXELS",
                        help="cut pictures, of any size, into overlapping squares of this side, and blend")  # fmt: skip
    parser.add_argument("--pages", choices=("all", "first"), default="all", help="of TIFFs and animations (all)")
    parser.add_argument("--no-audio", action="store_true", help="leave out the sound of videos")
    parser.add_argument("--max-frames", type=int, metavar="N", help="of each video or camera")
    parser.add_argument("--fps", nargs="*", type=parse_size, metavar="SIZE", help="measure speed at these sizes (512)")
    add_label_arguments(parser)
    add_device_argument(parser)
    return parser


def main(args: argparse.Namespace) -> int | None:
    check_tile("--tile", args.tile)
    check_label_arguments(args)
    if args.max_frames is not None and args.max_frames < 1:
        raise UserError(f"--max-frames must be at least 1, not {args.max_frames}")
    refuse_networks(args.inputs)
    interactive = not args.inputs and args.fps is None
    if interactive and not sys.stdin.isatty():
        raise UserError("no INPUT: give a picture, a folder, a glob, a video or camera:0")
    kinds = list(dict.fromkeys(args.save))
    options = Options(kinds, args.tile, args.max_frames, args.pages == "all", sound=not args.no_audio)
    if args.teacher:
        predictor: Predictor = make_labeller(args, options)
    else:
        checkpoint = args.checkpoint or DEFAULT_STUDENT
        if args.checkpoint is None:
            print(f"network: {checkpoint} (--checkpoint names another)")
        segmenter = load_segmenter(checkpoint, args.device)
        if segmenter.input_size and args.tile:
            print(f"note: {checkpoint} sees every picture at its working size, {segmenter.input_size} pixels on the "
                  "longer side: --tile has nothing to cut, pictures of any size are read", file=sys.stderr)  # fmt: skip
            options = dataclasses.replace(options, tile=0)
        predictor = Predictor(segmenter, args.output_dir or checkpoint.parent / "predictions", options)
    if args.fps is not None:
        print_speed(predictor.segmenter, args.fps or [(512, 512)])
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
