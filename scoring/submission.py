"""The file that VOC's evaluation server takes for the segmentation task."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from basics.files import replacing
from segdata.pictures import palette_image

# comp6: trained with any data. comp5, VOC's own data alone, does not allow ImageNet weights.
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def write_submission(
    path: str | Path, masks: Iterable[tuple[str, np.ndarray]], palette: Sequence[Sequence[int]]
) -> None:
    """Write a .tgz with ``results/VOC2012/Segmentation/comp6_test_cls/ID.png`` for every image.

    Args:
        path: the file; it appears under its name only when it is whole.
        masks: image id and class numbers, uint8 (H, W) at the image's own size.
        palette: RGB colour by class number.
    """
    with replacing(path) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for name, mask in masks:
            png = io.BytesIO()
            palette_image(mask, palette).save(png, "PNG")
            member = tarfile.TarInfo(f"{FOLDER}/{name}.png")
            member.size, member.mode = png.tell(), 0o644
            png.seek(0)
            archive.addfile(member, png)
