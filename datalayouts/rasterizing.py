"""Draw the annotations of pictures as index masks, and compare them with the pictures while at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datalayouts.annotations import Annotations, Findings, Item, Picture
from datalayouts.shapes import Circle, Polygons, Region, paint
from segdata.orientation import SIDEWAYS
from segdata.palettes import colour_table, distinct_palette, palette_image
from segdata.parallel import map_in_order
from segdata.reading import DataError, read_header

SLACK = 1.0  # pixels beyond the picture's edge that nobody needs to hear of


def mask_name(picture: Picture) -> str:
    """Where the mask of ``picture`` lies within the folder of masks."""
    return f"{picture.split or 'default'}/{picture.id}.png"


def embedded_name(picture: Picture) -> str:
    """The same for a picture that lay in its annotation file alone."""
    return f"pictures/{picture.split or 'default'}/{picture.id}{picture.path.suffix}"


def _written(picture: Picture) -> list[str]:
    """All that is written for a picture."""
    return [mask_name(picture)] * (picture.items is not None) + [embedded_name(picture)] * bool(picture.embedded)


def draw_masks(annotations: Annotations, folder: Path) -> None:
    """Write a mask for every annotated picture, and the embedded pictures; remarks are added to those there are.

    Raises:
        DataError: one line that counts all faults of shapes and pictures.
    """
    colours = colour_table(distinct_palette(annotations.class_names))
    pictures = annotations.pictures
    for parent in {Path(name).parent for picture in pictures for name in _written(picture)}:
        (folder / parent).mkdir(parents=True, exist_ok=True)

    def draw(picture: Picture) -> tuple[Findings, Findings, int]:
        faults, remarks = Findings(), Findings()
        return faults, remarks, _draw_picture(picture, annotations, colours, folder, faults, remarks)

    faults, visible = Findings(), 0
    for wrong, noted, count in map_in_order(draw, pictures, desc="drawing masks", total=len(pictures)):
        faults.merge(wrong)
        annotations.remarks.merge(noted)
        visible += count
    items = sum(len(picture.items or []) for picture in pictures)
    if items and (not visible or _are_fractions(pictures)) and not faults.found:
        first = next(picture for picture in pictures if picture.items)
        what = f"none of all {items:,} shapes {'reaches beyond the first pixel' if visible else 'covers a pixel'}"
        faults.add(f"{what}; are the coordinates fractions of the picture's size?", str(first.origin))
    faults.raise_any()


def _are_fractions(pictures: Sequence[Picture]) -> bool:
    """Whether all outlines lie within one pixel, of which those in the middle of their pictures cover its centre."""
    shapes = [item.shape for picture in pictures for item in picture.items or []]
    outlines = [shape for shape in shapes if isinstance(shape, Polygons | Circle)]
    return len(outlines) == len(shapes) and all(max(shape.bounds()[2:]) <= 1 for shape in outlines)


def _draw_picture(
    picture: Picture, annotations: Annotations, colours: np.ndarray, folder: Path, faults: Findings, remarks: Findings
) -> int:
    """Write one mask; how many of its shapes cover a pixel."""
    path = picture.path
    try:
        if picture.embedded:
            path = folder / embedded_name(picture)
            path.write_bytes(picture.embedded())
        (height, width), stored, orientation = _sizes_of(path)
    except DataError as error:
        place, _, kind = str(error).partition(": ")
        faults.add(kind or "cannot be read", place)
        return 0
    if picture.size not in (None, (height, width)):
        assert picture.size is not None
        annotated, found = (f"{size[1]}x{size[0]}" for size in (picture.size, (height, width)))
        place = f"{picture.origin}, {picture.path.name} (annotated as {annotated}, the picture is {found})"
        faults.add(_other_size(picture.size == stored, orientation), place)
        return 0
    if picture.items is None:
        return 0
    regions: list[tuple[int, Region]] = []
    for item in picture.items:
        place = f"{picture.origin}, {item.name} on {picture.id}"
        try:
            region = item.shape.draw(height, width)
        except ValueError as error:
            faults.add(f"{error}; correct or remove it", place)
            continue
        regions.append((item.label, region))
        _check_place(item, (height, width), region, place, faults, remarks)
    mask = paint(regions, height, width, annotations.ground, smaller_on_top=annotations.smaller_on_top)
    palette_image(mask, colours).save(folder / mask_name(picture))
    return sum(region.area > 0 for _, region in regions)


def _check_place(
    item: Item, size: tuple[int, int], region: Region, place: str, faults: Findings, remarks: Findings
) -> None:
    """Say if a shape is not, or not wholly, where its picture of ``size`` (H, W) is."""
    height, width = size
    x0, y0, x1, y1 = item.shape.bounds()
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        faults.add("lies outside its picture; correct or remove it", f"{place} ({width}x{height})")
    elif min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        remarks.add("reaches beyond the picture; what is outside is cut off", place)
    elif not region.area:
        remarks.add("is so thin or small that it covers the centre of no pixel", place)


def _other_size(as_stored: bool, orientation: int) -> str:
    if as_stored:
        return (
            f"was annotated lying on its side: EXIF orientation {orientation} turns the picture upright; "
            "annotate it upright, or remove the orientation from the file"
        )
    return "has another size than was annotated; take the picture that was, or scale the annotations"


def _sizes_of(path: Path) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(H, W) of a picture turned upright as EXIF says, (H, W) as stored, and the EXIF orientation (1 = as stored).

    Raises:
        DataError: it is no picture, or absurdly large.
    """
    header = read_header(path)
    upright = header.height, header.width
    return upright, upright[::-1] if header.orientation in SIDEWAYS else upright, header.orientation
