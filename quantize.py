"""Turn a trained student into INT8: a third of the size, integer arithmetic, faster in some runtimes (docs/int8.md).

    python quantize.py checkpoints/RUN/best.pth --dataset voc --output student_int8.onnx     # post-training
    python train_kd.py --qat --student-weights checkpoints/RUN/best.pth --lr 1e-4 --epochs 10 --name QAT
    python quantize.py checkpoints/QAT/best.pth --output student_qat_int8.onnx               # after training for it
    python evaluate.py checkpoints/RUN/best.pth student_int8.onnx student_qat_int8.onnx --agreement

A checkpoint of an ordinary run is quantized post-training: the ranges of its activations come from images of the
training split. A checkpoint of a --qat run brings its ranges along and needs no images.

Two files are written: FILE.onnx, which ONNX Runtime executes with integer kernels, and FILE.pt2, which PyTorch executes
with oneDNN's on x86; with --openvino a third, FILE.xml with its FILE.bin. All are scored on pictures of the validation
split before they get their names; --max-drop says how many points of mIoU they may lose. What INT8 gains, and where:
docs/int8.md. Whether it is faster on your machine, or for size alone: export.py --int8 FILE.onnx.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from basics.errors import UserError, run_cli  # first: Ctrl-C while torch is imported ends quietly
from basics.progress import ProgressBar

# isort: split
import torch

from basics.batch import normalize
from basics.optional_packages import need
from dataset import add_data_arguments, build_split
from deploy.arguments import add_form_arguments, make_deployed
from deploy.calibration import quantize_calibrated
from deploy.int8_files import SUFFIXES, require_int8, write_int8
from deploy.int8_score import RealPictures
from deploy.quantized import GraphModel, load_fake_quant
from networks.base import SegmentationModel
from networks.model_file import ModelFile
from scoring.protocol import check_classes
from scoring.reporting import split_to_score
from zoo import load_checkpoint_model


def calibration_images(args: argparse.Namespace, class_names: list[str], input_size: int = 0) -> Iterator[torch.Tensor]:
    """Images spread over the training split, at working size: normalised (1, 3, H, W), one after the other."""
    dataset = build_split(args, args.train_split)
    check_classes(str(args.checkpoint), class_names, dataset)
    dataset.input_size = input_size
    count = min(args.calibration_images, len(dataset))
    print(f"INT8 post-training, ranges from {count} images of {dataset.name}/{dataset.split}")
    for number in ProgressBar(range(count), desc="calibrate", unit="img"):
        yield normalize(dataset[number * len(dataset) // count]["image"][None])


def make_int8(model: SegmentationModel, checkpoint: ModelFile, args: argparse.Namespace) -> GraphModel:
    """The INT8 form of a checkpoint's network, by its own training for it or by calibration."""
    if "qat" in checkpoint:
        print("INT8 with the ranges of quantization-aware training")
        return load_fake_quant(model, checkpoint).to_int8().eval()
    return quantize_calibrated(model, calibration_images(args, checkpoint["class_names"], checkpoint["input_size"]))


def real_pictures(network: SegmentationModel, checkpoint: ModelFile, args: argparse.Namespace) -> RealPictures | None:
    """What to score the files on; None, said aloud, where it is not wanted or not to be had."""
    if not args.score_images:
        return None
    try:
        dataset = split_to_score(args)
        check_classes(str(args.checkpoint), checkpoint["class_names"], dataset)
        return RealPictures(network, dataset, args.score_images, checkpoint["input_size"])
    except UserError as error:
        if args.max_drop is not None:
            raise
        print(f"warning: what INT8 loses is not measured: {error}")
        return None


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pth file of this project")
    parser.add_argument("--output", type=Path, metavar="FILE.onnx", help="NAME_int8.onnx beside the checkpoint")
    parser.add_argument("--openvino", action="store_true", help="FILE.xml and FILE.bin as well, for OpenVINO")
    add_form_arguments(parser)
    parser.add_argument("--calibration-images", type=int, default=64, help="of the training split (64)")
    parser.add_argument("--score-images", type=int, default=100, help="of the validation split; 0: not scored (100)")
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help="refuse files that lose more mIoU (0..100)")
    add_data_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    output = args.output or args.checkpoint.with_name(f"{args.checkpoint.stem}_int8.onnx")
    files = [output.with_suffix(suffix) for suffix in SUFFIXES]
    if output != files[0]:
        raise UserError(f"--output {output}: the name must end in .onnx")
    if args.openvino:
        need("openvino", "openvino", "--openvino")
    elif files.pop().is_file():  # beside the new files it would pass for one of them
        raise UserError(f"{output.with_suffix('.xml')} is there, of an earlier run: pass --openvino, or remove it")
    require_int8(files[1:])  # written beside what --output names
    if args.calibration_images < 1:
        raise UserError(f"--calibration-images must be at least 1, not {args.calibration_images}")
    if args.score_images < 0 or (args.max_drop is not None and not args.score_images):
        raise UserError("--score-images must be at least 0, and more than 0 with --max-drop")
    model, checkpoint = load_checkpoint_model(args.checkpoint)
    # A --qat checkpoint is what it was trained to be only with its rounding.
    pictures = real_pictures(load_fake_quant(model, checkpoint) if "qat" in checkpoint else model, checkpoint, args)
    deployed = make_deployed(model, checkpoint, args, make_int8(model, checkpoint, args))
    write_int8(deployed, model, pictures, args.max_drop, files)
    parameters, fp32 = deployed.card.parameters, 4 * deployed.card.parameters / 1e6
    share = output.stat().st_size / 1e6 / fp32
    print(f"{parameters:,} parameters: {fp32:.2f} MB in float32; {output.name} takes {share:.3f} of that")
    if "qat" not in checkpoint:
        print("whether it is faster here, or for size alone, measures python export.py "
              f"{args.checkpoint} --output {args.checkpoint.with_suffix('.onnx')} --int8 {output}")  # fmt: skip


if __name__ == "__main__":
    run_cli(main, get_args_parser)
