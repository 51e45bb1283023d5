"""From the lines of a split's list to the files that they name."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from segdata.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, Listing, Pairing, same_name
from segdata.split_lists import WANTED, Line, read_split_list

Files = tuple["Path | None", "Path | None"]  # image and mask


class ListReader:
    """Finds the files of lists in a data set.

    Args:
        root: where the data set lies; paths in a list may be given below it, or below a folder it once lay in.
        pairings: the images and masks that are there, those of the split's own folders first.
        listing: the files of a folder.
    """

    def __init__(self, root: Path, pairings: Iterable[Pairing], listing: Callable[[Path], Listing]):
        self.root, self.listing = root, listing
        self.seen: list[Pairing] = []
        self.unseen = iter(pairings)  # as few as need be
        self.folders: dict[PurePosixPath, Path | None] = {}

    @property
    def pairings(self) -> Iterator[Pairing]:
        yield from self.seen
        for pairing in self.unseen:
            self.seen.append(pairing)
            yield pairing

    def read(self, path: Path, faults: list[str]) -> dict[str, Files]:
        """Image and mask of each line by the image's name; None where there is none.

        Lines that name a path and not a file are added to ``faults``, and names that are listed twice.
        """
        found: dict[str, Files] = {}
        first: dict[str, int] = {}
        for line in read_split_list(path, faults):
            where = f"{path}, line {line.number}"
            entry = self._entry(line, where, faults)
            if entry is None:
                continue
            name, files = entry
            if name in first:
                faults.append(f"{where}: {name!r} is listed already in line {first[name]}")
            else:
                first[name], found[name] = line.number, files
        return found

    def _entry(self, line: Line, where: str, faults: list[str]) -> tuple[str, Files] | None:
        if line.bare and (found := self._known(line.text)):
            return found
        if line.columns:
            image, mask = self._image(line.columns[0]), self._mask(line.columns[1])
            if image and mask:
                return image[0], (image[1][0], mask)
            if image or mask:
                kind, wrong = ("mask", line.columns[1]) if image else ("image", line.columns[0])
                faults.append(f"{where}: {line.text!r}: there is no {kind} {str(wrong)!r}; {WANTED}")
                return None
        alone = self._image(line.path)
        if alone:
            return alone
        if line.text.startswith("#"):  # a remark
            return None
        if line.bare and not line.columns:
            return line.text, (None, next((p.spare[line.text] for p in self.pairings if line.text in p.spare), None))
        faults.append(
            f"{where}: {line.text!r} is not a bare file name, and no such image lies in {self.root}; {WANTED}"
        )
        return None

    def _known(self, text: str) -> tuple[str, Files] | None:
        """The image that a bare name means, with its suffix or without, or by the name of its mask."""
        text = same_name(text)
        path = PurePosixPath(text)
        names = [text, path.stem] if path.suffix.lower() in (*IMAGE_SUFFIXES, *MASK_SUFFIXES) else [text]
        for pairing in self.pairings:
            for name in [*names, *(pairing.named.get(name, "") for name in names)]:
                if name in pairing.images:
                    return name, (pairing.images[name], pairing.masks.get(name))
        return None

    def _image(self, path: PurePosixPath) -> tuple[str, Files] | None:
        """Name and files of the image that a path means."""
        folder = self._folder(path.parent)
        file = self.listing(folder).file(path.name, IMAGE_SUFFIXES) if folder else None
        if file is None:
            return self._known(path.name)
        for pairing in self.pairings:
            if name := pairing.name_of.get(file):
                return name, (file, pairing.masks.get(name))
            if file in pairing.mask_files:
                return self._known(path.name)
        return file.stem, (file, None)

    def _mask(self, path: PurePosixPath) -> Path | None:
        folder = self._folder(path.parent)
        file = self.listing(folder).file(path.name, MASK_SUFFIXES) if folder else None
        if file is None and (found := self._known(path.name)):
            return found[1][1]
        return file

    def _folder(self, parent: PurePosixPath) -> Path | None:
        """The data set's folder that a path in a list means; None where it has no folders, or not these."""
        if parent not in self.folders:
            parts = [part for part in parent.parts if part != "."]
            tried = (
                self.root.joinpath(*(unicodedata.normalize(form, part) for part in parts[at:]))
                for at in range(len(parts))
                for form in ("NFC", "NFD")  # as macOS spells it
            )
            self.folders[parent] = next((folder for folder in tried if folder.is_dir()), None)
        return self.folders[parent]
