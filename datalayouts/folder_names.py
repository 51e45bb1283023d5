"""What the names of folders say of their content: images or masks, and of which split."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from segdata.pairing import MASK_SUFFIXES
from segdata.reading import DataError
from segdata.split_lists import SPLIT_NAMES, USUAL_SPLITS, usual_name

# Without case, spaces, hyphens and underscores; where several are there, the first counts.
IMAGE_FOLDERS = (
    "jpegimages", "images", "image", "imgs", "img", "imgdir", "pictures", "photos", "rgb", "inputs", "input",
    "originals", "original", "originalimages", "originalimage", "leftimg8bit", "frames",
)  # fmt: skip
MASK_FOLDERS = (
    "segmentationclass", "segmentationclassraw", "segmentationclasspng", "masks", "mask", "labels", "label",
    "annotations", "annotation", "annots", "annot", "anns", "ann", "anndir", "gt", "gts", "groundtruth",
    "groundtruths", "gtfine", "segmentations", "segmentation", "segs", "seg", "targets", "target", "maskspng",
    "pngmasks", "labelimages", "labelimagessemantic", "masksmachine",
)  # fmt: skip
KINDS = [*IMAGE_FOLDERS, *MASK_FOLDERS]
SPLITS = {name.replace("_", ""): usual_name(name) for name in (*SPLIT_NAMES, *USUAL_SPLITS)}


def meaning(folder: str) -> tuple[str | None, str | None]:
    """(split, kind) that a folder's name speaks of: `train_masks` of ("train", "mask"), `images` of (None, "image")."""
    plain = plain_name(folder)
    if plain == "segmentationclassaug":  # VOC's masks of SBD
        return "train_aug", "mask"
    if plain in SPLITS:
        return SPLITS[plain], None
    for split in ("", *sorted(SPLITS, key=len, reverse=True)):
        for rest in (plain.removeprefix(split), plain.removesuffix(split)):
            kind = "image" if rest in IMAGE_FOLDERS else "mask" if rest in MASK_FOLDERS else None
            if kind and (not split or rest != plain):
                return SPLITS.get(split), kind
    return None, None


def plain_name(name: str) -> str:
    """Lower case, without blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", name.casefold())


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out, sorted.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / each.name for each in entries if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from None


def holds_pictures(folder: Path) -> bool:
    """Whether pictures lie in it, and not only in folders of it; of one that is closed nobody knows."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(not each.name.startswith(".") and each.name.lower().endswith(MASK_SUFFIXES) for each in entries)
    return False
