"""How the files beside this one were made: by commit 4f1adb8, the last before the code moved into its rooms.

    git worktree add OLD 4f1adb8
    PYTHONPATH=OLD python tests/golden/make.py         # in the root of a checkout; takes seconds

They stand for the files that people have, and are not to be made anew when a test of theirs fails. A format that
changes gets files of its own.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import zoo

FOLDER = Path("tests/golden")  # relative: last.pth keeps the paths it was given
CLASSES = ("background", "square", "stripe")
STEPS_BEFORE = 3  # of the four steps of the run: the part that ended in an epoch's middle


class GoldenNet(zoo.SegmentationModel):
    """A network that stays as it is; nothing in it depends on random numbers or has a gradient of pure rounding."""

    stride, logit_stride = 16, 4

    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.tap_channels = {"low": 4, "mid": 4, "high": 6, "decoder": width}
        self.tap_strides = {"low": 4, "mid": 8, "high": 16, "decoder": 4}
        self.backbone = nn.ModuleDict(
            {
                "low": nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
                "mid": nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
                "high": nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU()),
            }
        )
        self.decoder = nn.Conv2d(4 + 6, width, 1)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        low = self.backbone["low"](images)
        mid = self.backbone["mid"](low)
        high = self.backbone["high"](mid)
        up = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
        decoder = self.decoder(torch.cat([low, up], dim=1))
        return self.classifier(decoder.relu()), {"low": low, "mid": mid, "high": high, "decoder": decoder}


# 65 channels: more than the 64 that a teacher cache keeps, so that it needs a projection.
MODELS = {
    "golden": zoo.ModelSpec(GoldenNet, None, "tests"),
    "golden_teacher": zoo.ModelSpec(partial(GoldenNet, width=65), None, "tests"),
}


def training_arguments(output: Path | str, *more: object) -> list[str]:
    """A distilled run of two epochs of two steps, taught from the cache."""
    return [
        "--dataset", "folder", "--data-dir", f"{FOLDER}/data", "--student", "golden", "--student-weights", "none",
        "--teacher", "golden_teacher", "--teacher-weights", f"{FOLDER}/teacher.pth",
        "--cache-teacher", "--cache-dir", f"{FOLDER}/teacher_cache", "--alpha", "0.5", "--loss", "pixelwise=0.2",
        "--crop-size", "32", "--batch-size", "2", "--epochs", "2", "--warmup-epochs", "0", "--workers", "0",
        "--device", "cpu", "--output-dir", str(output), "--name", "run", *map(str, more),
    ]  # fmt: skip


def fixed_images(height: int = 40, width: int = 56) -> torch.Tensor:
    """Normalised images (1, 3, H, W) by a formula, the same wherever it is computed."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    return torch.stack([(x * (k + 3) + y * (5 - k)) % 17 / 8 - 1 for k in range(3)])[None]


def fixed_crop() -> dict[str, torch.Tensor]:
    """A prepared batch of one enlarged and mirrored crop of the second image, as a cached teacher reads it."""
    return {
        "image": torch.zeros(1, 3, 32, 32),
        "index": torch.tensor([1]),
        "box": torch.tensor([[6.0, 3.0, 34.0, 31.0]]),
        "flip": torch.tensor([True]),
    }


def write_data(root: Path) -> None:
    """Four training and two validation pictures of squares and stripes, as PNGs, in the layout of `folder`."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split, count in (("train", 4), ("val", 2)):
        names = [f"{split}_{number}" for number in range(count)]
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            height, width = (int(side) for side in rng.integers(34, 49, 2))
            mask = np.zeros((height, width), np.uint8)
            top, left = (int(place) for place in rng.integers(2, 18, 2))
            mask[:, left + 8 : left + 14] = 2
            mask[top : top + 12, left : left + 12] = 1
            mask[0] = 255
            y, x = np.mgrid[:height, :width]
            image = np.stack([3 * x + mask * 40, 3 * y + mask * 25, 200 - 2 * x - mask * 60], axis=2).clip(0, 255)
            Image.fromarray(image.astype(np.uint8)).save(root / "JPEGImages" / f"{name}.png")
            Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")


def run(script: str, arguments: Sequence[object]) -> None:
    module = importlib.import_module(script)
    module.main(module.get_args_parser().parse_args([str(argument) for argument in arguments]))


def main() -> None:
    from dataset import build_dataset
    from kd.checkpoint import load_file, save_atomic
    from kd.distiller import Recipe
    from kd.teacher_cache import open_teacher_cache

    zoo.MODELS |= MODELS
    for name in ("data", "run", "whole", "teacher_cache"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    write_data(FOLDER / "data")
    data = build_dataset("folder", FOLDER / "data", "train")
    torch.manual_seed(0)
    teacher = zoo.build_model("golden_teacher", len(CLASSES))
    with torch.no_grad():
        teacher.classifier.weight.mul_(5)  # softmaxes that say something
        for _ in range(20):
            teacher(torch.randn(4, 3, 64, 64))  # statistics for BatchNorm
    save_atomic(zoo.model_file_dict("golden_teacher", teacher, data), FOLDER / "teacher.pth")

    run("train_kd", training_arguments(FOLDER, "--max-steps", STEPS_BEFORE))
    shutil.copytree(FOLDER / "run", FOLDER / "whole" / "run")
    run("train_kd", training_arguments(FOLDER / "whole", "--resume", "auto"))
    run("export", [FOLDER / "run" / "last.pth", "--output", FOLDER / "student.onnx", "--rounds", 0])

    teacher = zoo.load_any_teacher("golden_teacher", str(FOLDER / "teacher.pth"))
    recipe = Recipe({"ce": 1.0, "kl": 0.5, "pixelwise": 0.2})
    cached = open_teacher_cache(FOLDER / "teacher_cache", teacher, "golden_teacher", data, recipe=recipe, build=False)
    told = cached(fixed_crop())
    student, _ = zoo.load_checkpoint_model(FOLDER / "run" / "last.pth")
    whole = load_file(FOLDER / "whole" / "run" / "last.pth")
    with torch.no_grad():
        logits = student(fixed_images())[..., ::6, ::6].clone()
    expected = {
        "logits": logits,
        "told_logits": told.logits,
        "told_decoder": told.taps["decoder"],
        "state_dict": whole["state_dict"],
        "metrics": (FOLDER / "whole" / "run" / "metrics.csv").read_text(),
    }
    save_atomic(expected, FOLDER / "expected.pth")
    shutil.rmtree(FOLDER / "whole")
    for name in ("best.pth", "config.json", "curves.png", "report.txt", ".lock"):  # not needed to go on
        (FOLDER / "run" / name).unlink()
    for lock in (FOLDER / "teacher_cache").glob("*/lock"):
        lock.unlink()


if __name__ == "__main__":
    main()
