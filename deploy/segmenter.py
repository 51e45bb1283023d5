"""Any trained network, from whatever file, as one thing that turns pictures into masks.

    segmenter = load_segmenter("checkpoints/run/best.pth")     # or .onnx, .pt2, .xml, .tflite, ...
    mask = segmenter.mask(image)                               # uint8 (3, H, W) -> uint8 (H, W)
    both = segmenter.predict(image, confidence=True)           # .mask, and .confidence: how likely it is, 0..255

Used by predict.py, evaluate.py and visualize.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from basics.batch import normalize
from basics.device import pick_device
from basics.errors import UserError
from basics.tiling import blended_blocks
from deploy.exporting import LEAST_SIZE
from deploy.formats import format_of, load_exported, stored_bytes
from networks.cost import count_parameters
from networks.working_size import WorkingSize, at_working_size, fitted_size_of, refuse_other_size, working_size_of
from scoring.protocol import check_untiled
from zoo import load_checkpoint_model


@dataclass(frozen=True)
class Prediction:
    """What a network says of a picture, or of some rows of it; both on the CPU.

    Attributes:
        mask: uint8 (H, W), the most likely class of each pixel.
        confidence: uint8 (H, W), that class's probability times 255, rounded; None where it was not asked for.
    """

    mask: torch.Tensor
    confidence: torch.Tensor | None = None


@dataclass(frozen=True)
class Segmenter:
    """A trained network ready for use.

    Attributes:
        model: normalised images (N, 3, H, W) -> logits (N, C, H, W), in eval mode; a
            `networks.working_size.WorkingSize` where it has a working size.
        name: the architecture, the precision where it is not float32, and the size that it sees pictures at, if any.
        class_names, palette: of the classes it knows.
        parameters: number of parameters.
        file_bytes: size of the file it came from.
        device: where it runs.
    """

    model: nn.Module
    name: str
    class_names: list[str]
    palette: list[list[int]]
    parameters: int
    file_bytes: int
    device: torch.device

    @property
    def input_size(self) -> int:
        """Its working size, in pixels on the longer side; 0: it sees pictures at their own size."""
        return working_size_of(self.model)

    def at(self, input_size: int) -> Segmenter:
        """The same network at another working size; 0: at each picture's own.

        Raises:
            UserError: it comes from a file for pictures of one size.
        """
        refuse_other_size(self.name, self.model)
        model = self.model.model if isinstance(self.model, WorkingSize) else self.model
        name, model = _sized(self.name.removesuffix(f" at {self.input_size}"), model, input_size)
        return replace(self, name=name, model=model)

    @torch.inference_mode()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 ``images`` (N, 3, H, W) of any size -> logits (N, C, H, W) on the device; small ones are padded."""
        height, width = images.shape[-2:]
        images = normalize(images.to(self.device))
        if self.input_size:
            return self.model(images)
        pad = (0, max(0, LEAST_SIZE - width), 0, max(0, LEAST_SIZE - height))
        return self.model(F.pad(images, pad))[..., :height, :width]

    def require_confidence(self) -> None:
        """A `UserError` where nothing tells how sure the network is."""
        if getattr(self.model, "decides_only", False):
            raise UserError(
                f"{self.name}: this file gives masks, not logits, and no mask tells how sure it is: export it again "
                "without --argmax, or leave out the confidence"
            )

    def mask(self, image: torch.Tensor, tile: int = 0) -> torch.Tensor:
        """`predict`'s mask alone."""
        return self.predict(image, tile).mask

    def predict(self, image: torch.Tensor, tile: int = 0, confidence: bool = False) -> Prediction:
        """The most likely class of each pixel.

        Args:
            image: uint8 (3, H, W).
            tile: run squares of this many pixels a side, overlapping by a quarter, rather than the whole
                image at once; 0 for the whole image.
            confidence: how likely it is, too.

        Raises:
            UserError: there is no confidence to be had of this file, or nothing to cut into tiles at its working size.
        """
        height, width = image.shape[-2:]
        rows = self.bands(lambda top, bottom: image[:, top:bottom], (height, width), tile, confidence)
        bands = [band for _, band in rows]
        mask = torch.cat([band.mask for band in bands])
        sure = [band.confidence for band in bands if band.confidence is not None]
        return Prediction(mask, torch.cat(sure) if sure else None)

    @torch.inference_mode()
    def bands(
        self,
        read_rows: Callable[[int, int], torch.Tensor],
        size: tuple[int, int],
        tile: int = 0,
        confidence: bool = False,
    ) -> Iterator[tuple[int, Prediction]]:
        """`predict`, from the top to the bottom, of a picture that need not be in memory as a whole.

        Args:
            read_rows: first row and the one behind the last -> uint8 (3, rows, W); see `blended_blocks`.
            size: (H, W).

        Yields:
            the first row, and what is said of some rows.
        """
        if confidence:
            self.require_confidence()
        check_untiled(self.name, self.input_size, "the tiles", tile)
        if isinstance(self.model, WorkingSize):
            for top, logits in self.model.bands(lambda *rows: normalize(read_rows(*rows)[None].to(self.device)), size):
                yield top, _decide(logits[0], confidence)
            return
        if not tile or max(size) <= tile:
            yield 0, _decide(self.logits(read_rows(0, size[0])[None])[0], confidence)
            return
        blocks = blended_blocks(self.logits, lambda *rows: read_rows(*rows)[None], size, tile)
        for top, row in itertools.groupby(blocks, key=lambda block: block[0]):
            decided = [_decide(logits[0], confidence) for _, _, logits in row]
            sure = [part.confidence for part in decided if part.confidence is not None]
            yield top, Prediction(torch.cat([part.mask for part in decided], 1), torch.cat(sure, 1) if sure else None)


def _decide(logits: torch.Tensor, confidence: bool) -> Prediction:
    """Logits (C, H, W) -> the largest one's index, and its softmax."""
    # max(0) gives the same indices as argmax(0), several times faster on the CPU.
    largest, mask = logits.max(0)
    sure = None
    if confidence:
        probability = (largest.float() - logits.float().logsumexp(0)).exp()
        sure = (255 * probability).round().to(torch.uint8).cpu()
    return Prediction(mask.to(torch.uint8).cpu(), sure)


def load_segmenter(path: str | Path, device: str = "auto") -> Segmenter:
    """The network in a checkpoint (.pth) or an exported file (.onnx, .pt2, and the others of `deploy.formats`).

    A checkpoint of quantization-aware training runs with the rounding of its INT8 form.

    Raises:
        UserError: no such file, a damaged one, or one this project did not make.
    """
    path, target = Path(path), pick_device(device)
    known = format_of(path)
    if known is None:
        return _from_checkpoint(path, target)
    if known.cpu_only:
        if device not in ("auto", "cpu"):
            raise UserError(
                f"{path}: {path.suffix} files run on the CPU here; use --device cpu, or the .onnx or .pth file"
            )
        target = torch.device("cpu")
    exported = load_exported(path, target)
    card = exported.card
    name = card.model if card.precision == "fp32" else f"{card.model} {card.precision}"
    name, model = _sized(name, exported, card.input_size)
    size = stored_bytes(path)
    return Segmenter(model, name, card.class_names, card.palette, card.parameters, size, exported.device)


def _from_checkpoint(path: Path, device: torch.device) -> Segmenter:
    model, checkpoint = load_checkpoint_model(path, device)
    name, parameters = checkpoint["model"], count_parameters(model)
    assert parameters is not None  # those of an ONNX teacher alone may be unknown
    if "qat" in checkpoint:
        from deploy.quantized import load_fake_quant

        device = torch.device("cpu") if device.type == "mps" else device  # which has no fake quantization
        model, name = load_fake_quant(model.to(device), checkpoint), f"{name} qat"
    name, network = _sized(name, model, checkpoint["input_size"])
    names, palette = checkpoint["class_names"], checkpoint["palette"]
    return Segmenter(network, name, names, palette, parameters, path.stat().st_size, device)


def _sized(name: str, model: nn.Module, input_size: int) -> tuple[str, nn.Module]:
    """Network at its working size, and its name with that, or with the size of pictures of its file, if it has one."""
    if fitted := fitted_size_of(model):
        name = f"{name} at {fitted[0]}x{fitted[1]}"
    elif input_size:
        name = f"{name} at {input_size}"
    return name, at_working_size(model, input_size)
