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
from kd.distiller import DistilledStudent, Distiller, LiveTeacher
from kd.losses import LOSSES, PRESETS, Recipe, loss_name
from tests.tiny import tiny_batch
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


PAIRS = (
    ("fcn_resnet50", "standard"),
    ("unet_vgg16", "fastlitessnet"),
    ("unet_resnet50", "fastlitessnet"),
    ("deeplabv3plus_resnet101", "deeplabv3plus_resnet18"),
    ("deeplabv3plus_resnet101", "deeplabv3plus_mobilenet_v2"),
    ("segformer_b4", "segformer_b0"),
)


def test_train_txt_names_every_preset_and_pair():
    parsed = [get_args_parser().parse_args(shlex.split(line)[2:]) for line in LINES]
    assert {args.preset for args in parsed} - {None} == set(PRESETS)
    pairs = {(args.teacher, args.student) for args in parsed if make_recipe(args).needs_teacher}
    assert set(PAIRS) <= pairs
    used = {loss_name(term) for args in parsed for term in make_recipe(args).weights}
    assert used == set(LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "student"), PAIRS, ids="-".join)
def test_every_loss_takes_a_step_with_every_pair(teacher, student):
    """One step of every loss at once, the teacher's map of a name on the student's of that name; all of it finite."""
    torch.manual_seed(0)
    network = create_model(student, 5, "none").train()
    recipe = Recipe({name: 1.0 for name in LOSSES} | {"cosine@decoder": 1.0, "at@mid+high": 1.0}, temperature=2.0)
    guide = LiveTeacher(create_model(teacher, 5, "none"))
    model = DistilledStudent(network, recipe, guide).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    distiller = Distiller(model, network, recipe, guide)
    losses = distiller.losses(tiny_batch(size=64, classes=5))
    assert list(losses) == list(recipe.weights)
    for name, loss in losses.items():
        assert loss.isfinite() and loss > 0, name
    distiller.total(losses).backward()
    optimizer.step()
    assert all(value.isfinite().all() for value in model.state_dict().values())
