"""The file that VOC's evaluation server takes for the segmentation task."""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from basics.errors import UserError
from basics.files import replacing
from basics.progress import ProgressBar
from datalayouts.published import VOC_CLASSES
from dataset import SegmentationDataset
from segdata.palettes import palette_image

# comp6: trained with any data. comp5, VOC's own data alone, does not allow ImageNet weights.
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def refuse_scores(args: argparse.Namespace) -> None:
    """A `UserError` for arguments of evaluate.py that mean nothing where there is no truth to score against."""
    if len(args.checkpoints) > 1 or len(args.input_size or ()) > 1:
        raise UserError("--submission takes one checkpoint, and at most one --input-size")
    for name in ("agreement", "mean_over", "chart", "beside", "teacher", "json", "csv"):
        if getattr(args, name):
            raise UserError(f"--submission has no scores: leave out --{name.replace('_', '-')}")
    if args.amp != "off":
        raise UserError("--submission is computed in float32: leave out --amp")


def submit(path: Path, predict: Callable[[torch.Tensor], torch.Tensor], dataset: SegmentationDataset) -> None:
    """Write the predictions for all of ``dataset``'s images to ``path``, and say so.

    Args:
        predict: an image, uint8 (3, H, W) -> its class numbers, uint8 (H, W), on the CPU.

    Raises:
        UserError: the classes are not VOC's, or the file's name does not end in .tgz or .tar.gz.
    """
    if not path.name.endswith((".tgz", ".tar.gz")):
        raise UserError(f"--submission {path}: the name must end in .tgz")
    if dataset.class_names != VOC_CLASSES:
        raise UserError(f"--submission is for VOC's 21 classes: {dataset.name} has others")
    numbers = ProgressBar(range(len(dataset)), desc=f"predict {dataset.split}", unit="img")
    masks = ((dataset.ids[number], predict(dataset[number]["image"]).numpy()) for number in numbers)
    write_submission(path, masks, dataset.palette)
    print(
        f"{path}: masks of the {len(dataset)} images of {dataset.name}/{dataset.split} (no scores: the server's task)"
    )


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
