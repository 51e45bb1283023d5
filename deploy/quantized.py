"""Any network of this project with the rounding of INT8 in its training (train_kd.py --qat).

    student = FakeQuantModel(student)
    int8 = student.to_int8()

`deploy/quantization.py` says what is quantized and needs torchao; this module imports it only where used.
INT8 after training: `deploy/calibration.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import GraphModule

from basics.errors import UserError, reason_of
from networks.base import SegmentationModel

MAX_CELLS = 1024  # cells of the coarsest grid a side: 16384 pixels at stride 16
RANGE_NAMES = ("scale", "zero_point", "min_val", "max_val")


class _Core(nn.Module):
    """A network as a function of padded images alone, its feature maps in a fixed order."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, taps = self.model._forward_padded(images)
        return (logits, *(taps[name] for name in self.model.tap_channels))


def capture(model: SegmentationModel) -> GraphModule:
    """The network's graph, in eval mode, from padded images to (logits, *taps); it shares the parameters.

    Raises:
        UserError: `torch.export` cannot capture this network.
    """
    stride = model.stride
    rows, columns = (torch.export.Dim(name, min=1, max=MAX_CELLS) for name in ("rows", "columns"))
    shapes = {0: torch.export.Dim("batch", min=1, max=1024), 2: stride * rows, 3: stride * columns}
    device = next(model.parameters()).device
    example = torch.zeros(2, 3, 4 * stride, 3 * stride, device=device)
    was_training = model.training
    model.eval()
    try:
        return torch.export.export(_Core(model), (example,), dynamic_shapes=(shapes,)).module(check_guards=False)
    except Exception as error:  # a network can fail to be captured in many ways
        reason = reason_of(error)
        name = type(model).__name__
        raise UserError(f"torch.export cannot capture a {name}, so it has no INT8 form: {reason}") from error
    finally:
        model.train(was_training)


class GraphModel(SegmentationModel):
    """A graph that `capture` made, or what became of it, as a model again.

    Args:
        source: the network that was captured, for its strides and feature maps.
        graph: from padded images to (logits, *taps).
    """

    def __init__(self, source: SegmentationModel, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.training = False
        self.num_classes, self.model_args = source.num_classes, dict(getattr(source, "model_args", {}))
        self.stride, self.logit_stride = source.stride, source.logit_stride
        self.tap_channels, self.tap_strides = dict(source.tap_channels), dict(source.tap_strides)

    def train(self, mode: bool = True) -> GraphModel:
        """An exported graph has one mode, that it was captured in: eval."""
        self.training = mode
        return self

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, *taps = self.graph(images)
        return logits, dict(zip(self.tap_channels, taps, strict=True))


class FakeQuantModel(GraphModel):
    """A network that trains with the rounding of INT8 in its forward pass (quantization-aware training).

    Its parameters and BatchNorm statistics are those of ``source``, trained in place: at any moment
    ``source.state_dict()`` is the float network, ``backbone`` a part of it. The ranges of the fake quantization
    come on top.
    """

    source: SegmentationModel

    def __init__(self, source: SegmentationModel) -> None:
        from deploy.quantization import prepare_training

        super().__init__(source, prepare_training(capture(source)))
        # No submodules: their tensors are in the graph already, and must not appear twice.
        self.__dict__.update(source=source, backbone=source.backbone)
        own = {id(tensor) for tensor in self.graph.state_dict(keep_vars=True).values()}
        lost = [name for name, parameter in source.named_parameters() if id(parameter) not in own]
        if lost:
            raise UserError(f"torch.export gave {lost[0]} no place in the graph: this network has no INT8 form")

    def train(self, mode: bool = True) -> FakeQuantModel:
        """Switch BatchNorm, dropout and the observers; the ranges rest in eval mode."""
        from deploy.quantization import set_training

        if mode != self.training:
            set_training(self.graph, mode)
        self.training = mode
        return self

    def ranges(self) -> dict[str, torch.Tensor]:
        """The state of the fake quantization, on the CPU; with ``source.state_dict()`` all there is."""
        return {
            name: value.detach().to("cpu", copy=True)
            for name, value in self.graph.state_dict().items()
            if "activation_post_process_" in name and name.rpartition(".")[2] in RANGE_NAMES
        }

    def load_ranges(self, ranges: Mapping[str, torch.Tensor]) -> None:
        """Put `ranges` back; a `UserError` if they belong to another network or version of torchao."""
        own = self.ranges()
        if set(ranges) != set(own):
            raise UserError(
                "the ranges of the quantization-aware training do not fit: made for another network, "
                "or with another version of torchao"
            )
        # Through the graph's own state, which knows its versions: without them torchao's observers reset their eps.
        state = self.graph.state_dict()
        state.update(ranges)
        self.graph.load_state_dict(state)

    def to_int8(self) -> GraphModel:
        """The INT8 network that the training had in mind, on the CPU; this one stays as it is."""
        from deploy.quantization import convert_trained

        return GraphModel(self, convert_trained(self.graph)).to("cpu")


def load_fake_quant(source: SegmentationModel, checkpoint: Mapping) -> FakeQuantModel:
    """The fake-quantized form of ``source``, which has a QAT checkpoint's weights, in eval mode."""
    model = FakeQuantModel(source)
    model.load_ranges(checkpoint["qat"])
    return model.eval()
