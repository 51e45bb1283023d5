"""Each line of train.txt for real: its models and losses take two steps on the demo data and are scored.

Sizes are tiny and weights random; what is shown is that every pair and preset goes together.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest
import torch

from basics.checkpoint import save_atomic
from dataset import build_dataset
from kd.losses import LOSSES, PRESETS
from train_kd import get_args_parser, main, make_recipe
from training.runlog import read_metrics
from zoo import create_model, model_file_dict

LINES = [
    line
    for line in (Path(__file__).resolve().parent.parent / "train.txt").read_text().splitlines()
    if line.startswith("python train_kd.py") and "--resume" not in line
]


@pytest.fixture(scope="module")
def untrained(demo_data, tmp_path_factory):
    """``untrained(name)`` -> checkpoint of a model with random weights for the demo classes; one is kept at a time."""
    dataset = build_dataset("demo", demo_data, "val")
    path = tmp_path_factory.mktemp("teachers") / "teacher.pth"

    def make(name: str) -> Path:
        torch.manual_seed(1)
        save_atomic(model_file_dict(name, create_model(name, dataset.num_classes), dataset), path)
        return path

    return make


def shrink(args, demo_data, output_dir):
    """The same pair and losses as ``args``, small enough for a test."""
    args.dataset, args.data_dir, args.train_split, args.val_split = "demo", demo_data, "train", "val"
    args.device, args.workers, args.amp, args.eval_batch_size = "cpu", 0, "off", 1
    args.crop_size, args.batch_size, args.freeze_crop_size = 64, 2, None
    args.freeze_batch_size, args.max_steps = None, 2
    args.student_weights, args.output_dir = "none", output_dir
    return args


@pytest.mark.parametrize("line", LINES, ids=lambda line: shlex.split(line)[-1])
def test_line_of_train_txt_trains_and_scores(line, demo_data, untrained, tmp_path):
    args = shrink(get_args_parser().parse_args(shlex.split(line)[2:]), demo_data, tmp_path)
    recipe = make_recipe(args)
    if recipe.needs_teacher:
        args.teacher_weights = str(untrained(args.teacher))
    assert main(args) == 0
    (row,) = read_metrics(tmp_path / args.name / "metrics.csv")
    assert row["step"] == 2
    assert {f"train_{name}" for name in recipe.weights} <= set(row)
    assert all(math.isfinite(row[f"train_{name}"]) for name in recipe.weights)
    assert 0 <= row["val_miou"] <= 1


def test_train_txt_names_every_preset_and_pair():
    parsed = [get_args_parser().parse_args(shlex.split(line)[2:]) for line in LINES]
    assert {args.preset for args in parsed} - {None} == set(PRESETS)
    pairs = {(args.teacher, args.student) for args in parsed if make_recipe(args).needs_teacher}
    assert {
        ("fcn_resnet50", "standard"),
        ("unet_vgg16", "fastlitessnet"),
        ("unet_resnet50", "fastlitessnet"),
        ("deeplabv3plus_resnet101", "deeplabv3plus_resnet18"),
        ("deeplabv3plus_resnet101", "deeplabv3plus_mobilenet_v2"),
        ("segformer_b4", "segformer_b0"),
    } <= pairs
    used = {name for args in parsed for name in make_recipe(args).weights}
    assert used == set(LOSSES)
