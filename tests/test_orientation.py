"""EXIF orientation: training reads a picture as prediction and every viewer show it, and caches follow."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dataset import build_dataset
from kd.cache_store import RecordLayout, differences
from kd.teacher_cache import describe
from scoring.protocol import same_size_batches
from segdata.orientation import METHODS, orientation_of, turn_upright
from segdata.pictures import read_picture
from segdata.reading import DataError, image_size, read_header, read_image, read_mask, size_fault
from tests.tiny import TinyModel

TAG = 0x0112
ORIENTATIONS = range(1, 9)
SIZES = [(30, 40), (32, 32)]  # (H, W) as stored


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth, so that a JPEG of it hardly differs, and unlike itself in any other position."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[TAG] = orientation
    return tags


def upright_array(image: Image.Image, orientation: int) -> np.ndarray:
    """Pillow's own turning of stored pixels."""
    return np.asarray(image.transpose(METHODS[orientation]) if orientation > 1 else image)


def make_folder(root: Path, orientation: int, size: tuple[int, int], *, stored_masks: bool = False) -> Path:
    """Four images with the tag, masks with a corner of class 1; train = 0, 1, 2; val = 3."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(4):
        image = picture(size, number)
        image.save(root / "JPEGImages" / f"{number}.jpg", exif=exif(orientation), quality=95)
        mask = Image.fromarray(np.kron([[1, 0], [0, 0]], np.ones((size[0] // 2, size[1] // 2))).astype(np.uint8))
        if orientation > 1 and not stored_masks:
            mask = mask.transpose(METHODS[orientation])
        mask.save(root / "SegmentationClass" / f"{number}.png")
    (root / "classes.txt").write_text("background\nthing\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("0\n1\n2\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("3\n")
    return root


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_are_turned_as_pillow_turns_them(orientation):
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turned = turn_upright(torch.from_numpy(stored), orientation).numpy()
    assert np.array_equal(turned, upright_array(Image.fromarray(stored), orientation))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_training_and_prediction_read_the_same_picture(tmp_path, kind, orientation, size):
    path = tmp_path / "a.jpg"
    picture(size).save(path, kind, exif=exif(orientation))
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    read = read_image(path).permute(1, 2, 0).numpy()
    assert read.shape == wanted.shape
    assert np.abs(read.astype(int) - wanted).max() <= (3 if kind == "JPEG" else 0)  # two JPEG decoders
    assert torch.equal(read_picture(path), torch.from_numpy(wanted.copy()).permute(2, 0, 1))
    header = read_header(path)
    assert (header.height, header.width) == wanted.shape[:2] and header.orientation == orientation
    assert image_size(path) == (wanted.shape[1], wanted.shape[0])


def png_with(orientation: int, chunk: str, *, behind: bool) -> bytes:
    """A PNG with the tag in a chunk that stands before or behind its pixels."""
    if chunk == "eXIf":
        content, kind = exif(orientation).tobytes().removeprefix(b"Exif\0\0"), b"eXIf"
    else:
        xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
        content, kind = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode(), b"iTXt"
    extra = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    file = io.BytesIO()
    picture((20, 30)).save(file, "PNG")
    data = file.getvalue()
    place = len(data) - 12 if behind else 33  # before IEND, or behind IHDR
    return data[:place] + extra + data[place:]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("chunk", ["eXIf", "iTXt"])
def test_a_png_may_say_it_anywhere(tmp_path, chunk, behind):
    path = tmp_path / "a.png"
    path.write_bytes(png_with(6, chunk, behind=behind))
    assert read_image(path).shape == (3, 30, 20)
    assert (read_header(path).width, read_header(path).height) == (20, 30)
    assert torch.equal(read_image(path), read_picture(path))


@pytest.mark.parametrize(
    "content",
    [
        b"Exif\0\0II*",
        b"Exif\0\0nothing of the kind",
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03",
        exif(0).tobytes(),
        exif(9).tobytes(),
        exif(200).tobytes(),
    ],
)
def test_a_tag_that_cannot_be_read_turns_nothing(tmp_path, content):
    path = tmp_path / "a.jpg"
    picture((20, 30)).save(path, exif=content)
    assert read_image(path).shape == read_picture(path).shape == (3, 20, 30)
    assert read_header(path).orientation == 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_tiff_is_turned_once(tmp_path, orientation, compression):
    """Pillow turns TIFFs by itself."""
    path = tmp_path / "mask.tif"
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(labels).save(path, tiffinfo={TAG: orientation}, compression=compression)
    wanted = upright_array(Image.fromarray(labels), orientation)
    assert np.array_equal(read_mask(path), wanted)
    assert np.array_equal(read_picture(path)[0].numpy(), wanted)
    with Image.open(path) as image:
        assert orientation_of(image) == orientation


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_turned_mask_is_turned_like_its_image(tmp_path, orientation):
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(labels)
    image.putpalette(bytes(range(30)))
    image.save(tmp_path / "mask.png", exif=exif(orientation))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), upright_array(Image.fromarray(labels), orientation))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_upright_masks_fit(tmp_path, orientation, size):
    data = build_dataset("folder", make_folder(tmp_path, orientation, size), "train")
    shown = upright_array(picture(size), orientation)
    sample = data[0]
    assert sample["mask"].shape == shown.shape[:2] and sample["size"].tolist() == list(shown.shape[:2])
    assert np.abs(sample["image"].permute(1, 2, 0).numpy().astype(int) - shown).mean() < 4  # a JPEG of it
    corner = upright_array(Image.fromarray(np.kron([[1, 0], [0, 0]], np.ones((2, 2))).astype(np.uint8)), orientation)
    found = sample["mask"][[0, 0, -1, -1], [0, -1, 0, -1]].tolist()
    assert found == [corner[0, 0], corner[0, -1], corner[-1, 0], corner[-1, -1]]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_drawn_on_the_stored_picture_are_refused_with_the_tag(tmp_path, orientation):
    data = build_dataset("folder", make_folder(tmp_path, orientation, (30, 40), stored_masks=True), "train")
    named = rf"0\.png: 40x30 .*0\.jpg as stored.*orientation {orientation} .*30x40; draw"
    with pytest.raises(DataError, match=named) as caught:
        data[0]
    header = read_header(data.image_path(0))
    assert str(caught.value) == size_fault(header, 40, 30, data.image_path(0), data.mask_path(0))
    assert "orientation" not in (size_fault(header, 41, 30, Path("a"), Path("b")) or "")  # wrong in any position


def test_batches_of_one_size_know_the_turned_size(tmp_path):
    root = make_folder(tmp_path, 6, (30, 40))
    picture((40, 30)).save(root / "JPEGImages" / "0.jpg")  # upright as stored, and the same size as the turned ones
    Image.new("L", (30, 40)).save(root / "SegmentationClass" / "0.png")
    assert same_size_batches(build_dataset("folder", root, "train"), 3) == [[0, 1, 2]]


# --- caches of before


def age(folder: Path) -> Path:
    """Make a decoded cache look like one of before pictures were turned; returns its data file."""
    manifest = next(folder.glob("*.json"))
    about = json.loads(manifest.read_text())
    assert about.pop("upright") is True
    manifest.write_text(json.dumps(about))
    return next(folder.glob("*.bin"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_old_decoded_cache_serves_unless_something_is_turned(tmp_path, orientation, size, capsys):
    root, cache = make_folder(tmp_path / "d", orientation, size), tmp_path / "cache"
    build_dataset("folder", root, "train", decode_cache=cache)
    data = age(cache)
    stored = data.read_bytes()
    data.write_bytes(bytes(len(stored)))  # whatever it held
    capsys.readouterr()
    served = build_dataset("folder", root, "train", decode_cache=cache)
    if orientation == 1:
        assert capsys.readouterr().out == "" and data.read_bytes() == bytes(len(stored))
    else:
        assert "decoded cache: 3 images" in capsys.readouterr().out
        assert torch.equal(served[0]["image"], build_dataset("folder", root, "train")[0]["image"])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_teacher_cache_is_told_what_was_turned(tmp_path, orientation):
    data = build_dataset("folder", make_folder(tmp_path, orientation, (32, 32)), "train")
    here = describe(TinyModel(2), "tiny", data, [], "fp16")
    before = [["0", 32, 32, data.image_path(0).stat().st_size]]
    if orientation == 1:  # nothing of a turn; a cache of old, without the digest of the file's ends, serves
        assert [image[:-1] for image in here["images"][:1]] == before
        assert differences(here | {"images": [image[:4] for image in here["images"]]}, here) == []
        return
    assert here["images"][0][:4] == before[0]
    old = here | {"images": [image[:4] for image in here["images"]]}
    (found,) = differences(old, here)
    assert f"turned from EXIF orientation {orientation}" in found and found.startswith("3 images differ")
    assert RecordLayout(here).sizes == RecordLayout(old).sizes


def test_a_teacher_cache_takes_the_turned_size(tmp_path):
    data = build_dataset("folder", make_folder(tmp_path, 6, (32, 48)), "train")
    assert describe(TinyModel(2), "tiny", data, [], "fp16")["images"][0][1:3] == [48, 32]


def test_a_damaged_image_in_a_teacher_cache_is_named(tmp_path):
    data = build_dataset("folder", make_folder(tmp_path, 1, (32, 32)), "train")
    data.image_path(1).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1\.jpg: not an image"):
        describe(TinyModel(2), "tiny", data, [], "fp16")
