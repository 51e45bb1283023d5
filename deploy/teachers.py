"""A teacher as the classes of some data see it: loaded, and its class map found.

    teacher = load_teacher_for(TeacherChoice("hf:nvidia/segformer-b0-finetuned-ade-512-512"), dataset)
    teacher.model                 # the network with its own classes
    teacher.class_map             # what they mean; None: they are the data's own
    teacher.as_network()          # images -> logits of the data's classes, for scores and pictures

Training and every script that shows, scores or asks a teacher get it here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from basics.errors import UserError
from kd.class_map import ClassMap
from kd.class_matching import BUILT_IN, map_file, match_classes
from networks.base import SegmentationModel
from networks.working_size import at_working_size, fault_of_size
from segdata.class_groups import shown
from zoo import FILES, load_any_teacher, published_classes_of, teacher_name

CLASS_MAP_HELP = (
    "what the teacher's classes mean in those of the data (docs/teachers.md): a file with lines such as "
    f'animal = ["cat", "dog"], or {", ".join(BUILT_IN)}; by default names are matched'
)
TEACHER_SIZE_HELP = (
    "it sees pictures with N pixels on the longer side, as photographs of a phone want it (0: the working size it was "
    "trained at, or else theirs)"
)


class Named(Protocol):
    """What is asked of the data: their classes, and what they are called."""

    name: str
    class_names: list[str]


@dataclass(frozen=True)
class TeacherChoice:
    """What a command line says of a teacher: --teacher, --teacher-weights, --class-map, --teacher-size.

    Attributes:
        input_size: pixels on the longer side of what it sees; 0: its own working size, or else the picture's.

    Raises:
        UserError: that is too small.
    """

    name: str
    weights: str = "default"
    class_map: str | None = None
    input_size: int = 0

    def __post_init__(self) -> None:
        if fault := fault_of_size("--teacher-size", self.input_size):
            raise UserError(fault)

    @classmethod
    def of(cls, args: argparse.Namespace) -> TeacherChoice:
        """The choice of the arguments of `add_teacher_arguments`, or of a training."""
        return cls(args.teacher, args.teacher_weights, args.class_map, args.teacher_size)

    @property
    def label(self) -> str:
        """What to call the teacher."""
        return teacher_name(self.name, self.weights)

    @property
    def files(self) -> dict[str, Path]:
        """What it is read from, by role: its weights where these are a file, the class map where one is named."""
        weights = self.name if self.weights == "default" and Path(self.name).suffix.lower() in FILES else self.weights
        found = {} if weights == "default" else {"teacher": Path(weights)}
        return found | ({"class map": map_file(self.class_map)} if self.class_map else {})


@dataclass(frozen=True)
class FittedTeacher:
    """A frozen teacher, and what its classes mean.

    Attributes:
        label: what to call it.
        model: the network, with its own classes.
        class_map: None: they are the data's own, in their order.
    """

    label: str
    model: SegmentationModel
    class_map: ClassMap | None

    def as_network(self, input_size: int | None = None) -> nn.Module:
        """The network that gives logits of the data's classes; without a map the teacher alone.

        Args:
            input_size: it sees pictures with so many pixels on the longer side, 0: at their own size; None: as it was
                trained, or as was asked for.
        """
        # What is brought to the picture's size are the data's few classes, not the teacher's many.
        network = self.model if self.class_map is None else MappedNetwork(self.model, self.class_map)
        return at_working_size(network, self.model.input_size if input_size is None else input_size)


class MappedNetwork(nn.Module):
    """A teacher whose logits (N, C, H, W) are of the data's classes.

    Where the teacher says a class that means nothing here, the likeliest of those that mean something is taken, and
    the pixel counted as ``unheard``. A class that it does not know is never said.

    Attributes:
        unheard, pixels: of all images so far.
        decides_only: it cannot say some class, so that its logits make no cross-entropy.
    """

    def __init__(self, model: nn.Module, class_map: ClassMap):
        super().__init__()
        self.model, self.class_map = model, class_map
        self.training = model.training  # who scores it puts it back into the mode that it was in
        self.decides_only = bool(class_map.unknown)
        self.unheard = self.pixels = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model(images)
        speaks = self.class_map.speaks(logits)
        self.unheard += 0 if speaks is None else int((~speaks).sum())
        self.pixels += logits[:, 0].numel()
        return self.class_map.whole_logits(logits)

    def remark(self, iou: Mapping[str, float | None]) -> str | None:
        """What to say beside its scores, of which the IoU by class are given; None if there is nothing."""
        said = []
        if unknown := self.class_map.unknown:
            known = [value for name, value in iou.items() if name not in unknown and value is not None]
            said.append(
                f"it does not know {shown(unknown)}, which counts as 0 in the mIoU; over the classes that it knows "
                f"the mIoU is {100 * sum(known) / max(len(known), 1):.2f} %"
            )
        if self.unheard:
            share = 100 * self.unheard / self.pixels
            said.append(
                f"at {share:.1f} % of the pixels it says a class that means nothing here; scored there is the "
                "likeliest of the others"
            )
        return "; ".join(said) or None


def remark_of(network: nn.Module, iou: Mapping[str, float | None]) -> str | None:
    """`MappedNetwork.remark` of the one in ``network``; None if there is none, or nothing to say."""
    mapped = (part for part in network.modules() if isinstance(part, MappedNetwork))
    return next((part.remark(iou) for part in mapped), None)


def add_teacher_arguments(parser: argparse._ActionsContainer, default: str | None, what: str) -> None:
    """Add --teacher, --teacher-weights, --class-map and --teacher-size to a script that shows, scores or asks one.

    Args:
        what: the help of --teacher.
    """
    parser.add_argument("--teacher", default=default, metavar="NAME", help=what)
    parser.add_argument(
        "--teacher-weights",
        default="default",
        metavar="default|PATH",
        help="the library's segmentation weights, a .pth of this project, a state_dict, or an .onnx of any network",
    )
    parser.add_argument("--class-map", metavar="FILE|NAME", help=CLASS_MAP_HELP)
    parser.add_argument("--teacher-size", type=int, default=0, metavar="N", help=TEACHER_SIZE_HELP)


def refuse_without_teacher(args: argparse.Namespace, more: Mapping[str, object] | None = None) -> None:
    """A `UserError` if an option says something of a teacher, and none is named.

    Args:
        more: further options that want one, and what was given.
    """
    given = {
        "--teacher-weights": args.teacher_weights != "default",
        "--class-map": args.class_map,
        "--teacher-size": args.teacher_size,
        **(more or {}),
    }
    for option, is_given in given.items():
        if is_given and not args.teacher:
            raise UserError(f"{option} without --teacher: name the teacher, too")


def load_alone(choice: TeacherChoice, num_classes: int | None = None) -> SegmentationModel:
    """The network of a command line, whatever its classes mean, with the working size that was asked for.

    Args, Raises: as `zoo.load_any_teacher`.
    """
    model = load_any_teacher(choice.name, choice.weights, num_classes)
    model.input_size = choice.input_size or model.input_size
    return model


def load_teacher_for(choice: TeacherChoice, data: Named) -> FittedTeacher:
    """The teacher of a command line for some data, in eval mode, on the CPU; what its classes mean is printed.

    Raises:
        UserError: it cannot be had, or nobody says what its classes mean; then a file to fill in has been written.
    """
    label = choice.label

    def match(names: Sequence[str]) -> tuple[ClassMap | None, str]:
        return match_classes(data.class_names, names, label, data.name, choice.class_map)

    if published := published_classes_of(choice.name, choice.weights):
        match(published)  # what cannot do is not fetched
    model = load_alone(choice, len(data.class_names))
    names = model.class_names
    if names is None and model.num_classes == len(data.class_names) and choice.class_map is None:
        print(f"{label}: does not name its classes: taken to be the data set's, in their order")
        return FittedTeacher(label, model, None)
    if names is None:
        print(f"{label}: does not name its classes: they go by their numbers, 0 to {model.num_classes - 1}")
        names = [str(number) for number in range(model.num_classes)]
    class_map, how = match(names)
    if class_map is not None:
        print(f"{label}: {_summary(class_map, how)}")
    return FittedTeacher(label, model, class_map)


def _summary(class_map: ClassMap, how: str) -> str:
    """In a line: how the classes were matched, which the teacher does not know, and which mean nothing."""
    total = len(class_map.teacher_names)
    said = f"{total - len(class_map.unheard)} of its {total} classes mean classes of the data set, {how}"
    if class_map.unknown:
        said += f"; it does not know {shown(class_map.unknown)}"
    if class_map.unheard:
        said += f"; where it says one of the others ({shown(class_map.unheard)}), it is not listened to"
    return said
