"""How a teacher's cache is made: every full image through the teacher once, its maps projected, all of it measured.

See `kd.teacher_cache` for what a cache is, and `kd.cache_store` for its files.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from basics.batch import prepare_batch
from basics.checkpoint import save_atomic
from basics.errors import UserError
from basics.grids import to_stride
from basics.progress import ProgressBar
from basics.record_file import write_manifest
from kd.cache_quality import measure_maps, quality_line
from kd.cache_store import (
    BUILDING,
    JOURNAL,
    MANIFEST,
    CacheWriter,
    RecordLayout,
    check_room,
    differences,
    load_manifest,
    refuse_other,
    writing,
)
from kd.cached_teacher import CachedTeacher, InOrder, TrainingSplit, load_projections, measure_agreement
from kd.distiller import LiveTeacher, TeacherOutput, pad_batch
from kd.projection import Projection, fit_projection
from networks.base import SegmentationModel
from networks.folding import fold_batchnorm

PROJECTION_IMAGES = 48  # what a projection is fitted to,
PROJECTION_CELLS = 256  # and how many vectors of each
PROBE_IMAGES = 16  # what is measured on is how well feature maps are kept


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
        # On a GPU a live teacher runs otherwise than here (bf16, tuned kernels), in a time that nobody has measured.
        after = math.ceil(image_s / crop_s) if image_s and crop_s and self.device.type == "cpu" else None
        manifest |= {
            "agreement": agreement,
            "feature_maps": quality,
            "seconds_per_image": image_s,
            "live_seconds_per_crop": crop_s,
            "pays_after_epochs": after,
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
        if after:
            print(
                f"teacher cache: {image_s:.3g} s an image to build, {crop_s:.3g} s a crop to teach live: it pays for "
                f"itself after {after} epoch{'s' * (after > 1)}"
            )

    def _go_on_in_order(self, begun: dict[str, Any]) -> None:
        """Go on with what was begun from the same images in another order: for other label budgets, or another seed."""
        found = differences(begun, self.here)
        if found or len(begun["images"]) != len(self.here["images"]) or begun["maps"] != self.here["maps"]:
            refuse_other(self.folder, found or ["more feature maps, or more images, were asked for"])
        self.here = begun
        ids = [image[0] for image in begun["images"]]
        self.dataset, self.full = InOrder(self.dataset, ids), InOrder(self.full, ids)

    def _fill(self, writer: CacheWriter, projections: dict[str, Projection], workers: int) -> float | None:
        """Write the missing records; returns the median seconds an image took (None: nothing was missing)."""
        todo, seconds = range(writer.done, len(self.full)), []
        bar = ProgressBar(desc="teacher cache", initial=writer.done, total=len(self.full), unit="img", mininterval=1)
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
        bar = ProgressBar(self._full_images(indices, 0), desc="projection", total=count, unit="img")
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
    """How far cache and live teacher are apart, and why, where they see pictures at other sizes."""
    agreement, size = manifest["agreement"], manifest["made_from"].get("input_size")
    return (
        f"on {agreement['crops']} random crops cached and live teacher agree in "
        f"{100 * agreement['argmax_agreement']:.1f} % of the cells, mean |dp| {agreement['mean_abs_dp']:.4f}"
        + (f" (live it would see these crops, cached it saw whole pictures at {size} pixels)" if size else "")
    )
