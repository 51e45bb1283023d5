"""Files of an earlier commit still work: a checkpoint, a run that stopped, a teacher cache, an ONNX file.

They lie in `tests/golden/`, and `tests/golden/make.py` tells how that commit made them, with the numbers expected here.
A cache of decoded images is not among them: it knows its images by their times of change, which git does not keep.
"""

from __future__ import annotations

import csv
import shutil

import pytest
import torch

import zoo
from basics.checkpoint import load_file
from dataset import build_dataset
from deploy.formats import load_exported
from deploy.segmenter import load_segmenter
from kd.distiller import Recipe
from kd.teacher_cache import open_teacher_cache
from tests.conftest import ROOT
from tests.golden.make import CLASSES, FOLDER, MODELS, STEPS_BEFORE, fixed_crop, fixed_images, training_arguments
from train_kd import get_args_parser, main

TIMES = {"images_per_s", "epoch_s", "elapsed_s"}
# On the CPU they were made on every bit agrees. Others add in another order and round a resized pixel the other way:
# 2e-5 between AVX-512 and SSE4.1. A part of the state that is not restored changes more than 1e-4.
CLOSE = {"rtol": 0, "atol": 5e-5}


@pytest.fixture(autouse=True)
def golden(tmp_path, monkeypatch):
    """A copy of the files under the relative names they were made with, and their networks in the zoo."""
    shutil.copytree(ROOT / FOLDER, tmp_path / FOLDER)
    monkeypatch.chdir(tmp_path)
    for name, spec in MODELS.items():
        monkeypatch.setitem(zoo.MODELS, name, spec)
    return tmp_path / FOLDER


@pytest.fixture(scope="module")
def expected():
    return load_file(ROOT / FOLDER / "expected.pth")


def metric_rows(text: str) -> list[dict[str, float]]:
    """Without what a run did not know when it began."""
    return [
        {key: float(value) for key, value in row.items() if key not in TIMES and value} for row in csv.DictReader(text)
    ]


def test_checkpoint(expected):
    model, checkpoint = zoo.load_checkpoint_model(FOLDER / "run" / "last.pth")
    assert checkpoint["class_names"] == list(CLASSES) and checkpoint["model"] == "golden"
    with torch.no_grad():
        logits = model(fixed_images())[..., ::6, ::6]
    torch.testing.assert_close(logits, expected["logits"], **CLOSE)


def test_onnx_file(expected):
    pytest.importorskip("onnxruntime")
    model = load_exported(FOLDER / "student.onnx")
    assert model.card.class_names == list(CLASSES) and model.card.model == "golden"
    torch.testing.assert_close(model(fixed_images())[..., ::6, ::6], expected["logits"], **CLOSE)


@pytest.mark.parametrize("name", ["qat.pth", "qat.onnx"])
def test_int8(name):
    """A checkpoint with ranges, and the file with unsigned weights that was made of it."""
    pytest.importorskip("torchao" if name == "qat.pth" else "onnxruntime")
    model = load_segmenter(FOLDER / name, "cpu").model
    expected = load_file(FOLDER / "expected_int8.pth")["logits"]
    with torch.no_grad():
        torch.testing.assert_close(model(fixed_images())[..., ::6, ::6], expected, **CLOSE)


def test_teacher_cache(expected):
    """It is found and served without a look at the teacher; a projected feature map among its content."""
    data = build_dataset("folder", FOLDER / "data", "train")
    teacher = zoo.load_any_teacher("golden_teacher", str(FOLDER / "teacher.pth"))
    recipe = Recipe({"ce": 1.0, "kl": 1.0, "pixelwise": 1.0})
    cached = open_teacher_cache(FOLDER / "teacher_cache", teacher, "golden_teacher", data, recipe=recipe, build=False)
    assert cached is not None
    told = cached(fixed_crop())
    torch.testing.assert_close(told.logits, expected["told_logits"], **CLOSE)
    torch.testing.assert_close(told.taps["decoder"], expected["told_decoder"], **CLOSE)


def test_resumed_run(golden, expected, capsys):
    """From the middle of its second epoch on, from cache and state of then, to the weights and rows of then."""
    before = load_file(golden / "run" / "last.pth")
    assert before["training"]["progress"]["step"] == STEPS_BEFORE
    assert main(get_args_parser().parse_args(training_arguments(FOLDER, "--resume", "auto"))) == 0
    assert "GB to write" not in capsys.readouterr().out  # no cache was built
    after = load_file(golden / "run" / "last.pth")
    assert after.keys() >= before.keys() and after["training"].keys() >= before["training"].keys()
    assert any((after["state_dict"][name] - value).abs().max() > 1e-4 for name, value in before["state_dict"].items())
    torch.testing.assert_close(after["state_dict"], expected["state_dict"], **CLOSE)
    with (golden / "run" / "metrics.csv").open() as file:
        rows = metric_rows(file)
    assert len(rows) == 2
    for row, was in zip(rows, metric_rows(expected["metrics"].splitlines()), strict=True):
        assert {key: row[key] for key in was} == pytest.approx(was, abs=1e-5)
