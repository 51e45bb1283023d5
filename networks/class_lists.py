"""Class lists of published networks whose files do not name their classes, and when two lists are the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import PurePosixPath

from datalayouts.published import ADE_CLASSES_FILE, CITYSCAPES, VOC_CLASSES
from segdata.class_tables import read_class_names

VOC = tuple(VOC_CLASSES)


@cache
def ade20k() -> tuple[str, ...]:
    """The 150 classes of the scene parsing benchmark, in its order."""
    return tuple(read_class_names(ADE_CLASSES_FILE))


def published_classes(source: str, count: int) -> list[str] | None:
    """The classes of a published network, told by its name (``segformer-b0-512x512-ade-160k``) and their number."""
    parts = PurePosixPath(source.replace("\\", "/")).parts
    name = parts[-1].lower() if parts else ""
    for hint, names in (("ade", ade20k()), ("city", [name for name, _, _ in CITYSCAPES])):
        if count == len(names) and (hint in name or "smp-hub" in parts):
            return list(names)
    return None


def same_names(names: Sequence[str] | None, others: Sequence[str] | None) -> bool:
    """Whether two class lists are the same but for case, blanks and underscores; an unknown one is taken as such."""
    if names is None or others is None:
        return True
    plain = [[" ".join(name.replace("_", " ").casefold().split()) for name in each] for each in (names, others)]
    return plain[0] == plain[1]
