"""Model names that say where a network comes from, beside the rows of the zoo.

    hf:ORG/NAME, hf:FOLDER        a segmentation network of transformers (`networks.huggingface`)
    smp:ORG/NAME, smp:FOLDER      one of segmentation_models_pytorch, whole (`networks.smp`)
    smp:ARCH/ENCODER              any of its architectures with any of its encoders
    FILE.py:FUNCTION              a user's own (`networks.user_file`)

A repository of the hub may be pinned: ``hf:ORG/NAME@REVISION``. Each network brings its own normalisation, and a
teacher its own classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from basics.errors import UserError
from networks import huggingface, smp, user_file
from networks.base import SegmentationModel
from networks.class_lists import same_names
from networks.class_names import class_difference
from networks.weights import ClassCountError, WeightsFile, build_counted, load_whole, unwrap

FORMS = {
    "hf:ORG/NAME or hf:FOLDER": "a segmentation network of transformers",
    "smp:ORG/NAME or smp:FOLDER": "one of segmentation_models_pytorch, whole",
    "smp:ARCH/ENCODER": "any of its architectures and encoders, timm's as tu-NAME",
    "FILE.py:FUNCTION": "your own",
}
HUBS = ("hf:", "smp:")


def is_source(name: str) -> bool:
    """Whether a model's name is of one of these forms, and no row of the zoo."""
    return name.startswith(HUBS) or user_file.is_spec(name)


def short_name(name: str) -> str:
    """What to call it in tables and folders: ``hf:nvidia/segformer-b0`` is ``segformer-b0``."""
    if not is_source(name):
        return name
    if not name.startswith(HUBS):
        return f"{user_file.file_of(name).stem}-{name.rpartition(':')[2]}"
    place = name.partition(":")[2].rstrip("/\\")
    parts = re.split(r"[/\\]", place.partition("@")[0])
    is_architecture = name.startswith("smp:") and smp.is_architecture(parts[0])
    return re.sub(r"[^\w.-]+", "-", "-".join(parts) if is_architecture else parts[-1])


def build(name: str, num_classes: int, **model_args: Any) -> SegmentationModel:
    """The network with random weights (a user's file gives it as it likes): from a checkpoint's arguments, or anew."""
    if name.startswith("hf:"):
        return huggingface.build(name, num_classes, **model_args)
    if name.startswith("smp:"):
        if model_args:
            return smp.rebuild(num_classes, **model_args)
        if smp.split_name(name):
            return smp.create(name, num_classes, weights=False)
        return smp.rebuild(num_classes, **smp.read_arguments(name))
    return _for_classes(name, num_classes)


def create(
    name: str,
    num_classes: int,
    weights: str = "default",
    class_names: Sequence[str] | None = None,
    file: WeightsFile | None = None,
) -> SegmentationModel:
    """A student for the classes of a data set; what of it is pretrained is printed.

    Args:
        weights: ``default``: as published, but for the classifier where the classes are others; ``none``: random.
        class_names: of the data set.
        file: if given, the weights are taken from it instead.

    Raises:
        UserError: it cannot be had, or the file does not belong to it.
    """
    if file is not None:
        model = _build_for(name, num_classes, file)
        _load_file(model, file, name, class_names)
        return model
    if weights == "none":
        return build(name, num_classes)
    if name.startswith("hf:"):
        return huggingface.load_for(name, num_classes, class_names)
    if name.startswith("smp:"):
        whole = smp.split_name(name) is None
        return smp.load_for(name, num_classes, class_names) if whole else smp.create(name, num_classes)
    return _for_classes(name, num_classes)


def load(name: str, num_classes: int | None = None, file: WeightsFile | None = None) -> SegmentationModel:
    """A teacher with its own classes.

    Args:
        num_classes: of the data set: for what does not know its own number, nor its weights tell.
        file: if given, the weights are taken from it instead of the published ones.

    Raises:
        UserError: it cannot be had, or there are no weights of the whole network.
    """
    if file is not None:
        return _load_with(name, num_classes, file)
    if name.startswith("hf:"):
        return huggingface.load(name)
    if name.startswith("smp:"):
        if smp.split_name(name):
            raise UserError(
                f"{name}: of that only the encoder is published, so it is no teacher yet: train it first "
                f"(train_kd.py --student {name} --alpha 0 --beta 0) and pass --teacher-weights PATH"
            )
        return smp.load(name)
    return user_file.load(name, num_classes, own=True, trained=True)


def refuse_foreign(checkpoint: Mapping[str, Any]) -> None:
    """A `UserError` where a checkpoint, and nobody else, names a file of code that may not be run for that: whoever
    builds what a checkpoint names asks here first.
    """
    if user_file.is_spec(name := str(checkpoint["model"])):
        user_file.refuse_foreign(name, str(checkpoint.get("model_args", {}).get("sha256")))


def _load_with(name: str, num_classes: int | None, file: WeightsFile) -> SegmentationModel:
    """A teacher with the weights of ``file``, of as many classes as these are for."""
    names = file.class_names

    def build_for(count: int | None) -> SegmentationModel:
        if user_file.is_spec(name):  # which has a number of its own, perhaps
            return user_file.load(name, count or num_classes, own=count is None)
        if count is None:
            raise UserError(f"{file.origin}: bare weights: of how many classes is not known without a data set")
        return _build_for(name, count, file)

    def load_into(model: SegmentationModel) -> None:
        load_whole(model, unwrap(model, file), file.origin)

    count = len(names) if names else None if user_file.is_spec(name) else num_classes
    model = build_counted(build_for, count, load_into, fixed=bool(names))
    model.class_names = list(names) if names else model.class_names
    model.input_size = (file.checkpoint or {}).get("input_size", 0)
    return model


def _build_for(name: str, num_classes: int, file: WeightsFile) -> SegmentationModel:
    """The network that the weights of ``file`` are for; whoever named it has been asked whether its code may be run."""
    args = {} if user_file.is_spec(name) else (file.checkpoint or {}).get("model_args", {})
    return build(name, num_classes, **args)


def _for_classes(name: str, num_classes: int) -> SegmentationModel:
    """A user's network as a student."""
    model = user_file.load(name, num_classes)
    if model.num_classes != num_classes:
        raise UserError(
            f"{name}: gives logits of {model.num_classes} classes, the data set has {num_classes}: let the function "
            "take num_classes"
        )
    return model


def _load_file(
    model: SegmentationModel, file: WeightsFile, name: str, class_names: Sequence[str] | None = None
) -> None:
    """Load a file into a student: all of it, or all but the classifier if it is for other classes."""
    state = unwrap(model, file)
    try:
        if file.class_names and class_names and not same_names(file.class_names, class_names):
            raise ClassCountError(f"{file.origin}: made for {class_difference(file.class_names, class_names)}")
        load_whole(model, state, file.origin)
        model.input_size = (file.checkpoint or {}).get("input_size", 0)
        print(f"{name}: all weights from {file.origin}")
    except ClassCountError as error:
        head = model.head_names()
        if not head:
            raise
        kept = {key: value for key, value in state.items() if key not in head}
        load_whole(model, kept | {key: model.state_dict()[key] for key in head}, file.origin)
        print(f"{error}: all but the classifier is taken")
