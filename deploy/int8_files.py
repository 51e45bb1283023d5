"""The two files of an INT8 network, written where they pass: FILE.onnx for ONNX Runtime, FILE.pt2 for PyTorch."""

from __future__ import annotations

from pathlib import Path

from basics.errors import UserError
from deploy.export_checks import compare, require_agreement
from deploy.exported import ExportedModel
from deploy.exporting import Deployed, export_program
from deploy.formats import load_exported, write_exported
from deploy.int8_score import RealPictures
from deploy.pt2_format import Pt2Model
from networks.onnx_session import executed_operators, integer_layers

# Engines round a sum that lies half-way between two integers either way, and in a deep network such a step
# goes on to others. A wrong scale or zero point, which this is to find, leaves no more than chance.
LEAST_AGREEMENT = 0.9


def write_int8(deployed: Deployed, pictures: RealPictures | None, max_drop: float | None, onnx_path: Path) -> None:
    """Write both files, each checked before it gets its name; print what came of it.

    Args:
        deployed: the INT8 network.
        pictures: what to score the files on, against the network that they were made from; None: not scored.
        max_drop: points of mIoU (0..100) that a file may lose; None: any.
        onnx_path: name of the one file; the other is beside it.

    Raises:
        UserError: a file does not do what the network does, loses too much, or runs without integers.
    """
    pt2_path = onnx_path.with_suffix(".pt2")

    def checked(path: Path, name: Path) -> ExportedModel:
        require_agreement(compare(deployed, path), LEAST_AGREEMENT)
        file = load_exported(path)
        if pictures is not None:
            cost = pictures.cost(file)
            print(f"{name}: {cost}")
            if max_drop is not None and cost.drop > max_drop:
                raise UserError(
                    f"INT8 loses {cost.drop:.1f} points of mIoU, more than --max-drop {max_drop:g}: {name} not "
                    "written; train for INT8 (train_kd.py --qat), or take more --calibration-images"
                )
        return file

    def check_onnx(path: Path) -> None:
        checked(path, onnx_path)
        layers, total = integer_layers(executed_operators(path))
        if not layers:
            raise UserError("ONNX Runtime executes not one layer of the INT8 file with integers: file not written")
        print(f"{onnx_path}: ONNX Runtime executes {layers} of {total} layers with integer kernels")

    def check_pt2(path: Path) -> None:
        file = checked(path, pt2_path)
        assert isinstance(file, Pt2Model)
        print(f"{pt2_path}: PyTorch executes {file.integer_kernels} layers with integer kernels on this machine")

    program = export_program(deployed)
    for path, check in ((onnx_path, check_onnx), (pt2_path, check_pt2)):
        write_exported(program, deployed.card, path, check)
        print(f"  {path.stat().st_size / 1e6:.2f} MB")
