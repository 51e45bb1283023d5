"""What is written of a picture or a video's frame: masks, overlays, panels, how sure the network is, and areas."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from basics.errors import UserError
from basics.files import file_bytes, replacing, write_text
from segdata.drawing import Palette, PanelRow, background_classes, overlay, panel
from segdata.png_rows import PngRows

KINDS = ("mask", "overlay", "panel", "confidence", "csv")
PICTURED = ("overlay", "panel")  # these show the picture, too
PANEL_SIDE = 2048  # pixels: panels show larger pictures by every second, third, ... pixel
PAINTED = 1_000_000  # pixels that are painted at once
AREAS = "areas.csv"


@dataclass(frozen=True)
class Band:
    """Some rows of a picture, over its whole width, and what the network says of them.

    Attributes:
        pixels: uint8 (rows, W, 3) RGB; None where no result shows them.
        mask: uint8 (rows, W) class numbers; 255 where a teacher's word means nothing (`deploy.labelling`).
        confidence: uint8 (rows, W), or None; see `Prediction`.
    """

    pixels: np.ndarray | None
    mask: np.ndarray
    confidence: np.ndarray | None = None

    def cut(self) -> Iterator[Band]:
        """The same rows in bands of at most `PAINTED` pixels: painting takes many bytes for each."""
        assert self.pixels is not None
        rows = max(1, PAINTED // self.mask.shape[1])
        for top in range(0, len(self.mask), rows):
            yield Band(self.pixels[top : top + rows], self.mask[top : top + rows])


@dataclass(frozen=True)
class Look:
    """How classes are called and shown."""

    class_names: Sequence[str]
    palette: Palette

    def overlay(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The classes over the picture, the background left clear."""
        return overlay(pixels, mask, self.palette, clear=background_classes(self.class_names))


def write_results(
    paths: Mapping[str, Path],
    size: tuple[int, int],
    bands: Iterable[Band],
    look: Look,
    title: str,
    *,
    source: str = "",
    finished: Callable[[Path], None] | None = None,
) -> np.ndarray:
    """Write one picture's results, band by band, from the top to the bottom.

    Args:
        paths: where to, by kind; all of them appear when all went well, whole.
        size: (H, W).
        title: written above panels.
        source: what the mask's file says of its source.
        finished: is given the mask's file, whole, just before it gets its name.

    Returns:
        int64 (C,), the area of each class in pixels.
    """
    areas = np.zeros(len(look.class_names), np.int64)
    with contextlib.ExitStack() as stack:
        files = {kind: stack.enter_context(replacing(path)) for kind, path in paths.items()}
        if finished is not None and "mask" in files:
            stack.enter_context(_afterwards(finished, files["mask"]))
        pngs = {
            kind: stack.enter_context(_png_of(kind, path, size, look, source))
            for kind, path in files.items()
            if kind != "panel"
        }
        small = _Reduced(size) if "panel" in files else None
        painter = _Painter(look)
        for band in bands:
            areas += np.bincount(band.mask.ravel(), minlength=256)[: len(areas)]  # void is no class
            if "mask" in pngs:
                pngs["mask"].write(band.mask)
            if "confidence" in pngs:
                assert band.confidence is not None
                pngs["confidence"].write(band.confidence)
            if "overlay" in pngs:
                for part in band.cut():
                    for rows in painter.paint(part):
                        pngs["overlay"].write(rows)
            if small is not None:
                small.add(band)
        if "overlay" in pngs:
            for rows in painter.paint(None):
                pngs["overlay"].write(rows)
        if small is not None:
            row = PanelRow(title, *small.joined())
            panel([row], ["Input", "Prediction"], look.class_names, look.palette, files["panel"])
    return areas


def _png_of(kind: str, path: Path, size: tuple[int, int], look: Look, source: str) -> PngRows:
    if kind == "mask":
        return PngRows(path, *size, look.palette, source=source)
    return PngRows(path, *size, rgb=kind == "overlay")


@contextlib.contextmanager
def _afterwards(finished: Callable[[Path], None], file: Path) -> Iterator[None]:
    """Call ``finished`` when the block has ended without an error."""
    yield
    finished(file)


class _Painter:
    """Overlays band by band, without a line where two bands meet: a band waits until the row below it is known."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self.above: np.ndarray | None = None  # the mask's last row above the band that waits
        self.waiting: Band | None = None

    def paint(self, band: Band | None) -> Iterator[np.ndarray]:
        """The rows that wait, painted, if any; ``band`` waits from now on. None: there is nothing below."""
        if self.waiting is not None:
            pixels, mask = self.waiting.pixels, self.waiting.mask
            assert pixels is not None
            before = 0 if self.above is None else 1
            around = [*([] if self.above is None else [self.above]), mask, *([] if band is None else [band.mask[:1]])]
            padding = ((before, len(around) - 1 - before), (0, 0), (0, 0))
            painted = self.look.overlay(np.pad(pixels, padding, mode="edge"), np.concatenate(around))
            yield painted[before : before + len(mask)]
            self.above = mask[-1:]
        self.waiting = band


class _Reduced:
    """A picture and its mask for a panel: every k-th pixel of every k-th row."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.step = max(1, -(-max(size) // PANEL_SIDE))
        self.top = 0
        self.pixels: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []

    def add(self, band: Band) -> None:
        assert band.pixels is not None
        first = -self.top % self.step
        self.pixels.append(band.pixels[first :: self.step, :: self.step])
        self.masks.append(band.mask[first :: self.step, :: self.step])
        self.top += len(band.mask)

    def joined(self) -> tuple[np.ndarray, list[np.ndarray]]:
        return np.concatenate(self.pixels), [np.concatenate(self.masks)]


def _read_rows(path: Path, header: list[object]) -> list[list[str]]:
    """The rows of a table of areas; none, if it is not there. One with other columns is put aside, aloud.

    Raises:
        UserError: it can neither be read nor put aside.
    """
    if not file_bytes(path):
        return []
    try:
        first, *rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
        if first == header:
            return [row for row in rows if len(row) == len(header)]
    except (OSError, ValueError, csv.Error):
        pass
    numbered = (path.with_stem(f"{path.stem}_before{number or ''}") for number in itertools.count())
    aside = next(other for other in numbered if not other.exists())
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(f"cannot write {path}: it holds other columns, and {error.strerror or error}") from error
    print(f"remark: {path} held other columns (other classes, or saved by another program): it is {aside.name} now")
    return []


class Areas:
    """The table of areas: a row a picture, page or frame, a column a class, in pixels."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.rows: list[list[object]] = [["file", "frame", "seconds", "width", "height", *class_names]]

    def add(
        self, file: str, frame: int | None, seconds: Fraction | None, size: tuple[int, int], areas: np.ndarray
    ) -> None:
        """A row; ``frame`` counts pages and frames from 1, ``seconds`` is when a video's frame is shown."""
        file = file.encode("utf-8", "backslashreplace").decode()  # as the table spells a name that is no UTF-8
        time = "" if seconds is None else round(float(seconds), 6)
        number = "" if frame is None else frame
        self.rows.append([file, number, time, size[1], size[0], *areas.tolist()])

    def write(self, folder: Path) -> None:
        """Write all rows so far; those of other files stay that an earlier run wrote of the same classes."""
        header, *rows = self.rows
        files = {row[0] for row in rows}
        kept: list[list[str]] = [row for row in _read_rows(folder / AREAS, header) if row[0] not in files]
        text = io.StringIO()
        plain = csv.writer(text, lineterminator="\n")
        exact = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # a lone \r is quoted by nothing else
        lines: list[Sequence[object]] = [header, *kept, *rows]
        for row in lines:
            (exact if any("\r" in str(cell) for cell in row) else plain).writerow(row)
        write_text(folder / AREAS, text.getvalue())
