"""A teacher of other classes in every script: trained from, live and cached, scored, shown, compared, resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from basics.batch import prepare_batch
from basics.checkpoint import load_file
from basics.errors import UserError
from comparison.plan import check_files
from comparison.runs import check_config
from dataset import build_dataset
from deploy.teachers import MappedNetwork, TeacherChoice, load_teacher_for
from kd.class_map import ClassMap
from kd.distiller import DistilledStudent, Distiller, LiveTeacher
from kd.losses import Recipe
from kd.mapped_teacher import MappedTeacher
from kd.teacher_cache import open_teacher_cache
from networks.class_lists import ade20k
from scoring.protocol import evaluate_model
from tests.comparisons import read_plan, write_plan
from tests.conftest import assert_one_line_error
from tests.families import save_family
from tests.tiny import TinyModel
from training.trainer import Trainer

# Three classes in the place of the demo data's seven, by ADE20K's names.
THREE = "sky = background, disk\nperson = square, triangle\nTree = star, ring, cross\n"
# A user's file: the brightest of red, green, blue and grey decides, at full size.
COLOURS = """
import torch
from torch import nn

class Colours(nn.Module):
    stride = 16
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 1)
        weight = [[2., 0, 0], [0, 2, 0], [0, 0, 2], [-1, -1, -1], [1.5, 1.5, 0]]
        self.layer.weight.data = torch.tensor(weight)[..., None, None]
        self.layer.bias.data = torch.tensor([0., 0.1, -0.1, 2.5, 0.2])
        self.class_names = CLASSES
        self.mean, self.std = [0., 0., 0.], [1., 1., 1.]

    def forward(self, images):
        return self.layer(4 * images)

def build():
    return Colours()
"""
NAMES = ["red", "green", "blue", "dark", "mixed"]
MAP = 'sky = ["dark"]\nperson = ["red", "green"]\nTree = ["blue"]\n'  # "mixed" means nothing


@pytest.fixture
def three(tmp_path, demo_data, monkeypatch):
    """Arguments of three classes, in a current folder of one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.txt").write_text(THREE)
    return ("--dataset", "demo", "--data-dir", demo_data, "--classes", "three.txt", "--device", "cpu")


@pytest.fixture
def colours(tmp_path):
    """The name of the teacher in a user's file; its class map is beside it."""
    (tmp_path / "colours.py").write_text(COLOURS.replace("CLASSES", repr(NAMES)))
    (tmp_path / "map.toml").write_text(MAP)
    return "colours.py:build"


@pytest.fixture
def data(demo_data, tmp_path, three):
    return build_dataset("demo", demo_data, "val", classes=Path("three.txt"))


RUN = (
    "--student", "compact", "--student-weights", "none", "--crop-size", 64, "--batch-size", 4, "--epochs", 1,
    "--max-steps", 2, "--workers", 0, "--name", "run", "--alpha", 1,
)  # fmt: skip


def metrics(folder="checkpoints/run"):
    with (Path(folder) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def favour(folder: Path, names: list[str]) -> None:
    """Let a random SegFormer with ADE20K's classes say these more often than the others."""
    from safetensors.torch import load_file as load_tensors
    from safetensors.torch import save_file

    state = load_tensors(folder / "model.safetensors")
    state["decode_head.classifier.bias"][[ade20k().index(name) for name in names]] += 10
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


# -- ADE20K ----------------------------------------------------------------------------------------


def test_a_teacher_of_150_classes_for_a_student_of_three(tmp_path, three, run_script):
    """By name alone; logits and feature losses; what was matched is printed, and kept with the run."""
    pytest.importorskip("transformers")
    favour(save_family("segformer", tmp_path / "segformer-ade", names=list(ade20k())), ["sky", "person", "tree"])
    done = run_script("train_kd.py", *three, *RUN, "--beta", 0.5, "--teacher", "hf:segformer-ade")
    assert "segformer-ade: 3 of its 150 classes mean classes of the data set, by name" in done.stdout
    assert "where it says one of the others (wall, building, floor, " in done.stdout
    row = metrics()[0]
    assert float(row["train_kl"]) > 0 and float(row["train_cosine"]) > 0
    groups = {"sky": ["sky"], "person": ["person"], "Tree": ["tree"]}
    assert json.loads(Path("checkpoints/run/config.json").read_text())["arguments"]["teacher_classes"] == groups
    assert load_file(Path("checkpoints/run/last.pth"))["training"]["teacher_classes"] == groups
    said = run_script("train_kd.py", *three, *RUN, "--teacher", "hf:segformer-ade", "--loss", "icsd=1", "--dry-run",
                      "--name", "other").stdout  # fmt: skip
    assert "all is well" in said and "by name" in said


def test_one_with_other_classes_is_refused_and_the_filled_file_works(tmp_path, demo_data, run_script, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    save_family("segformer", tmp_path / "segformer-ade", names=list(ade20k()))
    args = ("--dataset", "demo", "--data-dir", demo_data, "--device", "cpu", *RUN, "--teacher", "hf:segformer-ade")
    form = Path("class_map_segformer-ade_demo.toml")
    done = run_script("train_kd.py", *args, check=False)
    assert_one_line_error(done, "150 classes (wall, ", "7 classes (background, ", "'disk'", f"--class-map {form}")
    assert not Path("checkpoints/run/metrics.csv").exists()
    text = form.read_text(encoding="utf-8")
    form.write_text(text.replace("disk = []", 'disk = ["ball", "plate"]'), encoding="utf-8")
    dry = run_script("train_kd.py", *args, "--class-map", form, "--dry-run")
    assert "it does not know square, triangle, star, ring, cross" in dry.stdout
    run_script("train_kd.py", *args, "--class-map", form)
    assert float(metrics()[0]["train_kl"]) > 0
    # Of two classes icsd cannot say anything.
    done = run_script("train_kd.py", *args, "--class-map", form, "--loss", "icsd=1", "--name", "two", check=False)
    assert_one_line_error(done, "icsd would teach nothing: the teacher knows 2 classes of the data set's 7")


def test_a_row_of_the_zoo_for_other_classes_is_refused_before_anything_is_fetched(three, run_script, monkeypatch):
    monkeypatch.setattr("networks.weights.fetch", lambda *args: pytest.fail("fetched"))
    done = run_script("train_kd.py", *three, *RUN, check=False)
    assert_one_line_error(done, "fcn_resnet50 has 21 classes", "--class-map class_map_fcn_resnet50_demo.toml")


# -- live and cached -------------------------------------------------------------------------------


def test_a_cache_is_the_live_teacher_under_any_map(demo_data, tmp_path):
    """To the precision of fp16; the cache keeps the teacher's own classes, and serves two maps without a new build."""
    train_set = build_dataset("demo", demo_data, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinyModel(num_classes=5, width=32).eval()
        model.classifier.weight.data.mul_(10)
        student = TinyModel(3).eval()
    live = LiveTeacher(model)
    batch = prepare_batch(default_collate([train_set[3]]), torch.device("cpu"))
    losses = {}
    for groups in ({"a": ["1", "2"], "b": ["0"], "c": ["4"]}, {"a": ["0"], "b": ["3"], "c": ["1", "2", "4"]}):
        class_map = ClassMap.by_groups(["a", "b", "c"], [str(number) for number in range(5)], groups)
        cached = open_teacher_cache(tmp_path, model, "tiny", train_set, recipe=Recipe({"kl": 1.0}))
        assert cached is not None and cached.reader.layout.shape("logits", 3)[0] == 5
        values = []
        for teacher in (live, cached):
            recipe = Recipe({"kl": 1.0, "cwd": 1.0, "dist": 1.0}, temperature=2)
            mapped = MappedTeacher(teacher, class_map, min_confidence=0.4)
            made = Distiller(DistilledStudent(student, recipe, mapped), student, recipe, mapped)
            values.append(torch.stack(list(made.losses(batch).values())).detach())
        torch.testing.assert_close(values[0], values[1], rtol=5e-3, atol=1e-4)
        losses[str(groups)] = values[0]
    one, two = losses.values()
    assert not torch.allclose(one, two, rtol=0.05) and len(list(tmp_path.iterdir())) == 1


def test_one_cache_serves_every_map(three, colours, run_script):
    args = (*three, *RUN, "--teacher", colours, "--class-map", "map.toml", "--cache-teacher", "--cache-dir", "cache")
    assert "teacher cache: done" in run_script("train_kd.py", *args).stdout
    first = metrics()[0]["train_kl"]
    Path("map.toml").write_text(MAP.replace("blue", "mixed"))
    again = run_script("train_kd.py", *args, "--name", "other").stdout
    assert "teacher cache: cache" in again and "done" not in again
    assert metrics("checkpoints/other")[0]["train_kl"] != first


# -- confidence and resume -------------------------------------------------------------------------


def test_min_confidence(three, colours, run_script):
    """No softmax reaches 1: nothing is left of the loss. Out of bounds is said."""
    args = (*three, *RUN, "--teacher", colours, "--class-map", "map.toml")
    run_script("train_kd.py", *args, "--min-confidence", 1)
    assert float(metrics()[0]["train_kl"]) == 0
    run_script("train_kd.py", *args, "--min-confidence", 0.3, "--name", "other")
    assert float(metrics("checkpoints/other")[0]["train_kl"]) > 0
    done = run_script("train_kd.py", *args, "--min-confidence", 1.5, "--name", "third", check=False)
    assert_one_line_error(done, "--min-confidence must be from 0 to 1, not 1.5")


def test_min_confidence_without_a_map(three, demo_checkpoint, run_script, tmp_path, demo_data):
    args = ("--dataset", "demo", "--data-dir", demo_data, "--device", "cpu", *RUN, "--teacher", "compact",
            "--teacher-weights", demo_checkpoint("compact"))  # fmt: skip
    run_script("train_kd.py", *args)
    run_script("train_kd.py", *args, "--min-confidence", 1, "--name", "none")
    assert float(metrics("checkpoints/none")[0]["train_kl"]) == 0 < float(metrics()[0]["train_kl"])


def test_resume_with_another_map_is_refused(three, colours, run_script):
    args = (*three, *RUN, "--teacher", colours, "--class-map", "map.toml", "--resume", "auto")
    run_script("train_kd.py", *args)
    Path("map.toml").write_text("# only a remark\n" + MAP)
    run_script("train_kd.py", *args, "--max-steps", 3)
    Path("map.toml").write_text(MAP.replace('"red", ', ""))
    done = run_script("train_kd.py", *args, "--max-steps", 4, check=False)
    assert_one_line_error(done, "made with another class map: 'person' was the teacher's 'red, green', is 'green'")
    run_script("train_kd.py", *args, "--max-steps", 4, "--allow-changed")
    done = run_script("train_kd.py", *args[:-4], "--resume", "auto", "--max-steps", 5, check=False)
    assert_one_line_error(done, "means 'sky'")  # by name nothing is matched


def test_resume_with_other_weights_inside_a_users_file_is_refused(three, colours, run_script):
    """Neither the command nor the file of code has changed."""
    torch.save({"bias": torch.zeros(5)}, "bias.pth")
    Path("colours.py").write_text(
        COLOURS.replace("CLASSES", repr(NAMES)).replace(
            "return Colours()", "net = Colours(); net.layer.bias.data = torch.load('bias.pth')['bias']; return net"
        )
    )
    args = (*three, *RUN, "--teacher", colours, "--class-map", "map.toml", "--resume", "auto")
    run_script("train_kd.py", *args, "--max-steps", 1)
    torch.save({"bias": torch.ones(5)}, "bias.pth")
    done = run_script("train_kd.py", *args, check=False)
    assert_one_line_error(done, "another teacher than colours.py:build now gives: its weights, normalisation or code")
    torch.save({"bias": torch.zeros(5)}, "bias.pth")
    run_script("train_kd.py", *args)


# -- labels ----------------------------------------------------------------------------------------


def test_pictures_labelled_by_a_teacher_are_a_data_set(three, colours, tmp_path, run_script):
    """Masks and confidences against NumPy; void where the teacher's class means nothing, or it is unsure; a training
    reads the folder, with its subfolders, turned pictures, pages and formats that only prediction reads."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 256, (8, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(6)]
    pictures[0] //= 10
    photos = tmp_path / "meine Bilder" / "süß"
    photos.mkdir(parents=True)
    Image.fromarray(pictures[0]).save(photos / "a.png")
    Image.fromarray(pictures[1]).save(photos.parent / "b.bmp")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(np.rot90(pictures[2])).save(photos / "c.png", exif=turned)
    transparent = np.dstack([pictures[3], np.full(pictures[3].shape[:2], 255, np.uint8)])
    Image.fromarray(transparent).save(photos / "d.webp", lossless=True)
    Image.fromarray(pictures[4]).save(photos / "e.tif", save_all=True, append_images=[Image.fromarray(pictures[5])])
    out = tmp_path / "out put"
    args = ("meine Bilder", "--teacher", colours, "--class-map", "map.toml", "--device", "cpu", "--output-dir", out)
    said = run_script("predict.py", *args, "--save", "mask", "confidence", "csv", "--min-confidence", 0.7).stdout
    assert f"--dataset folder --data-dir {out}" in said and (out / "classes.txt").read_text() == "sky\nperson\nTree\n"

    names = ["süß_a", "b", "süß_c", "süß_d", "süß_e_000001", "süß_e_000002"]
    weight = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2], [-1, -1, -1], [1.5, 1.5, 0]], dtype=np.float64)
    kinds = set()
    for name, pixels in zip(names, pictures, strict=True):
        p = np.exp(4 * pixels.astype(np.float64) / 255 @ weight.T + np.array([0, 0.1, -0.1, 2.5, 0.2]))
        grouped = np.stack([p[..., 3], p[..., 0] + p[..., 1], p[..., 2]], axis=2)
        sure = grouped.max(2) / grouped.sum(2)
        heard = p.argmax(2) != 4
        expected = np.where(heard & (sure >= 0.7), grouped.argmax(2), 255)
        with Image.open(out / "mask" / f"{name}.png") as mask, Image.open(out / "confidence" / f"{name}.png") as image:
            assert mask.mode == "P" and (np.asarray(mask) == expected).mean() > 0.995  # but for ties by rounding
            told = np.asarray(image).astype(int)
            colours_of = np.asarray(mask.convert("RGB")).reshape(-1, 3)[np.asarray(mask).ravel() == 255]
        assert np.abs(told - np.where(heard, np.rint(255 * sure), 0)).max() <= 1
        assert (colours_of == [224, 224, 192]).all()
        kinds |= set(np.unique(expected))
    assert kinds == {0, 1, 2, 255}
    assert (out / "images" / "süß_a.png").samefile(photos / "a.png")  # a link, and no copy

    data = ("--dataset", "folder", "--data-dir", out, "--val-share", 0.4)
    dataset = build_dataset("folder", out, "train", val_share=0.4)
    assert dataset.class_names == ["sky", "person", "Tree"]
    together = [*dataset, *build_dataset("folder", out, "val", val_share=0.4)]
    assert sorted(sample["id"] for sample in together) == sorted(names)
    for sample in together:
        pixels = pictures[names.index(sample["id"])]
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels)
    run_script("train_kd.py", *data, *RUN[:-2], "--batch-size", 2, "--device", "cpu", "--alpha", 0)
    assert metrics()


def test_labels_without_a_map_are_the_teachers_own_classes(three, colours, demo_data, run_script, tmp_path):
    picture = sorted((demo_data / "demo" / "JPEGImages").iterdir())[0]
    run_script("predict.py", picture, "--teacher", colours, "--save", "mask", "--device", "cpu")
    assert Path("labels_colours-build/classes.txt").read_text().split() == NAMES
    run_script(
        "predict.py", Path("labels_colours-build/images"), "--teacher", colours, "--save", "mask", "--device", "cpu"
    )
    assert Path("labels_colours-build/images", picture.name).samefile(picture)  # labelled in place: nothing is lost


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--class-map", "map.toml"), "--class-map without --teacher"),
        (("--min-confidence", 0.5), "--min-confidence without --teacher"),
        (("--teacher", "colours.py:build", "--min-confidence", 2), "--min-confidence must be from 0 to 1"),
        (("--teacher", "colours.py:build", "--class-map", "none.toml"), "none.toml: cannot be read"),
    ],
)
def test_what_is_wrong_with_labelling_is_one_line(three, colours, run_script, more, word):
    assert_one_line_error(run_script("predict.py", "x.png", *more, check=False), word)


def test_pictures_without_any_mask(three, colours, tmp_path, run_script):
    """The mapped teacher is all there is to learn from, and what agreement is counted with; where it says nothing of
    the data's classes nothing is counted."""
    from PIL import Image

    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / "bare" / split).mkdir(parents=True)
        for number in range(count):
            shade = 255 - number - 10 * (split == "val")  # no two pictures are the same
            red, dark = np.full((64, 32, 3), (shade, 0, 0)), np.zeros((64, 32, 3))
            yellow = np.full((64, 32, 3), (255, 255, 0))  # "mixed"
            pixels = np.concatenate([red, dark, yellow], axis=1).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "bare" / split / f"{number}.png")
    (tmp_path / "bare" / "classes.txt").write_text("sky\nperson\nTree\n")
    args = ("--dataset", "folder", "--data-dir", "bare", *RUN, "--batch-size", 2, "--cache-dir", "said",
            "--device", "cpu", "--teacher", colours)  # fmt: skip
    said = run_script("train_kd.py", *args, "--class-map", "map.toml").stdout
    assert "the teacher alone is followed" in said and "agreement with the teacher" in said
    assert float(metrics()[0]["train_kl"]) > 0
    first = sorted(Path("said").iterdir())
    masks = sorted(first[0].glob("*.png"))
    assert len(masks) == 2
    for path in masks:
        with Image.open(path) as image:
            mask = np.asarray(image)
        assert (mask[:, 4:28] == 1).all() and (mask[:, 36:60] == 0).all() and (mask[:, 68:] == 255).all()
    # Under another map it says something else.
    Path("map.toml").write_text(MAP.replace('"blue"', '"blue", "mixed"'))
    run_script("train_kd.py", *args, "--class-map", "map.toml", "--name", "other")
    assert len(list(Path("said").iterdir())) == 2


# -- scored, shown, compared -----------------------------------------------------------------------


def test_scores_by_hand(three, colours, data, run_script):
    """Against NumPy: sums of softmax over the groups, the largest one decides, everywhere."""
    matrix, unheard, pixels = np.zeros((3, 3)), 0, 0
    weight = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2], [-1, -1, -1], [1.5, 1.5, 0]], dtype=np.float64)
    for sample in data:
        image = 4 * sample["image"].numpy().astype(np.float64).transpose(1, 2, 0) / 255
        p = np.exp(image @ weight.T + np.array([0, 0.1, -0.1, 2.5, 0.2]))
        p /= p.sum(2, keepdims=True)
        prediction = np.stack([p[..., 3], p[..., 0] + p[..., 1], p[..., 2]], axis=2).argmax(2)
        mask = sample["mask"].numpy()
        np.add.at(matrix, (mask[mask != 255], prediction[mask != 255]), 1)
        unheard, pixels = unheard + (p.argmax(2) == 4).sum(), pixels + mask.size
    ious = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    said = run_script("test_teacher.py", *three, "--teacher", colours, "--class-map", "map.toml", "--json", "t.json")
    row = json.loads(Path("t.json").read_text())[0]
    assert list(row["iou"].values()) == pytest.approx(ious, abs=2e-3) and row["loss"] is not None
    assert f"at {100 * unheard / pixels:.1f} % of the pixels it says a class that means nothing here" in said.stdout
    assert 0 < unheard < pixels


def test_classes_that_the_teacher_lacks_are_said(three, colours, run_script):
    Path("map.toml").write_text('sky = ["dark"]\nperson = ["red", "green", "mixed", "blue"]\n')
    said = run_script("test_teacher.py", *three, "--teacher", colours, "--class-map", "map.toml", "--json", "t.json")
    row = json.loads(Path("t.json").read_text())[0]
    known = 100 * (row["iou"]["sky"] + row["iou"]["person"]) / 2
    assert row["iou"]["Tree"] == 0 and row["loss"] is None
    assert (
        f"it does not know Tree, which counts as 0 in the mIoU; over the classes that it knows the mIoU is {known:.2f}"
        in (said.stdout)
    )


def test_whole_networks_and_tiles(data, colours):
    """A logit that is never the largest, finite so that tiles blend; as many pixels counted as there are."""
    teacher = load_teacher_for(TeacherChoice(colours, class_map="map.toml"), data)
    network = teacher.as_network()
    assert isinstance(network, MappedNetwork)
    evaluate_model(network, data, torch.device("cpu"), progress=False)
    assert not any(part.training for part in network.modules()), "scored in eval mode, it stays there"
    network.pixels = 0
    logits = network(torch.randn(2, 3, 40, 56))
    assert logits.shape == (2, 3, 40, 56) and logits.isfinite().all() and network.pixels == 2 * 40 * 56
    sized = load_teacher_for(TeacherChoice(colours, class_map="map.toml", input_size=48), data).as_network()
    bands = list(sized.bands_of(torch.randn(1, 3, 100, 80)))  # what is brought to full size are the data's classes
    assert sized.input_size == 48 and {logits.shape[1] for _, logits in bands} == {data.num_classes}
    class_map = ClassMap.by_groups(["a", "b", "c"], NAMES, {"a": ["red"], "c": ["blue"]})
    whole = class_map.whole_logits(torch.randn(2, 5, 4, 4))
    assert whole.argmax(1).ne(1).all() and whole.isfinite().all()


def test_pictures(three, colours, demo_data, run_script, tmp_path):
    from basics.checkpoint import save_atomic
    from zoo import create_model, model_file_dict

    dataset = build_dataset("demo", demo_data, "val", classes=Path("three.txt"))
    save_atomic(model_file_dict("compact", create_model("compact", 3, "none"), dataset), tmp_path / "s" / "best.pth")
    args = ("s/best.pth", *three, "--num", 1, "--class-map", "map.toml")
    run_script("visualize.py", *args, "--teacher", colours)
    assert list(Path("s/pictures").glob("*.png"))
    assert_one_line_error(run_script("visualize.py", *args, check=False), "--class-map without --teacher")


def test_a_method_of_a_comparison_may_have_its_own_map(three, colours, demo_data, tmp_path):
    methods = (
        '[methods.baseline]\n[methods.a]\nalpha = 1\nclass_map = "map.toml"\n'
        '[methods.b]\nalpha = 1\nclass_map = "ade20k_voc"\nmin_confidence = 0.5\n'
    )
    common = f'classes = "three.txt"\nteacher = "{colours}"'
    path = write_plan(tmp_path, demo_data, common, methods=methods, seeds=[0])
    plan = read_plan(path, tmp_path)
    assert [run.args.class_map for run in plan.runs] == [None, "map.toml", "ade20k_voc"]
    assert plan.runs[2].args.min_confidence == 0.5 and "--class-map map.toml" in plan.runs[1].command
    assert plan.teacher == TeacherChoice(colours, class_map="map.toml")
    check_files(plan)
    run = plan.runs[1]
    Trainer(run.args, Recipe({"ce": 1.0, "kl": 1.0})).run()
    check_config(run)
    Path("map.toml").write_text(MAP.replace("dark", "mixed"))
    with pytest.raises(UserError, match=r"the class map's map\.toml has another content now"):
        check_config(run)
    Path("map.toml").write_text("sky = [")
    with pytest.raises(UserError, match=r"map\.toml: not a TOML file"):
        check_files(plan)
    Path("map.toml").unlink()
    with pytest.raises(UserError, match=r"--class-map map\.toml: cannot be read"):
        check_files(plan)
