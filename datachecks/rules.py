"""What a data set may have wrong though each of its files can be read: rules from counts to findings.

Each rule is a function of what was counted (`datachecks.census`) and gives findings of one line: what is wrong, where,
and what to do. What makes a result meaningless stops a training; what may be meant is a remark. `--check`, `--dry-run`
and the start of a training say them alike (`datachecks.check.look_at`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from basics.batch import VOID
from datachecks import teacher_masks
from datachecks.census import MaskRecord, PictureRecord, SplitCensus
from segdata.class_tables import VOID_NAMES
from segdata.layouts import Layout
from segdata.orientation import UPRIGHT

SHOWN = 8  # names that one line lists
WRITE_COLOURS = "write the colours beside the names in classes.txt"


@dataclass(frozen=True)
class Finding:
    """One line on a data set; ``stops`` if no training or score on it would mean anything."""

    line: str
    stops: bool = False


def judge(
    layout: Layout,
    splits: Mapping[str, SplitCensus],
    train: str | None,
    val: str | None,
    shared: Mapping[str, str],
) -> list[Finding]:
    """All findings on a data set, each line beginning with its folder.

    Args:
        splits: what was counted, by split.
        train, val: which of them is trained and scored on, if any; may be the same.
        shared: images of ``val`` that are in ``train``, too, as `Census.shared_images` gives them.
    """
    names, training, validation = layout.class_names, splits.get(train or ""), splits.get(val or "")
    if validation is training:
        validation = None
    findings = [*judge_class_list(names)]
    by_teacher = teacher_masks.are_in(layout.root)
    if training is not None:
        findings += judge_void(training, "learnt")
        findings += judge_training_labels(names, training, validation, by_teacher)
    if validation is not None:
        findings += judge_void(validation, "scored")
        findings += judge_validation_labels(names, validation, by_teacher)
    if training is not None and train == val:
        findings.append(
            Finding(
                f"{train} is trained on and scored on: the score says how well it is known by heart, not how good the "
                "network is"
            )
        )
    elif training is not None and validation is not None:
        findings += judge_shared(training, validation, shared)
    findings += judge_palettes(splits.values())
    findings += judge_pictures(splits.values())
    findings = [replace(finding, line=f"{layout.root}: {finding.line}") for finding in findings]
    return findings + [Finding(remark) for remark in layout.remarks]


# -- classes and labels ------------------------------------------------------------------------------


def judge_class_list(names: Sequence[str]) -> Iterator[Finding]:
    """A list of one class; a class whose name says that it is none."""
    if len(names) == 1:
        yield Finding(
            f"the class list has one class, {names[0]!r}: there is nothing to tell it from; name what is around it, "
            "too, for example `background`",
            stops=True,
        )
    for index, name in enumerate(names):
        if name.lower() in VOID_NAMES:
            yield Finding(
                f"class {index} is called {name!r} and is learnt and scored like any other: what is to be left out has "
                f"the label {VOID}"
            )


def judge_void(split: SplitCensus, verb: str) -> Iterator[Finding]:
    """Masks without a labelled pixel; ``verb`` says what cannot be done without one."""
    empty = [path for path, mask in split.labelled() if mask.is_void]
    if empty and len(empty) == len(split.files.ids):
        yield Finding(
            f"every pixel in the {_count(empty, 'mask')} of {split.name} is void (255): nothing can be {verb}; label "
            "them, or name another split",
            stops=True,
        )
    elif empty:
        yield Finding(
            f"{len(empty)} of the {len(split.files.ids)} masks of {split.name} are void (255) everywhere, for example "
            f"{empty[0].name}: nothing is {verb} there"
        )


def judge_training_labels(
    names: Sequence[str], train: SplitCensus, val: SplitCensus | None, by_teacher: bool
) -> Iterator[Finding]:
    """Classes that no training mask holds, up to all but one of them."""
    present = _present(names, train)
    if not train.is_whole or len(names) < 2 or not present:  # said by other rules
        return
    if len(present) == 1:
        yield Finding(_one_class(names, train, present[0], by_teacher), stops=True)
        return
    absent = [name for name in names if name not in present]
    if absent:
        in_val = set(() if val is None else _present(names, val))
        scored = [name for name in absent if name in in_val]
        though = f", though {val.name} has {_listed(scored)}" if val is not None and scored else ""
        yield Finding(
            f"no mask of {train.name} holds {len(absent)} of the {len(names)} classes ({_listed(absent)}){though}: "
            "nothing is learnt of what no mask shows; look at class list and masks if that is not meant"
        )
    if len(names) == 2 and not by_teacher:  # to whom 255 is what it is not sure of
        yield from _mixed_black_and_white(names, train)


def judge_validation_labels(names: Sequence[str], val: SplitCensus, by_teacher: bool) -> Iterator[Finding]:
    """A split to score on in which one class alone is labelled."""
    present = _present(names, val)
    if val.is_whole and len(names) > 1 and len(present) == 1:
        stops = _is_black_and_white(val) and not by_teacher
        yield Finding(_one_class(names, val, present[0], by_teacher), stops)


def _present(names: Sequence[str], split: SplitCensus) -> list[str]:
    """The classes that occur."""
    pixels = split.pixels
    return [name for label, name in enumerate(names) if pixels[label]]


def _is_black_and_white(split: SplitCensus) -> bool:
    """Masks of 0 and 255 alone, both of them."""
    return set(np.flatnonzero(split.pixels).tolist()) == {0, VOID}


def _one_class(names: Sequence[str], split: SplitCensus, present: str, by_teacher: bool) -> str:
    if by_teacher:
        unsure = " or is not sure (255), which a lower --min-confidence makes less of" * bool(split.pixels[VOID])
        return (
            f"in all {_count(split.counted, 'mask')} of {split.name} the teacher says {present!r}{unsure}: look at "
            "what it sees (predict.py --teacher ... --save overlay), at the class map and --teacher-size"
        )
    if _is_black_and_white(split) and len(names) == 2:
        return (
            f"the masks of {split.name} hold 0 and 255 alone, and 255 means void: none of them holds {names[1]!r}; "
            f"{WRITE_COLOURS} (`{names[0]} 0 0 0` and `{names[1]} 255 255 255`), or save the masks with 0 and 1"
        )
    void = ", all else is void (255)" if split.pixels[VOID] else ""
    return (
        f"the {_count(split.counted, 'mask')} of {split.name} hold one of {len(names)} classes, {present!r}{void}: who "
        "always says so is always right; look whether the numbers in the masks are those of the class list"
    )


def _mixed_black_and_white(names: Sequence[str], split: SplitCensus) -> Iterator[Finding]:
    """Two classes, saved as 0 and 255 in some masks and as 0 and 1 in others."""
    kinds = {path: set(mask.labels) for path, mask in split.labelled()}
    white = [path for path, kind in kinds.items() if kind == {0, VOID}]
    if white and not any({1, VOID} <= kind for kind in kinds.values()):
        yield Finding(
            f"{len(white)} of the {len(kinds)} masks of {split.name} hold 0 and 255 alone, for example "
            f"{white[0].name}, while no mask with 1 holds 255: that means void; if it is {names[1]!r} in these, save "
            "them with 0 and 1, too"
        )


# -- palettes and pictures ---------------------------------------------------------------------------


def judge_palettes(splits: Iterable[SplitCensus]) -> Iterator[Finding]:
    """Palette files that do not agree on which colour is which class."""
    seen: dict[str, Path] = {}
    for path, mask in (found for split in splits for found in split.labelled()):
        for entry in mask.colours.split():
            seen.setdefault(entry, path)
    by_colour: dict[str, dict[str, Path]] = {}
    by_number: dict[tuple[str, str], dict[str, Path]] = {}
    for entry, path in seen.items():
        number, colour, label = entry.split(":")
        by_colour.setdefault(colour, {}).setdefault(label, path)
        by_number.setdefault((number, label), {}).setdefault(colour, path)
    for colour, labels in by_colour.items():
        if len(labels) > 1:
            (label, path), (other, other_path) = list(labels.items())[:2]
            yield Finding(
                f"the colour {_rgb(colour)} is label {label} in {path.name} and label {other} in {other_path.name}: "
                f"each file has a palette of its own, so that its numbers mean nothing; {WRITE_COLOURS} (`name "
                f"{_rgb(colour)}`), or save all masks with one palette",
                stops=True,
            )
            return
    if len({number for number, _ in by_number}) < len(by_number):  # colours decide: one number has several labels
        return
    for (number, _), colours in by_number.items():
        if len(colours) > 1:
            (colour, path), (other, other_path) = list(colours.items())[:2]
            yield Finding(
                f"the number {number} has the colour {_rgb(colour)} in {path.name} and {_rgb(other)} in "
                f"{other_path.name}: the numbers are what is read; if the colours are meant, {WRITE_COLOURS}"
            )
            return


def _rgb(colour: str) -> str:
    return " ".join(map(str, bytes.fromhex(colour)))


def judge_pictures(splits: Iterable[SplitCensus]) -> Iterator[Finding]:
    """Pictures that are turned, that lose a band, or that look like masks."""
    pictures: dict[Path, PictureRecord] = {}
    for split in splits:
        found = zip(split.files.images, split.pictures, strict=True)
        pictures |= {path: picture for path, picture in found if picture is not None}
    turned = [path for path, picture in pictures.items() if picture.orientation != UPRIGHT]
    if turned:
        yield Finding(
            f"{_count(turned, 'image')} with an EXIF orientation, for example {turned[0].name} "
            f"({pictures[turned[0]].orientation}): turned upright, as in prediction; the masks must be drawn on the "
            "upright picture"
        )
    banded = [path for path, picture in pictures.items() if picture.mode in ("RGBA", "LA", "PA") or picture.bands > 3]
    if banded:
        yield Finding(
            f"{_count(banded, 'image')} with a band beside the colours, for example {banded[0].name}: training drops "
            "it, while prediction lays transparent pictures on white; save them as RGB"
        )
    if clear := [path for path, picture in pictures.items() if picture.transparent and path not in banded]:
        yield Finding(
            f"{_count(clear, 'image')} in which a colour is transparent, for example {clear[0].name}: training sees "
            "that colour, while prediction lays transparent pictures on white; save them as RGB"
        )
    if len(pictures) > 1 and all(picture.mode in ("P", "1") for picture in pictures.values()):
        yield Finding(
            f"all {len(pictures)} images are palette files, as masks are, for example {next(iter(pictures)).name}: are "
            "the folders swapped?"
        )


# -- splits ------------------------------------------------------------------------------------------


def judge_shared(train: SplitCensus, val: SplitCensus, shared: Mapping[str, str]) -> Iterator[Finding]:
    """Images that are trained on and scored on."""
    if not shared:
        return
    first = next(iter(shared))
    example = f"for example {first}" + f" ({shared[first]} in {train.name})" * (shared[first] != first)
    if len(shared) == len(val.files.ids):
        yield Finding(
            f"all images of {val.name} are in {train.name}, too, {example}: the score would say how well they are "
            f"known by heart; take them out of {train.name}, or, if it is meant, name one split for both (--val-split "
            f"{train.name})",
            stops=True,
        )
    else:
        images = "1 image is" if len(shared) == 1 else f"{len(shared)} images are"
        yield Finding(
            f"{images} in both {train.name} and {val.name} (of {len(val.files.ids)} there), {example}: scores on "
            f"{val.name} will flatter; take them out of one of the two"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _count(things: Sequence[Path] | Sequence[MaskRecord] | Sequence[str], noun: str) -> str:
    return f"{len(things)} {noun}" + "s" * (len(things) != 1)
