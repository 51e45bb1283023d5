"""Turn a trained student into a file that runs without this project: ONNX, OpenVINO, LiteRT, a web page, ...

    python export.py checkpoints/RUN/best.pth --output student.onnx
    python export.py checkpoints/RUN/best.pth --output student.onnx --uint8 --argmax   # raw RGB in, classes out
    python export.py checkpoints/RUN/best.pth --format onnx --size 256x256 --opset 13  # for old or simple runtimes
    python export.py checkpoints/RUN/best.pth --format litert --size 256x256
    python export.py checkpoints/RUN/best.pth --format web --output page
    python export.py checkpoints/RUN/best.pth --output student.onnx --int8 student_int8.onnx
    python export.py checkpoints/RUN/best.pth --format all --size 256x256 --output DIR --dataset voc   # a table

ONNX, OpenVINO, torch.export's .pt2 and the web page take any batch, height and width (from 32 pixels on) unless
--size says which; all others take one picture of --size, or of the working size of a student that has one. Class names,
palette, normalisation and working size are inside: predict.py and evaluate.py need nothing else. Before a file gets its
name it is run by its own runtime and compared with the checkpoint; where they differ nothing is written. Then sizes and
speeds are measured, PyTorch, the file and its INT8 form (from quantize.py) in turn. docs/formats.md says which packages
a format needs and how its files are used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from basics.errors import run_cli
from dataset import add_data_arguments
from deploy.arguments import add_form_arguments
from deploy.export_run import ALL, check_arguments, export_all, export_one
from deploy.exporting import parse_size
from deploy.formats import FORMATS, choose_format


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pth file of this project")
    names = ", ".join(FORMATS)
    parser.add_argument("--format", metavar="NAME", help=f"{names} or {ALL} (default: by --output, or onnx)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: beside the checkpoint, under its name")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="one picture of this size, for good "
                        "(default: any; where the format wants one, the student's working size)")  # fmt: skip
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX; default: 18, the oldest that PyTorch writes")
    parser.add_argument("--ir-version", type=int, metavar="N", help="of the ONNX file; default: the one of the opset")
    parser.add_argument("--web-runtime", type=Path, metavar="PATH",
                        help="npm package onnxruntime-web, .tgz or folder (default: fetched by npm)")  # fmt: skip
    add_form_arguments(parser)
    parser.add_argument("--int8", type=Path, metavar="FILE", help="a file of quantize.py, for the table of speeds "
                        "(default: OUTPUT_int8.onnx, if there is one)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each; 0: no table (20)")
    parser.add_argument("--score-images", type=int, default=100, metavar="N",
                        help=f"of the validation split, for the table of --format {ALL} (100)")  # fmt: skip
    add_data_arguments(parser, train=False)
    parser.set_defaults(dataset=None)  # only a table of all formats looks at data, and only if asked to
    return parser


def main(args: argparse.Namespace) -> None:
    if args.format == ALL:
        check_arguments(args, None)
        export_all(args)
        return
    kind = choose_format(args.format, args.output)
    check_arguments(args, kind)
    export_one(args, kind)


if __name__ == "__main__":
    run_cli(main, get_args_parser)
