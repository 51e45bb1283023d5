"""What all charts share: colours, markers, and axes that leave the eye to the lines."""

from __future__ import annotations

from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by the colour-blind, and in grey.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = (ORANGE, BLUE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
GREY = "#666666"


def plain_axes(axes: Axes, x: str, y: str = "") -> None:
    """Labels, a light grid behind the lines, no box; a legend if anything drawn so far has a name."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(frameon=False, fontsize=9, loc="best").get_texts():
            text.set_parse_math(False)  # a dollar sign in a name is no formula
