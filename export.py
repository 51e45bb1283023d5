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

from basics.errors import UserError, run_cli
from deploy.arguments import add_form_arguments, check_output, make_deployed
from deploy.export_checks import Difference, compare, require_agreement
from deploy.exporting import export_program
from deploy.formats import FORMATS, write_exported
from deploy.speed import file_table
from zoo import load_checkpoint_model

LEAST_AGREEMENT = 0.999
MOST_DELTA = 1e-3  # of a logit; float32 kernels that add in another order differ by some 1e-5


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
    check_output(args.output, tuple(FORMATS))
    if args.rounds < 0:
        raise UserError(f"--rounds must be at least 0, not {args.rounds}")
    if args.int8 and not args.int8.is_file():
        raise UserError(f"--int8 {args.int8}: no such file")
    if args.int8 and args.int8.suffix not in FORMATS:
        raise UserError(f"--int8 {args.int8}: the name must end in {' or '.join(FORMATS)}")
    model, checkpoint = load_checkpoint_model(args.checkpoint)
    if "qat" in checkpoint:
        raise UserError(f"{args.checkpoint}: trained for INT8 (--qat); quantize.py makes its file")
    deployed = make_deployed(model, checkpoint, args)
    differences: list[Difference] = []

    def check(path: Path) -> None:
        differences.extend(compare(deployed, path))
        require_agreement(differences, LEAST_AGREEMENT, MOST_DELTA)

    print(
        f"exporting {args.checkpoint} ({checkpoint['model']}, {len(checkpoint['class_names'])} classes) ...", flush=True
    )
    write_exported(export_program(deployed), deployed.card, args.output, check)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB, agrees with the checkpoint:")
    print("\n".join(map(str, differences)))
    if args.rounds:
        int8 = args.int8 or args.output.with_name(f"{args.output.stem}_int8.onnx")
        files = {"exported": args.output} | ({"INT8": int8} if args.int8 or int8.is_file() else {})
        print("\n" + file_table(deployed, args.checkpoint, files, args.rounds))
        if len(files) == 1:
            print(f"for a row of INT8: python quantize.py {args.checkpoint} --output {int8}")


if __name__ == "__main__":
    run_cli(main, get_args_parser)
