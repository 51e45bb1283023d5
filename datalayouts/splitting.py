"""A split by chance for data that bring none: the same for all runs and on all machines, and written down.

The images are put in an order that their names decide (a hash), and the first ones are kept for validation. The lists
lie in `split_by_chance/` in the data set's folder; a later picture is in neither until somebody adds its name. Where
the folder cannot be written, and for pictures without masks, the same split is made anew each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import unicodedata
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from basics.errors import UserError
from basics.files import can_write
from segdata.layouts import Layout
from segdata.split_lists import USUAL_SPLITS

FOLDER = "split_by_chance"
DEFAULT_SHARE = 0.2
SEED = 2012
TRAIN, VAL = "train", "val"


def with_val_split(layout: Layout, share: float | None) -> Layout:
    """The data set with the splits train and val, if there are pairs of which nobody says to which split they belong.

    A train split without a val split is parted where ``share`` is given.

    Args:
        share: of the images that are kept for val; None: `DEFAULT_SHARE`, where nothing else is said.

    Raises:
        UserError: no share from 0 to 1, or the data bring a val split of another size.
    """
    if share is not None and not 0 < share < 1:
        raise UserError(f"--val-share {share:g}: wanted is a number between 0 and 1, such as {DEFAULT_SHARE}")
    written = {split: layout.root / FOLDER / f"{split}.txt" for split in (TRAIN, VAL)}
    layout = _with_rest_as_train(layout)
    whole = _whole(layout, share is not None)
    if whole is None:
        if share is not None:
            _check_share(layout, share)
        return layout
    if all(path.is_file() for path in written.values()):
        layout = replace(layout, split_lists=layout.split_lists | written)
        if share is not None:
            _check_share(layout, share)
        return _with_remark_on_new_images(layout, whole)
    if len(whole) < 2:
        return layout
    share = DEFAULT_SHARE if share is None else share
    val = choose_by_chance(whole, share)
    ids = {TRAIN: [name for name in whole if name not in val], VAL: [name for name in whole if name in val]}
    counts = f"{len(ids[TRAIN]):,} images for train and {len(val):,} for val (--val-share {share:g})"
    if layout.mask_folders and _write(layout.root, ids):
        print(f"{layout.root}: no val split there: {counts} by chance, written to {layout.root / FOLDER}", flush=True)
        return replace(layout, split_lists=layout.split_lists | written)
    why = "there are other images, or masks" if not layout.mask_folders else "there are other images"
    layout.remarks.append(f"{layout.root}: no val split there: {counts} by chance; the same every time, until {why}")
    return replace(layout, split_ids=layout.split_ids | ids)


def choose_by_chance(names: Iterable[str], share: float) -> set[str]:
    """The ``share`` of the names that is kept for val: at least one, and not all; decided by the names alone."""

    def place(name: str) -> bytes:  # file systems spell accents in two ways
        return hashlib.sha256(f"{SEED} {unicodedata.normalize('NFC', name)}".encode(errors="replace")).digest()

    ordered = sorted(names, key=place)
    count = min(max(round(share * len(ordered)), 1), len(ordered) - 1)
    return set(ordered[:count])


def _with_rest_as_train(layout: Layout) -> Layout:
    """Where a list says what is for val, and nobody what is for train: what is in no list is."""
    splits = layout.splits()
    if TRAIN in splits or VAL not in layout.split_lists or not {*splits} <= {VAL, "test"}:
        return layout
    listed = {path for split in splits for path in layout.scan(split)[0].images}
    pairing = layout.pairing(None)
    whole = pairing.masks or pairing.images
    names = sorted(name for name, path in pairing.images.items() if name in whole and path not in listed)
    if not names:
        return layout
    layout = replace(layout, split_ids=layout.split_ids | {TRAIN: names}, remarks=[*layout.remarks])
    layout.remarks.append(
        f"{layout.split_lists[VAL]} says what is for val, and no list what is for train: the other {len(names):,} "
        "images are"
    )
    return layout


def _whole(layout: Layout, parted: bool) -> list[str] | None:
    """The images to part into train and val; None where the data say themselves what is what."""
    splits = [split for split in layout.splits() if not split.startswith("test")]
    known = [split for split in splits if split.startswith((TRAIN, VAL))]
    test = set(layout.scan("test")[0].images) if "test" in layout.splits() else set()
    found: dict[str, Path | None]
    if not known:
        if splits:  # lists with names of their own (CVAT: default)
            scanned = [layout.scan(split)[0] for split in splits]
            found = {name: path for files in scanned for name, path in zip(files.ids, files.images, strict=True)}
        elif None in layout.image_folders:
            pairing = layout.pairing(None)
            found = {name: pairing.images.get(name) for name in pairing.masks or pairing.images}
        else:
            return None
    elif any(split.startswith(VAL) for split in known) or not (parted or (layout.root / FOLDER).is_dir()):
        return None
    else:
        files = layout.scan(next((split for split in USUAL_SPLITS if split in known), known[0]))[0]
        found = dict(zip(files.ids, files.images, strict=True))
    # By their paths: pictures of train and of test may bear the same numbers.
    return [name for name, path in found.items() if path not in test]


def _check_share(layout: Layout, share: float) -> None:
    """A `UserError` if val is not that share of train and val."""
    counts = {split: len(layout.scan(split)[0].ids) for split in (TRAIN, VAL) if split in layout.splits()}
    total = sum(counts.values())
    if VAL in counts and counts[VAL] != min(max(round(share * total), 1), total - 1):
        source = layout.split_lists.get(VAL) or layout.folders(VAL)[0]
        own = source.parent.name == FOLDER
        remedy = f"remove {source.parent} to part them anew" if own else "leave --val-share out"
        raise UserError(f"--val-share {share:g}: {source} keeps {counts[VAL]:,} of {total:,} images for val; {remedy}")


def _with_remark_on_new_images(layout: Layout, whole: list[str]) -> Layout:
    listed = {name for split in (TRAIN, VAL) for name in layout.scan(split)[0].ids}
    new = [name for name in whole if name not in listed]
    if new:
        layout.remarks.append(
            f"{len(new):,} images such as {', '.join(new[:3])} came after the split in {layout.root / FOLDER} and "
            "are in no list of it: add their names to train.txt, or remove that folder to part all images anew"
        )
    return layout


def _write(root: Path, ids: dict[str, list[str]]) -> bool:
    """Write the lists, both or none: two runs may begin at once, and then write the same."""
    names = [name for each in ids.values() for name in each]
    odd = any([name.strip()] != name.splitlines() or "\\" in name for name in names)  # what no list can say
    if odd or not can_write(root):
        return False
    temporary = root / f".{FOLDER}-{uuid.uuid4().hex}"
    try:
        temporary.mkdir()
        for split, names in ids.items():
            text = "".join(f"{name}\n" for name in names)
            (temporary / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")
        if not (root / FOLDER).is_dir():
            temporary.rename(root / FOLDER)
    except (OSError, UnicodeEncodeError):
        pass
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
    return all((root / FOLDER / f"{split}.txt").is_file() for split in ids)
