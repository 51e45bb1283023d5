"""predict.py on pictures as people have them: sizes, modes, folders, broken files, videos, the prompt."""

import csv
import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from basics.checkpoint import save_atomic
from basics.errors import UserError
from basics.tiling import fade, tile_starts
from deploy.exporting import parse_size
from deploy.formats import refuse_networks
from deploy.predictor import Options, Predictor
from deploy.results import AREAS, Areas
from deploy.segmenter import Segmenter, load_segmenter
from deploy.speed import latencies
from segdata.inputs import find_sources
from segdata.pictures import read_picture
from segdata.reading import DataError
from segdata.video import Frame, VideoReader, VideoWriter
from tests.small import CLASS_NAMES, PALETTE, SmallStudent, in_zoo, small_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "best.pth"
    save_atomic(small_checkpoint(), path)
    with in_zoo():
        yield path


@pytest.fixture
def run(checkpoint, tmp_path):
    """``run(INPUT, ..., option, ...)`` -> exit status; results are in ``tmp_path / "out"``."""

    def call(*arguments, model=checkpoint):
        words = [*arguments, "--checkpoint", model, "--output-dir", tmp_path / "out", "--device", "cpu"]
        return predict.main(predict.get_args_parser().parse_args(list(map(str, words))))

    return call


def pixels(height=50, width=70, seed=0):
    """Blocks of random colours, uint8 (H, W, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


def save_picture(path, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(**size)).save(path)
    return path


def expected_mask(rgb):
    """argmax of the network, straight from its class, normalised by hand."""
    model = SmallStudent(3)
    model.load_state_dict(small_checkpoint()["state_dict"])
    images = (rgb / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images.astype(np.float32)).permute(2, 0, 1)[None])
    return logits[0].argmax(0).numpy()


def results(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- pictures -------------------------------------------------------------------------------------


def test_one_picture_and_all_that_can_be_saved(run, tmp_path, capsys):
    picture = save_picture(tmp_path / "häuser 1.png", height=45, width=83)
    assert run(picture, "--save", "mask", "overlay", "panel") == 0
    out = tmp_path / "out"
    assert results(out) == ["mask/häuser 1.png", "overlay/häuser 1.png", "panel/häuser 1.png"]
    with Image.open(out / "mask" / picture.name) as mask:
        assert (mask.mode, mask.size) == ("P", (83, 45))
        assert mask.getpalette()[:9] == list(itertools.chain(*PALETTE))
        indices = np.asarray(mask)
    expected = expected_mask(pixels(45, 83))
    assert len(np.unique(expected)) > 1
    assert (indices == expected).mean() > 0.999
    with Image.open(out / "overlay" / picture.name) as image:
        painted = np.asarray(image)
    assert painted.shape == (45, 83, 3)
    background = indices == 0
    assert (painted[background] == pixels(45, 83)[background]).all()
    assert (painted[~background] != pixels(45, 83)[~background]).any(axis=-1).mean() > 0.9
    with Image.open(out / "panel" / picture.name) as panel:
        assert panel.width > 2 * 83
    assert "1 picture in" in capsys.readouterr().out


def test_folders_keep_their_subfolders(run, tmp_path):
    for name in ("a.png", "sub/a.png", "sub/deep/b.jpg", ".hidden/c.png"):
        save_picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert run(tmp_path / "in", "--save", "mask") == 0
    assert results(tmp_path / "out" / "mask") == ["a.png", "sub/a.png", "sub/deep/b.png"]


def test_globs(run, tmp_path):
    for name in ("x/a.png", "x/b.jpg", "y/a.png"):
        save_picture(tmp_path / "in" / name)
    assert run(tmp_path / "in" / "*" / "*.png", "--save", "mask") == 0
    assert results(tmp_path / "out" / "mask") == ["x/a.png", "y/a.png"]


def test_results_inside_the_input_folder_are_not_inputs(run, tmp_path):
    save_picture(tmp_path / "a.png")
    assert run(tmp_path, "--save", "mask") == 0
    assert run(tmp_path, "--save", "mask") == 0
    assert results(tmp_path / "out") == ["mask/a.png"]


def test_results_beside_the_pictures(run, tmp_path):
    save_picture(tmp_path / "out" / "a.png")
    for _ in range(2):
        assert run(tmp_path / "out", "--save", "mask") == 0
        assert results(tmp_path / "out") == ["a.png", "mask/a.png"]


def test_no_two_results_share_a_name(run, tmp_path):
    inputs = [save_picture(tmp_path / name, height=40 + i) for i, name in enumerate(["x/a.png", "y/a.png", "y/A.bmp"])]
    inputs.append(inputs[0])  # meant twice: done once
    assert run(*inputs, "--save", "mask") == 0
    heights = []
    for path in (tmp_path / "out" / "mask").iterdir():
        with Image.open(path) as image:
            heights.append(image.height)
    assert sorted(heights) == [40, 41, 42]


def test_names_stay_taken_between_calls(tmp_path):
    first, second = (save_picture(tmp_path / folder / "a.png") for folder in "xy")
    taken = {}
    names = [find_sources([str(path)], taken=taken).sources[0].name.as_posix() for path in (first, second, first)]
    assert names == ["a", "a_png", "a"]


def test_a_picture_is_not_overwritten_by_its_own_mask(run, tmp_path):
    picture = save_picture(tmp_path / "out" / "mask" / "a.png")
    before = picture.read_bytes()
    with pytest.raises(UserError, match="overwritten by its own prediction"):
        run(picture, "--save", "mask")
    assert picture.read_bytes() == before


def test_a_broken_file_is_reported_and_the_rest_done(run, tmp_path, capsys):
    whole = [save_picture(tmp_path / "in" / name) for name in ("a.png", "z.png")]
    (tmp_path / "in" / "half.png").write_bytes(whole[0].read_bytes()[:60])
    (tmp_path / "in" / "empty.jpg").touch()
    (tmp_path / "in" / "text.png").write_text("not a picture")
    assert run(tmp_path / "in", tmp_path / "nowhere.png", "--save", "mask") == 1
    assert results(tmp_path / "out" / "mask") == ["a.png", "z.png"]
    printed = capsys.readouterr()
    assert "4 skipped" in printed.out
    for name in ("half.png", "empty.jpg", "text.png", "nowhere.png"):
        assert len([line for line in printed.err.splitlines() if name in line]) == 1


def test_tiny_pictures(run, tmp_path):
    assert run(save_picture(tmp_path / "a.png", height=1, width=5), "--save", "mask", "overlay") == 0
    with Image.open(tmp_path / "out" / "mask" / "a.png") as mask:
        assert mask.size == (5, 1)


# -- what pictures look like ----------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """A picture that a viewer shows upright is read upright: corners by hand."""
    stored = np.zeros((2, 3, 3), np.uint8)
    stored[0, 0], stored[0, 2], stored[1, 0], stored[1, 2] = 10, 20, 30, 40
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    image = read_picture(tmp_path / "a.png")[0]
    corners = [int(image[y, x]) for y in (0, -1) for x in (0, -1)]
    # top left, top right, bottom left, bottom right, as the EXIF standard has it
    shown = {
        1: [10, 20, 30, 40], 2: [20, 10, 40, 30], 3: [40, 30, 20, 10], 4: [30, 40, 10, 20],
        5: [10, 30, 20, 40], 6: [30, 10, 40, 20], 7: [40, 20, 30, 10], 8: [20, 40, 10, 30],
    }  # fmt: skip
    assert corners == shown[orientation]
    assert tuple(image.shape) == ((2, 3) if orientation < 5 else (3, 2))


def test_modes_of_pictures(tmp_path):
    rgb = pixels(32, 40)
    grey = rgb[..., 0]
    alpha = np.where(np.arange(40) < 20, 255, 0).astype(np.uint8) * np.ones((32, 1), np.uint8)
    on_white = np.where(alpha[..., None] > 0, rgb, 255)
    palette = Image.fromarray(grey)
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    cases = {
        "grey.png": (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        "rgba.png": (Image.fromarray(np.dstack([rgb, alpha])), on_white),
        "la.png": (Image.fromarray(np.dstack([grey, alpha])), np.where(alpha[..., None] > 0, grey[..., None], 255)),
        "palette.png": (palette, np.stack([grey, 255 - grey, np.full_like(grey, 7)], -1)),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1)),
        "bits.png": (Image.fromarray(grey > 127), np.stack([np.where(grey > 127, 255, 0)] * 3, -1)),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        got = read_picture(tmp_path / name)
        assert got.dtype == torch.uint8
        np.testing.assert_array_equal(got.permute(1, 2, 0), np.broadcast_to(expected, rgb.shape), err_msg=name)


def test_sixteen_bits_are_sixteen_bits_in_any_format_and_byte_order(tmp_path):
    """A dark picture, whose values would fit into eight."""
    dark = np.arange(200, dtype=np.uint16).reshape(10, 20)
    Image.fromarray(dark).save(tmp_path / "little.tif")
    Image.fromarray(dark).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5\n20 10\n65535\n" + dark.astype(">u2").tobytes())
    Image.frombytes("I;16B", (20, 10), dark.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    for name in ("little.tif", "a.png", "a.pgm", "big.tif"):
        assert read_picture(tmp_path / name).max() == 1, name


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 there")
def test_a_name_that_is_no_utf8(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    save_picture(folder / name)
    save_picture(folder / "other.png")
    assert run(folder, "--save", "mask", "panel") == 0
    assert sorted(path.name for path in (tmp_path / "out" / "panel").iterdir()) == [name, "other.png"]


def test_unreadable_pictures_name_themselves(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in ("none.png", "folder.png"):
        with pytest.raises(DataError, match=name):
            read_picture(tmp_path / name)


# -- tiles ----------------------------------------------------------------------------------------


class Local(torch.nn.Module):
    """A network that sees 5 x 5 pixels, and the sizes it was run at."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3, 3, 5, 5, generator=generator)
        self.sizes = set()

    def forward(self, images):
        self.sizes.add(tuple(images.shape[-2:]))
        return torch.nn.functional.conv2d(images, self.weight, padding=2)


@pytest.mark.parametrize("size", [(131, 200), (65, 64), (40, 300), (64, 64), (50, 20)])
def test_tiles_agree_with_the_whole_picture(size):
    model = Local()
    segmenter = Segmenter(model, "local", CLASS_NAMES, PALETTE, 0, 0, torch.device("cpu"))
    image = torch.from_numpy(pixels(*size)).permute(2, 0, 1)
    whole = segmenter.mask(image)
    model.sizes.clear()
    tiled = segmenter.mask(image, tile=64)
    assert tiled.shape == whole.shape == size
    assert all(max(sides) <= 64 for sides in model.sizes)
    # Only a tile's outermost two pixels see its border, and there its neighbour decides.
    assert (tiled == whole).float().mean() > 0.99


@pytest.mark.parametrize(("length", "tile"), [(64, 64), (65, 64), (200, 64), (33, 64), (1000, 100)])
def test_tiles_cover_everything(length, tile):
    weight = np.zeros(length)
    starts = tile_starts(length, tile)
    for start in starts:
        piece = fade(min(tile, length), tile).numpy()
        assert start + len(piece) <= length
        weight[start : start + len(piece)] += piece
    assert weight.min() > 0
    assert starts == sorted(set(starts))


def test_tile_option(run, tmp_path):
    assert run(save_picture(tmp_path / "a.png", height=90, width=130), "--save", "mask", "--tile", 64) == 0
    with Image.open(tmp_path / "out" / "mask" / "a.png") as mask:
        assert mask.size == (130, 90)
    with pytest.raises(UserError, match="--tile must be at least"):
        run(tmp_path / "a.png", "--tile", 10)


def test_pages_confidence_and_areas(run, tmp_path, capsys):
    pages = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert run(tmp_path / "a.tif", "--pages", "first", "--save", "mask") == 0
    assert "first of 3" in capsys.readouterr().err
    assert results(tmp_path / "out") == ["mask/a.png"]
    assert run(tmp_path / "a.tif", "--save", "confidence", "csv") == 0
    assert results(tmp_path / "out" / "confidence") == [f"a/00000{number}.png" for number in (1, 2, 3)]
    assert len((tmp_path / "out" / "areas.csv").read_text().splitlines()) == 4


# -- the prompt, speed, other files ---------------------------------------------------------------


def test_the_prompt_asks_until_an_empty_line(run, tmp_path, monkeypatch, capsys):
    paths = [save_picture(tmp_path / folder / "a.png", height=size) for folder, size in (("x", 40), ("y", 41))]
    lines = iter([str(paths[0]), str(tmp_path / "nowhere.png"), f"'{paths[1]}' ", "", "not read"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert not run("--save", "mask")
    assert next(lines) == "not read"
    assert len(results(tmp_path / "out" / "mask")) == 2  # the second a.png did not overwrite the first
    assert "error: " in (err := capsys.readouterr().err)
    assert "nowhere.png" in err


def test_the_prompt_ends_with_the_input(monkeypatch):
    def closed(_):
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    predict.ask(pytest.fail)


def test_nothing_to_do_without_a_terminal(run, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(UserError, match="no INPUT"):
        run()


def test_fps(run, capsys):
    assert run("--fps", "64", "96x48") is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["size", "median", "ms", "p95", "ms", "frames/s"]
    for line, size in zip(lines[2:], ("64x64", "96x48"), strict=True):
        name, median, p95, rate = line.split()
        assert name == size
        assert 0 < float(median) <= float(p95)
        assert float(rate) > 0


def test_fps_runs_at_the_size_asked_for():
    model = Local()
    segmenter = Segmenter(model, "local", CLASS_NAMES, PALETTE, 0, 0, torch.device("cpu"))
    assert parse_size("48x96") == (48, 96)
    assert len(latencies(segmenter, 48, 96, runs=3)) == 3
    assert model.sizes == {(48, 96)}


def test_an_onnx_file_in_place_of_a_checkpoint(run, checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import export

    onnx = tmp_path / "student.onnx"
    arguments = [checkpoint, "--output", onnx, "--uint8", "--argmax", "--rounds", "0"]
    export.main(export.get_args_parser().parse_args(list(map(str, arguments))))
    picture = save_picture(tmp_path / "a.png", height=45, width=83)
    assert run(picture, "--save", "mask", model=onnx) == 0
    with Image.open(tmp_path / "out" / "mask" / "a.png") as mask:
        assert mask.getpalette()[:9] == list(itertools.chain(*PALETTE))
        assert (np.asarray(mask) == expected_mask(pixels(45, 83))).mean() > 0.999
    assert load_segmenter(onnx).class_names == CLASS_NAMES


# -- videos ---------------------------------------------------------------------------------------


def make_clip(path, frames=7, height=48, width=64, rate=Fraction(25, 2)):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(pixels(height, width, number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_clip(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.average_rate, [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


@pytest.mark.parametrize("size", [(48, 64), (46, 62)])
def test_video_in_video_out(run, tmp_path, size):
    clip = make_clip(tmp_path / "clip.avi", height=size[0], width=size[1])
    assert run(clip, "--save", "overlay", "panel") == 0
    for kind, width in (("overlay", size[1]), ("panel", 2 * size[1])):
        rate, frames = read_clip(tmp_path / "out" / kind / "clip.mp4")
        assert rate == Fraction(25, 2)
        assert [frame.shape for frame in frames] == [(size[0], width, 3)] * 7
    # Class colours beside the picture, as far as a lossy format keeps them.
    expected = np.array(PALETTE)[expected_mask(read_clip(clip)[1][3])]
    got = read_clip(tmp_path / "out" / "panel" / "clip.mp4")[1][3][:, size[1] :]
    assert np.median(np.abs(got.astype(int) - expected)) < 12


def test_masks_of_a_video_are_class_numbers_frame_by_frame(run, tmp_path):
    clip = make_clip(tmp_path / "clip.avi")
    assert run(clip, "--save", "mask", "confidence") == 0
    frames = read_clip(clip)[1]
    names = [f"{number:06d}.png" for number in range(1, 8)]
    for kind in ("mask", "confidence"):
        assert results(tmp_path / "out" / kind) == [f"clip/{name}" for name in names]
    for name, frame in zip(names, frames, strict=True):
        with Image.open(tmp_path / "out" / "mask" / "clip" / name) as mask:
            assert mask.mode == "P"
            assert (np.asarray(mask) == expected_mask(frame)).mean() > 0.999


def test_a_look_at_the_first_frames_costs_none_of_an_earlier_run(run, tmp_path):
    clip = make_clip(tmp_path / "clip.avi")
    assert run(clip, "--save", "mask") == 0
    whole = results(tmp_path / "out" / "mask")
    assert run(clip, "--save", "mask", "--max-frames", "3") == 0
    assert results(tmp_path / "out" / "mask") == whole and len(whole) == 7


@pytest.mark.parametrize("codecs", [None, set()])
def test_frames_whose_times_do_not_rise(tmp_path, monkeypatch, codecs):
    """As AVI tells them of H.264 with frames that refer forward; with the fallback's encoder, too."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    if codecs is not None:
        monkeypatch.setattr(av, "codecs_available", codecs)
    times = [Fraction(number, 1000) for number in (0, 80, 40, 120, 120)]
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), Fraction(1, 1000))
    for number, time in enumerate(times):
        writer.write(Frame(pixels(48, 64, number), time))
    writer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        got = [frame.time for frame in reader]
    assert len(got) == 5 and got == sorted(set(got))


def test_a_clock_that_jumps_does_not_squeeze_the_rest(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), Fraction(1, 1000))
    for number, time in enumerate((0, 40, 9000, 80, 120)):
        writer.write(Frame(pixels(48, 64, number), Fraction(time, 1000)))
    writer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert [round(1000 * frame.time) for frame in reader] == [0, 40, 9000, 9040, 9080]


def test_a_video_says_how_its_colours_are_made(tmp_path):
    """BT.601, whatever its size: untagged, players take large ones for BT.709 and show other colours."""
    pytest.importorskip("av", reason="PyAV is not installed")
    green = np.zeros((720, 1280, 3), np.uint8)
    green[..., 1] = 199
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), Fraction(1, 25))
    writer.write(Frame(green, Fraction(0)))
    writer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        (frame,) = reader
        context = reader.stream.codec_context
        assert (context.colorspace, context.color_range) == (6, 1)
    assert np.abs(frame.pixels.astype(int) - green).max() <= 3


def test_what_the_encoder_refuses_is_an_error_of_that_video(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), Fraction(1, 25))

    class Broken:
        def encode(self, picture):
            raise av.error.ArgumentError(22, "Invalid argument", "a.mp4")

    writer.stream = Broken()
    with pytest.raises(DataError, match="cannot be written: Invalid argument"):
        writer._encode(None)


def test_max_frames(run, tmp_path):
    assert run(make_clip(tmp_path / "clip.mp4"), "--save", "mask", "--max-frames", "3") == 0
    assert len(results(tmp_path / "out" / "mask")) == 3


def test_a_broken_video_is_skipped(run, tmp_path, capsys):
    clip = make_clip(tmp_path / "a.mp4")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:100])
    picture = save_picture(tmp_path / "z.png")
    assert run(tmp_path / "broken.mp4", picture, "--save", "mask") == 1
    assert results(tmp_path / "out") == ["mask/z.png"]
    assert "broken.mp4" in capsys.readouterr().err


def test_video_without_pyav(run, tmp_path, monkeypatch, capsys):
    """It costs the video alone, not the pictures of the folder behind it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clip.mp4").touch()
    save_picture(tmp_path / "in" / "photo.png")
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(tmp_path / "in", "--save", "mask") == 1
    said = capsys.readouterr().err
    assert "clip.mp4: video needs the package av: pip install av" in said and results(tmp_path / "out") == [
        "mask/photo.png"
    ]


def test_no_camera(run, tmp_path, capsys):
    pytest.importorskip("av")
    assert run("camera:97") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "camera:97" in line
    with pytest.raises(UserError, match="such as camera:0"):
        run("camera:x")
    assert not results(tmp_path)


def test_the_student_that_comes_along(tmp_path):
    """After a clone, a picture is all that it takes: no training, no download, no other file."""
    assert predict.DEFAULT_STUDENT.stat().st_size <= 8_000_000
    segmenter = load_segmenter(predict.DEFAULT_STUDENT, "cpu")
    assert segmenter.class_names[8] == "cat" and len(segmenter.class_names) == 21
    picture = Path(__file__).parents[1] / "docs" / "cat.jpg"
    assert predict.main(predict.get_args_parser().parse_args([str(picture), "--output-dir", str(tmp_path)])) == 0
    mask = np.array(Image.open(tmp_path / "mask" / "cat.png"))
    assert mask.shape == Image.open(picture).size[::-1]
    assert (mask == 8).mean() > 0.3


def test_a_network_among_the_pictures_is_refused(run, tmp_path):
    """It would be passed over, and the masks be another network's."""
    picture = save_picture(tmp_path / "a.png")
    network = tmp_path / "best.pth"
    network.write_bytes(b"x")
    with pytest.raises(UserError, match=r"best.pth is a network, not a picture: --checkpoint .*best.pth"):
        run(network, picture)
    (tmp_path / "a.xml").write_text("<annotation/>")  # of VOC, as `photos/*` may hold
    (tmp_path / "index.html").write_text("a gallery")
    refuse_networks([str(tmp_path)])
    assert run(tmp_path / "a.xml", picture, "--save", "mask") == 1


def test_areas_of_odd_names_are_read_back(tmp_path):
    """Line ends in names, and names that are no UTF-8: nothing is lost or doubled by the next run."""
    files = ["x\ry.png", 'a"b,\n.png', "\udcff.png", "plain.png"]
    for _ in range(2):
        areas = Areas(["sky\rblue", "b"])
        for file in files:
            areas.add(file, None, None, (2, 3), np.array([4, 2]))
        areas.write(tmp_path)
    with (tmp_path / AREAS).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[-2:] == ["sky\rblue", "b"]
    assert rows == [[name, "", "", "3", "2", "4", "2"] for name in [*files[:2], "\\udcff.png", files[3]]]


def test_areas_that_another_program_saved_are_not_lost(tmp_path, capsys):
    """With a mark at the beginning, as Excel writes it, they are read; with other columns they are put aside."""

    def write(names, file):
        areas = Areas(names)
        areas.add(file, None, None, (2, 3), np.array([4, 2]))
        areas.write(tmp_path)
        return (tmp_path / AREAS).read_text(encoding="utf-8").splitlines()[1:]

    write(["a", "b"], "one.png")
    (tmp_path / AREAS).write_bytes(b"\xef\xbb\xbf" + (tmp_path / AREAS).read_bytes())
    assert [row.partition(",")[0] for row in write(["a", "b"], "two.png")] == ["one.png", "two.png"]
    assert [row.partition(",")[0] for row in write(["a", "c"], "three.png")] == ["three.png"]
    assert "is areas_before.csv now" in capsys.readouterr().out
    assert (tmp_path / "areas_before.csv").read_text().splitlines()[2].startswith("two.png")
    (tmp_path / AREAS).write_text("file;frame\n")
    write(["a", "c"], "four.png")
    assert (tmp_path / "areas_before1.csv").read_text() == "file;frame\n"


def test_a_folder_of_results_belongs_to_one_process_at_a_time(checkpoint, tmp_path):
    """A second one would write into the first one's half files."""
    root = Path(predict.__file__).parent
    hold = "import sys; from pathlib import Path; from basics.files import lock_folder; "
    hold += "lock = lock_folder(Path(sys.argv[1])); print('locked', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as other:
        assert other.stdout.readline().strip() == b"locked"
        picture = tmp_path / "a.png"
        Image.new("RGB", (40, 32)).save(picture)
        predictor = Predictor(load_segmenter(checkpoint), tmp_path / "out", Options(("mask",)))
        with pytest.raises(UserError, match=r"another process is at work in .*out: wait for it, or give another --out"):
            predictor.predict([str(picture)])
        other.communicate(b"\n")
    assert predictor.predict([str(picture)]).pictures == 1
    assert results(tmp_path / "out") == ["mask/a.png"], "no lock is left"
