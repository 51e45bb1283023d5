"""A row of the zoo: how a network is built, what is published of it, and how that comes into a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision.models as tv

from basics.errors import UserError
from networks import smp
from networks.base import SegmentationModel
from networks.class_lists import VOC, ade20k, same_names
from networks.weights import StateDict, WeightsFile, fetch, load_backbone, load_whole


@dataclass(frozen=True)
class Rates:
    """Learning rates of a training by AdamW: the base rate, and the backbone's share of it."""

    lr: float = 5e-4
    backbone_lr_factor: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """A row of the registry.

    Attributes:
        build: ``build(num_classes, **model_args)`` -> the model with random weights.
        backbone_weights: fetches the pretrained backbone; None where nobody publishes one.
        source: where the weights come from, in words.
        whole_weights: fetches weights of the whole network; None likewise.
        whole_classes: the classes that these tell apart.
        whole_starts_students: a student for just these classes starts from them, too, and not from a backbone alone.
        rates: what serves a student of this kind best that starts from pretrained weights, where that was measured.
    """

    build: Callable[..., SegmentationModel]
    backbone_weights: Callable[[], StateDict] | None
    source: str
    whole_weights: Callable[[], StateDict] | None = None
    whole_classes: Sequence[str] = ()
    whole_starts_students: bool = False
    rates: Rates = Rates()

    def published(self, name: str) -> WeightsFile:
        """What is published of the whole network ``name``, for a teacher.

        Raises:
            UserError: nothing is, or it cannot be fetched.
        """
        if self.whole_weights is None:
            raise UserError(
                f"nobody publishes segmentation weights for {name}; train it first (train_kd.py --student {name} "
                "--alpha 0 --beta 0) and pass --teacher-weights PATH"
            )
        way_on = "pass --teacher-weights PATH with a file you have"
        state = fetch(f"the weights of {name}", self.whole_weights, way_on)
        return WeightsFile("the library", state, class_names=list(self.whole_classes))

    def start_student(self, model: SegmentationModel, name: str, class_names: Sequence[str] | None) -> None:
        """Load into ``model`` what is published, and say what: the backbone, or all of it where that is usual.

        Raises:
            UserError: it cannot be fetched.
        """
        way_on = "pass --student-weights PATH with a file you have, or --student-weights none"
        fits = class_names is not None and len(self.whole_classes) == model.num_classes
        fits = fits and same_names(self.whole_classes, class_names)
        if self.whole_starts_students and self.whole_weights and fits:
            load_whole(model, fetch(f"the weights of {name}", self.whole_weights, way_on), "the library")
            print(f"{name}: all weights from the library, for the same {model.num_classes} classes")
        elif self.backbone_weights:
            backbone = fetch(f"the pretrained backbone of {name}", self.backbone_weights, way_on)
            load_backbone(model, backbone, "the library")
        else:
            print(f"{name}: nobody publishes pretrained weights; starting from random ones")


def torchvision_weights(weights: tv.WeightsEnum) -> Callable[[], StateDict]:
    """A fetcher for a torchvision weights' enum member; downloads once, then reads its cache."""
    return partial(weights.get_state_dict, progress=True, check_hash=True)


def torchvision_spec(
    build: Callable[..., SegmentationModel], backbone: tv.WeightsEnum, whole: tv.WeightsEnum
) -> ModelSpec:
    """A network of torchvision, published with an ImageNet backbone and whole for VOC."""
    source = f"torchvision ImageNet backbone; as teacher {whole.name}"
    return ModelSpec(build, torchvision_weights(backbone), source, torchvision_weights(whole), VOC)


def smp_spec(architecture: str, encoder: str, **options: Any) -> ModelSpec:
    """A network of smp, of which the encoder is published."""
    build = partial(smp.row, architecture, encoder, **options)
    return ModelSpec(build, partial(smp.imagenet_encoder, encoder), f"smp ImageNet encoder {encoder}")


def segformer_spec(size: str) -> ModelSpec:
    """SegFormer ``b0`` to ``b5`` of smp, published whole for ADE20K."""
    width = 256 if size in ("b0", "b1") else 768  # as in the paper
    pixels = 640 if size == "b5" else 512
    whole = f"segformer-{size}-{pixels}x{pixels}-ade-160k"
    spec = smp_spec("Segformer", f"mit_{size}", decoder_segmentation_channels=width)
    return ModelSpec(
        spec.build,
        spec.backbone_weights,
        f"{spec.source}; for ADE20K's classes {whole}",
        whole_weights=partial(smp.published_state, f"smp:smp-hub/{whole}"),
        whole_classes=ade20k(),
        whole_starts_students=True,
    )
