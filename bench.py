"""Measure what distillation costs here, against plain training and against the usual way of doing it.

    python bench.py                                     # this machine, pictures made up on the spot, 5 to 10 minutes
    python bench.py --dataset voc --data-dir data       # the same with real pictures
    python bench.py --json bench.json --quick           # everything once, tiny: does it run?

All variants run in one process, interleaved round by round; ratios are medians of ratios within a round. Weights are
random: they cost the same. The pictures without --dataset have VOC's size and a photograph's detail.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision

from basics.device import add_device_argument, pick_device
from basics.errors import UserError, run_cli
from basics.files import write_text
from basics.machine import cpu_name
from benchmarks.loading import bench_loading
from benchmarks.pictures import make_pictures
from benchmarks.steps import TEACHER, bench_steps
from benchmarks.validation import bench_validation
from dataset import SegmentationDataset, build_dataset

# What a machine with 2 CPU cores, crops of 256 pixels and batches of 8 must reach: at most, or at least.
GOALS = {
    "cached logits / plain": ("<=", 1.10),
    "cached logits + features / plain": ("<=", 1.20),
    "naive / cached logits": (">=", 12.0),
    "naive / cached logits + features": (">=", 12.0),
    "naive / lean live": (">=", 1.4),
    "loader / naive": (">=", 2.0),
    "loader + preparation here / naive": None,  # the device's part of the work counted in, on the CPU
    "loader with decoded cache / naive": (">=", 4.0),
    "validation / naive": (">=", 1.2),
}
PARTS = ("steps", "loader", "validation")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", metavar="NAME", help="measure on this data set's train split (default: made up)")
    parser.add_argument("--data-dir", default="data", type=Path, metavar="DIR", help="where it lies (default: data)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--crop-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="rounds with a live teacher; the others run 5 times more")
    add_device_argument(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds: the numbers mean nothing")
    return parser


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The machine and the libraries, by name."""
    return {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def choose_pictures(args: argparse.Namespace, folder: Path) -> SegmentationDataset:
    """The train split of --dataset, or pictures made up in ``folder``; at most as many as are looked at."""
    count = 8 if args.quick else 48
    if args.dataset:
        dataset = build_dataset(args.dataset, args.data_dir, "train")
        dataset.require_masks()
        return first_images(dataset, count)
    size = (94, 125) if args.quick else (375, 500)
    make_pictures(folder / "pictures", count, size)
    return build_dataset("folder", folder / "pictures", "train")


def first_images(dataset: SegmentationDataset, count: int) -> SegmentationDataset:
    """The same split, its first ``count`` images alone."""
    part, files = copy.copy(dataset), copy.copy(dataset.files)
    files.ids, files.images, files.masks = files.ids[:count], files.images[:count], files.masks[:count]
    part.files = files
    return part


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
    results = {"machine": describe_machine(device), "settings": settings}
    if "loader" in args.only:
        results["loader"] = bench_loading(dataset, folder / "decoded", crop_size=crop_size, rounds=30 * rounds)
        print_rates("loading, one process and one thread", results["loader"])
    if "validation" in args.only:
        results["validation"] = bench_validation(first_images(dataset, 16), device, rounds=10 * rounds)
        print_rates("validation at native size", results["validation"])
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
        print_steps(results["steps"])
    return results


def print_rates(title: str, part: dict[str, Any]) -> None:
    print(f"\n{title:<40} {'images/s':>9}")
    for name, rate in part["images_per_s"].items():
        print(f"  {name:<38} {rate:9.1f}")
    if "shares" in part:
        print(f"  ours: {_shares(part['shares'])}")
    if "same_as_torchmetrics" in part:
        same, batched = part["same_as_torchmetrics"], part["batched_is_single"]
        print(f"  scores: {'identical to' if same else 'DIFFERENT FROM'} torchmetrics', ", end="")
        print(f"batched and single {'identical' if batched else 'DIFFERENT'}")


def print_steps(part: dict[str, Any]) -> None:
    print(f"\n{'training step':<40} {'seconds':>9}")
    for name, times in part["steps"].items():
        print(f"  {name:<38} {times['median_s']:9.3f}")
        if name in part["shares"]:
            print(f"    {_shares(part['shares'][name])}")


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def print_ratios(results: dict[str, Any]) -> None:
    """Every ratio beside its goal."""
    ratios = {name: value for part in PARTS for name, value in results.get(part, {}).get("ratios", {}).items()}
    print(f"\n{'ratio':<40} {'measured':>9}  goal (2 cores, crop 256, batch 8)")
    for name, value in ratios.items():
        goal = "{} {:g}".format(*GOALS[name]) if GOALS[name] else "-"
        print(f"  {name:<38} {value:9.2f}  {goal}")


def main(args: argparse.Namespace) -> None:
    if args.rounds < 1 or args.batch_size < 1 or args.crop_size < 32:
        raise UserError("--rounds and --batch-size must be at least 1, --crop-size at least 32")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        results = measure(args, Path(folder))
    machine = results["machine"]
    print_ratios(results)
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if args.json:
        write_text(args.json, json.dumps(results, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    run_cli(main, get_args_parser)
