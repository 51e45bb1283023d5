"""The report's pictures: where the best method gains most on the baseline, and where it loses most."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from basics.batch import VOID
from comparison.scoring import Comparison, Result
from comparison.statistics import Line
from dataset import SegmentationDataset
from deploy.columns import Column, checkpoint_column, teacher_column
from segdata.drawing import Palette
from segdata.palettes import palette_image

SIDE = 300  # pixels of a picture's longer side
MOST = 24  # pictures of a kind, so that the file stays small


@dataclass(frozen=True)
class Picture:
    """One cell of a panel: title, score, data URI, what to say to who cannot see it, size in pixels."""

    title: str
    note: str
    source: str
    alt: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Panel:
    """An image with its truth and predictions; ``difference`` is the mean over seeds, in 0..1."""

    name: str
    difference: float
    pictures: list[Picture]
    labels: set[int]


def image_differences(method: Sequence[Result], baseline: Sequence[Result]) -> dict[str, float]:
    """mIoU of each image under the method less that under the baseline, mean over the seeds that both have."""
    base = {result.run.seed: result for result in baseline}
    pairs = [(result, base[result.run.seed]) for result in method if result.run.seed in base]
    found: dict[str, list[float]] = {}
    for result, other in pairs:
        for name in result.images.keys() & other.images.keys():
            found.setdefault(name, []).append(result.images[name] - other.images[name])
    return {name: statistics.fmean(values) for name, values in found.items()}


def extremes(differences: dict[str, float], count: int) -> tuple[list[str], list[str]]:
    """Up to ``count`` images with the largest gains, and as many with the largest losses, the largest first."""
    ranked = sorted(differences, key=lambda name: (differences[name], name))
    gains = [name for name in ranked[::-1] if differences[name] > 0][:count]
    losses = [name for name in ranked if differences[name] < 0][:count]
    return gains, losses


def make_panels(comparison: Comparison, best: Line) -> dict[str, list[Panel]]:
    """``Best gains`` and ``Worst losses`` -> their panels; drawn from the first seed that both have."""
    plan, count = comparison.plan, min(comparison.plan.report.panels, MOST)
    method, baseline = comparison.of(best.method, best.group), comparison.of(plan.baseline, best.group)
    differences = image_differences(method, baseline)
    gains, losses = extremes(differences, count)
    if not gains and not losses:
        return {}
    seed = min({result.run.seed for result in method} & {result.run.seed for result in baseline})
    columns = _load_columns(comparison, [_of_seed(baseline, seed), _of_seed(method, seed)])
    return {
        heading: [
            _make_panel(comparison.dataset, name, differences[name], columns, plan.args.eval_tile) for name in names
        ]
        for heading, names in (("Best gains", gains), ("Worst losses", losses))
    }


def _of_seed(results: Sequence[Result], seed: int) -> Result:
    return next(result for result in results if result.run.seed == seed)


def _load_columns(comparison: Comparison, results: Sequence[Result]) -> list[tuple[Column, Mapping[str, float]]]:
    """The teacher, if there is one, and these runs, each with its mIoU of each image; all were scored before."""
    plan, dataset, device = comparison.plan, comparison.dataset, comparison.plan.args.device
    columns: list[tuple[Column, Mapping[str, float]]] = []
    if plan.teacher and comparison.teacher:
        column = teacher_column("Teacher", plan.teacher, dataset, device)
        columns.append((column, comparison.teacher.images))
    for result in results:
        title = "Baseline" if result.run.method == plan.baseline else f"Distilled ({result.run.method})"
        path = result.run.folder / f"{plan.report.checkpoint}.pth"
        columns.append((checkpoint_column(title, path, dataset, device, check=False), result.images))
    return columns


def _make_panel(
    dataset: SegmentationDataset,
    name: str,
    difference: float,
    columns: Sequence[tuple[Column, Mapping[str, float]]],
    tile: int,
) -> Panel:
    sample = dataset[dataset.ids.index(name)]
    masks = [("Truth", sample["mask"].numpy(), "")]
    for column, scores in columns:
        prediction = column.segmenter.mask(sample["image"], 0 if column.segmenter.input_size else tile).numpy()
        masks.append((column.title, prediction, f"mIoU {100 * scores[name]:.1f} %"))
    pictures = [_photo(sample["image"].permute(1, 2, 0).numpy(), name)]
    for title, mask, note in masks:
        alt = f"{title} of {name}{note and ', '}{note}: {_areas(mask, dataset.class_names)}"
        pictures.append(_mask(mask, dataset.palette, title, note, alt))
    return Panel(name, difference, pictures, {int(label) for _, mask, _ in masks for label in np.unique(mask)})


def _areas(mask: np.ndarray, class_names: Sequence[str]) -> str:
    """The classes of a mask with their shares of its area, the largest first; for the alternative text."""
    labels, counts = np.unique(mask[mask != VOID], return_counts=True)
    order = np.argsort(-counts)
    shares = [(class_names[labels[i]], round(100 * counts[i] / counts.sum())) for i in order]
    return ", ".join(f"{name} {share} %" for name, share in shares if share) or "no label"


def _fit(image: Image.Image, method: Image.Resampling) -> Image.Image:
    scale = min(1.0, SIDE / max(image.size))
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)


def _photo(photo: np.ndarray, name: str) -> Picture:
    image = _fit(Image.fromarray(photo), Image.Resampling.LANCZOS)
    return Picture("Input", "", _uri(image, "jpeg", quality=82, optimize=True), f"Input image {name}", image.size)


def _mask(mask: np.ndarray, palette: Palette, title: str, note: str, alt: str) -> Picture:
    # Indices, not colours: a tenth of the size.
    image = _fit(palette_image(mask.astype(np.uint8), palette), Image.Resampling.NEAREST)
    return Picture(title, note, _uri(image, "png", optimize=True), alt, image.size)


def _uri(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
