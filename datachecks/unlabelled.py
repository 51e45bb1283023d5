"""`--unlabelled DIR|SPLIT`: pictures without masks that join a training, for the teacher to speak of.

A picture that is trained on with its mask, or scored on, does not join, whether it lies there as the same file or as a
copy; nor does one that cannot be read, to its last row: nobody looks after every picture of a camera, and one half
written must not end a training. Nor do masks and results that lie in the folder (`datachecks.picture_search`). All is
said.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from basics.errors import UserError
from basics.files import files_below
from datachecks.census import Census, SplitCensus, open_census
from datachecks.picture_search import described, find_pictures, images_beside
from segdata.layouts import Layout, SplitFiles
from segdata.pairing import IMAGE_SUFFIXES, other_formats
from segdata.split_lists import usual_name


def find_unlabelled(
    layout: Layout, places: Sequence[str], train: SplitFiles, val: SplitFiles
) -> tuple[SplitFiles, list[str]]:
    """The pictures in ``places``, splits of the data set or folders, that are new to both splits.

    Returns:
        their files, without masks and with ids that no image of ``train`` has; and a line for each place.

    Raises:
        UserError: a place is neither a split nor a folder, or holds no picture that could join.
    """
    found = SplitFiles([], [], None)
    lines: list[str] = []
    with open_census(layout) as census:
        known = list(census.take({"train": train, "val": val}).values())
        for place in dict.fromkeys(places):
            files, left_out = _files_of(layout, place)
            there = census.take({place: files})[place]
            new, line = _new_ones(census, there, known, described(left_out))
            if not new.ids and not set(there.files.images) <= set(train.images):
                raise UserError(f"--unlabelled {place}: {line}")
            lines.append(f"unlabelled: {line}")
            taken = {*train.ids, *found.ids}
            found.ids += _unique(new.ids, place, taken)
            found.images += new.images
            known.append(there)
    return found, lines


def _files_of(layout: Layout, place: str) -> tuple[SplitFiles, Counter[str]]:
    """The pictures of a split, or of a folder and those below it, whose ids are names within it; and, by folder, how
    many files were taken for none.
    """
    if place in layout.splits() or usual_name(place) in layout.splits():
        files, _ = layout.scan(place)  # a mask that is missing is none that is missed here
        return SplitFiles(files.ids, files.images, None), Counter()
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(
            f"--unlabelled {place}: neither a folder nor a split of {layout.root} (there: "
            f"{', '.join(layout.splits()) or 'none'})"
        )
    if pictures := images_beside(folder):
        raise UserError(f"--unlabelled {place}: no pictures, by its name; they lie beside it: --unlabelled {pictures}")
    there = sorted(files_below(folder))
    images, left_out = find_pictures(folder, there)
    others = other_formats(there)
    if not images:
        beside = f", but {described(left_out)}" if left_out else ""
        besides = f": {others}" if others else ""
        raise UserError(f"--unlabelled {place}: no pictures there ({' '.join(IMAGE_SUFFIXES)}){beside}{besides}")
    if others:
        print(f"remark: --unlabelled {place}: {others}")
    names = [path.relative_to(folder) for path in images]
    stems = Counter(name.with_suffix("") for name in names)
    ids = [(name if stems[name.with_suffix("")] > 1 else name.with_suffix("")).as_posix() for name in names]
    return SplitFiles(ids, images, None), left_out


def _new_ones(census: Census, there: SplitCensus, known: Sequence[SplitCensus], apart: str) -> tuple[SplitFiles, str]:
    """The readable pictures of ``there`` that ``known`` splits lack, and a line of how many they are.

    Args:
        apart: what else was left out, in words.
    """
    pairs = zip(there.files.ids, there.files.images, there.pictures, strict=True)
    readable = [(name, path) for name, path, record in pairs if record]
    left_out = [(other.name, set(census.shared_images(there, other))) for other in known]
    dropped = set().union(*(names for _, names in left_out))
    new = [(name, path) for name, path in readable if name not in dropped]
    damaged = census.damaged([path for _, path in new])
    new = [(name, path) for name, path in new if path not in damaged]
    notes = [f"{len(names):,} are in {place}" for place, names in left_out if names]
    if faults := [*there.faults, *damaged.values()]:
        notes.append(f"{len(faults):,} cannot be read, first {faults[0]}")
    if apart:
        notes.append(apart)
    line = f"{len(new):,} of {len(there.files.ids):,} pictures in {there.name}"
    line += f" ({'; '.join(notes)}: left out)" if notes else ""
    return SplitFiles([name for name, _ in new], [path for _, path in new], None), line


def _unique(ids: Sequence[str], place: str, taken: set[str]) -> Iterator[str]:
    """The ids as they are; with the name of their place, and if need be a number, where another has them."""
    for name in ids:
        other = f"{Path(place).resolve().name}/{name}"
        numbered = (f"{other}_{number}" for number in itertools.count(2))
        chosen = next(each for each in (name, other, *itertools.islice(numbered, len(ids) + 1)) if each not in taken)
        taken.add(chosen)
        yield chosen
