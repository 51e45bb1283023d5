"""`--dataset coco`: annotations as COCO, Roboflow, CVAT, Label Studio and FiftyOne write them.

Classes are `background` and the categories in the order of their ids. Where objects overlap, smaller ones lie on top,
since the format knows no order. `iscrowd` regions are void.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast

from basics.batch import VOID
from datalayouts.annotations import (
    BACKGROUND,
    BACKGROUND_NAMES,
    IGNORED,
    Annotations,
    Findings,
    Item,
    Picture,
    Pictures,
    as_points,
    as_size,
    check_class_names,
    check_folder,
    read_json,
    settle_pictures,
    split_in,
    split_of_folders,
)
from datalayouts.coco_places import find_files, find_pictures
from datalayouts.polygons import open_layout
from datalayouts.shapes import Polygons, Runs, Shape
from segdata.layouts import Layout
from segdata.reading import DataError

ROOTS = (".", "coco", "coco2017")
CROWD = (
    "is a crowd (iscrowd): its pixels are void; CVAT and Datumaro mark all so that was drawn with a brush: if it is a "
    "single object, set its iscrowd to 0"
)
BARE = "has no annotation: all of it is background; if nobody has annotated it yet, take it out of `images`"


@dataclass
class AnnotationFile:
    """One COCO file.

    Attributes:
        split: that its name or folder speaks of.
        categories, supercategories, images: by their id.
        annotations: entries as they stand there.
    """

    path: Path
    split: str | None
    categories: dict[Any, str]
    supercategories: dict[Any, object]
    images: dict[Any, dict]
    annotations: list[dict]


@dataclass
class _Reading:
    """What is gathered while files are read."""

    root: Path
    faults: Findings = field(default_factory=Findings)
    remarks: Findings = field(default_factory=Findings)
    pictures: list[Picture] = field(default_factory=list)
    listed: dict[Path, Pictures] = field(default_factory=dict)


def find_coco(data_dir: Path) -> Layout:
    """The data set of COCO annotations below ``data_dir``.

    Raises:
        UserError: there is none, or something about it is faulty.
    """
    data_dir = Path(data_dir)
    check_folder(data_dir)
    for root in (data_dir / name for name in ROOTS):
        sources = find_files(root)
        if sources:
            return open_layout("coco", root, sources, partial(read_coco, root, sources))
    raise DataError(
        f"{data_dir}: no COCO annotations there; looked for annotations/*.json, train/_annotations.coco.json and *.json"
    )


def read_coco(root: Path, paths: Sequence[Path]) -> Annotations:
    """All that the files say, compared with the pictures that are there.

    Raises:
        DataError: what is faulty, counted.
    """
    reading = _Reading(root)
    files = list(_read_files(paths, reading))
    if not files:
        hint = "; these are LabelMe's: --dataset labelme" if _is_labelme(paths[0]) else ""
        raise DataError(f"{paths[0]}: no COCO annotations (a JSON object with images and categories){hint}")
    _settle_splits(files)
    categories = _settle_categories(files, reading)
    reading.faults.raise_any()
    labels, class_names, keys = number_classes(categories)
    check_class_names(class_names, paths[0])
    for file in files:
        _gather_pictures(file, labels, reading)
    settle_pictures(reading.pictures, root, reading.faults)
    reading.faults.raise_any()
    return Annotations(class_names, keys, reading.pictures, smaller_on_top=True, remarks=reading.remarks)


# -- files and categories --------------------------------------------------------------------------


def _read_files(paths: Sequence[Path], reading: _Reading) -> Iterator[AnnotationFile]:
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list) or "categories" not in content:
            reading.remarks.add("is not of COCO's form and is left out", str(path))
            continue
        split = split_in(path.stem) or split_of_folders(path.relative_to(reading.root).parts[:-1])
        file = AnnotationFile(path, split, {}, {}, {}, _entries(content, "annotations", path, reading.faults))
        for number, entry in enumerate(_entries(content, "categories", path, reading.faults)):
            name, key = entry.get("name"), _key(entry, number, "category", path, reading.faults)
            if not isinstance(name, str) or not name.strip():
                reading.faults.add("has no name", f"{path}, category {key}")
            elif key in file.categories:
                reading.faults.add("is the id of more than one category", f"{path}, category {key}")
            else:
                file.categories[key] = name.strip()
                file.supercategories[key] = entry.get("supercategory")
        for number, entry in enumerate(_entries(content, "images", path, reading.faults)):
            key = _key(entry, number, "image", path, reading.faults)
            if key in file.images:
                reading.faults.add("is the id of more than one picture", f"{path}, image {key}")
            file.images[key] = entry
        yield file


def _entries(content: dict, name: str, path: Path, faults: Findings) -> list[dict]:
    entries = content.get(name, [])
    if not isinstance(entries, list):
        faults.add("is not a list", f"{path}, {name}")
        return []
    wrong = [number for number, entry in enumerate(entries) if not isinstance(entry, dict)]
    for number in wrong:
        faults.add("is not an object", f"{path}, entry {number} of {name}")
    return [entry for entry in entries if isinstance(entry, dict)] if wrong else entries


def _key(entry: dict, number: int, what: str, path: Path, faults: Findings) -> Any:
    """The id of an entry; one that cannot be an id is a fault."""
    if _is_key(entry.get("id")):
        return entry["id"]
    faults.add("has no id that is a number or a text", f"{path}, {what} number {number}")
    return ("none", number)


def _is_labelme(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and "shapes" in content


def _settle_splits(files: list[AnnotationFile]) -> None:
    """Files of no known split make up the training and validation data by chance, or a split of their own name."""
    if any(file.split == "train" for file in files):
        for file in files:
            file.split = file.split or file.path.stem


def _settle_categories(files: list[AnnotationFile], reading: _Reading) -> dict[Any, str]:
    """The categories of all files, which must not contradict each other."""
    categories: dict[Any, str] = {}
    for file in files:
        for key, name in file.categories.items():
            if categories.setdefault(key, name) != name:
                place = f"{file.path}, category {key} ({name!r}, elsewhere {categories[key]!r})"
                reading.faults.add("is another category in another file; export all splits together", place)
    if _is_project(files, categories):
        remark = "stands above the others and no object uses it: it is no class"
        reading.remarks.add(remark, f"{files[0].path}, category {categories.pop(0)!r}")
    if len({type(key) is str for key in categories}) > 1:
        reading.faults.add("has ids that are numbers and ids that are texts", f"{files[0].path}, categories")
    doubled = sorted({name for name in categories.values() if list(categories.values()).count(name) > 1})
    for name in doubled:
        keys = [str(key) for key, other in categories.items() if other == name]
        reading.faults.add(
            "is the name of more than one category; rename or merge them",
            f"{files[0].path}, {name!r} (ids {', '.join(keys)})",
        )
    if not categories:
        reading.faults.add("has no categories", str(files[0].path))
    return categories


def _is_project(files: list[AnnotationFile], categories: dict[Any, str]) -> bool:
    """Whether category 0 is but the others' supercategory: Roboflow lists the project's name like that."""
    if 0 not in categories:
        return False
    stands_above = any(
        categories[0] == above for file in files for key, above in file.supercategories.items() if key != 0
    )
    return stands_above and not any(entry.get("category_id") == 0 for file in files for entry in file.annotations)


def number_classes(categories: dict[Any, str]) -> tuple[dict[Any, int], list[str], list[str]]:
    """Labels by category id, the class names, and for each class the ids of its categories.

    Class 0 is the background, whether or not it is a category of its own; a category ``__ignore__`` is void.
    """
    labels: dict[Any, int] = {}
    class_names, keys = [BACKGROUND], [""]
    for key in sorted(categories):
        name = categories[key]
        if name == IGNORED:
            labels[key] = VOID
        elif name.lower() in BACKGROUND_NAMES:
            labels[key] = 0
            keys[0] = f"{keys[0]} {key}".strip()
        else:
            labels[key] = len(class_names)
            class_names.append(name)
            keys.append(str(key))
    return labels, class_names, keys


# -- pictures and objects --------------------------------------------------------------------------


def _gather_pictures(file: AnnotationFile, labels: dict[Any, int], reading: _Reading) -> None:
    """Add the pictures of a file that are there, with their objects."""
    if not file.annotations and file.split != "test":
        reading.faults.add("has no annotations at all", str(file.path))
        return
    found = _locate(file, reading)
    items: dict[Any, list[Item]] = {key: [] for key in file.images}
    for number, entry in enumerate(file.annotations):
        name = f"annotation {entry.get('id', f'number {number}')}"
        place = f"{file.path}, {name}"
        image, category = (entry.get(field) for field in ("image_id", "category_id"))
        if not _is_key(image) or image not in items:
            reading.faults.add("is of a picture that the file does not list; correct or remove it",
                               f"{place} (image_id {_short(image)})")  # fmt: skip
        elif not _is_key(category) or category not in labels:
            reading.faults.add("is of a category that the file does not list; correct or remove it",
                               f"{place} (category_id {_short(category)})")  # fmt: skip
        else:
            shape = _shape_of(entry, place, reading)
            if shape is not None and entry.get("iscrowd"):
                reading.remarks.add(CROWD, place)
                items[image].append(Item(VOID, shape, name))
            elif shape is not None:
                items[image].append(Item(labels[category], shape, name))
    for key, path in found.items():
        entry = file.images[key]
        size = as_size(entry.get("height"), entry.get("width"))
        if size is None and (entry.get("height") or entry.get("width")):
            reading.faults.add("has a height or a width that is no number of pixels", f"{file.path}, image {key}")
        labelled = items[key] if file.annotations else None
        if labelled == []:
            reading.remarks.add(BARE, f"{file.path}, picture {entry['file_name']}")
        reading.pictures.append(Picture("", file.split, path, file.path, size, labelled))


def _is_key(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _shape_of(entry: dict, place: str, reading: _Reading) -> Shape | None:
    """What an annotation covers; None, and a finding, where it covers nothing or cannot be understood."""
    outline = entry.get("segmentation")
    try:
        if isinstance(outline, dict):
            return _runs(outline)
        parts = _polygons(outline)
    except ValueError as error:
        reading.faults.add(f"{error}; correct or remove it", place)
        return None
    whole = [part for part in parts if len(part) >= 3]
    if not parts:
        reading.faults.add("has no outline, only a box at most: no mask can be drawn; outline the objects", place)
    elif len(whole) < len(parts):
        reading.remarks.add("has a polygon of fewer than three points, which covers nothing and is left out", place)
    return Polygons(whole) if whole else None


def _polygons(outline: object) -> list[Any]:
    """The polygons of a segmentation, each (n, 2)."""
    if outline is None:
        return []
    if not isinstance(outline, list):
        raise ValueError("has a segmentation that is neither polygons nor run lengths")
    parts = [part for part in outline if part != []]
    flat = parts and not any(isinstance(part, list) for part in parts)  # one polygon without the list around it
    pairs = len(parts) > 2 and all(isinstance(part, list) and len(part) == 2 for part in parts)
    if flat or (pairs and not any(isinstance(value, list) for part in parts for value in part)):
        parts = [parts]
    return [as_points(part) for part in parts]


def _runs(outline: dict) -> Runs:
    counts, size = outline.get("counts"), outline.get("size")
    sides = as_size(*size) if isinstance(size, list) and len(size) == 2 else None
    plain = isinstance(counts, list) and all(isinstance(count, int) for count in counts)
    if sides is None or not (plain or isinstance(counts, str)):
        raise ValueError("has run lengths without counts or a size [height, width]")
    return Runs(cast("str | list[int]", counts), *sides)


def _locate(file: AnnotationFile, reading: _Reading) -> dict[Any, Path]:
    """The picture files of a file's images, by the images' ids; those that are not there are faults."""
    names: dict[Any, tuple[str, ...]] = {}
    for key, entry in file.images.items():
        name = entry.get("file_name")
        if isinstance(name, str) and PurePosixPath(name.replace("\\", "/")).name:
            names[key] = PurePosixPath(name.replace("\\", "/")).parts
        else:
            reading.faults.add("has no file_name", f"{file.path}, image {key}")
    found = find_pictures(names, file.path, file.split, reading.root, reading.listed)
    for key, parts in names.items():
        matches = found[key]
        if len(matches) != 1:
            kind = "is not there; put the picture back or take it out of the file"
            if matches:
                kind = "may be more than one picture; write its folder into file_name"
            reading.faults.add(kind, f"{file.path}, picture {'/'.join(parts)}")
    return {key: matches[0] for key, matches in found.items() if len(matches) == 1}
