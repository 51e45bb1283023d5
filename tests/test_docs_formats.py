"""The snippets of docs/without_this_project.md: each is run as it stands there, and finds what the checkpoint does."""

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from basics.checkpoint import save_atomic
from deploy.export_checks import smooth_pictures
from networks.working_size import WorkingSize
from segdata.palettes import palette_image
from tests.small import CLASS_NAMES, PALETTE, in_zoo, small_checkpoint
from tests.test_export import by_hand, run_export

PAGE = Path(__file__).resolve().parent.parent / "docs" / "without_this_project.md"
SIDE = 128  # the working size
SNIPPETS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the snippets run: the files they name."""
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("use")
    save_atomic(small_checkpoint(), path / "best.pth")
    picture = smooth_pictures(1, 256, 384)[0].permute(1, 2, 0).numpy()
    lying = Image.Exif()
    lying[274] = 6  # shown turned clockwise by 90 degrees, as phones that were held upright write it
    Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90).save(path / "photo.jpg", exif=lying)
    with in_zoo():
        run_export(path / "best.pth", path / "student.onnx")
        run_export(path / "best.pth", path / "raw.onnx", "--uint8", "--argmax")
        run_export(path / "best.pth", path / "fixed.onnx", "--size", "256x384")
        run_export(path / "best.pth", path / "student.pt2")
        for package, file in (("litert_torch", "fixed.tflite"), ("executorch", "fixed.pte")):
            if importlib.util.find_spec(package):
                run_export(path / "best.pth", path / file, "--size", "256x256")
        save_atomic(small_checkpoint() | {"input_size": SIDE}, path / "sized.pth")
        run_export(path / "sized.pth", path / "sized.onnx")
        run_export(path / "sized.pth", path / "sized_fixed.onnx", "--size", f"{SIDE}x{SIDE}")
        run_export(path / "sized.pth", path / "sized.pt2")
    yield path


@pytest.fixture(scope="module")
def truth(folder, network):
    """The checkpoint's classes of photo.jpg, the same at a working size, and its logits of an image of zeros."""
    picture = np.rot90(np.asarray(Image.open(folder / "photo.jpg").convert("RGB")), -1).transpose(2, 0, 1)
    images = by_hand(torch.from_numpy(picture.copy())[None])
    with torch.no_grad():
        mask, sized = (run(images).argmax(1)[0].numpy() for run in (network, WorkingSize(network, SIDE)))
        return mask, sized, network(torch.zeros(1, 3, 256, 256)).numpy()


def run(name, folder, **values):
    """The variables that a snippet, which may use ``values``, leaves."""
    before = Path.cwd()
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


@pytest.mark.parametrize(
    ("name", "module", "least"),
    # Pillow rounds the small picture to whole levels.
    [("sized", "onnxruntime", 0.99), ("sized_pt2", "torch", 0.9999)],
)
def test_masks_at_a_working_size(folder, truth, name, module, least):
    pytest.importorskip(module)
    mask = np.asarray(run(name, folder)["mask"])
    assert mask.shape == (256, 384) and len(np.unique(mask)) > 1
    assert (mask == truth[1]).mean() > least


def test_opencv_at_a_working_size(folder, truth, monkeypatch):
    """The same lines with the square of the working size; the picture lies in it in proportion."""
    pytest.importorskip("cv2")
    lines = SNIPPETS["opencv"].replace("fixed.onnx", "sized_fixed.onnx").replace("(256, 384)", f"({SIDE}, {SIDE})")
    monkeypatch.setitem(SNIPPETS, "opencv", lines)
    mask = run("opencv", folder)["mask"]
    assert mask.shape == (256, 384) and (mask == truth[1]).mean() > 0.95


def test_a_picture_in_a_square(folder):
    """Of a file of one size, run by ONNX Runtime: cut out is what the picture alone gives, but for its edges."""
    onnxruntime = pytest.importorskip("onnxruntime")
    before = run("sized", folder)
    session = onnxruntime.InferenceSession(str(folder / "sized_fixed.onnx"))
    values = run("sized_square", folder, **before, network=lambda images: session.run(None, {"images": images}))
    (alone,) = before["session"].run(None, {"images": before["images"]})
    assert values["logits"].shape == alone.shape == (1, 3, 85, 128)
    assert (values["logits"].argmax(1) == alone.argmax(1)).mean() > 0.95


@pytest.mark.parametrize(
    ("name", "module"),
    [("openvino", "openvino"), ("pt2", "torch"), ("litert", "litert_torch"), ("executorch", "executorch")],
)
def test_logits(folder, truth, name, module):
    pytest.importorskip(module)
    values = run(name, folder)
    np.testing.assert_allclose(np.asarray(values["logits"]), truth[2], atol=1e-4)
    assert values.get("names", CLASS_NAMES) == CLASS_NAMES


def test_a_mask_is_read(folder):
    classes = np.array([[0, 1], [2, 1]], np.uint8)
    palette_image(classes, PALETTE).save(folder / "mask.png")
    np.testing.assert_array_equal(run("mask", folder)["classes"], classes)


def test_every_snippet_is_run():
    plain = {"onnxruntime", "raw", "opencv", "openvino", "pt2", "litert", "executorch"}
    sized = {f"sized{name}" for name in ("", "_square", "_pt2")}
    assert set(SNIPPETS) == plain | sized | {"mask"}
