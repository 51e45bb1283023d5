"""The classes that a file was made for: where it names them, and in what they differ from the data set's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Where other projects' checkpoints keep the names of their classes (mmsegmentation, Lightning, Hugging Face, ...).
PLACES = (
    ("class_names",),
    ("classes",),
    ("id2label",),
    ("dataset_meta", "classes"),
    ("meta", "dataset_meta", "classes"),
    ("meta", "CLASSES"),
    ("meta", "classes"),
    ("hyper_parameters", "class_names"),
    ("hyper_parameters", "classes"),
    ("hyper_parameters", "id2label"),
)


def named_classes(content: Mapping) -> list[str] | None:
    """The class names in the ``content`` of a checkpoint, by class number; None where it names none."""
    for place in PLACES:
        value: object = content
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        names = numbered_names(value) if isinstance(value, Mapping) else value
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def numbered_names(names: Mapping) -> list[object]:
    """Names by number 0, 1, ... as a list; None in the place of a number that has none."""
    by_number = {str(number): name for number, name in names.items()}
    return [by_number.get(str(number)) for number in range(len(names))]


def class_difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """In what the classes of a file (``theirs``) differ from the data set's, in words; empty if in nothing."""
    if list(theirs) == list(ours):
        return ""
    if len(theirs) != len(ours):
        return f"{len(theirs)} classes there, {len(ours)} here"
    number = next(number for number, (their, our) in enumerate(zip(theirs, ours, strict=True)) if their != our)
    what = "the same classes in another order" if sorted(theirs) == sorted(ours) else "classes of other names"
    return f"{what}: number {number} is {theirs[number]!r} there, {ours[number]!r} here"


def list_classes(names: Sequence[str]) -> str:
    """How many, and the first of them: ``3 classes (background, cat, dog)``."""
    first = [repr(name) if any("," in other for other in names[:3]) else name for name in names[:3]]
    return f"{len(names)} classes ({', '.join(first)}{', ...' if len(names) > 3 else ''})"
