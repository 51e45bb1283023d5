"""Pictures of real predictions on the demo data, run as a user runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import visualize
from basics.batch import normalize
from basics.checkpoint import load_file, save_atomic
from basics.errors import UserError
from dataset import build_dataset
from deploy.columns import Column, column_titles, find_ids, make_row, rank_images, write_overlays
from deploy.segmenter import Segmenter, load_segmenter
from segdata.drawing import PanelRow
from tests.conftest import assert_one_line_error
from zoo import load_checkpoint_model


class Oracle(nn.Module):
    """Predicts class ``wrong`` everywhere, but for the images it knows: there, their mask (void as class 0)."""

    def __init__(self, dataset, known: list[int], wrong: int):
        super().__init__()
        self.classes, self.wrong = dataset.num_classes, wrong
        samples = [dataset[index] for index in known]
        self.known = [(normalize(sample["image"][None]), sample["mask"].long() % 255) for sample in samples]

    def forward(self, images):
        labels = torch.full((1, *images.shape[-2:]), self.wrong)
        for image, mask in self.known:
            if image.shape == images.shape and torch.equal(image, images):
                labels = mask[None]
        return nn.functional.one_hot(labels, self.classes).permute(0, 3, 1, 2).float()


def column(model) -> Column:
    return Column("x", Segmenter(model, "oracle", [], [], 0, 0, torch.device("cpu")))


def parse(*args):
    return visualize.get_args_parser().parse_args(["student.pth", *map(str, args)])


@pytest.fixture(scope="module")
def dataset(demo_data):
    return build_dataset("demo", demo_data, "val")


def test_best_and_worst_by_an_oracle(dataset):
    """The one image the oracle knows scores 1: first of the best, absent from the worst."""
    oracle = column(Oracle(dataset, known=[3], wrong=1))
    chosen = visualize.choose_images(parse("--best", "--worst", "--num", 2), dataset, oracle)
    assert chosen["best"][0] == 3 and len(chosen["best"]) == 2
    assert 3 not in chosen["worst"] and len(chosen["worst"]) == 2
    ranked = rank_images(oracle, dataset)
    assert sorted(ranked) == list(range(len(dataset)))
    assert chosen["worst"] == ranked[:2] and chosen["best"] == ranked[::-1][:2]
    # Predicting one class everywhere: IoU of that class is its share of the labelled pixels, of the rest 0.
    scores = []
    for index in ranked[:-1]:
        mask = dataset[index]["mask"].numpy()
        labels = mask[mask != 255]
        scores.append((labels == 1).mean() / len({*labels.tolist(), 1}))
    assert scores == sorted(scores)


def test_default_choice_is_spread_over_the_split(dataset):
    chosen = visualize.choose_images(parse("--num", 3), dataset, None)["images"]
    assert chosen[0] == 0 and len(set(chosen)) == 3 and chosen == sorted(chosen)
    everything = visualize.choose_images(parse("--num", 1000), dataset, None)["images"]
    assert everything == list(range(len(dataset)))


def test_a_row_holds_the_truth_and_the_score(dataset):
    oracle = Oracle(dataset, known=[0], wrong=1)
    row = make_row(dataset, 0, [column(oracle)])
    sample = dataset[0]
    assert (row.image == sample["image"].permute(1, 2, 0).numpy()).all()
    assert (row.masks[0] == sample["mask"].numpy()).all()
    assert list(row.notes) == ["", "mIoU 100.0 %"]


def test_ids(dataset):
    wanted = [dataset.ids[2], dataset.ids[0]]
    assert visualize.choose_images(parse("--ids", *wanted), dataset, None) == {"images": [2, 0]}
    with pytest.raises(UserError, match=dataset.ids[1]):
        find_ids(dataset, [dataset.ids[1] + "x"])


def test_column_titles(tmp_path):
    paths = [tmp_path / "a" / "best.pth", tmp_path / "a" / "last.pth", tmp_path / "b" / "best.pth"]
    assert column_titles(paths) == ["a/best", "a/last", "b"]
    paths = [tmp_path / "voc" / "a" / "best.pth", tmp_path / "camvid" / "a" / "best.pth", tmp_path / "b" / "best.onnx"]
    assert column_titles(paths) == ["voc/a/best", "camvid/a/best", "b"]
    assert column_titles(paths[:1] * 2) == ["a/best", "a/best"]
    paths = [tmp_path / "a" / "best.pth", tmp_path / "a" / "best.onnx", tmp_path / "b" / "best.pth"]
    assert column_titles(paths) == ["a/best.pth", "a/best.onnx", "b"]
    root = Path(tmp_path.anchor)  # where containers have them
    assert column_titles([root / "best.pth"]) == ["best"]
    assert column_titles([root / "best.pth", tmp_path / "b" / "best.pth"]) == ["best", "b"]


def test_overlays_of_pictures_in_folders_are_files_of_their_own(dataset, tmp_path):
    """`a/b` and `a_b` are two."""
    image, mask = dataset[0]["image"].permute(1, 2, 0).numpy(), dataset[0]["mask"].numpy()
    for name in ("a/b", "a_b"):
        row = PanelRow(name, image, [mask, mask], ["", ""])
        assert write_overlays(row, ["Ground truth", "x/best: a"], dataset, tmp_path) == 2
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert written == ["a/b_Ground_truth.png", "a/b_x_best_a.png", "a_b_Ground_truth.png", "a_b_x_best_a.png"]


def test_a_checkpoint_trained_for_int8_is_shown_with_its_rounding(dataset, demo_checkpoint, tmp_path):
    """As evaluate.py scores it."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from deploy.quantized import FakeQuantModel

    content = load_file(demo_checkpoint("compact"))
    student, _ = load_checkpoint_model(demo_checkpoint("compact"))
    model = FakeQuantModel(student).train()
    model(normalize(dataset[0]["image"][None]))
    path = tmp_path / "best.pth"
    save_atomic(content | {"state_dict": student.state_dict(), "qat": model.ranges()}, path)
    args = visualize.get_args_parser().parse_args([str(path), "--device", "cpu"])
    (shown,) = visualize.load_columns(args, dataset)
    image = dataset[1]["image"][None]
    assert torch.equal(shown.segmenter.model(normalize(image)), load_segmenter(path, "cpu").logits(image))


@pytest.mark.slow
def test_from_the_command_line(run_script, demo_data, demo_checkpoint, dataset, tmp_path):
    done = run_script(
        "visualize.py",
        demo_checkpoint("compact", seed=0),
        demo_checkpoint("compact", seed=1),
        *("--teacher", "compact", "--teacher-weights", demo_checkpoint("compact", seed=2)),
        *("--dataset", "demo", "--data-dir", demo_data, "--device", "cpu"),
        *("--best", "--worst", "--num", 3, "--rows", 2, "--overlays", "--output-dir", tmp_path / "out"),
    )
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*.png"))
    assert written == ["best_1.png", "best_2.png", "worst_1.png", "worst_2.png"]
    assert all(str(tmp_path / "out" / name) in done.stdout for name in written)
    overlays = sorted((tmp_path / "out" / "overlays").iterdir())
    # truth, teacher and two students, of at least three images
    assert len(overlays) % 4 == 0 and len(overlays) >= 12
    for path in overlays:
        index = next(i for i, name in enumerate(dataset.ids) if path.name.startswith(name))
        with Image.open(path) as picture, Image.open(dataset.image_path(index)) as original:
            assert picture.size == original.size
            assert np.asarray(picture).std() > 1


def test_what_the_user_got_wrong_is_named(demo_data, demo_checkpoint, tmp_path):
    data = ("--dataset", "demo", "--data-dir", demo_data, "--device", "cpu", "--output-dir", tmp_path / "out")
    good = demo_checkpoint("compact", seed=0)
    for args, words in [
        ((tmp_path / "missing.pth", *data), "missing.pth"),
        ((good, *data, "--ids", "nobody"), "nobody.*demo_val_"),
        ((good, *data, "--num", 0), "--num"),
        ((good, *data, "--teacher-weights", "nope.pth"), "--teacher-weights without --teacher"),
        ((good, *data, "--ids", "nobody", "--worst"), "--ids"),
        ((good, *data, "--teacher", "fcn_resnet5"), "fcn_resnet50"),
        ((good, *data, "--dataset", "demon"), "demo"),
        ((good, *data, "--val-split", "vall"), "vall"),
    ]:
        with pytest.raises(UserError, match=words):
            visualize.main(visualize.get_args_parser().parse_args([str(argument) for argument in args]))
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_line(run_script):
    assert_one_line_error(run_script("visualize.py", "a.pth", "--num", 0, check=False), "--num")
