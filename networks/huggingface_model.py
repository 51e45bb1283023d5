"""A segmentation network of transformers behind the interface of all models; `networks.huggingface` loads them.

The library's own code runs the network; its maps are caught on the way. Universal networks score queries
(`networks.queries`); two kinds take images of one size only (`networks.windows`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

from networks.foreign import (
    PROBE,
    Caught,
    ForeignModel,
    before_relu,
    find_classifier,
    noise,
    pick_maps,
    smallest_batch,
    watch,
)
from networks.normalisation import Normalisation
from networks.queries import as_log_probabilities, pixel_scores
from networks.windows import Windows


@dataclass(frozen=True)
class Family:
    """Where in the networks of one model type the things are that we look for.

    Attributes:
        encoder: the module whose output has the encoder's maps; "": what the library calls the base model.
        layers: of an encoder without such a module: the list of its layers.
        masks_on: of a universal network: the module that gives the map on which queries draw their masks.
        places: of a plain transformer: which of its hidden states the decoder reads, from the configuration.
        fixed_size: the library's code takes images of ``config.image_size`` only.
    """

    encoder: str = ""
    layers: str = ""
    masks_on: str = ""
    places: Callable[[Any], list[int]] | None = None
    fixed_size: bool = False


def _universal() -> Family:
    return Family(encoder="model.pixel_level_module.encoder", masks_on="model.pixel_level_module")


# Model types that are not here are semantic ones, whose encoder is the base model.
FAMILIES = {
    "upernet": Family(encoder="backbone"),
    "dpt": Family(places=lambda config: [place + 1 for place in config.backbone_out_indices]),
    "beit": Family(places=lambda config: [place - 1 for place in config.out_indices]),
    "data2vec-vision": Family(places=lambda config: [place - 1 for place in config.out_indices], fixed_size=True),
    "mask2former": _universal(),
    "maskformer": _universal(),
    "oneformer": _universal(),
    "eomt": Family(layers="layers", masks_on="upscale_block", fixed_size=True),
}
# Of a configuration: where it came from, and the classes, which the data set names.
NOT_KEPT = {"_name_or_path", "transformers_version", "architectures", "id2label", "label2id", "num_labels"}


STRIDE = 32  # images are padded to a multiple of it


class Network(Protocol):
    """What of a transformers model is used here."""

    config: Any

    def __call__(self, *, pixel_values: torch.Tensor, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Settings:
    """What goes with a configuration: how images are prepared.

    Attributes:
        normalisation: the network's own.
        windows: how images come to a network of a fixed size; None: it takes any.
        task: token ids of OneFormer's task; None for all others.
    """

    normalisation: Normalisation
    windows: Windows | None = None
    task: list[int] | None = None

    def as_plain(self) -> dict[str, object]:
        """For a checkpoint."""
        windows = None if self.windows is None else self.windows.as_plain()
        return {"normalisation": self.normalisation.as_plain(), "windows": windows, "task": self.task}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Settings:
        """The inverse of `as_plain`."""
        windows = plain.get("windows")
        return cls(
            Normalisation.of(**plain["normalisation"]),
            None if windows is None else Windows(**windows),
            plain.get("task"),
        )


def plain_config(config: Any) -> dict[str, Any]:
    """``config`` as plain values, without the classes."""
    plain = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in plain.items() if key not in NOT_KEPT}


class HuggingFaceModel(ForeignModel):
    """A segmentation network of transformers, whole and run by its own ``forward``, as ``network``.

    Args:
        network: the library's model, without auxiliary heads.
        settings: how images are prepared for it.
        class_names: of its classes, or None.
    """

    def __init__(self, network: nn.Module, settings: Settings, class_names: Sequence[str] | None = None) -> None:
        super().__init__(settings.normalisation, class_names)
        self.network, self.windows = network, settings.windows
        self.config = cast(Network, network).config
        self.kind = self.config.model_type
        self.family = FAMILIES.get(self.kind, Family())
        self.model_args = {"config": plain_config(self.config), "settings": settings.as_plain()}
        patch = getattr(self.config, "patch_size", None)
        self.patch = patch if isinstance(patch, int) else 16
        self.stride = STRIDE
        if STRIDE % self.patch:
            raise ValueError(f"its patches of {self.patch} pixels have no common grid with other networks")
        task = None if settings.task is None else torch.tensor([settings.task])
        self.register_buffer("_task", task, persistent=False)
        self._catch_maps()
        self._look()
        self.train()

    @property
    def encoder(self) -> str:
        """The name of the module that gives the encoder's maps; of one without such a module, of the whole network."""
        if self.family.layers:
            return ""
        return self.family.encoder or str(self.network.base_model_prefix)

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The encoder; of EoMT, whose encoder decodes, too, its layers."""
        return self.network.get_submodule(self.family.layers or self.encoder)

    def head_names(self) -> set[str]:
        """The tensors whose shape depends on the number of classes."""
        config = copy.deepcopy(self.config)
        config.num_labels = self.num_classes + 1
        with torch.device("meta"):
            other = type(self.network)(config)
        shapes = {f"network.{name}": value.shape for name, value in other.state_dict().items()}
        return {name for name, value in self.state_dict().items() if shapes.get(name) != value.shape}

    # -- where the maps are ------------------------------------------------------------------------

    def _catch_maps(self) -> None:
        network = self.network
        if self.family.layers:
            layers = cast(nn.ModuleList, network.get_submodule(self.family.layers))
            for place in (len(layers) // 4, len(layers) // 2, len(layers) - 1):
                self.catch_output(f"layer {place}", layers[place])
        else:
            self.catch_output("encoder", network.get_submodule(self.encoder))
        if self.family.masks_on:
            self.catch_output("masks on", network.get_submodule(self.family.masks_on))
        elif hasattr(network, "decode_head"):
            self.catch_output("logits", cast(nn.Module, network.decode_head))  # before UPerNet brings them to full size
        if self.kind == "dpt":
            cast(nn.Module, network.neck).register_forward_pre_hook(_GridForNeck(self._caught), with_kwargs=True)

    def _look(self) -> None:
        """Run the network twice: find its maps and what comes before its classifier; then strides and channels."""
        size = PROBE if self.windows is None else (self.windows.size, self.windows.size)
        images = noise(size).to(next(self.network.parameters()).device)
        (output, caught), calls = watch(self.network, lambda: self._run(images))
        logits = self._logits(output, caught)
        self._encoder_maps = pick_maps(self._maps(caught, size), size)
        self.min_train_batch = smallest_batch(calls)
        classifier = None if self.family.masks_on else find_classifier(calls, logits.shape[1])
        if classifier is not None:
            self.catch_input("decoder", before_relu(calls, classifier.given) or classifier.module)
        (_, caught), _ = watch(self.network, lambda: self._run(images))
        self.announce(logits, self._taps(caught, size), size)

    # -- running it --------------------------------------------------------------------------------

    def _run(self, images: torch.Tensor) -> tuple[Any, dict[str, Any]]:
        """``images`` (N, 3, H, W) in the network's own statistics -> the library's output, and what was caught."""
        self.take_caught()
        options: dict[str, Any] = {}
        task = cast(torch.Tensor | None, self._task)
        if task is not None:
            options["task_inputs"] = task.expand(len(images), -1)
        if self.kind == "dpt":
            self._caught.maps["grid"] = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        output = cast(Network, self.network)(pixel_values=images, **options)
        return output, self.take_caught()

    def _scores(self, output: Any) -> torch.Tensor:
        """Of a universal network, for each pixel and class."""
        return pixel_scores(output.class_queries_logits, output.masks_queries_logits)

    def _logits(self, output: Any, caught: Mapping[str, Any]) -> torch.Tensor:
        if self.family.masks_on:
            return as_log_probabilities(self._scores(output))
        return caught.get("logits", output.logits)

    def _maps(self, caught: Mapping[str, Any], size: tuple[int, int]) -> list[torch.Tensor]:
        """The encoder's maps (N, D, h, w), in their order."""
        if self.family.layers:
            found = [value for name, value in caught.items() if name.startswith("layer")]
            maps = [value[0] if isinstance(value, tuple) else value for value in found]
        else:
            encoder = caught["encoder"]
            maps = list(getattr(encoder, "feature_maps", None) or getattr(encoder, "hidden_states", None) or [])
        if self.family.places and maps:
            maps = [maps[place] for place in self.family.places(self.config)]
        return [self._as_grid(values, size) if values.ndim == 3 else values for values in maps]

    def _as_grid(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Tokens (N, L, D), those of the patches last -> (N, D, h, w)."""
        height, width = size[0] // self.patch, size[1] // self.patch
        patches = tokens[:, tokens.shape[1] - height * width :]
        return patches.transpose(1, 2).reshape(len(tokens), -1, height, width)

    def _taps(self, caught: Mapping[str, Any], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        maps = self._maps(caught, size)
        taps = {tap: maps[place] for tap, place in self._encoder_maps.items()}
        if "decoder" in caught:
            taps["decoder"] = caught["decoder"]
        elif "masks on" in caught:
            taps["decoder"] = _mask_features(caught["masks on"])
        return taps

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        output, caught = self._run(self.own_input(images))
        return self._logits(output, caught), self._taps(caught, _sides(images))

    def forward_taps(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As every model's; images of a network of a fixed size are not padded, but brought to that size."""
        if self.windows is None:
            return super().forward_taps(images)
        self.check_batch(images)
        mean, std = self.normalisation.mean, self.normalisation.std
        cut = self.windows.cut(self.own_input(images), [-value / own for value, own in zip(mean, std, strict=True)])
        output, caught = self._run(cut.images)
        maps = self._taps(caught, (cut.side, cut.side))
        # Scores, not their logarithms: these are what overlapping windows have a mean of.
        maps["logits"] = self._scores(output) if self.family.masks_on else self._logits(output, caught)
        height, width = (side + -side % self.stride for side in _sides(images))
        strides = {**self.tap_strides, "logits": self.logit_stride}
        taps = {
            name: cut.join(values, strides[name], (height // strides[name], width // strides[name]))
            for name, values in maps.items()
        }
        logits = taps.pop("logits")
        return as_log_probabilities(logits) if self.family.masks_on else logits, taps


def _sides(images: torch.Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _mask_features(output: Any) -> torch.Tensor:
    """What query masks are drawn on: a tensor, or in a pixel decoder's output under one of two names."""
    if isinstance(output, torch.Tensor):
        return output
    features = getattr(output, "decoder_last_hidden_state", None)
    return features if features is not None else output.decoder_last_feature


@dataclass
class _GridForNeck:
    """Tells the neck of DPT the grid of its tokens; left alone, it takes every image for a square one."""

    caught: Caught

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        height, width = self.caught.maps["grid"]
        return args, kwargs | {"patch_height": height, "patch_width": width}
