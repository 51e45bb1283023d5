"""Every model by name: how it is built, where its weights come from, what its feature maps are.

python zoo.py                       # table: parameters, MACs, strides, taps, source of weights
python zoo.py --size 512 standard fcn_resnet50

from zoo import create_model, load_teacher, load_checkpoint_model
student = create_model("standard", num_classes=21, weights="default")
teacher = load_teacher("fcn_resnet50", num_classes=21)
model, checkpoint = load_checkpoint_model("checkpoints/run/best.pth")
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision.models as tv
from torchvision.models import segmentation as tvs

from basics.errors import UserError, choose, run_cli
from basics.text import text_table
from networks import smp as smp_models
from networks.base import SegmentationModel
from networks.class_names import class_difference, list_classes
from networks.cost import count_macs, count_parameters
from networks.fastlitessnet import FastLiteSSNet
from networks.model_file import ModelFile, check_model_file
from networks.model_file import model_file_dict as model_file_dict  # to be had here, too
from networks.onnx_teacher import load_onnx_teacher
from networks.torchvision import DeepLabV3MobileNet, LRASPPMobileNet, ResNetModel
from networks.weights import (
    ClassCountError,
    StateDict,
    WeightsFile,
    fetch,
    first_names,
    is_whole,
    load_backbone,
    load_whole,
    read_weights,
    unwrap,
)
from student_model import StudentNet

VOC_CLASS_COUNT = 21


@dataclass(frozen=True)
class ModelSpec:
    """A row of the registry.

    Attributes:
        build: ``build(num_classes, **model_args)`` -> the model with random weights.
        backbone_weights: fetches the pretrained backbone; None where nobody publishes one.
        whole_weights: fetches 21-class VOC weights of the whole network; None likewise.
        source: where the weights come from, in words.
    """

    build: Callable[..., SegmentationModel]
    backbone_weights: Callable[[], StateDict] | None
    source: str
    whole_weights: Callable[[], StateDict] | None = None


def _torchvision(weights: tv.WeightsEnum) -> Callable[[], StateDict]:
    """A fetcher for a torchvision weights' enum member; downloads once, then reads its cache."""
    return partial(weights.get_state_dict, progress=True, check_hash=True)


def _torchvision_spec(
    build: Callable[..., SegmentationModel], backbone: tv.WeightsEnum, whole: tv.WeightsEnum
) -> ModelSpec:
    source = f"torchvision ImageNet backbone; as teacher {whole.name}"
    return ModelSpec(build, _torchvision(backbone), source, _torchvision(whole))


def _smp_spec(build: Callable[..., SegmentationModel], encoder: str) -> ModelSpec:
    return ModelSpec(build, partial(smp_models.imagenet_encoder, encoder), f"smp ImageNet encoder {encoder}")


STUDENT_BACKBONE = _torchvision(tv.MobileNet_V3_Small_Weights.IMAGENET1K_V1)
RESNET50, RESNET101 = tv.ResNet50_Weights.IMAGENET1K_V1, tv.ResNet101_Weights.IMAGENET1K_V1
MOBILENET_LARGE = tv.MobileNet_V3_Large_Weights.IMAGENET1K_V1

MODELS: dict[str, ModelSpec] = {
    "standard": ModelSpec(partial(StudentNet, variant="standard"), STUDENT_BACKBONE, "torchvision ImageNet backbone"),
    "compact": ModelSpec(partial(StudentNet, variant="compact"), STUDENT_BACKBONE, "torchvision ImageNet backbone"),
    "fastlitessnet": ModelSpec(FastLiteSSNet, None, "none published: trained from scratch"),
    "fcn_resnet50": _torchvision_spec(
        partial(ResNetModel, tvs.fcn_resnet50), RESNET50, tvs.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    "fcn_resnet101": _torchvision_spec(
        partial(ResNetModel, tvs.fcn_resnet101), RESNET101, tvs.FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    "deeplabv3_resnet50": _torchvision_spec(
        partial(ResNetModel, tvs.deeplabv3_resnet50), RESNET50, tvs.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    "deeplabv3_resnet101": _torchvision_spec(
        partial(ResNetModel, tvs.deeplabv3_resnet101),
        RESNET101,
        tvs.DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1,
    ),
    "deeplabv3_mobilenet_v3_large": _torchvision_spec(
        DeepLabV3MobileNet, MOBILENET_LARGE, tvs.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    "lraspp_mobilenet_v3_large": _torchvision_spec(
        LRASPPMobileNet, MOBILENET_LARGE, tvs.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    **{f"unet_{encoder}": _smp_spec(partial(smp_models.UNet, encoder), encoder) for encoder in ("vgg16", "resnet50")},
    **{
        f"deeplabv3plus_{encoder}": _smp_spec(partial(smp_models.DeepLabV3Plus, encoder), encoder)
        for encoder in ("resnet101", "resnet18", "mobilenet_v2")
    },
    **{
        f"segformer_{size}": _smp_spec(partial(smp_models.SegFormer, f"mit_{size}"), f"mit_{size}")
        for size in ("b0", "b1", "b2", "b3", "b4", "b5")
    },
}


# -- building ------------------------------------------------------------------------------------


def build_model(name: str, num_classes: int, **model_args: object) -> SegmentationModel:
    """The model ``name`` with random weights; ``model_args`` are its own extra arguments."""
    spec = choose(MODELS, name, "model")
    try:
        model = spec.build(num_classes, **model_args)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if not model_args:
            raise
        given = ", ".join(model_args)
        raise UserError(f"{name} cannot be built with the arguments in its file ({given}): {error}") from error
    model.model_args = dict(model_args)
    return model


def create_model(
    name: str,
    num_classes: int,
    weights: str = "none",
    class_names: Sequence[str] | None = None,
    **model_args: object,
) -> SegmentationModel:
    """A model to be trained.

    Args:
        name: a key of `MODELS`.
        num_classes: classes of the data set, background included.
        weights: ``none`` (random), ``default`` (the library's pretrained backbone) or the path of a
            weights' file: of the backbone, or of the whole network. Of a network for another number
            of classes the backbone alone is taken. What was loaded is printed.
        class_names: of the data set. Of a network for other classes than these, or for these in another order, the
            backbone alone is taken, too: its outputs would bear the wrong names.
        model_args: the model's own arguments; by default those in a checkpoint that is given.

    Raises:
        UserError: unknown name, download failed, or a file that does not belong to this model.
    """
    spec = choose(MODELS, name, "model")
    if weights in ("none", "default"):
        model = build_model(name, num_classes, **model_args)
        if weights == "default":
            _load_default_backbone(model, name, spec)
        return model
    file = _read_for(name, weights)
    model = build_model(name, num_classes, **{**(file.checkpoint or {}).get("model_args", {}), **model_args})
    state = unwrap(model, file)
    whole = is_whole(model, state)
    if whole and file.class_names and class_names is not None:
        difference = class_difference(file.class_names, class_names)
        if difference:
            print(f"{weights}: made for {difference}: only the backbone is taken")
            whole = False
    if whole:
        try:
            load_whole(model, state, file.origin)
            print(f"{name}: all weights from {file.origin}{_unnamed(file)}")
            return model
        except ClassCountError as error:
            print(f"{error}: only the backbone is taken")
    load_backbone(model, state, file.origin)
    return model


def _load_default_backbone(model: SegmentationModel, name: str, spec: ModelSpec) -> None:
    if spec.backbone_weights is None:
        print(f"{name}: nobody publishes pretrained weights; starting from random ones")
        return
    way_on = "pass --student-weights PATH with a file you have, or --student-weights none"
    load_backbone(model, fetch(f"the pretrained backbone of {name}", spec.backbone_weights, way_on), "the library")


def _unnamed(file: WeightsFile) -> str:
    """What to say of a file that cannot be compared with the data set."""
    return "" if file.class_names else ", which does not name its classes: taken to be the data set's, in their order"


def load_teacher(
    name: str, num_classes: int, weights: str = "default", class_names: Sequence[str] | None = None
) -> SegmentationModel:
    """A frozen teacher in eval mode; it has real weights, or this raises.

    The global random state is left as it was, so that a student built next does not depend on the teacher.

    Args:
        name: a key of `MODELS`.
        num_classes: classes of the data set, background included.
        weights: ``default`` (the library's VOC weights, 21 classes) or the path of a weights' file. A
            ``.onnx`` file is a teacher by itself, whatever ``name`` says (`networks.onnx_teacher`).
        class_names: if given, a file that names its classes must be for exactly these.

    Raises:
        UserError: no weights to be had, or weights for another model, class count or class list.
    """
    if weights.endswith(".onnx"):
        return load_onnx_teacher(weights, num_classes, class_names)
    spec = choose(MODELS, name, "teacher")
    if weights == "none":
        raise UserError("a teacher without weights teaches noise: pass --teacher-weights default or PATH")
    file = _default_teacher(name, spec, num_classes) if weights == "default" else _read_for(name, weights)
    if class_names is not None and file.class_names and list(file.class_names) != list(class_names):
        raise UserError(
            f"{weights}: made for {list_classes(file.class_names)}; the data set has {list_classes(class_names)} "
            f"({class_difference(file.class_names, class_names)})"
        )
    with torch.random.fork_rng(devices=[]):
        model = build_model(name, num_classes, **(file.checkpoint or {}).get("model_args", {}))
    state = unwrap(model, file)
    if not is_whole(model, state):
        raise UserError(
            f"{weights}: no weights of a whole {name}, but at most of its backbone: no teacher yet; it holds "
            f"{first_names(state)}, a {name} {first_names(model.state_dict())}"
        )
    load_whole(model, state, file.origin)
    if weights != "default" and class_names is not None and not file.class_names:
        print(f"{name}: all weights from {weights}{_unnamed(file)}")
    return model.eval().requires_grad_(False)


def teacher_name(name: str, weights: str) -> str:
    """What to call the teacher of these arguments: an ONNX file goes by its own name."""
    return Path(weights).stem if weights.endswith(".onnx") else name


def _default_teacher(name: str, spec: ModelSpec, num_classes: int) -> WeightsFile:
    train = f"train it first (train_kd.py --student {name} --alpha 0 --beta 0) and pass --teacher-weights PATH"
    if spec.whole_weights is None:
        raise UserError(f"nobody publishes segmentation weights for {name} that fit here; {train}")
    if num_classes != VOC_CLASS_COUNT:
        raise UserError(
            f"the published weights of {name} are for the {VOC_CLASS_COUNT} classes of VOC, the data set has "
            f"{num_classes}; {train}"
        )
    way_on = "pass --teacher-weights PATH with a file you have"
    return WeightsFile("the library", fetch(f"the weights of {name}", spec.whole_weights, way_on))


def _read_for(name: str, path: str) -> WeightsFile:
    """Read ``path``; a checkpoint of this project must be of model ``name``."""
    file = read_weights(path)
    if file.checkpoint is not None:
        check_model_file(file.checkpoint, path, MODELS)
        if file.checkpoint["model"] != name:
            raise UserError(f"{path}: holds a {file.checkpoint['model']}, asked for is a {name}")
        if "qat" in file.checkpoint:
            print(f"{path}: trained with the rounding of INT8 (--qat); taken are its weights, without that rounding")
    return file


# -- model files ---------------------------------------------------------------------------------


def load_model_state(model: SegmentationModel, checkpoint: Mapping, path: str | Path) -> None:
    """Load a checkpoint's weights into ``model``, strictly."""
    load_whole(model, dict(check_model_file(checkpoint, path, MODELS)["state_dict"]), str(path))


def load_checkpoint_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[SegmentationModel, ModelFile]:
    """The model in a checkpoint of this project, on ``device`` in eval mode, and all that the checkpoint holds.

    The global random state is left as it was.

    Raises:
        UserError: no such file, a damaged one, or not a checkpoint of this project.
    """
    if Path(path).suffix in (".onnx", ".pt2"):
        raise UserError(f"{path}: exported already; give the .pth file it was made from")
    file = read_weights(path)
    if file.checkpoint is None:
        raise UserError(f"{path}: bare weights, not a checkpoint of this project: the model and classes are unknown")
    checkpoint = check_model_file(file.checkpoint, path, MODELS)
    with torch.random.fork_rng(devices=[]):
        model = build_model(checkpoint["model"], len(checkpoint["class_names"]), **checkpoint["model_args"])
    load_whole(model, file.state_dict, str(path))
    return model.to(device).eval(), checkpoint


# -- the table -----------------------------------------------------------------------------------


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="rows of the table (default: all)")
    parser.add_argument("--num-classes", type=int, default=VOC_CLASS_COUNT, help="(21)")
    parser.add_argument("--size", type=int, default=256, help="side of the image MACs are counted at, in pixels (256)")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.size < 32 or args.num_classes < 1:
        raise UserError("--size must be at least 32, --num-classes at least 1")
    for name in args.models:
        choose(MODELS, name, "model")
    titles = ("model", "M params", "G MACs", "pads to", "taps: channels@stride (low, mid, high, decoder)", "weights")
    rows = [table_row(name, args.num_classes, args.size) for name in args.models or MODELS]
    print(text_table(titles, rows, left=(0, 4, 5)))


def table_row(name: str, num_classes: int, size: int) -> list[str]:
    """What the table says of a model; of one whose library is not installed, what to install."""
    try:
        model = build_model(name, num_classes).eval()
    except UserError as error:
        return [name, "-", "-", "-", "-", str(error)]
    parameters = count_parameters(model)
    assert parameters is not None  # those of an ONNX file alone are unknown
    taps = ", ".join(f"{channels}@{model.tap_strides[tap]}" for tap, channels in model.tap_channels.items())
    macs = count_macs(model, size)
    return [name, f"{parameters / 1e6:.2f}", f"{macs / 1e9:.2f}", str(model.stride), taps, MODELS[name].source]


if __name__ == "__main__":
    run_cli(main, get_args_parser)
