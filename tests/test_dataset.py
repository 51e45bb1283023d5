"""The loader on data as people have them: layouts, lists, damaged files, workers, caches, statistics."""

from __future__ import annotations

import base64
import csv
import io
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

import dataset as dataset_script
from basics.errors import UserError
from datachecks.stats import MAX_WEIGHT, class_weights, count_classes, inverse_frequency
from datalayouts.published import VOC_CLASSES, VOC_FOLDERS, find_voc
from dataset import DATASETS, EpochSampler, SegmentationDataset, build_dataset, find_layout
from segdata.class_tables import read_class_names
from segdata.palettes import distinct_palette, voc_palette
from segdata.reading import DataError, image_size, read_image, read_mask
from segdata.transforms import TrainTransform
from tests.conftest import assert_one_line_error

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
IDS = ("one", "two", "three", "four")
SIZES = ((40, 50), (33, 47), (64, 32), (50, 50))  # (H, W)


def save_mask(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask)
    image.putpalette([channel for colour in voc_palette() for channel in colour])
    image.save(path)


def write_voc(root: Path, num_classes: int = 21, masks: str = "SegmentationClass") -> Path:
    """A data set of four pictures in VOC layout: train = one, two, three; val = four."""
    for folder in ("JPEGImages", masks, "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, size in zip(IDS, SIZES, strict=True):
        smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size[::-1])
        smooth.save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        mask = rng.integers(0, num_classes, size, dtype=np.uint8)
        mask[:3] = 255
        save_mask(root / masks / f"{name}.png", mask)
    (root / "ImageSets/Segmentation/train.txt").write_text("one\ntwo\nthree\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("four\n")
    return root


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path / "voc")


@pytest.fixture
def folder(tmp_path) -> Path:
    root = write_voc(tmp_path / "mine", num_classes=3)
    (root / "classes.txt").write_text("grass\nsky\nroof tile\n")
    return root


# --- layouts


@pytest.mark.parametrize("place", VOC_FOLDERS)
def test_voc_is_found_in_every_layout(tmp_path, place):
    write_voc(tmp_path / place)
    data = build_dataset("voc", tmp_path, "train")
    assert data.ids == ["one", "two", "three"]
    assert data.class_names == VOC_CLASSES and data.num_classes == 21
    assert data.root.resolve() == (tmp_path / place).resolve()
    assert build_dataset("voc", tmp_path.parent / tmp_path.name, "val").ids == ["four"]


def test_voc_beside_the_default_folder_is_found(tmp_path, monkeypatch):
    write_voc(tmp_path / "VOC2012")
    monkeypatch.chdir(tmp_path)
    assert len(build_dataset("voc", "data", "train")) == 3


def test_voc_not_found_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"--download.*--data-dir"):
        build_dataset("voc", tmp_path, "train")


def test_unknown_names_list_the_known(voc):
    with pytest.raises(UserError, match="did you mean 'folder'"):
        build_dataset("foldr", voc, "train")
    with pytest.raises(UserError, match=r"no split 'trian'.*train, val"):
        build_dataset("voc", voc, "trian")


def test_augmented_masks_come_from_their_own_folder(voc):
    write_voc(voc, masks="SegmentationClassAug")
    lists = voc / "ImageSets/Segmentation"
    # Without a list the split is what the folder has, but for val: so it is defined.
    assert build_dataset("voc", voc, "train_aug").ids == ["one", "three", "two"]
    (lists / "train_aug.txt").write_text(
        "/JPEGImages/one.jpg /SegmentationClassAug/one.png\n/JPEGImages/two.jpg /SegmentationClassAug/two.png\n"
    )
    data = build_dataset("voc", voc, "train_aug")
    assert data.ids == ["one", "two"]
    assert data.mask_path(0).parent.name == "SegmentationClassAug"
    assert build_dataset("voc", voc, "train").mask_path(0).parent.name == "SegmentationClass"
    (lists / "train_aug.txt").rename(lists / "trainaug.txt")
    assert build_dataset("voc", voc, "train_aug").ids == ["one", "two"]


def test_a_test_split_needs_no_masks(voc):
    (voc / "ImageSets/Segmentation/test.txt").write_text("five\nsix\n")
    for name in ("five", "six"):
        Image.new("RGB", (40, 30), (9, 9, 9)).save(voc / "JPEGImages" / f"{name}.jpg")
    data = build_dataset("voc", voc, "test", TrainTransform(16))
    assert not data.has_masks and data.mask_path(0) is None
    assert (data[1]["mask"] == 255).all()
    save_mask(voc / "SegmentationClass" / "five.png", np.zeros((30, 40), np.uint8))
    with pytest.raises(DataError, match=r"six\.png: no such mask"):  # now it is a labelled split with a gap
        build_dataset("voc", voc, "test")


def test_folder_data_sets_bring_their_own_classes(folder):
    data = build_dataset("folder", folder, "train")
    assert data.class_names == ["grass", "sky", "roof tile"]
    assert len(set(data.palette)) == 3
    (folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt: no such file"):
        build_dataset("folder", folder, "train")
    with pytest.raises(DataError, match="no such folder"):
        build_dataset("folder", folder / "nowhere", "train")


def test_images_may_be_png_or_in_capitals(folder):
    path = folder / "JPEGImages" / "one.jpg"
    Image.open(path).save(folder / "JPEGImages" / "one.PNG")
    stored = np.asarray(Image.open(path))
    path.unlink()
    (folder / "JPEGImages" / "two.jpg").rename(folder / "JPEGImages" / "two.JPG")
    data = build_dataset("folder", folder, "train")
    assert [data.image_path(index).name for index in range(2)] == ["one.PNG", "two.JPG"]
    assert np.array_equal(data[0]["image"].permute(1, 2, 0).numpy(), stored)


@pytest.mark.parametrize(
    ("content", "message"), [("", "0 class names"), ("a\nb\na\n", "'a' stands there more"), ("\xff", "cannot be read")]
)
def test_class_lists_are_checked(tmp_path, content, message):
    path = tmp_path / "classes.txt"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_class_names(path)


@pytest.fixture
def ade20k(tmp_path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for split, count in (("training", 3), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            name = f"ADE_{split[:5]}_{number:08d}"
            Image.new("RGB", (20, 10), (number, 9, 9)).save(root / "images" / split / f"{name}.jpg")
            labels = np.arange(200, dtype=np.uint8).reshape(10, 20) % 151
            Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")
    return tmp_path


def test_ade20k_reduces_the_zero_label(ade20k):
    data = build_dataset("ade20k", ade20k, "train")
    assert len(data) == 3 and data.num_classes == 150 and data.ids == sorted(data.ids)
    assert len(set(data.class_names)) == 150 and len(set(data.palette)) == 150
    assert (data.class_names[0], data.class_names[12], data.class_names[149]) == ("wall", "person", "flag")
    mask = data[0]["mask"].flatten()
    assert mask[0] == 255 and mask[1] == 0 and mask[150] == 149 and mask[151] == 255
    assert len(build_dataset("ade20k", ade20k / "ADEChallengeData2016", "val")) == 2
    Image.fromarray(np.full((10, 20), 151, np.uint8)).save(data.mask_path(0))
    with pytest.raises(DataError, match=r"00000000\.png: labels 150"):
        data[0]


def test_palettes():
    # The first colours of the VOC devkit's VOClabelcolormap.
    known = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert voc_palette()[:7] == known and voc_palette()[20] == (0, 64, 128) and voc_palette()[255] == (224, 224, 192)
    names = ["background", *map(str, range(254))]
    palette = distinct_palette(names)
    assert palette[0] == (0, 0, 0) and len(set(palette)) == 255


# --- split lists


def test_lists_may_have_blank_lines_crlf_and_a_byte_order_mark(voc):
    path = voc / "ImageSets/Segmentation/train.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  two  \r\nthree")
    assert build_dataset("voc", voc, "train").ids == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\n../secret\n", r"train\.txt, line 2: '\.\./secret' is not a bare file name"),
        ("/etc/passwd\n", r"train\.txt, line 1: '/etc/passwd' is not a bare"),
        ("..\\secret\n", r"line 1: .* is not a bare"),
        ("one\ntwo\none\n", r"train\.txt, line 3: 'one' is listed already in line 1"),
        ("one\nnowhere\n", r"nowhere\.jpg: no such image \(listed in .*train\.txt\); and 1 more: .*--check"),
        ("\n\n", r"train\.txt: the split 'train' is empty"),
    ],
)
def test_faulty_lists_are_one_error_naming_the_file(voc, content, message):
    (voc / "ImageSets/Segmentation/train.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        build_dataset("voc", voc, "train")


def test_lists_that_are_no_text(voc):
    path = voc / "ImageSets/Segmentation/train.txt"
    path.write_bytes(b"one\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"train\.txt: the list cannot be read"):
        build_dataset("voc", voc, "train")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"train\.txt: the list cannot be read"):
        build_dataset("voc", voc, "train")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80), names=st.lists(st.sampled_from(["one", "/two.jpg", "x/three.png", "../one"])))
def test_any_list_gives_known_names_or_faults(tmp_path, content, names):
    root = tmp_path / "voc"
    if not root.exists():
        write_voc(root)
    path = root / "ImageSets/Segmentation/train.txt"
    path.write_bytes(content + "\n".join(names).encode())
    files, faults = find_voc(root).scan("train")
    assert set(files.ids) <= set(IDS) and len(set(files.ids)) == len(files.ids)
    assert all(image.parent == root / "JPEGImages" for image in files.images)
    assert all(str(path) in fault for fault in faults)


# --- samples


def test_a_sample_at_native_size(voc):
    data = build_dataset("voc", voc, "train")
    sample = data[1]
    stored = np.asarray(Image.open(voc / "JPEGImages" / "two.jpg"))
    assert sample["image"].dtype == torch.uint8 and sample["mask"].dtype == torch.uint8
    assert np.abs(sample["image"].permute(1, 2, 0).numpy().astype(int) - stored).max() <= 2  # two JPEG decoders
    assert np.array_equal(sample["mask"].numpy(), np.asarray(Image.open(voc / "SegmentationClass" / "two.png")))
    assert sample["valid"].all() and sample["valid"].shape == (33, 47)
    assert sample["box"].tolist() == [0, 0, 47, 33] and sample["flip"] is False
    assert sample["index"] == 1 and sample["id"] == "two" and sample["size"].tolist() == [33, 47]
    assert data[-1]["index"] == 2
    with pytest.raises(IndexError):
        data[3]
    assert (data.name, data.split, len(data)) == ("voc", "train", 3)


def test_a_seed_decides_the_augmentation_and_leaves_the_global_state(voc):
    data = build_dataset("voc", voc, "train", TrainTransform(32))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = data[0, 123]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again, other = data[0, 123], data[0, 124]
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key])) for key in first if key != "id")
    assert not torch.equal(first["image"], other["image"])
    torch.manual_seed(1)
    unseeded = data[0]
    torch.manual_seed(1)
    assert torch.equal(unseeded["image"], data[0]["image"])


def take(loader) -> list[dict]:
    return list(loader)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_any_start_method_give_the_same_samples(voc, method, tmp_path):
    if method == "fork" and not hasattr(__import__("os"), "fork"):
        pytest.skip("this system cannot fork")
    data = build_dataset("voc", voc, "train", TrainTransform(24), decode_cache=tmp_path / "cache")
    sampler = EpochSampler(len(data), seed=3, epoch=2)
    alone = take(DataLoader(data, batch_size=2, sampler=sampler))
    shared = take(DataLoader(data, batch_size=2, sampler=sampler, num_workers=2, multiprocessing_context=method))
    assert len(alone) == len(shared) == 2
    for first, second in zip(alone, shared, strict=True):
        assert first["id"] == second["id"]
        for key in ("image", "mask", "valid", "box", "flip", "index", "size"):
            assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_line_with_and_without_workers(voc, workers):
    path = voc / "JPEGImages" / "two.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    data = build_dataset("voc", voc, "train")
    with pytest.raises(UserError) as caught:
        take(DataLoader(data, batch_size=1, num_workers=workers))
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    assert message.startswith(f"{path}: truncated or damaged image")


def test_data_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(DataError("a.png: wrong\n twice")))
    assert type(error) is DataError and str(error) == "a.png: wrong twice"


# --- the order of an epoch


def test_the_sampler_is_a_function_of_seed_epoch_and_index():
    first = list(EpochSampler(10, seed=1, epoch=4))
    sampler = EpochSampler(10, seed=1)
    sampler.set_epoch(4)
    assert list(sampler) == first
    assert sorted(index for index, _ in first) == list(range(10))
    assert len({seed for _, seed in first}) == 10
    other_epoch, other_seed = list(EpochSampler(10, seed=1, epoch=5)), list(EpochSampler(10, seed=2, epoch=4))
    assert [i for i, _ in first] != [i for i, _ in other_epoch] != [i for i, _ in other_seed]
    assert not {seed for _, seed in first} & {seed for _, seed in other_epoch + other_seed}
    sampler.set_epoch(4, start=7)
    assert list(sampler) == first[7:] and len(sampler) == 3
    assert len(list(EpochSampler(5, seed=-3))) == 5


@pytest.mark.parametrize("num_samples", [12, 13])
def test_ranks_share_an_epoch(num_samples):
    whole = list(EpochSampler(num_samples, seed=1, epoch=2))
    ranks = [list(EpochSampler(num_samples, 1, 2, rank, 4)) for rank in range(4)]
    assert {len(rank) for rank in ranks} == {-(-num_samples // 4)}
    assert set().union(*ranks) == set(whole)
    # One process with batches of 8 and four with batches of 2 see the same batches.
    assert {pair for rank in ranks for pair in rank[:2]} == set(whole[:8])
    with pytest.raises(ValueError, match="rank"):
        EpochSampler(5, 0, rank=2, world_size=2)


# --- strangers' files


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bare_png(width: int, height: int, colour_type: int = 2, bits: int = 8, rows: bytes = b"") -> bytes:
    """A PNG that promises a size and holds no pixels, or ``rows``, each behind a byte 0."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
INDEXED = NOISE.convert("L").point(lambda value: value % 5)
TURNED = NOISE.rotate(180)

# A directory of tags that Pillow's parser reads as text: it raises a TypeError, long after the header was fine.
DAMAGED_TIFF = base64.b64decode(
    "SUkqAPoAAAB4nC2QCQ6EMAwDc9r5/4t3ihYJURLXVzt85cqoGlfP1LbJt51SX89OWOub8maG7K5rbq0GwK5iikOqtOzVoVgGExHdGguO3Wa5"
    "Sg7KqxPImY1JRM+l6riTgHrymv3GLnrvU1PncyQblGMaHpz2m3gaOixji/uqSCiLT8yLoiuA6rX/CIHmWYzq/YPVw9XV3C0C9AHvh+DqOtpZ"
    "0KgSp1eINKZM5siLxvttkS2dxnBxthnGwoUf+qUr0r6I9Sp8jVITEJ1zz92EI26ePgvmjZhorL4WrzKpnWw8GG2bNvc1iVgo8Zz1zzA3PQZ3"
    "+QM8xwevAAsAAAEDAAEAAAAUAAAAAQEDAAEAAAAYAAAAAgEDAAEAAAAIAAAAAwElAAEAAAAIAAAABgEDAAEAAAABAAAADgECABAAAACEAQAA"
    "EQECAAEAAAAIAAAAEgEDAAEAAAAGAAAAFgEDAAEAAAAYAAAAFwEEAAEAAADxAAAAHAEDAAEAAAABAAAAAAAAAGFiY2FiY2FiY2FiY2FiYwA="
)

BAD_IMAGES = {
    "empty": (b"", "is empty"),
    "text": (b"<html>not found</html>", "not an image"),
    "truncated jpeg": (encode(NOISE, "JPEG")[:-300], "truncated or damaged"),
    "header only": (encode(NOISE, "JPEG")[:20], "not an image"),
    "truncated png": (encode(NOISE, "PNG")[:2000], "truncated or damaged"),
    # torchvision's PNG decoder ends the whole process on this one.
    "damaged png": (encode(NOISE, "PNG")[:2000] + b"xxxx" + encode(NOISE, "PNG")[2004:], "truncated or damaged"),
    "cmyk": (encode(NOISE.convert("CMYK"), "JPEG"), "colour mode CMYK"),
    "16 bit": (encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"), "colour mode I;16"),
    "gif": (encode(NOISE, "GIF"), "a GIF file"),
    "animated gif": (encode(NOISE, "GIF", save_all=True, append_images=[TURNED]), "animated GIF with 2 frames"),
    "animated png": (encode(NOISE, "PNG", save_all=True, append_images=[TURNED]), "animated PNG with 2 frames"),
    "bomb": (bare_png(100_000, 100_000), "bomb"),
    "smaller bomb": (bare_png(11_000, 11_000), "bomb"),
    "zero size": (bare_png(0, 5), "not an image"),
    "no pixels": (bare_png(50, 40), "truncated or damaged"),
    "tiff": (DAMAGED_TIFF, "truncated or damaged"),
}
BAD_MASKS = {
    "empty": (b"", "is empty"),
    "rgb": (encode(NOISE, "PNG"), "holds RGB colours"),
    "16 bit": (encode(Image.fromarray(np.zeros((40, 50), np.uint16)), "PNG"), "mode I;16"),
    # Classes 1 and 2, which Pillow reads as 0 (the higher byte), or as 17 and 34.
    "16 bit rgb": (bare_png(50, 40, 2, 16, (b"\0" + b"\0\1" * 75 + b"\0\2" * 75) * 40), "of 16 bits a channel"),
    "4 bit grey": (bare_png(50, 40, 0, 4, (b"\0" + b"\x12" * 25) * 40), "of 4 bits a channel"),
    "jpeg": (encode(INDEXED, "JPEG"), "lossy compression"),
    "truncated": (encode(INDEXED, "PNG")[:-100], "truncated or damaged"),
    "tiff": (DAMAGED_TIFF, "truncated or damaged"),
    "bomb": (bare_png(100_000, 100_000, 3), "bomb"),
    "animated": (encode(INDEXED, "PNG", save_all=True, append_images=[INDEXED.rotate(180)]), "animated"),
    "stray labels": (encode(INDEXED.point(lambda value: value + 20), "PNG"), "labels 21, 22, 23, 24 are neither"),
    "other size": (encode(INDEXED.resize((49, 40)), "PNG"), "49x40 pixels, but its image .*one.jpg has 50x40"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused_by_name(voc, name):
    content, message = BAD_IMAGES[name]
    path = voc / "JPEGImages" / "one.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        build_dataset("voc", voc, "train")[0]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks_are_refused_by_name(voc, name):
    content, message = BAD_MASKS[name]
    path = voc / "SegmentationClass" / "one.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        build_dataset("voc", voc, "train")[0]
    assert str(path) in str(caught.value)


def test_files_that_vanish_are_named(voc):
    data = build_dataset("voc", voc, "train")
    data.image_path(0).unlink()
    with pytest.raises(DataError, match=r"one\.jpg: no such file"):
        data[0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_harmless_kinds_of_images_become_rgb(tmp_path, mode):
    path = tmp_path / "wrong extension.jpg"
    path.write_bytes(encode(NOISE.convert(mode), "PNG"))
    wanted = np.asarray(NOISE.convert(mode).convert("RGB"))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_masks_of_few_bits_are_indices(tmp_path, bits):
    labels = (np.arange(2000).reshape(40, 50) % 2**bits).astype(np.uint8)
    image = Image.fromarray(labels)
    image.putpalette([200, 10, 10] * 2**bits)
    image.save(tmp_path / "mask.png", bits=bits)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), labels)


def test_grey_masks_are_values(tmp_path):
    INDEXED.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), np.asarray(INDEXED))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    source=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    edits=st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=4)), min_size=1, max_size=6),
)
def test_damaged_files_give_an_image_or_one_error(tmp_path, source, edits):
    """Bytes overwritten, put in or cut out anywhere: never another exception, never a crash."""
    content = bytearray(encode(NOISE, source))
    for place, patch in edits:
        place %= len(content)
        content[place : place + (len(patch) or 50)] = patch
    path = tmp_path / "fuzzed"
    path.write_bytes(content)
    for read in (read_image, read_mask, image_size):
        try:
            read(path)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)


# --- python dataset.py


def run_main(*args: object) -> int | None:
    """``python dataset.py ARGS`` in this process: importing torch anew for each would take seconds."""
    return dataset_script.main(dataset_script.get_args_parser().parse_args(list(map(str, args))))


def test_check_lists_every_fault_and_fails(voc, run_script, capsys):
    assert run_main("--data-dir", voc, "--check") == 0
    assert "no faults" in capsys.readouterr().out
    (voc / "JPEGImages" / "one.jpg").write_bytes(b"")
    (voc / "SegmentationClass" / "one.png").write_bytes(BAD_MASKS["rgb"][0])
    (voc / "SegmentationClass" / "two.png").unlink()
    (voc / "SegmentationClass" / "three.png").write_bytes(BAD_MASKS["stray labels"][0])
    (voc / "ImageSets/Segmentation/val.txt").write_text("four\nfour\n../x\nnowhere\none\n")
    (voc / "ImageSets/Segmentation/spare.txt").write_text("")
    done = run_script("dataset.py", "--data-dir", voc, "--check", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    faults = [line for line in done.stdout.splitlines() if line.startswith("fault: ")]
    for words in (
        "one.jpg: the file is empty",
        "one.png: the mask holds RGB",
        "two.png: no such mask",
        "three.png: labels 21, 22, 23, 24",
        "three.png: 50x40 pixels, but its image",
        "val.txt, line 2: 'four' is listed already",
        "val.txt, line 3: '../x' is not a bare file name",
        "nowhere.jpg: no such image",
        "nowhere.png: no such mask",
        "spare.txt: the split 'spare' is empty",
    ):
        assert sum(words in fault for fault in faults) == 1, words
    assert len(faults) == 10 and "10 faults" in done.stdout
    assert "1 image is in both train and val (of 2 there), for example one" in done.stdout


def test_the_script_says_what_is_there(voc, capsys):
    assert not run_main("--data-dir", voc)
    printed = capsys.readouterr().out
    assert "train           3 images" in printed
    row = next(line for line in printed.splitlines() if line.startswith("aeroplane"))
    share = float(row.split()[1].rstrip("%"))
    assert share == pytest.approx(100 * count_classes(find_voc(voc), "train").pixel_share[1], abs=1e-3)


def test_script_errors_are_one_line(tmp_path, voc, run_script):
    done = run_script("dataset.py", "--data-dir", tmp_path / "nowhere", check=False)
    assert_one_line_error(done, "no VOC 2012 below", "--download")
    with pytest.raises(UserError, match=r"unknown data set.*voc"):
        run_main("--dataset", "nonsense")
    with pytest.raises(UserError, match="nothing to fetch"):
        run_main("--dataset", "folder", "--data-dir", voc, "--download")
    with pytest.raises(UserError, match="no split 'nope'"):
        run_main("--data-dir", voc, "--stats", "--train-split", "nope")


# --- statistics


def test_class_statistics_by_hand(folder):
    for number, name in enumerate(("one", "two", "three")):
        mask = np.full(SIZES[number], 255, np.uint8)
        mask[0, :10] = 0
        mask[1, : 30 * (number == 0)] = 1
        save_mask(folder / "SegmentationClass" / f"{name}.png", mask)
    stats = count_classes(find_layout("folder", folder), "train")
    assert stats.pixels.tolist() == [30, 30, 0] and stats.images.tolist() == [3, 1, 0]
    assert stats.pixel_share.tolist() == [0.5, 0.5, 0.0]
    assert stats.image_share.tolist() == pytest.approx([1, 1 / 3, 0])
    assert stats.void_pixels == sum(height * width for height, width in SIZES[:3]) - 60
    assert stats.weights.tolist() == [1.0, 1.0, 1.0]


def test_inverse_frequency_by_hand():
    assert inverse_frequency(np.array([75, 25, 0])).tolist() == pytest.approx([1 / 1.5, 2.0, 1.0])
    pixels = np.array([500, 300, 200])
    assert (inverse_frequency(pixels) * pixels).tolist() == pytest.approx([1000 / 3] * 3)  # equal totals
    assert inverse_frequency(np.array([10**6, 1]))[1] == MAX_WEIGHT


def test_stats_are_saved_and_read_back_as_weights(folder, tmp_path, capsys):
    run_main("--dataset", "folder", "--data-dir", folder, "--stats", "--output-dir", tmp_path)
    assert "saved" in capsys.readouterr().out
    path = tmp_path / "mine_train_stats.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    layout = find_layout("folder", folder)
    assert [row["name"] for row in rows] == layout.class_names
    assert sum(float(row["pixel_share"]) for row in rows) == pytest.approx(1, abs=1e-5)
    with Image.open(tmp_path / "mine_train_stats.png") as picture:
        assert picture.size[0] > 800
    auto = class_weights("auto", layout, "train")
    assert auto.dtype == torch.float32
    assert torch.allclose(auto, torch.from_numpy(count_classes(layout, "train").weights).float())
    assert torch.allclose(class_weights(path, layout, "train"), auto, rtol=1e-5)
    plain = tmp_path / "plain.txt"
    plain.write_text("1\n0.5\n\n2\n")
    assert class_weights(plain, layout, "train").tolist() == [1.0, 0.5, 2.0]


def test_stats_of_names_with_dots_and_dollars(folder, tmp_path):
    root = tmp_path / "camvid.v2"
    shutil.copytree(folder, root)
    names = find_layout("folder", root).class_names
    (root / "classes.txt").write_text("\n".join([r"$\foo$", *names[1:]]) + "\n")
    run_main("--dataset", "folder", "--data-dir", root, "--stats", "--output-dir", tmp_path)
    made = {path.name for path in tmp_path.iterdir() if path.is_file()}
    kinds = ("stats.csv", "stats.png", "sheet.png")
    assert made == {f"camvid.v2_{split}_{kind}" for split in ("train", "val") for kind in kinds}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n2\n", "2 weights for 3 classes"),
        ("1\n2\nthree\n", "one number a class"),
        ("1\n-2\n3\n", "none negative"),
        ("nan\n1\n1\n", "finite"),
        ("0\n0\n0\n", "not all 0"),
        ("class,name,weight\n0,cat,1\n", "its classes are not those"),
    ],
)
def test_weight_files_are_checked(folder, tmp_path, content, message):
    path = tmp_path / "weights"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        class_weights(path, find_layout("folder", folder), "train")
    with pytest.raises(UserError, match="cannot be read"):
        class_weights(tmp_path / "nowhere", find_layout("folder", folder), "train")


# --- the decoded cache


def same(first: SegmentationDataset, second: SegmentationDataset, key) -> bool:
    return all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(second[key][name]))
        for name, value in first[key].items()
        if name != "id"
    )


def test_the_decoded_cache_serves_the_same_pixels(voc, tmp_path, capsys):
    cache = tmp_path / "cache"
    direct = build_dataset("voc", voc, "train")
    cached = build_dataset("voc", voc, "train", decode_cache=cache)
    assert "3 images" in capsys.readouterr().out  # the size is told before it is written
    assert all(same(direct, cached, index) for index in range(3))
    direct.transform = cached.transform = TrainTransform(32)
    assert all(same(direct, cached, (index, seed)) for index in range(3) for seed in range(10))
    names = sorted(path.suffix for path in cache.iterdir())
    assert names == [".bin", ".json"]
    assert sum(4 * height * width for height, width in SIZES[:3]) == next(cache.glob("*.bin")).stat().st_size
    again = build_dataset("voc", voc, "train", direct.transform, decode_cache=cache)
    assert capsys.readouterr().out == ""  # nothing is built
    assert same(direct, again, (1, 1))


def test_the_decoded_cache_follows_its_sources(voc, tmp_path):
    cache = tmp_path / "cache"
    build_dataset("voc", voc, "train", decode_cache=cache)
    save_mask(voc / "SegmentationClass" / "one.png", np.full(SIZES[0], 7, np.uint8))
    data = build_dataset("voc", voc, "train", decode_cache=cache)
    assert (data[0]["mask"] == 7).all()
    (voc / "ImageSets/Segmentation/train.txt").write_text("two\none\n")
    assert build_dataset("voc", voc, "train", decode_cache=cache)[0]["id"] == "two"


def test_two_runs_may_make_the_same_cache_at_once(voc, tmp_path, monkeypatch):
    """A second run begins and ends while the first one's manifest is about to get its name."""
    cache, sync, calls = tmp_path / "cache", os.fsync, []

    def second_run(handle):
        sync(handle)
        calls.append(handle)
        if len(calls) == 2:  # the first was for the pixels
            build_dataset("voc", voc, "train", decode_cache=cache)

    monkeypatch.setattr(os, "fsync", second_run)
    first = build_dataset("voc", voc, "train", decode_cache=cache)
    assert len(calls) >= 3 and sorted(path.suffix for path in cache.iterdir()) == [".bin", ".json"]
    assert same(build_dataset("voc", voc, "train"), first, 1)


def test_a_cache_that_is_not_whole_is_made_anew(voc, tmp_path):
    cache = tmp_path / "cache"
    direct = build_dataset("voc", voc, "train", decode_cache=cache)
    data, manifest = next(cache.glob("*.bin")), next(cache.glob("*.json"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    assert same(direct, build_dataset("voc", voc, "train", decode_cache=cache), 2)
    assert data.read_bytes() == whole
    manifest.write_text(manifest.read_text()[:-20])
    assert same(direct, build_dataset("voc", voc, "train", decode_cache=cache), 2)


def test_an_interrupted_or_impossible_build_leaves_nothing(voc, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    (voc / "JPEGImages" / "three.jpg").write_bytes(BAD_IMAGES["truncated jpeg"][0])
    with pytest.raises(UserError, match=r"three\.jpg"):
        build_dataset("voc", voc, "train", decode_cache=cache)
    assert list(cache.iterdir()) == []
    write_voc(voc)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="are needed in"):
        build_dataset("voc", voc, "train", decode_cache=cache)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        build_dataset("voc", voc, "train", decode_cache=blocked)


@pytest.mark.parametrize("window", ["whole", "cut"])
def test_a_sample_may_be_written_to(voc, tmp_path, window):
    """It is no view of the cache, which is mapped read-only, not even where the window is just the picture."""
    data = build_dataset("voc", voc, "train", decode_cache=tmp_path)
    before = data._read(0)[0].clone()
    if window == "cut":
        height, width = before.shape[1:]
        data.transform = TrainTransform((height, width), (1.0, 1.0), flip=0.0)
    sample = data[0]
    assert torch.equal(sample["image"], before)
    sample["image"].zero_()
    sample["mask"].zero_()
    assert torch.equal(build_dataset("voc", voc, "train", decode_cache=tmp_path)._read(0)[0], before)


# --- real data


@pytest.mark.skipif(not (SHARED / "voc_animals").is_dir(), reason="no ../shared/data/voc_animals")
def test_real_voc():
    train, augmented = (build_dataset("voc", SHARED / "voc_animals", split) for split in ("train", "train_aug"))
    val = build_dataset("voc", SHARED / "voc_animals", "val", TrainTransform(64))
    assert (len(train), len(augmented), len(val)) == (422, 1464, 436)
    sample = train[0]
    assert sample["image"].shape[1:] == sample["mask"].shape
    assert (sample["mask"] == 255).any()
    assert val[5, 1]["image"].shape == (3, 64, 64)


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="no ../shared/data/camvid")
def test_real_camvid():
    data = build_dataset("folder", SHARED / "camvid", "val")
    assert len(data) == 101 and data.num_classes == 11
    assert data[0]["image"].shape == (3, 360, 480)
    assert set(data[0]["mask"].unique().tolist()) <= {*range(11), 255}


def test_the_registry_and_the_help_agree():
    assert set(DATASETS) == {"voc", "folder", "demo", "ade20k", "cityscapes", "coco", "labelme"}
    args = dataset_script.get_args_parser().parse_args([])
    assert (args.dataset, args.data_dir, args.train_split, args.val_split) == ("voc", Path("data"), "train", "val")
