"""What bench.py says: the machine, the figures by part, each ratio beside its goal."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
import torchvision

from basics.machine import available_cores, cpu_name
from basics.text import text_table

# What a machine with 2 CPU cores, crops of 256 pixels and batches of 8 must reach: at most, or at least.
GOALS = {
    "cached logits / plain": "<= 1.1",
    "cached logits + features / plain": "<= 1.2",
    "naive / cached logits": ">= 12",
    "naive / cached logits + features": ">= 12",
    "naive / lean live": ">= 1.4",
    "loader / naive": ">= 2",
    "loader + preparation here / naive": "-",  # the device's part of the work counted in, on the CPU
    "loader with decoded cache / naive": ">= 4",
    "validation / naive": ">= 1.2",
    "loop, live / plain": "-",
    "loop, cached / plain": "-",
    "torchvision's loop / ours, plain": ">= 1",
    "torchvision's loop / ours, live": ">= 1",
    "torchvision's loop / ours, cached": "-",
    "Hugging Face's Trainer / ours, plain": ">= 1",  # left out where it is not installed
    "Hugging Face's Trainer / ours, live": ">= 1",
    "Hugging Face's Trainer / ours, cached": "-",
}
PARTS = ("steps", "loader", "validation", "loops")
WIDTH = 40  # of the first column, in all tables


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The machine and the libraries, by name."""
    return {
        "processor": cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def format_rates(title: str, part: Mapping[str, Any]) -> str:
    """Images a second by variant, from the results of a part."""
    rows = [[f"  {name}", f"{rate:.1f}"] for name, rate in part["images_per_s"].items()]
    lines = [text_table([title.ljust(WIDTH), "images/s"], rows)]
    if "shares" in part:
        lines.append(f"  ours: {_shares(part['shares'])}")
    if "same_as_torchmetrics" in part:
        same = "identical to" if part["same_as_torchmetrics"] else "DIFFERENT FROM"
        batched = "identical" if part["batched_is_single"] else "DIFFERENT"
        lines.append(f"  scores: {same} torchmetrics', batched and single {batched}")
    if "waiting" in part:
        lines.append(f"  {part['workers']} loader processes; ours waits for pictures: {_shares(part['waiting'])}")
    if part.get("left_out"):
        lines.append(f"  left out: {part['left_out']}")
    return "\n".join(lines)


def format_steps(part: Mapping[str, Any]) -> str:
    """Seconds a step by variant, below each what they are spent on; from the results of `bench_steps`."""
    seconds = part["steps"]
    rows = [[f"  {name}", f"{times['median_s']:.3f}"] for name, times in seconds.items()]
    title, *lines = text_table(["training step".ljust(WIDTH), " seconds"], rows).splitlines()
    shares = {name: f"\n    {_shares(parts)}" for name, parts in part["shares"].items()}
    return "\n".join([title, *(line + shares.get(name, "") for name, line in zip(seconds, lines, strict=True))])


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def format_ratios(results: Mapping[str, Any]) -> str:
    """Every ratio beside its goal."""
    ratios = {name: value for part in PARTS for name, value in results.get(part, {}).get("ratios", {}).items()}
    rows = [[f"  {name}", f"{value:8.2f}", GOALS[name]] for name, value in ratios.items()]
    return text_table(["ratio".ljust(WIDTH), "measured", "goal (2 cores, crop 256, batch 8)"], rows, left=3)
