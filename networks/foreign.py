"""What networks of other libraries have in common: a normalisation of their own, and maps caught while they run.

A library's network is called as the library calls it, so that its logits are the library's. Feature maps are caught by
hooks on modules that stay what they are when BatchNorm is folded or synchronised: never on a BatchNorm or convolution
whose output is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from networks.base import SegmentationModel
from networks.normalisation import Normalisation
from networks.taps import choose_taps, exact_stride

T = TypeVar("T")

PROBE = (64, 96)  # a multiple of every stride; not square, so that nobody takes the sides for one another
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class ForeignModel(SegmentationModel):
    """A network of another library or of a user's file behind the interface of all models.

    Args:
        normalisation: what the network expects.
        class_names: of the classes that it brings, or None.
    """

    _scale: torch.Tensor
    _shift: torch.Tensor

    def __init__(self, normalisation: Normalisation, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.class_names = None if class_names is None else list(class_names)
        self.normalisation = normalisation
        self._caught = Caught()
        scale, shift = normalisation.from_imagenets()
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_shift", shift, persistent=False)

    def own_input(self, images: torch.Tensor) -> torch.Tensor:
        """ImageNet-normalised RGB ``images`` (N, 3, H, W) as the network wants them."""
        if not self.normalisation.is_imagenets:
            images = images * self._scale + self._shift
        return images.flip(1) if self.normalisation.bgr else images

    def catch_output(self, name: str, module: nn.Module) -> None:
        """Keep what ``module`` gives, as ``name``."""
        module.register_forward_hook(_Catch(self._caught, name))

    def catch_input(self, name: str, module: nn.Module) -> None:
        """Keep what ``module`` is given, as ``name``; it must not be overwritten in place."""
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False
        module.register_forward_pre_hook(_CatchInput(self._caught, name))

    def take_caught(self) -> dict[str, Any]:
        """What was caught since the last call, by name."""
        caught, self._caught.maps = self._caught.maps, {}
        return caught

    def announce(self, logits: torch.Tensor, taps: Mapping[str, torch.Tensor], size: tuple[int, int]) -> None:
        """Set strides and channels from what the network gave for images of ``size``.

        Raises:
            ValueError: the logits are no grid of the image.
        """
        stride = exact_stride(tuple(logits.shape), size)
        if stride is None:
            last = tuple(logits.shape[1:3]) == size
            fault = "channels last: let it end in .permute(0, 3, 1, 2)" if last else "no whole number of pixels a cell"
            shape = tuple(logits.shape)
            raise ValueError(f"logits of the shape {shape} for images of {size[0]}x{size[1]} pixels: {fault}")
        self.logit_stride, self.num_classes = stride, logits.shape[1]
        self.tap_channels = {tap: values.shape[1] for tap, values in taps.items()}
        self.tap_strides = {tap: size[0] // values.shape[2] for tap, values in taps.items()}


class Caught:
    """A place for what hooks catch. No dict: those among a module's attributes torch.export replaces by copies."""

    def __init__(self) -> None:
        self.maps: dict[str, Any] = {}


# Classes, not closures: a copy of the model must catch into a place of its own.
@dataclass
class _Catch:
    caught: Caught
    name: str

    def __call__(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self.caught.maps[self.name] = output


@dataclass
class _CatchInput:
    caught: Caught
    name: str

    def __call__(self, module: nn.Module, inputs: tuple) -> None:
        self.caught.maps[self.name] = inputs[0]


# -- looking at a network while it runs ------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """That a module without children ran: what it was given, and what it gave."""

    module: nn.Module
    given: torch.Tensor
    output: torch.Tensor


@torch.no_grad()
def watch(network: nn.Module, run: Callable[[], T]) -> tuple[T, list[Call]]:
    """What ``run()`` gives with ``network`` in eval mode, and which of its innermost modules ran, in their order.

    What TorchScript runs cannot be watched.
    """
    calls: list[Call] = []

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
            calls.append(Call(module, inputs[0], output))

    modes = {module: module.training for module in network.modules()}
    watched = (module for module in network.modules() if not isinstance(module, torch.jit.ScriptModule))
    hooks = [module.register_forward_hook(note) for module in watched if not any(module.children())]
    try:
        network.eval()
        return run(), calls
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode


def noise(size: tuple[int, int]) -> torch.Tensor:
    """A random image (1, 3, H, W), always the same, without touching the global random state."""
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


def find_classifier(calls: Sequence[Call], num_classes: int) -> Call | None:
    """That of the last convolution with as many outputs as there are classes."""
    found = [call for call in calls if isinstance(call.module, nn.Conv2d) and call.module.out_channels == num_classes]
    return found[-1] if found else None


def before_relu(calls: Sequence[Call], features: torch.Tensor) -> nn.Module | None:
    """The last ReLU that gave ``features``: its input is the map before the activation; None if no ReLU did."""
    relus = [call for call in calls if isinstance(call.module, nn.ReLU | nn.ReLU6)]
    gave = [call.module for call in relus if torch.equal(call.output, features)]
    return gave[-1] if gave else None


def smallest_batch(calls: Sequence[Call]) -> int:
    """Images that a batch needs in training: two where a BatchNorm sees a single value per image and channel."""
    pooled = any(isinstance(call.module, NORMS) and all(side == 1 for side in call.given.shape[2:]) for call in calls)
    return 2 if pooled else 1


def pick_maps(maps: Sequence[torch.Tensor], size: tuple[int, int]) -> dict[str, int]:
    """Tap name -> the place in ``maps`` (N, D, h, w), the encoder's in their order, for images of ``size``.

    A plain transformer has all of them at one stride: its first, middle and last one are taken.
    """
    shapes = [tuple(values.shape) for values in maps]
    strides = [exact_stride(shape, size) for shape in shapes]
    if maps and None not in strides and len(set(strides)) == 1 and len(maps) >= 3:
        return {"low": 0, "mid": (len(maps) - 1) // 2, "high": len(maps) - 1}
    grids = {str(place): shape for place, shape in enumerate(shapes) if strides[place]}
    return {tap: int(name) for tap, name in choose_taps(grids, size).items()}
