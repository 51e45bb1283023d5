"""OpenVINO: FILE.xml and FILE.bin, made from the ONNX graph, run by OpenVINO on the CPU."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from basics.errors import UserError
from basics.optional_packages import need
from deploy.exported import ExportedModel
from deploy.exporting import ExportOptions, Size
from deploy.model_card import ModelCard
from deploy.onnx_format import save_onnx

CARD = "model_info"  # where OpenVINO's own tools keep what a file says about itself
INTEGERS = ("u8", "i8")  # as its executed graph calls them
LAYERS = ("Convolution", "Deconvolution", "MatMul", "FullyConnected")
# Its default on CPUs that have them is bfloat16, which decides a pixel in a hundred otherwise.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


def save_openvino(program: ExportedProgram, card: ModelCard, path: Path, options: ExportOptions) -> None:
    """Write ``path`` (.xml) and the weights beside it (.bin, float32).

    By way of ONNX, since OpenVINO reads captured programs of fixed shapes alone.

    Raises:
        UserError: openvino, onnx or onnxscript is not installed, or OpenVINO cannot take the graph.
    """
    openvino = _openvino()
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        onnx_file = Path(folder) / "network.onnx"
        save_onnx(program, card, onnx_file, options)
        try:
            model = openvino.convert_model(onnx_file)
        except Exception as error:  # every front end has its own
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            raise UserError(f"OpenVINO cannot convert a {card.model}: {reason.strip()[:200]}") from error
        for name, value in card.to_metadata().items():
            model.set_rt_info(value, [CARD, name])
        openvino.save_model(model, path, compress_to_fp16=False)


class OpenVinoModel(ExportedModel):
    """An OpenVINO file, run in float32 on the CPU by as many threads as PyTorch has."""

    def __init__(self, path: Path) -> None:
        openvino = _openvino(str(path))
        for part in (path, path.with_suffix(".bin")):
            if not part.is_file():
                raise UserError(f"{part}: no such file; an OpenVINO network is an .xml with the .bin beside it")
        core = openvino.Core()
        try:
            model = core.read_model(path)
            settings = EXACT | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
            network = core.compile_model(model, "CPU", settings)
        except Exception as error:  # a damaged file fails in many ways
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            raise UserError(f"{path}: OpenVINO cannot read it: {reason.strip()[:200]}") from error
        names = [field.name for field in fields(ModelCard) if model.has_rt_info([CARD, field.name])]
        metadata = {name: str(model.get_rt_info([CARD, name]).value) for name in names}
        super().__init__(ModelCard.from_metadata(metadata, str(path)), torch.device("cpu"), _size(model))
        self.network = network

    def run(self, images: torch.Tensor) -> torch.Tensor:
        result = self.network(images.cpu().numpy())[0]
        return torch.from_numpy(result.copy()).to(images.device)  # the runtime writes into it next time

    def integer_layers(self) -> tuple[int, int]:
        executed = [operation.get_rt_info() for operation in self.network.get_runtime_model().get_ops()]
        kinds = [info["runtimePrecision"] for info in executed if info["layerType"] in LAYERS]
        return sum(kind in INTEGERS for kind in kinds), len(kinds)


def _size(model: Any) -> Size | None:
    height, width = (model.inputs[0].partial_shape[axis] for axis in (2, 3))
    return (height.get_length(), width.get_length()) if height.is_static and width.is_static else None


def _openvino(what: str = "OpenVINO export") -> Any:
    return need("openvino", "openvino", what)
