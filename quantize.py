"""Turn a trained student into INT8: a quarter of the size, integer arithmetic on the CPU.

    python quantize.py checkpoints/RUN/best.pth --dataset voc --output student_int8.onnx     # post-training
    python train_kd.py --qat --student-weights checkpoints/RUN/best.pth --lr 1e-4 --epochs 10 --name QAT
    python quantize.py checkpoints/QAT/best.pth --output student_qat_int8.onnx               # after training for it
    python evaluate.py checkpoints/RUN/best.pth student_int8.onnx student_qat_int8.onnx --agreement

A checkpoint of an ordinary run is quantized post-training: the ranges of its activations come from images
of the training split. A checkpoint of a --qat run brings its ranges along and needs no images.

Two files are written: FILE.onnx, which ONNX Runtime executes with integer kernels, and beside it
FILE.pt2, which PyTorch executes with oneDNN's on x86. Both are run and compared before they get their
names. Speeds: export.py --int8 FILE.onnx.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from basics.batch import normalize
from basics.errors import UserError, run_cli
from dataset import add_data_arguments, build_split
from deploy.arguments import add_form_arguments, check_output, make_deployed
from deploy.export_checks import Difference, compare, require_agreement
from deploy.exporting import Deployed, export_program
from deploy.formats import write_exported
from deploy.pt2_format import Pt2Model
from deploy.quantized import GraphModel, load_fake_quant, quantize_calibrated
from networks.base import SegmentationModel
from networks.model_file import ModelFile
from networks.onnx_session import executed_operators, integer_layers
from scoring.protocol import check_classes
from zoo import load_checkpoint_model

# Engines round a sum that lies half-way between two integers either way, and in a deep network such a step
# goes on to others. A wrong scale or zero point, which this is to find, leaves no more than chance.
LEAST_AGREEMENT = 0.9


def calibration_images(args: argparse.Namespace, class_names: list[str], input_size: int = 0) -> Iterator[torch.Tensor]:
    """Images spread over the training split, at working size: normalised (1, 3, H, W), one after the other."""
    dataset = build_split(args, args.train_split)
    check_classes(str(args.checkpoint), class_names, dataset)
    dataset.input_size = input_size
    count = min(args.calibration_images, len(dataset))
    for number in tqdm(range(count), desc="calibrate", unit="img", leave=False, disable=None):
        yield normalize(dataset[number * len(dataset) // count]["image"][None])


def make_int8(model: SegmentationModel, checkpoint: ModelFile, args: argparse.Namespace) -> GraphModel:
    """The INT8 form of a checkpoint's network, by its own training for it or by calibration."""
    if "qat" in checkpoint:
        print("INT8 with the ranges of quantization-aware training")
        return load_fake_quant(model, checkpoint).to_int8().eval()
    print(f"INT8 post-training, ranges from {args.calibration_images} images of {args.dataset}/{args.train_split}")
    return quantize_calibrated(model, calibration_images(args, checkpoint["class_names"], checkpoint["input_size"]))


def write_files(deployed: Deployed, onnx_path: Path, pt2_path: Path) -> None:
    """Write both files, each checked before it gets its name; print what came of it."""
    differences: list[Difference] = []

    def same_masks(path: Path) -> None:
        differences[:] = compare(deployed, path)
        require_agreement(differences, LEAST_AGREEMENT)

    def integer_onnx(path: Path) -> None:
        same_masks(path)
        layers, total = integer_layers(executed_operators(path))
        if not layers:
            raise UserError("ONNX Runtime executes not one layer of the INT8 file with integers: file not written")
        print(f"{onnx_path}: ONNX Runtime executes {layers} of {total} layers with integer kernels")

    def integer_pt2(path: Path) -> None:
        same_masks(path)
        kernels = Pt2Model(path).integer_kernels
        print(f"{pt2_path}: PyTorch executes {kernels} layers with integer kernels on this machine")

    program = export_program(deployed)
    for path, check in ((onnx_path, integer_onnx), (pt2_path, integer_pt2)):
        write_exported(program, deployed.card, path, check)
        worst = min(difference.agreement for difference in differences)
        print(f"  {path.stat().st_size / 1e6:.2f} MB, decides as its simulation does at {100 * worst:.2f} % of pixels")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pth file of this project")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.onnx", help="default: NAME_int8.onnx beside the checkpoint"
    )
    add_form_arguments(parser)
    parser.add_argument("--calibration-images", type=int, default=64, help="of the training split (64)")
    add_data_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    output = args.output or args.checkpoint.with_name(f"{args.checkpoint.stem}_int8.onnx")
    check_output(output, (".onnx",))
    if args.calibration_images < 1:
        raise UserError(f"--calibration-images must be at least 1, not {args.calibration_images}")
    model, checkpoint = load_checkpoint_model(args.checkpoint)
    deployed = make_deployed(model, checkpoint, args, make_int8(model, checkpoint, args))
    write_files(deployed, output, output.with_suffix(".pt2"))
    parameters = deployed.card.parameters
    fp32 = 4 * parameters / 1e6
    share = output.stat().st_size / 1e6 / fp32
    print(f"{parameters:,} parameters: {fp32:.2f} MB in float32; {output.name} takes {share:.3f} of that")


if __name__ == "__main__":
    run_cli(main, get_args_parser)
