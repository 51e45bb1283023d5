"""Anybody's folder as a data set: where its images, masks, lists and class names are.

    images/ masks/                          and the other usual names, see `datalayouts.folder_names`
    train/images/ train/masks/ val/...      or images/train/ masks/train/, train_images/ train_masks/, train/ train_gt/
    a.jpg a_mask.png ...                    in one folder, or in train/ and val/
    a.jpg b.jpg ...                         pictures alone, for a teacher to speak of
    JPEGImages/ SegmentationClass/ ImageSets/Segmentation/*.txt

Lists are optional; upper and lower case are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from datalayouts.annotations import XML
from datalayouts.folder_names import KINDS, holds_pictures, meaning, plain_name, subfolders
from segdata.class_tables import CLASS_FILES, ClassTable, choose_table, read_class_tables
from segdata.labels import describe_content
from segdata.layouts import Layout
from segdata.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, Listing, other_formats, pair_one_folder
from segdata.reading import DataError
from segdata.split_lists import find_lists

DEPTH = 2  # folders below the data set's own that are looked at
PEEK = 6  # masks that are looked into where nobody says what they hold


class Part(NamedTuple):
    """A folder with images or masks (``kind``; None: not known), of one split or of none."""

    order: int  # among the names for its kind
    path: Path
    split: str | None
    kind: str | None


def find_folder(data_dir: Path) -> Layout:
    """The data set in the folder ``data_dir``, or in the only folder that is in it.

    Raises:
        DataError: naming all that is missing; or no mask belongs to an image.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --data-dir must name the data set")
    return folder_layout("folder", root)


def folder_layout(name: str, root: Path) -> Layout:
    """As `find_folder`, for a data set called ``name``; what it lacks of classes is in `Layout.class_fault`."""
    search = Search(root)
    inner = [path for path in subfolders(root) if path.name != "__MACOSX"]
    if search.missing and len(inner) == 1:  # as archives are unpacked
        below = Search(inner[0])
        # One folder beside pictures is a part of them, unless it has masks of its own.
        search = search if below.missing or (holds_pictures(root) and not below.masks) else below
    if search.missing and not search.take_pictures_below():
        raise DataError(
            f"{root}: no data set yet, for want of {'; of '.join(search.missing)}. Lists (train.txt, val.txt) may be "
            f"there, too; without them a part of the images is kept for val by chance. What lies there: "
            f"{_contents(root)}{_outlines_hint(root)}{'; ' * bool(search.xml)}{search.xml}"
        )
    return search.layout(name)


class Search:
    """What a folder holds of a data set.

    Attributes:
        images, masks: folders by split, with None for every other split.
        lists: by split.
        tables: the class lists.
        class_fault: why those that lie there cannot be read, where all are such.
        missing: what keeps it from being a data set, in words; the class list is among it if it is not alone.
    """

    def __init__(self, root: Path):
        self.root = root
        self.listings: dict[Path, Listing] = {}
        self.remarks: list[str] = []
        self._without_masks: list[Part] = []  # folders of splits
        parts = sorted(self._parts(root, None, None, DEPTH), key=lambda part: part.order)
        self.images = self._choose([part for part in parts if part.kind == "image"])
        self.masks = self._choose([part for part in parts if part.kind == "mask"])
        for part in parts:
            if part.kind is None and part.split not in self.images and (part.split or not self.images):
                self._take_unnamed(part)
        self._guess_other()
        if not self.masks and not self._unknown():
            self._take_images_alone([part for part in parts if part.kind != "mask"])
        self.remarks += [
            f"{part.path} holds images without masks: there is no split {part.split!r} of them"
            for part in self._without_masks
            if part.path not in self.images.values()
        ]
        listings = [self.listing(folder) for folder in self.images.values()]
        self.lists = find_lists(root, [path.name for listing in listings for path in listing.files], self.remarks)
        self.tables = self._read_tables([part.path for part in parts])
        self.missing = self._missing()

    def listing(self, folder: Path) -> Listing:
        if folder not in self.listings:
            self.listings[folder] = Listing(folder)
        return self.listings[folder]

    def _parts(self, folder: Path, split: str | None, kind: str | None, depth: int) -> Iterator[Part]:
        """The folders below ``folder`` that hold pictures and whose names, or those above them, say what they are."""
        inner: list[Part] = []
        for child in subfolders(folder) if depth else ():
            child_split, child_kind = meaning(child.name)
            known = child_split or child_kind
            if known and not (child_split and split) and not (child_kind and kind):
                inner += self._parts(child, child_split or split, child_kind or kind, depth - 1)
        yield from inner
        # What lies deeper is looked at where names do not tell it apart: images/city/*.png.
        flat = inner or folder == self.root
        files = folder.iterdir() if flat else self.listing(folder).files
        if any(path.suffix.lower() in (MASK_SUFFIXES if kind == "mask" else IMAGE_SUFFIXES) for path in files):
            words = [plain_name(part) for part in folder.relative_to(self.root).parts]
            orders = [KINDS.index(word) for word in words if word in KINDS]
            yield Part(min(orders, default=len(KINDS)), folder, split, kind)

    def _choose(self, parts: list[Part]) -> dict[str | None, Path]:
        """The first folder of each split."""
        chosen: dict[str | None, Path] = {}
        for part in parts:
            first = chosen.setdefault(part.split, part.path)
            if first != part.path:
                self.remarks.append(f"{part.path} is not read: {part.kind}s are taken from {first}")
        return chosen

    def _take_unnamed(self, part: Part) -> None:
        """A folder of a split, or the data set's own, with images and perhaps with masks, too."""
        if part.split in self.masks or None in self.masks:
            self.images[part.split] = part.path
        elif pair_one_folder(self.listing(part.path)).masks:
            self.images[part.split] = self.masks[part.split] = part.path
        elif part.split == "test":
            self.images[part.split] = part.path
        elif part.split:
            self._without_masks.append(part)

    def _guess_other(self) -> None:
        """Beside a folder of images or of masks alone, the only other one with pictures must be its counterpart."""
        if bool(self.images) == bool(self.masks) or {*self.images, *self.masks} != {None}:
            return
        kind, there, other = ("image", self.masks, self.images) if self.masks else ("mask", self.images, self.masks)
        suffixes = IMAGE_SUFFIXES if kind == "image" else MASK_SUFFIXES
        folders = [path for path in subfolders(self.root) if path not in there.values()]
        pictures = [path for path in folders if self.listing(path).by_name(suffixes)]
        if len(pictures) == 1:
            other[None] = pictures[0]
            self.remarks.append(f"{pictures[0]} is taken for the folder of {kind}s")

    def _unknown(self) -> list[Path]:
        """Folders with pictures of which nobody says what they are: they may be the masks."""
        return [
            path
            for path in subfolders(self.root)
            if path not in self.images.values()
            and meaning(path.name) == (None, None)
            and self.listing(path).by_name(MASK_SUFFIXES)
        ]

    def _take_images_alone(self, parts: list[Part]) -> None:
        """Pictures without any mask: for a teacher to speak of."""
        for part in parts:
            if part.split not in self.images and (part.split or not self.images):
                self.images[part.split] = part.path

    def take_pictures_below(self) -> bool:
        """Take pictures in folders of any names (``day1/``, ``day2/``) for those of a data set without masks.

        Returns:
            whether there are such, and none of them can be the mask of another.
        """
        files = [path for path in self.listing(self.root).files if path.suffix.lower() in MASK_SUFFIXES]
        above = {part for path in files for part in path.relative_to(self.root).parts[:-1]}
        if self.images or self.masks or not files or _outlines_hint(self.root):
            return False
        if any(meaning(folder)[1] == "mask" for folder in above):
            return False
        try:
            lossy = all(path.suffix.lower() in (".jpg", ".jpeg") for path in files)  # no mask is
            if not lossy and pair_one_folder(Listing(self.root, files)).masks:
                return False
        except DataError:  # it is not clear which would be the masks
            return False
        self.images[None] = self.root
        self.missing = []
        return True

    def _read_tables(self, parts: list[Path]) -> list[ClassTable]:
        """The class lists in the data set's folder and in those of its parts."""
        found = {
            (CLASS_FILES.index(path.name.lower()), path)
            for folder in (self.root, *parts)
            for path in (self.root.iterdir() if folder == self.root else self.listing(folder).files)
            if path.name.lower() in CLASS_FILES and path.is_file()
        }
        tables, faults = read_class_tables([path for _, path in sorted(found)])
        if tables:
            self.remarks += [f"{fault}: not read, the classes are those of {tables[0].path}" for fault in faults]
        self.class_fault = "" if tables else "; ".join(faults)
        return tables

    def _missing(self) -> list[str]:
        missing = []
        if not self.images:
            missing.append(f"a folder of images (images/, JPEGImages/ or train/images/, of {' '.join(IMAGE_SUFFIXES)})")
        if not self.masks and (not self.images or self._unknown()):
            missing.append(
                "a folder of masks (masks/, SegmentationClass/ or train/masks/, with the images' names, or these and "
                "an ending such as _mask)"
            )
        if missing and not self.tables:
            missing.append("classes.txt with the class names, one a line (for colour masks `name r g b`)")
        return missing

    def layout(self, name: str) -> Layout:
        """The data set.

        Raises:
            DataError: no mask belongs to an image.
        """
        layout = Layout(name, self.root, [], [], self.images, self.masks, self.lists, complete=False)
        layout.listings |= self.listings
        layout.remarks += [*self.remarks, *self._doubled(), *not_searched(self), *self._other_formats()]
        try:
            if self.tables:
                layout.take_classes(choose_table(self.tables))
        except DataError as error:
            layout.class_fault = str(error)
        splits: list[str | None] = [*layout.splits()] or [None]
        for split in splits:
            if split not in self.lists:
                self._look_at_pairs(layout, split)
        if all(split in self.lists for split in splits):  # where one is not, all that lies there was looked at
            spare = [set(layout.pairing(split).spare.values()) for split in splits]
            self._remark_spare(layout, set.intersection(*spare))  # another split's masks are not spare
        if not self.tables:
            masks = [path for split in splits for path in layout.pairing(split).masks.values()]
            content = describe_content(masks[:PEEK])
            above = self.root.resolve().parent
            deep = meaning(self.root.resolve().name)[1] == "image" and any(
                (above / name).is_file() for name in CLASS_FILES
            )
            layout.class_fault = self.class_fault or (
                f"{self.root / CLASS_FILES[0]}: no such file; {above} has one: --data-dir {above}"
                if deep
                else f"{self.root / CLASS_FILES[0]}: no such file; write the class names there, one a line"
                f"{content and f' ({content})'}, or name a class list by --classes FILE"
            )
        return layout

    def _doubled(self) -> Iterator[str]:
        """A remark on each folder where files share a name, which one mask or image has but once."""
        images, masks = set(self.images.values()), set(self.masks.values())
        kinds = [(path, "images", IMAGE_SUFFIXES) for path in sorted(images - masks)]  # of both: a.jpg has a.png
        for folder, kind, suffixes in [*kinds, *((path, "masks", MASK_SUFFIXES) for path in sorted(masks - images))]:
            if hidden := self.listing(folder).hidden(suffixes):
                path, other = (each.relative_to(folder).as_posix() for each in hidden[0])
                yield (
                    f"{len(hidden):,} {kind} in {folder} have the name of another and are not read, such as "
                    f"{path} beside {other}: if they are no copies give them names, and masks, of their own"
                )

    @property
    def xml(self) -> str:
        """What to do where annotations lie in the place of masks that nothing here reads."""
        folders = () if self.masks else (self.root, *subfolders(self.root))
        found = any(path.suffix.lower() == ".xml" for folder in folders for path in self.listing(folder).files)
        return f"{self.root}: {XML}" if found else ""

    def _other_formats(self) -> Iterator[str]:
        """What lies there that only predict.py reads, or nothing at all."""
        if self.xml:
            yield self.xml
        for folder in sorted(set(self.images.values()) - set(self.masks.values())):
            if others := other_formats(self.listing(folder).files):
                yield f"{folder}: {others}"

    def _look_at_pairs(self, layout: Layout, split: str | None) -> None:
        """Remark on images without masks and masks without images, where no list says which are meant."""
        pairing = layout.pairing(split)
        images, masks = layout.folders(split)
        if masks is None or (split == "test" and not pairing.masks):
            return
        if not pairing.masks:
            raise DataError(
                f"{masks}: none of its masks has the name of an image: there lie "
                f"{self.listing(masks).describe()}, and in {images} {self.listing(images).describe()}"
            )
        # Of a folder that all splits share, each has but a part.
        own = {folders.get(split) for folders in (self.images, self.masks)}
        alone = [name for name in pairing.images if name not in pairing.masks]
        if alone and images in own:
            layout.remarks.append(
                f"{len(alone):,} of {len(pairing.images):,} images in {images} have no mask and are left out, "
                f"{_some(alone)} (train_kd.py --unlabelled {images} takes them in, for a teacher to speak of)"
            )
        if masks in own:
            self._remark_spare(layout, pairing.spare.values())

    def _remark_spare(self, layout: Layout, masks: Collection[Path]) -> None:
        """Remark on masks without images, such as copies under another name."""
        if masks:
            have, places = "mask" if len(masks) == 1 else "masks", sorted({str(path.parent) for path in masks})
            layout.remarks.append(
                f"{len(masks):,} {have} in {places[0]} without an image, left out, "
                f"{_some(sorted(path.name for path in masks))}"
            )


def not_searched(search: Search) -> Iterator[str]:
    """A remark on each folder with pictures of its own, whose folders, which hold some too, are passed over."""
    used = {*search.images.values(), *search.masks.values()}
    for folder in sorted(used):
        if not holds_pictures(folder):
            continue
        below = [path for path in subfolders(folder) if meaning(path.name) == (None, None) and holds_pictures(path)]
        if below := [path for path in below if not any(other.is_relative_to(path) for other in used)]:
            names = ", ".join(path.name for path in below[:3]) + ", ..." * (len(below) > 3)
            yield (
                f"{folder} holds pictures itself, so that those in its folders ({names}) are not read: bring all of "
                "them into folders, or none"
            )


def _contents(root: Path, most: int = 10) -> str:
    """The folders in ``root`` with what they hold, and its files."""
    shown = []
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            kinds = Counter(file.suffix.lower() or "folders" for file in Listing(path).files)
            counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(3))
            shown.append(f"{path.name}/ ({counts or 'empty'})")
        else:
            shown.append(path.name)
    return ", ".join(shown[:most]) + ", ..." * (len(shown) > most) or "nothing"


def _outlines_hint(root: Path) -> str:
    """What to do where outlines lie in the place of masks."""
    files = [path for folder in (root, *subfolders(root)) for path in Listing(folder).files]
    found = any(path.suffix.lower() == ".json" for path in files)
    return "; outlines in .json files are read with --dataset coco or --dataset labelme" if found else ""


def _some(names: list[str]) -> str:
    return "such as " + ", ".join(names[:3])
