"""Turn a trained student into a file that runs without this project: ONNX, or torch.export's .pt2.

    python export.py checkpoints/RUN/best.pth --output student.onnx
    python export.py checkpoints/RUN/best.pth --output student.onnx --uint8 --argmax   # raw RGB in, classes out
    python export.py checkpoints/RUN/best.pth --output student.pt2
    python export.py checkpoints/RUN/best.pth --output student.onnx --int8 student_int8.onnx

The file takes any batch, height and width (from 32 pixels on) and carries class names, palette and
normalisation in its metadata: predict.py and evaluate.py need nothing else. Before it gets its name it
is run at five sizes and compared with the checkpoint; where they differ nothing is written. Then sizes
and speeds are measured, PyTorch, ONNX Runtime and its INT8 form (from quantize.py) in turn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from basics.errors import UserError, run_cli
from basics.machine import device_name
from deploy.export_checks import compare, interleaved_ms, require_agreement, smooth_pictures
from deploy.exported import load_exported
from deploy.exporting import Deployed, export_program, write_onnx, write_pt2
from deploy.model_card import ModelCard
from deploy.quantized import GraphModel
from deploy.segmenter import EXPORTED
from networks.base import SegmentationModel
from networks.cost import count_parameters
from zoo import load_checkpoint_model

LEAST_AGREEMENT = 0.999
MOST_DELTA = 1e-3  # of a logit; float32 kernels that add in another order differ by some 1e-5
SPEED_SIZES = (256, 512)


def deploy(model: SegmentationModel, checkpoint: dict, parameters: int, args: argparse.Namespace) -> Deployed:
    """``model`` with the input and output that the command line asks for; an INT8 one says so in its card."""
    card = ModelCard.of_checkpoint(
        checkpoint,
        parameters,
        input="uint8" if args.uint8 else "normalized",
        output="mask" if args.argmax else "logits",
        precision="int8" if isinstance(model, GraphModel) else "fp32",
    )
    return Deployed(model, card)


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse an output file whose kind is unknown before any work is done."""
    if path.suffix not in suffixes:
        raise UserError(f"--output {path}: the name must end in {' or '.join(suffixes)}")


def add_form_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that export.py and quantize.py share."""
    parser.add_argument("--uint8", action="store_true", help="normalisation inside: raw RGB, uint8 (N, 3, H, W), in")
    parser.add_argument("--argmax", action="store_true", help="the most likely class, uint8 (N, H, W), out")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pth file of this project")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="ends in .onnx or .pt2")
    add_form_arguments(parser)
    parser.add_argument("--int8", type=Path, metavar="FILE", help="an .onnx of quantize.py, for the table of speeds "
                        "(default: OUTPUT_int8.onnx, if there is one)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each; 0: no table (20)")
    return parser


def main(args: argparse.Namespace) -> None:
    check_output(args.output, EXPORTED)
    if args.rounds < 0:
        raise UserError(f"--rounds must be at least 0, not {args.rounds}")
    if args.int8 and not args.int8.is_file():
        raise UserError(f"--int8 {args.int8}: no such file")
    model, checkpoint = load_checkpoint_model(args.checkpoint)
    if "qat" in checkpoint:
        raise UserError(f"{args.checkpoint}: trained for INT8 (--qat); quantize.py makes its file")
    deployed = deploy(model, checkpoint, count_parameters(model), args)
    differences = []

    def check(path: Path) -> None:
        differences.extend(compare(deployed, path))
        require_agreement(differences, LEAST_AGREEMENT, MOST_DELTA)

    print(
        f"exporting {args.checkpoint} ({checkpoint['model']}, {len(checkpoint['class_names'])} classes) ...", flush=True
    )
    program = export_program(deployed)
    write = write_onnx if args.output.suffix == ".onnx" else write_pt2
    write(program, deployed.card, args.output, check)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB, agrees with the checkpoint:")
    print("\n".join(map(str, differences)))
    if args.rounds:
        int8 = args.int8 or args.output.with_name(f"{args.output.stem}_int8.onnx")
        files = {"exported": args.output} | ({"INT8": int8} if args.int8 or int8.is_file() else {})
        print("\n" + speed_table(deployed, args.checkpoint, files, args.rounds))
        if len(files) == 1:
            print(f"for a row of INT8: python quantize.py {args.checkpoint} --output {int8}")


def speed_table(deployed: Deployed, checkpoint: Path, files: dict[str, Path], rounds: int) -> str:
    """File sizes, and milliseconds from the file's own input to its own output, all networks run in turn.

    An INT8 file that takes or gives something else is left out, and said to be.
    """
    paths = {"PyTorch eager fp32": checkpoint}
    for title, path in files.items():
        engine = "ONNX Runtime" if path.suffix == ".onnx" else "torch.export"
        paths[f"{engine} {'INT8' if title == 'INT8' else 'fp32'}"] = path
    first, *others = paths
    runs, remarks = {first: torch.inference_mode()(deployed)}, []
    for title in others:
        exported = load_exported(paths[title])
        ours, theirs = ((card.input, card.output) for card in (deployed.card, exported.card))
        if theirs != ours:
            remarks.append(f"left out: {paths.pop(title)} takes {theirs[0]} images and gives {theirs[1]}, not as above")
            continue
        runs[title] = exported.run
    columns = {}
    for size in SPEED_SIZES:
        images = smooth_pictures(1, size, size) if deployed.card.input == "uint8" else torch.randn(1, 3, size, size)
        columns[size] = interleaved_ms({title: lambda run=run, x=images: run(x) for title, run in runs.items()}, rounds)
    width = max(map(len, runs))
    head = "".join(f"  {f'ms at {size}':>9}  {'speed-up':>8}" for size in SPEED_SIZES)
    lines = [f"{'one image, batch 1':{width}}  {'file MB':>7}{head}"]
    for title, path in paths.items():
        cells = "".join(
            f"  {times[title]:9.1f}  {f'{times[first] / times[title]:.2f} x':>8}" for times in columns.values()
        )
        lines.append(f"{title:{width}}  {path.stat().st_size / 1e6:7.2f}{cells}")
    lines.append(f"median of {rounds} runs in turn, {torch.get_num_threads()} threads, on {device_name('cpu')}")
    return "\n".join(lines + remarks)


if __name__ == "__main__":
    run_cli(main, get_args_parser)
