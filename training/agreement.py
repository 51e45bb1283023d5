"""Pictures without masks are scored against the teacher: what it says of them is kept as masks, computed once.

What comes of it is agreement with the teacher, which is no mIoU: where it errs, so does the score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from basics.batch import VOID, prepare_batch
from basics.files import digest_of_ends, replacing
from basics.grids import upsample_logits
from basics.memory import explain_memory
from basics.progress import ProgressBar
from basics.signals import ignore_stop_signals
from dataset import SegmentationDataset
from kd.cache_store import locked
from kd.distiller import Teacher, TeacherOutput, pad_batch
from networks.working_size import resize_rows
from segdata.labels import IndexLabels
from segdata.layouts import SplitFiles
from segdata.palettes import palette_image


def label_split(
    dataset: SegmentationDataset,
    teacher: Teacher,
    made_from: list[object],
    folder: Path,
    device: torch.device,
    input_size: int = 0,
    workers: int = 0,
) -> SegmentationDataset:
    """The split with masks of what the teacher says, as index PNGs in a folder of their own below ``folder``.

    Args:
        teacher: a live one, in the student's classes.
        made_from: plain values that tell it from others.
        input_size: the working size at which it is shown the pictures; 0: native.
        workers: processes that read them.
    """
    pictures = zip(dataset.ids, dataset.files.images, strict=True)
    ends = [[name, path.stat().st_size, digest_of_ends(path)] for name, path in pictures]
    about = [made_from, dataset.class_names, ends, *([input_size] if input_size else [])]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    place = folder / f"{dataset.name}_{dataset.split}_said_{digest}"
    paths = [place / f"{index:06d}.png" for index in range(len(dataset))]
    if not all(path.is_file() for path in paths):
        with locked(place / "lock", "masks of what the teacher says", needed=False):  # seeds may begin together
            _write_masks(dataset, teacher, paths, device, input_size, workers)
    layout = replace(dataset.layout, labels=IndexLabels())
    return SegmentationDataset(layout, dataset.split, files=SplitFiles(dataset.ids, dataset.files.images, paths))


@torch.inference_mode()
def _write_masks(
    dataset: SegmentationDataset,
    teacher: Teacher,
    paths: Sequence[Path],
    device: torch.device,
    input_size: int,
    workers: int,
) -> None:
    """Those of the masks ``paths``, one a picture, that are not there."""
    todo = [index for index, path in enumerate(paths) if not path.is_file()]
    loader = DataLoader(
        dataset.whole(input_size),
        batch_size=1,
        sampler=todo,
        generator=torch.Generator(),
        num_workers=workers,
        worker_init_fn=ignore_stop_signals if workers else None,
    )
    for batch in ProgressBar(loader, desc=f"{dataset.split}: what the teacher says", unit="img"):
        with explain_memory("the teacher looks at whole validation pictures: bring masks for them, or smaller ones"):
            mask = classes_said(teacher, prepare_batch(batch, device))[0]
        with replacing(paths[batch["index"].item()]) as temporary:
            palette_image(mask, dataset.palette).save(temporary, format="PNG")


def classes_said(teacher: Teacher, batch: dict) -> np.ndarray:
    """The student's class that a teacher decides for at each pixel of a batch's original pictures, uint8 (N, H, W).

    255 where what it says means none of them.
    """
    height, width = batch["size"][0].tolist()
    told: TeacherOutput = teacher(pad_batch(batch, teacher.stride))

    def at_pixels(cells: torch.Tensor) -> torch.Tensor:
        shown = upsample_logits(cells.float(), teacher.logit_stride, batch["image"].shape[-2:])
        return resize_rows(shown, (height, width), 0, height)

    classes = at_pixels(told.logits).max(1)[1]
    if told.classes is not None:
        classes = torch.tensor(told.classes, device=classes.device)[classes]
    if told.speaks is not None:
        heard = at_pixels(told.speaks[:, None])[:, 0] >= 0.5
        classes = torch.where(heard, classes, VOID)
    return classes.to(torch.uint8).cpu().numpy()
