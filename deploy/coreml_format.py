"""Core ML (.mlpackage): converted by coremltools on any system, run by Apple's alone."""

from __future__ import annotations

import contextlib
import io
import platform
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from basics.errors import UserError, reason_of
from basics.optional_packages import need
from deploy.exported import ExportedModel, fixed_size
from deploy.exporting import ExportOptions, example_images, quiet, without_aliases
from deploy.model_card import ModelCard


def save_coreml(program: ExportedProgram, card: ModelCard, path: Path, options: ExportOptions) -> None:
    """Write the package ``path``, for iOS 16 and macOS 13 on, in float32.

    Raw RGB comes in as an image, as Vision and the camera hand it over; masks go out as int32, since Core ML has no
    uint8 arrays.

    Raises:
        UserError: coremltools is not installed, or cannot take the graph.
    """
    # Whatever goes wrong comes as an exception; what it prints is progress, and parts that only macOS has.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        coreml = need("coremltools", "coremltools", "Core ML export")
        try:
            # An image's values are floats, 0 to 255: captured anew with these, the graph has no uint8.
            images = example_images(size=options.size)
            network = torch.export.export(without_aliases(program, decompose=True), (images,))
            given: dict[str, Any] = {}
            if card.input == "uint8":
                rgb = coreml.colorlayout.RGB
                given["inputs"] = [coreml.ImageType(name="images", shape=tuple(images.shape), color_layout=rgb)]
            model = coreml.convert(
                network.run_decompositions({}),
                outputs=[coreml.TensorType(name=card.output)],
                convert_to="mlprogram",
                minimum_deployment_target=coreml.target.iOS16,
                compute_precision=coreml.precision.FLOAT32,
                **given,
            )
        except Exception as error:  # the converter has an exception class for every stage
            reason = reason_of(error)
            raise UserError(f"coremltools cannot convert a {card.model}: {reason}") from error
        model.user_defined_metadata.update(card.to_metadata())
        model.save(str(path))


class CoreMlModel(ExportedModel):
    """A Core ML package, run by the system's framework."""

    def __init__(self, path: Path) -> None:
        if platform.system() != "Darwin":
            raise UserError(f"{path}: Core ML runs on Apple's systems alone; use the .onnx or .pth file here")
        coreml = need("coremltools", "coremltools", str(path))
        try:
            model = coreml.models.MLModel(str(path), compute_units=coreml.ComputeUnit.CPU_ONLY)
        except Exception as error:  # a damaged package fails in many ways
            raise UserError(f"{path}: Core ML cannot read it: {str(error).strip()[:200]}") from error
        card = ModelCard.from_metadata(model.user_defined_metadata, str(path))
        kind = model.get_spec().description.input[0].type
        image = kind.imageType
        size = (image.height, image.width) if card.input == "uint8" else fixed_size(list(kind.multiArrayType.shape))
        super().__init__(card, torch.device("cpu"), size)
        self.network = model

    def run(self, images: torch.Tensor) -> torch.Tensor:
        from PIL import Image

        array = images.cpu().numpy()
        given = Image.fromarray(array[0].transpose(1, 2, 0)) if self.card.input == "uint8" else array
        result = torch.from_numpy(self.network.predict({"images": given})[self.card.output])
        return (result.to(torch.uint8) if self.card.output == "mask" else result).to(images.device)
