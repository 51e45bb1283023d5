"""Networks of segmentation_models_pytorch (an optional package): any architecture, encoder, and published network.

    build_architecture("DeepLabV3Plus", "tu-mobilenetv4_conv_small_050", num_classes=3)       # random weights
    create("smp:DeepLabV3Plus/tu-mobilenetv4_conv_small_050", 3)                              # its encoder pretrained
    load("smp:smp-hub/segformer-b0-512x512-ade-160k")                                         # as it was published

Our models hold smp's parts (``encoder`` is called ``backbone`` here, all else keeps its name), so that a state_dict of
smp loads after that renaming. The head's upsampling and activation are taken out: what is wanted are strided logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from basics.checkpoint import load_file
from basics.errors import UserError, reason_of
from basics.optional_packages import need
from networks.class_lists import published_classes, same_names
from networks.foreign import (
    PROBE,
    ForeignModel,
    before_relu,
    find_classifier,
    noise,
    pick_maps,
    smallest_batch,
    watch,
)
from networks.hub import Repository, cached, find_repository, out_of_reach
from networks.normalisation import Normalisation
from networks.weights import fetch

if TYPE_CHECKING:  # an optional package
    from segmentation_models_pytorch.base import SegmentationModel as SmpNetwork

EVAL_CONFIG = "albumentations_config_eval.json"  # beside published networks: how their images are prepared
WEIGHTS = "model.safetensors"
NOT_KEPT = {"classes", "encoder_weights", "aux_params", "activation"}  # of a network's arguments


def import_smp() -> ModuleType:
    """The package, or a `UserError` that says how to install it."""
    return need("segmentation_models_pytorch", "segmentation-models-pytorch", "this model")


# -- the model -------------------------------------------------------------------------------------


class SmpModel(ForeignModel):
    """A network of smp.

    Args:
        network: of any of its architectures; its parts are taken over.
        normalisation: what its encoder expects.
    """

    def __init__(self, network: SmpNetwork, normalisation: Normalisation | None = None) -> None:
        super().__init__(normalisation or Normalisation())
        self.backbone = network.encoder
        self.decoder = network.decoder
        self.segmentation_head = _without_upsampling(network.segmentation_head)
        deepest = int(network.encoder.output_stride)
        if 32 % deepest:
            raise ValueError(f"its patches of {deepest} pixels have no common grid with other networks")
        self.stride = max(deepest, 16)
        size = PROBE
        if type(network).__name__ == "PAN":  # which halves the encoder's map three times
            self.stride, size = 128, (128, 256)
        images = noise(size)
        (features, _, logits), calls = watch(self, lambda: self._run(images))
        self._places = pick_maps(features, size)
        self.min_train_batch = smallest_batch(calls)
        classifier = find_classifier(calls, logits.shape[1])
        assert classifier is not None  # the head's convolution
        self.catch_input("decoder", before_relu(calls, classifier.given) or classifier.module)
        (features, _, _), _ = watch(self, lambda: self._run(images))
        self.announce(logits, self._taps(features), size)

    def head_names(self) -> set[str]:
        """The tensors of its last convolution."""
        convolution = "segmentation_head.head.4." if hasattr(self.segmentation_head, "head") else "segmentation_head."
        return {name for name in self.state_dict() if name.startswith(convolution)}

    def _run(self, images: torch.Tensor) -> tuple[Sequence[torch.Tensor], torch.Tensor, torch.Tensor]:
        """``images`` in the network's own statistics -> the encoder's maps, the decoder's, and the logits."""
        encoded = self.backbone(images)
        if isinstance(encoded, tuple) and not isinstance(encoded[0], torch.Tensor):  # DPT: maps and class tokens
            features, decoded = encoded[0], self.decoder(*encoded)
        else:
            features, decoded = encoded, self.decoder(encoded)
        return features, decoded, self.segmentation_head(decoded)

    def _taps(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        taps = {tap: features[place] for tap, place in self._places.items()}
        return taps | {"decoder": self.take_caught()["decoder"]}

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        features, _, logits = self._run(self.own_input(images))
        return logits, self._taps(features)


def _without_upsampling(head: nn.Module) -> nn.Module:
    """``head``, giving logits at the decoder's own stride."""
    if isinstance(head, nn.Sequential):
        head[1], head[2] = nn.Identity(), nn.Identity()
    else:  # DPT's
        vars(head)["upsampling_factor"] = 1
        head.activation = nn.Identity()
    return head


# -- by architecture and encoder -------------------------------------------------------------------


def architectures() -> dict[str, Any]:
    """Name -> class of smp's networks."""
    smp = import_smp()
    return {kind.__name__: kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}


def build_architecture(
    architecture: str, encoder: str, num_classes: int, weights: str | bool | None = None, **options: object
) -> SmpModel:
    """A network with a random decoder; ``weights`` are the encoder's, as smp names them. Options are smp's own."""
    network = architectures()[architecture](
        encoder_name=encoder, encoder_weights=weights, classes=num_classes, **_flexible(architecture, options)
    )
    model = SmpModel(network, _encoder_normalisation(encoder, weights) if weights else None)
    model.model_args = _rebuilding(network, model.normalisation)
    return model


def row(architecture: str, encoder: str, num_classes: int, **options: object) -> SmpModel:
    """A row of the zoo: with random weights, normalised as for ImageNet, rebuilt from its name alone."""
    return SmpModel(architectures()[architecture](encoder, encoder_weights=None, classes=num_classes, **options))


def _flexible(architecture: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options``, for images of any size."""
    return {"dynamic_img_size": True, **options} if architecture == "DPT" else dict(options)


def _rebuilding(network: SmpNetwork, normalisation: Normalisation) -> dict[str, object]:
    """What `rebuild` needs, as plain values."""
    options = {key: value for key, value in network.config.items() if key not in NOT_KEPT and key[0] != "_"}
    architecture = type(network).__name__
    return {
        "architecture": architecture,
        "options": json.loads(json.dumps(options)),
        "normalisation": normalisation.as_plain(),
    }


def rebuild(num_classes: int, architecture: str, options: Mapping[str, Any], normalisation: Mapping) -> SmpModel:
    """With random weights, from what a checkpoint keeps; without a network."""
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    kind = architectures()[architecture]
    network = kind(**_flexible(architecture, plain), encoder_weights=None, classes=num_classes)
    model = SmpModel(network, Normalisation.of(**normalisation))
    model.model_args = {
        "architecture": architecture,
        "options": dict(options),
        "normalisation": model.normalisation.as_plain(),
    }
    return model


def is_architecture(name: str) -> bool:
    """Whether smp is installed and has an architecture of that name, in whatever case."""
    try:
        return name.lower() in {known.lower() for known in architectures()}
    except UserError:
        return False


def split_name(spec: str) -> tuple[str, str] | None:
    """Architecture and encoder of ``smp:ARCH/ENCODER``, each as smp spells it; None where that is something else.

    Raises:
        UserError: an architecture of smp with an encoder that it does not have.
    """
    first, _, encoder = spec.partition(":")[2].partition("/")
    found = {name.lower(): name for name in architectures()}.get(first.lower())
    if found is None or Path(spec.partition(":")[2]).expanduser().is_dir():
        return None
    known = import_smp().encoders.encoders
    if encoder not in known and not encoder.startswith("tu-"):
        raise UserError(
            f"{spec}: smp has no encoder {encoder!r}; it has {', '.join(sorted(known)[:8])}, ..., and timm's as tu-NAME"
        )
    return found, encoder


def create(spec: str, num_classes: int, *, weights: bool = True) -> SmpModel:
    """``smp:ARCH/ENCODER`` as a student: a random decoder on an encoder that is pretrained, or random, too.

    Raises:
        UserError: there is no such encoder, or no weights to be had.
    """
    parts = split_name(spec)
    assert parts is not None
    architecture, encoder = parts
    try:
        model = build_architecture(architecture, encoder, num_classes)
    except Exception as error:  # smp's and timm's refusals: a depth, a stride or a name that they do not have
        raise UserError(f"{spec} cannot be built: {reason_of(error)}") from error
    published = _published_weights(encoder) if weights else None
    if published is None:
        if weights:
            print(f"{spec}: nobody publishes weights for this encoder; starting from random ones")
        return model

    def pretrained() -> SmpModel:
        _require_weights(encoder, published)
        return build_architecture(architecture, encoder, num_classes, published)

    way_on = "pass --student-weights PATH with a file you have, or --student-weights none"
    model = fetch(f"the pretrained encoder of {spec}", pretrained, way_on)
    print(f"{spec}: encoder pretrained ({published if isinstance(published, str) else 'timm'}), decoder random")
    return model


def _published_weights(encoder: str) -> str | bool | None:
    """What smp wants to be told to load the encoder's usual pretrained weights; None where there are none."""
    if encoder.startswith("tu-"):
        import timm

        return True if timm.models.is_model_pretrained(encoder[3:]) else None
    settings = import_smp().encoders.encoders[encoder]["pretrained_settings"]
    return "imagenet" if "imagenet" in settings else next(iter(settings), None)


def _encoder_normalisation(encoder: str, weights: str | bool) -> Normalisation:
    """What the pretrained encoder was trained with."""
    name = weights if isinstance(weights, str) else "imagenet"
    settings = import_smp().encoders.get_preprocessing_params(encoder, name)
    largest = float(max(settings["input_range"]))
    mean, std = ([value / largest for value in settings[key]] for key in ("mean", "std"))
    return Normalisation.of(mean, std, bgr=settings["input_space"] == "BGR")


def imagenet_encoder(name: str) -> dict[str, torch.Tensor]:
    """smp's ImageNet weights of encoder ``name``, from the Hugging Face cache or hub."""
    smp = import_smp()
    _require_hub(smp.encoders.encoders[name]["pretrained_settings"]["imagenet"])
    return smp.encoders.get_encoder(name, weights="imagenet").state_dict()


def _require_weights(encoder: str, weights: str | bool) -> None:
    """`_require_hub` for what smp or timm would fetch."""
    if isinstance(weights, str):
        _require_hub(import_smp().encoders.encoders[encoder]["pretrained_settings"][weights])
        return
    import timm

    hub_id = getattr(timm.models.get_pretrained_cfg(encoder[3:]), "hf_hub_id", None)
    if hub_id:
        _require_hub({"repo_id": hub_id, "revision": None})


def _require_hub(settings: Mapping[str, Any]) -> None:
    """Raise `OSError` at once if the weights are neither in the cache nor within reach.

    huggingface_hub itself tries again and again, for minutes.
    """
    reason = out_of_reach()
    if reason and not cached(settings["repo_id"], WEIGHTS, settings["revision"]):
        raise OSError(reason)


# -- published networks ----------------------------------------------------------------------------


def load(spec: str) -> SmpModel:
    """The whole network in a folder or repository, as smp's ``save_pretrained`` wrote it, in eval mode.

    Raises:
        UserError: it cannot be had, or is none of smp's.
    """
    repository, arguments, classes = _read(spec)
    with repository.explained():
        tensors = _tensors(repository)
    with repository.built():
        model = rebuild(classes, **arguments)
        state = {name: value for name, value in tensors.items() if not name.startswith("classification_")}
        model.load_state_dict({_own_name(name): value for name, value in state.items()})
    model.class_names = repository.listed_classes(classes) or published_classes(repository.source, classes)
    return model.eval()


def _own_name(name: str) -> str:
    return f"backbone.{name.removeprefix('encoder.')}" if name.startswith("encoder.") else name


def read_arguments(spec: str) -> dict[str, Any]:
    """What `rebuild` needs for the network in a folder or repository."""
    return _read(spec)[1]


def _read(spec: str) -> tuple[Repository, dict[str, Any], int]:
    """The repository, what `rebuild` needs, and the number of classes."""
    known, repository = architectures(), find_repository(spec)
    with repository.explained():
        config = json.loads(repository.file("config.json").read_text(encoding="utf-8"))
    architecture, classes = config.get("_model_class"), config.get("classes")
    if architecture not in known or not isinstance(classes, int):
        raise UserError(
            f"{spec}: its config.json is none that smp's save_pretrained writes; a network of transformers is hf:"
        )
    if classes < 2:
        raise UserError(f"{spec}: scores a single class, by a sigmoid; networks here tell at least two apart")
    options = {key: value for key, value in config.items() if key not in NOT_KEPT and key[0] != "_"}
    normalisation = _eval_normalisation(repository).as_plain()
    return repository, {"architecture": architecture, "options": options, "normalisation": normalisation}, classes


def published_state(spec: str) -> dict[str, torch.Tensor]:
    """The tensors of a published network, by smp's names."""
    repository = find_repository(spec)
    with repository.explained():
        return _tensors(repository)


def load_for(spec: str, num_classes: int, class_names: Sequence[str] | None = None) -> SmpModel:
    """A student from a published network: all of it for the same classes, otherwise all but the classifier."""
    published = load(spec)
    if published.num_classes == num_classes and same_names(published.class_names, class_names):
        print(f"{spec}: all weights, for the same {num_classes} classes")
        return published.train()
    model = rebuild(num_classes, **cast(dict[str, Any], published.model_args))
    head = model.head_names()
    model.load_state_dict({k: v for k, v in published.state_dict().items() if k not in head}, strict=False)
    print(f"{spec}: encoder and decoder as published; new classifier for {num_classes} classes")
    return model


def _tensors(repository: Repository) -> dict[str, torch.Tensor]:
    """The weights; pickled ones are read without running anything."""
    file = repository.first_file((WEIGHTS, "pytorch_model.bin"))
    if file is None:
        raise UserError(f"{repository.spec}: neither {WEIGHTS} nor pytorch_model.bin in it")
    return load_file(file)


def _eval_normalisation(repository: Repository) -> Normalisation:
    """That of the network's own evaluation; ImageNet's, said aloud, where it does not say."""
    try:
        steps = json.loads(repository.file(EVAL_CONFIG).read_text(encoding="utf-8"))["transform"]["transforms"]
        step = next(step for step in steps if step["__class_fullname__"].endswith("Normalize"))
        scale = float(step.get("max_pixel_value", 255)) / 255
        mean, std = ([scale * value for value in step[key]] for key in ("mean", "std"))
    except (OSError, KeyError, StopIteration, ValueError, TypeError):
        print(f"{repository.spec}: does not say how its images are normalised ({EVAL_CONFIG}): as for ImageNet")
        return Normalisation()
    try:
        return Normalisation.of(mean, std)
    except ValueError as error:
        raise UserError(f"{repository.spec}: {EVAL_CONFIG}: {error}") from error
