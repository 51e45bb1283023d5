"""The pictures in a folder and those below it, without what only looks like pictures: masks and results of predict.py.

Told by the names of folders, see `datalayouts.folder_names`; in a folder that holds both, as `segdata.pairing` does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from basics.files import files_below
from datalayouts.folder_names import meaning
from segdata.pairing import IMAGE_SUFFIXES, MASK_WORDS, Affixes, Listing, pair_one_folder
from segdata.reading import DataError, read_header

RESULTS = ("overlay", "panel", "confidence")  # folders that predict.py writes PNGs into, beside mask/


def find_pictures(folder: Path, there: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """The pictures, and how many files were left out in which folder (as it is called below ``folder``).

    Of a data set, at the top or below, with folders of images and of masks or of results by the usual names, the
    pictures are those in the folder of images.

    Args:
        there: the files below ``folder``, in the order of the result.
    """
    files = [path for path in there if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    children: dict[Path, set[str]] = defaultdict(set)  # by folder the kinds of those in it
    for path in files:
        for parent, child in _steps(path, folder):
            children[parent].add(_kind(child))
    apart = {path for path in files if _is_apart(path, folder, children)}
    apart |= _masks_beside(path for path in files if path not in apart)
    left_out = Counter((path.parent.relative_to(folder)).as_posix() for path in files if path in apart)
    return [path for path in files if path not in apart], left_out


def masks_below(folder: Path) -> list[Path]:
    """Masks in a folder and those below it: in folders of masks that have images beside them, and in one with these."""
    files = [path for path in sorted(files_below(folder)) if path.suffix.lower() in IMAGE_SUFFIXES]
    with_images = {path.parent for path in files}
    with_images |= {parent for path in files for parent, child in _steps(path, folder) if _kind(child) == "image"}

    def is_mask(path: Path) -> bool:
        kinds = [(parent, _kind(child)) for parent, child in _steps(path, folder)]
        return any(kind == "mask" and parent in with_images for parent, kind in kinds)

    masks = {path for path in files if is_mask(path)}
    return sorted(masks | _masks_beside(path for path in files if path not in masks))


def images_beside(folder: Path) -> Path | None:
    """The folder of images beside one that by its name is of masks or of results; None where there is none."""
    folder = folder.resolve()
    if _kind(folder.name) in ("", "image", "split"):
        return None
    found = (path for path in sorted(folder.parent.iterdir()) if path.is_dir())
    return next((path for path in found if _kind(path.name) == "image"), None)


def _steps(path: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """Each folder from ``folder`` down to that of ``path``, with the name of the next one."""
    parent = folder
    for child in path.relative_to(folder).parts[:-1]:
        yield parent, child
        parent = parent / child


def _kind(name: str) -> str:
    """``image``, ``mask``, ``result`` or ``split``, as a folder's name says; empty for any other."""
    split, kind = meaning(name)
    return kind or ("result" if name.lower() in RESULTS else "split" if split else "")


def _is_apart(path: Path, folder: Path, children: dict[Path, set[str]]) -> bool:
    """Whether the folders say that a file is no picture."""
    for parent, child in (*_steps(path, folder), (path.parent, "")):
        kind, beside = _kind(child) if child else "", children[parent]
        if kind == "mask" or (kind == "result" and path.suffix.lower() == ".png"):
            return True
        is_dataset = "image" in beside and bool(beside & {"mask", "result"})
        if kind == "image":  # what lies in it may be called anything
            return False
        if is_dataset and kind != "split":
            return True
    return False


def _masks_beside(files: Iterator[Path]) -> set[Path]:
    """Masks in one folder with their images: ``a.jpg``, ``a_mask.png``."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        by_folder[path.parent].append(path)
    found: set[Path] = set()
    for folder, paths in by_folder.items():
        try:
            pairing = pair_one_folder(Listing(folder, paths))
        except DataError:  # it is not clear which would be the masks
            continue
        found |= {mask for name, mask in pairing.masks.items() if _looks_like_mask(mask, pairing.images[name])}
    return found


def _looks_like_mask(path: Path, image: Path) -> bool:
    """Whether what may be the mask of ``image`` is called one, or has numbers or greys for pixels."""
    words, of_image = (Affixes(each.stem).words for each in (path, image))
    try:
        return bool((words - of_image) & MASK_WORDS) or read_header(path).mode in ("P", "L", "1")
    except DataError:
        return False


def described(left_out: Counter[str], most: int = 3) -> str:
    """In words, what was left out; empty for nothing."""
    if not left_out:
        return ""
    folders = ", ".join(left_out) if len(left_out) <= most else f"{', '.join([*left_out][:most])}, ..."
    return f"{left_out.total():,} that are masks, results or beside the folder of images, in {folders}"
