"""The teacher's word on every training image, computed once, then cut out with each crop ever after.

    teacher = open_teacher_cache("data/teacher_cache", model, "fcn_resnet50", train_set, device=device)
    told = teacher(batch)                    # by batch["index"], ["box"], ["flip"]; no forward pass

Kept are the logits of the full image at the teacher's own stride and, for feature losses, its feature maps at the
strides of `KEPT_STRIDES`, projected to as many dimensions as keep 90 % of their variance (`kd.projection`). In training
the crop's window is cut out of them, scaled and flipped by the very geometry that made the crop.

That is not quite what the teacher would say of the crop: on the full image it sees more context, at the image's own
scale and without colour jitter. How far the two are apart, and how much is left of the feature maps
(`kd.cache_quality`), is measured when a cache is built, printed, and kept in the manifest. At scale 1 with the full
image for a crop logits agree to the storage precision. See `kd.cache_store` for the files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basics.batch import MEAN, STD
from basics.errors import UserError, choose
from basics.files import digest_of_ends, file_bytes
from basics.grids import working_shape
from kd.cache_builder import PROJECTION_IMAGES, CacheBuilder, agreement_line
from kd.cache_store import (
    DTYPES,
    ENDS,
    FORMAT,
    MANIFEST,
    OUTPUTS,
    RecordLayout,
    check_room,
    differences,
    is_blurred,
    load_manifest,
    locked,
    other_manifest,
    refuse_other,
)
from kd.cached_teacher import CachedTeacher, TrainingSplit
from kd.distiller import Recipe
from kd.losses import LOSSES, loss_of
from kd.projection import EXACT_CHANNELS, KEEP
from networks.base import SegmentationModel
from segdata.orientation import UPRIGHT
from segdata.reading import read_header

DEFAULT_FOLDER = Path("data/teacher_cache")
# Feature maps are kept at these strides, those of a student, or at their own where that is coarser: losses compare on
# the coarser of both grids. Half of low's resolution would leave 45 % of its variance, a quarter 23 % (docs/cache.md).
KEPT_STRIDES = {"low": 4, "mid": 8, "high": 16, "decoder": 4}
LEAST_PAD = 16  # images are padded to multiples of this, and of the teacher's stride
EXPECTED_DIMS = 0.5  # share of the channels, where nobody knows yet how many dimensions are needed


def open_teacher_cache(
    cache_dir: Path | str,
    model: SegmentationModel,
    name: str,
    dataset: TrainingSplit,
    *,
    recipe: Recipe | None = None,
    dtype: str = "fp16",
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    workers: int = 0,
    build: bool = True,
) -> CachedTeacher | None:
    """The cache of a teacher's outputs on a split; built first if there is none, finished if it was interrupted.

    Args:
        cache_dir: where caches lie, one folder each.
        model: the teacher.
        name: what it is called in file names and messages.
        dataset: the training split with its training transform; the crops it draws are what the agreement is
            measured on, the cache itself is made of its full images.
        recipe: decides which feature maps are kept; None keeps the logits alone.
        dtype: ``fp16`` or ``uint8`` (half the size; a scale for each image).
        device: where the teacher runs to build the cache.
        batch_size: of the crops that agreement and live costs are measured with.
        workers: loader processes while building.
        build: False writes nothing: where there is no whole cache it says what one would take, and returns None.

    Raises:
        UserError: the cache in that place was made from something else, is damaged, there is no room, or the recipe
            has a loss that needs more of the teacher than a cache keeps.
    """
    choose(DTYPES, dtype, "storage type of the teacher cache")
    taps = recipe.taps if recipe else []
    if recipe:
        _check_losses(recipe, model)
    here = describe(model, name, dataset, taps, dtype)
    stem = re.sub(r"[^\w.+-]+", "_", f"{dataset.name}_{dataset.list_name}_{name}_{dtype}")
    folder = Path(cache_dir) / "_".join([stem, *taps])
    if (cached := _finished(folder, here, taps, dataset)) is not None:
        return cached
    if not build:
        check_room(folder, _expected_bytes(here, model, taps) - file_bytes(folder / OUTPUTS))
        return None
    with locked(folder / "lock"):
        if (cached := _finished(folder, here, taps, dataset)) is not None:  # another run has built it meanwhile
            return cached
        CacheBuilder(folder, here, model, dataset, torch.device(device)).build(batch_size, workers)
        return CachedTeacher(folder, load_manifest(folder) or {}, taps, dataset.ids)


def _finished(folder: Path, here: dict[str, Any], taps: Sequence[str], dataset: TrainingSplit) -> CachedTeacher | None:
    """A cache of more images or feature maps than needed serves as well as that in ``folder``, which comes first."""
    others = (path.parent for path in sorted(folder.parent.glob(f"*/{MANIFEST}")))
    for candidate in dict.fromkeys([folder, *others]):
        load = load_manifest if candidate == folder else other_manifest
        if (manifest := load(candidate)) is None:
            continue
        if not (found := differences(manifest["made_from"], here)):
            _announce(candidate, manifest, taps)
            return CachedTeacher(candidate, manifest, taps, dataset.ids)
        if candidate == folder:
            refuse_other(folder, found)
    return None


def _announce(folder: Path, manifest: dict[str, Any], taps: Sequence[str]) -> None:
    print(f"teacher cache: {folder}; {agreement_line(manifest)}")
    if taps and is_blurred(manifest["made_from"]):  # a run that began with it can go on
        print(
            f"warning: {folder} keeps feature maps blurred (stride 16, at most 64 dimensions): remove it for a new "
            "run, and one that keeps 90 % of their variance is built"
        )


def _check_losses(recipe: Recipe, model: SegmentationModel) -> None:
    for name in recipe.names("features"):
        if not loss_of(name).rotatable:
            served = ", ".join(known for known, spec in LOSSES.items() if spec.rotatable)
            raise UserError(
                f"loss {name!r} needs the teacher's own channels, and a cache keeps a projection of them (enough for "
                f"{served}): leave out --cache-teacher, or the loss"
            )
    for tap in recipe.taps:
        if tap not in model.tap_channels:
            known = ", ".join(model.tap_channels) or "none"
            raise UserError(f"a feature loss needs the map {tap!r}, which this teacher lacks (it has: {known})")


def _expected_bytes(here: dict[str, Any], model: SegmentationModel, taps: Sequence[str]) -> int:
    """How large a cache will be, guessed before a projection is fitted."""
    channels = {tap: model.tap_channels[tap] for tap in taps}
    dims = {tap: max(math.ceil(EXPECTED_DIMS * count), min(count, EXACT_CHANNELS)) for tap, count in channels.items()}
    return RecordLayout(here | {"dims": dims}).total_bytes


def describe(
    model: SegmentationModel, name: str, dataset: TrainingSplit, taps: Sequence[str], dtype: str
) -> dict[str, Any]:
    """All that the content of a cache depends on, as plain values that survive JSON."""
    maps = {"logits": [model.num_classes, model.logit_stride]}
    for tap in taps:
        own, kept = model.tap_strides[tap], KEPT_STRIDES[tap]
        maps[tap] = [model.tap_channels[tap], own if kept % own else kept]
    return {
        "format": FORMAT,
        "teacher": name,
        "weights_sha256": weights_sha256(model),
        "mean": list(MEAN),
        "std": list(STD),
        "pad": math.lcm(model.stride, LEAST_PAD),
        "dtype": dtype,
        "projection": {"kind": "mean and principal components", "keeps": KEEP, "images": PROJECTION_IMAGES},
        "maps": maps,
        "images": [_describe_image(dataset, index, model.input_size) for index in range(len(dataset))],
        **({"input_size": model.input_size} if model.input_size else {}),
    }


def _describe_image(dataset: TrainingSplit, index: int, input_size: int) -> list[str | int]:
    """[id, height, width, bytes of the file, the turn it was given, if any, and a digest of its beginning and end].

    Height and width are those that the teacher is shown.
    """
    path = dataset.image_path(index)
    header = read_header(path)
    turned = [] if header.orientation == UPRIGHT else [f", turned from EXIF orientation {header.orientation}"]
    shown = working_shape(header.height, header.width, input_size)
    return [dataset.ids[index], *shown, path.stat().st_size, *turned, ENDS + digest_of_ends(path)]


def weights_sha256(model: nn.Module) -> str:
    """Hash of what a model computes with: its own word for it, or that of its arguments, code and state_dict."""
    own = getattr(model, "weights_sha256", None)
    if own:
        return own
    digest = hashlib.sha256()
    if arguments := getattr(model, "model_args", None):  # of a foreign network: its normalisation, too
        digest.update(json.dumps(arguments, sort_keys=True).encode())
    if made_of := getattr(model, "made_of", None):
        digest.update(json.dumps(made_of, sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
