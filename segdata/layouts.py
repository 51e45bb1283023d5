"""Where data lie on disk: find a data set in the folders people really have, and list a split's files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from basics.batch import VOID
from segdata.palettes import Color, distinct_palette, voc_palette
from segdata.reading import DataError, check_labels, read_mask

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
VOC_FOLDERS = (
    "VOCdevkit/VOC2012",
    "VOC2012",
    "VOC2012_train_val/VOC2012_train_val",
    "VOCtrainval_11-May-2012/VOCdevkit/VOC2012",
    "VOC2012/VOCdevkit/VOC2012",
    "VOCtrainval_11-May-2012/VOC2012",
    ".",
)
USUAL_SPLITS: tuple[str, ...] = ("train", "train_aug", "val", "trainval", "test")
LISTS = "ImageSets/Segmentation"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in this order where two files share a name
ADE_CLASSES_FILE = Path(__file__).with_name("ade20k_classes.txt")


@dataclass
class SplitFiles:
    """The files of one split, in the order of its list; ``masks`` is None where the split has none."""

    ids: list[str]
    images: list[Path]
    masks: list[Path] | None


@dataclass
class Layout:
    """A data set found on disk.

    Attributes:
        image_folders, mask_folders: by split, with `None` for every other split.
        split_lists: list file by split; a split without one takes all files of its image folder (ADE20K),
            or, for ``train_aug``, all masks of its folder but those of val, which is how that split is defined.
        reduce_zero_label: stored label 0 means void and k means class k - 1 (ADE20K).
    """

    name: str
    root: Path
    class_names: list[str]
    palette: list[Color]
    image_folders: dict[str | None, Path]
    mask_folders: dict[str | None, Path]
    split_lists: dict[str, Path] = field(default_factory=dict)
    reduce_zero_label: bool = False

    def read_labels(self, path: Path) -> np.ndarray:
        """The labels in a mask file, uint8 (H, W): classes 0..C-1 and 255.

        Raises:
            DataError: the file is no mask, or a value in it is neither a class nor void.
        """
        labels = read_mask(path)
        if self.reduce_zero_label:
            labels = labels - np.uint8(1)  # 0 - 1 wraps round to 255 in uint8: void, as a reduced zero label means
        check_labels(labels, len(self.class_names), path)
        return labels

    def splits(self) -> list[str]:
        """The names of the splits that are there, `train` and `val` first."""
        named = (*self.split_lists, *self.image_folders, *self.mask_folders)
        names = {name for name in named if name is not None}
        first = [name for name in USUAL_SPLITS if name in names]
        return first + sorted(names - set(first))

    def scan(self, split: str) -> tuple[SplitFiles, list[str]]:
        """List a split's files and all faults that show without opening an image.

        Returns:
            the pairs that are complete, and one line a fault: unreadable list, malformed or doubled
            entry, missing image or mask, empty split.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.splits():
            known = ", ".join(self.splits()) or "none"
            raise DataError(f"{self.root}: no split {split!r} ({LISTS}/{split}.txt); splits there: {known}")
        image_folder = self.image_folders.get(split) or self.image_folders[None]
        mask_folder = self.mask_folders.get(split) or self.mask_folders[None]
        images, masks = files_by_stem(image_folder, IMAGE_SUFFIXES), files_by_stem(mask_folder, (".png",))
        faults: list[str] = []
        origin = self.split_lists.get(split)
        if origin:
            ids = read_split_list(origin, faults)
        elif split == "train_aug":
            val = self.split_lists.get("val")
            ids = sorted(set(masks) - set(read_split_list(val, []) if val else []))
        else:
            ids = sorted(images)
        # A test split usually has no masks; one that has some is a labelled split like any other.
        labelled = split != "test" or any(name in masks for name in ids)
        listed = f" (listed in {origin})" if origin else ""
        for name in ids:
            if name not in images:
                faults.append(f"{image_folder / name}.jpg: no such image{listed}")
            if labelled and name not in masks:
                faults.append(f"{mask_folder / name}.png: no such mask{listed}")
        if not ids:
            faults.append(f"{origin or image_folder}: the split {split!r} is empty")
        whole = [name for name in ids if name in images and (name in masks or not labelled)]
        return (
            SplitFiles(whole, [images[name] for name in whole], [masks[name] for name in whole] if labelled else None),
            faults,
        )

    def files(self, split: str) -> SplitFiles:
        """As `scan`, but any fault is a `DataError` that names the first and counts the rest."""
        files, faults = self.scan(split)
        if faults:
            more = f"; and {len(faults) - 1} more: `python dataset.py --check` lists them all" * (len(faults) > 1)
            raise DataError(faults[0] + more)
        return files


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Map file stem to path, listing the folder once: ten thousand stats cost seconds on a network disk."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from None
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in suffixes or path.name.startswith("."):
            continue
        other = found.get(path.stem)
        if other is None or suffixes.index(suffix) < suffixes.index(other.suffix.lower()):
            found[path.stem] = path
    return found


def read_split_list(path: Path, faults: list[str]) -> list[str]:
    """The ids of a split list, one a line; malformed and doubled lines are added to ``faults``.

    Blank lines, CRLF, a byte order mark and lines of two paths (``/JPEGImages/ID.jpg /SegmentationClassAug/ID.png``,
    as the common SBD list has them) are understood. An id must be a bare file name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path}: the list cannot be read: {error}")
        return []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = _entry_id(line)
        if not name:
            continue
        if "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
            faults.append(f"{path}, line {number}: {name!r} is not a bare file name")
        elif name in first_line:
            faults.append(f"{path}, line {number}: {name!r} is listed already in line {first_line[name]}")
        else:
            first_line[name] = number
    return list(first_line)


def _entry_id(line: str) -> str:
    parts = line.split()
    if len(parts) == 2 and parts[0].startswith("/JPEGImages/") and parts[1].endswith(".png"):
        name = PurePosixPath(parts[0].removeprefix("/JPEGImages/"))
        return str(name.with_suffix(""))
    return line.strip()


def read_class_names(path: Path) -> list[str]:
    """The class names of a ``classes.txt``, one a line; blank lines are skipped.

    Raises:
        DataError: missing, unreadable, empty, a name twice, or more than 255 classes.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; write the class names there, one a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not 1 <= len(names) <= VOID:
        raise DataError(f"{path}: {len(names)} class names; between 1 and {VOID} are possible")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"{path}: class name {doubled[0]!r} stands there more than once")
    return names


def _voc_like(name: str, root: Path, class_names: list[str], palette: list[Color]) -> Layout:
    lists = {path.stem: path for path in sorted((root / LISTS).glob("*.txt")) if not path.name.startswith(".")}
    masks: dict[str | None, Path] = {None: root / "SegmentationClass"}
    augmented = root / "SegmentationClassAug"
    if "trainaug" in lists:  # the other spelling in use
        lists.setdefault("train_aug", lists.pop("trainaug"))
    if augmented.is_dir():
        masks["train_aug"] = augmented
    return Layout(name, root, class_names, palette, {None: root / "JPEGImages"}, masks, lists)


def looks_like_voc(root: Path) -> bool:
    """Whether ``root`` has the folders of the VOC layout."""
    return (root / "JPEGImages").is_dir() and (root / LISTS).is_dir()


def _bases(data_dir: Path) -> list[Path]:
    """Where to look: the folder named, its `data/`, and beside the default `data/` the current folder."""
    return [data_dir, data_dir / "data", *([Path()] if data_dir == Path("data") else [])]


def find_voc(data_dir: Path) -> Layout:
    """PASCAL VOC 2012 in any layout of `VOC_FOLDERS` below ``data_dir``."""
    for base in _bases(Path(data_dir)):
        for folder in VOC_FOLDERS:
            root = base / folder
            if looks_like_voc(root):
                return _voc_like("voc", root, list(VOC_CLASSES), voc_palette(len(VOC_CLASSES)))
    raise DataError(
        f"no VOC 2012 below {data_dir} (looked for {', '.join(VOC_FOLDERS[:3])} or JPEGImages/ itself); "
        "`python dataset.py` extracts VOCtrainval_11-May-2012.tar from data/, --download fetches it, "
        "--data-dir DIR names another place"
    )


def find_folder(data_dir: Path) -> Layout:
    """Any folder in VOC layout with its own ``classes.txt``."""
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --data-dir must name the data set")
    for wanted in ("JPEGImages", LISTS):
        if not (root / wanted).is_dir():
            raise DataError(
                f"{root}: no {wanted}/ there; a `folder` data set has JPEGImages/, SegmentationClass/, "
                f"{LISTS}/ and classes.txt"
            )
    return folder_layout("folder", root)


def folder_layout(name: str, root: Path) -> Layout:
    """The layout of a folder known to look like VOC, with the classes of its ``classes.txt``."""
    names = read_class_names(root / "classes.txt")
    return _voc_like(name, root, names, distinct_palette(names))


def find_ade20k(data_dir: Path) -> Layout:
    """The ADE20K scene parsing benchmark (150 classes, ``ADEChallengeData2016/``) below ``data_dir``."""
    for base in _bases(Path(data_dir)):
        for root in (base / "ADEChallengeData2016", base):
            if (root / "images" / "training").is_dir() or (root / "images" / "validation").is_dir():
                return _ade20k_layout(root)
    raise DataError(
        f"no ADE20K below {data_dir} (looked for ADEChallengeData2016/images/training); get ADEChallengeData2016.zip "
        "from the benchmark's site (sceneparsing.csail.mit.edu), unpack it there, or name its place with --data-dir"
    )


def _ade20k_layout(root: Path) -> Layout:
    names = read_class_names(ADE_CLASSES_FILE)
    folders = {"train": "training", "val": "validation", "test": "testing"}
    present = {split: folder for split, folder in folders.items() if (root / "images" / folder).is_dir()}
    return Layout(
        "ade20k",
        root,
        names,
        distinct_palette(names),
        image_folders={split: root / "images" / folder for split, folder in present.items()},
        mask_folders={split: root / "annotations" / folder for split, folder in present.items()},
        reduce_zero_label=True,
    )
