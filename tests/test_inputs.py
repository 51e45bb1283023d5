"""What inputs mean: folders, links, patterns, names; and what is left of an earlier run."""

import os
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from deploy import predictor
from deploy.predictor import Options, Predictor
from segdata.inputs import find_sources, unquoted
from tests.test_segmenter import segmenter


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def save_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels()).save(path)
    return path


@pytest.mark.skipif(os.name == "nt", reason="links want rights on Windows")
def test_a_second_name_of_a_file_is_counted_and_named(tmp_path):
    save_picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "in" / "a.png")
    found = find_sources([str(tmp_path / "in")])
    assert len(found.sources) == 1
    assert found.left_out == [f"{tmp_path / 'in'}: left out 1 name of a file that is there already (b.png)"]


@pytest.mark.skipif(os.name == "nt", reason="links want rights on Windows")
def test_folders_behind_links_are_searched_once(tmp_path):
    save_picture(tmp_path / "elsewhere" / "real.png")
    save_picture(tmp_path / "in" / "own.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "dangling.png").symlink_to(tmp_path / "nothing.png")
    found = find_sources([str(tmp_path / "in")])
    assert [source.name.as_posix() for source in found.sources] == ["linked/real", "own"]
    assert found.missing == [f"{tmp_path / 'in' / 'dangling.png'}: a link to nothing"]
    found = find_sources([str(tmp_path / "in" / "**" / "*.png")])
    assert [source.name.as_posix() for source in found.sources] == ["linked/real", "own"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.png", ["a"]), ("*/*.png", ["x/b"]), ("**/*.png", ["a", "x/b", "x/y/c"]), ("x/**/*.png", ["b", "y/c"]),
     ("**/[bc].png", ["x/b", "x/y/c"]), ("**/y/*", ["x/y/c"]), ("?.png", ["a"]),
     ("x/**", ["b", "y/c"])],
)  # fmt: skip
def test_patterns(tmp_path, pattern, expected):
    for name in ("a.png", "x/b.png", "x/y/c.png", ".hidden/d.png", "x/.e.png"):
        save_picture(tmp_path / name)
    found = find_sources([str(tmp_path / pattern)])
    assert [source.name.as_posix() for source in found.sources] == expected


def test_the_moving_half_of_a_live_photo_is_left_out(tmp_path):
    """As an iPhone exports them; a video of its own, or one that is named, is meant."""
    for name in ("IMG_1.HEIC", "IMG_1.MOV", "IMG_2.jpg", "IMG_2.mov", "clip.MOV", "IMG_3.JPG", "IMG_3.mp4"):
        (tmp_path / name).touch()
    found = find_sources([str(tmp_path)])
    assert [source.path for source in found.sources if source.is_video] == [
        str(tmp_path / name) for name in ("IMG_3.mp4", "clip.MOV")
    ]
    assert f"{tmp_path}: left out 2 videos of Live Photos (IMG_1.MOV, IMG_2.mov)" in found.left_out
    for named in ("IMG_1.MOV", "*.MOV"):
        assert str(tmp_path / "IMG_1.MOV") in [s.path for s in find_sources([str(tmp_path / named)]).sources]


def test_a_disk_that_will_not_hold_it_all_is_told_early(tmp_path, monkeypatch, capsys):
    """After a few pictures, by the room that they took."""
    for number in range(12):
        save_picture(tmp_path / "in" / f"{number}.png")
    room = iter([10_000_000, 2_000_000, 2_000_000])
    monkeypatch.setattr(predictor, "free_bytes", lambda folder: next(room))
    Predictor(segmenter(), tmp_path / "out", Options(["mask"])).predict([str(tmp_path / "in")])
    assert "some 1.0 MB a picture: those that are left, 4, want 0.0 GB" in capsys.readouterr().err


def test_pictures_where_results_go_are_named(tmp_path):
    save_picture(tmp_path / "a" / "1.png")
    save_picture(tmp_path / "overlay" / "2.png")
    found = find_sources([str(tmp_path)], skip=[tmp_path / "overlay"])
    assert [source.name.as_posix() for source in found.sources] == ["a/1"]
    assert found.left_out == [f"{tmp_path}: left out 1 file that is a result or a mask (overlay/2.png)"]


@pytest.mark.skipif(os.name == "nt", reason="Windows counts letters, and the whole path")
def test_programs_with_the_suffix_of_videos_are_left_out(tmp_path):
    (tmp_path / "app.ts").write_text("export const width: number = 640;\n")
    (tmp_path / "go.mod").write_text("module example.org/a\n")
    (tmp_path / "clip.ts").write_bytes(b"\x47\x40\x00\x10\x00\x00" + bytes(182))
    found = find_sources([str(tmp_path)])
    assert [source.name.name for source in found.sources] == ["clip"]
    assert "left out 2 files that are no pictures or videos (app.ts, go.mod)" in found.left_out[0]


@pytest.mark.skipif(os.name == "nt", reason="HOME is not what ~ means there")
def test_folders_below_home_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("x", "y"):
        save_picture(tmp_path / name / "a.png")
    assert [source.name.as_posix() for source in find_sources(["~/x", "~/y"]).sources] == ["x/a", "y/a"]


@pytest.mark.skipif(os.name == "nt", reason="a backslash parts folders there")
def test_paths_of_files_dropped_on_a_terminal(tmp_path):
    path = save_picture(tmp_path / "it's my photo.png")
    for text in (str(path), f'"{path}"', shlex.quote(str(path)), re.sub(r"(['\s])", r"\\\1", str(path))):
        assert unquoted(text) == str(path), text
    assert unquoted("'camera:0'") == "camera:0" and unquoted("two words") == "two words"


def test_long_names_cost_themselves_alone(tmp_path):
    folder = tmp_path / "in"
    longest = save_picture(folder / ("l" * 251 + ".png"))
    (folder / ("j" * 253 + ".b")).write_bytes(longest.read_bytes())
    save_picture(folder / "z.png")
    tally = Predictor(segmenter(), tmp_path / "out", Options(["mask"])).predict([str(folder)])
    assert tally.pictures == 2
    assert [failure.split(": ")[1] for failure in tally.failures] == [
        "its name is too long for results to bear it; give it a shorter one"
    ]
    assert (tmp_path / "out" / "mask" / longest.name).is_file()


def test_results_of_an_earlier_longer_run_go(tmp_path):
    frames = [Image.fromarray(pixels(seed)) for seed in range(5)]
    for count, name in ((5, "a.gif"), (5, "b.gif"), (2, "a.gif")):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:count])
        Predictor(segmenter(), tmp_path / "out", Options(["mask"])).predict([str(tmp_path / name)])
    written = sorted(
        path.relative_to(tmp_path / "out" / "mask").as_posix() for path in (tmp_path / "out").rglob("*.png")
    )
    assert written == [f"a/{n:06d}.png" for n in (1, 2)] + [f"b/{n:06d}.png" for n in range(1, 6)]


def test_a_run_that_fails_leaves_the_table_of_areas(tmp_path):
    good, bad = save_picture(tmp_path / "a.png"), tmp_path / "b.png"
    bad.write_bytes(b"")
    options = Options(["csv"])
    Predictor(segmenter(), tmp_path, options).predict([str(good)])
    before = (tmp_path / "areas.csv").read_text()
    Predictor(segmenter(), tmp_path, options).predict([str(bad)])
    assert (tmp_path / "areas.csv").read_text() == before and len(before.splitlines()) == 2
