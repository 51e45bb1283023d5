"""LabelMe's files as people have them, against masks painted by hand; and those that are broken."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from basics.errors import UserError
from datalayouts.labelme import find_labelme
from dataset import build_dataset, find_layout
from segdata.reading import DataError
from tests.conftest import assert_one_line_error
from tests.test_coco import JUNK, SIZE, mask_of, painted, replace_leaf, save_picture, start_anew, write


def shape(label, points, kind="polygon", **more) -> dict:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def box(x0, y0, x1, y1) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def document(image, shapes, size=SIZE, data=None) -> dict:
    return {
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": data,
        "imageHeight": size[0], "imageWidth": size[1],
    }  # fmt: skip


def annotate(root: Path, name: str, shapes, folder=".", **options) -> Path:
    """A picture NAME.jpg in ``folder`` and its file beside it."""
    save_picture(root / folder / f"{name}.jpg")
    return write(root / folder / f"{name}.json", document(f"{name}.jpg", shapes, **options))


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def simple(tmp_path) -> Path:
    """Five pictures with their files beside them; the last has no shapes."""
    root = tmp_path / "my shäpes"
    for number in range(1, 5):
        annotate(root, f"p{number}", [shape("cat" if number % 2 else "dog", box(number, 2, number + 6, 9))])
    annotate(root, "p5", [])
    return root


def both(layout) -> dict[str, np.ndarray]:
    """Every mask by its id, whatever its split."""
    return {name: mask_of(layout, split, name) for split in layout.splits() for name in layout.files(split).ids}


def draw(root: Path, shapes, **options) -> np.ndarray:
    annotate(root, "p", shapes, **options)
    return both(find_labelme(root))["p"]


# -- where things lie --------------------------------------------------------------------------------


def test_files_beside_their_pictures(simple):
    layout = find_layout("labelme", simple)
    assert layout.class_names == ["background", "cat", "dog"]
    masks = both(layout)
    assert sorted(masks) == ["p1", "p2", "p3", "p4", "p5"] and len(layout.files("val").ids) == 1
    np.testing.assert_array_equal(masks["p3"], painted((1, 3, 2, 9, 9)))
    np.testing.assert_array_equal(masks["p4"], painted((2, 4, 2, 10, 9)))
    assert not masks["p5"].any()


@pytest.mark.parametrize(
    ("picture", "file", "said"),
    [
        ("images/{split}/a.jpg", "labels/{split}/a.json", "..\\..\\images\\{split}\\a.jpg"),
        ("images/{split}/a.jpg", "labels/{split}/a.json", "a.jpg"),
        ("{split}/images/a.jpg", "{split}/annotations/a.json", "C:\\Users\\me\\a.jpg"),
        ("{split}/a.jpg", "{split}/a.json", "/home/me/somewhere/a.jpg"),
        ("{split}/a.jpg", "{split}/a.json", "name_before_it_was_renamed.jpg"),
        ("{split}/a.PNG", "{split}/a.json", "a.jpg"),
        ("{split}/a.jpg", "{split}/a.json", None),
        ("{split}/img/a.webp", "{split}/json/a.json", ""),
        ("pictures {split}/a.jpg", "{split}/a.json", "../pictures {split}/a.jpg"),
    ],
)
def test_the_forms_in_use_are_found(tmp_path, picture, file, said):
    for split, width in (("train", 3), ("val", 5)):
        save_picture(tmp_path / picture.format(split=split))
        content = document(said and said.format(split=split), [shape("cat", box(0, 0, width, 4))])
        write(tmp_path / file.format(split=split), content)
    layout = find_labelme(tmp_path)
    assert layout.splits() == ["train", "val"]
    for split, width in (("train", 3), ("val", 5)):
        files = layout.files(split)
        assert files.ids == ["a"]
        assert files.images[0].resolve() == (tmp_path / picture.format(split=split)).resolve()
        np.testing.assert_array_equal(mask_of(layout, split, "a"), painted((1, 0, 0, width, 4)))


def test_pictures_in_one_folder_and_files_by_split(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        save_picture(tmp_path / "images" / f"{name}.jpg")
        write(tmp_path / "labels" / split / f"{name}.json", document(f"{name}.jpg", [shape("cat", box(0, 0, 3, 4))]))
    layout = find_labelme(tmp_path)
    assert (layout.files("train").ids, layout.files("val").ids) == (["a"], ["b"])


def test_a_picture_of_another_folder_is_never_taken(tmp_path):
    save_picture(tmp_path / "images" / "train" / "a.jpg")
    save_picture(tmp_path / "images" / "two" / "b.jpg")
    for folder, name in (("val", "a"), ("one", "b")):
        content = document(f"{name}.jpg", [shape("cat", box(0, 0, 3, 4))])
        write(tmp_path / "labels" / folder / f"{name}.json", content)
    with pytest.raises(DataError, match=r"b\.json.*has no picture.*1 more: .*a\.json"):
        find_labelme(tmp_path)


def test_names_in_several_folders_are_told_apart(tmp_path):
    for folder, width in (("one", 3), ("two", 5), (".", 7)):
        annotate(tmp_path, "001", [shape("cat", box(0, 0, width, 4))], folder)
    masks = both(find_labelme(tmp_path))
    assert {name: int(mask.sum()) // 4 for name, mask in masks.items()} == {"one__001": 3, "two__001": 5, "001": 7}


def test_files_beside_the_folders_of_splits_are_a_split_of_their_own(tmp_path):
    for folder in ("train", "val", "."):
        annotate(tmp_path, "a", [shape("cat", box(0, 0, 3, 4))], folder)
    assert find_labelme(tmp_path).splits() == ["train", "val", "other"]


def test_pictures_without_a_file_are_left_out_and_counted(simple):
    for name in ("x.jpg", "y.png"):
        save_picture(simple / name)
    layout = find_labelme(simple)
    assert len(both(layout)) == 5
    assert "x.jpg: has no annotations and is left out (1 more: " in layout.remarks[0]


def test_json_of_other_kinds_is_left_out_and_said(simple):
    write(simple / "settings.json", {"colour": "red"})
    layout = find_labelme(simple)
    assert len(both(layout)) == 5
    assert "settings.json: is not of LabelMe's form and is left out" in layout.remarks[0]


# -- embedded pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_an_embedded_picture_stands_in_for_a_missing_one(tmp_path, suffix):
    picture = save_picture(tmp_path / f"kept{suffix}")
    content = picture.read_bytes()
    picture.unlink()
    data = base64.b64encode(content).decode()
    annotate(tmp_path, "q", [shape("cat", box(0, 0, 3, 4))])
    write(tmp_path / "p.json", document("gone.jpg", [shape("cat", box(0, 0, 5, 4))], data=data))
    layout = find_layout("labelme", tmp_path)
    split = next(split for split in layout.splits() if "p" in layout.files(split).ids)
    files = layout.files(split)
    assert files.images[files.ids.index("p")].read_bytes() == content
    assert build_dataset("labelme", tmp_path, split)[files.ids.index("p")]["image"].shape == (3, *SIZE)
    np.testing.assert_array_equal(both(layout)["p"], painted((1, 0, 0, 5, 4)))


def test_the_picture_beside_goes_before_the_embedded_one(tmp_path):
    annotate(tmp_path, "p", [shape("cat", box(0, 0, 3, 4))], data=base64.b64encode(b"what").decode())
    layout = find_labelme(tmp_path)
    assert layout.files("default").images == [tmp_path / "p.jpg"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("/9j/" + "A" * 40, "not an image|damaged"),
        ("/9j/%%%", "imageData is damaged"),
        (png(np.zeros((7, 7), np.uint8)), "annotated as 30x20, the picture is 7x7"),
        ("what", "has no picture"),
        (5, "has no picture"),
    ],
)
def test_a_damaged_embedded_picture_is_named(tmp_path, data, words):
    write(tmp_path / "p.json", document("gone.jpg", [shape("cat", box(0, 0, 5, 4))], data=data))
    with pytest.raises(DataError, match=rf"p\.j.*({words})"):
        find_labelme(tmp_path)


# -- what is drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (shape("cat", box(2, 3, 9, 8)), painted((1, 2, 3, 9, 8))),
        ({"label": "cat", "points": box(2, 3, 9, 8)}, painted((1, 2, 3, 9, 8))),  # old versions name no type
        (shape("cat", box(2, 3, 9, 8), None), painted((1, 2, 3, 9, 8))),
        (shape("cat", [[2, 3], [9, 8]], "rectangle"), painted((1, 2, 3, 9, 8))),
        (shape("cat", [[9, 3], [2, 8]], "rectangle"), painted((1, 2, 3, 9, 8))),
        (shape("cat", box(2, 3, 9, 8), "rectangle"), painted((1, 2, 3, 9, 8))),
        (shape("cat", box(2, 3, 9, 8), "rotation"), painted((1, 2, 3, 9, 8))),
        (shape("cat", box(2, 3, 9, 8), "oriented_rectangle"), painted((1, 2, 3, 9, 8))),
        (shape("cat", [[2, 3], [8, 7]], "mask", mask=png(np.ones((5, 7), bool))), painted((1, 2, 3, 9, 8))),
        (shape("cat", [[2.0, 3.0], [8.0, 7.0]], "mask", mask=png(np.full((5, 7), 255, np.uint8))),
         painted((1, 2, 3, 9, 8))),
        (shape("cat", [[5, 5], [5, 6]], "circle"), painted((1, 4, 4, 6, 6))),  # the four centres at 0.71 pixels
    ],
)  # fmt: skip
def test_every_type_of_shape_with_an_area(tmp_path, entry, expected):
    np.testing.assert_array_equal(draw(tmp_path, [entry]), expected)


def test_lines_and_points_are_left_out_and_counted(tmp_path):
    lines = [
        shape("cat", [[1, 1], [9, 9]], "line"),
        shape("cat", [[1, 1], [9, 9], [9, 1]], "linestrip"),
        shape("cat", [[1, 1]], "point"),
        shape("cat", [[1, 1], [2, 2]]),
    ]
    mask = draw(tmp_path, [*lines, shape("cat", box(2, 3, 9, 8))])
    np.testing.assert_array_equal(mask, painted((1, 2, 3, 9, 8)))
    said = " ".join(find_labelme(tmp_path).remarks)
    assert "shape 1 (cat): is a line or a point: it has no area and is left out (2 more: " in said
    assert "shape 4 (cat): has fewer than three points" in said


def test_overlap_goes_by_the_order_of_the_file(tmp_path):
    small, large = shape("cat", box(4, 4, 7, 7)), shape("dog", box(2, 2, 12, 12))
    np.testing.assert_array_equal(draw(tmp_path / "a", [small, large]), painted((2, 2, 2, 12, 12)))
    np.testing.assert_array_equal(
        draw(tmp_path / "b", [large, small]), painted((2, 2, 2, 12, 12), (1, 4, 4, 7, 7))
    )  # fmt: skip


def test_background_and_ignored_shapes(tmp_path):
    shapes = [
        shape("cat", box(0, 0, 10, 10)),
        shape("_background_", box(2, 2, 4, 4)),
        shape("__ignore__", box(6, 6, 9, 9)),
    ]
    np.testing.assert_array_equal(
        draw(tmp_path, shapes), painted((1, 0, 0, 10, 10), (0, 2, 2, 4, 4), (255, 6, 6, 9, 9))
    )


def test_background_in_any_spelling(tmp_path):
    """Without a list, and with the one that was written then."""
    shapes = [shape("cat", box(0, 0, 10, 10)), shape("Background", box(2, 2, 4, 4))]
    for _ in range(2):
        np.testing.assert_array_equal(draw(tmp_path, shapes), painted((1, 0, 0, 10, 10), (0, 2, 2, 4, 4)))
    assert (tmp_path / "classes.txt").read_text().split() == ["background", "cat"]


def test_a_file_that_names_no_picture_has_the_one_beside_it(tmp_path):
    """Also in a folder whose name has a dot."""
    content = document("p.jpg", [shape("cat", box(0, 0, 3, 3))])
    del content["imagePath"]
    save_picture(tmp_path / "crops.v2" / "p.jpg")
    write(tmp_path / "crops.v2" / "p.json", content)
    (mask,) = both(find_labelme(tmp_path)).values()
    np.testing.assert_array_equal(mask, painted((1, 0, 0, 3, 3)))


def test_masks_belong_to_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    for name, size in (("upright", SIZE), ("lying", SIZE[::-1])):
        root = tmp_path / name
        save_picture(root / "p.jpg", size=SIZE[::-1], exif=exif)
        write(root / "p.json", document("p.jpg", [shape("cat", box(0, 0, 3, 3))], size=size))
    np.testing.assert_array_equal(both(find_labelme(tmp_path / "upright"))["p"], painted((1, 0, 0, 3, 3)))
    with pytest.raises(DataError, match=r"p\.jpg \(annotated as 20x30, the picture is 30x20\).*EXIF orientation 8"):
        find_labelme(tmp_path / "lying")


def test_a_file_without_a_size_takes_the_pictures(tmp_path):
    content = document("p.jpg", [shape("cat", box(0, 0, 3, 3))])
    del content["imageHeight"], content["imageWidth"]
    save_picture(tmp_path / "p.jpg")
    write(tmp_path / "p.json", content)
    np.testing.assert_array_equal(both(find_labelme(tmp_path))["p"], painted((1, 0, 0, 3, 3)))


# -- classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classes.txt", "labels.txt"])
@pytest.mark.parametrize(
    ("listed", "class_names", "labels"),
    [
        ("dog\ncat\n", ["background", "dog", "cat"], (0, 2, 1)),
        ("__ignore__\n_background_\ndog\ncat\n", ["background", "dog", "cat"], (0, 2, 1)),
        ("background\nhorse\ncat\ndog\n", ["background", "horse", "cat", "dog"], (0, 2, 3)),
        ("cat\nbackground\ndog\n", ["cat", "background", "dog"], (1, 0, 2)),
    ],
)
def test_a_list_of_classes_gives_the_numbers(tmp_path, name, listed, class_names, labels):
    write(tmp_path / name, listed)
    mask = draw(tmp_path, [shape("cat", box(0, 0, 3, 3)), shape("dog", box(5, 5, 9, 9))])
    assert find_labelme(tmp_path).class_names == class_names
    ground, cat, dog = labels
    np.testing.assert_array_equal(mask, painted((cat, 0, 0, 3, 3), (dog, 5, 5, 9, 9), ground=ground))


def test_classes_are_written_down_once_and_a_new_label_is_named(simple, capsys):
    find_labelme(simple)
    listed = simple / "classes.txt"
    assert listed.read_text(encoding="utf-8").splitlines() == ["background", "cat", "dog"]
    assert f"3 classes written to {listed}: background, cat, dog" in capsys.readouterr().out
    annotate(simple, "p6", [shape("ant", box(0, 0, 3, 3))])
    with pytest.raises(DataError, match=r"p6\.json, label 'ant': is not in .*classes\.txt: correct .* or add it"):
        find_labelme(simple)
    with listed.open("a", encoding="utf-8") as file:
        file.write("ant\n")
    layout = find_labelme(simple)
    assert layout.class_names == ["background", "cat", "dog", "ant"]
    assert both(layout)["p6"][0, 0] == 3 and both(layout)["p1"][3, 3] == 1


def test_labels_of_the_background_alone_are_refused(tmp_path):
    annotate(tmp_path, "p", [shape("background", box(0, 0, 3, 3)), shape("__ignore__", box(5, 5, 9, 9))])
    with pytest.raises(DataError, match="nothing to learn"):
        find_labelme(tmp_path)
    assert not (tmp_path / "classes.txt").exists()


# -- what is broken ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (shape("", box(0, 0, 3, 3)), ["shape 2", "no label"]),
        (shape(None, box(0, 0, 3, 3)), ["no label"]),
        (shape(5, box(0, 0, 3, 3)), ["no label"]),
        ("what", ["no label"]),
        (shape("cat", box(0, 0, 3, float("nan"))), ["shape 2 (cat)", "finite"]),
        (shape("cat", box(0, 0, 3, 1e300)), ["shape 2 (cat)", "absurdly large"]),
        (shape("cat", None), ["shape 2 (cat)", "points"]),
        (shape("cat", "abc"), ["points"]),
        (shape("cat", [[1, 2, 3], [4, 5, 6], [7, 8, 9]]), ["pairs"]),
        (shape("cat", [[1, 2], [3], [4, 5]]), ["not numbers"]),
        (shape("cat", box(40, 0, 50, 5)), ["shape 2 (cat) on p", "(30x20)", "outside"]),
        (shape("cat", box(0, 0, 3, 3), "blob"), ["unknown type 'blob'"]),
        (shape("cat", box(0, 0, 3, 3), ["a"]), ["unknown type"]),
        (shape("cat", [[1, 1]], "circle"), ["a centre and a point"]),
        (shape("cat", [[2, 3], [8, 7]], "mask"), ["mask without a picture"]),
        (shape("cat", [[2, 3]], "mask", mask=png(np.ones((5, 7), bool))), ["its two points"]),
        (shape("cat", [[2, 3], [8, 7]], "mask", mask="%%%"), ["not base64"]),
        (shape("cat", [[2, 3], [8, 7]], "mask", mask="AAAA"), ["no picture"]),
        (shape("cat", [[2, 3], [9, 8]], "mask", mask=png(np.ones((5, 7), bool))), ["another size"]),
    ],
)
def test_a_wrong_shape_is_named(simple, run_script, entry, words):
    file = annotate(simple, "p", [shape("cat", box(0, 0, 3, 3)), entry])
    done = run_script("dataset.py", "--dataset", "labelme", "--data-dir", simple, check=False)
    assert_one_line_error(done, str(file), *words)
    assert not list(simple.glob(".masks-*")) and not list(simple.glob(".drawing-*"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ('{"shapes": [{"label"', ["not JSON, or cut off"]),
        ("[" * 100_000, []),
        ('{"shapes": 5, "imagePath": "p1.jpg"}', ["shapes that are not a list"]),
        ('{"shapes": [], "imagePath": "p1.jpg", "imageHeight": "x"}', ["no number of pixels"]),
        ('{"shapes": [], "imagePath": "p1.jpg", "imageHeight": 21, "imageWidth": 30}', ["annotated as 30x21"]),
        ('{"shapes": [], "imagePath": "p2.jpg"}', ["p2.jpg", "names another picture in imagePath"]),
    ],
)
def test_a_wrong_file_is_named(simple, run_script, text, words):
    file = write(simple / "p1.json", text)
    done = run_script("dataset.py", "--dataset", "labelme", "--data-dir", simple, check=False)
    assert_one_line_error(done, str(file), *words)


def test_faults_of_one_kind_are_counted(simple):
    for number in (1, 2, 3):
        (simple / f"p{number}.jpg").unlink()
    with pytest.raises(DataError, match=r"p1\.json .*: has no picture, .*\(2 more: .*p2\.json.*p3\.json"):
        find_labelme(simple)


def test_a_folder_of_nothing_says_what_is_missing(tmp_path, run_script):
    done = run_script("dataset.py", "--dataset", "labelme", "--data-dir", tmp_path, check=False)
    assert_one_line_error(done, "no .json files")
    write(tmp_path / "a.json", {"images": [], "annotations": [], "categories": []})
    done = run_script("dataset.py", "--dataset", "labelme", "--data-dir", tmp_path, check=False)
    assert_one_line_error(done, "no LabelMe annotations", "--dataset coco")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(path=st.lists(st.integers(0, 50), min_size=1, max_size=5), junk=JUNK, drop=st.booleans())
def test_a_file_with_other_content_is_one_error_or_a_data_set(simple, path, junk, drop):
    start_anew(simple)
    (simple / "classes.txt").unlink(missing_ok=True)
    shapes = [
        shape("cat", box(1, 2, 8, 9)),
        shape("cat", [[5, 5], [5, 6]], "circle"),
        shape("dog", [[2, 3], [8, 7]], "mask", mask=png(np.ones((5, 7), bool))),
    ]
    content = document("p1.jpg", shapes)
    replace_leaf(content, path, junk, drop)
    write(simple / "p1.json", content)
    try:
        for sample in build_dataset("labelme", simple, "train"):
            assert sample["mask"].shape == SIZE
    except UserError as error:
        assert "p1.j" in str(error) and len(str(error)) < 2000 and "\n" not in str(error)
        assert not list(simple.glob(".masks-*")) and not list(simple.glob(".drawing-*"))


@pytest.mark.parametrize(("files", "pictures"), [(".", "."), ("labels", "images")])
def test_an_image_path_of_another_picture_is_refused(tmp_path, files, pictures):
    """A file that was copied, or a picture renamed: whose the shapes are, nobody knows. Without a picture of its own
    the file's name says nothing."""
    for name in ("p0", "p1"):
        save_picture(tmp_path / pictures / f"{name}.jpg")
    said = "p1.jpg" if files == pictures else "../images/p1.jpg"
    write(tmp_path / files / "p0.json", document(said, [shape("cat", box(0, 0, 4, 4))]))
    with pytest.raises(DataError, match=r"p0\.json \(.*p1\.jpg, and .*p0\.jpg\): names another picture in imagePath"):
        find_labelme(tmp_path)
    (tmp_path / pictures / "p0.jpg").rename(tmp_path / pictures / "p2.jpg")
    assert list(both(find_labelme(tmp_path))) == ["p1"]
    write(tmp_path / files / "p1.json", document(said, [shape("cat", box(0, 0, 4, 4))]))
    with pytest.raises(DataError, match=r"p1\.jpg \(the same as in .*p0\.json\): is annotated twice"):
        find_labelme(tmp_path)


def test_labels_that_differ_in_capitals_alone(tmp_path):
    """Refused where nobody listed them; said where both are listed; blanks around a label mean nothing."""
    annotate(tmp_path, "a", [shape("cat", box(0, 0, 4, 4)), shape("cat ", box(6, 0, 9, 4))])
    annotate(tmp_path, "b", [shape("Cat", box(0, 0, 4, 4))])
    with pytest.raises(DataError, match=r"the labels 'Cat' and 'cat' \(such as in .*a\.json\) differ in capitals"):
        find_labelme(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\nCat\n")
    layout = find_labelme(tmp_path)
    assert layout.class_names == ["background", "cat", "Cat"]
    assert any("cat and Cat: differ in capitals or blanks alone" in remark for remark in layout.remarks)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"label 'Cat': is not in .*classes\.txt"):
        find_labelme(tmp_path)
