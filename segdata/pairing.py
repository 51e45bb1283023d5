"""Which mask belongs to which image: files of two folders, or of one, brought together by their names.

A pair has the same name (`a.jpg`, `a.png`), or the same but for what all images or all masks have before or behind it
(`a.jpg`, `a_mask.png`; `a_sat.jpg`, `a_label.png`; `image_7.png`, `mask_7.png`). Such a beginning or ending is found
by looking, not by a list: it is what makes the most names meet.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segdata.reading import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # in this order where two share a name
# A JPEG is no mask, and is listed so that it can be refused for what it is.
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jpg", ".jpeg")
OTHER_PICTURES = (".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".tga", ".psd", ".dng")  # of predict.py, perhaps
DEPTH = 4  # folders below an image folder that are looked into

# What endings say: where several would do, these decide.
MASK_WORDS = {
    "mask", "masks", "label", "labels", "lbl", "gt", "truth", "groundtruth", "seg", "segm", "segmentation", "semantic",
    "annotation", "annotations", "annot", "anno", "ann", "target", "targets", "class", "classes", "matte",
}  # fmt: skip
IMAGE_WORDS = {"image", "images", "img", "imgs", "rgb", "sat", "photo", "picture", "input", "original", "orig", "raw"}
OTHER_WORDS = {
    "instance", "instances", "object", "color", "colour", "depth", "edge", "edges", "overlay", "vis", "viz", "prob",
    "ir", "nir",
}  # fmt: skip

LETTER = re.compile(r"[^\W\d_]")
SAMPLE = 400  # names that beginnings and endings are looked for in
OFTEN = 0.2  # the share of them that must have one
MOST = 0.5  # the share of images or masks that must meet for it to count


def same_name(name: str) -> str:
    """A name to compare by: one form for letters that Unicode writes in two ways (macOS takes the other one)."""
    return unicodedata.normalize("NFC", name)


def other_formats(files: Iterable[Path]) -> str:
    """How many pictures there are of formats that predict.py may read, and a training does not; empty: none."""
    kinds = Counter(path.suffix.lower() for path in files if path.suffix.lower() in OTHER_PICTURES)
    found = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return f"{found} are not read in training: convert them to .jpg or .png" if found else ""


# -- files in a folder -------------------------------------------------------------------------------


@dataclass
class Listing:
    """The files of a folder, listed once: ten thousand stats cost seconds on a network disk.

    Folders in it are looked into where it holds no pictures itself.

    Attributes:
        files: all but hidden ones, sorted.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    _by_file_name: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.files and self.folder.is_dir():
            self.files = _walk(self.folder, DEPTH)

    def by_name(self, suffixes: Sequence[str]) -> dict[str, Path]:
        """The files with one of these suffixes; where two share a name, the suffix that stands first.

        A name is the file's stem, as `same_name` spells it; with its folders, joined by `_`, where several folders have
        the same.
        """
        found: dict[str, Path] = {}
        for name, path in self._named(suffixes):
            rank = suffixes.index(path.suffix.lower())
            if name not in found or rank < suffixes.index(found[name].suffix.lower()):
                found[name] = path
        return found

    def hidden(self, suffixes: Sequence[str]) -> list[tuple[Path, Path]]:
        """Files that `by_name` leaves out, each with the one of its name that is taken."""
        taken = self.by_name(suffixes)
        return [(path, taken[name]) for name, path in self._named(suffixes) if taken[name] != path]

    def _named(self, suffixes: Sequence[str]) -> list[tuple[str, Path]]:
        """The files with one of these suffixes, each with its name."""
        fitting = [(path, same_name(path.stem)) for path in self.files if path.suffix.lower() in suffixes]
        places = {(path.parent, stem) for path, stem in fitting}
        if len({stem for _, stem in places}) == len(places):
            return [(stem, path) for path, stem in fitting]
        return [
            (same_name("_".join([*path.parent.relative_to(self.folder).parts, stem])), path) for path, stem in fitting
        ]

    def file(self, name: str, suffixes: Sequence[str]) -> Path | None:
        """The file of that name, with its suffix or without."""
        if not self._by_file_name:
            self._by_file_name.update((same_name(path.name), path) for path in self.files)
        found = (self._by_file_name.get(same_name(name) + suffix) for suffix in ("", *suffixes))
        return next((path for path in found if path and path.suffix.lower() in suffixes), None)

    def similar(self, name: str) -> str | None:
        """A file whose name is that but for its suffix and capitals, or at least begins with it."""
        wanted, names = name.casefold(), [path.name for path in self.files]
        same = [other for other in names if other.casefold().startswith(f"{wanted}.")]
        return next(iter(same or (other for other in names if other.casefold().startswith(wanted))), None)

    def describe(self, count: int = 3) -> str:
        """A few names, and how many files of which suffix there are."""
        if not self.files:
            return "no files"
        kinds = Counter(path.suffix.lower() or "no suffix" for path in self.files)
        names = ", ".join(path.name for path in self.files[:count]) + ", ..." * (len(self.files) > count)
        return f"{names} ({', '.join(f'{number:,} {kind}' for kind, number in kinds.most_common(3))})"


def _walk(folder: Path, depth: int) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            entries = sorted((each for each in found if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from None
    files = [folder / each.name for each in entries]
    if any(path.suffix.lower() in MASK_SUFFIXES for path in files) or not depth:
        return files
    below = [_walk(folder / each.name, depth - 1) for each in entries if each.is_dir()]
    return [path for path, each in zip(files, entries, strict=True) if not each.is_dir()] + list(
        itertools.chain(*below)
    )


# -- beginnings and endings --------------------------------------------------------------------------


@dataclass(frozen=True)
class Affixes:
    """What all names of a kind have before and behind what tells them apart."""

    before: str = ""
    after: str = ""

    def core(self, name: str) -> str | None:
        """The name without them; None if it has them not."""
        if name.startswith(self.before) and name.endswith(self.after):
            return name[len(self.before) : len(name) - len(self.after)] or None
        return None

    def cores(self, names: Iterable[str]) -> dict[str, str]:
        """Core -> name; empty if two names have the same core."""
        found: dict[str, str] = {}
        for name in names:
            core = self.core(name)
            if core is not None and found.setdefault(core, name) != name:
                return {}
        return found

    @property
    def words(self) -> set[str]:
        """In lower case: `_gtFine_labelIds` has gt, fine, label and ids."""
        return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", f"{self.before} {self.after}")}

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def __str__(self) -> str:
        return " ... ".join(part for part in (self.before, self.after) if part) or "nothing"


PLAIN = Affixes()


@dataclass
class Pairing:
    """Images and masks that belong together.

    Attributes:
        images: by name.
        masks: by the name of their image.
        spare: masks that have no image, by the name that their image would have but for what all images have.
        named: other names that an image may be called by, in lists: what is common to it and its mask, and the mask's.
    """

    images: dict[str, Path]
    masks: dict[str, Path]
    spare: dict[str, Path]
    named: dict[str, str]

    @functools.cached_property
    def name_of(self) -> dict[Path, str]:
        """Image file -> its name."""
        return {path: name for name, path in self.images.items()}

    @functools.cached_property
    def mask_files(self) -> frozenset[Path]:
        return frozenset(self.masks.values())


def pair_folders(
    images: dict[str, Path], masks: dict[str, Path], naming: tuple[Affixes, Affixes] | None = None
) -> Pairing:
    """Bring the files of an image folder and a mask folder together, both by name.

    Args:
        naming: what is known of the names of images and masks; otherwise it is looked for.

    Raises:
        DataError: two endings would do as well as each other, and mean other files.
    """
    if naming is None:
        naming = _find_naming(images, masks)
    of_images, of_masks = naming
    image_of = of_images.cores(images)
    found: dict[str, str] = {}  # image -> mask
    for core, mask in of_masks.cores(masks).items():
        if core in image_of:
            found[image_of[core]] = mask
    for name in images.keys() & masks.keys():  # a few may have no ending
        found.setdefault(name, name)
    named = {core: name for core, name in image_of.items()} | {mask: name for name, mask in found.items()}
    used = set(found.values())
    spare = {of_masks.core(name) or name: path for name, path in masks.items() if name not in used}
    return Pairing(images, {name: masks[mask] for name, mask in found.items()}, spare, named)


def pair_one_folder(files: Listing) -> Pairing:
    """Tell images from masks in a folder that holds both, and bring them together.

    Raises:
        DataError: as `pair_folders`.
    """
    images, masks = files.by_name(IMAGE_SUFFIXES), files.by_name(MASK_SUFFIXES)
    if not images:
        return Pairing({}, {}, {}, {})
    both = [name for name, path in images.items() if masks.get(name, path) != path]
    if 2 * len(both) >= len(images):  # a.jpg and a.png
        return Pairing(images, {name: masks[name] for name in both}, {}, {})
    naming = _best_naming(images, masks, one_folder=True)
    if naming is None:
        return Pairing(images, {}, {}, {})
    of_images, of_masks = naming
    is_mask = {name for name in masks if of_masks.core(name) and (of_images == PLAIN or of_images.core(name) is None)}
    only_images = {name: path for name, path in images.items() if name not in is_mask and of_images.core(name)}
    return pair_folders(only_images, {name: masks[name] for name in masks if name in is_mask}, naming)


def _find_naming(images: dict[str, Path], masks: dict[str, Path]) -> tuple[Affixes, Affixes]:
    same = len(images.keys() & masks.keys())
    if same >= MOST * min(len(images), len(masks)):
        return PLAIN, PLAIN
    return _best_naming(images, masks, one_folder=False) or (PLAIN, PLAIN)


def _best_naming(
    images: dict[str, Path], masks: dict[str, Path], *, one_folder: bool
) -> tuple[Affixes, Affixes] | None:
    """The beginnings and endings that make the most names meet; None where too few do."""
    sample_of_images, sample_of_masks = _sample(images), _sample(masks)
    choices = dict.fromkeys(_candidates(sample_of_masks) + _remainders(sample_of_masks, images))
    mask_cores = {affixes: affixes.cores(sample_of_masks) for affixes in choices}
    scored = []
    for of_images in _candidates(sample_of_images):
        cores = of_images.cores(images)
        for of_masks, names in mask_cores.items():
            if one_folder and of_images == of_masks:
                continue
            met = {name: cores[core] for core, name in names.items() if core in cores}
            if one_folder:  # no file is the mask of itself
                met = {name: image for name, image in met.items() if name != image}
            rank = _rank(of_images, of_masks, [masks[name] for name in met])
            scored.append(((len(met), rank, -len(of_images) - len(of_masks)), met, (of_images, of_masks)))
    if not scored:
        return None
    scored.sort(key=lambda each: each[0], reverse=True)
    (count, rank, _), met, naming = scored[0]
    if one_folder and count < 2 and rank < 2:
        return None  # two files that have something in common
    if (1 + one_folder) * count < MOST * min(len(sample_of_masks), len(images)):
        return None
    for (other_count, other_rank, _), other_met, other in scored[1:]:
        swapped = one_folder and not met.keys().isdisjoint(other_met.values())
        if (other_count, other_rank) == (count, rank) and (swapped or _contradict(met, other_met)):
            raise DataError(
                f"{next(iter(masks.values())).parent}: it is not clear which files are the masks of which images: "
                f"those with {naming[1]} of images with {naming[0]}, or those with {other[1]} of images with "
                f"{other[0]}; leave one kind in the folder"
            )
    return naming


def _contradict(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether two ways give an image two masks, or a mask two images."""
    mask_of = {image: mask for mask, image in second.items()}
    return any(second.get(mask, image) != image or mask_of.get(image, mask) != mask for mask, image in first.items())


def _rank(of_images: Affixes, of_masks: Affixes, masks: list[Path]) -> int:
    """How much the beginnings and endings look like those of images and masks."""
    rank = 2 * bool(of_masks.words & MASK_WORDS) - 2 * bool(of_masks.words & IMAGE_WORDS)
    rank += bool(of_images.words & IMAGE_WORDS) - 2 * bool(of_images.words & MASK_WORDS) + (of_images == PLAIN)
    rank -= bool(of_masks.words & OTHER_WORDS) + bool(of_images.words & OTHER_WORDS)
    lossy = sum(path.suffix.lower() in (".jpg", ".jpeg") for path in masks)
    return rank - 3 * (2 * lossy > len(masks))


def _sample(names: Iterable[str]) -> list[str]:
    listed = sorted(names)
    return random.Random(0).sample(listed, min(len(listed), SAMPLE))


def _candidates(sample: list[str]) -> list[Affixes]:
    """All that many of the names begin or end with, and nothing."""
    heads = _frequent(sample, _heads, 3)
    tails = _frequent(sample, _tails, 8)
    return [Affixes(head, tail) for head in ("", *heads) for tail in ("", *tails)]


def _frequent(sample: list[str], parts: Callable[[str], list[str]], most: int) -> list[str]:
    counts = Counter(part for name in sample for part in parts(name))
    # A number that occurs once is what tells that file apart.
    return [
        part
        for part, count in counts.most_common(most)
        if count >= OFTEN * len(sample) and (count > 1 or not re.search(r"\d", part))
    ]


def _boundaries(name: str) -> list[int]:
    """Where words begin or end: at separators, between letters and digits, before a capital."""
    return [
        match.start()
        for match in re.finditer(r"(?<!^)(?=[_\-. ]|(?<=\d)[^\W\d]|(?<=[^\W\d_])\d|(?<=[a-z])[A-Z])", name)
    ]


def _tails(name: str) -> list[str]:
    return [name[at:] for at in _boundaries(name)[-6:] if LETTER.search(name[at:])]


def _heads(name: str) -> list[str]:
    cuts = [at + (name[at] in "_-. ") for at in _boundaries(name)[:4]]
    return [name[:at] for at in cuts if LETTER.search(name[:at])]


def _remainders(sample: list[str], images: Container[str]) -> list[Affixes]:
    """What many masks have behind the longest image name that they begin with."""
    counts: Counter[str] = Counter()
    for name in sample:
        at = next((at for at in range(len(name) - 1, 0, -1) if name[:at] in images), None)
        if at is not None and LETTER.search(name[at:]):
            counts[name[at:]] += 1
    return [Affixes("", ending) for ending, count in counts.most_common(3) if count >= OFTEN * len(sample)]
