"""The file of a trained network: all that rebuilds it without a flag and without a network to download from.

`ModelFile` is the one place that says what it holds: writing is checked against it by the type checker, reading by
`check_model_file`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast, get_origin, get_type_hints

import torch

from basics.batch import MEAN, STD
from basics.errors import UserError
from networks.base import SegmentationModel

FORMAT = 2  # of files with a working size, which a program that does not know of it must not read; others are 1


class ModelFile(TypedDict):
    """What a checkpoint holds, plain values and tensors on the CPU; training adds entries of its own.

    Attributes:
        format: version of this list.
        model: name in zoo.py.
        model_args: what the network was built with besides the number of classes.
        class_names, palette: of the data set it was trained on; a colour is three of 0..255.
        mean, std: of the normalisation, for RGB values in 0..1.
        input_size: the working size, pixels on the longer side of what the network sees; 0: the picture's own.
        state_dict: the weights.
        info: how they came about, for people.
    """

    format: int
    model: str
    model_args: dict[str, object]
    class_names: list[str]
    palette: list[list[int]]
    mean: list[float]
    std: list[float]
    input_size: int
    state_dict: Mapping[str, torch.Tensor]
    info: dict[str, object]


class Labelled(Protocol):
    """What a model file keeps of the data set."""

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def palette(self) -> Sequence[Sequence[int]]: ...


def model_file_dict(
    name: str,
    model: SegmentationModel,
    dataset: Labelled,
    info: Mapping[str, object] | None = None,
    input_size: int = 0,
) -> ModelFile:
    """A checkpoint that needs no flags to be used, with a copy of the weights."""
    return {
        "format": FORMAT if input_size else 1,
        "model": name,
        "model_args": dict(model.model_args),
        "class_names": [str(name) for name in dataset.class_names],
        "palette": [[int(value) for value in colour] for colour in dataset.palette],
        "mean": list(MEAN),
        "std": list(STD),
        "input_size": input_size,
        "state_dict": {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()},
        "info": dict(info or {}),
    }


def check_model_file(content: Mapping, path: str | Path, check_name: Callable[[str], object]) -> ModelFile:
    """``content``, if it has every entry of a `ModelFile`, each of its kind; without a working size it is native.

    Args:
        check_name: raises a `UserError` unless there is a model of that name.

    Raises:
        UserError: naming ``path`` and what is wrong.
    """
    content = {"input_size": 0, **content}
    kinds = {key: get_origin(kind) or kind for key, kind in get_type_hints(ModelFile).items()}
    faulty = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
    if faulty:
        raise UserError(f"{path}: not a checkpoint of this project ({', '.join(faulty)} missing or of another kind)")
    checkpoint = cast(ModelFile, content)
    if checkpoint["format"] > FORMAT:
        raise UserError(f"{path}: written by a newer version of this project (format {checkpoint['format']})")
    try:
        check_name(checkpoint["model"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    fault = fault_of_description(checkpoint)
    if fault or not all(isinstance(key, str) for key in checkpoint["model_args"]):
        raise UserError(f"{path}: damaged: {fault or 'an argument of the model that has no name'}")
    numbers = [*checkpoint["mean"], *checkpoint["std"]]
    if not all(math.isclose(one, own, abs_tol=1e-6) for one, own in zip(numbers, (*MEAN, *STD), strict=True)):
        raise UserError(
            f"{path}: made for images normalised by mean {checkpoint['mean']} and std {checkpoint['std']}, and all "
            f"networks here are given images by {list(MEAN)} and {list(STD)}: it would see other pictures than it was "
            "trained on"
        )
    return checkpoint


def fault_of_description(said: Mapping[str, Any]) -> str | None:
    """What is wrong with the class names, palette, normalisation or working size that a file gives; None: nothing."""
    names, palette, mean, std, input_size = (
        said[key] for key in ("class_names", "palette", "mean", "std", "input_size")
    )
    if not all(isinstance(each, list | tuple) for each in (names, palette, mean, std)):
        return "class names, palette, mean and std must be lists"
    if not names or len(palette) < len(names):
        return f"{len(names)} class names, {len(palette)} colours"
    if not all(isinstance(name, str) for name in names) or not all(_is_colour(colour) for colour in palette):
        return "a class name that is no text, or a colour that is not three of 0..255"
    numbers = [*mean, *std]
    if (len(mean), len(std)) != (3, 3) or not all(
        isinstance(value, float | int) and math.isfinite(value) for value in numbers
    ):
        return "mean and std must be three numbers each"
    if min(std) <= 0:
        return f"a standard deviation of {min(std):g}"
    if not isinstance(input_size, int) or input_size < 0:
        return f"a working size of {input_size} pixels"
    return None


def _is_colour(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    )
