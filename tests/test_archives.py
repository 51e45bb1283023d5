"""Archives from strangers, and fetching them: nothing is written outside, everything can be started again."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataset as dataset_script
from basics.errors import UserError
from datalayouts import archives, download
from datalayouts.archives import Limits, check_md5, extract, find_archive, md5_of, unfinished
from datalayouts.download import SOURCES, manual_instructions
from segdata.reading import DataError
from tests.test_dataset import write_voc

PACKINGS = (".tar", ".tar.gz", ".tgz", ".zip")
FILES = {
    "VOCdevkit/VOC2012/a.txt": b"alpha",
    "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": b"x\n",
    "b.bin": b"\0" * 300,
}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write ``files`` into an archive of the kind that ``path``'s name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in files.items():
            record = tarfile.TarInfo(name)
            record.size = len(content)
            archive.addfile(record, io.BytesIO(content))
    return path


def pack_record(path: Path, **attributes) -> Path:
    """A tar with one good member and then one with the given attributes of `tarfile.TarInfo`."""
    with tarfile.open(path, "w") as archive:
        for record in (tarfile.TarInfo("good.txt"), tarfile.TarInfo("bad")):
            record.size = 4
            if record.name == "bad":
                for name, value in attributes.items():
                    setattr(record, name, value)
            archive.addfile(record, io.BytesIO(b"1234"))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """A folder for archives and a destination two levels down, so that an escape would be seen."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "data").mkdir(parents=True)
    return tmp_path / "in", tmp_path / "out" / "data"


# --- unpacking


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_is_unpacked(places, packing):
    source, target = places
    archive = pack(source / f"data{packing}", FILES)
    assert extract(archive, target) == 3
    assert tree(target) == FILES
    assert extract(archive, target) == 3  # again: nothing to do, nothing broken
    assert tree(target) == FILES
    assert find_archive(source, "data") == archive and find_archive(target, "data") is None


def test_the_content_decides_not_the_name(places):
    source, target = places
    archive = pack(source / "data.zip", FILES).rename(source / "data.tar")
    extract(archive, target)
    assert tree(target) == FILES


def test_a_tar_that_ends_in_a_zip_is_a_tar(places):
    source, target = places
    inner = pack(source / "inner.zip", {"../escape": b"x"}).read_bytes()
    archive = pack(source / "data.tar", {"inner.zip": inner})
    extract(archive, target)
    assert tree(target) == {"inner.zip": inner}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    "name", ["../escape", "a/../../escape", "/tmp/escape", "..", "C:/escape", "..\\escape", "a/..\\..\\escape"]
)
def test_members_that_climb_out_are_refused_before_anything_is_written(places, packing, name):
    source, target = places
    archive = pack(source / f"data{packing}", {"good.txt": b"good", name: b"evil"})
    if packing == ".zip" and "\\" in name and os.sep == "\\":
        pytest.skip("zipfile itself turns the separators round here")
    with pytest.raises(DataError, match="outside the destination"):
        extract(archive, target)
    assert tree(target.parent) == {}
    assert not Path("/tmp/escape").exists()


@pytest.mark.parametrize(
    "attributes",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
        {"type": tarfile.SYMTYPE, "linkname": "good.txt", "size": 0},
        {"type": tarfile.LNKTYPE, "linkname": "good.txt", "size": 0},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "size": 0},
        {"type": tarfile.BLKTYPE, "size": 0},
        {"type": tarfile.FIFOTYPE, "size": 0},
        {"type": tarfile.CONTTYPE},
    ],
)
def test_links_devices_and_other_oddities_are_refused(places, attributes):
    source, target = places
    with pytest.raises(DataError, match=r"data\.tar: member 'bad' is a link, a device"):
        extract(pack_record(source / "data.tar", **attributes), target)
    assert tree(target.parent) == {}


def test_links_in_a_zip_are_refused(places):
    source, target = places
    with zipfile.ZipFile(source / "data.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="link"):
        extract(source / "data.zip", target)
    assert tree(target.parent) == {}


def test_a_link_planted_in_the_way_is_not_followed(places):
    """What an older extraction left, or somebody put there: a partial file that is a link is replaced."""
    source, target = places
    outside = target.parent / "victim"
    outside.write_bytes(b"12345")
    partial = target / ".partial-data.tar"
    partial.mkdir()
    (partial / "b.bin").symlink_to(outside)
    extract(pack(source / "data.tar", {"b.bin": b"alpha"}), target)
    assert outside.read_bytes() == b"12345" and (target / "b.bin").read_bytes() == b"alpha"
    assert not (target / "b.bin").is_symlink()


def test_a_linked_folder_in_the_way_is_not_followed(places):
    """`tarfile`'s own safeguard, behind ours: the name is good, the place it stands for is not."""
    source, target = places
    outside = target.parent / "victim"
    outside.mkdir()
    (target / ".partial-data.tar").mkdir()
    (target / ".partial-data.tar" / "folder").symlink_to(outside)
    with pytest.raises(DataError, match="outside the destination"):
        extract(pack(source / "data.tar", {"folder/x": b"1"}), target)
    assert list(outside.iterdir()) == []


def test_a_python_without_the_data_filter_unpacks_no_tar(places, monkeypatch):
    source, target = places
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"no data filter.*update Python"):
        extract(pack(source / "data.tar", FILES), target)
    assert extract(pack(source / "data.zip", FILES), target) == 3


@pytest.mark.parametrize("packing", PACKINGS)
def test_limits_are_watched_while_headers_come_in(places, packing):
    source, target = places
    archive = pack(source / f"data{packing}", {str(number): b"\0" * 5000 for number in range(20)})
    cases = (Limits(max_bytes=50_000), Limits(max_members=10), Limits(max_ratio=0.5, ratio_from=1))
    for limits in cases:
        with pytest.raises(DataError, match=r"bomb|no data set"):
            extract(archive, target, limits)
    assert tree(target.parent) == {}


@pytest.mark.parametrize("packing", [".tar.gz", ".zip"])
def test_a_compression_bomb_is_refused(places, packing):
    source, target = places
    archive = pack(source / f"data{packing}", {"zeros": bytes(60_000_000)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(DataError, match="archive bomb"):
        extract(archive, target)
    assert tree(target.parent) == {}


def test_a_header_of_gigabytes_is_not_read(places):
    source, target = places
    record = tarfile.TarInfo("x")
    record.type, record.size = tarfile.XHDTYPE, 3 * 10**9
    with gzip.open(source / "data.tar.gz", "wb") as file:
        file.write(record.tobuf())
        file.write(bytes(10**6))
    with pytest.raises(DataError, match="damaged or incomplete"):
        extract(source / "data.tar.gz", target)


def test_a_tar_that_breaks_off_between_members_is_noticed(places):
    """Python's tarfile takes this for the regular end, and a damaged header in the middle as well."""
    source, target = places
    archive = pack(source / "data.tar", {str(number): bytes(512) for number in range(10)})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: 5 * 1024])
    with pytest.raises(DataError, match="breaks off"):
        extract(archive, target)
    archive.write_bytes(whole[: 5 * 1024] + b"garbage!" + whole[5 * 1024 + 8 :])
    with pytest.raises(DataError, match="breaks off"):
        extract(archive, target)
    packed = bytearray(gzip.compress(whole))
    packed[-6] ^= 1  # the checksum at the end
    archive.write_bytes(packed)
    with pytest.raises(DataError, match="CRC"):
        extract(archive, target)
    assert tree(target.parent) == {}


def test_members_that_clash_are_refused(places):
    source, target = places
    with pytest.raises(DataError, match="comes twice"):
        extract(pack_record(source / "data.tar", name="good.txt"), target)
    with pytest.raises(DataError, match="lies below another one that is a file"):
        extract(pack(source / "clash.tar", {"a": b"1", "a/b": b"2"}), target)
    with pytest.raises(DataError, match="no files in it"):
        extract(pack(source / "empty.tar", {}), target)
    assert tree(target.parent) == {}


def test_an_encrypted_zip_is_one_error(places):
    source, target = places
    archive = pack(source / "data.zip", {"a": b"1"})
    content = bytearray(archive.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + place] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        extract(archive, target)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_truncated_archive_is_one_error(places, packing):
    source, target = places
    files = {str(number): os.urandom(3000) for number in range(10)}
    archive = pack(source / f"data{packing}", files)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=r"damaged or incomplete|cut short"):
        extract(archive, target)
    assert {name for name in tree(target) if not name.startswith(".partial-")} == set()
    archive.unlink()
    extract(pack(archive, files), target)  # the whole one, fetched again
    assert tree(target) == files


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    packing=st.sampled_from(PACKINGS),
    edits=st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=8),
)
def test_damaged_archives_unpack_or_are_one_error(tmp_path_factory, packing, edits):
    folder = tmp_path_factory.mktemp("fuzz")
    archive = pack(folder / f"data{packing}", FILES)
    content = bytearray(archive.read_bytes())
    for place, patch in edits:
        place %= len(content)
        content[place : place + len(patch)] = patch
    archive.write_bytes(content)
    try:
        extract(archive, folder / "a" / "b")
    except DataError as error:
        assert archive.name in str(error)
    assert all(name.startswith((archive.name, "a/b/")) for name in tree(folder))


# --- stopping and starting again


def test_an_interrupted_extraction_goes_on(places, monkeypatch):
    source, target = places
    files = {f"VOC2012/{number}": bytes([number]) * 100 for number in range(10)}
    archive = pack(source / "data.tar", files)
    written = []
    original = archives._write_member

    def stop_after_five(opened, member, *rest):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(member.path)
        original(opened, member, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_write_member", stop_after_five)
        with pytest.raises(KeyboardInterrupt):
            extract(archive, target)
    assert unfinished(archive, target)
    assert {name.split("/")[0] for name in tree(target)} == {".partial-data.tar"}  # nothing to be mistaken
    written.clear()
    monkeypatch.setattr(
        archives,
        "_write_member",
        lambda opened, member, *rest: written.append(member.path) or original(opened, member, *rest),
    )
    extract(archive, target)
    assert len(written) == 5 and tree(target) == files and not unfinished(archive, target)


@pytest.mark.parametrize("packing", [".tar", ".zip"])
def test_a_member_that_was_half_written_is_written_anew(places, packing):
    """A kill in the middle of a file: its name is there, its size is not."""
    source, target = places
    archive = pack(source / f"data{packing}", FILES)
    half = target / f".partial-{archive.name}" / "b.bin"
    half.parent.mkdir()
    half.write_bytes(b"garbage")
    extract(archive, target)
    assert tree(target) == FILES


def test_lists_are_put_in_place_last(places, monkeypatch):
    source, target = places
    archive = pack(source / "data.tar", {"V/ImageSets/Segmentation/val.txt": b"a", "V/z.jpg": b"b", "V/A.jpg": b"c"})
    order = []
    original = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, other: order.append(Path(other).name) or original(self, other))
    extract(archive, target)
    assert order[-1] == "val.txt"


def test_no_room_is_told_before_writing(places, monkeypatch):
    source, target = places
    archive = pack(source / "data.tar", FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(DataError, match="are free"):
        extract(archive, target)
    assert tree(target) == {}


def test_a_full_disk_is_one_error(places, monkeypatch):
    source, target = places
    archive = pack(source / "data.tar", FILES)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_write_member", full)
    with pytest.raises(DataError, match="No space left on device"):
        extract(archive, target)


# --- md5


def test_md5(places):
    source, _ = places
    archive = pack(source / "data.tar", FILES)
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    assert md5_of(archive) == digest and check_md5(archive, digest) is None
    packed = source / "data.tar.gz"
    packed.write_bytes(gzip.compress(archive.read_bytes()))
    assert check_md5(packed, digest) is None  # of what is packed
    with pytest.raises(DataError, match=r"published is 0000.*--no-verify"):
        check_md5(archive, "0000")
    assert "no published md5" in check_md5(pack(source / "data.zip", FILES), digest)


# --- fetching


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``content`` with ranges; class attributes choose how it misbehaves."""

    content = b""
    ranges = True
    cut = 0  # close the connection after so many bytes, this many times ...
    cuts = 0
    kind = "application/x-tar"
    status = 200
    requests: list = []  # noqa: RUF012

    def do_GET(self):
        cls = type(self)
        asked = self.headers.get("Range")
        cls.requests.append(asked)
        if cls.status != 200:
            self.send_error(cls.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and cls.ranges else 0
        if asked and cls.ranges and start >= len(cls.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(cls.content)}")
            self.end_headers()
            return
        rest = cls.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(cls.content) - 1}/{len(cls.content)}")
        self.send_header("Content-Type", cls.kind)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if cls.cuts:
            cls.cuts -= 1
            rest = rest[: cls.cut]
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    handler = type("Handler", (Server,), {"requests": [], "content": os.urandom(50_000)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        handler.address = f"http://127.0.0.1:{running.server_port}/data.tar"
        monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(download, "TIMEOUT", 5)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield handler
        running.shutdown()


def fetch(folder: Path, *addresses: str) -> Path:
    source = download.Source("data", "data.tar", None, addresses, "http://example.org/page")
    return download.download(source, folder)


def test_a_plain_download(server, tmp_path):
    path = fetch(tmp_path / "new folder", server.address)
    assert path.read_bytes() == server.content
    assert fetch(tmp_path / "new folder", "http://127.0.0.1:9/never asked") == path
    assert [child.name for child in path.parent.iterdir()] == ["data.tar"]


def test_a_broken_line_is_resumed(server, tmp_path):
    server.cut, server.cuts = 9_000, 4
    assert fetch(tmp_path, server.address).read_bytes() == server.content
    assert server.requests == [None, "bytes=9000-", "bytes=18000-", "bytes=27000-", "bytes=36000-"]


def test_what_an_earlier_run_left_is_used(server, tmp_path):
    (tmp_path / "data.tar.part").write_bytes(server.content[:1234])
    assert fetch(tmp_path, server.address).read_bytes() == server.content
    assert server.requests == ["bytes=1234-"]


def test_a_complete_part_needs_nothing_more(server, tmp_path):
    (tmp_path / "data.tar.part").write_bytes(server.content)
    assert fetch(tmp_path, server.address).read_bytes() == server.content


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "data.tar.part").write_bytes(server.content + b"more")
    assert fetch(tmp_path, server.address).read_bytes() == server.content


def test_a_server_without_ranges_sends_it_all(server, tmp_path):
    server.ranges = False
    (tmp_path / "data.tar.part").write_bytes(b"x" * 500)
    assert fetch(tmp_path, server.address).read_bytes() == server.content


def test_the_next_address_is_tried(server, tmp_path, capsys):
    dead = "http://127.0.0.1:9/data.tar"  # the discard port: nobody listens
    assert fetch(tmp_path, dead, server.address).read_bytes() == server.content
    assert "no luck" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attribute", "value"), [("status", 404), ("status", 500), ("kind", "text/html; charset=utf-8")]
)
def test_when_none_answers_a_person_is_told_how(server, tmp_path, capsys, attribute, value):
    setattr(server, attribute, value)
    with pytest.raises(DataError, match="none of the 1 known addresses"):
        fetch(tmp_path, server.address)
    printed = capsys.readouterr().out
    for words in (server.address, "http://example.org/page", str(tmp_path), "python dataset.py", "--data-dir"):
        assert words in printed
    assert not (tmp_path / "data.tar").exists()


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        fetch(tmp_path / "file", server.address)


def test_the_known_sources():
    voc = SOURCES["voc"]
    assert voc.md5 == "6cd6e144f989b92b3379bac3b3de84fd"
    assert voc.addresses[0].startswith("http://host.robots.ox.ac.uk/") and len(voc.addresses) > 1
    assert voc.md5 in manual_instructions(voc, Path("data"))


# --- python dataset.py


def run_main(*args: object) -> int | None:
    return dataset_script.main(dataset_script.get_args_parser().parse_args(list(map(str, args))))


def voc_archive(folder: Path, packing: str) -> Path:
    """A small VOC with the official archive's name and layout."""
    source = write_voc(folder / "made" / "VOCdevkit" / "VOC2012").parent.parent
    return pack(folder / f"{SOURCES['voc'].stem}{packing}", tree(source))


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_script_extracts_what_it_finds(tmp_path, packing, capsys, monkeypatch):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    archive = voc_archive(tmp_path, packing).rename(data_dir / f"{SOURCES['voc'].stem}{packing}")
    if packing != ".zip":
        with pytest.raises(UserError, match="--no-verify"):
            run_main("--data-dir", data_dir)
        assert [path.name for path in data_dir.iterdir()] == [archive.name]
    run_main("--data-dir", data_dir, "--no-verify")
    printed = capsys.readouterr().out
    assert "warning: " in printed and "extracted 10 files" in printed and "train           3 images" in printed
    run_main("--data-dir", data_dir)
    assert "extracted" not in capsys.readouterr().out


def test_the_published_md5_is_accepted_without_a_word(tmp_path, capsys, monkeypatch):
    archive = voc_archive(tmp_path, ".tar")
    monkeypatch.setitem(SOURCES, "voc", replace(SOURCES["voc"], md5=md5_of(archive)))
    run_main("--data-dir", tmp_path)
    assert "warning" not in capsys.readouterr().out


def test_a_stopped_extraction_is_ended_by_the_script(tmp_path, capsys):
    archive = voc_archive(tmp_path, ".zip")
    run_main("--data-dir", tmp_path)
    (tmp_path / f".partial-{archive.name}").mkdir()  # killed while the last files were put in place
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    run_main("--data-dir", tmp_path)
    assert "val             1 images" in capsys.readouterr().out.rpartition("extracted")[2]


def test_download_then_extract(server, tmp_path, capsys, monkeypatch):
    server.content = voc_archive(tmp_path / "elsewhere", ".tar").read_bytes()
    source = replace(SOURCES["voc"], addresses=(server.address,), md5=hashlib.md5(server.content).hexdigest())
    monkeypatch.setitem(SOURCES, "voc", source)
    with pytest.raises(UserError, match="--download"):
        run_main("--data-dir", tmp_path / "data")
    run_main("--data-dir", tmp_path / "data", "--download")
    assert "train           3 images" in capsys.readouterr().out
    run_main("--data-dir", tmp_path / "data", "--download")
    assert len(server.requests) == 1


def test_download_in_vain_ends_in_instructions(server, tmp_path, capsys, monkeypatch):
    server.status = 503
    monkeypatch.setitem(SOURCES, "voc", replace(SOURCES["voc"], addresses=(server.address,)))
    with pytest.raises(UserError, match="none of the 1 known addresses"):
        run_main("--data-dir", tmp_path, "--download")
    assert "To get VOCtrainval_11-May-2012.tar by hand" in capsys.readouterr().out
