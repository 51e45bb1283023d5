"""A data set on disk: which files belong to a split, and how its masks are read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segdata.class_tables import ClassTable
from segdata.labels import IndexLabels, Labels
from segdata.listed import Files, ListReader
from segdata.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, Affixes, Listing, Pairing, pair_folders, pair_one_folder
from segdata.palettes import Color
from segdata.reading import DataError, check_labels
from segdata.split_lists import LISTS, USUAL_SPLITS, usual_name

SHOWN = 20  # faults that get a hint: each takes a look at all names
CHECK_LISTS_ALL = "`python dataset.py --check`, with the same --dataset and --data-dir, lists all"


@dataclass
class SplitFiles:
    """The files of one split, in the order of its list.

    Attributes:
        masks: of the first images; those after them have none. None: no image has.
    """

    ids: list[str]
    images: list[Path]
    masks: list[Path] | None

    @property
    def labelled(self) -> SplitFiles:
        """The images that have masks; all, without one, where none has."""
        count = len(self.masks) if self.masks is not None else len(self.ids)
        return SplitFiles(self.ids[:count], self.images[:count], self.masks)

    def part(self, indices: Sequence[int]) -> SplitFiles:
        """These of the images, in this order; all of them with masks, or none."""
        masks = None if self.masks is None else [self.masks[index] for index in indices]
        return SplitFiles([self.ids[index] for index in indices], [self.images[index] for index in indices], masks)


@dataclass
class Layout:
    """A data set found on disk.

    Attributes:
        image_folders, mask_folders: by split, with `None` for every other split; images and masks may share one.
        split_lists: list file by split; a split without one takes all files of its image folder (ADE20K),
            or, for ``train_aug``, all masks of its folder but those of val, which is how that split is defined.
        split_ids: the same as names of images, where a list could not be written.
        labels: how masks are written.
        naming: what the names of images and of masks have in common; None: to be looked for.
        complete: every image must have a mask. Otherwise those without are left out where no list names them.
        class_fault: why they give no classes; ``class_names`` is empty then.
        remarks: what a person should know of how the data were understood, one line each.
    """

    name: str
    root: Path
    class_names: list[str]
    palette: list[Color]
    image_folders: dict[str | None, Path]
    mask_folders: dict[str | None, Path]
    split_lists: dict[str, Path] = field(default_factory=dict)
    split_ids: dict[str, list[str]] = field(default_factory=dict)
    labels: Labels = field(default_factory=IndexLabels)
    naming: tuple[Affixes, Affixes] | None = None
    complete: bool = True
    class_fault: str = ""
    remarks: list[str] = field(default_factory=list)
    # Kept, because folders are listed once.
    listings: dict[Path, Listing] = field(default_factory=dict, repr=False, compare=False)
    pairings: dict[tuple[Path, Path | None], Pairing] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be listed again: a loader process needs none of it."""
        return self.__dict__ | {"listings": {}, "pairings": {}}

    def take_classes(self, table: ClassTable) -> None:
        """Take classes and the way masks are written from a class list."""
        self.class_names, self.palette, self.labels = table.names, table.palette, table.labels
        self.class_fault = ""
        if table.void_names:
            self.remarks.append(f"{table.path}: {', '.join(table.void_names)}: void, and no class")
        if table.comments:
            self.remarks.append(f"{table.path}: {table.comments[0]!r} is a comment, and no class")

    def read_labels(self, path: Path) -> np.ndarray:
        """The labels in a mask file, uint8 (H, W): classes 0..C-1 and 255.

        Raises:
            DataError: the file is no mask, or a value in it is neither a class nor void.
        """
        labels = self.labels.read(path)
        check_labels(labels, len(self.class_names), path)
        return labels

    def splits(self) -> list[str]:
        """The names of the splits that are there, `train` and `val` first."""
        named = (*self.split_lists, *self.split_ids, *self.image_folders, *self.mask_folders)
        names = {name for name in named if name is not None}
        first = [name for name in USUAL_SPLITS if name in names]
        return first + sorted(names - set(first))

    def listing(self, folder: Path) -> Listing:
        """The files of a folder, which is listed once."""
        if folder not in self.listings:
            self.listings[folder] = Listing(folder)
        return self.listings[folder]

    def folders(self, split: str | None) -> tuple[Path, Path | None]:
        """Where the images and the masks of a split lie; a split without masks has no folder of them."""
        images, masks = self.image_folders, self.mask_folders
        own = split if split in images else None if None in images else self._folder_of_list(split or "train")
        return images[own], masks.get(split) or masks.get(None) or masks.get(own)

    def _folder_of_list(self, split: str) -> str:
        """The split in whose folder a list's images are looked for first, where the list's own name has no folder.

        Folders may number their pictures alike: val.txt beside train/ and test/ means those of train/.
        """
        named = [name for name in self.image_folders if name]
        alike = [name for name in named if split.startswith(name)]  # train_hard.txt
        return next(iter([*alike, *(name for name in USUAL_SPLITS if name in named), *named]))

    def pairing(self, split: str | None) -> Pairing:
        """The images and masks in the folders of a split, whether they are listed or not.

        Raises:
            DataError: a folder cannot be read, or it is not clear which masks belong to which images.
        """
        image_folder, mask_folder = self.folders(split)
        key = image_folder, mask_folder
        if key not in self.pairings:
            images = self.listing(image_folder)
            if mask_folder == image_folder:
                self.pairings[key] = pair_one_folder(images)
            else:
                masks = self.listing(mask_folder).by_name(MASK_SUFFIXES) if mask_folder else {}
                self.pairings[key] = pair_folders(images.by_name(IMAGE_SUFFIXES), masks, self.naming)
        return self.pairings[key]

    def scan(self, split: str) -> tuple[SplitFiles, list[str]]:
        """List a split's files and all faults that show without opening an image.

        Returns:
            the pairs that are complete, and one line a fault: unreadable list, malformed or doubled
            entry, missing image or mask, empty split.

        Raises:
            DataError: there is no such split, or its folders cannot be understood.
        """
        split = self._known_split(split)
        faults: list[str] = []
        files = self._files(split, faults)
        # A test split usually has no masks, nor has one without a folder for them; one that has some is a labelled
        # split like any other.
        labelled = self.folders(split)[1] is not None and split != "test"
        labelled = labelled or any(mask is not None for _, mask in files.values())
        faults += self._missing(split, files, labelled)
        whole = {name: each for name, each in files.items() if each[0] and (each[1] or not labelled)}
        images = [image for image, _ in whole.values() if image]
        masks = [mask for _, mask in whole.values() if mask]
        return SplitFiles(list(whole), images, masks if labelled else None), faults

    def files(self, split: str) -> SplitFiles:
        """As `scan`, but any fault is a `DataError` that names the first and counts the rest."""
        files, faults = self.scan(split)
        if faults:
            more = f"; and {len(faults) - 1} more: {CHECK_LISTS_ALL}" * (len(faults) > 1)
            raise DataError(faults[0] + more)
        return files

    def why_no_splits(self) -> str:
        """In a line, where there is none at all."""
        if self.complete:
            return f"{self.root}: no splits; {LISTS}/ has no lists"
        count = len(self.pairing(None).images)
        return f"{self.root}: no splits: of {count} images none can be kept for val; two are the fewest"

    def _known_split(self, split: str) -> str:
        splits = self.splits()
        if split not in splits and usual_name(split) in splits:
            return usual_name(split)
        if split not in splits:
            if not splits:
                raise DataError(self.why_no_splits())
            hint = ""
            if usual_name(split) == "val" and "train" in splits:
                hint = ": name one of them with --val-split, or keep a fifth of train for val with --val-share 0.2"
            if usual_name(split) == "train" and list(splits) == ["val"] and not self.complete:
                hint = f": {self.split_lists.get('val', 'val')} names all pictures, and none is left to train on"
            raise DataError(
                f"{self.root}: no split {split!r} (a list {split}.txt); splits there: {', '.join(splits)}{hint}"
            )
        return split

    def _files(self, split: str, faults: list[str]) -> dict[str, Files]:
        """Image and mask of each name in the split, None for what is missing."""
        pairing = self.pairing(split)
        if split in self.split_lists:
            others = (self.pairing(other) for other in (None, *self.splits()))
            reader = ListReader(self.root, itertools.chain([pairing], others), self.listing)
            return reader.read(self.split_lists[split], faults)
        if split in self.split_ids:
            names = self.split_ids[split]
        elif split == "train_aug":
            val = set(self._files("val", [])) if "val" in self.split_lists else set()
            names = sorted(set(pairing.masks) - val)
        else:
            names = sorted(pairing.images)
            if not self.complete and pairing.masks:
                names = [name for name in names if name in pairing.masks]
        return {name: (pairing.images.get(name), pairing.masks.get(name)) for name in names}

    def _missing(self, split: str, files: dict[str, Files], labelled: bool) -> list[str]:
        """A line for each image and mask that is not there; one for all of them if none is."""
        image_folder, mask_folder = self.folders(split)
        origin = self.split_lists.get(split)
        listed = f" (listed in {origin})" if origin else ""
        if not files:
            return [f"{origin or image_folder}: the split {split!r} is empty"]
        kinds: list[tuple[str, Path, str, Sequence[str], list[str]]] = [
            ("image", image_folder, "jpg", IMAGE_SUFFIXES, [name for name in files if not files[name][0]])
        ]
        if labelled:
            without = [name for name in files if not files[name][1]]
            kinds.append(("mask", mask_folder or self.root, "png", MASK_SUFFIXES, without))
        faults = []
        for kind, folder, suffix, suffixes, missing in kinds:
            there = self.listing(folder)
            read = f"read are {', '.join(suffixes)}"
            if len(missing) == len(files) > 1:
                some = ", ".join(missing[:3])
                faults.append(
                    f"{folder}: no {kind} for any of {len(files):,} names such as {some}{listed}; there lie "
                    f"{there.describe()}, and {read}"
                )
                break
            for name in missing:
                similar = there.similar(name) if len(faults) < SHOWN else None
                hint = f"; {similar} lies there, and {read}" if similar else ""
                if similar and not similar.startswith(name) and Path(similar).suffix.lower() in suffixes:
                    hint = f"; {similar} lies there: write its name as it is, capitals too"
                faults.append(f"{folder / name}.{suffix}: no such {kind}{listed}{hint}")
        return faults
