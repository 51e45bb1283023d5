"""How fast trained networks are, as tables: from picture to mask at several sizes, and file beside file."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from basics.machine import device_name
from basics.text import text_table
from basics.timing import interleave
from deploy.export_checks import smooth_pictures
from deploy.exporting import Deployed, Size
from deploy.formats import load_exported, require_format, stored_bytes
from deploy.segmenter import Segmenter

TIMED_RUNS, WARMUP_RUNS = 50, 5  # of a picture
WARMUP_ROUNDS = 3  # of files in turn
AHEAD = 3  # untimed runs of a file before each timed one: a device, too, looks at one picture after the other
FILE_SIZES = ((256, 256), (512, 512))  # height, width of the pictures that files are timed with


def latencies(segmenter: Segmenter, height: int, width: int, runs: int = TIMED_RUNS) -> list[float]:
    """Seconds from a picture in memory to its mask, run by run, after a warm-up, the device's queue waited for."""
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return interleave({"": lambda _: segmenter.mask(image)}, runs, WARMUP_RUNS, segmenter.device).seconds[""]


def size_table(segmenter: Segmenter, sizes: Sequence[tuple[int, int]]) -> str:
    """Median and 95th percentile latency and frames a second, one size (height, width) a line."""
    rows = []
    for height, width in sizes:
        seconds = latencies(segmenter, height, width)
        median, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
        rows.append([f"{height}x{width}", f"{1000 * median:.1f}", f"{1000 * p95:.1f}", f"{1 / median:.1f}"])
    return text_table([f"{'size':>11}", "median ms", f"{'p95 ms':>8}", "frames/s"], rows, left=0)


def print_speed(segmenter: Segmenter, sizes: Sequence[tuple[int, int]]) -> None:
    """`size_table`, and what it was measured with."""
    where = device_name(segmenter.device.type)
    print(f"{segmenter.name}, picture in memory -> mask, one at a time, {TIMED_RUNS} runs after warm-up, on {where}")
    print(size_table(segmenter, sizes))


def file_table(
    deployed: Deployed,
    checkpoint: Path,
    files: Mapping[str, Path],
    rounds: int,
    sizes: Sequence[Size] = FILE_SIZES,
) -> str:
    """File sizes, and milliseconds from the file's own input to its own output, all networks run in turn.

    An INT8 file of another network or form is left out, and said to be. A line says where INT8 is no faster.

    Args:
        deployed: the network as PyTorch runs it, in the form that the files have; speed-ups refer to it.
        checkpoint: the file it came from.
        files: exported files; the one called ``INT8`` is.
        rounds: timed runs of each.
        sizes: height and width of the pictures.
    """
    paths = {"PyTorch eager fp32": checkpoint}
    for title, path in files.items():
        paths[f"{require_format(path).timed_as} {'INT8' if title == 'INT8' else 'fp32'}"] = path
    first, *others = paths
    runs: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {first: deployed}
    remarks = []
    for title in others:
        exported = load_exported(paths[title])
        if title.endswith(" INT8") and not exported.card.is_int8_of(deployed.card):
            remarks.append(f"left out: {paths.pop(title)} is not the INT8 form of {checkpoint}: make it by quantize.py")
            continue
        runs[title] = exported.run
    columns = [milliseconds(runs, size, deployed.card.input == "uint8", rounds) for size in sizes]
    titles = ["one image, batch 1", "file MB"]
    for height, width in sizes:
        at = str(width) if height == width else f"{height}x{width}"
        titles += [f"{f'ms at {at}':>9}", "speed-up"]
    rows = []
    for title, path in paths.items():
        row = [title, f"{stored_bytes(path) / 1e6:.2f}"]
        for times in columns:
            row += [f"{times[title]:.1f}", f"{times[first] / times[title]:.2f} x"]
        rows.append(row)
    machine = f"median of {rounds} runs in turn, {torch.get_num_threads()} threads, on {device_name('cpu')}"
    return "\n".join([text_table(titles, rows), machine, *size_alone(columns), *remarks])


def size_alone(columns: Sequence[Mapping[str, float]]) -> list[str]:
    """A line for each runtime whose INT8 measures no faster than its own float32.

    Args:
        columns: milliseconds of each run, by ``RUNTIME fp32`` and ``RUNTIME INT8``; one mapping a picture's size.
    """
    lines = []
    for title in columns[0]:
        fp32 = f"{title.removesuffix('INT8')}fp32"
        if not title.endswith(" INT8") or fp32 not in columns[0]:
            continue
        ratios = [times[title] / times[fp32] for times in columns]
        if max(ratios) >= 1:
            where = "on this machine" if min(ratios) >= 1 else "at some of these sizes"
            shares = " and ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"{title} is for size alone {where}: it takes {shares} x the time of fp32")
    return lines


@torch.inference_mode()
def milliseconds(
    runs: Mapping[str, Callable[[torch.Tensor], torch.Tensor]], size: Size, uint8: bool, rounds: int
) -> dict[str, float]:
    """Median time of each for the same picture of ``size``, in turn."""
    images = smooth_pictures(1, *size) if uint8 else torch.randn(1, 3, *size)
    # `run=run`: a lambda sees a loop's variable as it is when called.
    variants = {title: lambda _, run=run: run(images) for title, run in runs.items()}
    timings = interleave(variants, rounds, WARMUP_ROUNDS, torch.device("cpu"), ahead=AHEAD)
    return {title: 1000 * timings.median(title) for title in runs}
