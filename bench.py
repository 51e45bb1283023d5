"""Measure what distillation costs here, against plain training and against the usual way of doing it.

    python bench.py                                     # this machine, pictures made up on the spot, about 15 minutes
    python bench.py --device cuda --only loops          # images/s on a GPU: plain, live, cached; share of waiting
    python bench.py --dataset voc --data-dir data       # the same with real pictures
    python bench.py --json bench.json --quick           # everything once, tiny: does it run?

All variants run in one process, interleaved round by round; ratios are medians of ratios within a round. Weights are
random: they cost the same. The pictures without --dataset have VOC's size and a photograph's detail.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from basics.device import add_device_argument, pick_device
from basics.errors import UserError, run_cli
from basics.files import write_text
from benchmarks.loading import bench_loading
from benchmarks.loops import bench_loops, place_of
from benchmarks.pictures import first_images, make_pictures
from benchmarks.report import PARTS, describe_machine, format_rates, format_ratios, format_steps
from benchmarks.steps import TEACHER, bench_steps
from benchmarks.validation import bench_validation
from dataset import SegmentationDataset, build_dataset


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", metavar="NAME", help="measure on this data set's train split (default: made up)")
    parser.add_argument("--data-dir", default="data", type=Path, metavar="DIR", help="where it lies (default: data)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="its classes, as in train_kd.py")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--crop-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="rounds with a live teacher; the others run 5 times more")
    add_device_argument(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds: the numbers mean nothing")
    return parser


def choose_pictures(args: argparse.Namespace, folder: Path) -> SegmentationDataset:
    """The train split of --dataset, or pictures made up in ``folder``; at most as many as are looked at."""
    count = 8 if args.quick else 48
    if args.dataset:
        dataset = build_dataset(args.dataset, args.data_dir, "train", classes=args.classes)
        dataset.require_masks()
        return first_images(dataset, count)
    size = (94, 125) if args.quick else (375, 500)
    make_pictures(folder / "pictures", count, size)
    return build_dataset("folder", folder / "pictures", "train")


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts asked for, as one dict of plain values."""
    device = pick_device(args.device)
    dataset = choose_pictures(args, folder)
    rounds, crop_size, batch_size = (2, 64, 2) if args.quick else (args.rounds, args.crop_size, args.batch_size)
    settings = {
        "pictures": f"{dataset.name}, {len(dataset)} images",
        "crop_size": crop_size,
        "batch_size": batch_size,
        "rounds": rounds,
        "student": "standard",
        "teacher": TEACHER,
        "quick": args.quick,
    }
    results: dict[str, Any] = {"machine": describe_machine(device), "settings": settings}
    if "loader" in args.only:
        results["loader"] = bench_loading(dataset, folder / "decoded", crop_size=crop_size, rounds=30 * rounds)
        print("\n" + format_rates("loading, one process and one thread", results["loader"]))
    if "validation" in args.only:
        results["validation"] = bench_validation(first_images(dataset, 16), device, rounds=10 * rounds)
        print("\n" + format_rates("validation at native size", results["validation"]))
    if "steps" in args.only:
        results["steps"] = bench_steps(
            first_images(dataset, 2 * batch_size),
            folder / "cache",
            device,
            crop_size=crop_size,
            batch_size=batch_size,
            rounds=rounds,
            cheap_rounds=5 * rounds,
        )
        print("\n" + format_steps(results["steps"]))
    if "loops" in args.only:
        length = {"steps": 10 if device.type == "cpu" else 100, "rounds": 3}
        if args.quick:
            length = {"steps": 2, "rounds": 1}
        size = {"crop_size": crop_size, "batch_size": batch_size}
        results["loops"] = bench_loops(dataset, place_of(args, folder), folder, device, TEACHER, **size, **length)
        print("\n" + format_rates("whole training loops", results["loops"]))
    return results


def main(args: argparse.Namespace) -> None:
    if args.rounds < 1 or args.batch_size < 1 or args.crop_size < 32:
        raise UserError("--rounds and --batch-size must be at least 1, --crop-size at least 32")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        results = measure(args, Path(folder))
    print("\n" + format_ratios(results))
    print("\n" + ", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    if args.json:
        write_text(args.json, json.dumps(results, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    run_cli(main, get_args_parser)
