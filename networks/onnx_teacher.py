"""Any network as a teacher: an ONNX file, run by ONNX Runtime.

The file's input is one image batch (N, 3, H, W) of RGB, normalised with ImageNet's mean and standard deviation,
unless its metadata say otherwise (``mean`` and ``std``: three numbers each, in 0..1). Where it takes one batch or
size alone, pictures go in by such batches, and are brought to that size, and what it says of them to theirs. Its
logits are the output with as many channels as there are classes (of several rather ``out`` or ``logits``, and no
``aux``; which one is said):

- at full size: averaged to stride 8 in training, as they are for scores and pictures;
- at a stride: taken as they are, cell i covering pixels s*i .. s*i + s - 1. Where the same file has its logits at
  full size, too, these tell whether cells stand for that, or for the single pixel s*i (as in networks ported from
  TensorFlow, ``align_corners=True``); so does the metadata entry ``grid`` = ``half_pixel`` or ``corner``. Logits on
  such a corner grid are interpolated at the centres of cells of half the stride, and their images are not padded.

Outputs called ``low``, ``mid``, ``high`` and ``decoder`` serve feature losses. Without them, and with the ``onnx``
package installed, the maps are looked for inside (`networks.onnx_graph`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from basics.checkpoint import file_sha256
from basics.errors import UserError
from basics.grids import pad_to_stride
from networks.base import TAPS, SegmentationModel
from networks.logits import fault_of_decisions, fault_of_logits
from networks.onnx_input import PROBE, OnnxInput, distinct_noise
from networks.onnx_metadata import OnnxMetadata
from networks.onnx_session import open_session
from networks.output_names import by_preference, is_main
from networks.taps import choose_taps, exact_stride, nearest_stride
from networks.working_size import resize

if TYPE_CHECKING:  # an optional package
    from onnxruntime import InferenceSession

FULL_SIZE_STRIDE = 8  # full-size logits are averaged to it
UNKNOWN_STRIDE = 32  # images are padded to it where nobody knows what the network needs


class OnnxTeacher(SegmentationModel):
    """An ONNX file behind the interface of all models; it has no gradient and cannot be trained.

    Args:
        path: the file.
        num_classes: classes of the data set, for a file that leaves its own number open: its metadata name none, and
            its outputs have several.

    Attributes:
        weights_sha256: hash of the file.
        class_names: from its metadata, or from ``classes.txt`` beside it where that lists as many; or None.

    Raises:
        UserError: ONNX Runtime is not installed, the file is no ONNX, or input or outputs are not as above.
    """

    computes_itself = True  # see `deploy.exported.ExportedModel`

    def __init__(self, path: str | Path, num_classes: int | None):
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: no such file")
        self.weights_sha256 = file_sha256(self.path)
        self.backbone = nn.Identity()
        self._open = partial(open_session, self.path, share_cores=True)
        self._device = torch.device("cpu")
        self._session = self._open()
        self._input = OnnxInput(self.path, self._session)
        self.fitted_size = self._input.size  # see `networks.working_size`
        said = OnnxMetadata(self.path, self._session.get_modelmeta().custom_metadata_map)
        self.input_size = said.input_size
        self._renormalise = None if said.normalisation.is_imagenets else said.normalisation.from_imagenets()
        self._choose_logits(said, num_classes)
        self.class_names = said.names_of(self.num_classes)
        self._find_taps()

    @property
    def limits(self) -> list[str]:
        """What the file cannot take, and what is done about it, in words."""
        said = []
        if self._input.batch:
            said.append(f"run {'one image' if self._input.batch == 1 else f'{self._input.batch} images'} at a time")
        if self._input.size:
            height, width = self._input.size
            said.append(f"pictures are brought to {width}x{height} pixels, the only size it takes")
        return said

    def count_weights(self) -> int | None:
        """Numbers in the file's weights, BatchNorm's statistics included; None without the ``onnx`` package."""
        try:
            import onnx
        except ImportError:
            return None
        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
        weights = onnx.load(self.path, load_external_data=False).graph.initializer
        return sum(math.prod(tensor.dims) for tensor in weights if tensor.data_type in floats)

    # -- looking at the file -------------------------------------------------------------------

    def _choose_logits(self, said: OnnxMetadata, num_classes: int | None) -> None:
        """Decide which output the logits are, of how many classes, on which grid."""
        names = [entry.name for entry in self._session.get_outputs()]
        probe, grid = self._input.probe, said.grid
        probed = dict(zip(names, self._run(distinct_noise(probe), names), strict=True))
        maps = {name: values for name, values in probed.items() if name not in TAPS and values.ndim == 4}
        if not any(values.shape[1] > 1 for values in maps.values()):
            self._refuse_decisions(probed)
        maps = {name: values for name, values in maps.items() if values.shape[1] > 1}  # decisions beside the logits
        self.num_classes = self._count_classes(maps, num_classes, said.class_names)
        self._logits, self._cell, self.grid = self._pick(self._class_maps(maps), grid)
        if self.grid == "corner":
            self.logit_stride = max(self._cell // 2, 4)
            self.stride = max(self._cell, 16)
        else:
            self.logit_stride = self._cell if self._cell > 1 else FULL_SIZE_STRIDE
            self.stride = max(self._cell, UNKNOWN_STRIDE)

    def _pick(self, strides: Mapping[str, int], grid: str | None) -> tuple[str, int, str]:
        """Which of the outputs with these ``strides`` the logits are, how many pixels its cells have, on which grid."""
        names = by_preference(strides)
        whole = next((name for name in names if strides[name] == 1), None)
        cells = [name for name in names if strides[name] > 1]
        strided = next(filter(is_main, cells), max(cells, key=strides.__getitem__, default=None))
        comes_first = strided is not None and (whole is None or (is_main(strided) and not is_main(whole)))
        if self._input.size and not comes_first and grid is None:
            strided = None  # on which grid it lies cannot be tried at other sizes
        same = None
        if strided and whole and grid is None and not self._input.size:
            same = grid = self._find_grid(whole, strided, strides[strided])
        taken = strided if strided and (grid or comes_first) else whole
        assert taken is not None  # a strided output alone comes first
        others = [name for name in strides if name != taken and not (same and name == whole)]
        if others:
            print(f"{self.path}: the logits are its output {taken}, not {', '.join(others)}")
        return taken, strides[taken], (grid or "half_pixel") if taken == strided else "half_pixel"

    def _count_classes(
        self, maps: Mapping[str, np.ndarray], num_classes: int | None, names: Sequence[str] | None
    ) -> int:
        """That of its names, or of the channels of ``maps`` where it is one, or else ``num_classes``."""
        counts = {values.shape[1] for values in maps.values()}
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in maps.items())
        if names:
            if counts and len(names) not in counts:
                raise UserError(f"{self.path}: its metadata name {len(names)} classes, its outputs are: {shapes}")
            return len(names)
        main = {values.shape[1] for name, values in maps.items() if is_main(name)}
        if len(main) == 1 or len(counts) == 1:
            return (main if len(main) == 1 else counts).pop()
        if num_classes is None:
            raise UserError(f"{self.path}: does not say how many classes it has; its outputs are: {shapes}")
        return num_classes

    def _class_maps(self, maps: Mapping[str, np.ndarray]) -> dict[str, int]:
        """The strides of those among the outputs ``maps`` that may be the logits."""
        probe = self._input.probe
        strides = {name: stride for name, values in maps.items() if (stride := self._stride_of(values.shape))}
        strides = {name: stride for name, stride in strides.items() if maps[name].shape[1] == self.num_classes}
        faults = {name: fault_of_logits(torch.from_numpy(maps[name])) for name in strides}
        logits = {name: stride for name, stride in strides.items() if not faults[name]}
        if logits:
            return logits
        if faults:
            name, fault = next(iter(faults.items()))
            raise UserError(f"{self.path}: its output {name} is {fault}")
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in maps.items())
        if any(values.shape[1] == self.num_classes for values in maps.values()):
            raise UserError(
                f"{self.path}: its outputs for an image of {list(probe)} are {shapes}: no whole number of pixels a "
                "cell, so the size of another image is baked in: export it with dynamic axes, or with its own size in "
                "the input's shape"
            )
        raise UserError(
            f"{self.path}: the data set has {self.num_classes} classes, its outputs (N, classes, H, W) are: "
            f"{shapes or 'none (no output is a map)'}"
        )

    def _refuse_decisions(self, outputs: Mapping[str, np.ndarray]) -> None:
        """A `UserError` if one of the ``outputs`` tells which class it is, or scores a single one."""
        for name, values in outputs.items():
            if name not in TAPS and (fault := fault_of_decisions(torch.from_numpy(values))):
                raise UserError(f"{self.path}: its output {name} is {fault}")

    def _stride_of(self, shape: tuple[int, ...]) -> int | None:
        """Pixels a cell of a map (N, C, h, w) of a probe; None if it is no such map."""
        if self._input.size is None:
            return exact_stride(shape, PROBE)
        return nearest_stride(shape, self._input.size)

    def _find_grid(self, whole: str, strided: str, stride: int) -> str | None:
        """On which grid ``strided`` has to lie for its interpolation to be ``whole``; None if on neither."""
        for grid, size in (("corner", (8 * stride + 1, 10 * stride + 1)), ("half_pixel", (8 * stride, 10 * stride))):
            try:
                full, cells = map(torch.from_numpy, self._run(distinct_noise(size), [whole, strided]))
            except UserError:  # it does not take such sizes
                continue
            guess = F.interpolate(cells, size=size, mode="bilinear", align_corners=grid == "corner")
            if guess.shape == full.shape and (guess - full).abs().max() <= 1e-3 * full.abs().max():
                return grid
        return None

    def _find_taps(self) -> None:
        """Find the feature maps: outputs of that name, or inside the file."""
        names = {entry.name: entry.name for entry in self._session.get_outputs() if entry.name in TAPS}
        if not names:
            names = self._find_inner_taps()
        probe = self._input.probe
        values = dict(zip(names, self._run(distinct_noise(probe), [self._logits, *names.values()])[1:], strict=True))
        self._taps = names
        self.tap_channels = {tap: value.shape[1] for tap, value in values.items()}
        self.tap_strides = {
            tap: self._stride_of(value.shape) or probe[0] // value.shape[2] for tap, value in values.items()
        }

    def _find_inner_taps(self) -> dict[str, str]:
        try:
            import onnx  # noqa: F401

            from networks import onnx_graph
        except ImportError:
            return {}
        model = onnx_graph.load(self.path)
        if model is None or not (blocks := onnx_graph.block_outputs(model)):
            return {}
        last = onnx_graph.before_classifier(model, self.num_classes)
        names = list(dict.fromkeys([*blocks, *([last] if last else [])]))
        session = self._open(onnx_graph.with_outputs(model, names))
        probe = self._input.probe
        probed = dict(zip(names, self._run(distinct_noise(probe), names, session), strict=True))
        taps = choose_taps({name: probed[name].shape for name in blocks}, probe)
        if taps:
            if last and exact_stride(probed[last].shape, probe):
                taps["decoder"] = last
            self._open = partial(self._open, onnx_graph.with_outputs(model, list(taps.values())))
            self._session = self._open()
        return taps

    # -- running it ----------------------------------------------------------------------------

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> OnnxTeacher:
        """`Module.to` and its like: ONNX Runtime runs where the module has been moved to."""
        device = fn(torch.empty(0, device=self._device)).device
        if device != self._device:
            self._device, self._session = device, self._open(device=device.type)
        return super()._apply(fn, recurse)

    def forward_taps(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As every model's; on a corner grid the image is not padded, for its cells cover any size by themselves."""
        covers_any = self.grid == "corner" and not self._input.size
        return self._forward_padded(images if covers_any else pad_to_stride(images, self.stride))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As every model's; logits that the file itself brings to full size are as it gives them."""
        if self._cell > 1:
            return super().forward(images)
        height, width = images.shape[-2:]
        own = images if self._input.size else pad_to_stride(images, self.stride)
        (logits,) = self._compute(own, [self._logits])
        fit = resize if self._input.size else _fit
        return fit(logits, (height, width)).to(images.device)

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        height, width = (side + -side % self.stride for side in images.shape[-2:])
        size = self._input.size or (height, width)
        fit = resize if self._input.size else _fit
        logits, *taps = self._compute(images, [self._logits, *self._taps.values()])
        if self.grid == "corner":
            logits = sample_corner_grid(logits, self._cell, self.logit_stride, size)
        elif self._cell == 1:  # the mean of each cell; as many as there are whole ones
            logits = F.adaptive_avg_pool2d(logits, (size[0] // self.logit_stride, size[1] // self.logit_stride))
        if self._input.size:
            logits = resize(logits, (height // self.logit_stride, width // self.logit_stride))
        fitted = {}
        for (tap, stride), values in zip(self.tap_strides.items(), taps, strict=True):
            fitted[tap] = fit(values, (height // stride, width // stride)).to(images.device)
        return logits.to(images.device), fitted

    @torch.no_grad()
    def _compute(self, images: torch.Tensor, outputs: list[str]) -> list[torch.Tensor]:
        """Outputs, on the CPU, for ``images`` (N, 3, H, W), normalised as ImageNet's."""
        own = images.detach().float().cpu()
        if self._renormalise:
            own = own * self._renormalise[0] + self._renormalise[1]
        own = resize(own, self._input.size) if self._input.size else own
        return [torch.from_numpy(values) for values in self._run(own.numpy(), outputs)]

    def _run(self, images: np.ndarray, outputs: list[str], session: InferenceSession | None = None) -> list[np.ndarray]:
        """Outputs for ``images`` (N, 3, H, W) float32, which are of the file's own size if it has one."""
        return self._input.run(session or self._session, images, outputs)


def load_onnx_teacher(path: str | Path, num_classes: int | None) -> OnnxTeacher:
    """The teacher in an ONNX file, in eval mode; what was found in it is printed. Arguments as of `OnnxTeacher`.

    Raises:
        UserError: as `OnnxTeacher`.
    """
    model = OnnxTeacher(path, num_classes)
    taps = ", ".join(f"{tap} ({channels})" for tap, channels in model.tap_channels.items()) or "none"
    limits = "".join(f", {limit}" for limit in model.limits)
    print(f"{path}: logits at stride {model.logit_stride}, feature maps: {taps}{limits}")
    return model.eval()


def sample_corner_grid(cells: torch.Tensor, cell: int, stride: int, size: tuple[int, int]) -> torch.Tensor:
    """Interpolate ``cells`` (N, C, h, w), cell i standing for pixel ``cell`` * i, at the centres of a grid.

    Beyond the last cell its value goes on.

    Returns:
        (N, C, H / stride, W / stride) for ``size`` = (H, W); cell j is the value at pixel stride * j +
        (stride - 1) / 2.
    """
    axes = []
    for side, count in zip(size, cells.shape[-2:], strict=True):
        pixels = torch.arange(side // stride, device=cells.device) * stride + (stride - 1) / 2
        axes.append(2 * pixels / (cell * max(count - 1, 1)) - 1)  # -1 and 1 are the first and last cell
    y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([x, y], dim=-1).expand(len(cells), -1, -1, -1)
    return F.grid_sample(cells, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _fit(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut or go on with the last row and column, to ``size``: maps of images that were not padded end early."""
    height, width = size
    values = values[..., :height, :width]
    return F.pad(values, (0, width - values.shape[-1], 0, height - values.shape[-2]), mode="replicate")
