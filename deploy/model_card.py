"""What an exported file says about itself, so that it can be used without the checkpoint it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from basics.errors import UserError
from networks.model_file import ModelFile, fault_of_description

CARD_FORMAT = 2  # of cards with a working size, which a program that does not know of it must not read; others are 1

Input = Literal["normalized", "uint8"]
Output = Literal["logits", "mask"]
Precision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class ModelCard:
    """Everything about an exported network but its graph.

    Attributes:
        model, class_names, palette, mean, std: as in the checkpoint it was made from (`ModelFile`); mean and
            std whether the normalisation is inside the graph or not.
        input: ``normalized`` (float32, by mean and std) or ``uint8`` (raw RGB); (N, 3, H, W) both.
        output: ``logits`` (N, C, H, W) or ``mask`` (N, H, W), the most likely class.
        precision: of the arithmetic.
        parameters: number of parameters of the network.
        input_size: the working size: pictures are brought to so many pixels on the longer side before they go in, and
            what comes out is brought back to their own size, both by whoever runs the file; 0: neither.
    """

    model: str
    class_names: list[str]
    palette: list[list[int]]
    mean: list[float]
    std: list[float]
    parameters: int
    input: Input = "normalized"
    output: Output = "logits"
    precision: Precision = "fp32"
    input_size: int = 0
    format: int = 1

    def is_int8_of(self, other: ModelCard) -> bool:
        """Whether it can be the INT8 form of the network of ``other``, in the same form of file."""
        return self == replace(other, precision="int8")

    def to_metadata(self) -> dict[str, str]:
        """As ONNX keeps it: strings by name, everything but strings as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], origin: str) -> ModelCard:
        """The card in ``metadata``; a `UserError` if ``origin`` has none or a damaged one."""
        kinds = get_type_hints(cls)
        choices = {name: get_args(kind) for name, kind in kinds.items() if get_origin(kind) is Literal}
        values: dict[str, Any] = {}
        for name, kind in kinds.items():
            if name == "input_size" and name not in metadata:  # a file from before there was one
                continue
            if name not in metadata:
                raise UserError(
                    f"{origin}: its metadata has no {name!r}, so not a file of export.py or quantize.py: "
                    "export the checkpoint with these"
                )
            try:
                values[name] = metadata[name] if kind is str or name in choices else json.loads(metadata[name])
            except (ValueError, RecursionError) as error:
                raise UserError(f"{origin}: its metadata {name!r} is damaged") from error
        wrong = [name for name, known in choices.items() if values[name] not in known]
        if wrong or not isinstance(values["format"], int) or values["format"] > CARD_FORMAT:
            raise UserError(f"{origin}: written by a newer version of this project, or damaged ({wrong or 'format'})")
        fault = fault_of_description({"input_size": 0, **values})
        if fault or not isinstance(values["parameters"], int):
            raise UserError(f"{origin}: its metadata is damaged: {fault or 'the number of parameters is none'}")
        return cls(**values)

    @classmethod
    def of_checkpoint(
        cls, checkpoint: ModelFile, parameters: int, *, input: Input, output: Output, precision: Precision
    ) -> ModelCard:
        """The card of a checkpoint's network in the form that is asked for."""
        input_size = checkpoint.get("input_size", 0)
        return cls(
            model=checkpoint["model"],
            class_names=checkpoint["class_names"],
            palette=checkpoint["palette"],
            mean=checkpoint["mean"],
            std=checkpoint["std"],
            parameters=parameters,
            input=input,
            output=output,
            precision=precision,
            input_size=input_size,
            format=CARD_FORMAT if input_size else 1,
        )
