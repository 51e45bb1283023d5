"""Predictions of several networks side by side: a column a network, a row an image, as sheets and overlays.

    columns = [checkpoint_column("mine", "checkpoints/run/best.pth", dataset)]
    rows = [make_row(dataset, index, columns) for index in rank_images(columns[0], dataset)[:4]]
    write_sheets("worst", rows, ["Ground truth", "mine"], dataset, folder, per_sheet=4)

Used by visualize.py and by the report of compare.py.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from basics.device import pick_device
from basics.errors import UserError
from basics.files import replacing
from basics.progress import ProgressBar
from dataset import SegmentationDataset
from deploy.results import Look
from deploy.segmenter import Segmenter, load_segmenter
from deploy.teachers import TeacherChoice, load_teacher_for
from scoring.metrics import image_miou
from scoring.protocol import check_classes
from segdata.drawing import PanelRow, panel


@dataclass(frozen=True)
class Column:
    """A network and the title its predictions carry."""

    title: str
    segmenter: Segmenter


def checkpoint_column(
    title: str, path: Path, dataset: SegmentationDataset, device: str = "auto", *, check: bool = True
) -> Column:
    """The network in a checkpoint or an exported file.

    Args:
        check: compare its classes with ``dataset``'s; not needed where it was scored on them before.

    Raises:
        UserError: as `load_segmenter`, or it was made for other classes.
    """
    segmenter = load_segmenter(path, device)
    if check:
        check_classes(str(path), segmenter.class_names, dataset)
    return Column(title, segmenter)


def teacher_column(title: str, choice: TeacherChoice, dataset: SegmentationDataset, device: str = "auto") -> Column:
    """A teacher's word in the classes of ``dataset``; otherwise as `checkpoint_column`."""
    target = pick_device(device)
    teacher = load_teacher_for(choice, dataset).as_network().to(target)
    palette = [list(colour) for colour in dataset.palette]
    # A picture does not tell how large the network is: no parameters are counted, and a library's weights are no file.
    segmenter = Segmenter(
        teacher, choice.label, dataset.class_names, palette, parameters=0, file_bytes=0, device=target
    )
    return Column(title, segmenter)


def column_titles(paths: Sequence[Path]) -> list[str]:
    """The run's name for each checkpoint; its file's, and those of more folders, where that says too little."""
    full = list(dict.fromkeys(path.resolve() for path in paths))
    stems = [path.with_suffix("") for path in full]
    short = {path: stem if stems.count(stem) == 1 else path for path, stem in zip(full, stems, strict=True)}
    names = [short[path.resolve()].parts[1:] for path in paths]  # without the root
    tails = {
        # The folder, or of a file in the root itself, as containers have, the file.
        name: [name[-2:][0], *("/".join(name[-depth:]) for depth in range(min(2, len(name)), len(name) + 1))]
        for name in names
    }

    def title(name: tuple[str, ...]) -> str:
        """The shortest of its tails that is no other's; the run's name alone stands for its best.pth."""
        taken = {tail for other in tails if other != name for tail in tails[other]}
        alone = name[-1] == "best" and [tails[other][0] for other in names].count(tails[name][0]) == 1
        own = tails[name] if alone else tails[name][1:]
        return next((tail for tail in own if tail not in taken), own[-1])

    return [title(name) for name in names]


# -- images --------------------------------------------------------------------------------------


def rank_images(column: Column, dataset: SegmentationDataset) -> list[int]:
    """Indices of the images that have labelled pixels, the lowest per-image mIoU first."""
    scores = {}
    for index in ProgressBar(range(len(dataset)), desc=f"rank {dataset.split}", unit="img"):
        sample = dataset[index]
        prediction = column.segmenter.mask(sample["image"])
        scores[index] = image_miou(prediction, sample["mask"], dataset.num_classes)
    return sorted((index for index, score in scores.items() if not math.isnan(score)), key=scores.__getitem__)


def find_ids(dataset: SegmentationDataset, ids: Sequence[str]) -> list[int]:
    """Indices of the images called ``ids``; an unknown one is a `UserError`."""
    index_of = {name: index for index, name in enumerate(dataset.ids)}
    for name in ids:
        if name not in index_of:
            close = difflib.get_close_matches(name, index_of, n=3) or dataset.ids[:3]
            raise UserError(f"no image {name!r} in {dataset.name}/{dataset.split}; there are {', '.join(close)}, ...")
    return [index_of[name] for name in ids]


def make_row(dataset: SegmentationDataset, index: int, columns: Sequence[Column]) -> PanelRow:
    """One image of the split with its truth (where there is one) and every column's prediction."""
    sample = dataset[index]
    masks, notes = [], []
    if dataset.has_masks:
        masks.append(sample["mask"].numpy())
        notes.append("")
    for column in columns:
        prediction = column.segmenter.mask(sample["image"])
        score = image_miou(prediction, sample["mask"], dataset.num_classes)
        masks.append(prediction.numpy())
        notes.append("" if math.isnan(score) else f"mIoU {100 * score:.1f} %")
    return PanelRow(sample["id"], sample["image"].permute(1, 2, 0).numpy(), masks, notes)


# -- files ---------------------------------------------------------------------------------------


def write_sheets(
    name: str,
    rows: Sequence[PanelRow],
    titles: Sequence[str],
    dataset: SegmentationDataset,
    folder: Path,
    per_sheet: int,
) -> list[Path]:
    """Write ``rows`` as FOLDER/NAME.png, or NAME_1.png, NAME_2.png, ... of ``per_sheet`` images; returns the paths.

    ``titles`` are those of the columns after the input's.
    """
    pages = [rows[start : start + per_sheet] for start in range(0, len(rows), per_sheet)]
    paths = []
    for number, page in enumerate(pages, start=1):
        paths.append(folder / (f"{name}.png" if len(pages) == 1 else f"{name}_{number}.png"))
        with replacing(paths[-1]) as temporary:
            panel(page, ["Input", *titles], dataset.class_names, dataset.palette, temporary)
    return paths


def write_overlays(row: PanelRow, titles: Sequence[str], dataset: SegmentationDataset, folder: Path) -> int:
    """Write the image's masks over the image, at its own size, as FOLDER/ID_TITLE.png; returns how many."""
    titles = [re.sub(r"[/\\ ]", "_", title).replace(":", "") for title in titles]
    names = [f"{row.name}_{title}" for title in titles]  # with the folders that the image's name may have
    names = [name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names, start=1)]
    masks = [(name, mask) for name, mask in zip(names, row.masks, strict=True) if mask is not None]
    for name, mask in masks:
        painted = Look(dataset.class_names, dataset.palette).overlay(row.image, mask)
        with replacing(folder / f"{name}.png") as temporary:
            Image.fromarray(painted).save(temporary)
    return len(masks)
