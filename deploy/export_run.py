"""What export.py does: one file, or every format that can be had here, and a table."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from basics.errors import UserError
from dataset import build_split
from deploy.arguments import make_deployed
from deploy.export_checks import Difference, compare, require_agreement
from deploy.exporting import LARGEST_SIZE, LEAST_SIZE, Deployed, ExportOptions, Size, export_program
from deploy.format_table import Made, format_table
from deploy.formats import FORMATS, Format, choose_format, stored_bytes, write_exported
from deploy.onnx_format import check_versions
from deploy.speed import FILE_SIZES, file_table
from networks.base import SegmentationModel
from networks.model_file import ModelFile
from scoring.protocol import check_classes
from zoo import load_checkpoint_model

ALL = "all"
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


def check_arguments(args: argparse.Namespace, kind: Format | None) -> None:
    """Refuse, before any work is done, what cannot go together.

    Args:
        kind: the format; None for all of them.
    """
    if args.rounds < 0:
        raise UserError(f"--rounds must be at least 0, not {args.rounds}")
    if args.int8 and not args.int8.is_file():
        raise UserError(f"--int8 {args.int8}: no such file")
    if args.int8:
        choose_format(None, args.int8, "--int8")
    if kind is None and args.output is None:
        raise UserError(f"--format {ALL} needs --output DIR, the folder for the files")
    if kind is not None and args.dataset:
        raise UserError(f"--dataset is for --format {ALL}, which scores what it makes; evaluate.py scores a file")
    if kind is not None and kind.one_size and args.size is None:
        raise UserError(f"a file for {kind.engine} takes pictures of one size: say which with --size, such as 256x256")
    check_versions(args.opset, args.ir_version)


def load_network(args: argparse.Namespace) -> tuple[SegmentationModel, ModelFile]:
    """The network of the checkpoint and what its file says; a `UserError` where quantize.py is the one to export it."""
    model, checkpoint = load_checkpoint_model(args.checkpoint)
    if "qat" in checkpoint:
        raise UserError(f"{args.checkpoint}: trained for INT8 (--qat); quantize.py makes its file")
    return model, checkpoint


def write_checked(deployed: Deployed, kind: Format, output: Path, options: ExportOptions) -> list[Difference]:
    """Write one file and say how it compares with the checkpoint; none where its runtime is not to be had here.

    Raises:
        UserError: it cannot be written, or differs from the checkpoint.
    """
    differences: list[Difference] = []

    def check(path: Path) -> None:
        if kind.runs_here:
            differences.extend(compare(deployed, path))
            require_agreement(differences, LEAST_AGREEMENT, MOST_DELTA)

    write_exported(export_program(deployed, options.size), deployed.card, output, check, kind, options)
    print(f"{output}: {stored_bytes(output) / 1e6:.2f} MB, ", end="")
    if kind.runs_here:
        print("agrees with the checkpoint:", *map(str, differences), sep="\n", flush=True)
    else:
        print(f"converted but not compared with the checkpoint: {kind.engine} does not run on this system", flush=True)
    return differences


def options_of(args: argparse.Namespace) -> ExportOptions:
    """What the command line asks of the format."""
    return ExportOptions(args.size, args.opset, args.ir_version, args.web_runtime)


def deployed_as(kind: Format, network: SegmentationModel, checkpoint: ModelFile, args: argparse.Namespace) -> Deployed:
    """The network with the input and output that the command line, or the format by its nature, wants."""
    form = argparse.Namespace(uint8=args.uint8 or kind.whole, argmax=args.argmax or kind.whole)
    return make_deployed(network, checkpoint, form)


def export_one(args: argparse.Namespace, kind: Format) -> None:
    """Write the file that ``args`` ask for and print the table of speeds."""
    output = args.output or kind.beside(args.checkpoint)
    network, checkpoint = load_network(args)
    deployed = deployed_as(kind, network, checkpoint, args)
    classes = len(checkpoint["class_names"])
    print(f"exporting {args.checkpoint} ({checkpoint['model']}, {classes} classes) for {kind.engine} ...", flush=True)
    differences = write_checked(deployed, kind, output, options_of(args))
    if not args.rounds or not differences:
        return
    int8 = args.int8 or output.with_name(f"{output.stem}_int8.onnx")
    files = {"exported": output} | ({"INT8": int8} if args.int8 or int8.is_file() else {})
    sizes = FILE_SIZES if args.size is None else (args.size,)
    print("\n" + file_table(deployed, args.checkpoint, files, args.rounds, sizes))
    if len(files) == 1:
        print(f"for a row of INT8: python quantize.py {args.checkpoint} --output {int8}")


def export_all(args: argparse.Namespace) -> None:
    """Write every format into the folder --output and print a table; what cannot be had is left out and said to be."""
    network, checkpoint = load_network(args)
    dataset = build_split(args, args.val_split) if args.dataset else None
    if dataset is not None:
        dataset.require_masks()
        check_classes(str(args.checkpoint), checkpoint["class_names"], dataset)
    made: dict[str, Made] = {}
    left_out: list[str] = []
    for name, kind in FORMATS.items():
        # What can stay free stays free, as a user would have it.
        options = options_of(args) if kind.one_size else replace(options_of(args), size=None)
        output = args.output / f"{args.checkpoint.stem}{kind.suffix or '_' + name}"
        try:
            check_arguments(argparse.Namespace(**vars(args) | {"dataset": None}), kind)
            differences = write_checked(deployed_as(kind, network, checkpoint, args), kind, output, options)
        except UserError as error:
            left_out.append(f"left out: {name}: {error}")
            print(left_out[-1], flush=True)
            continue
        made[kind.engine] = Made(output, differences, comparable=not kind.whole or (args.uint8 and args.argmax))
    if args.rounds and made:
        deployed = make_deployed(network, checkpoint, args)
        size = args.size or FILE_SIZES[0]
        table = format_table(deployed, args.checkpoint, made, size=size, rounds=args.rounds, dataset=dataset)
        print("\n" + table, *left_out, sep="\n")
