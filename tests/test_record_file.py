"""A file of records and its manifest."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from basics.errors import UserError
from basics.files import require_room
from basics.record_file import RecordFile, read_manifest, record_offsets, write_manifest
from basics.toml_file import parse_toml
from segdata.reading import DataError

RECORDS = [b"alpha", b"", b"\x00\xff", b"omega!"]


@pytest.fixture
def records(tmp_path) -> RecordFile:
    (tmp_path / "data.bin").write_bytes(b"".join(RECORDS))
    return RecordFile(tmp_path / "data.bin", record_offsets(map(len, RECORDS)))


def test_records_lie_one_after_the_other(records):
    assert records.offsets.tolist() == [0, 5, 5, 7, 13] and records.offsets.dtype == np.int64
    assert [records.record(index).tobytes() for index in range(4)] == RECORDS
    assert records.data.tobytes() == b"".join(RECORDS)


def test_a_file_of_another_length_is_not_whole(records):
    assert records.is_whole()
    records.path.write_bytes(records.path.read_bytes() + b"x")
    assert not records.is_whole()
    records.path.unlink()
    assert not records.is_whole()


def test_what_is_mapped_is_read_only(records):
    with pytest.raises(ValueError, match="read-only"):
        records.record(0)[:] = 0
    assert records.path.read_bytes() == b"".join(RECORDS)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="asks for the memory as POSIX does")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path):
    """Mapped copy on write it would count as memory in full."""
    size = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with (tmp_path / "large.bin").open("wb") as file:
            file.truncate(size)  # a hole, which takes no room
    except OSError:
        pytest.skip("no sparse file of that size here")
    file = RecordFile(tmp_path / "large.bin", record_offsets([size - 1, 1]))
    assert file.is_whole() and file.record(1).tolist() == [0]


def test_a_pickled_copy_maps_the_file_anew(records):
    assert records.data.size
    content = pickle.dumps(records)
    assert b"omega" not in content
    assert pickle.loads(content).record(0).tobytes() == b"alpha"


def test_a_manifest_survives(tmp_path):
    manifest = {"format": 1, "sizes": [[3, 4], [5, 6]], "name": "näit", "none": None}
    write_manifest(tmp_path / "new" / "about.json", manifest)
    assert read_manifest(tmp_path / "new" / "about.json") == manifest


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3"])
def test_a_manifest_that_is_none(tmp_path, content):
    (tmp_path / "about.json").write_text(content)
    with pytest.raises(ValueError):
        read_manifest(tmp_path / "about.json")
    with pytest.raises(ValueError):
        write_manifest(tmp_path / "about.json", {"value": float("nan")})
    assert (tmp_path / "about.json").read_text() == content


def test_room_is_asked_for(tmp_path):
    require_room(tmp_path / "not" / "there", 1, "the cache", "buy a disk")
    with pytest.raises(DataError, match=r"the cache: .* are needed in .* are free; buy a disk"):
        require_room(tmp_path, 10**18, "the cache", "buy a disk", DataError)
    with pytest.raises(UserError):
        require_room(tmp_path, 10**18, "the cache", "buy a disk")


def test_nesting_without_end_is_a_damaged_file(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="too deep"):
        read_manifest(tmp_path / "a.json")
    with pytest.raises(UserError, match="not a TOML file"):
        parse_toml("a = " + "[" * 100_000, "a.toml")
