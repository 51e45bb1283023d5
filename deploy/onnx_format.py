"""ONNX: written by PyTorch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from basics.errors import UserError, reason_of
from basics.optional_packages import need
from deploy.exported import ExportedModel, fixed_size
from deploy.exporting import ExportOptions, quiet
from deploy.model_card import ModelCard
from deploy.onnx_lowering import EXPORTER_OPSET, OLDEST_OPSET, check_opset, lower_opset, spell_out_hard_sigmoid
from networks.onnx_session import CUDA, executed_operators, integer_layers, open_session

if TYPE_CHECKING:
    import onnx_ir
NEWEST_OPSET = 23  # that PyTorch's exporter is known to write
OLDEST_IR = 4  # before it, weights had to be inputs, too


def save_onnx(program: ExportedProgram, card: ModelCard, path: Path, options: ExportOptions) -> None:
    """Write ``program`` to ``path``, the card in its metadata; opset and IR version no newer than need be.

    Raises:
        UserError: onnx or onnxscript is not installed, or ONNX (or ``options.opset``) has no counterpart for an
            operation.
    """
    need("onnx", "onnx", "ONNX export")
    need("onnxscript", "onnxscript", "ONNX export")
    import onnx

    opset = options.opset or EXPORTER_OPSET
    with quiet():
        try:
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=max(opset, EXPORTER_OPSET),
                verbose=False,
                input_names=["images"],
                output_names=[card.output],
            )
        except Exception as error:  # the exporter has an exception class for every stage
            reason = reason_of(error)
            raise UserError(f"PyTorch's ONNX exporter cannot translate a {card.model}: {reason}") from error
    assert onnx_program is not None  # with dynamo=True
    model = onnx_program.model
    if options.size is None:
        _name_axes(model, card)
    if card.precision == "int8":
        _own_zero_points(model)
    spell_out_hard_sigmoid(model)
    if opset < EXPORTER_OPSET:
        lower_opset(model, opset)
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
    # The version of the file itself: the one of the time of its opset, which every runtime since then can read.
    oldest = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.ir_version = options.ir_version or oldest
    content = onnx_program.model_proto.SerializeToString()
    if opset < EXPORTER_OPSET:
        check_opset(content, opset, card.model)
    path.write_bytes(content)


def check_versions(opset: int | None, ir_version: int | None) -> None:
    """A `UserError` for an opset or IR version that cannot be written here."""
    if opset is None and ir_version is None:
        return
    onnx = need("onnx", "onnx", "ONNX export")
    for option, value, least, most in (
        ("--opset", opset, OLDEST_OPSET, min(NEWEST_OPSET, onnx.defs.onnx_opset_version())),
        ("--ir-version", ir_version, OLDEST_IR, onnx.IR_VERSION),
    ):
        if value is not None and not least <= value <= most:
            raise UserError(f"{option} must be from {least} to {most}, not {value}")


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
        on_gpu = CUDA in session.get_providers()
        (images,) = session.get_inputs()
        super().__init__(card, device if on_gpu else torch.device("cpu"), fixed_size(images.shape))
        self.path, self.session, self.input_name = path, session, images.name

    def run(self, images: torch.Tensor) -> torch.Tensor:
        (result,) = self.session.run(None, {self.input_name: images.cpu().numpy()})
        return torch.from_numpy(result).to(images.device)

    def integer_layers(self) -> tuple[int, int]:
        return integer_layers(executed_operators(self.path))
