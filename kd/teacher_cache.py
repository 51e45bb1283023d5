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
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from basics.batch import MEAN, STD, prepare_batch
from basics.checkpoint import save_atomic
from basics.errors import UserError, choose
from basics.files import digest_of_ends, file_bytes
from basics.grids import to_stride, working_shape
from basics.record_file import write_manifest
from kd.cache_quality import measure_maps, quality_line
from kd.cache_store import (
    BUILDING,
    DTYPES,
    ENDS,
    FORMAT,
    JOURNAL,
    MANIFEST,
    OUTPUTS,
    CacheWriter,
    RecordLayout,
    check_room,
    differences,
    is_blurred,
    load_manifest,
    locked,
    other_manifest,
    writing,
)
from kd.cached_teacher import CachedTeacher, InOrder, TrainingSplit, load_projections, measure_agreement
from kd.distiller import LiveTeacher, Recipe, TeacherOutput, pad_batch
from kd.losses import LOSSES, loss_of
from kd.projection import EXACT_CHANNELS, KEEP, Projection, fit_projection
from networks.base import SegmentationModel
from networks.folding import fold_batchnorm
from segdata.orientation import UPRIGHT
from segdata.reading import read_header

DEFAULT_FOLDER = Path("data/teacher_cache")
# Feature maps are kept at these strides, those of a student, or at their own where that is coarser: losses compare on
# the coarser of both grids. Half of low's resolution would leave 45 % of its variance, a quarter 23 % (docs/cache.md).
KEPT_STRIDES = {"low": 4, "mid": 8, "high": 16, "decoder": 4}
LEAST_PAD = 16  # images are padded to multiples of this, or of the teacher's stride
PROJECTION_IMAGES = 48  # what a projection is fitted to,
PROJECTION_CELLS = 256  # and how many vectors of each
PROBE_IMAGES = 16  # what is measured on is how well feature maps are kept
EXPECTED_DIMS = 0.5  # share of the channels, where nobody knows yet how many dimensions are needed


# -- opening -----------------------------------------------------------------------------------------


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
    if recipe:
        _check_losses(recipe, model)
    taps = recipe.taps if recipe else []
    here = describe(model, name, dataset, taps, dtype)
    stem = re.sub(r"[^\w.+-]+", "_", f"{dataset.name}_{dataset.list_name}_{name}_{dtype}")
    folder = Path(cache_dir) / "_".join([stem, *taps])
    # A finished cache of more images or feature maps than needed serves as well; this run's own name comes first.
    others = sorted(path.parent for path in Path(cache_dir).glob(f"*/{MANIFEST}"))
    for candidate in dict.fromkeys([folder, *others]):
        if (manifest := load_manifest(candidate) if candidate == folder else other_manifest(candidate)) is None:
            continue
        found = differences(manifest["made_from"], here)
        if not found:
            _announce(candidate, manifest, taps)
            return CachedTeacher(candidate, manifest, taps, dataset.ids)
        if candidate == folder:
            _refuse(folder, found)
    if not build:
        check_room(folder, _expected_bytes(here, model, taps) - file_bytes(folder / OUTPUTS))
        return None
    with locked(folder / "lock"):
        if load_manifest(folder) is None:
            CacheBuilder(folder, here, model, dataset, torch.device(device)).build(batch_size, workers)
            return CachedTeacher(folder, load_manifest(folder) or {}, taps, dataset.ids)
    return open_teacher_cache(  # another run has built it meanwhile: look at it as at any other
        cache_dir, model, name, dataset, recipe=recipe, dtype=dtype, device=device, batch_size=batch_size
    )


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
        maps[tap] = [model.tap_channels[tap], max(model.tap_strides[tap], KEPT_STRIDES[tap])]
    return {
        "format": FORMAT,
        "teacher": name,
        "weights_sha256": weights_sha256(model),
        "mean": list(MEAN),
        "std": list(STD),
        "pad": max(model.stride, LEAST_PAD),
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


def _refuse(folder: Path, found: list[str]) -> None:
    raise UserError(
        f"the teacher cache {folder} was made from something else: {'; '.join(found)}; remove that folder or name "
        "another --cache-dir"
    )


# -- building ----------------------------------------------------------------------------------------


class CacheBuilder:
    """Fills a cache's folder, which this process has locked.

    Args:
        here: what the cache is made from, see `describe`.
        dataset: the training split with its training transform.
    """

    def __init__(
        self,
        folder: Path,
        here: dict[str, Any],
        model: SegmentationModel,
        dataset: TrainingSplit,
        device: torch.device,
    ):
        self.folder, self.here, self.device = folder, here, device
        self.maps: dict[str, list[int]] = here["maps"]  # name -> [channels, stride]
        self.taps = [name for name in self.maps if name != "logits"]
        self.teacher = LiveTeacher(fold_batchnorm(model).to(device), name=here["teacher"])
        self.dataset, self.full = dataset, dataset.whole(here.get("input_size", 0))

    def build(self, batch_size: int, workers: int) -> None:
        """Write what is missing, measure the agreement with the teacher, and declare the cache whole."""
        begun = load_manifest(self.folder, BUILDING)
        if begun and begun["made_from"] != self.here:
            self._go_on_in_order(begun["made_from"])
        write_manifest(self.folder / BUILDING, {"made_from": self.here})
        projections = self._make_projections()
        made_from = self.here | {"dims": {tap: projection.dims for tap, projection in projections.items()}}
        layout = RecordLayout(made_from)
        writer = CacheWriter(self.folder, layout)
        try:
            if writer.done:
                print(f"teacher cache: going on after {writer.done} of {len(self.full)} images")
            check_room(self.folder, layout.total_bytes - int(layout.offsets[writer.done]))
            image_s = self._fill(writer, projections, workers)
        finally:
            writer.close()
        manifest: dict[str, Any] = {"made_from": made_from}
        cached = CachedTeacher(self.folder, manifest, self.taps)
        agreement, crop_s = measure_agreement(cached, self.teacher, self.dataset, self.device, batch_size)
        quality = measure_maps(cached.reader, projections, self._probes(), self.teacher.tap_strides)
        manifest |= {
            "agreement": agreement,
            "feature_maps": quality,
            "seconds_per_image": image_s,
            "live_seconds_per_crop": crop_s,
            "pays_after_epochs": math.ceil(image_s / crop_s) if image_s and crop_s else None,
            "device": str(self.device),
            "torch": torch.__version__,
        }
        write_manifest(self.folder / MANIFEST, manifest)
        with writing(self.folder):
            for leftover in (BUILDING, JOURNAL):
                (self.folder / leftover).unlink(missing_ok=True)
        print(f"teacher cache: done; {agreement_line(manifest)}")
        for tap, measured in quality.items():
            print(f"teacher cache: {quality_line(tap, measured)}")
        if after := manifest["pays_after_epochs"]:
            print(
                f"teacher cache: {image_s:.3g} s an image to build, {crop_s:.3g} s a crop to teach live: it pays for "
                f"itself after {after} epoch{'s' * (after > 1)}"
            )

    def _go_on_in_order(self, begun: dict[str, Any]) -> None:
        """Go on with what was begun from the same images in another order: for other label budgets, or another seed."""
        found = differences(begun, self.here)
        if found or len(begun["images"]) != len(self.here["images"]) or begun["maps"] != self.here["maps"]:
            _refuse(self.folder, found or ["more feature maps, or more images, were asked for"])
        self.here = begun
        ids = [image[0] for image in begun["images"]]
        self.dataset, self.full = InOrder(self.dataset, ids), InOrder(self.full, ids)

    def _fill(self, writer: CacheWriter, projections: dict[str, Projection], workers: int) -> float | None:
        """Write the missing records; returns the median seconds an image took (None: nothing was missing)."""
        todo, seconds = range(writer.done, len(self.full)), []
        bar = tqdm(
            desc="teacher cache", initial=writer.done, total=len(self.full), unit="img", mininterval=1, disable=None
        )
        try:
            start = time.perf_counter()
            for index, batch in zip(todo, self._full_images(todo, workers), strict=True):
                record = {
                    name: (projections[name].centred(values) if name in projections else values)[0].cpu()
                    for name, values in self._outputs(batch).items()
                }
                for name, values in record.items():
                    if not values.isfinite().all():
                        raise UserError(
                            f"the teacher's {name} for image {self.full.ids[index]} are not finite: look at the image, "
                            "or at the teacher's weights"
                        )
                writer.append(writer.layout.encode(index, record))
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
                bar.update()
        finally:
            bar.close()
            writer.commit()  # after Ctrl-C, too: what is done is kept
        return statistics.median(seconds) if seconds else None

    def _full_images(self, indices: Sequence[int], workers: int) -> Iterator[dict]:
        """Batches of one whole image each, in order."""
        assert isinstance(self.full, Dataset)  # torch's own word for what can be indexed
        subset = Subset(self.full, indices)
        return iter(DataLoader(subset, batch_size=1, num_workers=workers, generator=torch.Generator()))

    def _tell(self, batch: dict) -> TeacherOutput:
        """What the teacher says of one whole image."""
        batch = prepare_batch(batch, self.device)
        if self.here["pad"] > self.teacher.stride:  # up to its own stride the teacher pads by itself
            batch = pad_batch(batch, self.here["pad"])
        return self.teacher(batch)

    def _outputs(self, batch: dict) -> dict[str, torch.Tensor]:
        """Logits and feature maps (1, C, h, w) of one whole image, at the strides they are kept at."""
        told = self._tell(batch)
        outputs = {"logits": told.logits.float()}
        for tap in self.taps:
            outputs[tap] = to_stride(told.taps[tap].float(), self.teacher.tap_strides[tap], self.maps[tap][1])
        return outputs

    def _probes(self) -> Iterator[tuple[int, tuple[int, int], dict[str, torch.Tensor]]]:
        """Index, size (H, W) and the teacher's own feature maps of images spread over the split, for `measure_maps`.

        Where there are enough of them, they lie between those that projections are fitted to.
        """
        if not self.taps:
            return
        count = min(PROBE_IMAGES, len(self.full))
        indices = [(2 * position + 1) * len(self.full) // (2 * count) for position in range(count)]
        for index, batch in zip(indices, self._full_images(indices, 0), strict=True):
            height, width = batch["image"].shape[-2:]
            yield index, (height, width), self._tell(batch).taps

    def _make_projections(self) -> dict[str, Projection]:
        """Fit one to each feature map on images spread over the split, or take those that are there already."""
        path = self.folder / "projection.pth"
        if not self.taps or path.exists():
            return load_projections(self.folder, self.taps)
        count = min(PROJECTION_IMAGES, len(self.full))
        indices = [position * len(self.full) // count for position in range(count)]
        samples: dict[str, list[torch.Tensor]] = {tap: [] for tap in self.taps}
        bar = tqdm(self._full_images(indices, 0), desc="projection", total=count, unit="img", leave=False, disable=None)
        for batch in bar:
            height, width = batch["image"].shape[-2:]
            outputs = self._outputs(batch)
            for tap in self.taps:
                stride = self.maps[tap][1]
                inside = outputs[tap][0, :, : max(height // stride, 1), : max(width // stride, 1)].flatten(1).T
                cells = torch.linspace(0, len(inside) - 1, min(PROJECTION_CELLS, len(inside))).round().long()
                samples[tap].append(inside[cells.to(inside.device)].cpu())  # (cells, D)
        projections = {tap: fit_projection(samples[tap], self.teacher.tap_channels[tap]) for tap in self.taps}
        with writing(self.folder):
            save_atomic({tap: projection.state() for tap, projection in projections.items()}, path)
        return projections


def agreement_line(manifest: dict[str, Any]) -> str:
    agreement = manifest["agreement"]
    return (
        f"on {agreement['crops']} random crops cached and live teacher agree in "
        f"{100 * agreement['argmax_agreement']:.1f} % of the cells, mean |dp| {agreement['mean_abs_dp']:.4f}"
    )
