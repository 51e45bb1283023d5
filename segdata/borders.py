"""Where the regions of a picture meet."""

from __future__ import annotations

import numpy as np


def find_borders(labels: np.ndarray) -> np.ndarray:
    """bool (H, W): the pixels on either side of a line between two labels (H, W), each pixel having four neighbours."""
    border = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    return border
