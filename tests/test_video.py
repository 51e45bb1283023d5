"""Videos as cameras, phones and networks bring them: damage, sizes, pixel shapes, clocks, sound; looked at by PyAV."""

from __future__ import annotations

import functools
import http.server
import random
import socket
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from basics.errors import UserError
from deploy.predictor import Options, Predictor
from segdata.video import Frame, VideoReader, VideoWriter, is_url
from tests.test_segmenter import segmenter

av = pytest.importorskip("av", reason="PyAV is not installed")


def picture(height=48, width=64, seed=0):
    """Smooth colours that differ from seed to seed."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * 3 + 40 * seed) % 256, (y * 4) % 256, np.full_like(x, 90)], -1).astype(np.uint8)


def make_clip(
    path, frames=10, size=(48, 64), codec="mpeg4", rate=25, aspect=None, sound=None, times=None, gop=None, hertz=44100
):
    """A video; ``times``: of its frames in milliseconds; ``sound``: a codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = gop or 12
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        track = container.add_stream(sound, rate=hertz) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(*size, number), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track:
            for number in range(frames * hertz // rate // 1024):
                wave = (np.sin(np.arange(1024) * 0.1 + number * 102.4) * 0.2 * 32767).astype(np.int16)
                heard = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
                heard.sample_rate, heard.pts = hertz, number * 1024
                container.mux(track.encode(heard))
            container.mux(track.encode())
    return path


@pytest.fixture
def run(tmp_path):
    """``run(INPUT, kinds, options ...)`` -> what became of it; results are in ``tmp_path / "out"``."""

    def call(source, *kinds, **options):
        return Predictor(segmenter(), tmp_path / "out", Options(kinds or ["overlay"], **options)).predict([str(source)])

    return call


def look(path):
    """What a player sees: the stream's facts, and the frames' times in milliseconds and sizes."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [round(1000 * frame.pts * stream.time_base) for frame in frames]
        return stream.codec_context.pix_fmt, stream.sample_aspect_ratio, times, {(f.height, f.width) for f in frames}


def listen(path):
    """Codec, first and last time in seconds, and samples (N,) of a file's sound."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        samples = np.concatenate([frame.to_ndarray()[0].ravel() for frame in frames])
        return stream.codec_context.name, frames[0].time, frames[-1].time + frames[-1].samples / stream.rate, samples


# -- damage ----------------------------------------------------------------------------------------


def damage(whole, path, number):
    """A copy whose packet with this number is noise."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as output:
        stream = source.streams.video[0]
        track = output.add_stream_from_template(stream)
        for index, packet in enumerate(packet for packet in source.demux(stream) if packet.dts is not None):
            data = bytes(packet)
            if index == number:
                data = data[:4] + random.Random(0).randbytes(len(data) - 4)
            copy = av.Packet(data)
            copy.pts, copy.dts, copy.time_base, copy.duration = (
                packet.pts,
                packet.dts,
                packet.time_base,
                packet.duration,
            )
            copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, track
            output.mux(copy)
    return path


def test_a_damaged_packet_costs_its_frame(run, tmp_path, capsys):
    if "libx264" not in av.codecs_available:
        pytest.skip("this build of PyAV has no libx264")
    whole = make_clip(tmp_path / "whole.mp4", frames=30, codec="libx264", gop=5)
    tally = run(damage(whole, tmp_path / "a.mp4", 12), "overlay", "csv")
    times = look(tmp_path / "out" / "overlay" / "a.mp4")[2]
    assert 25 <= len(times) == tally.frames < 30
    assert times[-1] == 40 * 29  # what remains keeps its time
    assert not tally.failures
    assert f"1 damaged packet left out; {len(times)} of 30 frames could be read" in capsys.readouterr().err


def test_a_file_that_breaks_off_keeps_what_there_is(run, tmp_path):
    whole = make_clip(tmp_path / "whole.ts", frames=40, codec="mpeg2video").read_bytes()
    (tmp_path / "half.ts").write_bytes(whole[: len(whole) // 2])
    tally = run(tmp_path / "half.ts")
    assert 10 < tally.frames < 35
    assert len(look(tmp_path / "out" / "overlay" / "half.mp4")[2]) == tally.frames


def test_nothing_but_damage_is_an_error(run, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(random.Random(0).randbytes(2000))
    tally = run(tmp_path / "a.mp4")
    assert len(tally.failures) == 1 and "a.mp4" in tally.failures[0]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*"))


# -- sizes and shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(45, 63), (48, 63), (45, 64)])
def test_odd_sides_get_a_pixel_and_colours_that_every_player_knows(tmp_path, size):
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), Fraction(1, 25))
    writer.write(Frame(picture(*size), Fraction(0)))
    writer.close()
    even = size[0] + size[0] % 2, size[1] + size[1] % 2
    assert look(tmp_path / "a.mp4")[0] == "yuv420p"
    with VideoReader(tmp_path / "a.mp4") as reader:
        (frame,) = reader
    assert frame.pixels.shape == (*even, 3)
    assert np.abs(frame.pixels[: size[0], : size[1]].astype(int) - picture(*size)).mean() < 12


def test_pixels_keep_their_shape(run, tmp_path):
    """PAL as DV stores it: 16:9 in pixels that are wider than high."""
    clip = make_clip(tmp_path / "a.mkv", size=(48, 60), aspect=Fraction(64, 45))
    run(clip, "overlay", "panel")
    for kind in ("overlay", "panel"):
        assert look(tmp_path / "out" / kind / "a.mp4")[1] == Fraction(64, 45)


def test_sizes_that_change_are_scaled(run, tmp_path, capsys):
    parts = [make_clip(tmp_path / f"{i}.ts", 5, size, "mpeg2video") for i, size in enumerate([(48, 64), (96, 64)])]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    tally = run(tmp_path / "both.ts", "overlay", "mask")
    assert not tally.failures and tally.frames >= 9
    sizes = look(tmp_path / "out" / "overlay" / "both.mp4")[3]
    assert sizes == {(48, 64)}
    masks = {Image.open(path).size for path in (tmp_path / "out" / "mask").rglob("*.png")}
    assert masks == {(64, 48), (64, 96)}  # those that measure get the frame's own pixels


def test_what_does_not_fit_gets_bars_rather_than_another_shape(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), Fraction(1, 25))
    for number, size in enumerate([(48, 64), (96, 64)]):
        writer.write(Frame(np.full((*size, 3), 200, np.uint8), Fraction(number, 25)))
    writer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        last = [frame.pixels for frame in reader][-1]
    assert last[:, :12].max() < 60 and last[:, -12:].max() < 60  # 96 x 64 in 48 rows is 32 wide
    assert last[:, 20:44].min() > 150


# -- clocks and sound ------------------------------------------------------------------------------


def test_uneven_times_stay(run, tmp_path):
    times = [0, 40, 80, 300, 310, 1000, 1040, 1080, 2000, 2500]
    run(make_clip(tmp_path / "a.mkv", times=times), "overlay", "csv")
    assert look(tmp_path / "out" / "overlay" / "a.mp4")[2] == times
    rows = (tmp_path / "out" / "areas.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[2]) for row in rows] == [time / 1000 for time in times]


@pytest.mark.skipif("libx264" not in av.codecs_available, reason="this PyAV has no encoder with B-frames")
def test_times_of_an_avi_are_those_of_display(run, tmp_path):
    """AVI stores frames in the order of decoding, which B-frames change, and no other times."""
    clip = make_clip(tmp_path / "a.avi", frames=12, codec="libx264")
    run(clip, "overlay", "csv")
    times = [40 * number for number in range(12)]
    assert look(tmp_path / "out" / "overlay" / "a.mp4")[2] == times
    rows = (tmp_path / "out" / "areas.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[2]) for row in rows] == [time / 1000 for time in times]


MATRICES = {
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "counter-clockwise": ((0, -1, 1, 0), np.rot90),
    "mirrored and turned": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_and_mirrored_as_the_file_says(tmp_path, name):
    (a, b, c, d), turned = MATRICES[name]
    clip = make_clip(tmp_path / "a.mp4", frames=1)
    stored = next(iter(VideoReader(clip))).pixels

    def matrix(a, b, c, d):
        return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    content = clip.read_bytes()
    place = content.index(matrix(1, 0, 0, 1), content.index(b"tkhd"))
    clip.write_bytes(content[:place] + matrix(a, b, c, d) + content[place + 36 :])
    np.testing.assert_array_equal(next(iter(VideoReader(clip))).pixels, turned(stored))


@pytest.mark.parametrize(("content", "said"), [(b"", "the file is empty"), (b"export default 1;\n", "cut off")])
def test_what_is_no_video_says_so(run, tmp_path, content, said):
    (tmp_path / "a.mp4").write_bytes(content)
    [failure] = run(tmp_path / "a.mp4").failures
    assert "a.mp4" in failure and said in failure and "get it again" in failure


@pytest.mark.parametrize(
    ("name", "codec", "expected"),
    [("a.mp4", "aac", "aac"), ("a.ts", "aac", "aac"), ("a.flv", "aac", "aac"), ("a.avi", "pcm_s16le", "aac"),
     ("a.mkv", "ac3", "ac3"), ("a.mkv", "flac", "aac")],
)  # fmt: skip
def test_sound_is_kept(run, tmp_path, name, codec, expected):
    clip = make_clip(tmp_path / name, frames=50, sound=codec, codec="flv1" if name == "a.flv" else "mpeg4")
    tally = run(clip, "overlay", "panel")
    assert not tally.failures
    before = listen(clip)
    for kind in ("overlay", "panel"):
        after = listen(tmp_path / "out" / kind / "a.mp4")
        assert after[0] == expected
        assert abs(after[1]) < 0.1
        assert abs((after[2] - after[1]) - (before[2] - before[1])) < 0.1
        assert np.abs(after[3]).max() > 0.1  # the tone, not silence
        assert len(look(tmp_path / "out" / kind / "a.mp4")[2]) == 50


def test_sound_at_a_rate_that_aac_does_not_know(run, tmp_path):
    clip = make_clip(tmp_path / "a.avi", frames=50, sound="pcm_s16le", hertz=37800)
    run(clip)
    _, first, last, samples = listen(tmp_path / "out" / "overlay" / "a.mp4")
    assert abs(first) < 0.1 and np.abs(samples).max() > 0.1
    assert 1.7 < last < 2.1


def test_sound_ends_with_the_frames_asked_for(run, tmp_path):
    run(make_clip(tmp_path / "a.mp4", frames=50, sound="aac"), max_frames=25)
    assert 0.9 < listen(tmp_path / "out" / "overlay" / "a.mp4")[2] < 1.15


def test_sound_starts_where_the_pictures_do(run, tmp_path):
    """A recording whose pictures come a second later than its sound: that second is not heard."""
    times = [1000 + 40 * number for number in range(50)]
    clip = make_clip(tmp_path / "a.mkv", frames=50, times=times, sound="aac")  # two seconds of sound
    with av.open(str(clip)) as container:
        assert next(container.decode(video=0)).time == 1.0
    run(clip)
    out = tmp_path / "out" / "overlay" / "a.mp4"
    _, first, last, _ = listen(out)
    assert abs(first) < 0.05 and 0.9 < last < 1.1
    assert look(out)[2] == [time - 1000 for time in times]


def test_sound_may_be_left_out(run, tmp_path):
    run(make_clip(tmp_path / "a.mp4", sound="aac"), sound=False)
    with av.open(str(tmp_path / "out" / "overlay" / "a.mp4")) as container:
        assert not container.streams.audio


# -- where videos come from ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mts", "mpeg2video"), ("b.ts", "mpeg2video"), ("c.3gp", "mpeg4"), ("d.flv", "flv1"), ("e.m2ts", "mpeg2video"),
     ("f.ogv", "libtheora"), ("g.mxf", "mpeg2video"), ("h.vob", "mpeg2video"), ("i.webm", "libvpx")],
)  # fmt: skip
def test_suffixes_of_camcorders_phones_and_recorders(run, tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    (tmp_path / "in").mkdir()
    make_clip(tmp_path / "in" / name, size=(96, 128), codec=codec)
    tally = run(tmp_path / "in")
    assert not tally.failures and tally.frames >= 9
    assert (tmp_path / "out" / "overlay" / f"{name[0]}.mp4").exists()


def test_a_video_by_another_name(run, tmp_path):
    clip = make_clip(tmp_path / "a.mp4").rename(tmp_path / "recording")
    assert run(clip).frames == 10


def test_a_video_behind_a_url(run, tmp_path):
    make_clip(tmp_path / "my clip.mp4")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tally = run(f"http://127.0.0.1:{server.server_port}/my%20clip.mp4?key=secret", "overlay", "csv")
        missing = run(f"http://user:secret@127.0.0.1:{server.server_port}/none.mp4?key=secret")
        server.shutdown()
    assert tally.frames == 10
    (path,) = (tmp_path / "out" / "overlay").iterdir()
    assert path.suffix == ".mp4" and "127_0_0_1" in path.name
    (failure,) = missing.failures
    assert "none.mp4" in failure and "secret" not in failure
    assert "secret" not in (tmp_path / "out" / "areas.csv").read_text()


def test_a_stream(run, tmp_path):
    """As a camera in the network sends it: no file, no length, no way back."""
    clip = make_clip(tmp_path / "a.ts", frames=20, codec="mpeg2video").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send():
            connection, _ = server.accept()
            with connection:
                connection.sendall(clip)

        threading.Thread(target=send, daemon=True).start()
        tally = run(f"tcp://127.0.0.1:{server.getsockname()[1]}", "overlay")
    assert not tally.failures and tally.frames == 20


def test_what_is_an_address():
    assert is_url("rtsp://10.0.0.7:554/live") and is_url("HTTPS://a.b/c.mp4")
    assert not is_url("C:/clips/a.mp4") and not is_url("clip.mp4") and not is_url("a://b")


def test_nobody_at_an_address(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tally = run(f"rtsp://admin:secret@127.0.0.1:{port}/live")
    (failure,) = tally.failures
    assert failure.startswith(f"rtsp://127.0.0.1:{port}/live: cannot be opened")


def test_a_picture_behind_a_url_is_refused(run):
    with pytest.raises(UserError, match="download it"):
        run("https://example.invalid/cat.jpg")
