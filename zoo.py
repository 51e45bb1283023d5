"""Every model by name: how it is built, where its weights come from, what its feature maps are.

python zoo.py                       # table: parameters, MACs, strides, taps, source of weights
python zoo.py --size 512 standard fcn_resnet50

Beside the rows of the table, a model's name may say where it comes from: ``hf:``, ``smp:``, ``FILE.py:FUNCTION``
(`networks.sources`).

from zoo import create_model, load_any_teacher, load_checkpoint_model
student = create_model("standard", num_classes=21, weights="default")
teacher = load_any_teacher("hf:nvidia/segformer-b4-finetuned-ade-512-512")      # of its own classes
model, checkpoint = load_checkpoint_model("checkpoints/run/best.pth")
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from basics.errors import UserError, choose, run_cli  # first: Ctrl-C while torch is imported ends quietly

# isort: split
import torch
import torchvision.models as tv
from torchvision.models import segmentation as tvs

from basics.text import text_table
from networks import sources
from networks.base import SegmentationModel
from networks.class_lists import same_names
from networks.class_names import class_difference
from networks.cost import count_macs, count_parameters
from networks.fastlitessnet import FastLiteSSNet
from networks.model_file import ModelFile, check_model_file
from networks.model_file import model_file_dict as model_file_dict  # to be had here, too
from networks.model_spec import ModelSpec, Rates, segformer_spec, smp_spec, torchvision_spec, torchvision_weights
from networks.onnx_teacher import load_onnx_teacher
from networks.torchvision import DeepLabV3MobileNet, LRASPPMobileNet, ResNetModel
from networks.weights import (
    ClassCountError,
    WeightsFile,
    build_counted,
    is_whole,
    load_backbone,
    load_teacher_file,
    load_whole,
    read_weights,
    unwrap,
)
from student_model import VARIANTS, StudentNet

VOC_CLASS_COUNT = 21
FILES = (".onnx", ".pth", ".pt", ".safetensors")  # of a teacher, in the place of its name


STUDENT_BACKBONE = torchvision_weights(tv.MobileNet_V3_Small_Weights.IMAGENET1K_V1)
RESNET50, RESNET101 = tv.ResNet50_Weights.IMAGENET1K_V1, tv.ResNet101_Weights.IMAGENET1K_V1
MOBILENET_LARGE = tv.MobileNet_V3_Large_Weights.IMAGENET1K_V1

# The rates gave 19.7 % mIoU on a part of VOC's training images, `Rates()` 15.1 (results/README.md, one seed).
OWN: dict[str, Any] = {
    "backbone_weights": STUDENT_BACKBONE,
    "source": "torchvision ImageNet backbone",
    "rates": Rates(lr=3e-3, backbone_lr_factor=0.03),
}

MODELS: dict[str, ModelSpec] = {
    **{name: ModelSpec(partial(StudentNet, variant=name), **OWN) for name in VARIANTS},
    "fastlitessnet": ModelSpec(FastLiteSSNet, None, "none published: trained from scratch"),
    "fcn_resnet50": torchvision_spec(
        partial(ResNetModel, tvs.fcn_resnet50), RESNET50, tvs.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    "fcn_resnet101": torchvision_spec(
        partial(ResNetModel, tvs.fcn_resnet101), RESNET101, tvs.FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    "deeplabv3_resnet50": torchvision_spec(
        partial(ResNetModel, tvs.deeplabv3_resnet50), RESNET50, tvs.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    "deeplabv3_resnet101": torchvision_spec(
        partial(ResNetModel, tvs.deeplabv3_resnet101),
        RESNET101,
        tvs.DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1,
    ),
    "deeplabv3_mobilenet_v3_large": torchvision_spec(
        DeepLabV3MobileNet, MOBILENET_LARGE, tvs.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    "lraspp_mobilenet_v3_large": torchvision_spec(
        LRASPPMobileNet, MOBILENET_LARGE, tvs.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    ),
    **{f"unet_{encoder}": smp_spec("Unet", encoder) for encoder in ("vgg16", "resnet50")},
    **{
        # The paper's dilations for stride 16; smp's own are for stride 8.
        f"deeplabv3plus_{encoder}": smp_spec(
            "DeepLabV3Plus", encoder, encoder_output_stride=16, decoder_atrous_rates=(6, 12, 18)
        )
        for encoder in ("resnet101", "resnet18", "mobilenet_v2")
    },
    **{f"segformer_{size}": segformer_spec(size) for size in ("b0", "b1", "b2", "b3", "b4", "b5")},
}


def check_name(name: str, what: str = "model") -> None:
    """A `UserError` unless ``name`` is a row of `MODELS` or of a form of `networks.sources`."""
    if not sources.is_source(name):
        choose(MODELS, name, what)


# -- building ------------------------------------------------------------------------------------


def build_model(name: str, num_classes: int, **model_args: object) -> SegmentationModel:
    """The model ``name`` with random weights; ``model_args`` are its own extra arguments."""
    from_elsewhere = sources.is_source(name)
    build = partial(sources.build, name) if from_elsewhere else choose(MODELS, name, "model").build
    try:
        model = build(num_classes, **model_args)
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
        if not model_args:
            raise
        given = ", ".join(model_args)
        raise UserError(f"{name} cannot be built with the arguments in its file ({given}): {error}") from error
    if not from_elsewhere:  # those know by themselves what rebuilds them
        model.model_args = dict(model_args)
    return model


def create_model(
    name: str,
    num_classes: int,
    weights: str = "none",
    class_names: Sequence[str] | None = None,
) -> SegmentationModel:
    """A model to be trained.

    Args:
        name: a row of `MODELS`, or a name that says where the network comes from (`networks.sources`).
        num_classes: classes of the data set, background included.
        weights: ``none`` (random), ``default`` (what is published: the backbone, or the whole network where its
            classes are the data set's) or the path of a weights' file: of the backbone, or of the whole
            network. Of a network for another number of classes the backbone alone is taken. What was loaded
            is printed.
        class_names: of the data set. Of a network for other classes than these, or for these in another order, the
            backbone alone is taken, too: its outputs would bear the wrong names.

    Raises:
        UserError: unknown name, download failed, or a file that does not belong to this model.
    """
    if sources.is_source(name):
        file = None if weights in ("none", "default") else _read_for(name, weights)
        return sources.create(name, num_classes, weights, class_names, file)
    spec = _row(name, "model")
    if weights in ("none", "default"):
        model = build_model(name, num_classes)
        if weights == "default":
            spec.start_student(model, name, class_names)
        return model
    file = _read_for(name, weights)
    model = build_model(name, num_classes, **(file.checkpoint or {}).get("model_args", {}))
    state = unwrap(model, file)
    whole = is_whole(model, state)
    if whole and file.class_names and class_names is not None and not same_names(file.class_names, class_names):
        print(f"{weights}: made for {class_difference(file.class_names, class_names)}: only the backbone is taken")
        whole = False
    if whole:
        try:
            load_whole(model, state, file.origin)
            model.input_size = (file.checkpoint or {}).get("input_size", 0)
            print(f"{name}: all weights from {file.origin}{_unnamed(file)}")
            return model
        except ClassCountError as error:
            print(f"{error}: only the backbone is taken")
    load_backbone(model, state, file.origin)
    return model


def rates_of(name: str, weights: str) -> Rates:
    """Learning rates for the student ``name`` that starts from ``weights``."""
    return Rates() if weights == "none" or sources.is_source(name) else choose(MODELS, name, "model").rates


def _unnamed(file: WeightsFile) -> str:
    """What to say of a file that cannot be compared with the data set."""
    return "" if file.class_names else ", which does not name its classes: taken to be the data set's, in their order"


def load_any_teacher(name: str, weights: str = "default", num_classes: int | None = None) -> SegmentationModel:
    """A frozen teacher in eval mode that speaks of its own classes: ``num_classes`` of them, ``class_names`` if known.

    It has real weights, or this raises. The global random state is left as it was, so that a student built next does
    not depend on the teacher.

    Args:
        name: a row of `MODELS`, a name of the forms of `networks.sources`, or a file: FILE.onnx, or a checkpoint.
        weights: ``default`` (those published with it) or the path of a weights' file; an ``.onnx`` file is a
            teacher by itself, whatever ``name`` says.
        num_classes: of the data set, for a teacher of which nobody knows how many classes it has.

    Raises:
        UserError: no weights to be had, or weights for another model.
    """
    name, weights = _resolve(name, weights)
    if weights.lower().endswith(".onnx"):
        return load_onnx_teacher(weights, num_classes)
    if sources.is_source(name):
        file = None if weights == "default" else _read_teacher(name, weights)
        with torch.random.fork_rng(devices=[]):
            return sources.load(name, num_classes, file).eval().requires_grad_(False)
    spec = _row(name, "teacher")
    file = spec.published(name) if weights == "default" else _read_teacher(name, weights)
    count = len(file.class_names) if file.class_names else num_classes
    if count is None:
        raise UserError(f"{weights}: does not name its classes, and without a data set nobody knows how many they are")
    model = _whole_model(name, count, file, own=not file.class_names)
    model.class_names = file.class_names
    return model


def _row(name: str, what: str) -> ModelSpec:
    """The row of `MODELS`; a `UserError` where there is none."""
    if name not in MODELS and Path(name).suffix.lower() in FILES:
        option = "--teacher-weights" if what == "teacher" else "--student-weights"
        raise UserError(f"unknown {what} {name!r}: a file of weights goes to {option}, beside its network's name")
    if name not in MODELS and (Path(name).is_dir() or name.count("/") == 1):
        raise UserError(
            f"unknown {what} {name!r}: one of Hugging Face, or its folder, is hf:{name}, one of smp smp:{name}"
        )
    return choose(MODELS, name, what)


def published_classes_of(name: str, weights: str) -> Sequence[str]:
    """The classes of a row's published weights, which are known before they are fetched; empty for all else."""
    return MODELS[name].whole_classes if weights == "default" and name in MODELS else ()


def _resolve(name: str, weights: str) -> tuple[str, str]:
    """Name and weights of a teacher; a file that is given as the name is both."""
    if weights != "default" or Path(name).suffix.lower() not in FILES or sources.is_source(name):
        return name, weights
    if name.lower().endswith(".onnx"):
        return name, name
    checkpoint = read_weights(name).checkpoint
    if checkpoint is None:
        raise UserError(f"{name}: bare weights: name their network, too: --teacher NAME --teacher-weights {name}")
    sources.refuse_foreign(checkpoint)
    return str(checkpoint["model"]), name


def _whole_model(name: str, num_classes: int, file: WeightsFile, *, own: bool = False) -> SegmentationModel:
    """The row ``name`` of the table with all its weights from ``file``, frozen; with ``own``, of as many classes."""
    args = (file.checkpoint or {}).get("model_args", {})

    def build(count: int | None) -> SegmentationModel:
        return build_model(name, count or num_classes, **args)

    with torch.random.fork_rng(devices=[]):
        model = build_counted(build, num_classes, lambda new: load_teacher_file(new, name, file), fixed=not own)
    model.input_size = (file.checkpoint or {}).get("input_size", 0)
    return model.eval().requires_grad_(False)


def teacher_name(name: str, weights: str) -> str:
    """What to call the teacher of these arguments: a file goes by its own name, one of a run by the run's."""
    if weights.lower().endswith(".onnx"):
        return Path(weights).stem
    file = Path(name)
    if file.suffix.lower() not in FILES:
        return sources.short_name(name)
    return file.resolve().parent.name if file.stem in ("best", "last") else file.stem


def _read_teacher(name: str, weights: str) -> WeightsFile:
    if weights == "none":
        raise UserError("a teacher without weights teaches noise: pass --teacher-weights default or PATH")
    return _read_for(name, weights)


def _read_for(name: str, path: str) -> WeightsFile:
    """Read ``path``; a checkpoint of this project must be of model ``name``."""
    file = read_weights(path)
    if file.checkpoint is not None:
        check_model_file(file.checkpoint, path, check_name)
        if file.checkpoint["model"] != name:
            raise UserError(f"{path}: holds a {file.checkpoint['model']}, asked for is a {name}")
        if "qat" in file.checkpoint:
            print(f"{path}: trained with the rounding of INT8 (--qat); taken are its weights, without that rounding")
    return file


# -- model files ---------------------------------------------------------------------------------


def load_model_state(model: SegmentationModel, checkpoint: Mapping, path: str | Path) -> None:
    """Load a checkpoint's weights into ``model``, strictly."""
    load_whole(model, dict(check_model_file(checkpoint, path, check_name)["state_dict"]), str(path))


def load_checkpoint_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[SegmentationModel, ModelFile]:
    """The model in a checkpoint of this project, on ``device`` in eval mode, and all that the checkpoint holds.

    The global random state is left as it was.

    Raises:
        UserError: no such file, a damaged one, or not a checkpoint of this project.
    """
    if Path(path).suffix.lower() in (".onnx", ".pt2"):
        raise UserError(f"{path}: exported already; give the .pth file it was made from")
    file = read_weights(path)
    if file.checkpoint is None:
        raise UserError(f"{path}: bare weights, not a checkpoint of this project: the model and classes are unknown")
    checkpoint = check_model_file(file.checkpoint, path, check_name)
    sources.refuse_foreign(checkpoint)
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
        check_name(name)
    titles = ("model", "M params", "G MACs", "pads to", "taps: channels@stride (low, mid, high, decoder)", "weights")
    rows = [table_row(name, args.num_classes, args.size) for name in args.models or MODELS]
    print(text_table(titles, rows, left=(0, 4, 5)))
    if not args.models:
        print("\nA name may also say where a network comes from:")
        print(text_table(("name", "what it is"), [list(form) for form in sources.FORMS.items()], left=(0, 1)))


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
    source = MODELS[name].source if name in MODELS else "its own"
    return [name, f"{parameters / 1e6:.2f}", f"{macs / 1e9:.2f}", str(model.stride), taps, source]


if __name__ == "__main__":
    run_cli(main, get_args_parser)
