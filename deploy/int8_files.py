"""The files of an INT8 network, written where they pass: for ONNX Runtime, PyTorch and, if asked for, OpenVINO."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from basics.errors import UserError
from deploy.export_checks import compare, require_agreement
from deploy.exporting import Deployed, export_program
from deploy.formats import load_exported, require_format, stored_bytes, writing_exported
from deploy.int8_score import RealPictures

SUFFIXES = (".onnx", ".pt2", ".xml")  # of the formats that INT8 is written in
# Engines round a sum that lies half-way between two integers either way, and in a deep network such a step
# goes on to others. A wrong scale or zero point, which this is to find, leaves no more than chance.
LEAST_AGREEMENT = 0.9
# On a telling picture, which lies near the borders between classes, more of them go on: 0.88 to 0.99 were seen where
# all was right; of a file that says one class everywhere 0.6 is left at most.
LEAST_TELLING = 0.8


def require_int8(paths: Sequence[Path]) -> None:
    """A `UserError` if a file of ``paths`` is there, and is no INT8 file: export.py may have made it."""
    for path in paths:
        try:
            ours = not path.is_file() or load_exported(path).card.precision == "int8"
        except UserError:  # damaged, or of others
            ours = False
        if not ours:
            raise UserError(f"{path} is there already, and is no INT8 file of this project: give another --output")


def write_int8(
    deployed: Deployed,
    network: nn.Module,
    pictures: RealPictures | None,
    max_drop: float | None,
    paths: Sequence[Path],
) -> None:
    """Write a file in the format of each path's suffix, all checked before any gets its name; print what came of it.

    Args:
        deployed: the INT8 network.
        network: the same in float32.
        pictures: what to score the files on, against the network that they were made from; None: not scored.
        max_drop: points of mIoU (0..100) that a file may lose; None: any.
        paths: names of the files, with `SUFFIXES`.

    Raises:
        UserError: a file does not do what the network does, loses too much, or its runtime is not installed.
    """
    program = export_program(deployed)

    def check(path: Path, name: Path) -> None:
        require_agreement(compare(deployed, path, network), LEAST_AGREEMENT, least_telling=LEAST_TELLING)
        file = load_exported(path)
        if pictures is not None:
            cost = pictures.cost(file)
            print(f"{name}: {cost}")
            if max_drop is not None and cost.drop > max_drop:
                raise UserError(
                    f"{name}: INT8 loses {cost.drop:.1f} points of mIoU, more than --max-drop {max_drop:g}: nothing "
                    "written; train for INT8 (train_kd.py --qat), or take more --calibration-images"
                )
        _print_layers(name, file.integer_layers())

    with contextlib.ExitStack() as files:  # all or none: an old one beside a new one would pass for its like
        for name in paths:
            files.enter_context(writing_exported(program, deployed.card, name, partial(check, name=name)))
    for name in paths:
        print(f"{name}: {stored_bytes(name) / 1e6:.2f} MB")


def _print_layers(name: Path, layers: tuple[int, int] | None) -> None:
    """Say how many layers multiply integers; a `UserError` for an ONNX file without one, whatever the processor."""
    if layers is None:
        return
    integer, total = layers
    if not integer and name.suffix == ".onnx":
        raise UserError("ONNX Runtime executes not one layer of the INT8 file with integers: file not written")
    engine = require_format(name).engine
    print(f"{name}: {engine} executes {integer} of {total} layers with integer kernels on this machine")
