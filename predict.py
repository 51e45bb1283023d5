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
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from basics.device import add_device_argument, synchronize
from basics.errors import UserError, run_cli
from basics.files import replacing
from basics.memory import explain_memory
from deploy.segmenter import LEAST_SIZE, Segmenter, load_segmenter
from segdata.drawing import PanelRow, background_classes, colorize, overlay, panel
from segdata.inputs import Source, find_sources
from segdata.pictures import read_picture, write_png
from segdata.reading import DataError
from segdata.video import Frame, VideoReader, VideoWriter, open_writer

KINDS = ("mask", "overlay", "panel")
DEFAULT_STUDENT = Path(__file__).resolve().parent / "checkpoints" / "animals" / "student.pth"
WARMUP_RUNS, TIMED_RUNS = 5, 50


@dataclass
class Tally:
    """What became of the inputs."""

    pictures: int = 0
    frames: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Report a file that is skipped, without tearing the progress bar."""
        message = " ".join(str(error).split())
        self.failures.append(message)
        tqdm.write(f"skipped: {message}", file=sys.stderr)

    def summary(self, folder: Path) -> str:
        """One line: how much, how fast, where."""
        counts = [
            f"{number} {what}"
            for number, what in ((self.pictures, "pictures"), (self.frames, "video frames"))
            if number
        ]
        done = self.pictures + self.frames
        line = f"{' and '.join(counts) or 'nothing'} in {self.seconds:.1f} s"
        if done:
            line += f" ({done / self.seconds:.1f} images/s), written to {folder}"
        return line + (f"; {len(self.failures)} skipped" if self.failures else "")


class Predictor:
    """Runs one network over sources and writes what was asked for."""

    def __init__(
        self, segmenter: Segmenter, kinds: list[str], folder: Path, tile: int = 0, max_frames: int | None = None
    ):
        self.segmenter, self.kinds, self.folder = segmenter, kinds, folder
        self.tile, self.max_frames = tile, max_frames
        self.clear = background_classes(segmenter.class_names)
        self.taken: dict[str, str] = {}  # names of results, so that what is asked for later overwrites nothing

    def run(self, sources: list[Source], tally: Tally) -> None:
        """All ``sources``, with a progress bar; adds to ``tally``."""
        start = time.monotonic()
        bar = tqdm(sources, unit="img", desc="predict", disable=len(sources) < 2 or None, leave=False)
        for source in bar:
            try:
                with explain_memory("the size of the picture, or use --tile 512"):
                    if source.is_video:
                        tally.frames += self.video(source)
                    else:
                        self.picture(source)
                        tally.pictures += 1
            except DataError as error:
                tally.fail(error)
        tally.seconds += time.monotonic() - start

    def picture(self, source: Source) -> None:
        """Read, segment and write one picture."""
        image = read_picture(source.path)
        mask = self.segmenter.mask(image, self.tile).numpy()
        pixels = image.permute(1, 2, 0).numpy()
        for kind in self.kinds:
            path = self._target(source, kind, ".png")
            if kind == "mask":
                write_png(mask, path, self.segmenter.palette)
            elif kind == "overlay":
                write_png(self._overlay(pixels, mask), path)
            else:
                row = PanelRow(source.name.as_posix(), pixels, [mask])
                names, palette = self.segmenter.class_names, self.segmenter.palette
                with replacing(path) as temporary:
                    panel([row], ["Input", "Prediction"], names, palette, temporary)

    def _target(self, source: Source, kind: str, suffix: str) -> Path:
        """Where a result goes; a `UserError` if that is where its source lies."""
        path = self.folder / kind / f"{source.name}{suffix}"
        if path.resolve() == Path(source.path).resolve():
            raise UserError(f"{path} would be overwritten by its own prediction: give another --output-dir")
        return path

    def video(self, source: Source) -> int:
        """Segment a video or a camera frame by frame; returns how many there were."""
        with VideoReader(source.path) as reader, contextlib.ExitStack() as stack:
            paths = {kind: self._target(source, kind, ".mp4") for kind in self.kinds}
            writers = {kind: stack.enter_context(open_writer(path, reader)) for kind, path in paths.items()}
            limit = self.max_frames
            total = min(filter(None, (reader.frames, limit)), default=None)
            bar = tqdm(islice(reader, limit), total=total, unit="img", desc=source.name.name, leave=False, disable=None)
            frames = 0
            # The end of a camera is Ctrl-C, and what it showed until then is kept.
            with contextlib.suppress(KeyboardInterrupt) if source.is_camera else contextlib.nullcontext():
                for frame in bar:
                    self._write_frame(frame, writers)
                    frames += 1
            if not frames:
                raise DataError(f"{source.path}: not a single frame in this video")
        return frames

    def _write_frame(self, frame: Frame, writers: dict[str, VideoWriter]) -> None:
        image = torch.from_numpy(frame.pixels).permute(2, 0, 1)
        mask = self.segmenter.mask(image, self.tile).numpy()
        for kind, writer in writers.items():
            if kind == "overlay":
                pixels = self._overlay(frame.pixels, mask)
            else:
                pixels = colorize(mask, self.segmenter.palette)
                if kind == "panel":
                    pixels = np.concatenate([frame.pixels, pixels], axis=1)
            writer.write(Frame(pixels, frame.time))

    def _overlay(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return overlay(pixels, mask, self.segmenter.palette, clear=self.clear)


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


# -- speed -----------------------------------------------------------------------------------------


def latencies(segmenter: Segmenter, height: int, width: int, runs: int = TIMED_RUNS) -> list[float]:
    """Seconds from a picture in memory to its mask, after a warm-up, the device's queue waited for."""
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    seconds = []
    for _ in range(WARMUP_RUNS + runs):
        synchronize(segmenter.device)
        start = time.perf_counter()
        segmenter.mask(image)
        synchronize(segmenter.device)
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP_RUNS:]


def parse_size(text: str) -> tuple[int, int]:
    """``512`` or ``WIDTHxHEIGHT`` -> (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) >= LEAST_SIZE for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: give a side or WIDTHxHEIGHT in pixels, at least {LEAST_SIZE}")
    return int(sides[-1]), int(sides[0])


def speed_table(segmenter: Segmenter, sizes: list[tuple[int, int]]) -> str:
    """Median and 95th percentile latency and frames a second, one size a line."""
    lines = [f"{'size':>11}  {'median ms':>9}  {'p95 ms':>8}  {'frames/s':>8}"]
    for height, width in sizes:
        seconds = sorted(latencies(segmenter, height, width))
        median, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
        lines.append(f"{f'{width}x{height}':>11}  {1000 * median:9.1f}  {1000 * p95:8.1f}  {1 / median:8.1f}")
    return "\n".join(lines)


# -- the command -----------------------------------------------------------------------------------


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
    if args.tile and args.tile < 2 * LEAST_SIZE:
        raise UserError(f"--tile must be at least {2 * LEAST_SIZE}, not {args.tile}")
    if args.max_frames is not None and args.max_frames < 1:
        raise UserError(f"--max-frames must be at least 1, not {args.max_frames}")
    interactive = not args.inputs and args.fps is None
    if interactive and not sys.stdin.isatty():
        raise UserError("no INPUT: give a picture, a folder, a glob, a video or camera:0")
    segmenter = load_segmenter(args.checkpoint, args.device)
    if args.fps is not None:
        from basics.machine import device_name

        where = device_name(segmenter.device.type)
        print(
            f"{segmenter.name}, picture in memory -> mask, one at a time, {TIMED_RUNS} runs after warm-up, on {where}"
        )
        print(speed_table(segmenter, args.fps or [(512, 512)]))
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
    tally = Tally()
    sources, missing = find_sources(inputs, skip=[predictor.folder / kind for kind in KINDS], taken=predictor.taken)
    for message in missing:
        tally.fail(DataError(message))
    predictor.run(sources, tally)
    print(tally.summary(predictor.folder))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    run_cli(main, get_args_parser)
