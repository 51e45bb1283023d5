"""--teacher-size: what a teacher says of pictures that are shown to it smaller than they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from basics.checkpoint import load_file, save_atomic
from basics.errors import UserError
from comparison.plan import load_plan
from dataset import build_dataset
from deploy import labelling
from networks.model_file import model_file_dict
from tests.conftest import assert_one_line_error
from tests.test_mapped_teachers import COLOURS, MAP, NAMES
from tests.test_working_size import lively_tiny, root, tiny_in_zoo, train  # noqa: F401 (fixtures)

STRIPES = np.tile(np.array([[255, 0, 0], [0, 0, 255]], np.uint8), (64, 48, 1))  # 64 x 96, columns red and blue in turn


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A picture whose classes change with the size it is seen at, and a teacher of colours."""
    monkeypatch.chdir(tmp_path)
    Path("colours.py").write_text(COLOURS.replace("CLASSES", repr(NAMES)))
    Path("map.toml").write_text(MAP)
    Path("photos").mkdir()
    Image.fromarray(STRIPES).save("photos/stripes.png")
    return tmp_path


def label(run_script, *more: object, check: bool = True):
    args = ("photos", "--teacher", "colours.py:build", "--class-map", "map.toml", "--device", "cpu")
    return run_script("predict.py", *args, "--save", "mask", "confidence", "--output-dir", "out", *more, check=check)


def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Mask and confidence, of which the frame of the picture is left out: there the resize sees the edge."""
    mask, sure = (np.asarray(Image.open(f"out/{kind}/stripes.png")) for kind in ("mask", "confidence"))
    assert mask.shape == sure.shape == (64, 96)
    return mask[8:-8, 8:-8], sure[8:-8, 8:-8]


def test_a_teacher_labels_what_it_sees_at_its_size(photos, run_script):
    """Stripes of a pixel are person and tree natively, and purple at half the size: there red is a tenth ahead."""
    label(run_script)
    mask, _ = labelled()
    assert (mask[:, ::2] == 1).all() and (mask[:, 1::2] == 2).all()
    label(run_script, "--teacher-size", 48)
    mask, sure = labelled()
    assert (mask == 1).all()
    # Every pixel is (0.5, 0, 0.5): the teacher's logits by hand, at 4 times that. What means nothing here is no rival.
    red, green, blue, dark = 4.0, 0.1, 3.9, -1.5
    person = np.exp([red, green]).sum() / np.exp([red, green, blue, dark]).sum()
    assert np.abs(sure - 255 * person).max() <= 3  # antialiasing leaves a trace of the stripes


def test_void_keeps_its_place_when_it_is_enlarged(photos, run_script):
    """The right half is yellow, "mixed" to the teacher, which the map does not name."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48], picture[:, 48:] = (0, 0, 255), (255, 255, 0)
    Image.fromarray(picture).save("photos/stripes.png")
    label(run_script, "--teacher-size", 48)
    mask = np.asarray(Image.open("out/mask/stripes.png"))
    assert (mask[:, :46] == 2).all() and (mask[:, 50:] == 255).all()


def test_a_photograph_that_is_large_for_a_teacher_is_remarked_once(photos, run_script, monkeypatch):
    Image.fromarray(STRIPES).save("photos/other.png")
    monkeypatch.setattr(labelling, "LARGE", STRIPES[..., 0].size)
    assert label(run_script).stdout.count("--teacher-size 640 takes far less") == 1
    assert "remark" not in label(run_script, "--teacher-size", 48).stdout
    assert "remark" not in label(run_script, "--tile", 64).stdout
    assert_one_line_error(label(run_script, "--teacher-size", 48, "--tile", 64, check=False), "working size")
    assert_one_line_error(run_script("predict.py", "photos", "--teacher-size", 48, check=False), "without --teacher")


@pytest.mark.parametrize(("size", "words"), [(31, "at least 32 pixels"), (-1, "at least 32"), ("x", "invalid")])
def test_sizes_that_are_none_are_refused(photos, run_script, size, words):
    result = label(run_script, "--teacher-size", size, check=False)
    assert result.returncode == 2 and words in result.stderr.splitlines()[-1]


@pytest.fixture
def teachers(root, tmp_path) -> tuple[Path, Path]:  # noqa: F811
    """The same network twice, as a file that says a working size of 48, and as one that says none."""
    data = build_dataset("folder", root, "train")
    files = tmp_path / "sized.pth", tmp_path / "native.pth"
    for file, input_size in zip(files, (48, 0), strict=True):
        save_atomic(model_file_dict("tiny", lively_tiny(), data, input_size=input_size), file)
    return files


def test_a_student_learns_from_a_teacher_of_any_size(root, teachers, tmp_path):  # noqa: F811
    """As from one that was trained at that size: cached from pictures of it, whatever the student's own size."""
    told = ("--alpha", 1, "--teacher", "tiny", "--cache-teacher", "--cache-dir")
    runs = {"own": (teachers[0], 0), "flag": (teachers[1], 48), "native": (teachers[1], 0)}
    for name, (file, size) in runs.items():
        words = [*told, tmp_path / f"cache_{name}", "--teacher-weights", file, "--teacher-size", size]
        assert train(root, tmp_path / name, *words) == 0
    own, flag, native = (load_file(tmp_path / name / "run" / "last.pth")["state_dict"] for name in runs)
    assert all(torch.equal(value, flag[name]) for name, value in own.items())
    assert not all(torch.equal(value, native[name]) for name, value in own.items())
    manifest = json.loads(next((tmp_path / "cache_flag").glob("*/manifest.json")).read_text())
    assert manifest["made_from"]["input_size"] == 48


def test_a_live_teacher_has_no_size_of_its_own(root, teachers, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="--teacher-size wants --cache-teacher"):
        train(root, tmp_path, "--alpha", 1, "--teacher-weights", teachers[1], "--teacher-size", 48)
    with pytest.raises(UserError, match="--teacher-size must be at least 32 pixels"):
        train(root, tmp_path, "--alpha", 1, "--cache-teacher", "--teacher-size", 31)


def test_a_teacher_is_scored_at_its_size(root, teachers, tmp_path, run_script):  # noqa: F811
    rows = []
    for file, size in zip(teachers, (0, 48), strict=True):
        args = ["--teacher", "tiny", "--teacher-weights", file, "--teacher-size", size, "--dataset", "folder"]
        args += ["--data-dir", root, "--device", "cpu", "--workers", 0, "--json", tmp_path / "row.json"]
        run_script("test_teacher.py", *args)
        rows += json.loads((tmp_path / "row.json").read_text())
    assert rows[0]["miou"] == rows[1]["miou"] and all("working size 48" in row["protocol"] for row in rows)


def test_a_teacher_stands_beside_students_at_their_sizes(root, teachers, tmp_path, run_script):  # noqa: F811
    """Its rows are test_teacher.py's; 0 is native, whatever it was trained at."""
    common = ["--dataset", "folder", "--data-dir", root, "--device", "cpu", "--workers", 0, "--json", tmp_path / "j"]
    sized, native = (["--teacher", "tiny", "--teacher-weights", file] for file in teachers)
    expected = []
    for words in ([*native, "--teacher-size", 64], native, sized):
        run_script("test_teacher.py", *common, *words)
        expected += json.loads((tmp_path / "j").read_text())
    files, chart = [teachers[1], "--agreement"], tmp_path / "front.png"
    said = run_script("evaluate.py", *files, *common, *sized, "--input-size", 64, 0, "--chart", chart).stdout
    rows = json.loads((tmp_path / "j").read_text())
    assert [row["checkpoint"] for row in rows] == [str(teachers[0])] * 2 + [str(teachers[1])] * 2
    for row, other in zip(rows, expected[:2], strict=False):
        assert row["iou"] == other["iou"] and row["protocol"] == other["protocol"] and row["model"] == "tiny"
    assert [row["iou"] for row in rows[:2]] == [row["iou"] for row in rows[2:]]  # they are the same network
    assert "agreement" not in rows[0] and rows[2]["agreement"] == 1 and chart.is_file() and said.count(" - ") >= 2
    for words, size in (([], "48"), (["--teacher-size", 64, "--input-size", 80], "64")):
        run_script("evaluate.py", *files, *common, *sized, *words)
        assert f"working size {size}," in json.loads((tmp_path / "j").read_text())[0]["protocol"]
    refused = run_script("evaluate.py", *files, *common, "--teacher-weights", teachers[0], check=False)
    assert_one_line_error(refused, "--teacher-weights without --teacher")


def test_a_plan_scores_its_teacher_at_its_size(root, teachers, tmp_path):  # noqa: F811
    common = f'dataset = "folder"\ndata_dir = "{root}"\nteacher = "tiny"\nteacher_weights = "{teachers[1]}"'
    text = f"{common}\ncache_teacher = true\nepochs = 1\nteacher_size = 48"
    plan = 'name = "sizes"\nstudents = ["tiny"]\nbaseline = "baseline"\n[common]\n' + text
    plan += "\n[methods.baseline]\n[methods.kl]\nalpha = 1\n"
    (tmp_path / "plan.toml").write_text(plan)
    teacher = load_plan(tmp_path / "plan.toml", tmp_path).teacher
    assert teacher is not None and teacher.input_size == 48
    (tmp_path / "plan.toml").write_text(plan + '[teacher]\nteacher_size = "48"\n')
    with pytest.raises(UserError, match="teacher_size must be a number"):
        load_plan(tmp_path / "plan.toml", tmp_path)
    (tmp_path / "plan.toml").write_text(plan + "[teacher]\nteacher_size = 16\n")
    with pytest.raises(UserError, match="must be at least 32 pixels"):
        load_plan(tmp_path / "plan.toml", tmp_path)
    (tmp_path / "plan.toml").write_text(plan + "[teacher]\nteacher_size = 64\n")
    teacher = load_plan(tmp_path / "plan.toml", tmp_path).teacher
    assert teacher is not None and teacher.input_size == 64 and teacher.weights == str(teachers[1])
