"""Masks drawn from annotations: once, for just these annotations, whole or not at all; trained on in one command."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basics.errors import UserError
from datalayouts import polygons, rasterizing
from datalayouts.polygons import elsewhere
from datalayouts.splitting import choose_by_chance
from dataset import DATASETS, build_dataset, find_layout
from segdata.reading import DataError
from tests import test_coco, test_labelme
from tests.conftest import assert_one_line_error

coco, labelme = test_coco.simple, test_labelme.simple  # data sets of five pictures


@pytest.fixture(params=["coco", "labelme"])
def data(request) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(request.param)


@pytest.fixture
def no_drawing(monkeypatch):
    """From ``no_drawing()`` on, drawing masks is an error."""

    def refuse(*_):
        pytest.fail("masks are drawn again")

    return lambda: monkeypatch.setattr(polygons, "draw_masks", refuse)


def drawn_in(root: Path) -> list[Path]:
    return sorted(root.glob(".masks-*"))


def change(name: str, root: Path) -> None:
    """Make the first object one pixel wider."""
    file = root / {"coco": "annotations.json", "labelme": "p1.json"}[name]
    content = json.loads(file.read_text())
    if name == "coco":
        content["annotations"][0]["segmentation"] = test_coco.box(1, 2, 8, 9)
    else:
        content["shapes"][0]["points"] = test_labelme.box(1, 2, 8, 9)
    file.write_text(json.dumps(content))


def objects(layout) -> int:
    """Pixels that are not background, in all masks."""
    masks = [path for split in layout.splits() for path in layout.files(split).masks]
    return sum(int((layout.read_labels(path) > 0).sum()) for path in masks)


# -- when masks are drawn ----------------------------------------------------------------------------


def test_masks_are_drawn_once(data, no_drawing, capsys):
    name, root = data
    first = DATASETS[name](root)
    said = capsys.readouterr().out
    assert str(drawn_in(root)[0]) in said
    assert ("smaller objects lie on top" if name == "coco" else "later shapes lie on top") in said
    no_drawing()
    again = DATASETS[name](root)
    assert capsys.readouterr().out == ""
    assert [again.files(split) for split in again.splits()] == [first.files(split) for split in first.splits()]
    assert (again.class_names, again.palette) == (first.class_names, first.palette)


def test_a_copy_with_other_dates_keeps_its_masks(data, no_drawing):
    name, root = data
    find_layout(name, root)
    copy = root.with_name("copy")
    shutil.copytree(root, copy)
    for path in copy.glob("*.json"):
        os.utime(path, (1, 1))
    no_drawing()
    layout = find_layout(name, copy)
    assert layout.files("train").masks[0].is_relative_to(copy)
    (copy / "classes.txt").touch() if name == "labelme" else None
    stamps = json.loads((drawn_in(copy)[0] / "about.json").read_text())["stamps"]
    assert any(stamp[2] == 10**9 for stamp in stamps)  # the new dates were noted: contents need not be read again


def test_changed_annotations_get_new_masks(data, capsys):
    name, root = data
    before = objects(find_layout(name, root))
    capsys.readouterr()
    change(name, root)
    assert objects(find_layout(name, root)) == before + 7
    old, new = sorted(drawn_in(root), key=lambda path: path.stat().st_mtime_ns)
    assert f"masks of earlier annotations can be deleted: {old.name}" in capsys.readouterr().out
    assert new.name != old.name


def test_masks_of_another_version_are_drawn_anew(data):
    name, root = data
    expected = objects(find_layout(name, root))
    for damage in ("", "[]", "{}", '{"format": 0, "stamps": [], "class_names": [], "pictures": []}'):
        folder = drawn_in(root)[0]
        (folder / "about.json").write_text(damage)
        (folder / "left over").touch()
        assert objects(find_layout(name, root)) == expected
        assert drawn_in(root) == [folder] and not (folder / "left over").exists()
    assert not list(root.glob(".drawing-*"))


# -- interruptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_an_interrupted_drawing_leaves_nothing(data, monkeypatch, error):
    name, root = data
    real, count = rasterizing.paint, []

    def stop(*args, **options):
        count.append(1)
        if len(count) == 3:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(rasterizing, "paint", stop)
    with pytest.raises(type(error)):
        find_layout(name, root)
    assert not drawn_in(root) and not list(root.glob(".drawing-*"))
    assert len(find_layout(name, root).files("train").ids) == 4


def test_what_a_killed_process_left_is_not_trusted_and_goes(data):
    """A process that is killed leaves the folder that it was drawing in."""
    name, root = data
    find_layout(name, root)
    whole = drawn_in(root)[0]
    for age, leftover in ((0, ".drawing-new"), (2 * 86400, ".drawing-old")):
        (root / leftover).mkdir()
        (whole / "about.json").replace(root / leftover / "about.json") if age == 0 else None
        os.utime(root / leftover, (time.time() - age,) * 2)
    layout = find_layout(name, root)
    assert layout.drawn == whole and (whole / "about.json").exists()
    assert (root / ".drawing-new").exists() and not (root / ".drawing-old").exists()


def test_a_quicker_process_wins(data, monkeypatch):
    name, root = data
    real = polygons.draw_masks

    def other_process_first(annotations, folder):
        monkeypatch.setattr(polygons, "draw_masks", real)
        (find_layout(name, root).drawn / "of the quicker one").touch()
        real(annotations, folder)

    monkeypatch.setattr(polygons, "draw_masks", other_process_first)
    layout = find_layout(name, root)
    assert drawn_in(root) == [layout.drawn] and not list(root.glob(".drawing-*"))
    assert objects(layout) > 0 and (layout.drawn / "of the quicker one").exists()


def test_a_full_disk_is_one_line(data, monkeypatch, run_script):
    name, root = data

    def full(self, *args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    done = run_script("dataset.py", "--dataset", name, "--data-dir", root, check=False)
    assert_one_line_error(done, str(root), "No space left", "free some space")
    assert not drawn_in(root) and not list(root.glob(".drawing-*"))


# -- where masks lie ---------------------------------------------------------------------------------


@pytest.fixture
def closed(data, monkeypatch, tmp_path):
    """The data set's folder is marked as read-only; the working folder is another one."""
    name, root = data
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    root.chmod(0o555)
    yield name, root
    root.chmod(0o755)


def test_masks_of_a_read_only_folder_lie_elsewhere(closed, no_drawing):
    name, root = closed
    before = sorted(root.rglob("*"))
    layout = DATASETS[name](root)
    assert sorted(root.rglob("*")) == before
    home = elsewhere(root)
    assert home.parent == Path("data/converted") and home.name.startswith(root.name)
    assert layout.drawn == drawn_in(home)[0]
    no_drawing()
    assert DATASETS[name](root).drawn == layout.drawn
    sample = build_dataset(name, root, "train", decode_cache=Path("decoded"))[0]  # masks outside the data set's root
    assert set(np.unique(sample["mask"])) <= {0, 1, 2}


def test_other_users_may_read_the_masks(data):
    name, root = data
    find_layout(name, root)
    umask = os.umask(0)
    os.umask(umask)
    assert drawn_in(root)[0].stat().st_mode & 0o777 == 0o777 & ~umask


def test_pictures_outside_the_folder(tmp_path):
    test_coco.save_picture(tmp_path / "images" / "p.jpg")
    content = test_labelme.document("../images/p.jpg", [test_labelme.shape("cat", test_labelme.box(0, 0, 3, 3))])
    test_coco.write(tmp_path / "labels" / "p.json", content)
    data = build_dataset("labelme", tmp_path / "labels", "default", decode_cache=tmp_path / "decoded")
    assert data.ids == ["p"] and int(data[0]["mask"].sum()) == 9


def test_what_is_deleted_is_named(data, run_script):
    name, root = data
    layout = find_layout(name, root)
    files = layout.files("train")
    for path in (files.images[0], files.images[2], files.masks[1]):
        path.unlink()
    whole, faults = layout.scan("train")
    assert whole.ids == files.ids[3:] and len(faults) == 2
    assert faults[0].startswith(f"{files.images[0]}: no such file any more (and 1 more of 4); put them back")
    assert faults[1].startswith(f"{files.masks[1]}: no such file any more; delete {layout.drawn}")
    done = run_script("dataset.py", "--dataset", name, "--data-dir", root, "--check", check=False)
    assert done.returncode == 1 and all(f"fault: {fault}\n" in done.stdout for fault in faults)
    with pytest.raises(DataError, match="no such file any more"):
        build_dataset(name, root, "train")


def test_an_unknown_split_lists_the_known_ones(data):
    name, root = data
    with pytest.raises(DataError, match=r"no split 'best'.*train, val"):
        find_layout(name, root).files("best")


def test_workers_get_the_layout(data):
    name, root = data
    layout = pickle.loads(pickle.dumps(find_layout(name, root)))
    assert len(layout.files("train").ids) == 4


# -- the split by chance -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(2, 0.2, 1), (10, 0.2, 2), (1000, 0.2, 200), (10, 0.01, 1), (10, 0.5, 5)]
)
def test_the_split_by_chance_has_its_share_and_knows_no_order(count, share, expected):
    ids = [f"picture {number}" for number in range(count)]
    val = choose_by_chance(ids, share)
    assert len(val) == expected and val <= set(ids)
    random.Random(0).shuffle(ids)
    assert choose_by_chance(ids, share) == val
    if count == 1000:
        assert val != set(sorted(ids)[:200]) and len(val & set(sorted(ids)[:500])) in range(70, 130)


# -- one command -------------------------------------------------------------------------------------


def test_training_is_one_command(data, run_script, tmp_path):
    name, root = data
    done = run_script(
        "train_kd.py", "--dataset", name, "--data-dir", root, "--student", "compact", "--student-weights", "none",
        "--crop-size", 32, "--batch-size", 2, "--workers", 0, "--device", "cpu", "--max-steps", 1, "--alpha", 0,
        "--beta", 0, "--output-dir", tmp_path / "runs", "--name", "run",
    )  # fmt: skip
    assert "mIoU" in done.stdout and (tmp_path / "runs" / "run" / "best.pth").exists()
    done = run_script("evaluate.py", tmp_path / "runs" / "run" / "best.pth", "--dataset", name, "--data-dir", root,
                      "--device", "cpu", "--workers", 0)  # fmt: skip
    assert {"coco": "crack", "labelme": "dog"}[name] in done.stdout


def test_a_conversion_that_fails_is_one_line_in_training(data, run_script, tmp_path):
    name, root = data
    for path in root.rglob("p1.jpg"):
        path.unlink()
    done = run_script("train_kd.py", "--dataset", name, "--data-dir", root, "--output-dir", tmp_path, check=False)
    assert_one_line_error(done, "p1", "not there" if name == "coco" else "no picture")
    with pytest.raises(UserError):
        find_layout(name, root)
