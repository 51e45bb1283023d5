"""COCO annotations as people export them, against masks painted by hand; and those that are broken."""

from __future__ import annotations

import csv
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from basics.errors import UserError
from datalayouts.annotations import unique_ids
from datalayouts.coco import find_coco
from dataset import build_dataset, find_layout
from segdata.reading import DataError
from tests.conftest import assert_one_line_error

SIZE = (20, 30)  # (H, W)
CATEGORIES = [{"id": 7, "name": "crack"}, {"id": 3, "name": "dot"}]  # dot is class 1, crack class 2


def save_picture(path: Path, size=SIZE, **options) -> Path:
    """A picture of its own colour: two that are alike would be taken for one in two splits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = zlib.crc32("/".join(path.parts[-3:]).encode()).to_bytes(4, "big")[:3]
    Image.new("RGB", size[::-1], tuple(colour)).save(path, **options)
    return path


def box(x0, y0, x1, y1) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(image, category, segmentation, **more) -> dict:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0} | more


def document(names, annotations, categories=CATEGORIES, size=SIZE) -> dict:
    """A COCO file of pictures with these names, whose ids are 1, 2, ..."""
    images = [{"id": n, "file_name": name, "height": size[0], "width": size[1]} for n, name in enumerate(names, 1)]
    numbered = [{"id": 100 + n} | entry for n, entry in enumerate(annotations)]
    return {"images": images, "annotations": numbered, "categories": categories}


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def mask_of(layout, split: str, name: str) -> np.ndarray:
    files = layout.files(split)
    return layout.read_labels(files.masks[files.ids.index(name)])


def painted(*boxes, ground=0) -> np.ndarray:
    """A mask with ``(label, x0, y0, x1, y1)`` painted one over the other."""
    mask = np.full(SIZE, ground, np.uint8)
    for label, x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = label
    return mask


@pytest.fixture
def simple(tmp_path) -> Path:
    """Five pictures in images/ and one file beside; the last has no annotations."""
    root = tmp_path / "my döts"
    names = [f"p{n}.jpg" for n in range(1, 6)]
    for name in names:
        save_picture(root / "images" / name)
    annotations = [annotation(n, 7 if n % 2 else 3, box(n, 2, n + 6, 9)) for n in range(1, 5)]
    write(root / "annotations.json", document(names, annotations))
    return root


def find_one(tmp_path, annotations, categories=CATEGORIES, size=SIZE, **picture):
    """The mask of a single picture `p.jpg` with these annotations, and its layout."""
    save_picture(tmp_path / "images" / "p.jpg", **picture)
    write(tmp_path / "annotations" / "instances_train.json", document(["p.jpg"], annotations, categories, size))
    layout = find_coco(tmp_path)
    return mask_of(layout, "train", "p"), layout


# -- where things lie --------------------------------------------------------------------------------


def forms(root: Path, splits: dict[str, list[str]], form: str) -> None:
    """Write a data set in one of the forms in use; picture ``n`` of a split has a box n pixels wide."""
    for split, names in splits.items():
        annotations = [annotation(n, 7, box(0, 0, n, 5)) for n in range(1, len(names) + 1)]
        valid = {"val": "valid"}.get(split, split)
        folder, file, listed = {
            "coco": (f"{split}2017", f"annotations/instances_{split}2017.json", names),
            "coco in images": (f"images/{split}2017", f"annotations/instances_{split}2017.json", names),
            "roboflow": (valid, f"{valid}/_annotations.coco.json", names),
            "cvat": (f"images/{split}", f"annotations/instances_{split}.json", [f"{split}/{name}" for name in names]),
            "shared pictures": ("images", f"annotations/{split}.json", names),
            "beside": (".", f"{split}.json", names),
            "labels": (f"images/{split}", f"labels/{split}/annotations.json", names),
            "nested": (f"{split}/images", f"{split}/annotations/labels.json", names),
            "windows": (f"images/{split}", f"{split}_coco.json", [f"..\\images\\{split}\\{name}" for name in names]),
            "absolute": (f"{split}/data", f"{split}.json", [f"/home/me/pictures/{name}" for name in names]),
            "fiftyone": (f"{split}/data", f"{split}/labels.json", names),
        }[form]
        for name in names:
            save_picture(root / folder / name)
        write(root / file, document(listed, annotations))


@pytest.mark.parametrize(
    "form",
    ["coco", "coco in images", "roboflow", "cvat", "shared pictures", "beside", "nested", "windows", "absolute",
     "fiftyone", "labels"],
)  # fmt: skip
def test_the_forms_in_use_are_found(tmp_path, form):
    forms(tmp_path, {"train": ["a.jpg", "b.jpg", "c.jpg"], "val": ["d.jpg", "e.jpg"]}, form)
    layout = find_coco(tmp_path)
    assert layout.splits() == ["train", "val"]
    assert layout.class_names == ["background", "dot", "crack"]
    assert (layout.files("train").ids, layout.files("val").ids) == (["a", "b", "c"], ["d", "e"])
    np.testing.assert_array_equal(mask_of(layout, "train", "c"), painted((2, 0, 0, 3, 5)))
    np.testing.assert_array_equal(mask_of(layout, "val", "d"), painted((2, 0, 0, 1, 5)))


@pytest.mark.parametrize("form", ["coco", "roboflow", "cvat", "nested"])
def test_the_same_names_in_the_splits_are_different_pictures(tmp_path, form):
    forms(tmp_path, {"train": ["a.jpg", "b.jpg"], "val": ["a.jpg", "b.jpg"]}, form)
    layout = find_coco(tmp_path)
    train, val = layout.files("train"), layout.files("val")
    assert train.ids == val.ids == ["a", "b"]
    assert not set(train.images) & set(val.images) and not set(train.masks) & set(val.masks)
    for files in (train, val):
        assert all(path.is_file() for path in files.images + files.masks)


@pytest.mark.parametrize("form", ["coco", "roboflow", "cvat", "nested"])
def test_a_picture_of_another_split_is_never_taken_for_a_missing_one(tmp_path, form):
    forms(tmp_path, {"train": ["a.jpg", "b.jpg"], "val": ["a.jpg", "b.jpg"]}, form)
    folder = next(path.parent for path in tmp_path.rglob("b.jpg") if "val" in str(path.relative_to(tmp_path)))
    (folder / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"picture (val/)?b\.jpg: is not there"):
        find_coco(tmp_path)
    shutil.rmtree(folder) if form != "roboflow" else (folder / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"picture (val/)?a\.jpg: is not there.*1 more: .*b\.jpg"):
        find_coco(tmp_path)


def test_one_file_is_split_by_chance_and_always_the_same(simple):
    layout = find_layout("coco", simple)
    train, val = layout.files("train").ids, layout.files("val").ids
    assert sorted(train + val) == ["p1", "p2", "p3", "p4", "p5"] and len(val) == 1
    shutil.move(simple, simple.with_name("elsewhere"))
    again = find_layout("coco", simple.with_name("elsewhere"))
    assert again.files("val").ids == val


def test_named_splits_stay_as_they_are(tmp_path):
    names = [f"{letter}.jpg" for letter in "abcdefghij"]
    forms(tmp_path, {"train": names, "test": ["k.jpg"]}, "roboflow")
    layout = find_layout("coco", tmp_path)
    assert layout.splits() == ["train", "test"] and len(layout.files("train").ids) == 10
    assert layout.files("test").masks


def test_a_file_without_a_split_trains_where_another_validates(tmp_path):
    forms(tmp_path, {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"]}, "shared pictures")
    (tmp_path / "annotations" / "train.json").rename(tmp_path / "annotations" / "mine.json")
    layout = find_layout("coco", tmp_path)
    assert (layout.files("train").ids, layout.files("val").ids) == (["a", "b"], ["c"])


def test_a_test_split_without_annotations_has_no_masks(tmp_path):
    forms(tmp_path, {"train": ["a.jpg"], "val": ["b.jpg"], "test": ["c.jpg"]}, "coco")
    file = tmp_path / "annotations" / "instances_test2017.json"
    write(file, json.loads(file.read_text()) | {"annotations": []})
    assert find_coco(tmp_path).files("test").masks is None


def test_cocos_other_files_are_left_alone(tmp_path):
    forms(tmp_path, {"train": ["a.jpg"], "val": ["b.jpg"]}, "coco")
    for name in ("captions_train2017.json", "person_keypoints_train2017.json"):
        write(tmp_path / "annotations" / name, {"images": [], "annotations": []})
    assert find_coco(tmp_path).splits() == ["train", "val"]


def test_files_of_another_kind_are_left_out_with_a_remark(tmp_path):
    forms(tmp_path, {"train": ["a.jpg"], "val": ["b.jpg"]}, "beside")
    write(tmp_path / "val_settings.json", {"colour": "red"})
    layout = find_coco(tmp_path)
    assert layout.splits() == ["train", "val"]
    assert layout.remarks == [f"{tmp_path / 'val_settings.json'}: is not of COCO's form and is left out"]


def test_pictures_in_subfolders_keep_them_in_their_names(tmp_path):
    names = ["a/001.jpg", "b/001.jpg", "001.jpg", "b/001.png"]
    for name in names:
        save_picture(tmp_path / "images" / name)
    annotations = [annotation(n, 7, box(0, 0, n, 5)) for n in range(1, 5)]
    write(tmp_path / "annotations" / "instances_train.json", document(names, annotations))
    write(tmp_path / "annotations" / "instances_val.json", document(names[:1], annotations[:1]))
    layout = find_coco(tmp_path)
    files = layout.files("train")
    assert files.ids == ["001", "a__001", "b__001", "b__001.png"]
    widths = {name: int((mask_of(layout, "train", name) == 2).sum()) // 5 for name in files.ids}
    assert widths == {"a__001": 1, "b__001": 2, "001": 3, "b__001.png": 4}
    assert [path.relative_to(tmp_path / "images").as_posix() for path in files.images] == [
        "001.jpg", "a/001.jpg", "b/001.jpg", "b/001.png",
    ]  # fmt: skip


def test_names_that_differ_in_capitals_alone_have_masks_of_their_own(tmp_path):
    names = ["P.jpg", "p.jpg"]
    for name in names:
        save_picture(tmp_path / "images" / name)
    if len(list((tmp_path / "images").iterdir())) < 2:
        pytest.skip("this disk does not tell capitals")
    write(tmp_path / "train.json", document(names, [annotation(1, 7, box(0, 0, 3, 3))]))
    write(tmp_path / "val.json", document(names[:1], [annotation(1, 7, box(0, 0, 3, 3))]))
    layout = find_coco(tmp_path)
    masks = layout.files("train").masks
    assert len({path.name.lower() for path in masks}) == 2
    assert sorted(int(layout.read_labels(path).sum()) for path in masks) == [0, 18]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["b.jpg", "a.png"], ["b", "a"]),
        (["a/b.jpg", "b.jpg"], ["a__b", "b"]),
        (["a.png", "a.jpg"], ["a.png", "a"]),
        (["pA.jpg", "Pa.jpg"], ["pA.jpg", "Pa"]),
        (["a.jpg", "A.jpg", "a.JPG"], ["a-2", "A", "a.JPG"]),
        (["a.jpg", "a.jpg"], ["a", "a.jpg"]),
        (["archive.tar.jpg", "archive.jpg"], ["archive.tar", "archive"]),
    ],
)
def test_ids_are_names_and_differ_by_more_than_capitals(names, ids):
    assert unique_ids(names) == ids


def test_the_folder_of_the_files_year_goes_before_others(tmp_path):
    forms(tmp_path, {"train": ["a.jpg"], "val": ["b.jpg"]}, "coco")
    for folder in ("train", "train2014", "images/train"):
        save_picture(tmp_path / folder / "a.jpg")
    assert find_coco(tmp_path).files("train").images == [tmp_path / "train2017" / "a.jpg"]


def test_a_name_without_its_folder_must_be_the_only_one(tmp_path):
    for folder in "ab":
        save_picture(tmp_path / "images" / folder / "001.jpg")
    write(tmp_path / "train.json", document(["001.jpg"], [annotation(1, 7, box(0, 0, 3, 3))]))
    with pytest.raises(DataError, match=r"001\.jpg: may be more than one picture; write its folder"):
        find_coco(tmp_path)
    shutil.rmtree(tmp_path / "images" / "a")
    assert find_coco(tmp_path).files("train").ids == ["b__001"]


def test_a_name_in_the_other_spelling_of_unicode(tmp_path):
    """macOS writes ö as o with a sign above it, where the file has one letter."""
    save_picture(tmp_path / "images" / "ko\u0308rper.jpg")
    write(tmp_path / "train.json", document(["k\u00f6rper.jpg"], [annotation(1, 7, box(0, 0, 3, 3))]))
    assert len(find_coco(tmp_path).files("train").ids) == 1


# -- what is drawn -----------------------------------------------------------------------------------


def test_a_name_in_other_capitals_must_be_the_only_one(tmp_path):
    save_picture(tmp_path / "images" / "p.jpg")
    write(tmp_path / "train.json", document(["P.JPG"], [annotation(1, 7, box(0, 0, 4, 4))]))
    assert find_coco(tmp_path).files("train").images == [tmp_path / "images" / "p.jpg"]
    save_picture(tmp_path / "images" / "p.JPG")
    if len(list((tmp_path / "images").iterdir())) == 2:  # this disk tells capitals
        write(tmp_path / "train.json", document(["P.JPG"], [annotation(1, 7, box(0, 0, 5, 5))]))
        with pytest.raises(DataError, match=r"picture P\.JPG: is not there"):
            find_coco(tmp_path)


def test_overlap_goes_by_area_whatever_the_order(tmp_path):
    large, small = annotation(1, 7, box(2, 2, 20, 16)), annotation(1, 3, box(5, 5, 9, 9))
    expected = painted((2, 2, 2, 20, 16), (1, 5, 5, 9, 9))
    for number, order in enumerate(([large, small], [small, large])):
        mask, _ = find_one(tmp_path / str(number), order)
        np.testing.assert_array_equal(mask, expected)


def test_several_polygons_are_one_object(tmp_path):
    mask, _ = find_one(tmp_path, [annotation(1, 7, box(0, 0, 4, 4) + box(10, 10, 14, 14))])
    np.testing.assert_array_equal(mask, painted((2, 0, 0, 4, 4), (2, 10, 10, 14, 14)))


@pytest.mark.parametrize(
    "segmentation",
    [
        [2, 3, 9, 3, 9, 8, 2, 8],  # without the list around it
        [[[2, 3], [9, 3], [9, 8], [2, 8]]],
        [[2, 3], [9, 3], [9, 8], [2, 8]],
        [[2, 3, 9, 3, 9, 8, 2, 8], []],
        [[2, 3, 9, 3, 9, 8, 2, 8, 2, 3]],  # closed
        [["2", "3", "9", "3", "9", "8", "2", "8"]],
    ],
)
def test_polygons_in_other_brackets(tmp_path, segmentation):
    mask, _ = find_one(tmp_path, [annotation(1, 7, segmentation)])
    np.testing.assert_array_equal(mask, painted((2, 2, 3, 9, 8)))


def test_run_lengths_plain_and_compressed(tmp_path):
    expected = painted((2, 3, 4, 11, 9))
    columns = (expected == 2).T.ravel()
    changes = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff([0, *changes, columns.size]).tolist()
    plain = {"counts": counts, "size": list(SIZE)}
    mask, _ = find_one(tmp_path / "plain", [annotation(1, 7, plain)])
    np.testing.assert_array_equal(mask, expected)
    coco = pytest.importorskip("pycocotools.mask")
    packed = coco.encode(np.asfortranarray((expected == 2).astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    mask, _ = find_one(tmp_path / "packed", [annotation(1, 7, packed)])
    np.testing.assert_array_equal(mask, expected)


def test_crowds_are_void_and_said(tmp_path):
    crowd = annotation(1, 7, {"counts": [0, 200, 400], "size": list(SIZE)}, iscrowd=1)
    mask, layout = find_one(tmp_path, [annotation(1, 3, box(2, 2, 5, 5)), crowd])
    np.testing.assert_array_equal(mask, painted((255, 0, 0, 10, 20), (1, 2, 2, 5, 5)))
    (remark,) = layout.remarks
    assert "annotation 101: is a crowd (iscrowd): its pixels are void" in remark and "brush" in remark


def test_pictures_without_annotations_are_background(simple):
    """Or nobody has annotated them yet: that is for a person to know, and they are counted."""
    layout = find_coco(simple)
    assert not mask_of(layout, "default", "p5").any()
    (remark,) = [remark for remark in layout.remarks if "has no annotation" in remark]
    assert "picture p5.jpg: has no annotation: all of it is background" in remark


def test_masks_are_palette_pngs_in_the_data_sets_colours(tmp_path):
    _, layout = find_one(tmp_path, [annotation(1, 7, box(0, 0, 3, 3))])
    with Image.open(layout.files("train").masks[0]) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        assert image.convert("RGB").getpixel((0, 0)) == layout.palette[2]
        assert image.convert("RGB").getpixel((20, 15)) == (0, 0, 0)


def test_sizes_come_from_the_picture_where_the_file_has_none(tmp_path):
    save_picture(tmp_path / "images" / "p.jpg")
    content = document(["p.jpg"], [annotation(1, 7, box(0, 0, 3, 3))])
    for number, sizes in enumerate(({}, {"height": None, "width": None}, {"height": 0, "width": 0})):
        content["images"] = [{"id": 1, "file_name": "p.jpg"} | sizes]
        write(tmp_path / f"train{number}.json", content)
        np.testing.assert_array_equal(mask_of(find_coco(tmp_path), "train", "p"), painted((2, 0, 0, 3, 3)))
        (tmp_path / f"train{number}.json").unlink()


@pytest.mark.parametrize("name", ["p.jpg", "p.png", "p.tif"])
def test_masks_belong_to_the_upright_picture(tmp_path, name):
    """Also in a TIFF, whose size some versions of Pillow turn by themselves."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = SIZE[::-1]
    for folder, size in (("upright", SIZE), ("lying", stored)):
        save_picture(tmp_path / folder / "images" / name, size=stored, exif=exif)
        content = document([name], [annotation(1, 7, box(0, 0, 3, 3))], size=size)
        write(tmp_path / folder / "train.json", content)
    np.testing.assert_array_equal(mask_of(find_coco(tmp_path / "upright"), "train", "p"), painted((2, 0, 0, 3, 3)))
    with pytest.raises(DataError, match=rf"{name} \(annotated as 20x30.*EXIF orientation 6"):
        find_coco(tmp_path / "lying")


# -- classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("categories", "class_names", "label_of_9"),
    [
        ([{"id": 9, "name": "b"}, {"id": 2, "name": "a"}], ["background", "a", "b"], 2),
        ([{"id": 9, "name": "b"}, {"id": 50, "name": "background"}], ["background", "b"], 1),
        ([{"id": 0, "name": "_background_"}, {"id": 9, "name": " b "}], ["background", "b"], 1),
        ([{"id": 9, "name": "Background"}, {"id": 10, "name": "b"}], ["background", "b"], 0),
        ([{"id": 0, "name": "zero"}, {"id": 9, "name": "b"}], ["background", "zero", "b"], 2),
        ([{"id": 9, "name": "__ignore__"}, {"id": 10, "name": "b"}], ["background", "b"], 255),
    ],
)
def test_classes_are_the_background_and_the_categories_by_their_ids(tmp_path, categories, class_names, label_of_9):
    mask, layout = find_one(tmp_path, [annotation(1, 9, box(0, 0, 3, 3))], categories)
    assert layout.class_names == class_names
    assert mask[0, 0] == label_of_9 and not mask[10:].any()
    with next(tmp_path.glob(".masks-*/categories.csv")).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == class_names
    if label_of_9 < 255:
        assert rows[label_of_9]["annotated as"] == "9"


@pytest.mark.parametrize("project", ["street-8kf", "crack"])
def test_roboflows_project_is_no_class(tmp_path, project):
    categories = [
        {"id": 0, "name": project, "supercategory": "none"},
        {"id": 1, "name": "crack", "supercategory": project},
    ]
    mask, layout = find_one(tmp_path, [annotation(1, 1, box(0, 0, 3, 3))], categories)
    assert layout.class_names == ["background", "crack"] and mask[0, 0] == 1
    assert f"category '{project}': stands above the others" in layout.remarks[0]


def test_a_supercategory_that_is_used_is_a_class(tmp_path):
    categories = [
        {"id": 0, "name": "animal", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animal"},
    ]
    annotations = [annotation(1, 0, box(0, 0, 3, 3)), annotation(1, 1, box(5, 5, 9, 9))]
    mask, layout = find_one(tmp_path, annotations, categories)
    assert layout.class_names == ["background", "animal", "cat"] and (mask[0, 0], mask[6, 6]) == (1, 2)


def test_splits_that_contradict_each_other_are_refused(tmp_path):
    for split, categories in (("train", CATEGORIES), ("val", [{"id": 7, "name": "dot"}, {"id": 3, "name": "crack"}])):
        save_picture(tmp_path / split / "a.jpg")
        content = document(["a.jpg"], [annotation(1, 7, box(0, 0, 3, 3))], categories)
        write(tmp_path / "annotations" / f"instances_{split}.json", content)
    with pytest.raises(DataError, match=r"instances_val\.json, category 7 .'dot', elsewhere 'crack'.: is another"):
        find_coco(tmp_path)


# -- what is broken ----------------------------------------------------------------------------------

OK = annotation(1, 7, box(0, 0, 3, 3))
RUNS = {"counts": [0, 10, 590], "size": list(SIZE)}


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ([OK, annotation(1, 9, box(0, 0, 3, 3)), annotation(1, 9, box(0, 0, 3, 3))],
         ["annotation 101 (category_id 9)", "1 more", "annotation 102"]),
        ([annotation(1, None, box(0, 0, 3, 3))], ["annotation 100 (category_id None)"]),
        ([annotation(1, [7], box(0, 0, 3, 3))], ["annotation 100 (category_id [7])"]),
        ([OK, annotation(5, 7, box(0, 0, 3, 3))], ["annotation 101 (image_id 5)", "does not list"]),
        ([annotation("1", 7, box(0, 0, 3, 3))], ["image_id '1'"]),
        ([annotation({}, 7, box(0, 0, 3, 3))], ["image_id {}"]),
        ([annotation(1, 7, [], bbox=[0, 0, 3, 3]), annotation(1, 7, [[]], bbox=[0, 0, 3, 3])],
         ["annotation 100", "only a box", "1 more", "annotation 101"]),
        ([{"image_id": 1, "category_id": 7, "bbox": [0, 0, 3, 3]}], ["only a box"]),
        ([annotation(1, 7, [[0, 0, 3, 0, float("nan"), 3]])], ["annotation 100", "finite"]),
        ([annotation(1, 7, [[0, 0, 3, 0, float("inf"), 3]])], ["finite"]),
        ([annotation(1, 7, [[0, 0, 3, 0, 1e300, 3]])], ["finite number, or absurdly large"]),
        ([annotation(1, 7, [[0, 0, 3, 0, 10**400, 3]])], ["annotation 100"]),
        ([annotation(1, 7, [[0, 0, 3, 0, 3]])], ["pairs"]),
        ([annotation(1, 7, [["a", 0, 3, 0, 3, 3]])], ["not numbers"]),
        ([annotation(1, 7, [[None, 0, 3, 0, 3, 3]])], ["annotation 100"]),
        ([annotation(1, 7, "outline")], ["neither polygons nor run lengths"]),
        ([annotation(1, 7, 5)], ["neither polygons nor run lengths"]),
        ([annotation(1, 7, box(40, 2, 50, 9))], ["annotation 100", "on p", "30x20", "outside"]),
        ([annotation(1, 7, box(-40, 2, -30, 9))], ["outside"]),
        ([annotation(1, 7, RUNS | {"size": [30, 20]})], ["annotation 100", "another size"]),
        ([annotation(1, 7, RUNS | {"counts": [0, 10]})], ["add up"]),
        ([annotation(1, 7, RUNS | {"counts": [0, 1.5]})], ["without counts"]),
        ([annotation(1, 7, RUNS | {"counts": "\u00e9"})], ["compressed"]),
        ([annotation(1, 7, {"counts": [0, 600]})], ["without counts or a size"]),
        ([annotation(1, 7, box(0.1, 0.1, 0.4, 0.4))], ["covers a pixel", "fractions of the picture's size"]),
        ([annotation(1, 7, box(0.1, 0.1, 1.0, 0.9))], ["beyond the first pixel", "fractions of the picture's size"]),
        ([], ["no annotations at all"]),
        (["what"], ["entry 0 of annotations", "not an object"]),
        ({"a": 1}, ["annotations", "not a list"]),
    ],
)  # fmt: skip
def test_a_wrong_annotation_is_named(simple, run_script, annotations, words):
    save_picture(simple / "images" / "p.jpg")
    content = document(["p.jpg"], [entry for entry in annotations if isinstance(entry, dict)])
    if not isinstance(annotations, list) or "what" in annotations:
        content["annotations"] = annotations
    file = write(simple / "annotations.json", content)
    done = run_script("dataset.py", "--dataset", "coco", "--data-dir", simple, "--check", check=False)
    assert_one_line_error(done, str(file), *words)
    assert not list(simple.glob(".masks-*")) and not list(simple.glob(".drawing-*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["images"].append(dict(c["images"][0])), ["image 1", "more than one picture"]),
        (lambda c: c["images"].append(c["images"][0] | {"id": 9}), ["p1.jpg", "annotated twice"]),
        (lambda c: c["images"][0].pop("file_name"), ["image 1", "no file_name"]),
        (lambda c: c["images"][0].update(file_name=5), ["image 1", "no file_name"]),
        (lambda c: c["images"][0].update(file_name=".."), ["picture ..", "not there"]),
        (lambda c: c["images"][0].update(file_name="a\0b.jpg"), ["not there"]),
        (lambda c: c["images"][0].update(file_name="../../../etc/passwd"), ["passwd", "not there"]),
        (lambda c: c["images"][0].pop("id"), ["image number 0", "no id"]),
        (lambda c: c["images"][0].update(id=[1]), ["no id"]),
        (lambda c: c["images"][0].update(height=21), ["p1.jpg", "annotated as 30x21, the picture is 30x20"]),
        (lambda c: c["images"][0].update(height="x"), ["image 1", "no number of pixels"]),
        (lambda c: c["images"][0].update(height=-3), ["image 1", "no number of pixels"]),
        (lambda c: c["images"][0].update(height=1e99), ["image 1", "no number of pixels"]),
        (lambda c: c.update(images=5), ["no COCO annotations"]),
        (lambda c: c["images"].append(3), ["entry 5 of images"]),
        (lambda c: c.pop("categories"), ["no COCO annotations"]),
        (lambda c: c.update(categories=[]), ["no categories"]),
        (lambda c: c.update(categories={"7": "crack"}), ["categories", "not a list"]),
        (lambda c: c["categories"].append({"id": 8, "name": "dot"}), ["'dot' (ids 3, 8)", "more than one category"]),
        (lambda c: c["categories"].append({"id": 7, "name": "hole"}), ["category 7", "more than one category"]),
        (lambda c: c["categories"].append({"id": "8", "name": "hole"}), ["numbers", "texts"]),
        (lambda c: c["categories"].append({"id": 8, "name": ""}), ["category 8", "no name"]),
        (lambda c: c["categories"].append({"name": "hole"}), ["category number 2", "no id"]),
        (lambda c: c["categories"].extend({"id": n, "name": f"n{n}"} for n in range(20, 300)), ["283 classes"]),
    ],
)
def test_a_wrong_file_is_named(simple, run_script, change, words):
    file = simple / "annotations.json"
    content = json.loads(file.read_text())
    content["categories"] = [dict(entry) for entry in content["categories"]]
    change(content)
    write(file, content)
    done = run_script("dataset.py", "--dataset", "coco", "--data-dir", simple, check=False)
    assert_one_line_error(done, str(file), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("  \n", ["empty"]),
        ("version https://git-lfs.github.com/spec/v1", ["not JSON", "version http"]),
        ('{"images": [{"id": 1', ["not JSON, or cut off"]),
        ("[" * 100_000, ["annotations.json"]),
        ('{"images": 1' + "0" * 5000 + "}", ["annotations.json"]),
        ("[]", ["no COCO annotations"]),
        ('"text"', ["no COCO annotations"]),
        ("null", ["no COCO annotations"]),
        ('{"shapes": [], "imagePath": "p1.jpg"}', ["--dataset labelme"]),
    ],
)
def test_what_is_no_coco_file_is_one_line(simple, run_script, text, words):
    file = write(simple / "annotations.json", text)
    done = run_script("dataset.py", "--dataset", "coco", "--data-dir", simple, check=False)
    assert_one_line_error(done, str(file), *words)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_windows_editors(simple, encoding):
    file = simple / "annotations.json"
    file.write_text(file.read_text(encoding="utf-8"), encoding=encoding)
    assert find_coco(simple).class_names == ["background", "dot", "crack"]


def test_no_annotations_says_where_was_looked(tmp_path, run_script):
    done = run_script("dataset.py", "--dataset", "coco", "--data-dir", tmp_path, check=False)
    assert_one_line_error(done, "no COCO annotations", "train/_annotations.coco.json")
    done = run_script("dataset.py", "--dataset", "coco", "--data-dir", tmp_path / "nowhere", check=False)
    assert_one_line_error(done, "no such folder", "--data-dir")
    file = write(tmp_path / "a.json", document([], []))
    done = run_script("dataset.py", "--dataset", "coco", "--data-dir", file, check=False)
    assert_one_line_error(done, f"{file}: is a file", "--data-dir")


def test_missing_pictures_are_counted_and_named(simple):
    for number in (2, 4):
        (simple / "images" / f"p{number}.jpg").unlink()
    with pytest.raises(DataError, match=r"picture p2\.jpg: is not there; .* \(1 more: .*p4\.jpg\)"):
        find_coco(simple)


def test_a_damaged_picture_is_named(simple):
    (simple / "images" / "p2.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"p2\.jpg: not an image"):
        find_coco(simple)


def test_harmless_shapes_are_left_out_with_a_remark(tmp_path, capsys):
    annotations = [
        OK,
        annotation(1, 7, [[1, 1, 2, 2]]),
        annotation(1, 7, [*box(5, 5, 8, 8), [1, 1]]),
        annotation(1, 7, box(10.6, 10.6, 11.4, 11.4)),
        annotation(1, 3, box(25, 15, 40, 40)),
    ]
    mask, layout = find_one(tmp_path, annotations)
    np.testing.assert_array_equal(mask, painted((2, 0, 0, 3, 3), (2, 5, 5, 8, 8), (1, 25, 15, 30, 20)))
    points, thin, beyond = sorted(layout.remarks, key=lambda remark: remark.partition("annotation")[2])
    assert "annotation 101: has a polygon of fewer than three points" in points and "(1 more: " in points
    assert "annotation 103 on p: is so thin or small" in thin
    assert "annotation 104 on p: reaches beyond the picture" in beyond
    assert "remark" not in capsys.readouterr().out, "who asked for the layout says them, once"
    noted = next(tmp_path.glob(".masks-*/remarks.txt")).read_text(encoding="utf-8").splitlines()
    assert noted == layout.remarks == find_coco(tmp_path).remarks


# -- strangers ---------------------------------------------------------------------------------------

JUNK = st.sampled_from(
    [None, True, False, -1, 0, 1, 2, 7, 10**30, -(10**400), 0.5, float("nan"), float("inf"), 1e308, "", "x" * 300,
     "../../../etc/passwd", "a\0", "\ud800", [], [1], [[1]], [[[]]], [[1, 2, 3, 4, 5, 6]], {}, {"a": 1},
     {"counts": "o" * 99, "size": [20, 30]}, {"counts": [1], "size": [1e9, 1e9]}, [None] * 6, [{}]]
)  # fmt: skip


def replace_leaf(tree, path, junk, drop) -> None:
    """Walk into ``tree`` by the numbers in ``path`` and put ``junk`` where they lead, or nothing."""
    for step in path:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = keys[step % len(keys)]
        if not (isinstance(tree[key], dict | list) and tree[key]):
            break
        parent, tree = tree, tree[key]
    else:
        tree = parent
    if drop:
        del tree[key]
    else:
        tree[key] = junk


def start_anew(root: Path) -> None:
    """Forget what was made of other annotations."""
    for folder in (*root.glob(".masks-*"), *root.glob("split_by_chance")):
        shutil.rmtree(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(path=st.lists(st.integers(0, 50), min_size=1, max_size=6), junk=JUNK, drop=st.booleans())
def test_a_file_with_other_content_is_one_error_or_a_data_set(simple, path, junk, drop):
    start_anew(simple)
    content = document(
        [f"p{n}.jpg" for n in range(1, 6)],
        [OK, annotation(2, 3, RUNS), annotation(3, 3, RUNS, iscrowd=1), annotation(4, 7, box(1, 2, 8, 9))],
        [dict(entry) for entry in CATEGORIES],
    )
    replace_leaf(content, path, junk, drop)
    file = write(simple / "annotations.json", content)
    try:
        data = build_dataset("coco", simple, "train")
        for sample in data:
            assert sample["mask"].shape == SIZE
    except UserError as error:
        assert "annotations.json" in str(error) and len(str(error)) < 2000
        assert "\n" not in str(error)
        assert not list(file.parent.glob(".masks-*")) and not list(file.parent.glob(".drawing-*"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(cut=st.integers(0, 5000), patch=st.binary(max_size=6))
def test_a_file_with_changed_bytes_is_one_error_or_a_data_set(simple, cut, patch):
    whole = json.dumps(document([f"p{n}.jpg" for n in range(1, 6)], [OK, annotation(2, 3, RUNS)])).encode()
    cut %= len(whole)
    (simple / "annotations.json").write_bytes(whole[:cut] + patch + (whole[cut + len(patch) :] if patch else b""))
    try:
        find_coco(simple)
    except UserError as error:
        assert "annotations.json" in str(error) and len(str(error)) < 2000


def test_colours_of_classes_are_to_see_them_in(tmp_path):
    """The masks hold numbers; a list of colours changes their order and look, and no pixel."""
    before, layout = find_one(tmp_path, [annotation(1, 7, box(2, 2, 10, 9)), annotation(1, 3, box(15, 4, 20, 9))])
    write(tmp_path / "colours.txt", "crack 255 0 0\nbackground 0 0 0\ndot 0 255 0\n")
    layout = find_layout("coco", layout.root, classes=tmp_path / "colours.txt")
    assert layout.class_names == ["crack", "background", "dot"]
    assert [tuple(colour) for colour in layout.palette] == [(255, 0, 0), (0, 0, 0), (0, 255, 0)]
    after = mask_of(layout, "train", "p")
    assert set(np.unique(before)) == {0, 1, 2} and np.array_equal(after, np.array([1, 2, 0])[before])
