"""Published data sets, found in the folders people really have: PASCAL VOC, ADE20K, Cityscapes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from basics.batch import VOID
from segdata.class_tables import CLASS_FILES, read_class_names, read_class_table
from segdata.labels import IndexLabels, MergedLabels
from segdata.layouts import Layout
from segdata.pairing import Affixes
from segdata.palettes import Color, distinct_palette, voc_palette
from segdata.reading import DataError
from segdata.split_lists import LISTS

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
ADE_CLASSES_FILE = Path(__file__).with_name("ade20k_classes.txt")

# The 19 classes that are scored: name, colour, and the number in *_labelIds.png (cityscapesScripts, helpers/labels.py).
CITYSCAPES: list[tuple[str, Color, int]] = [
    ("road", (128, 64, 128), 7), ("sidewalk", (244, 35, 232), 8), ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12), ("fence", (190, 153, 153), 13), ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19), ("traffic sign", (220, 220, 0), 20), ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22), ("sky", (70, 130, 180), 23), ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25), ("car", (0, 0, 142), 26), ("truck", (0, 0, 70), 27), ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31), ("motorcycle", (0, 0, 230), 32), ("bicycle", (119, 11, 32), 33),
]  # fmt: skip
CITYSCAPES_IDS = 34
CITYSCAPES_ENDINGS = ("_gtFine_labelIds", "_gtFine_labelTrainIds")
CITYSCAPES_FOLDERS = ("cityscapes", "Cityscapes", "CityScapes", "cityscape", ".")


def _bases(data_dir: Path) -> list[Path]:
    """Where to look: the folder named, its `data/`, and beside the default `data/` the current folder."""
    return [data_dir, data_dir / "data", *([Path()] if data_dir == Path("data") else [])]


# -- PASCAL VOC --------------------------------------------------------------------------------------


def looks_like_voc(root: Path) -> bool:
    """Whether ``root`` has the folders of the VOC layout."""
    return (root / "JPEGImages").is_dir() and (root / LISTS).is_dir()


def find_voc(data_dir: Path) -> Layout:
    """PASCAL VOC 2012 in any layout of `VOC_FOLDERS` below ``data_dir``."""
    for base in _bases(Path(data_dir)):
        for folder in VOC_FOLDERS:
            root = base / folder
            if looks_like_voc(root):
                return _voc_layout(root)
    if (Path(data_dir) / "classes.txt").is_file() or (Path(data_dir) / "images").is_dir():
        raise DataError(f"{data_dir}: no VOC 2012, but a folder with images or classes: --dataset folder")
    raise DataError(
        f"no VOC 2012 below {data_dir} (looked for {', '.join(VOC_FOLDERS[:3])} or JPEGImages/ itself); "
        "`python dataset.py` extracts VOCtrainval_11-May-2012.tar from data/, --download fetches it, "
        "--data-dir DIR names another place"
    )


def _voc_layout(root: Path) -> Layout:
    lists = {path.stem: path for path in sorted((root / LISTS).glob("*.txt")) if not path.name.startswith(".")}
    masks: dict[str | None, Path] = {None: root / "SegmentationClass"}
    augmented = root / "SegmentationClassAug"
    if "trainaug" in lists:  # the other spelling in use
        lists.setdefault("train_aug", lists.pop("trainaug"))
    if augmented.is_dir():
        masks["train_aug"] = augmented
    palette = voc_palette(len(VOC_CLASSES))
    layout = Layout("voc", root, list(VOC_CLASSES), palette, {None: root / "JPEGImages"}, masks, lists)
    for path in (root / name for name in CLASS_FILES if (root / name).is_file()):
        with contextlib.suppress(DataError):
            names = read_class_table(path).names
            if set(names) != set(VOC_CLASSES):
                layout.remarks.append(
                    f"{path} names {len(names)} classes ({', '.join(names[:3])}, ...) and is not read: --dataset voc "
                    f"has VOC's {len(VOC_CLASSES)}, and --dataset folder --data-dir {root} those of the file"
                )
    return layout


# -- ADE20K ------------------------------------------------------------------------------------------


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
        labels=IndexLabels(reduce_zero_label=True),
    )


# -- Cityscapes --------------------------------------------------------------------------------------


def find_cityscapes(data_dir: Path) -> Layout:
    """Cityscapes' fine annotations (19 classes, ``leftImg8bit/`` and ``gtFine/``) below ``data_dir``."""
    for base in _bases(Path(data_dir)):
        for folder in CITYSCAPES_FOLDERS:
            root = base / folder
            # Each archive has a folder of its own; some people unpack it into one more.
            images, masks = (
                next((place for place in (root / name, root / f"{name}_trainvaltest" / name) if place.is_dir()), None)
                for name in ("leftImg8bit", "gtFine")
            )
            if images and masks:
                return _cityscapes_layout(root, images, masks)
    raise DataError(
        f"no Cityscapes below {data_dir} (looked for cityscapes/leftImg8bit and cityscapes/gtFine); get "
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from cityscapes-dataset.com, unpack both there, or "
        "name their place with --data-dir"
    )


def _cityscapes_layout(root: Path, images: Path, masks: Path) -> Layout:
    splits = [split for split in ("train", "val", "test") if (images / split).is_dir()]
    if not splits:
        raise DataError(f"{images}: no train/, val/ or test/ there")
    labelled = [split for split in splits if split != "test"]  # its masks are dummies: void everywhere
    by_number = [VOID] * CITYSCAPES_IDS
    for label, (_, _, number) in enumerate(CITYSCAPES):
        by_number[number] = label
    # People who train on it often have made masks of the 19 classes, some keep these alone.
    numbers = any(any((masks / split).glob(f"*/*{CITYSCAPES_ENDINGS[0]}.png")) for split in labelled)
    return Layout(
        "cityscapes",
        root,
        [name for name, _, _ in CITYSCAPES],
        [colour for _, colour, _ in CITYSCAPES],
        image_folders={split: images / split for split in splits},
        mask_folders={split: masks / split for split in labelled},
        labels=MergedLabels(IndexLabels(), tuple(by_number)) if numbers else IndexLabels(),
        naming=(Affixes("", "_leftImg8bit"), Affixes("", CITYSCAPES_ENDINGS[0 if numbers else 1])),
    )
