"""Read every image and mask of every split once and list all faults, not only the first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from segdata.layouts import Layout
from segdata.parallel import map_in_order
from segdata.reading import DataError, check_sizes, read_image, read_mask

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Report:
    """What a check found: images by split, faults (one line each) and remarks that are no faults."""

    images: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(
            [
                *(f"  {split:<10} {count:6,} images" for split, count in self.images.items()),
                *(f"remark: {remark}" for remark in self.remarks),
                *(f"fault: {fault}" for fault in self.faults),
                f"{len(self.faults)} faults" if self.faults else "no faults",
            ]
        )


def check_layout(layout: Layout) -> Report:
    """Check all splits of ``layout``; a pair that several splits share is read once."""
    report = Report()
    pairs: dict[tuple[Path, Path | None], None] = {}
    split_ids: dict[str, set[str]] = {}
    for split in layout.splits():
        files, faults = layout.scan(split)
        report.faults += faults
        report.images[split] = len(files.ids)
        split_ids[split] = set(files.ids)
        masks: Sequence[Path | None] = files.masks or [None] * len(files.ids)
        pairs |= dict.fromkeys(zip(files.images, masks, strict=True))
    if not report.images:
        report.faults.append(f"{layout.root}: no splits; ImageSets/Segmentation/ has no lists")
    found = map_in_order(lambda pair: check_pair(*pair, layout), pairs, desc="checking", total=len(pairs))
    report.faults += [fault for faults in found for fault in faults]
    report.faults = list(dict.fromkeys(report.faults))
    report.remarks = layout.remarks + [
        f"{len(shared)} images are in both {train} and val, for example {min(shared)}: scores on val will flatter"
        for train in ("train", "train_aug")
        if (shared := split_ids.get(train, set()) & split_ids.get("val", set()))
    ]
    return report


def check_pair(image_path: Path, mask_path: Path | None, layout: Layout) -> list[str]:
    """All faults of one image and its mask, one line each."""
    faults: list[str] = []
    image = _attempt(faults, read_image, image_path)
    if mask_path is None:
        return faults
    mask = _attempt(faults, layout.read_labels, mask_path)
    if mask is None:
        with contextlib.suppress(DataError):  # wrong labels: its size can be compared all the same
            mask = read_mask(mask_path)
    if image is not None and mask is not None:
        _attempt(faults, check_sizes, image, mask, image_path, mask_path)
    return faults


def _attempt(faults: list[str], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What ``function`` returns, or None and its complaint among ``faults``."""
    try:
        return function(*args, **kwargs)
    except DataError as error:
        faults.append(str(error))
        return None
