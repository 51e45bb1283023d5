"""What the best student of a run is chosen by: mIoU, or where the validation pictures have no masks, agreement."""

from __future__ import annotations

from dataclasses import dataclass

from scoring.metrics import Scores


@dataclass(frozen=True)
class Goal:
    """A score in 0..1, the higher the better.

    Attributes:
        key: its name in metrics.csv (behind ``val_``) and in checkpoints.
        title: its name for people.
        note: what a protocol says beside the score.
    """

    key: str
    title: str
    note: str = ""

    def of(self, scores: Scores) -> float:
        """The score itself."""
        return scores.miou if self == MIOU else scores.pixel_accuracy


MIOU = Goal("miou", "mIoU")
# The share of pixels at which student and teacher decide alike. Without labels there is no mIoU.
AGREEMENT = Goal("agreement", "agreement with the teacher", "; against what the teacher says, there are no masks")
