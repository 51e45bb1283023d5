"""`--dataset labelme`: one JSON file a picture, as LabelMe and its kin write them.

Classes are those of ``classes.txt`` or ``labels.txt`` in the data set's folder; where there is neither, `background`
and the sorted labels, written to ``classes.txt`` once, so that a new label cannot move the others' numbers unseen.
Shapes lie over each other in the file's order, later ones on top.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from basics.batch import VOID
from basics.errors import UserError
from basics.files import write_text
from datalayouts.annotations import (
    BACKGROUND,
    BACKGROUND_NAMES,
    IGNORED,
    XML,
    Annotations,
    Findings,
    Item,
    Listings,
    Picture,
    Pictures,
    as_points,
    as_size,
    check_class_names,
    check_folder,
    parts_below,
    read_json,
    settle_pictures,
    split_of_folders,
    telling_folders,
)
from datalayouts.polygons import elsewhere, open_layout, writable_home
from datalayouts.shapes import Bitmap, Circle, Polygons, Shape
from segdata.class_tables import class_list_text, read_class_names
from segdata.layouts import Layout
from segdata.pairing import same_name
from segdata.parallel import map_in_order
from segdata.reading import DataError

CLASS_LISTS = ("classes.txt", "labels.txt")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
LINES = ("line", "linestrip", "point", "points")  # shapes that have no area
OTHERS = "other"  # split of the pictures beside the folders train/ and val/


@dataclass
class AnnotationFile:
    """One picture's file.

    Attributes:
        image: the picture's name there, with ``/`` between folders.
        size: (H, W) of the picture, if it says.
        shapes: label, what it covers, and its number in the file.
        embeds: suffix of the picture that the file holds, or None.
    """

    path: Path
    image: PurePosixPath
    size: tuple[int, int] | None
    shapes: list[tuple[str, Shape, int]]
    embeds: str | None
    faults: Findings
    remarks: Findings


def find_labelme(data_dir: Path) -> Layout:
    """The data set of LabelMe files in ``data_dir`` and its subfolders.

    Raises:
        UserError: there is none, or something about it is faulty.
    """
    root = Path(data_dir)
    check_folder(root)
    there = parts_below(root)
    paths = [root.joinpath(*parts) for parts in there if parts[-1].lower().endswith(".json")]
    if not paths:
        hint = XML if any(parts[-1].lower().endswith(".xml") for parts in there) else "LabelMe writes one a picture"
        raise DataError(f"{root}: no .json files there or in its subfolders; {hint}")
    files = None
    class_list = find_class_list(root)
    if class_list is None:
        files = read_files(paths)
        class_list = write_class_list(root, files)
    return open_layout(
        "labelme",
        root,
        [*paths, class_list],
        lambda: to_annotations(root, files or read_files(paths), class_list),
    )


# -- classes ---------------------------------------------------------------------------------------


def find_class_list(root: Path) -> Path | None:
    """The list of classes that somebody, or `write_class_list`, has put there."""
    places = [folder / name for folder in (root, elsewhere(root)) for name in CLASS_LISTS]
    return next((path for path in places if path.is_file()), None)


def write_class_list(root: Path, files: Sequence[AnnotationFile]) -> Path:
    """Write down the background and the sorted labels of ``files``, which are free of faults.

    Raises:
        UserError: a file is faulty, there are no labels, or nothing can be written.
    """
    faults = Findings()
    for file in files:
        faults.merge(file.faults)
    faults.raise_any()
    labels = {label for file in files for label, _, _ in file.shapes}
    names = sorted(label for label in labels if label != IGNORED and label.lower() not in BACKGROUND_NAMES)
    if not names:
        raise DataError(f"{root}: no shape has a label but the background's: there is nothing to learn")
    if alike := _alike(names):
        first, second = alike
        where = next(file.path for file in files for label, _, _ in file.shapes if label == second)
        raise DataError(
            f"{root}: the labels {first!r} and {second!r} (such as in {where}) differ in capitals or blanks alone: "
            f"make them one, or list both in {root / CLASS_LISTS[0]} if they are two classes"
        )
    path = writable_home(root) / CLASS_LISTS[0]
    check_class_names([BACKGROUND, *names], path)
    text = class_list_text([BACKGROUND, *names])
    try:
        write_text(path, text)
    except UserError:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # another run was there first
            raise
    print(f"labelme: {len(names) + 1} classes written to {path}: {', '.join([BACKGROUND, *names])}")
    return path


def _alike(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two names that differ in capitals and blanks alone."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault("".join(name.split()).casefold(), name)
        if other != name:
            return other, name
    return None


def read_class_list(path: Path) -> tuple[dict[str, int], list[str], list[str]]:
    """Class numbers by label, the class names, and for each class what it is called in the list.

    ``__ignore__`` is void; a list without a background gets one in front.
    """
    keys = [name for name in read_class_names(path) if name != IGNORED]
    names = [BACKGROUND if name.lower() in BACKGROUND_NAMES else name for name in keys]
    if BACKGROUND not in names:
        names, keys = [BACKGROUND, *names], ["", *keys]
    check_class_names(names, path)
    labels = {key: index for index, key in enumerate(keys)} | {IGNORED: VOID}
    return labels | dict.fromkeys(BACKGROUND_NAMES, names.index(BACKGROUND)), names, keys


# -- files -----------------------------------------------------------------------------------------


def read_files(paths: Sequence[Path]) -> list[AnnotationFile]:
    """All files that are LabelMe's.

    Raises:
        DataError: one is not JSON, or none is LabelMe's.
    """
    found = list(map_in_order(read_file, paths, desc="reading annotations", total=len(paths)))
    files = [file for file in found if file is not None]
    if not files:
        content = read_json(paths[0])
        coco = isinstance(content, dict) and "images" in content and "categories" in content
        hint = "; these are COCO's: --dataset coco" * coco
        raise DataError(f"{paths[0]}: no LabelMe annotations (a JSON object with shapes and imagePath){hint}")
    others = [path for path, file in zip(paths, found, strict=True) if file is None]
    for path in others:
        files[0].remarks.add("is not of LabelMe's form and is left out", str(path))
    return files


def read_file(path: Path) -> AnnotationFile | None:
    """One file; None if it is JSON of another kind."""
    content = read_json(path)
    if not isinstance(content, dict) or "shapes" not in content:
        return None
    image, size = content.get("imagePath"), as_size(content.get("imageHeight"), content.get("imageWidth"))
    name = PurePosixPath(image.replace("\\", "/")) if isinstance(image, str) else PurePosixPath()
    file = AnnotationFile(path, name, size, [], _embedded_suffix(content.get("imageData")), Findings(), Findings())
    if size is None and (content.get("imageHeight") or content.get("imageWidth")):
        file.faults.add("has an imageHeight or imageWidth that is no number of pixels", str(path))
    shapes = content["shapes"]
    if not isinstance(shapes, list):
        file.faults.add("has shapes that are not a list", str(path))
        shapes = []
    for number, entry in enumerate(shapes, start=1):
        place = f"{path}, shape {number}"
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, str) or not label.strip():
            file.faults.add("has no label", place)
            continue
        try:
            shape = _shape_of(entry, f"{place} ({label})", file.remarks)
        except ValueError as error:
            file.faults.add(f"{error}; correct or remove it", f"{place} ({label})")
            continue
        if shape is not None:
            file.shapes.append((label.strip(), shape, number))
    return file


def _shape_of(entry: dict[str, Any], place: str, remarks: Findings) -> Shape | None:
    """What a shape covers; None and a remark where it has no area; `ValueError` where it cannot be understood."""
    kind = entry.get("shape_type") or "polygon"
    if kind in LINES:
        remarks.add("is a line or a point: it has no area and is left out", place)
        return None
    points = as_points(entry.get("points"))
    if kind == "circle":
        if len(points) != 2:
            raise ValueError("is a circle without a centre and a point on its edge")
        (x, y), (dx, dy) = points[0], points[1] - points[0]
        return Circle(float(x), float(y), float(np.hypot(dx, dy)))
    if kind == "mask":
        return _bitmap(entry.get("mask"), points)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    elif kind not in ("polygon", "rectangle", "rotation", "oriented_rectangle"):
        raise ValueError(f"is of the unknown type {str(kind)[:40]!r}")
    if len(points) < 3:
        remarks.add("has fewer than three points, covers nothing and is left out", place)
        return None
    return Polygons([points])


def _bitmap(encoded: object, points: np.ndarray) -> Bitmap:
    """A PNG in base64, and the first and the last of the pixels that it covers."""
    if not isinstance(encoded, str) or len(points) != 2:
        raise ValueError("is a mask without a picture or its two points")
    try:
        png = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("has a mask that is not base64") from None
    (x0, y0), (x1, y1) = points.astype(int).tolist()
    return Bitmap(png, x0, y0, x1 - x0 + 1, y1 - y0 + 1)


# -- pictures --------------------------------------------------------------------------------------


def to_annotations(root: Path, files: Sequence[AnnotationFile], class_list: Path) -> Annotations:
    """All that the files say, with the class numbers of ``class_list`` and the pictures that are there.

    Raises:
        DataError: what is faulty, counted.
    """
    labels, class_names, keys = read_class_list(class_list)
    faults, remarks, pictures = Findings(), Findings(), []
    there, listings = Pictures(root), Listings()
    if alike := _alike(class_names):
        remarks.add("differ in capitals or blanks alone: are they two classes?", f"{class_list}, {' and '.join(alike)}")
    for file in files:
        faults.merge(file.faults)
        remarks.merge(file.remarks)
        items = []
        for label, shape, number in file.shapes:
            known = label if label in labels or label.lower() not in BACKGROUND_NAMES else BACKGROUND
            if known in labels:
                items.append(Item(labels[known], shape, f"shape {number} ({label})"))
            else:
                kind = f"is not in {class_list}: correct the label, or add it there at the end"
                faults.add(kind, f"{file.path}, label {label!r}")
        split = split_of_folders(file.path.relative_to(root).parts[:-1])
        path = _find_picture(root, file, there, listings, faults)
        if path is not None:
            if other := _other_picture(file, path, listings):
                kind = "names another picture in imagePath than its own, which is there, too; correct one of the names"
                faults.add(kind, f"{file.path} ({file.image}, and {other})")
            split = split or split_of_folders(_folders(path, root))
            pictures.append(Picture("", split, path, file.path, file.size, items))
        elif file.embeds:
            path = file.path.with_suffix(file.embeds)
            pictures.append(Picture("", split, path, file.path, file.size, items, partial(read_embedded, file.path)))
    faults.raise_any()
    if any(picture.split == "train" for picture in pictures):
        for picture in pictures:
            picture.split = picture.split or OTHERS
    settle_pictures(pictures, root, faults)
    faults.raise_any()
    _note_unannotated(there, pictures, root, remarks)
    return Annotations(class_names, keys, pictures, smaller_on_top=False, remarks=remarks)


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    """The folders below ``root`` in which ``path`` lies."""
    return path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()


def _find_picture(
    root: Path, file: AnnotationFile, there: Pictures, listings: Listings, faults: Findings
) -> Path | None:
    """The picture of a file: where it says, beside it, or in a folder like the file's (``labels/a``, ``images/a``).

    None where there is none; a fault, too, if the file holds no copy.
    """
    folder, own = file.path.parent, [file.path.stem + suffix for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES))]
    names = [file.image.name, *own] if file.image.name else own
    told = [Path(os.path.normpath(folder / file.image))] if file.image.name else []
    for path in (*told, *(folder / name for name in names)):
        if path.suffix and listings.has(path):
            return path
    folders = _folders(file.path, root)

    def fits(parts: tuple[str, ...]) -> bool:
        splits = {split_of_folders(folders), split_of_folders(parts[:-1])} - {None}
        return telling_folders(parts[:-1]) == telling_folders(folders) and len(splits) <= 1

    for name in names:
        matches = there.find(name, fits)
        if len(matches) > 1:
            shown = ", ".join(str(path) for path in matches[:3])
            faults.add("may be of more than one picture; write the folder into imagePath", f"{file.path} ({shown})")
            return None
        if matches:
            return matches[0]
    if not file.embeds:
        kind = "has no picture, and no copy of it inside; put the picture beside it, or remove the file"
        faults.add(kind, f"{file.path} (imagePath {str(file.image)!r})")
    return None


def _other_picture(file: AnnotationFile, path: Path, listings: Listings) -> Path | None:
    """A picture that has the file's name, beside the file or beside ``path``, which has another one."""
    stem = file.path.stem
    if same_name(path.stem).casefold() == same_name(stem).casefold():
        return None
    suffixes = (*SUFFIXES, *map(str.upper, SUFFIXES))
    places = (
        folder / f"{stem}{suffix}" for folder in dict.fromkeys((file.path.parent, path.parent)) for suffix in suffixes
    )
    return next((place for place in places if listings.has(place)), None)


def _embedded_suffix(data: object) -> str | None:
    """What kind of picture file begins like this in base64."""
    begins = {"/9j/": ".jpg", "iVBORw0KGgo": ".png", "UklGR": ".webp"}
    known = (suffix for begin, suffix in begins.items() if isinstance(data, str) and data.startswith(begin))
    return next(known, None)


def read_embedded(path: Path) -> bytes:
    """The picture file that a LabelMe file holds.

    Raises:
        DataError: it is damaged.
    """
    try:
        return base64.b64decode(read_json(path)["imageData"], validate=True)
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{path}: the imageData is damaged, and the picture is not there") from None


def _note_unannotated(there: Pictures, pictures: Sequence[Picture], root: Path, remarks: Findings) -> None:
    annotated = {picture.path for picture in pictures}
    for found in there.by_name.values():
        for path in (root.joinpath(*parts) for parts in found):
            if path.suffix.lower() in SUFFIXES and path not in annotated:
                remarks.add("has no annotations and is left out", str(path))
