"""Turn a trained student into a file that runs without this project: ONNX, OpenVINO, LiteRT, a web page, ...

    python export.py checkpoints/RUN/best.pth --output student.onnx
    python export.py checkpoints/RUN/best.pth --output student.onnx --uint8 --argmax   # raw RGB in, classes out
    python export.py checkpoints/RUN/best.pth --format onnx --size 256x256 --opset 13  # for old or simple runtimes
    python export.py checkpoints/RUN/best.pth --format litert --size 256x256
    python export.py checkpoints/RUN/best.pth --format web --output page
    python export.py checkpoints/RUN/best.pth --output student.onnx --int8 student_int8.onnx

ONNX, OpenVINO, torch.export's .pt2 and the web page take any batch, height and width (from 32 pixels on) unless
--size says which; all others take one picture of --size. Class names, palette and normalisation are inside: predict.py
and evaluate.py need nothing else. Before a file gets its name it is run by its own runtime and compared with the
checkpoint; where they differ nothing is written. Then sizes and speeds are measured, PyTorch, the file and its INT8
form (from quantize.py) in turn. docs/formats.md says which packages a format needs and how its files are used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from basics.errors import UserError, run_cli
from deploy.arguments import add_form_arguments, make_deployed
from deploy.export_checks import Difference, compare, require_agreement
from deploy.exporting import LARGEST_SIZE, LEAST_SIZE, ExportOptions, Size, export_program
from deploy.formats import FORMATS, Format, choose_format, stored_bytes, write_exported
from deploy.onnx_format import check_versions
from deploy.speed import file_table
from zoo import load_checkpoint_model

LEAST_AGREEMENT = 0.999
MOST_DELTA = 1e-3  # of a logit; float32 kernels that add in another order differ by some 1e-5


def parse_size(text: str) -> Size:
    """``256`` or ``HEIGHTxWIDTH`` -> (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and LEAST_SIZE <= int(side) <= LARGEST_SIZE for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give HEIGHTxWIDTH in pixels, from {LEAST_SIZE} to {LARGEST_SIZE} a side, such as 256x384"
        )
    return int(sides[0]), int(sides[-1])


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pth file of this project")
    parser.add_argument(
        "--format", metavar="NAME", help=f"{', '.join(FORMATS)} (default: by --output's ending, or onnx)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: beside the checkpoint, under its name")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="one picture of this size, for good")
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX; default: 18, the oldest that PyTorch writes")
    parser.add_argument("--ir-version", type=int, metavar="N", help="of the ONNX file; default: the one of the opset")
    parser.add_argument("--web-runtime", type=Path, metavar="PATH",
                        help="npm package onnxruntime-web, .tgz or folder (default: fetched by npm)")  # fmt: skip
    add_form_arguments(parser)
    parser.add_argument("--int8", type=Path, metavar="FILE", help="an .onnx of quantize.py, for the table of speeds "
                        "(default: OUTPUT_int8.onnx, if there is one)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each; 0: no table (20)")
    return parser


def check_arguments(args: argparse.Namespace, kind: Format) -> None:
    """Refuse, before any work is done, what cannot go together."""
    if args.rounds < 0:
        raise UserError(f"--rounds must be at least 0, not {args.rounds}")
    if args.int8 and not args.int8.is_file():
        raise UserError(f"--int8 {args.int8}: no such file")
    if args.int8:
        choose_format(None, args.int8, "--int8")
    if kind.one_size and args.size is None:
        raise UserError(f"a file for {kind.engine} takes pictures of one size: say which with --size, such as 256x256")
    check_versions(args.opset, args.ir_version)


def main(args: argparse.Namespace) -> None:
    kind = choose_format(args.format, args.output)
    check_arguments(args, kind)
    output = args.output or kind.beside(args.checkpoint)
    model, checkpoint = load_checkpoint_model(args.checkpoint)
    if "qat" in checkpoint:
        raise UserError(f"{args.checkpoint}: trained for INT8 (--qat); quantize.py makes its file")
    args.uint8, args.argmax = args.uint8 or kind.whole, args.argmax or kind.whole
    deployed = make_deployed(model, checkpoint, args)
    options = ExportOptions(args.size, args.opset, args.ir_version, args.web_runtime)
    differences: list[Difference] = []

    def check(path: Path) -> None:
        if kind.runs_here:
            differences.extend(compare(deployed, path))
            require_agreement(differences, LEAST_AGREEMENT, MOST_DELTA)

    classes = len(checkpoint["class_names"])
    print(f"exporting {args.checkpoint} ({checkpoint['model']}, {classes} classes) for {kind.engine} ...", flush=True)
    write_exported(export_program(deployed, args.size), deployed.card, output, check, kind, options)
    print(f"{output}: {stored_bytes(output) / 1e6:.2f} MB, ", end="")
    if not kind.runs_here:
        print(f"converted but not compared with the checkpoint: {kind.engine} does not run on this system")
        return
    print("agrees with the checkpoint:", *map(str, differences), sep="\n")
    if args.rounds:
        int8 = args.int8 or output.with_name(f"{output.stem}_int8.onnx")
        files = {"exported": output} | ({"INT8": int8} if args.int8 or int8.is_file() else {})
        print("\n" + file_table(deployed, args.checkpoint, files, args.rounds))
        if len(files) == 1:
            print(f"for a row of INT8: python quantize.py {args.checkpoint} --output {int8}")


if __name__ == "__main__":
    run_cli(main, get_args_parser)
