"""Pictures of any format, many pages, any size and any arrangement of their bytes; against Pillow and by hand."""

from __future__ import annotations

import csv
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, features

import deploy.results
import segdata.pictures
from deploy.predictor import Options, Predictor
from deploy.results import PANEL_SIDE
from segdata.grey_depth import Depth
from segdata.inputs import find_sources
from segdata.pictures import PictureFile, looks_like_picture, read_picture
from segdata.png_rows import PngRows
from segdata.reading import DataError, read_header, read_image, read_mask
from segdata.tiff_pieces import TiffPieces
from tests.test_segmenter import picture as random_picture
from tests.test_segmenter import segmenter


def pixels(height=60, width=90, seed=0):
    """Blocks of random colours, uint8 (H, W, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


@pytest.fixture
def run(tmp_path):
    """``run(INPUT, ..., kinds=, option=)`` -> what became of it; results are in ``tmp_path / "out"``."""

    def call(*sources, kinds=("mask",), **options):
        predictor = Predictor(segmenter(), tmp_path / "out", Options(kinds, **options))
        return predictor.predict([str(source) for source in sources])

    return call


def results(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jp2", "tga", "avif", "qoi", "pcx", "dds", "ico", "sgi", "webp", "im", "ppm"])
def test_every_format_of_pillow_is_read_in_a_folder(run, tmp_path, suffix):
    (tmp_path / "in").mkdir()
    try:
        Image.fromarray(pixels(64, 64)).save(tmp_path / "in" / f"a.{suffix}")
    except (OSError, KeyError, ValueError) as error:
        pytest.skip(f"this build of Pillow cannot write it: {error}")
    tally = run(tmp_path / "in")
    assert not tally.failures and tally.pictures == 1


def test_pictures_without_a_suffix_are_known_by_their_content(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg_large", "b", "c.svs"):
        Image.fromarray(pixels()).save(folder / name, format="TIFF" if name == "c.svs" else "PNG")
    tally = run(folder)
    assert tally.pictures == 3 and not tally.failures


def test_what_is_left_out_is_counted_and_named(run, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pixels()).save(folder / "a.png")
    (folder / ".hidden").write_text("x")
    for name in ("notes.txt", "b.json", "c.npy", "d.mp3", "e.ini", "f.xml", "Thumbs.db"):
        (folder / name).write_bytes(b"\x00\x01 nothing to see")
    tally = run(folder)
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert "7 files" in note and "Thumbs.db, b.json" in note and note.endswith("...)")
    assert not tally.failures
    (folder / "a.png").unlink()
    (tmp_path / "only").mkdir()
    Image.fromarray(pixels()).save(tmp_path / "only" / "a.png")
    capsys.readouterr()
    run(tmp_path / "only")
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "start", "hint"),
    [("a.heic", b"\0\0\0\x18ftypheic", "pillow-heif"), ("a.jpg", b"\0\0\0\x18ftypmif1", "pillow-heif"),
     ("a.jxl", b"\xff\x0a", "pillow-jxl-plugin"), ("a.jpg", b"\0\0\0\x0cJXL \x0d\x0a", "pillow-jxl-plugin"),
     ("a.png", b"", "empty"), ("a.png", b"hello", "not an image")],
)  # fmt: skip
def test_what_cannot_be_read_says_why(run, tmp_path, name, start, hint):
    if hint.startswith("pillow-") and name.split(".")[1] in {s[1:] for s in Image.registered_extensions()} - {"jpg"}:
        pytest.skip("the plugin is installed")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(start + bytes(40) * bool(start))
    (failure,) = run(tmp_path / "in").failures
    assert name in failure and hint in failure


def test_a_raw_file_is_not_taken_for_its_preview(run, tmp_path):
    Image.fromarray(pixels(20, 30)).save(tmp_path / "a.nef", format="TIFF")
    (failure,) = run(tmp_path / "a.nef").failures
    assert "a.nef" in failure and "raw" in failure and "JPEG or TIFF" in failure


@pytest.mark.parametrize("more", [{50706: ("I", [1])}, {254: ("I", [1]), 330: ("I", [8])}], ids=["DNG", "a preview"])
def test_a_raw_file_under_another_name_is_known_by_its_tags(tmp_path, more):
    path = write_tiff(tmp_path / "a.tif", np.zeros((3, 8, 8), np.uint8), more=more)
    with pytest.raises(DataError, match="raw file"):
        PictureFile(path)


# -- pages and frames ------------------------------------------------------------------------------


def save_pages(path, count=3, **options):
    pages = [Image.fromarray(pixels(seed=seed)) for seed in range(count)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png", "a.avif"])
def test_all_pages_and_frames(run, tmp_path, name):
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this build of Pillow has no AVIF")
    save_pages(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert run(tmp_path / name).pictures == 3
    assert results(tmp_path / "out") == [f"mask/a/00000{number}.png" for number in (1, 2, 3)]
    with PictureFile(tmp_path / name) as file:
        for number in range(file.pages):
            got = file.page(number).read_rows(0, 60)
            if name not in ("a.gif", "a.avif"):  # these lose colours
                np.testing.assert_array_equal(got, pixels(seed=number))
            else:
                assert np.abs(got.astype(int) - pixels(seed=number)).mean() < 30


def test_the_first_page_is_never_taken_silently(run, tmp_path, capsys):
    save_pages(tmp_path / "a.tif")
    assert run(tmp_path / "a.tif", all_pages=False).pictures == 1
    assert results(tmp_path / "out") == ["mask/a.png"]
    assert "the first of 3 pages" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0.5, 0.9], ids=["in page 2", "in page 3"])
def test_a_damaged_page_costs_itself(run, tmp_path, cut):
    """A file that was not sent to its end: what is there of it is read, and so is the file behind it."""
    (tmp_path / "in").mkdir()
    whole = save_pages(tmp_path / "in" / "a.tif").read_bytes()
    (tmp_path / "in" / "a.tif").write_bytes(whole[: int(cut * len(whole))])
    Image.fromarray(pixels()).save(tmp_path / "in" / "b.png")
    tally = run(tmp_path / "in")
    lost = [2, 3] if cut == 0.5 else [3]
    assert tally.pictures == 4 - len(lost) and len(tally.failures) == len(lost)
    for page, failure in zip(lost, tally.failures, strict=True):
        assert f"a.tif: page or frame {page}: truncated" in failure
    assert results(tmp_path / "out") == sorted(
        [*(f"mask/a/00000{n}.png" for n in range(1, 4 - len(lost))), "mask/b.png"]
    )
    with pytest.raises(DataError, match=r"a\.tif"):
        read_header(tmp_path / "in" / "a.tif")


def test_a_page_of_a_kind_that_cannot_be_read_costs_itself(run, tmp_path):
    """The second of three has a compression that nobody knows."""
    path = save_pages(tmp_path / "a.tif", compression="tiff_deflate")
    content, place = bytearray(path.read_bytes()), 4
    for _ in range(2):  # to the second directory
        (start,) = struct.unpack_from("<I", content, place)
        (count,) = struct.unpack_from("<H", content, start)
        place = start + 2 + 12 * count
    for entry in range(start + 2, place, 12):
        if struct.unpack_from("<H", content, entry) == (259,):
            struct.pack_into("<H", content, entry + 8, 60000)
    path.write_bytes(content)
    stale = tmp_path / "out" / "mask" / "a" / "000002.png"  # of a run before it was damaged
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    tally = run(path)
    assert tally.pictures == 2 and len(tally.failures) == 1 and "page or frame 2" in tally.failures[0]
    assert not stale.exists(), "it would pass for this run's"
    assert results(tmp_path / "out") == ["mask/a/000001.png", "mask/a/000003.png"]


def test_smaller_versions_of_a_page_are_no_pages(run, tmp_path):
    """As pyramids for viewers have them, and their masks."""
    kinds = (0, 1, 4, 2)  # the picture, a smaller one, a mask, the second page of a document
    pages = []
    for number, kind in enumerate(kinds):
        page = Image.fromarray(pixels(seed=number))
        page.encoderinfo = {"tiffinfo": {254: kind}}
        pages.append(page)
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], tiffinfo={254: 0})
    assert run(tmp_path / "a.tif").pictures == 2


def test_a_second_view_of_a_phone_is_no_page(run, tmp_path):
    first, second = (Image.fromarray(pixels(seed=seed)) for seed in (0, 1))
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[second])
    assert run(tmp_path / "a.mpo").pictures == 1


def test_pages_do_not_fall_on_files_of_a_folder_of_that_name(run, tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    save_pages(tmp_path / "in" / "a.tif", 2)
    Image.fromarray(pixels(40, 40)).save(tmp_path / "in" / "a" / "000001.png")
    assert run(tmp_path / "in").pictures == 3
    names = results(tmp_path / "out" / "mask")
    assert names == ["a/000001.png", "a_frames/000001.png", "a_frames/000002.png"]
    assert Image.open(tmp_path / "out" / "mask" / "a" / "000001.png").size == (40, 40)


# -- sizes -----------------------------------------------------------------------------------------


@pytest.fixture
def small_limits(monkeypatch):
    """Pictures are huge from few pixels on."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(segdata.pictures, "STREAMED", 10_000)


def test_huge_pictures_want_tiles_and_then_are_read(run, tmp_path, small_limits, monkeypatch):
    image = pixels(200, 300)
    for name in ("a.tif", "b.png", "c.bmp"):
        Image.fromarray(image).save(tmp_path / name)
        (failure,) = run(tmp_path / name).failures
        assert name in failure and "--tile 512" in failure
        assert run(tmp_path / name, tile=64).pictures == 1
        expected = segmenter().mask(read_tensor(image), tile=64)
        assert Image.MAX_IMAGE_PIXELS == 10_000  # for others, the limit stays
        with monkeypatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
            written = np.asarray(Image.open(tmp_path / "out" / "mask" / f"{name[0]}.png"))
        np.testing.assert_array_equal(written, expected)


def read_tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)


def test_what_would_not_fit_into_memory_is_refused(run, tmp_path, small_limits, monkeypatch):
    monkeypatch.setattr(segdata.pictures, "free_memory", lambda device: 100_000)
    Image.fromarray(pixels(200, 300)).save(tmp_path / "b.png")
    (failure,) = run(tmp_path / "b.png", tile=64).failures
    assert "300x200" in failure and "tiled TIFF" in failure


@pytest.mark.parametrize("painted", [1, 1500, 10**6])
def test_overlays_have_no_seams_between_bands(run, tmp_path, monkeypatch, painted):
    """Painted band by band as in one piece: the lines between regions, too."""
    image = pixels(300, 200)
    monkeypatch.setattr(deploy.results, "PAINTED", painted)
    Image.fromarray(image).save(tmp_path / "a.png")
    run(tmp_path / "a.png", kinds=("overlay", "mask", "confidence"), tile=64)
    tiled = np.asarray(Image.open(tmp_path / "out" / "overlay" / "a.png"))
    mask = np.asarray(Image.open(tmp_path / "out" / "mask" / "a.png"))
    said = segmenter().predict(read_tensor(image), tile=64, confidence=True)
    np.testing.assert_array_equal(mask, said.mask)
    predictor = Predictor(segmenter(), tmp_path, Options(["overlay"]))
    np.testing.assert_array_equal(tiled, predictor.look.overlay(image, mask))
    confidence = Image.open(tmp_path / "out" / "confidence" / "a.png")
    assert confidence.mode == "L"
    np.testing.assert_array_equal(np.asarray(confidence), said.confidence)


def test_a_panel_of_a_huge_picture_is_not_huge(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("deploy.results.panel", lambda rows, *rest: (drawn.extend(rows), rest[-1].touch()))
    Image.fromarray(pixels(2 * PANEL_SIDE + 30, 40)).save(tmp_path / "a.png")
    run(tmp_path / "a.png", kinds=("panel",), tile=512)
    (row,) = drawn
    image = pixels(2 * PANEL_SIDE + 30, 40)
    np.testing.assert_array_equal(row.image, image[::3, ::3])
    np.testing.assert_array_equal(row.masks[0], segmenter().mask(read_tensor(image), 512)[::3, ::3])


# -- TIFFs in pieces -------------------------------------------------------------------------------


def write_tiff(path, bands, endian="<", deflate=False, planar=False, rows=None, tile=None, more=None):
    """A TIFF of ``bands`` (C, H, W), byte by byte after the specification; ``more``: tags, or other values of them."""
    count, height, width = bands.shape
    values = bands.astype(f"{endian}u{bands.dtype.itemsize}")
    groups = list(values[:, None]) if planar else [values]  # of (bands, H, W)
    pieces = []
    for group in groups:
        group = group.transpose(1, 2, 0)
        if tile:
            padded = np.pad(group, ((0, -height % tile), (0, -width % tile), (0, 0)))
            tops, lefts = range(0, len(padded), tile), range(0, padded.shape[1], tile)
            pieces += [padded[top : top + tile, left : left + tile] for top in tops for left in lefts]
        else:
            pieces += [group[top : top + (rows or height)] for top in range(0, height, rows or height)]
    data = [zlib.compress(piece.tobytes()) if deflate else piece.tobytes() for piece in pieces]
    sizes = [len(piece) for piece in data]
    place = [(324, 325), (273, 279)][not tile]
    tags = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8 * bands.dtype.itemsize] * count),
        259: ("H", [8 if deflate else 1]), 262: ("H", [2 if count >= 3 else 1]), 277: ("H", [count]),
        284: ("H", [2 if planar else 1]), place[0]: ("I", [0] * len(data)), place[1]: ("I", sizes),
        **({322: ("H", [tile]), 323: ("H", [tile])} if tile else {278: ("I", [rows or height])}),
        **({338: ("H", [2])} if count == 4 else {}), **(more or {}),
    }  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    lengths = {tag: struct.calcsize(kind) * len(numbers) for tag, (kind, numbers) in tags.items()}
    begin = start + sum(length for length in lengths.values() if length > 4)
    tags[place[0]] = ("I", [begin + sum(sizes[:index]) for index in range(len(sizes))])
    entries, extra = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{endian}{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{endian}I", start + len(extra)), extra + packed
        entries += struct.pack(f"{endian}HHI", tag, {"H": 3, "I": 4}[kind], len(numbers)) + packed.ljust(4, b"\0")
    head = struct.pack(f"{endian}2sHIH", b"II" if endian == "<" else b"MM", 42, 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + extra + b"".join(data))
    return path


def random_bands(count, bits):
    return np.random.default_rng(0).integers(0, 2**bits, (count, 70, 50), dtype=f"uint{bits}")


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("layout", [{}, {"rows": 16}, {"tile": 32}])
@pytest.mark.parametrize(("count", "bits"), [(1, 8), (1, 16), (3, 8), (3, 16), (4, 8), (4, 16)])
def test_bands_in_planes_are_read_right(tmp_path, endian, deflate, layout, count, bits):
    """Pillow takes the planes of some for pixels side by side."""
    bands = random_bands(count, bits)
    if count == 4:
        bands[3] = 2**bits - 1  # opaque
    path = write_tiff(tmp_path / "a.tif", bands, endian, deflate, planar=True, **layout)
    expected = bands[:3] if count > 1 else np.repeat(bands, 3, axis=0)
    if bits == 16:
        expected = expected >> 8 if count > 1 else np.rint(expected / 257)
    np.testing.assert_array_equal(read_picture(path), expected)


def ramp(top):
    """Grey (48, 64) from black to white in whole steps of 8 bits, its values 0..255, and the same from 0 to ``top``."""
    grey = np.linspace(0, 255, 48 * 64).round().reshape(48, 64).astype(np.uint8)
    return grey, np.rint(grey * (top / 255)).astype(np.int64)


def packed(values):
    """Values (H, W) of 12 bits as bytes (1, H, 1.5 W)."""
    bits = (values[..., None] >> np.arange(11, -1, -1)) & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)[None]


SIGNED, WHITE_IS_ZERO = {339: ("H", [2])}, {262: ("H", [0])}


@pytest.mark.parametrize("limit", [None, 1000], ids=["whole", "pieces"])
@pytest.mark.parametrize(
    ("top", "kind", "more"),
    [(65535, "u2", WHITE_IS_ZERO), (32767, "u2", SIGNED), (2**32 - 1, "u4", {}), (2**31 - 1, "u4", SIGNED),
     (65535, "u4", {}), (255, "u4", {}), (4095, None, {})],
    ids=["white is 0", "signed 16", "32", "signed 32", "16 in 32", "8 in 32", "12"],
)  # fmt: skip
def test_grey_of_any_depth_goes_from_black_to_white(tmp_path, monkeypatch, limit, top, kind, more):
    grey, values = ramp(top)
    if more == WHITE_IS_ZERO:
        values = top - values
    if kind is None:
        more = {256: ("I", [64]), 258: ("H", [12])}
    path = write_tiff(tmp_path / "a.tif", values.astype(kind)[None] if kind else packed(values), rows=16, more=more)
    if limit:
        monkeypatch.setattr("segdata.pictures.STREAMED", limit)
    with PictureFile(path, any_size=bool(limit)) as file:
        read = file.page(0).read_rows(0, 48)
    assert np.abs(read[..., 0].astype(int) - grey).max() <= (0 if top != 4095 else 1)


@pytest.mark.parametrize("top", [1, 255, 65535, 1e6])
def test_floats_go_from_black_to_white(tmp_path, top):
    grey, _ = ramp(255)
    values = (grey * (top / 255)).astype(np.float32)
    values[0, :2] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    read = read_picture(tmp_path / "a.tif")[0].numpy().astype(int)
    assert np.abs(read - grey)[1:].max() <= 1 and read[0, 0] == 0 and read[0, 1] == 255


@pytest.mark.parametrize(("bands", "more", "said"), [
    (np.zeros((1, 8, 8), np.uint8), SIGNED, "have a sign"),
    (np.zeros((1, 8, 8), np.uint32), WHITE_IS_ZERO | {339: ("H", [3])}, "count down from white"),
    (np.zeros((1, 8, 8), np.uint8), {259: ("H", [34887])}, "compressed by LERC"),
    (np.zeros((1, 8, 8), np.uint8), {259: ("H", [33003])}, "compressed by JPEG 2000"),
    (np.zeros((1, 8, 8), np.uint64), {339: ("H", [3])}, "1 band with 64 bits in floats"),
])  # fmt: skip
def test_tiffs_that_nobody_can_be_sure_of_are_refused(tmp_path, bands, more, said):
    path = write_tiff(tmp_path / "a.tif", bands, more=more)
    with pytest.raises(DataError, match=said):
        read_picture(path)


def test_training_refuses_planes_that_pillow_mixes_up(tmp_path):
    bands = random_bands(3, 16)
    with pytest.raises(DataError, match="lie in planes"):
        read_image(write_tiff(tmp_path / "a.tif", bands, planar=True))
    eight = random_bands(3, 8)
    np.testing.assert_array_equal(read_image(write_tiff(tmp_path / "b.tif", eight, planar=True)), eight)


def test_the_planes_of_one_band_mean_nothing(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (9, 14), dtype=np.uint8)
    for name in ("a.tif", "mask.tif"):
        Image.fromarray(grey).save(tmp_path / name, tiffinfo={284: 2})
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[284] == 2, "the reason for the test"
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.stack([grey] * 3))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), grey)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif"), np.stack([grey] * 3))


def test_a_deep_png_of_an_older_pillow_is_no_guess():
    """Before 10.3 its mode is I."""
    header = SimpleNamespace(mode="I", format="PNG")
    assert Depth.of(header).full == 65535


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4", "zstd"])
def test_pieces_are_as_the_whole(tmp_path, small_limits, mode, compression):
    image = Image.fromarray(pixels(400, 130))
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in deep:
        image = Image.fromarray(np.asarray(image.convert("L")).astype(deep[mode]) * (200 if mode != "F" else 1))
    else:
        image = image.convert(mode)
    path = tmp_path / "a.tif"
    try:
        image.save(path, compression=compression)
    except (OSError, ValueError, KeyError, RuntimeError):
        pytest.skip("Pillow cannot write this")
    with PictureFile(path, any_size=True) as file:
        pieces = read_in_bands(file.page(0))
    Image.MAX_IMAGE_PIXELS = None
    np.testing.assert_array_equal(pieces, read_picture(path).permute(1, 2, 0))


def read_in_bands(picture, height=50, overlap=10):
    """Rows as tiles ask for them."""
    rows = []
    for top in range(0, picture.height, height):
        bottom = min(top + height + overlap, picture.height)
        rows.append(picture.read_rows(top, bottom)[:height])
    return np.concatenate(rows)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("layout", [{}, {"rows": 16}, {"tile": 32}])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_strips_and_tiles(tmp_path, small_limits, deflate, layout, endian):
    bands = np.random.default_rng(0).integers(0, 256, (3, 600, 90), dtype=np.uint8)
    path = write_tiff(tmp_path / "a.tif", bands, endian, deflate, **layout)
    with PictureFile(path, any_size=True) as file:
        np.testing.assert_array_equal(read_in_bands(file.page(0)), bands.transpose(1, 2, 0))


def test_only_some_of_the_pieces_are_in_memory(tmp_path, small_limits, monkeypatch):
    decoded = []
    inside = TiffPieces.piece
    monkeypatch.setattr(TiffPieces, "piece", lambda self, *at: decoded.append(at) or inside(self, *at))
    bands = np.random.default_rng(0).integers(0, 256, (3, 1000, 90), dtype=np.uint8)
    for name, layout in (("strips", {"rows": 10}), ("one", {})):  # one strip of raw pixels can be cut
        path = write_tiff(tmp_path / f"{name}.tif", bands, **layout)
        with PictureFile(path, any_size=True) as file:
            decoded.clear()
            picture = file.page(0)
            assert not decoded
            picture.read_rows(300, 320)
            assert 0 < len(decoded) <= 3
            decoded.clear()
            read_in_bands(picture)
            assert len(decoded) == len(set(decoded))  # none of them twice


def test_a_tiff_that_ends_too_early(run, tmp_path, small_limits):
    bands = np.random.default_rng(0).integers(0, 256, (3, 600, 90), dtype=np.uint8)
    path = write_tiff(tmp_path / "a.tif", bands, rows=16)
    path.write_bytes(path.read_bytes()[:-5000])
    (failure,) = run(path, tile=64).failures
    assert "a.tif" in failure and "truncated" in failure
    assert results(tmp_path / "out") == []


# -- PNG -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grey", "palette", "rgb"])
def test_png_row_by_row(tmp_path, kind):
    image = random_picture(101, 37).permute(1, 2, 0).numpy()
    image = image if kind == "rgb" else image[..., 0] % 3
    palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9]] if kind == "palette" else None
    with PngRows(tmp_path / "a.png", 101, 37, palette, rgb=kind == "rgb") as png:
        for top, bottom in ((0, 1), (1, 60), (60, 101)):
            png.write(image[top:bottom])
    with Image.open(tmp_path / "a.png") as read:
        read.verify()
    with Image.open(tmp_path / "a.png") as read:
        assert read.mode == {"grey": "L", "palette": "P", "rgb": "RGB"}[kind]
        np.testing.assert_array_equal(np.asarray(read), image)
        if palette:
            assert read.getpalette()[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


# -- areas -----------------------------------------------------------------------------------------


def test_areas(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pixels(40, 70)).save(folder / "ä,b.png")
    save_pages(folder / "pages.tif", 2)
    run(folder, kinds=("csv", "mask"))
    with (tmp_path / "out" / "areas.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == ["1", "2", ""]
    assert [row["file"].rpartition("in")[2][1:] for row in rows] == ["pages.tif", "pages.tif", "ä,b.png"]
    for row, name in zip(rows, ["pages/000001", "pages/000002", "ä,b"], strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / "mask" / f"{name}.png"))
        assert (int(row["height"]), int(row["width"])) == mask.shape
        assert [int(row["a"]), int(row["b"])] == [(mask == 0).sum(), (mask == 1).sum()]
        assert row["seconds"] == ""


def test_areas_of_other_files_stay(run, tmp_path):
    """As with a loop in a shell over files; what is predicted again has its new row alone."""
    for name, size in (("a.png", 40), ("b.png", 50), ("a.png", 60)):
        Image.fromarray(pixels(size, 70)).save(tmp_path / name)
        run(tmp_path / name, kinds=("csv",))
    rows = list(csv.reader((tmp_path / "out" / "areas.csv").open(encoding="utf-8", newline="")))
    assert [(row[0].rpartition("/")[2], row[4]) for row in rows[1:]] == [("b.png", "50"), ("a.png", "60")]
    (tmp_path / "out" / "areas.csv").write_text("of,another,network\n1,2,3\n")
    run(tmp_path / "b.png", kinds=("csv",))
    assert len((tmp_path / "out" / "areas.csv").read_text().splitlines()) == 2


def test_areas_alone_write_nothing_else(run, tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    run(tmp_path / "a.png", kinds=("csv",))
    assert results(tmp_path / "out") == ["areas.csv"]


# -- names -----------------------------------------------------------------------------------------


def test_names_with_brackets_are_names_first(run, tmp_path):
    folder = tmp_path / "photos [2020]"
    (folder / "set [1]").mkdir(parents=True)
    names = ["cat[1].png", "cat1.png", "set [1]/a.png"]
    for name in names:
        Image.fromarray(pixels()).save(folder / name)
    assert run(folder / "cat[1].png").pictures == 1
    assert results(tmp_path / "out" / "mask") == ["cat[1].png"]
    assert run(folder / "*.png").pictures == 2
    assert run(folder / "set [1]" / "*.png").pictures == 1
    assert run(folder / "*" / "*.png").pictures == 1
    brackets, pattern = find_sources([str(folder / "*[1].png")]), find_sources([str(folder / "cat[0-9].png")])
    assert [source.name.name for source in brackets.sources] == ["cat[1]"]
    assert [source.name.name for source in pattern.sources] == ["cat1"]  # there is no such name


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_names_with_stars_are_names_first(run, tmp_path):
    for name in ("a*.png", "ab.png"):
        Image.fromarray(pixels()).save(tmp_path / name)
    assert run(tmp_path / "a*.png").pictures == 1


def test_looking_at_strange_files(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "b.py").write_text("print()")
    assert not looks_like_picture(tmp_path / "a.bin")
    assert not looks_like_picture(tmp_path / "b.py")
    assert looks_like_picture(tmp_path / "none.jpg")
