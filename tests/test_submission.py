"""The archive for VOC's evaluation server: its names, its palette images, and what stands in them."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import zoo
from basics.batch import normalize
from basics.checkpoint import save_atomic
from basics.errors import UserError
from datalayouts.published import VOC_CLASSES
from dataset import build_dataset
from deploy.segmenter import load_segmenter
from evaluate import get_args_parser, main
from scoring.submission import write_submission
from tests.tiny import TinyModel
from zoo import model_file_dict

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
IDS = ["2008_000001", "2011_000002"]


@pytest.fixture
def voc_test(tmp_path, monkeypatch):
    """A VOC folder with a test split alone, and a checkpoint of a tiny network for it."""
    monkeypatch.setitem(zoo.MODELS, "tiny", zoo.ModelSpec(TinyModel, None, "random"))
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in zip(IDS, ((61, 47, 3), (50, 83, 3)), strict=True):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("\n".join(IDS) + "\n")
    torch.manual_seed(0)
    dataset = build_dataset("voc", tmp_path, "test")
    model = TinyModel(len(VOC_CLASSES)).eval()
    save_atomic(model_file_dict("tiny", model, dataset), tmp_path / "best.pth")
    return tmp_path, model, dataset


def submit(folder, name, *more):
    argv = [folder / "best.pth", "--data-dir", folder, "--submission", folder / name, "--device", "cpu", *more]
    main(get_args_parser().parse_args(list(map(str, argv))))
    return folder / name


def test_masks_are_the_networks_decisions_at_original_size(voc_test):
    folder, model, dataset = voc_test
    with tarfile.open(submit(folder, "out.tgz"), "r:gz") as archive:
        assert archive.getnames() == [f"{FOLDER}/{name}.png" for name in IDS]
        for number, member in enumerate(archive):
            image = Image.open(io.BytesIO(archive.extractfile(member).read()))
            assert image.mode == "P"
            assert image.getpalette()[3:6] == [128, 0, 0]  # aeroplane
            pixels = normalize(dataset[number]["image"][None])
            height, width = pixels.shape[-2:]
            with torch.no_grad():
                padded = F.pad(pixels, (0, -width % 16, 0, -height % 16))
                logits = F.interpolate(model.forward_taps(padded)[0], scale_factor=4, mode="bilinear")
            expected = logits[0].argmax(0)[:height, :width]
            assert np.array_equal(np.asarray(image), expected)
            assert len(np.unique(expected)) > 1


def test_masks_of_another_working_size(voc_test):
    folder, _, dataset = voc_test
    expected = load_segmenter(folder / "best.pth", "cpu").at(32)
    with tarfile.open(submit(folder, "out.tgz", "--input-size", 32), "r:gz") as archive:
        for number, member in enumerate(archive):
            mask = np.asarray(Image.open(io.BytesIO(archive.extractfile(member).read())))
            assert np.array_equal(mask, expected.mask(dataset[number]["image"]).numpy())


@pytest.mark.parametrize("more", [("--input-size", 32, 48), ("--json", "a.json"), ("--agreement",), ("--amp", "bf16")])
def test_what_means_nothing_without_scores_is_refused(voc_test, more):
    folder, _, _ = voc_test
    with pytest.raises(UserError, match="--submission"):
        submit(folder, "out.tgz", *more)
    assert not (folder / "out.tgz").exists()


def test_mistakes_write_nothing(voc_test):
    folder, _, _ = voc_test
    with pytest.raises(UserError, match=r"must end in \.tgz"):
        submit(folder, "out.zip")
    (folder / "VOCdevkit/VOC2012/JPEGImages" / f"{IDS[1]}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=IDS[1]):
        submit(folder, "out.tgz")
    assert not list(folder.glob("*out*"))


def test_other_classes_are_refused(demo_data, demo_checkpoint, tmp_path):
    root = Path(shutil.copytree(demo_data, tmp_path / "data"))
    for lists in root.glob("demo/ImageSets/Segmentation"):
        shutil.copy(lists / "val.txt", lists / "test.txt")
    argv = [
        demo_checkpoint("compact"),
        "--dataset",
        "demo",
        "--data-dir",
        root,
        "--submission",
        tmp_path / "a.tgz",
    ]
    with pytest.raises(UserError, match="for VOC's 21 classes: demo has others"):
        main(get_args_parser().parse_args(list(map(str, argv))))
    assert not (tmp_path / "a.tgz").exists()
    with pytest.raises(UserError, match="--input-size must be at least 32"):
        main(get_args_parser().parse_args([*map(str, argv), "--input-size", "8"]))
    with pytest.raises(UserError, match="--eval-tile"):
        main(get_args_parser().parse_args([*map(str, argv), "--eval-tile", "8"]))


def test_a_failure_half_way_leaves_no_file(tmp_path):
    def masks():
        yield "a", np.zeros((2, 2), np.uint8)
        raise RuntimeError("the network broke")

    with pytest.raises(RuntimeError):
        write_submission(tmp_path / "out.tgz", masks(), [[0, 0, 0]])
    assert not list(tmp_path.iterdir())
