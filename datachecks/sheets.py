"""A few images of each class with what its labels mark, on a sheet: whether labels are right shows at a glance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from basics.batch import VOID
from basics.files import replacing
from datachecks.census import SplitCensus, open_census
from datachecks.stats import data_name
from segdata.drawing import ClassRow, Example, contact_sheet
from segdata.layouts import Layout, SplitFiles
from segdata.reading import read_image

EXAMPLES = (0.05, 0.35, 0.7)  # of a class on a contact sheet: places among its images, by how much it covers
SHEET_PIXELS = 320  # the longer side of a picture there
CLASSES_A_SHEET = 12


def save_sheets(layout: Layout, split: str, folder: Path) -> list[Path]:
    """Draw a few images of each class with its labels into ``NAME_SPLIT_sheet.png``; of many classes several sheets.

    Returns:
        the files' paths.
    """
    files = layout.files(split)
    with open_census(layout) as census:
        counted = census.take({split: files})[split]
    names, images, pixels = layout.class_names, counted.images, counted.pixels
    rows = []
    for label in np.flatnonzero(images[: len(names)]).tolist():
        examples = [_example(layout, files, index) for index in pick_examples(counted, label)]
        share = 100 * pixels[label] / max(pixels[:VOID].sum(), 1)
        note = f"in {images[label]:,} of {len(files.ids):,} images, {share:.3g} % of the labelled pixels"
        rows.append(ClassRow(label, note, examples))
    absent = [name for label, name in enumerate(names) if not images[label]]
    notes = ["left: the image; right: what has the label of the class; grey is another class, cream is void"]
    notes += [f"in no mask: {', '.join(absent)}"] if absent else []
    starts = range(0, max(len(rows), 1), CLASSES_A_SHEET)
    paths = []
    for number, start in enumerate(starts, 1):
        paths.append(Path(folder) / f"{data_name(layout)}_{split}_sheet{f'_{number}' * (len(starts) > 1)}.png")
        sheet = rows[start : start + CLASSES_A_SHEET]
        with replacing(paths[-1]) as temporary:
            contact_sheet(sheet, f"{data_name(layout)} / {split}", notes, names, layout.palette, temporary)
    return paths


def pick_examples(counted: SplitCensus, label: int) -> list[int]:
    """Indices of up to `EXAMPLES` images with a class: those in which it covers much, some, and less."""
    shares = [
        (mask.pixels[mask.labels.index(label)] / (mask.width * mask.height), index)
        for index, mask in enumerate(counted.masks or [])
        if mask is not None and label in mask.labels
    ]
    order = [index for _, index in sorted(shares, key=lambda found: (-found[0], found[1]))]
    if len(order) <= len(EXAMPLES):
        return order
    return list(dict.fromkeys(order[round(place * (len(order) - 1))] for place in EXAMPLES))


def _example(layout: Layout, files: SplitFiles, index: int) -> Example:
    """An image and its mask, small enough for a sheet."""
    assert files.masks is not None
    image = Image.fromarray(read_image(files.images[index]).permute(1, 2, 0).contiguous().numpy())
    mask = Image.fromarray(layout.read_labels(files.masks[index]))
    scale = min(1.0, SHEET_PIXELS / max(image.size))
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    small = np.array(image.resize(size, Image.Resampling.BOX)), np.array(mask.resize(size, Image.Resampling.NEAREST))
    return Example(files.ids[index], *small)
