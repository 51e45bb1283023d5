"""Anybody's folder as a data set: which forms are read, that each image gets its own mask, and what errors say."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basics.errors import UserError
from datachecks.check import check_layout
from datalayouts.folder_names import meaning
from dataset import SegmentationDataset, build_dataset, find_layout
from segdata.pairing import IMAGE_SUFFIXES, Listing
from segdata.reading import DataError
from tests.conftest import assert_one_line_error

CLASSES = ("background", "crack", "stain")
SPLITS = {"train": range(0, 6), "val": range(6, 10), "test": range(10, 13)}


def draw(number: int, image: Path, mask: Path | None) -> None:
    """A pair that can be told by its pixels: the image is of the grey 20 * number, the mask of the class number % 3."""
    for path, pixels in ((image, np.full((4, 6, 3), 20 * number)), (mask, np.full((4, 6), number % len(CLASSES)))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def number_of(data: SegmentationDataset, index: int) -> int:
    """The number that image and mask of a sample agree on."""
    sample = data[index]
    number = round(sample["image"].float().mean().item() / 20)
    assert (sample["mask"] == number % len(CLASSES)).all(), data.image_path(index)
    return number


def write(root: Path, image: str, mask: str | None, splits=("train", "val"), classes: str = "classes.txt") -> Path:
    """Pairs by patterns of their paths, in which ``s`` is the split, ``n`` the number and ``c`` a scene."""
    for split in splits:
        for number in SPLITS[split]:
            names = {"s": split, "n": f"{number:03d}", "c": f"scene{number % 2}", "m": number // 2}
            draw(number, root / image.format(**names), root / mask.format(**names) if mask else None)
    if classes:
        (root / classes).parent.mkdir(parents=True, exist_ok=True)
        (root / classes).write_text("\n".join(CLASSES) + "\n")
    return root


def numbers(root: Path, split: str, **options) -> list[int]:
    data = build_dataset("folder", root, split, **options)
    return sorted(number_of(data, index) for index in range(len(data)))


# -- forms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{n}.png", "masks/{n}.png"),
        ("JPEGImages/{n}.jpg", "SegmentationClass/{n}.png"),
        ("Images/{n}.JPG", "Labels/{n}.PNG"),
        ("img/{n}.bmp", "gt/{n}.tif"),
        ("imgs/{n}.tiff", "Ground Truth/{n}.bmp"),
        ("image/{n}.webp", "annotations/{n}.tif"),
        ("images/{n}.png", "masks/{n}_mask.png"),
        ("images/{n}.png", "masks/{n}_anything.png"),
        ("images/{n}.png", "masks/{n}mask.png"),
        ("images/{n}.jpg", "masks/{n}.jpg.png"),
        ("images/{n}_sat.jpg", "masks/{n}_mask.png"),
        ("images/image_{n}.png", "masks/mask_{n}.png"),
        ("images/img{n}.png", "masks/lbl{n}.png"),
        ("images/{n} (a).png", "masks/{n} (a)_gt.png"),
        ("images/näme {n}.png", "masks/näme {n}_L.png"),
        ("images/{c}/{n}.png", "masks/{c}/{n}.png"),
        ("images/{c}/{m}.png", "masks/{c}/{m}.png"),  # the same names in both scenes
        ("images/{c}/{n}_leftImg8bit.png", "labels/{c}/{n}_gtFine_labelIds.png"),
        ("{n}_sat.jpg", "{n}_mask.png"),
        ("{n}.jpg", "{n}.png"),
        ("{n}.png", "{n}_zz.png"),
        ("image_{n}.png", "mask_{n}.png"),
        ("{n}.png", "masks/{n}.png"),
        ("Archive/images/{n}.png", "Archive/masks/{n}.png"),
        ("CXR_png/{n}.png", "masks/{n}_mask.png"),
        ("images/{n}.png", "drawn by hand/{n}.png"),
    ],
)
def test_forms_without_splits_are_parted_by_chance(tmp_path, image, mask):
    classes = "Archive/classes.txt" if image.startswith("Archive") else "classes.txt"
    root = write(tmp_path / "my data ü", image, mask, classes=classes)
    train, val = numbers(root, "train"), numbers(root, "val")
    assert sorted(train + val) == list(range(10)) and len(val) == 2
    ids = [build_dataset("folder", root, split).ids for split in ("train", "val")]
    assert len({*ids[0], *ids[1]}) == 10 and all("/" not in name for name in ids[0] + ids[1])


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("train/images/{n}.png", "train/masks/{n}.png"),
        ("{s}/images/{n}.png", "{s}/masks/{n}.png"),
        ("images/{s}/{n}.png", "masks/{s}/{n}.png"),
        ("img_dir/{s}/{n}.png", "ann_dir/{s}/{n}.png"),
        ("leftImg8bit/{s}/{c}/{n}_leftImg8bit.png", "gtFine/{s}/{c}/{n}_gtFine_labelIds.png"),
        ("{s}_images/{n}.png", "{s}_masks/{n}.png"),
        ("images_{s}/{n}.png", "labels-{s}/{n}_label.png"),
        ("{s}/{n}.png", "{s}_labels/{n}_L.png"),
        ("{s}/{n}.png", "{s}annot/{n}.png"),
        ("{s}/{n}_sat.jpg", "{s}/{n}_mask.png"),
        ("{s}/{n}.png", "{s}/masks/{n}.png"),
        ("images/{s}/{n}.png", "masks/{n}.png"),
        ("images/{n}.png", "masks/{s}/{n}.png"),
    ],
)
@pytest.mark.parametrize("spelling", [{}, {"train": "Training", "val": "valid", "test": "Testing"}])
def test_forms_with_folders_of_splits(tmp_path, image, mask, spelling):
    if image.startswith("train/"):
        image, mask = image.replace("train", "{s}", 1), mask.replace("train", "{s}", 1)
    root = tmp_path / "d"
    for split in SPLITS:
        for number in SPLITS[split]:
            names = {"s": spelling.get(split, split), "n": f"{number:03d}", "c": f"scene{number % 2}"}
            draw(number, root / image.format(**names), root / mask.format(**names))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    layout = find_layout("folder", root)
    assert layout.splits() == ["train", "val", "test"] and not layout.remarks
    for split, expected in SPLITS.items():
        assert numbers(root, split) == list(expected)
    assert not (root / "split_by_chance").exists()


def test_other_names_of_splits_mean_the_same(tmp_path):
    root = write(tmp_path, "valid/images/{n}.png", "valid/masks/{n}.png", ["val"])
    write(root, "train/images/{n}.png", "train/masks/{n}.png", ["train"])
    assert numbers(root, "val") == numbers(root, "valid") == numbers(root, "validation") == list(SPLITS["val"])


def test_a_test_folder_needs_no_masks(tmp_path):
    root = write(tmp_path, "{s}/{n}_sat.jpg", "{s}/{n}_mask.png")
    write(root, "test/{n}_sat.jpg", None, ["test"])
    assert not build_dataset("folder", root, "test").has_masks
    assert numbers(root, "val") == list(SPLITS["val"])


def test_a_split_without_masks_is_none_and_val_may_come_out_of_train(tmp_path):
    root = write(tmp_path, "{s}/{n}_sat.jpg", "{s}/{n}_mask.png", ["train"])
    write(root, "valid/{n}_sat.jpg", None, ["val"])
    with pytest.raises(DataError, match=r"no split 'val'.*--val-split.*--val-share 0\.2"):
        build_dataset("folder", root, "val")
    assert any("valid holds images without masks" in remark for remark in find_layout("folder", root).remarks)
    val = numbers(root, "val", val_share=0.5)
    assert len(val) == 3 and sorted(val + numbers(root, "train")) == list(SPLITS["train"])
    assert numbers(root, "val") == val  # written down: the flag is not needed again


def test_old_and_new_names_side_by_side_are_said(tmp_path):
    root = write(tmp_path, "images/{n}.png", "masks/{n}.png")
    write(root, "images/{n}.png", "gt/{n}.png")
    (remark,) = find_layout("folder", root).remarks
    assert str(root / "gt") in remark and str(root / "masks") in remark


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("images", (None, "image")),
        ("IMG_DIR", (None, "image")),
        ("Ground-Truth", (None, "mask")),
        ("train", ("train", None)),
        ("validation", ("val", None)),
        ("train_masks", ("train", "mask")),
        ("trainannot", ("train", "mask")),
        ("images test", ("test", "image")),
        ("SegmentationClassAug", ("train_aug", "mask")),
        ("training", ("train", None)),
        ("trainer", (None, None)),
        ("SegmentationObject", (None, None)),
        ("values", (None, None)),
    ],
)
def test_what_folder_names_mean(folder, expected):
    assert meaning(folder) == expected


# -- pairs -------------------------------------------------------------------------------------------


def test_what_has_no_counterpart_is_left_out_and_said(tmp_path):
    root = write(tmp_path, "images/{n}.png", "masks/{n}_m.png")
    (root / "masks/003_m.png").unlink()
    (root / "images/005.png").unlink()
    layout = find_layout("folder", root)
    assert any("1 of 9 images in" in remark and "003" in remark for remark in layout.remarks)
    assert any("1 mask in" in remark and "005_m.png" in remark for remark in layout.remarks)
    assert sorted(numbers(root, "train") + numbers(root, "val")) == [0, 1, 2, 4, 6, 7, 8, 9]


def test_masks_among_other_annotations_are_known_by_their_ending(tmp_path):
    root = write(tmp_path, "images/{n}.png", "gt/{n}_labelIds.png")
    for number in range(10):
        for other in ("instanceIds", "color"):
            draw(number + 1, root / f"gt/{number:03d}_{other}.png", None)
    assert sorted(numbers(root, "train") + numbers(root, "val")) == list(range(10))


@pytest.mark.parametrize(
    ("image", "mask", "others"),
    [
        ("images/{n}.png", "masks/{n}_a.png", ["masks/{n}_b.png"]),
        ("images/{n}_u.png", "masks/{n}_mask.png", ["images/{n}_v.png"]),
        ("{n}_a.png", "{n}_b.png", []),
    ],
)
def test_two_kinds_of_files_that_could_both_be_meant_are_refused(tmp_path, image, mask, others):
    root = write(tmp_path, image, mask)
    for pattern in others:
        write(root, pattern, None)
    with pytest.raises(DataError, match="not clear which files are the masks of which images") as caught:
        build_dataset("folder", root, "train")
    assert "_a" in str(caught.value) or "_u" in str(caught.value)


def test_names_that_never_meet_are_shown(tmp_path):
    root = write(tmp_path, "images/p{n}.png", None)
    for number in range(4):
        draw(number, root / f"masks/q_{number + 70}_z.png", None)
    with pytest.raises(DataError, match=r"masks: none of its masks.*q_70_z\.png.*p000\.png"):
        build_dataset("folder", root, "train")


# -- what is missing ---------------------------------------------------------------------------------


def test_one_message_names_all_that_is_missing(tmp_path, run_script):
    (tmp_path / "photos2").mkdir()
    (tmp_path / "photos2" / "a.heic").write_bytes(b"x")
    done = run_script("dataset.py", "--dataset", "folder", "--data-dir", tmp_path, "--check", check=False)
    assert_one_line_error(
        done, "images/", "masks/", "classes.txt", "train.txt", "by chance", "photos2/ (1 .heic)", ".jpg", "_mask"
    )


def test_only_what_is_missing_is_named(tmp_path):
    root = write(tmp_path, "images/{n}.png", None)
    write(root, "one/{n}.png", None)
    write(root, "two/{n}.png", None)  # either of the two may be the masks
    with pytest.raises(DataError, match="a folder of masks") as caught:
        find_layout("folder", root)
    assert "folder of images" not in str(caught.value) and "class names" not in str(caught.value)
    write(root, "images/{n}.png", "masks/{n}.png", classes="")
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt: no such file.*numbers 0, 1, 2.*--classes FILE"):
        find_layout("folder", root)
    for path in (root / "masks").iterdir():
        Image.fromarray(np.full((4, 6, 3), (9, 8, 7), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"the colours 9 8 7"):
        find_layout("folder", root)


@pytest.mark.parametrize("image", ["images/{n}.png", "{n}.png"])
def test_pictures_alone_are_data_without_masks(tmp_path, image):
    """Parted by chance, and nothing written down: masks may come later, for some of them."""
    root = write(tmp_path, image, None)
    train, val = build_dataset("folder", root, "train"), build_dataset("folder", root, "val")
    assert not train.has_masks and not val.has_masks and len(train) == 8 and len(val) == 2
    assert not set(train.ids) & set(val.ids) and not (root / "split_by_chance").exists()
    assert (train[0]["mask"] == 255).all() and "labelled" not in train[0]
    with pytest.raises(UserError, match="no masks: nothing to learn or score here"):
        train.require_masks()


def test_pictures_that_only_prediction_reads_are_counted(tmp_path):
    """Half of a phone's pictures are HEIC: without a word a training would be one of the other half."""
    root = write(tmp_path, "images/{n}.jpg", None)
    for number in range(3):
        (root / "images" / f"IMG_{number}.HEIC").touch()
    remarks = find_layout("folder", root).remarks
    assert any("images: 3 .heic are not read in training: convert them" in remark for remark in remarks)


@pytest.mark.parametrize("masks", [False, True])
def test_annotations_in_xml_are_no_masks_and_said(tmp_path, masks):
    """CVAT's and Pascal VOC's; beside masks they are of no matter."""
    root = write(tmp_path, "images/{n}.jpg", "masks/{n}.png" if masks else None)
    (root / "annotations").mkdir()
    (root / "annotations" / "000.xml").touch()
    remarks = find_layout("folder", root).remarks
    assert any(".xml files are not read: export them as COCO" in remark for remark in remarks) is not masks
    with pytest.raises(DataError, match=r"no \.json files there .* export them as COCO"):
        find_layout("labelme", root)


def test_unread_suffixes_are_named(tmp_path):
    root = write(tmp_path, "images/{n}.png", "masks/{n}.png")
    (root / "images/000.png").rename(root / "images/000.heic")
    (root / "masks/001.png").rename(root / "masks/001.npy")
    (root / "masks/002.png").rename(root / "masks/002_x.png")
    (root / "train.txt").write_text("000\n001\n002\n003\n")
    (root / "val.txt").write_text("004\n")
    files, faults = find_layout("folder", root).scan("train")
    assert files.ids == ["003"] and len(faults) == 3
    for fault, there in zip(sorted(faults), ("000.heic", "001.npy", "002_x.png"), strict=True):
        assert f"{there} lies there, and read are" in fault and ".tiff" in fault


# -- lists -------------------------------------------------------------------------------------------

LINES = {
    "names": "{n}",
    "names with suffix": "{n}.png",
    "names of masks": "{n}_mask.png",
    "paths": "images/{n}.png",
    "paths with a dot": "./images/{n}.png",
    "paths from elsewhere": "/home/someone/d/images/{n}.png",
    "backslashes": "images\\{n}.png",
    "columns": "images/{n}.png masks/{n}_mask.png",
    "columns of names": "{n} {n}_mask",
    "commas": "images/{n}.png,masks/{n}_mask.png",
    "tabs": "{n}.png\t{n}_mask.png",
    "slashes in front": "/images/{n}.png /masks/{n}_mask.png",
}


@pytest.mark.parametrize("form", LINES)
@pytest.mark.parametrize("place", ["train.txt", "ImageSets/Segmentation/train.txt", "splits/train_list.txt"])
def test_lists_are_understood(tmp_path, form, place):
    root = write(tmp_path, "images/{n}.png", "masks/{n}_mask.png")
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    lines = [LINES[form].format(n=f"{number:03d}") for number in (7, 1, 4)]
    (root / place).write_text("\n".join(lines) + "\n")
    (root / place.replace("train", "val")).write_text("000\n")
    data = build_dataset("folder", root, "train")
    assert data.ids == ["007", "001", "004"]
    assert [number_of(data, index) for index in range(3)] == [7, 1, 4]
    assert find_layout("folder", root).splits() == ["train", "val"]


@pytest.mark.parametrize("name", ["train_log.txt", "val_results.txt", "train_classes.txt", "test_notes.txt"])
def test_text_files_that_name_no_image_are_no_lists(tmp_path, name):
    root = write(tmp_path, "images/{n}.png", "masks/{n}.png")
    before = {split: numbers(root, split) for split in ("train", "val")}
    (root / name).write_text("epoch 1: 0.5\nbackground\n")
    layout = find_layout("folder", root)
    assert f"{root / name} names no image, and is taken for no list of a split" in layout.remarks
    assert {split: numbers(root, split) for split in layout.splits()} == before
    (root / name).write_text("nothing\n003.png\n")
    assert name[:-4] in find_layout("folder", root).splits()


def test_lists_may_name_masks_that_lie_elsewhere(tmp_path):
    root = write(tmp_path, "images/{n}.png", "masks/{n}.png")
    for number in range(10):  # other masks, which say that all is of class 2
        draw(2, root / "better" / f"{number:03d}.png", None)
        Image.fromarray(np.full((4, 6), 2, np.uint8)).save(root / "better" / f"{number:03d}.png")
    (root / "train.txt").write_text("images/000.png better/000.png\nimages/001.png masks/001.png\n")
    (root / "val.txt").write_text("002\n")
    data = build_dataset("folder", root, "train")
    assert [int(data[index]["mask"][0, 0]) for index in range(2)] == [2, 1]


def test_lists_reach_into_the_folders_of_other_splits(tmp_path):
    root = write(tmp_path, "images/{s}/{n}.png", "masks/{s}/{n}.png")
    (root / "trainval.txt").write_text("images/train/001.png\nimages/val/007.png\n008\n")
    assert numbers(root, "trainval") == [1, 7, 8]


def test_names_may_have_spaces(tmp_path):
    root = write(tmp_path, "images/photo {n}.png", "masks/photo {n}.png")
    (root / "train.txt").write_text("photo 001\nphoto 002.png\nimages/photo 003.png,masks/photo 003.png\n")
    (root / "val.txt").write_text("photo 004\n")
    assert numbers(root, "train") == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("000 -1\n001\n", r"line 1: '000 -1': there is no mask '-1'; wanted is"),
        ("images/000.png masks/nowhere.png\n001\n", r"line 1: .*there is no mask 'masks/nowhere\.png'"),
        ("elsewhere/x.png\n001\n", r"line 1: 'elsewhere/x\.png' is not a bare file name.*wanted is"),
        ("001\nimages/001.png\n", r"line 2: '001' is listed already in line 1"),
        ("../d/images/001.png\n001\n", r"line 1: .* is not a bare file name"),
        (
            "a\nb\nc\n",
            r"images: no image for any of 3 names such as a, b, c \(listed in .*train\.txt\); there lie 000\.png",
        ),
    ],
)
def test_faulty_lines_are_shown(tmp_path, content, message):
    root = write(tmp_path / "d", "images/{n}.png", "masks/{n}.png")
    (root / "train.txt").write_text(content)
    (root / "val.txt").write_text("004\n")
    with pytest.raises(UserError, match=message):
        build_dataset("folder", root, "train")


# -- as a user does it -------------------------------------------------------------------------------

COLOURS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
# What is written into masks, classes.txt and --classes; and the classes that are then scored.
WAYS = {
    "numbers": (lambda mask: mask, "background\ncrack\nstain", "", CLASSES),
    "colours": (lambda mask: COLOURS[mask], "background 0 0 0\ncrack 128 0 0\nstain 0 128 0", "", CLASSES),
    "0 and 255": (lambda mask: mask.clip(0, 1) * 255, "background 0 0 0\ncrack 255 255 255", "", CLASSES[:2]),
    "merged": (lambda mask: mask, "background\ncrack\nstain", "damage = crack, stains\nrest = *", ("damage", "rest")),
}
SMALL = "--crop-size 32 --batch-size 2 --workers 0 --student compact --student-weights none --device cpu --name r"
PLAIN = "--alpha 0 --beta 0 --epochs 1 --max-steps 2"


@pytest.mark.parametrize("way", WAYS)
def test_each_trains_in_one_command(tmp_path, run_script, way):
    rng, root = np.random.default_rng(0), tmp_path / "d"
    stored, classes, groups, names = WAYS[way]
    for number in range(8):
        mask = np.zeros((40, 48), np.uint8)
        mask[5:25, 10:40], mask[30:, :10] = 1, 2
        draw(number, root / f"images/{number}.jpg", root / f"masks/{number}.png")
        Image.fromarray(rng.integers(0, 99, (40, 48, 3), np.uint8)).save(root / f"images/{number}.jpg")
        Image.fromarray(stored(mask)).save(root / f"masks/{number}.png")
    (root / "classes.txt").write_text(classes)
    data = ["--dataset", "folder", "--data-dir", root]
    if groups:
        (tmp_path / "groups.txt").write_text(groups)
        data += ["--classes", tmp_path / "groups.txt"]
    done = run_script("train_kd.py", *data, *SMALL.split(), *PLAIN.split(), "--output-dir", tmp_path)
    assert "6 images for train and 2 for val" in done.stdout and "best mIoU" in done.stdout
    scored = run_script("evaluate.py", tmp_path / "r/best.pth", *data, "--workers", 0, "--device", "cpu").stdout
    rows = [line.split() for line in scored.splitlines() if line.split()[:1] and line.split()[0] in names]
    assert [row[0] for row in rows] == list(names)
    assert all(float(row[-1]) > 5 for row in rows)  # the share of the pixels: each class is there


def test_pictures_in_folders_beside_pictures_are_said_not_to_be_read(tmp_path):
    root = write(tmp_path / "d", "images/{n}.jpg", "masks/{n}.png")
    (root / "images" / "notes").mkdir()
    assert not [line for line in find_layout("folder", root).remarks if "holds pictures itself" in line]
    draw(11, root / "images/new/011.jpg", root / "masks/new/011.png")
    remarks = [line for line in find_layout("folder", root).remarks if "holds pictures itself" in line]
    assert [line.partition(" holds")[0] for line in remarks] == [str(root / "images"), str(root / "masks")]
    assert all("(new)" in line for line in remarks)
    photos = write(tmp_path / "photos", "{n}.jpg", None)
    draw(11, photos / "day1" / "011.jpg", None)
    assert any("those in its folders (day1) are not read" in line for line in find_layout("folder", photos).remarks)


def test_files_that_share_a_name_are_said(tmp_path):
    """One mask, two images of its name: which is read, and how many are not; none where image and mask lie together."""
    root = write(tmp_path / "d", "images/{n}.jpg", "masks/{n}.png")
    assert not [line for line in find_layout("folder", root).remarks if "have the name of another" in line]
    for number in (1, 4):
        draw(9, root / f"images/{number:03d}.png", None)
    draw(9, root / "other.png", root / "masks/002.tif")
    remarks = [line for line in find_layout("folder", root).remarks if "have the name of another" in line]
    assert [line.partition(":")[0] for line in remarks] == [
        f"2 images in {root / 'images'} have the name of another and are not read, such as 001.png beside 001.jpg",
        f"1 masks in {root / 'masks'} have the name of another and are not read, such as 002.tif beside 002.png",
    ]
    together = write(tmp_path / "e", "{n}.jpg", "{n}.png")
    assert not [line for line in find_layout("folder", together).remarks if "have the name of another" in line]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "line", ["Bäume {n}", "Bäume {n}.png", "Wälder/images/Bäume {n}.png", "Wälder\\images\\Bäume {n}.png"]
)
def test_letters_that_unicode_spells_in_two_ways(tmp_path, on_disk, listed, line):
    """Lists from a Mac and files from elsewhere, and the other way round; masks spelt as the lists are."""
    forms = {kind: unicodedata.normalize(form, "Bäume {n}") for kind, form in (("image", on_disk), ("mask", listed))}
    folder = unicodedata.normalize(on_disk, "Wälder")
    for split in ("train", "val"):
        for number in SPLITS[split]:
            draw(number, *(tmp_path / folder / f"{kind}s" / f"{forms[kind].format(n=number)}.png" for kind in forms))
        text = "\n".join(line.format(n=number) for number in SPLITS[split])
        (tmp_path / folder / f"{split}.txt").write_text(unicodedata.normalize(listed, text), encoding="utf-8")
    (tmp_path / folder / "classes.txt").write_text("\n".join(CLASSES))
    for split in ("train", "val"):
        assert numbers(tmp_path / folder, split) == list(SPLITS[split])


def test_a_listed_name_in_other_capitals_is_named(tmp_path):
    root = write(tmp_path, "images/a{n}.jpg", "masks/a{n}.png")
    (root / "train.txt").write_text("A000\na001\n")
    with pytest.raises(DataError, match=r"A000.jpg: no such image.*; a000.jpg lies there"):
        build_dataset("folder", root, "train")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_alone_in_folders_of_any_name(tmp_path, suffix):
    """The same names a day are no pairs where they are JPEGs; PNGs of one name may be, and are not guessed at."""
    classes = tmp_path / "cl.txt"
    classes.write_text("\n".join(CLASSES))
    for day in (1, 2):
        for number in range(4):
            draw(number, tmp_path / f"pics/day{day}/IMG_{number + (suffix == 'png') * 4 * day}.{suffix}", None)
    layout = find_layout("folder", tmp_path / "pics", classes=classes)
    found = [path for split in ("train", "val") for path in layout.files(split).images]
    assert len(found) == len(set(found)) == 8 and layout.files("train").masks is None
    if suffix == "png":
        for path in (tmp_path / "pics").rglob("*.png"):
            path.rename(path.with_name(f"IMG_{int(path.stem[4:]) % 4}.png"))
        with pytest.raises(DataError, match="no data set yet"):
            find_layout("folder", tmp_path / "pics", classes=classes)


def test_splits_of_pictures_alone_are_not_said_to_be_missing(tmp_path):
    root = write(tmp_path, "{s}/{n}.jpg", None)
    layout = find_layout("folder", root)
    assert layout.splits() == ["train", "val"] and not layout.remarks
    for number in SPLITS["train"]:
        draw(number, root / f"train/{number:03d}.jpg", root / f"train/{number:03d}.png")
    layout = find_layout("folder", root, val_share=0.5)
    assert any("there is no split 'val'" in remark for remark in layout.remarks)


def test_names_that_meet_when_their_folders_are_joined(tmp_path):
    for name in ("seq/001.jpg", "seq/2_001.jpg", "seq_2/001.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = Listing(tmp_path)
    assert listing.by_name(IMAGE_SUFFIXES) == {
        "seq_001": tmp_path / "seq" / "001.jpg",
        "seq_2_001": tmp_path / "seq" / "2_001.jpg",
    }
    assert listing.hidden(IMAGE_SUFFIXES) == [(tmp_path / "seq_2" / "001.jpg", tmp_path / "seq" / "2_001.jpg")]


# -- slips -------------------------------------------------------------------------------------------


def listed(tmp_path, text: str) -> Path:
    """Pictures 000 to 005 in one folder, and a val.txt."""
    root = write(tmp_path, "images/{n}.jpg", "masks/{n}.png", ["train"])
    (root / "val.txt").write_text(text)
    return root


@pytest.mark.parametrize("line", ["masks/001.png", "data/masks/001.png", "001.png", "# mended\n001"])
def test_a_list_may_name_the_mask_and_hold_remarks(tmp_path, line):
    assert numbers(listed(tmp_path, f"{line}\n"), "val") == [1]


def test_capitals_in_a_list_are_told(tmp_path):
    root = listed(tmp_path, "img_7\n001\n")
    draw(7, root / "images" / "IMG_7.jpg", root / "masks" / "IMG_7.png")
    with pytest.raises(DataError, match=r"img_7.jpg: no such image.*IMG_7.jpg lies there: write its name as it is"):
        build_dataset("folder", root, "val")


def test_a_list_of_everything_leaves_nothing_to_train_on(tmp_path):
    root = listed(tmp_path, "".join(f"{number:03d}\n" for number in SPLITS["train"]))
    with pytest.raises(DataError, match=r"no split 'train'.*val.txt names all pictures, and none is left to train on"):
        build_dataset("folder", root, "train")


def test_one_picture_is_too_few(tmp_path):
    draw(1, tmp_path / "images" / "1.png", tmp_path / "masks" / "1.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    layout = find_layout("folder", tmp_path)
    with pytest.raises(DataError, match="of 1 images none can be kept for val; two are the fewest"):
        layout.files("train")
    assert "two are the fewest" in check_layout(layout).faults[0]


def test_a_copy_of_a_mask_is_told_with_lists_too(tmp_path):
    """As browsers call what is saved twice: the mended one would be left out without a word."""
    root = listed(tmp_path, "001\n")
    draw(1, root / "spare.png", root / "masks" / "001 (1).png")
    for text in ("001\n", None):
        if text is None:
            (root / "val.txt").unlink()
        remarks = find_layout("folder", root).remarks
        assert any("1 mask in" in remark and "001 (1).png" in remark for remark in remarks), remarks


def test_a_folder_in_the_wrong_place(tmp_path):
    root = write(tmp_path / "mine", "images/{n}.jpg", "masks/{n}.png")
    with pytest.raises(UserError, match=r"mine: a folder; its form goes there: --dataset folder --data-dir .*mine"):
        find_layout(str(root), "data")
    with pytest.raises(DataError, match=r"mine: no VOC 2012, but a folder with images or classes: --dataset folder"):
        find_layout("voc", root)
    with pytest.raises(DataError, match=r"images/classes.txt: no such file; .*mine has one: --data-dir .*mine"):
        find_layout("folder", root / "images").class_names  # noqa: B018


def test_masks_that_another_split_uses_are_not_spare(tmp_path):
    """One folder of masks, a folder of images a split, and lists."""
    root = write(tmp_path, "images/{s}/{n}.jpg", "masks/{n}.png")
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("".join(f"{number:03d}\n" for number in SPLITS[split]))
    layout = find_layout("folder", root)
    assert len(layout.files("val").ids) == len(SPLITS["val"]) and layout.remarks == []
