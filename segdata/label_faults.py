"""Why a mask may hold labels that its class list does not have: the usual causes, and what to do about each."""

from __future__ import annotations

import numpy as np

from basics.batch import VOID
from segdata.palettes import voc_palette

NUM_VOC = 21
BY_COLOUR = "write the colours beside the names in classes.txt (`name {0} {0} {0}`), or save class numbers"


def voc_greys() -> set[int]:
    """What the colours of VOC's classes turn into where a palette mask is converted to grey."""
    colours = np.array(voc_palette(NUM_VOC), np.float64)  # (21, 3)
    luma = colours @ [0.299, 0.587, 0.114]
    return {int(value) for value in (*np.floor(luma), *np.rint(luma))}


def explain_labels(values: list[int], num_classes: int) -> str:
    """The likeliest cause and the remedy, in words.

    Args:
        values: all that occur in the mask, sorted; at least one is neither a class nor void.
        num_classes: of the class list.
    """
    wrong = [value for value in values if num_classes <= value < VOID]
    if wrong == [num_classes] and 0 not in values:
        return "if the masks count from 1, take 1 away (void stays 255)"
    if wrong == [num_classes]:
        return "the class list is a name short: is `background` in it?"
    if len(values) > max(16, 2 * num_classes):
        return "so many values come of smoothing: resize masks with nearest neighbour, and never save them as JPEG"
    labelled = set(values) - {0, VOID}
    if len(labelled) > 1 and labelled <= voc_greys():
        return "they are VOC's colours turned to grey: keep the palette's indices when saving masks (mode P, not L)"
    if len(values) <= num_classes:
        return f"if each class has a grey level, {BY_COLOUR.format(wrong[0])} 0..{num_classes - 1}"
    return "give the class list that the masks were made for, a line a label"
