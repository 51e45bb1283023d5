"""What export.py does: one file, or every format that can be had here, and a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from basics.errors import UserError
from deploy.arguments import make_deployed
from deploy.export_checks import Difference, compare, require_agreement
from deploy.exporting import Deployed, ExportOptions, Size, export_program
from deploy.format_table import Made, format_table
from deploy.formats import FORMATS, Format, load_exported, require_format, stored_bytes, writing_exported
from deploy.int8_files import SUFFIXES
from deploy.int8_score import RealPictures
from deploy.onnx_format import check_versions
from deploy.speed import FILE_SIZES, file_table
from networks.base import SegmentationModel
from networks.model_file import ModelFile
from scoring.protocol import check_classes
from scoring.reporting import split_to_score
from zoo import load_checkpoint_model

ALL = "all"
LEAST_AGREEMENT = 0.999
MOST_DELTA = 1e-3  # of a logit; float32 kernels that add in another order differ by some 1e-5


def check_arguments(args: argparse.Namespace, kind: Format | None) -> None:
    """Refuse, before any work is done, what cannot go together.

    Args:
        kind: the format; None for all of them.
    """
    if args.rounds < 0:
        raise UserError(f"--rounds must be at least 0, not {args.rounds}")
    if args.int8 and not args.int8.is_file():
        raise UserError(f"--int8 {args.int8}: no such file")
    if args.int8 and args.int8.suffix not in SUFFIXES:
        raise UserError(f"--int8 {args.int8}: wanted is a file of quantize.py, {', '.join(SUFFIXES)}")
    if args.score_images < 1:
        raise UserError(f"--score-images must be at least 1, not {args.score_images}")
    if kind is None and args.output is None:
        raise UserError(f"--format {ALL} needs --output DIR, the folder for the files")
    if kind is not None and args.dataset:
        raise UserError(f"--dataset is for --format {ALL}, which scores what it makes; evaluate.py scores a file")
    if kind is not None:
        require_form(args, kind)
    if kind is not None and not kind.from_onnx and (args.opset or args.ir_version):
        raise UserError(f"--opset and --ir-version are ONNX's; a file for {kind.engine} has neither: leave them out")
    if kind is not None and not kind.files and args.web_runtime:
        raise UserError("--web-runtime is for --format web: leave it out")
    check_versions(args.opset, args.ir_version)


def require_form(args: argparse.Namespace, kind: Format) -> None:
    """A `UserError` where a file of the format cannot have the input or output that ``args`` ask for."""
    if kind.plain and (args.uint8 or args.argmax):
        raise UserError(f"a file for {kind.engine} holds all that it needs: leave out --uint8 and --argmax")


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
            differences.extend(compare(deployed, path, deployed.model))
            require_agreement(differences, LEAST_AGREEMENT, MOST_DELTA)

    with writing_exported(export_program(deployed, options.size), deployed.card, output, check, kind, options):
        pass
    print(f"{output}: {stored_bytes(output) / 1e6:.2f} MB, ", end="")
    if kind.runs_here:
        print("agrees with the checkpoint:", *map(str, differences), sep="\n", flush=True)
    else:
        print(f"converted but not compared with the checkpoint: {kind.engine} does not run on this system", flush=True)
    return differences


def picture_size(size: Size | None, kind: Format, working_size: int) -> Size | None:
    """The one size of pictures that a file takes, None for any.

    Args:
        size: what --size says.
        kind: the format.
        working_size: the student's, 0 for none; a square of it holds all its pictures, wide or tall.

    Raises:
        UserError: the format needs one, and nothing says which.
    """
    if size is not None or not kind.one_size:
        return size
    if not working_size:
        raise UserError(f"a file for {kind.engine} takes pictures of one size: say which with --size, such as 256x256")
    return working_size, working_size


def timed_sizes(size: Size | None, working_size: int) -> Sequence[Size]:
    """Of the pictures that files are timed with: their own, the working size, or what is usual."""
    if size is not None:
        return (size,)
    return ((working_size, working_size),) if working_size else FILE_SIZES


def warn_of_scale(size: Size | None, working_size: int) -> None:
    """Say so where a file of ``size`` shows things at another scale than the student learnt them at."""
    if size is not None and working_size and max(size) != working_size:
        print(f"warning: the student sees pictures at {working_size} pixels on the longer side; in a file of "
              f"{size[0]}x{size[1]} things look larger or smaller than it learnt them")  # fmt: skip


def options_of(args: argparse.Namespace, size: Size | None) -> ExportOptions:
    """What the command line asks of the format, for pictures of ``size``."""
    return ExportOptions(size, args.opset, args.ir_version, args.web_runtime)


def export_one(args: argparse.Namespace, kind: Format) -> None:
    """Write the file that ``args`` ask for and print the table of speeds."""
    output = args.output or kind.beside(args.checkpoint)
    network, checkpoint = load_network(args)
    working_size = checkpoint["input_size"]
    size = picture_size(args.size, kind, working_size)
    warn_of_scale(size, working_size)
    deployed = make_deployed(network, checkpoint, args)
    classes = len(checkpoint["class_names"])
    print(f"exporting {args.checkpoint} ({checkpoint['model']}, {classes} classes) for {kind.engine} ...", flush=True)
    differences = write_checked(deployed, kind, output, options_of(args, size))
    if not args.rounds or not differences:
        return
    int8 = args.int8 or output.with_name(f"{output.stem}_int8.onnx")
    files = {"exported": output} | ({"INT8": int8} if args.int8 or _runs(int8) else {})
    sizes = timed_sizes(size, working_size)
    print("\n" + file_table(deployed, args.checkpoint, files, args.rounds, sizes))
    if len(files) == 1:
        print(f"for a row of INT8: python quantize.py {args.checkpoint} --dataset ... --data-dir ... --output {int8}")


def _runs(file: Path) -> bool:
    """Whether a file that nobody named, but that lies there, can be run; why not is said."""
    try:
        return file.is_file() and load_exported(file) is not None
    except UserError as error:
        print(f"left out: {error}")
        return False


def export_all(args: argparse.Namespace) -> None:
    """Write every format into the folder --output and print a table; what cannot be had is left out and said to be."""
    network, checkpoint = load_network(args)
    working_size = checkpoint["input_size"]
    warn_of_scale(args.size, working_size)
    dataset = split_to_score(args) if args.dataset else None
    if dataset is not None:
        check_classes(str(args.checkpoint), checkpoint["class_names"], dataset)
    deployed = make_deployed(network, checkpoint, args)
    left_out: list[str] = []
    int8 = int8_files(args.int8, deployed, left_out)
    made: dict[str, Made] = {}
    for name, kind in FORMATS.items():
        output = args.output / f"{args.checkpoint.stem}{kind.suffix or '_' + name}"
        try:
            require_form(args, kind)
            # What can stay free stays free, as a user would have it.
            size = picture_size(args.size, kind, working_size) if kind.one_size else None
            differences = write_checked(deployed, kind, output, options_of(args, size))
        except UserError as error:
            left_out.append(f"left out: {name}: {error}")
            print(left_out[-1], flush=True)
            continue
        made[f"{kind.timed_as} fp32"] = Made(output, differences)
    made |= int8
    if args.rounds and made:
        pictures = RealPictures(network, dataset, args.score_images, working_size) if dataset else None
        size = timed_sizes(args.size, working_size)[0]
        table = format_table(deployed, args.checkpoint, made, size=size, rounds=args.rounds, pictures=pictures)
        print("\n" + table, *left_out, sep="\n")


def int8_files(path: Path | None, deployed: Deployed, left_out: list[str]) -> dict[str, Made]:
    """The INT8 file ``path`` of quantize.py and its others that are still beside it, by what runs them.

    Args:
        left_out: gets a message for one of the others whose runtime is not installed.
    """
    paths = {path.with_suffix(suffix) for suffix in SUFFIXES} if path else set()
    made = {}
    for file in sorted(file for file in paths if file.is_file()):
        try:
            card = load_exported(file).card
        except UserError as error:
            if file == path:
                raise
            left_out.append(f"left out: {error}")
            continue
        if not card.is_int8_of(deployed.card):
            raise UserError(
                f"--int8 {file}: not this checkpoint's INT8 form: make it by quantize.py, --uint8 and --argmax as here"
            )
        made[f"{require_format(file).engine} INT8"] = Made(file, compare(deployed, file, deployed.model))
    return made
