"""Look at what the networks see: Input | Ground truth | Prediction panels, and overlays at original size.

    python visualize.py checkpoints/RUN/best.pth --dataset voc --num 8
    python visualize.py checkpoints/BASELINE/best.pth checkpoints/DISTILLED/best.pth --worst --best --num 5
    python visualize.py checkpoints/RUN/best.pth --ids 2007_000033 2007_000129 --overlays
    python visualize.py checkpoints/RUN/best.pth --teacher fcn_resnet50

One prediction column a checkpoint, with the image's own mIoU above it (over the classes in its truth or
its prediction, void left out). --best and --worst rank the whole split by the first checkpoint.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from basics.batch import normalize
from basics.device import add_device_argument, pick_device
from basics.errors import UserError, run_cli
from basics.files import replacing
from dataset import SegmentationDataset, add_data_arguments, build_dataset
from deploy.segmenter import load_segmenter
from scoring.metrics import image_miou
from scoring.protocol import check_classes
from segdata.drawing import PanelRow, background_classes, overlay, panel
from zoo import load_teacher, teacher_name


@dataclass(frozen=True)
class Column:
    """A network, the device it runs on, and the title its predictions carry."""

    title: str
    model: nn.Module
    device: torch.device


@torch.inference_mode()
def predict_mask(column: Column, image: torch.Tensor) -> torch.Tensor:
    """uint8 ``image`` (3, H, W) -> the most likely class of each pixel, int64 (H, W), on the CPU."""
    logits = column.model(normalize(image[None].to(column.device)))  # (1, C, H, W)
    return logits.max(1)[1][0].cpu()  # the indices of argmax(1), several times faster on the CPU


def rank_images(column: Column, dataset: SegmentationDataset) -> list[int]:
    """Indices of the images that have labelled pixels, the lowest per-image mIoU first."""
    scores = {}
    for index in tqdm(range(len(dataset)), desc=f"rank {dataset.split}", unit="img", leave=False, disable=None):
        sample = dataset[index]
        prediction = predict_mask(column, sample["image"])
        scores[index] = image_miou(prediction, sample["mask"], dataset.num_classes)
    return sorted((index for index, score in scores.items() if not math.isnan(score)), key=scores.__getitem__)


def choose_images(args: argparse.Namespace, dataset: SegmentationDataset, column: Column) -> dict[str, list[int]]:
    """Name of each sheet -> the indices of its images, as the command line asks for them."""
    if args.ids:
        return {"images": find_ids(dataset, args.ids)}
    if args.best or args.worst:
        if not dataset.has_masks:
            raise UserError(f"split {dataset.split!r} has no masks to rank images by: leave --best and --worst out")
        ranked = rank_images(column, dataset)
        chosen = {}
        if args.best:
            chosen["best"] = ranked[::-1][: args.num]
        if args.worst:
            chosen["worst"] = ranked[: args.num]
        return chosen
    count = min(args.num, len(dataset))
    # Spread over the split: neighbours in a list are often frames or objects alike.
    return {"images": [index * len(dataset) // count for index in range(count)]}


def find_ids(dataset: SegmentationDataset, ids: Sequence[str]) -> list[int]:
    """Indices of the images called ``ids``; an unknown one is a `UserError`."""
    index_of = {name: index for index, name in enumerate(dataset.ids)}
    for name in ids:
        if name not in index_of:
            close = difflib.get_close_matches(name, index_of, n=3) or dataset.ids[:3]
            raise UserError(f"no image {name!r} in {dataset.name}/{dataset.split}; there are {', '.join(close)}, ...")
    return [index_of[name] for name in ids]


def column_titles(paths: Sequence[Path]) -> list[str]:
    """The run's name for each checkpoint; its file's, and those of more folders, where that says too little."""
    full = list(dict.fromkeys(path.resolve() for path in paths))
    stems = [path.with_suffix("") for path in full]
    short = {path: stem if stems.count(stem) == 1 else path for path, stem in zip(full, stems, strict=True)}
    names = [short[path.resolve()].parts[1:] for path in paths]  # without the root
    tails = {name: [name[-2], *("/".join(name[-depth:]) for depth in range(2, len(name) + 1))] for name in names}

    def title(name: tuple[str, ...]) -> str:
        """The shortest of its tails that is no other's; the run's name alone stands for its best.pth."""
        taken = {tail for other in tails if other != name for tail in tails[other]}
        alone = name[-1] == "best" and [other[-2] for other in names].count(name[-2]) == 1
        own = tails[name] if alone else tails[name][1:]
        return next((tail for tail in own if tail not in taken), own[-1])

    return [title(name) for name in names]


def load_columns(args: argparse.Namespace, dataset: SegmentationDataset) -> list[Column]:
    """The checkpoints' networks in the order given; the teacher, if any, comes last here."""
    columns, device = [], pick_device(args.device)
    for path, title in zip(args.checkpoints, column_titles(args.checkpoints), strict=True):
        segmenter = load_segmenter(path, args.device)
        check_classes(str(path), segmenter.class_names, dataset)
        columns.append(Column(title, segmenter.model, segmenter.device))
    if args.teacher:
        teacher = load_teacher(args.teacher, dataset.num_classes, args.teacher_weights, dataset.class_names)
        name = teacher_name(args.teacher, args.teacher_weights)
        columns.append(Column(f"teacher: {name}", teacher.to(device).eval(), device))
    return columns


def make_row(dataset: SegmentationDataset, index: int, columns: Sequence[Column]) -> PanelRow:
    """One image of the split with its truth (where there is one) and every column's prediction."""
    sample = dataset[index]
    masks, notes = [], []
    if dataset.has_masks:
        masks.append(sample["mask"].numpy())
        notes.append("")
    for column in columns:
        prediction = predict_mask(column, sample["image"])
        score = image_miou(prediction, sample["mask"], dataset.num_classes)
        masks.append(prediction.numpy())
        notes.append("" if math.isnan(score) else f"mIoU {100 * score:.1f} %")
    return PanelRow(sample["id"], sample["image"].permute(1, 2, 0).numpy(), masks, notes)


def write_overlays(row: PanelRow, titles: Sequence[str], dataset: SegmentationDataset, folder: Path) -> int:
    """Write the image's masks over the image, at its own size, as FOLDER/ID_TITLE.png; returns how many."""
    names = [f"{row.name}_{title}".replace("/", "_").replace(":", "").replace(" ", "_") for title in titles]
    names = [name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names, start=1)]
    for mask, name in zip(row.masks, names, strict=True):
        painted = overlay(row.image, mask, dataset.palette, clear=background_classes(dataset.class_names))
        with replacing(folder / f"{name}.png") as temporary:
            Image.fromarray(painted).save(temporary)
    return len(row.masks)


def write_sheets(
    name: str, rows: Sequence[PanelRow], titles: Sequence[str], dataset: SegmentationDataset, args: argparse.Namespace
) -> list[Path]:
    """Write ``rows`` as FOLDER/NAME.png, or NAME_1.png, NAME_2.png, ... of --rows images each; returns the paths."""
    pages = [rows[start : start + args.rows] for start in range(0, len(rows), args.rows)]
    paths = []
    for number, page in enumerate(pages, start=1):
        paths.append(args.output_dir / (f"{name}.png" if len(pages) == 1 else f"{name}_{number}.png"))
        with replacing(paths[-1]) as temporary:
            panel(page, ["Input", *titles], dataset.class_names, dataset.palette, temporary)
    return paths


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help=".pth, .onnx or .pt2 files")
    add_data_arguments(parser, train=False)
    pick = parser.add_argument_group("which images (spread over the split by default)")
    pick.add_argument("--ids", nargs="+", metavar="ID", help="these images")
    pick.add_argument("--best", action="store_true", help="those the first checkpoint does best")
    pick.add_argument("--worst", action="store_true", help="those the first checkpoint does worst")
    pick.add_argument("--num", type=int, default=6, help="how many (default: 6)")
    parser.add_argument("--teacher", metavar="NAME", help="add the column of a teacher, say fcn_resnet50")
    parser.add_argument("--teacher-weights", default="default", metavar="default|PATH")
    parser.add_argument("--overlays", action="store_true", help="also write overlays at original size")
    parser.add_argument("--rows", type=int, default=6, help="images a sheet (default: 6)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="default: pictures/ beside the first checkpoint")
    add_device_argument(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.num < 1 or args.rows < 1:
        raise UserError("--num and --rows must be at least 1")
    if args.teacher_weights != "default" and not args.teacher:
        raise UserError("--teacher-weights without --teacher: name the teacher's network, too")
    if args.ids and (args.best or args.worst):
        raise UserError("--ids names the images, --best and --worst rank them: give one or the other")
    dataset = build_dataset(args.dataset, args.data_dir, args.val_split)
    columns = load_columns(args, dataset)
    chosen = choose_images(args, dataset, columns[0])
    if args.teacher:  # ranked by a student, shown before the students
        columns = [columns[-1], *columns[:-1]]
    args.output_dir = args.output_dir or args.checkpoints[0].parent / "pictures"
    titles = [*(["Ground truth"] if dataset.has_masks else []), *(column.title for column in columns)]
    for name, indices in chosen.items():
        bar = tqdm(indices, desc=name, unit="img", leave=False, disable=None)
        rows = [make_row(dataset, index, columns) for index in bar]
        paths = write_sheets(name, rows, titles, dataset, args)
        print("\n".join(map(str, paths)))
        if args.overlays:
            folder = args.output_dir / "overlays"
            count = sum(write_overlays(row, titles, dataset, folder) for row in rows)
            print(f"{folder}/: {count} overlays of {len(rows)} images")


if __name__ == "__main__":
    run_cli(main, get_args_parser)
