"""The split by chance: the same everywhere, kept when images come, and never made where the data say what is what."""

from __future__ import annotations

import hashlib
import shutil
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from basics.errors import UserError
from datalayouts import splitting
from datalayouts.splitting import FOLDER, choose_by_chance
from dataset import build_dataset, find_layout

NAMES = st.lists(st.text("abc0123_ é", min_size=1, max_size=6), min_size=2, max_size=60, unique=True)


def add(root: Path, names: list[str]) -> None:
    for place in ("images", "masks"):
        (root / place).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / place / f"{name}.png")


@pytest.fixture
def flat(tmp_path) -> Path:
    root = tmp_path / "d"
    add(root, [f"im{number:02d}" for number in range(20)])
    (root / "classes.txt").write_text("a\nb\n")
    return root


def ids(root: Path, **options) -> tuple[list[str], list[str]]:
    train, val = (build_dataset("folder", root, split, **options).ids for split in ("train", "val"))
    return train, val


@given(names=NAMES, share=st.floats(0.01, 0.99))
def test_the_names_alone_decide(names, share):
    val = choose_by_chance(names, share)
    assert val == choose_by_chance(reversed(names), share) and val <= set(names)
    assert 1 <= len(val) < len(names)
    assert abs(len(val) - share * len(names)) <= 1
    other = choose_by_chance([unicodedata.normalize("NFD", name) for name in names], share)
    assert {unicodedata.normalize("NFC", name) for name in other} == {
        unicodedata.normalize("NFC", name) for name in val
    }


def test_the_choice_is_for_ever():
    """What it is on one machine it must be on all, and in the next version, too."""
    names = [f"im{number:02d}" for number in range(20)]
    hashes = {name: hashlib.sha256(f"2012 {name}".encode()).hexdigest() for name in names}
    assert choose_by_chance(names, 0.2) == set(sorted(names, key=hashes.__getitem__)[:4])
    assert choose_by_chance(names, 0.2) == {"im00", "im01", "im04", "im16"}


def test_a_larger_share_keeps_the_smaller_one():
    names = [f"im{number:03d}" for number in range(100)]
    assert choose_by_chance(names, 0.1) < choose_by_chance(names, 0.3)


def test_it_is_written_down_and_said_once(flat, capsys):
    train, val = ids(flat)
    assert len(val) == 4 and sorted(train + val) == [f"im{number:02d}" for number in range(20)]
    assert train == sorted(train) and val == sorted(val)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and "16 images for train and 4 for val" in printed[0] and FOLDER in printed[0]
    assert (flat / FOLDER / "val.txt").read_text().split() == val
    assert sorted(path.name for path in flat.iterdir()) == ["classes.txt", "images", "masks", FOLDER]
    assert find_layout("folder", flat).splits() == ["train", "val"]


def test_new_images_leave_the_split_as_it_is(flat):
    before = ids(flat)
    add(flat, ["a0", "im99"])
    assert ids(flat) == before
    (remark,) = find_layout("folder", flat).remarks
    assert "2 images such as a0, im99" in remark and FOLDER in remark and "train.txt" in remark
    with (flat / FOLDER / "train.txt").open("a") as file:
        file.write("im99\n")
    assert ids(flat) == ([*before[0], "im99"], before[1])
    assert "1 images such as a0" in find_layout("folder", flat).remarks[0]


def test_a_folder_that_cannot_be_written_gets_the_same_split(flat, monkeypatch, capsys):
    copy = Path(shutil.copytree(flat, flat.parent / "copy"))
    written = ids(flat)
    capsys.readouterr()

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert ids(copy) == written
    assert sorted(path.name for path in copy.iterdir()) == ["classes.txt", "images", "masks"]
    (remark,) = find_layout("folder", copy).remarks
    assert "16 images for train and 4 for val" in remark and capsys.readouterr().out == ""


def test_runs_that_begin_at_once_agree(flat):
    seen, errors = [], []

    def begin() -> None:
        try:
            seen.append(ids(flat))
        except Exception as error:  # what a thread raises is lost otherwise
            errors.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(seen) == 8 and all(each == seen[0] for each in seen)
    assert sorted(path.name for path in flat.iterdir()) == ["classes.txt", "images", "masks", FOLDER]


def test_the_share_is_asked_for_once_and_then_compared(flat):
    assert len(ids(flat, val_share=0.5)[1]) == 10
    assert ids(flat) == ids(flat, val_share=0.5)
    with pytest.raises(UserError, match=rf"--val-share 0\.1: .*{FOLDER}.*10 of 20 images for val; remove"):
        ids(flat, val_share=0.1)


@pytest.mark.parametrize("share", [0, 1, -0.1, 20, float("nan")])
def test_shares_that_are_none(flat, share):
    with pytest.raises(UserError, match=r"--val-share .*between 0 and 1"):
        ids(flat, val_share=share)
    assert not (flat / FOLDER).exists()


def test_lists_of_ones_own_are_left_alone(flat):
    (flat / "train.txt").write_text("im00\nim01\nim02\n")
    (flat / "val.txt").write_text("im03\n")
    assert ids(flat) == (["im00", "im01", "im02"], ["im03"])
    assert ids(flat, val_share=0.25) == ids(flat)
    with pytest.raises(UserError, match=r"--val-share 0\.5: .*val\.txt keeps 1 of 4.*leave --val-share out"):
        ids(flat, val_share=0.5)
    assert not (flat / FOLDER).exists() and not find_layout("folder", flat).remarks


def test_a_train_list_alone_is_parted_on_request(flat):
    (flat / "train.txt").write_text("".join(f"im{number:02d}\n" for number in range(10)))
    with pytest.raises(UserError, match=r"no split 'val'.*--val-share"):
        ids(flat)
    train, val = ids(flat, val_share=0.2)
    assert sorted(train + val) == [f"im{number:02d}" for number in range(10)] and len(val) == 2
    assert ids(flat) == (train, val)


def numbered(folder: Path, count: int, grey: int) -> None:
    """Pictures 000, 001, ... of one grey, in ``folder``/images, with masks."""
    for number in range(count):
        for place, value in (("images", grey), ("masks", 0)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), value, np.uint8)).save(folder / place / f"{number:03d}.png")


@pytest.mark.parametrize("place", ["train", "."])
@pytest.mark.parametrize("writable", [True, False])
def test_pictures_of_a_test_split_may_bear_the_same_names(tmp_path, monkeypatch, place, writable):
    """None of train's is lost to them, and no list of names means one of theirs."""
    numbered(tmp_path / place, 20, 10)
    numbered(tmp_path / "test", 10, 200)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    monkeypatch.setattr(splitting, "can_write", lambda folder: writable)
    for _ in range(2):  # as it is made, and as it is read
        sets = [build_dataset("folder", tmp_path, split, val_share=0.2) for split in ("train", "val")]
        assert [len(data) for data in sets] == [16, 4]
        assert all((data[index]["image"] == 10).all() for data in sets for index in range(len(data)))
    assert len({path for data in sets for path in data.files.images}) == 20


def test_a_list_beside_folders_of_train_and_test_means_train(tmp_path):
    numbered(tmp_path / "train", 6, 10)
    numbered(tmp_path / "test", 6, 200)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "val.txt").write_text("000\n001\n")
    (tmp_path / "test_hard.txt").write_text("002\n")
    for split, grey in (("val", 10), ("test_hard", 200)):
        assert (build_dataset("folder", tmp_path, split)[0]["image"] == grey).all()


def test_a_list_with_a_name_of_its_own_is_what_is_parted(flat):
    """As CVAT writes it."""
    (flat / "ImageSets/Segmentation").mkdir(parents=True)
    (flat / "ImageSets/Segmentation/default.txt").write_text("im00\nim01\nim02\nim03\nim04\n")
    train, val = ids(flat)
    assert sorted(train + val) == ["im00", "im01", "im02", "im03", "im04"] and len(val) == 1


def test_test_images_are_in_neither(flat):
    (flat / "test.txt").write_text("im00\nim07\n")
    train, val = ids(flat)
    assert sorted(train + val) == [f"im{number:02d}" for number in range(20) if number not in (0, 7)]


def test_names_that_no_file_could_list_are_parted_all_the_same(flat, monkeypatch):
    monkeypatch.setattr(splitting, "_write", lambda root, ids: False)
    train, val = ids(flat)
    assert (len(train), len(val)) == (16, 4)


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
@pytest.mark.parametrize("name", ["trail ", " lead", "a\\b", "two\nlines", "next\x85line"])
def test_a_name_that_no_list_can_say_keeps_nobody_from_starting(flat, name):
    add(flat, [name])
    train, val = ids(flat)
    assert len(train) + len(val) == 21 and name in {*train, *val}
    assert not (flat / FOLDER).exists() and ids(flat) == (train, val)


def test_one_image_cannot_be_parted(tmp_path):
    add(tmp_path, ["alone"])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="of 1 images none can be kept for val"):
        build_dataset("folder", tmp_path, "train")


def test_what_no_list_says_to_be_for_val_is_for_train(flat):
    (flat / "val.txt").write_text("im03\nimages/im07.png\n")
    train, val = ids(flat)
    assert val == ["im03", "im07"] and train == [f"im{number:02d}" for number in range(20) if number not in (3, 7)]
    assert not (flat / FOLDER).exists()
    assert any(
        "no list what is for train: the other 18 images are" in each for each in find_layout("folder", flat).remarks
    )
    (flat / "test.txt").write_text("im00\n")
    assert ids(flat)[0] == [name for name in train if name != "im00"]
    (flat / "train.txt").write_text("im05\n")
    assert ids(flat)[0] == ["im05"]
