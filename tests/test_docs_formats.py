"""The snippets of docs/without_this_project.md: each is run as it stands there, and finds what the checkpoint does."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from basics.checkpoint import save_atomic
from segdata.pictures import palette_image
from tests.small import CLASS_NAMES, PALETTE, SmallStudent, in_zoo, small_checkpoint
from tests.test_export import by_hand, raw_pictures, run_export

PAGE = Path(__file__).resolve().parent.parent / "docs" / "without_this_project.md"
SNIPPETS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the snippets run: the files they name."""
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("use")
    save_atomic(small_checkpoint(), path / "best.pth")
    picture = raw_pictures(1, 256, 384)[0].permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(path / "photo.jpg")
    with in_zoo():
        run_export(path / "best.pth", path / "student.onnx")
        run_export(path / "best.pth", path / "raw.onnx", "--uint8", "--argmax")
        run_export(path / "best.pth", path / "fixed.onnx", "--size", "256x384")
        run_export(path / "best.pth", path / "student.pt2")
    yield path


@pytest.fixture(scope="module")
def truth(folder):
    """The checkpoint's classes of photo.jpg, and its logits of an image of zeros."""
    model = SmallStudent(3)
    model.load_state_dict(small_checkpoint()["state_dict"])
    picture = np.asarray(Image.open(folder / "photo.jpg").convert("RGB")).transpose(2, 0, 1)
    with torch.no_grad():
        mask = model.eval()(by_hand(torch.from_numpy(picture.copy())[None])).argmax(1)[0].numpy()
        return mask, model(torch.zeros(1, 3, 256, 256)).numpy()


def run(name, folder):
    """The variables that a snippet leaves."""
    before, values = Path.cwd(), {}
    os.chdir(folder)
    try:
        exec(SNIPPETS[name], values)
    finally:
        os.chdir(before)
    return values


@pytest.mark.parametrize(
    ("name", "module"), [("onnxruntime", "onnxruntime"), ("raw", "onnxruntime"), ("opencv", "cv2")]
)
def test_masks(folder, truth, name, module):
    pytest.importorskip(module)
    mask = run(name, folder)["mask"]
    assert mask.dtype == np.uint8
    assert (mask == truth[0]).mean() > 0.999
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize(("name", "module"), [("openvino", "openvino"), ("pt2", "torch")])
def test_logits(folder, truth, name, module):
    pytest.importorskip(module)
    values = run(name, folder)
    np.testing.assert_allclose(np.asarray(values["logits"]), truth[1], atol=1e-4)
    assert values.get("names", CLASS_NAMES) == CLASS_NAMES


def test_a_mask_is_read(folder):
    classes = np.array([[0, 1], [2, 1]], np.uint8)
    palette_image(classes, PALETTE).save(folder / "mask.png")
    np.testing.assert_array_equal(run("mask", folder)["classes"], classes)


def test_every_snippet_is_run():
    assert set(SNIPPETS) == {"onnxruntime", "raw", "opencv", "openvino", "pt2", "mask"}
