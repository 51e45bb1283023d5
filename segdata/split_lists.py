"""Lists of a split's images, as people have them: a name a line, a path, or image and mask side by side.

0001
0001.jpg
train/images/0001.jpg
/JPEGImages/0001.jpg /SegmentationClassAug/0001.png
images/0001.jpg,masks/0001_mask.png
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from basics.files import read_text
from segdata.pairing import same_name

LISTS = "ImageSets/Segmentation"
PLACES = (LISTS, "ImageSets", "splits", "lists", ".")
COLUMNS = (re.compile(r"\s*[,;\t]\s*"), re.compile(r"\s+"))  # names may have spaces where commas part them
LIST_WORDS = re.compile(r"[_-](list|lists|ids|files|images|names|set|split)$", re.IGNORECASE)
WANTED = "wanted is an image's name or path, or those of image and mask"
# What else people call the splits.
SPLIT_NAMES = {
    "training": "train",
    "trn": "train",
    "trainaug": "train_aug",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
USUAL_SPLITS: tuple[str, ...] = ("train", "train_aug", "val", "trainval", "test")


def usual_name(split: str) -> str:
    """What a split is called here: `valid` and `Validation` are `val`."""
    return SPLIT_NAMES.get(split.lower(), split.lower() if split.lower() in USUAL_SPLITS else split)


def find_lists(root: Path, images: Sequence[str], remarks: list[str]) -> dict[str, Path]:
    """The lists of a data set by split: all in ImageSets/Segmentation/, elsewhere those that have a split's name.

    Args:
        images: names of the files that lie there: what is called ``train_more`` must name one of them. A
            ``train_log.txt`` that does not is no list, and goes to ``remarks``.
    """
    found: dict[str, Path] = {}
    for place in PLACES:
        for path in sorted((root / place).glob("*.txt")):
            split = usual_name(path.stem if place == LISTS else LIST_WORDS.sub("", path.stem))
            if path.name.startswith(".") or not (place == LISTS or split.partition("_")[0] in USUAL_SPLITS):
                continue
            if place == LISTS or split in USUAL_SPLITS or _names_one_of(images, path):
                found.setdefault(split, path)
            else:
                remarks.append(f"{path} names no image, and is taken for no list of a split")
    return found


@dataclass(frozen=True)
class Line:
    """A line of a list that is not blank; no way of reading it leaves the data set's folder."""

    number: int
    text: str

    @property
    def bare(self) -> bool:
        """Whether all of it can be a file's name."""
        return "/" not in self.text and "\\" not in self.text

    @property
    def path(self) -> PurePosixPath:
        """All of it as a path."""
        return _relative(self.text)

    @property
    def columns(self) -> tuple[PurePosixPath, PurePosixPath] | None:
        """Image and mask, if it has two columns."""
        for separator in COLUMNS:
            parts = separator.split(self.text)
            if len(parts) == 2 and all(parts):
                return _relative(parts[0]), _relative(parts[1])
        return None


def read_split_list(path: Path, faults: list[str]) -> list[Line]:
    """The lines of a split list; those that cannot be read are added to ``faults``.

    Blank lines, CRLF and a byte order mark are understood.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        faults.append(f"{path}: the list cannot be read: {error}")
        return []
    found = []
    for number, text in enumerate(map(str.strip, lines), start=1):
        if "\0" in text or ".." in re.split(r"[\\/]", text) or text in (".", "/"):
            faults.append(f"{path}, line {number}: {text!r} is not a bare file name; {WANTED}")
        elif text:
            found.append(Line(number, text))
    return found


def _names_one_of(images: Sequence[str], path: Path) -> bool:
    """Whether some line of a split list names one of these files, with its ending or without."""
    places = [place for line in read_split_list(path, []) for place in (line.path, *(line.columns or ()))]
    named = {same_name(form) for place in places for form in (place.name, place.stem)}
    return any(same_name(form) in named for image in images for form in (image, PurePosixPath(image).stem))


def _relative(text: str) -> PurePosixPath:
    return PurePosixPath(text.replace("\\", "/").lstrip("/"))
