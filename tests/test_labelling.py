"""predict.py --teacher into a folder where there is something already: nothing of a person's is lost."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploy
from datachecks import teacher_masks
from dataset import build_dataset
from segdata.class_tables import read_class_table
from tests.test_mapped_teachers import COLOURS, MAP, NAMES

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)  # in the teacher's words the classes 0, 1, 2


@pytest.fixture
def label(tmp_path, monkeypatch, run_script):
    """``label("photos")`` labels into ``out`` and returns what was printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colours.py").write_text(COLOURS.replace("CLASSES", repr(NAMES)))
    (tmp_path / "map.toml").write_text(MAP)

    def run(*inputs: str, kinds=("mask",), check: bool = True):
        args = ("--teacher", "colours.py:build", "--device", "cpu", "--output-dir", "out", "--save", *kinds)
        return run_script("predict.py", *inputs, *args, check=check)

    return run


def paint(path: Path, colour: tuple[int, ...], size=(40, 32), **options) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(path, **options)
    return path.read_bytes()


def masks(folder: Path = Path("out/mask")) -> dict[str, int]:
    """The class of each mask's first pixel."""
    return {path.stem: int(np.asarray(Image.open(path)).flat[0]) for path in sorted(folder.iterdir())}


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_a_persons_own_picture_and_mask_stay(label):
    """A picture of the same name, also in another format, is labelled under a name of its own, and again under that."""
    own = paint(Path("out/images/im.jpg"), RED)
    mask = paint(Path("out/mask/im.png"), (7, 7, 7))
    paint(Path("photos/im.png"), BLUE)
    said = label("photos").stdout
    assert "1 pictures have the name of another one in out/images" in said and "im_2 for im" in said
    assert files("out/images") == {"im.jpg": own, "im_2.png": Path("photos/im.png").read_bytes()}
    assert Path("out/mask/im.png").read_bytes() == mask and masks()["im_2"] == 2
    before = files("out/images"), files("out/mask")
    assert "a person's" not in label("photos").stdout
    assert (files("out/images"), files("out/mask")) == before, "the same again is the same"


def test_a_folder_a_day_with_the_same_names(label):
    for day, colour in (("day1", RED), ("day2", GREEN), ("day3", BLUE)):
        paint(Path(day, "IMG_1.jpg"), colour)
        label(day)
    assert masks() == {"IMG_1": 0, "IMG_1_2": 1, "IMG_1_3": 2}
    mended = paint(Path("out/mask/IMG_1.png"), (9, 9, 9))
    Path("out/mask/IMG_1_2.png").unlink()
    said = label("day1", "day2").stdout  # together they have the names of their folders
    assert "a person's" not in said
    said = label("day1").stdout
    assert "1 mask is a person's" in said
    label("day2")
    assert Path("out/mask/IMG_1.png").read_bytes() == mended and masks()["IMG_1_2"] == 1


def test_areas_are_those_of_a_mended_mask(label):
    """It is read as a training reads it; one that is damaged is skipped and named, and the next picture labelled."""
    for name in ("a", "b", "c"):
        paint(Path(f"photos/{name}.png"), RED)
    label("photos")
    paint(Path("out/mask/a.png"), (1, 1, 1))  # grey in three channels
    Path("out/mask/b.png").write_bytes(Path("out/mask/b.png").read_bytes()[:60])
    result = label("photos", kinds=("mask", "csv"), check=False)
    assert result.returncode == 1 and "b.png" in result.stderr and "Traceback" not in result.stderr
    with Path("out/areas.csv").open(encoding="utf-8", newline="") as file:
        areas = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
    assert sorted(areas) == ["a", "c"]
    assert (areas["a"]["red"], areas["a"]["green"]) == ("0", str(40 * 32)) and areas["c"]["red"] == str(40 * 32)


def test_pages_and_what_is_written_anew_are_known_again(label):
    """By their pixels: a TIFF of two pages; the same names, and other pages, on another day."""
    for day, colours in (("day1", (RED, GREEN)), ("day2", (RED, BLUE))):
        Path(day).mkdir()
        first, second = (Image.new("RGB", (40, 32), colour) for colour in colours)
        first.save(f"{day}/scan.tif", save_all=True, append_images=[second])
        for _ in range(2):
            label(day)
    assert masks() == {"scan_000001": 0, "scan_000002": 1, "scan_000002_2": 2}
    assert sorted(files("out/images")) == ["scan_000001.png", "scan_000002.png", "scan_000002_2.png"]


def test_frames_of_two_videos_of_one_name_and_a_mended_frame(label):
    pytest.importorskip("av")
    from tests.test_video import make_clip

    for day, size in (("day1", (48, 64)), ("day2", (32, 48))):
        Path(day).mkdir()
        make_clip(Path(day, "clip.mkv"), 2, size)
    label("day1")
    one = files("out/images")
    mended = paint(Path("out/mask/clip_000002.png"), (9, 9, 9))
    label("day2")
    label("day1", kinds=("mask", "overlay"))
    assert sorted(masks()) == ["clip_000001", "clip_000001_2", "clip_000002", "clip_000002_2"]
    assert one.items() <= files("out/images").items()
    assert Path("out/mask/clip_000002.png").read_bytes() == mended and Path("out/overlay/clip.mp4").is_file()


def test_transparent_pictures_are_kept_as_the_teacher_saw_them(label):
    """On white; an opaque file of the same kind is a link."""
    paint(Path("photos/clear.png"), (0, 0, 255, 0))
    paint(Path("photos/full.png"), BLUE)
    Image.new("P", (40, 32), 0).save("photos/palette.png", transparency=0)
    for _ in range(2):
        label("photos")
    assert sorted(files("out/images")) == ["clear.png", "full.png", "palette.png"]
    assert Path("out/images/full.png").samefile("photos/full.png")
    for sample in build_dataset("folder", Path("out"), "train", val_share=0.4):
        assert sample["image"].shape[0] == 3
        expected = (0, 0, 255) if sample["id"] == "full" else (255, 255, 255)
        assert sample["image"][:, 0, 0].tolist() == list(expected)
    assert Image.open("photos/clear.png").mode == "RGBA", "the person's own file is as it was"
    label("out/images")  # in place
    assert len(files("out/images")) == 3


def test_what_was_labelled_before_a_stop_is_the_teachers(label, monkeypatch):
    """Ctrl-C, and once more: no mask counts as mended, and none is missing."""
    from deploy.labelling import Labeller

    for number, colour in enumerate((RED, GREEN, BLUE)):
        paint(Path(f"photos/{number}.png"), colour)
    write = Labeller._write

    def stop_at_the_second(self, source, name, *rest):
        if name.name == "1":
            raise KeyboardInterrupt
        write(self, source, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "_write", stop_at_the_second)
        assert label("photos", check=False).returncode == 130
    assert masks() == {"0": 0}
    assert "a person's" not in label("photos").stdout
    assert masks() == {"0": 0, "1": 1, "2": 2}


KILLED = """
import os, sys
import predict
from deploy.labelling import Labeller

write = Labeller._write
def stop_at_the_second(self, source, name, *rest):
    if name.name == "1":
        os._exit(9)
    write(self, source, name, *rest)

Labeller._write = stop_at_the_second
predict.main(predict.get_args_parser().parse_args(sys.argv[1:]))
"""


def test_what_was_labelled_before_a_kill_is_the_teachers(label):
    """Its masks are known as a teacher's, and its classes fixed, as after Ctrl-C."""
    for number, colour in enumerate((RED, GREEN, BLUE)):
        paint(Path(f"photos/{number}.png"), colour)
    Path("kill.py").write_text(KILLED)
    args = ["photos", "--teacher", "colours.py:build", "--device", "cpu", "--output-dir", "out", "--save", "mask"]
    environment = os.environ | {"PYTHONPATH": str(Path(deploy.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "kill.py", *args], env=environment, check=False).returncode == 9
    assert masks() == {"0": 0} and teacher_masks.unmended(Path("out/mask").iterdir()) == [Path("out/mask/0.png")]
    assert read_class_table(Path("out/classes.txt")).names == NAMES
    assert "a person's" not in label("photos").stdout
    assert masks() == {"0": 0, "1": 1, "2": 2} and not list(Path("out").glob("*.jsonl"))


def test_a_mask_that_a_person_found_right_counts_as_one_of_a_person(label):
    for name in ("a", "b.1", "c"):
        paint(Path(f"photos/{name}.png"), RED)
    label("photos")
    assert len(teacher_masks.unmended(Path("out/mask").iterdir())) == 3
    Path("out/checked.txt").write_text("\ufeffa.png\r\n\r\n# mended:\r\nb.1\r\n", encoding="utf-8")
    for _ in range(3):  # to label again changes nothing about that
        assert teacher_masks.unmended(Path("out/mask").iterdir()) == [Path("out/mask/c.png")]
        assert "2 masks are a person's" in label("photos").stdout
    Path("out/checked.txt").unlink()
    assert len(teacher_masks.unmended(Path("out/mask").iterdir())) == 3, "what the teacher wrote is not forgotten"


def test_a_name_in_the_letters_of_another_system_is_found_right(label):
    """macOS lists u and its dots, editors write one letter."""
    paint(Path("photos", unicodedata.normalize("NFD", "\u00fcber.png")), RED)
    label("photos")
    Path("out/checked.txt").write_text("\u00fcber.png\n", encoding="utf-8")
    assert teacher_masks.unmended(Path("out/mask").iterdir()) == []


def test_a_name_that_is_none_is_not_found_right(label):
    paint(Path("photos/IMG_1.png"), RED)
    label("photos")
    Path("out/checked.txt").write_text("IMG1\n")
    refused = label("photos", check=False)
    assert refused.returncode == 2
    assert "checked.txt: the teacher labelled no picture of the name 'IMG1'" in refused.stderr


def test_what_a_teacher_has_labelled_elsewhere_is_no_picture(label, run_script):
    """Masks and overlays of another labelling, in the folder of the pictures or in one below."""
    paint(Path("photos/a.png"), RED)
    args = ["--teacher", "colours.py:build", "--device", "cpu", "--save", "mask", "overlay", "--output-dir"]
    run_script("predict.py", "photos", *args, "photos")
    run_script("predict.py", "photos", *args, "photos/first")
    assert "left out 6 files that are results or masks" in label("photos").stderr
    assert masks() == {"a": 0}
    for asked, name in (("photos/first/images", "a"), ("photos/first", "images_a")):  # the data set is its pictures
        shutil.rmtree("out")
        label(asked)
        assert masks() == {name: 0}


@pytest.mark.parametrize("place", ["photos/images/{}", "photos/{}", "photos/day1/images/{}"])
def test_masks_of_a_data_set_are_no_pictures(label, place):
    """In a folder of masks beside the images, or beside each one; photographs in a folder called so are some."""
    image = Path(place.format("a.png"))
    folder = image.parent.parent if image.parent.name == "images" else image.parent
    for path in (image, folder / "masks" / "a.png", image.with_name("b.png"), image.with_name("b_mask.png")):
        path.parent.mkdir(parents=True, exist_ok=True)
        paint(path, RED)
    Path("photos/other/labels").mkdir(parents=True)
    paint(Path("photos/other/labels/c.png"), BLUE)
    assert "left out 2 files that are results or masks" in label("photos").stderr
    assert sorted(name.rpartition("_")[2] for name in masks()) == ["a", "b", "c"]
    shutil.rmtree("out")
    label(str(folder / "masks"))
    assert masks() == {"a": 0}


def test_a_class_list_of_a_person_stays(label):
    paint(Path("photos/a.png"), BLUE)
    Path("out").mkdir()
    text = "\n".join(NAMES)  # no newline at the end, say
    Path("out/classes.txt").write_text(text)
    label("photos")
    assert Path("out/classes.txt").read_text() == text
    Path("out/classes.txt").write_text("".join(f"{name} {number} 0 0\n" for number, name in enumerate(NAMES)))
    done = label("photos", check=False)
    assert done.returncode == 2 and "says that masks have colours" in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [("masks/a.png", "masks holds masks already"), ("class_dict.csv", "names other classes (x, ...)")],
)
def test_a_data_set_that_could_not_be_read_with_these_masks_is_refused(label, name, words):
    """Before anything is written."""
    paint(Path("photos/a.png"), BLUE)
    paint(Path("out/images/a.png"), RED)
    if name.endswith("png"):
        paint(Path("out", name), RED)
    else:
        Path("out", name).write_text("name,r,g,b\nx,0,0,0\n")
    done = label("photos", check=False)
    assert done.returncode == 2 and words in done.stderr
    assert len(list(Path("out").rglob("*.*"))) == 2


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["cat", "dog", "cat", "cat 2", ""], ["cat", "dog", "cat 2", "cat 2 2", "class 4"]),
        (["0 cat", "1 dog", "3 cow", "4 ox", "5 pig"], None),
        (["# cat", "dog", "a\nb", "person, individual", "3d"], ["# cat", "dog", "a b", "person, individual", "3d"]),
    ],
)
def test_class_names_of_a_teacher_can_be_read_back(label, names, read):
    """A name twice, none at all, numbers, signs that mean something in a list; the second time they are the same."""
    Path("colours.py").write_text(COLOURS.replace("CLASSES", repr(names)))
    paint(Path("photos/a.png"), RED)
    said = label("photos").stdout
    assert read_class_table(Path("out/classes.txt")).names == (read or names)
    assert ("class 2, 'cat', is 'cat 2' here" in said) == (names[2] == "cat")
    label("photos")


def test_only_what_is_missing_is_labelled_again(label):
    """Pictures were added, one was edited; then the teacher changed, or what it is asked."""
    for name in ("a", "b", "c"):
        paint(Path(f"photos/{name}.png"), RED)
    label("photos")
    first = {name: Path("out/mask", name).stat().st_mtime_ns for name in files("out/mask")}
    paint(Path("photos/d.png"), BLUE)
    said = label("photos", kinds=("mask", "csv")).stdout
    assert "3 masks were there already" in said and masks() == {"a": 0, "b": 0, "c": 0, "d": 2}
    assert all(Path("out/mask", name).stat().st_mtime_ns == time for name, time in first.items())
    assert len(Path("out/areas.csv").read_text().splitlines()) == 5, "also of what was there"
    assert "there already" not in label("photos", kinds=("mask", "confidence")).stdout, "no confidence lay there"

    paint(Path("photos/b.png"), GREEN)  # edits out/images/b.png, too, where it is a link
    later = Path("out/mask/b.png").stat().st_mtime + 5
    os.utime("photos/b.png", (later, later))
    assert "3 masks were there already" in label("photos").stdout and masks()["b"] == 1

    Path("colours.py").write_text(Path("colours.py").read_text().replace("0.1, -0.1", "-9., 9."))
    said = label("photos").stdout
    assert "there already" not in said and masks() == {"a": 2, "b": 2, "c": 2, "d": 2}
    assert "a person's" not in said and len(teacher_masks.unmended(Path("out/mask").iterdir())) == 4


WORST_MOMENTS = {
    "the mask is noted and not there": "labelling, 'note_written'",
    "the mask is there and its picture not": "picture_folder.PictureFolder, 'link'",
}
KILLED_THERE = """
import os, sys
import predict
from deploy import labelling, picture_folder

def killed(owner, name):
    act, calls = getattr(owner, name), []
    def stop_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2 and name == "link":
            os._exit(9)
        act(*args)
        if len(calls) == 2:
            os._exit(9)
    setattr(owner, name, stop_at_the_second)

killed(MOMENT)
predict.main(predict.get_args_parser().parse_args(sys.argv[1:]))
"""


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("moment", WORST_MOMENTS)
def test_a_kill_at_the_worst_moment_costs_no_picture_and_makes_no_mask_a_persons(label, moment, before):
    """Also where other masks of a teacher lay there before."""
    for number, colour in enumerate((RED, GREEN, BLUE)):
        paint(Path(f"photos/{number}.png"), colour)
    if before:
        colours = Path("colours.py").read_text()
        Path("colours.py").write_text(colours.replace("0.1, -0.1", "-9., 9."))
        label("photos")
        Path("colours.py").write_text(colours)
        shutil.rmtree("out/images")
    Path("kill.py").write_text(KILLED_THERE.replace("MOMENT", WORST_MOMENTS[moment]))
    args = ["photos", "--teacher", "colours.py:build", "--device", "cpu", "--output-dir", "out", "--save", "mask"]
    environment = os.environ | {"PYTHONPATH": str(Path(deploy.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "kill.py", *args], env=environment, check=False).returncode == 9
    there = list(Path("out/mask").glob("[0-9].png"))
    assert len(there) == (3 if before else 1 + ("noted" not in moment))
    assert teacher_masks.unmended(there) == there
    assert "a person's" not in label("photos").stdout
    assert masks() == {"0": 0, "1": 1, "2": 2}
    assert [path.stem for path in sorted(Path("out/images").iterdir())] == ["0", "1", "2"]


def test_a_picture_that_no_training_reads_is_refused_before_its_tiles(label):
    paint(Path("photos/a.png"), RED)
    paint(Path("photos/large.png"), RED, size=(11_000, 10_000))
    done = label("photos", check=False)
    assert done.returncode == 1 and "large.png: 11000x10000 pixels; training and scoring take" in done.stderr
    assert masks() == {"a": 0} and list(files("out/images")) == ["a.png"]
