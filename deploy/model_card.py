"""What an exported file says about itself, so that it can be used without the checkpoint it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from basics.errors import UserError

CARD_FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """Everything about an exported network but its graph.

    Attributes:
        model: name in zoo.py of the network it was made from.
        class_names, palette: of the data set it was trained on.
        mean, std: of the normalisation, for values in 0..1, whether it is inside the graph or not.
        input: ``normalized`` (float32, by mean and std) or ``uint8`` (raw RGB); (N, 3, H, W) both.
        output: ``logits`` (N, C, H, W) or ``mask`` (N, H, W), the most likely class.
        precision: ``fp32`` or ``int8``.
        parameters: number of parameters of the network.
    """

    model: str
    class_names: list[str]
    palette: list[list[int]]
    mean: list[float]
    std: list[float]
    parameters: int
    input: str = "normalized"
    output: str = "logits"
    precision: str = "fp32"
    format: int = CARD_FORMAT

    def to_metadata(self) -> dict[str, str]:
        """As ONNX keeps it: strings by name, everything but strings as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], origin: str) -> ModelCard:
        """The card in ``metadata``; a `UserError` if ``origin`` has none or a damaged one."""
        values = {}
        for field in fields(cls):
            if field.name not in metadata:
                raise UserError(
                    f"{origin}: its metadata has no {field.name!r}, so not a file of export.py or quantize.py: "
                    "export the checkpoint with these"
                )
            text = metadata[field.name]
            try:
                values[field.name] = text if field.type == "str" else json.loads(text)
            except ValueError as error:
                raise UserError(f"{origin}: its metadata {field.name!r} is damaged") from error
        card = cls(**values)
        known = {"input": ("normalized", "uint8"), "output": ("logits", "mask"), "precision": ("fp32", "int8")}
        wrong = [name for name, choices in known.items() if getattr(card, name) not in choices]
        if wrong or not isinstance(card.format, int) or card.format > CARD_FORMAT:
            raise UserError(f"{origin}: written by a newer version of this project, or damaged ({wrong or 'format'})")
        return card

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping, parameters: int, **more: str) -> ModelCard:
        """The card of a checkpoint of this project."""
        kept = {name: checkpoint[name] for name in ("model", "class_names", "palette", "mean", "std")}
        return cls(**kept, parameters=parameters, **more)
