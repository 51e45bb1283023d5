"""What networks cost, side by side: parameters by part, MACs, file size, latency.

    python count_parameters.py                                   # fcn_resnet50 beside both students
    python count_parameters.py --models deeplabv3_resnet50 compact --size 512 --num-classes 11
    python count_parameters.py --models smp:DeepLabV3Plus/tu-mobilenetv4_conv_small_050 compact
    python count_parameters.py checkpoints/run/best.pth          # a trained network, beside fcn_resnet50

The first column is the one all others are compared with. Auxiliary heads, which work in training
only, are not part of any network here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from basics.errors import UserError, run_cli  # first: Ctrl-C while torch is imported ends quietly

# isort: split
import torch
from torch import nn

from basics.device import add_device_argument, pick_device
from basics.files import expanded
from basics.machine import device_name
from basics.text import text_table
from networks.cost import count_macs, file_megabytes, measure_latencies, parameters_by_part
from networks.sources import short_name
from zoo import build_model, check_name, load_checkpoint_model

DEFAULT_TEACHER = "fcn_resnet50"
DEFAULT_STUDENTS = ["standard", "compact"]


@dataclass(frozen=True)
class Cost:
    """One column of the table; MACs and latency are for one square image."""

    title: str
    parts: dict[str, int]
    macs: int
    megabytes: float
    latency_ms: float

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())


def measure(models: Sequence[tuple[str, nn.Module]], size: int, device: torch.device, repeats: int) -> list[Cost]:
    """All costs of each model with its title, timed in turn; leaves them on ``device`` in eval mode."""
    counts = [(parameters_by_part(model), count_macs(model.eval(), size), file_megabytes(model)) for _, model in models]
    latencies = measure_latencies([model for _, model in models], size, device, repeats=repeats)
    return [Cost(title, *count, ms) for (title, _), count, ms in zip(models, counts, latencies, strict=True)]


def format_table(costs: Sequence[Cost]) -> str:
    """Costs as columns; under them how many times smaller each is than the first."""
    parts = list(dict.fromkeys(part for cost in costs for part in cost.parts))
    rows = [
        [f"  {part}", *(f"{cost.parts[part]:,}" if part in cost.parts else "-" for cost in costs)] for part in parts
    ]
    rows += [
        ["parameters", *(f"{cost.parameters:,}" for cost in costs)],
        ["MACs (G)", *(f"{cost.macs / 1e9:.2f}" for cost in costs)],
        ["file, float32 (MB)", *(f"{cost.megabytes:.1f}" for cost in costs)],
        ["latency (ms)", *(f"{cost.latency_ms:.1f}" for cost in costs)],
    ]
    if len(costs) > 1:
        empty = [""] * len(costs)
        rows += [["", *empty], [f"{costs[0].title} has", *empty]]
        ratios = {"parameters": "parameters", "MACs": "macs", "file": "megabytes", "latency": "latency_ms"}
        for label, attribute in ratios.items():
            first = getattr(costs[0], attribute)
            rows.append([f"  x {label}", "1.0", *(f"{first / getattr(cost, attribute):.1f}" for cost in costs[1:])])
    return text_table(["", *(f"{cost.title:>12}" for cost in costs)], rows)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT", help=".pth files of this project")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME",
                        help=f"models of zoo.py, untrained, as the first columns (default: {DEFAULT_TEACHER}, "
                        "and both students if no checkpoint is given)")  # fmt: skip
    parser.add_argument("--num-classes", type=int, default=21, help="of --models; a checkpoint has its own (21)")
    parser.add_argument("--size", type=int, default=256, help="side of the image in pixels (256)")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs a network; the median counts (30)")
    add_device_argument(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.size < 32 or args.num_classes < 1 or args.repeats < 1:
        raise UserError("--size must be at least 32, --num-classes and --repeats at least 1")
    device = pick_device(args.device)
    names = args.models or [DEFAULT_TEACHER, *(DEFAULT_STUDENTS if not args.checkpoints else [])]
    for name in names:
        check_name(name)
    args.checkpoints = expanded(args.checkpoints)
    # Read before anything is measured, so that a wrong path is known at once.
    trained = [load_checkpoint_model(path) for path in args.checkpoints]
    models: list[tuple[str, nn.Module]] = [(short_name(name), build_model(name, args.num_classes)) for name in names]
    for path, (model, checkpoint) in zip(args.checkpoints, trained, strict=True):
        models.append((f"{path.resolve().parent.name}/{path.stem} ({checkpoint['model']})", model))
    costs = measure(models, args.size, device, args.repeats)
    print(f"One {args.size} x {args.size} image, float32, eval mode, no auxiliary heads.")
    print(f"Latency: median of up to {args.repeats} runs in turn after warm-up, torch {torch.__version__},")
    print(f"on {device_name(args.device)}.\n")
    print(format_table(costs))


if __name__ == "__main__":
    run_cli(main, get_args_parser)
