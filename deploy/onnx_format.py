"""ONNX: written by PyTorch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from basics.errors import UserError
from deploy.exported import ExportedModel
from deploy.exporting import quiet
from deploy.model_card import ModelCard
from networks.onnx_session import open_session

if TYPE_CHECKING:
    import onnx_ir

OPSET = 20


def save_onnx(program: ExportedProgram, card: ModelCard, path: Path) -> None:
    """Write ``program`` to ``path``, the card in its metadata.

    Raises:
        UserError: onnx or onnxscript is not installed, or ONNX has no counterpart for an operation.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            "ONNX export needs the packages onnx and onnxscript: "
            "pip install onnx onnxscript (see requirements-extra.txt)"
        ) from error
    with quiet():
        try:
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=["images"],
                output_names=[card.output],
            )
        except Exception as error:  # the exporter has an exception class for every stage
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"PyTorch's ONNX exporter cannot translate a {card.model}: {reason}") from error
    assert onnx_program is not None  # with dynamo=True
    model = onnx_program.model
    _name_axes(model, card)
    if card.precision == "int8":
        _own_zero_points(model)
    # Where in the Python source each node comes from: half of a small network's file, with local paths in it.
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(card.to_metadata())
    onnx_program.save(path, external_data=False)


def _name_axes(model: onnx_ir.Model, card: ModelCard) -> None:
    """Readable names for the free axes, in place of the exporter's symbols."""
    import onnx_ir

    classes = len(card.class_names)
    free = ("batch", "height", "width")
    model.graph.inputs[0].shape = onnx_ir.Shape((free[0], 3, *free[1:]))
    model.graph.outputs[0].shape = onnx_ir.Shape(free if card.output == "mask" else (free[0], classes, *free[1:]))


def _own_zero_points(model: onnx_ir.Model) -> None:
    """Give each INT8 weight a zero point that it shares with no other.

    Where ONNX Runtime has to turn signed weights into unsigned ones (`int8_overflows`), it stumbles over shared ones.
    """
    import onnx_ir

    for node in model.graph.all_nodes():
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" and len(node.inputs) == 3 else None
        if weight is not None and weight.is_initializer() and weight.dtype == onnx_ir.DataType.INT8:
            shared = node.inputs[2]
            assert shared is not None and shared.const_value is not None and weight.name
            name = f"{weight.name}_zero_point"
            own = onnx_ir.val(name, const_value=onnx_ir.tensor(shared.const_value.numpy(), name=name))
            model.graph.register_initializer(own)
            node.replace_input_with(2, own)


class OnnxModel(ExportedModel):
    """An ONNX file, run by ONNX Runtime: on ``device`` if that is a GPU its build has kernels for, else on the CPU."""

    def __init__(self, path: str | Path, device: torch.device) -> None:
        session = open_session(path, device=device.type)
        card = ModelCard.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
        on_gpu = "CUDAExecutionProvider" in session.get_providers()
        super().__init__(card, device if on_gpu else torch.device("cpu"))
        self.session = session
        self.input_name = session.get_inputs()[0].name

    def run(self, images: torch.Tensor) -> torch.Tensor:
        (result,) = self.session.run(None, {self.input_name: images.cpu().numpy()})
        return torch.from_numpy(result).to(images.device)
