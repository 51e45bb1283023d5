"""Unpack an archive a stranger packed: everything is judged from the headers before a byte is written.

Only plain files and folders are taken, with names that stay below the destination, and the standard library writes
them: `tarfile` under its data filter (PEP 706), and `zipfile`. Both are weaker than that judgement, which therefore
stays: they look at a member when its turn comes, with others written already; they put a bad name right in silence
where it ought to raise doubts; the filter lets links pass that stay inside, and has been led out by chains of them
(CVE-2025-4517); and neither has a limit. What is finished stays: started again, the extraction goes on where it was
stopped.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import platform
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from basics.errors import UserError
from basics.files import require_room
from basics.progress import ProgressBar
from segdata.reading import DataError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
BLOCK = 1 << 20

OpenArchive = tarfile.TarFile | zipfile.ZipFile
Record = tarfile.TarInfo | zipfile.ZipInfo


@dataclass(frozen=True)
class Limits:
    """What an archive may ask for; a data set stays far below, a bomb does not.

    ``max_ratio`` (unpacked to packed bytes) counts from ``ratio_from`` unpacked bytes on: small text
    compresses well and harms nobody.
    """

    max_bytes: int = 100 * 10**9
    max_members: int = 1_000_000
    max_ratio: float = 100.0
    ratio_from: int = 50 * 10**6


@dataclass(frozen=True)
class Member:
    """A plain file in an archive: its path below the destination, its size, and the archive's own record of it."""

    path: Path
    size: int
    record: Record


def find_archive(data_dir: Path, stem: str) -> Path | None:
    """``data_dir/stem`` with one of the known suffixes, or None."""
    return next((path for suffix in SUFFIXES if (path := data_dir / f"{stem}{suffix}").is_file()), None)


def md5_of(path: Path) -> str:
    """The md5 of a file's bytes; of a gzip file, that of what is packed in it."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        _reading(path),
        path.open("rb") as raw,
        ProgressBar(total=path.stat().st_size, desc="checking md5", unit="B", unit_scale=True) as bar,
    ):
        file: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if path.suffix in (".gz", ".tgz") else raw
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(raw.tell() - bar.n)
    return digest.hexdigest()


def check_md5(path: Path, expected: str) -> str | None:
    """Compare an archive with its published md5.

    Returns:
        None if it agrees, otherwise a warning: a zip is somebody's own packing and has no published md5.

    Raises:
        DataError: the md5 is another one.
    """
    if path.suffix == ".zip":
        return f"{path}: a zip of this data set has no published md5; its content is taken as it is"
    found = md5_of(path)
    if found == expected:
        return None
    raise DataError(
        f"{path}: md5 {found}, published is {expected}: an incomplete download, or a mirror's own packing; "
        "delete it and get it again, or take it as it is with --no-verify"
    )


def unfinished(archive: Path, destination: Path) -> bool:
    """Whether an extraction of ``archive`` into ``destination`` was begun and not ended."""
    return _partial_folder(archive, destination).is_dir()


def _partial_folder(archive: Path, destination: Path) -> Path:
    return destination / f".partial-{archive.name}"


def extract(archive: Path, destination: Path, limits: Limits | None = None) -> int:
    """Unpack ``archive`` (.tar, .tar.gz, .tgz, .zip) into ``destination``; return the number of files.

    Files are gathered in a hidden folder beside the rest and moved to their places at the end, lists of
    images last, so that a data set is never found half there.

    Raises:
        DataError: damaged or encrypted; a member that is absolute, climbs out, is a link or device, or
            comes twice; more than ``limits``; no room on the disk. Nothing was then written outside the
            hidden folder.
        UserError: a tar, and a Python whose `tarfile` has no data filter.
    """
    archive, destination = Path(archive), Path(destination)
    with _reading(archive), _open(archive) as opened:
        members = _judge(opened, archive, limits or Limits())
        partial = _partial_folder(archive, destination)
        missing = [member for member in members if not _is_there(partial / member.path, member.size)]
        missing = [member for member in missing if not _is_there(destination / member.path, member.size)]
        total, needed = (sum(member.size for member in some) for some in (members, missing))
        require_room(destination, needed, str(archive), "make room, or name another --data-dir", DataError)
        with ProgressBar(total=total, desc=f"extracting {archive.name}", unit="B", unit_scale=True) as bar:
            bar.update(total - needed)
            for member in missing:
                _write_member(opened, member, partial, archive)
                bar.update(member.size)
    _move_into_place(partial, destination)
    return len(members)


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turn the many ways in which a damaged archive shows into one `DataError`."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{archive}: damaged or incomplete archive ({error}); get it again") from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile's words for unknown or encrypted packing
        raise DataError(f"{archive}: cannot be unpacked here ({error})") from None
    except (ValueError, IndexError, OverflowError, struct.error) as error:  # zipfile's on names and sizes that are none
        raise DataError(f"{archive}: damaged archive ({error}); get it again") from None
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise DataError(f"{archive}: extraction failed:{where} {error.strerror or error}") from None


@contextlib.contextmanager
def _open(archive: Path) -> Iterator[OpenArchive]:
    with archive.open("rb") as raw:
        magic = raw.read(2)  # the content decides, whatever the name says
        raw.seek(0)
        if magic == b"PK":
            with zipfile.ZipFile(raw) as opened:
                yield opened
            return
        if not hasattr(tarfile, "data_filter"):
            raise UserError(
                f"{archive}: the tarfile of Python {platform.python_version()} has no data filter, without which no "
                "tar is unpacked here: update Python to 3.10.12, 3.11.4 or newer"
            )
        plain: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if magic == b"\x1f\x8b" else raw
        with tarfile.TarFile(fileobj=_SmallReads(plain), mode="r") as opened:
            yield opened


class _SmallReads(io.RawIOBase):
    """A file that refuses to hand out a huge block at once.

    A tar header may announce gigabytes of header *extension*, which `tarfile` would read into memory
    before anybody could look at it.
    """

    def __init__(self, file: io.BufferedIOBase):
        super().__init__()
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > 16 * BLOCK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _judge(opened: OpenArchive, archive: Path, limits: Limits) -> list[Member]:
    """Read all headers and accept every member or raise; limits are watched while the headers come in."""
    members: dict[Path, Member] = {}
    total = 0
    packed = archive.stat().st_size
    for count, record in enumerate(_records(opened, archive), start=1):
        member = _accept(record, archive)
        if count > limits.max_members:
            raise DataError(f"{archive}: more than {limits.max_members:,} members; this is no data set")
        if member is None:
            continue
        total += member.size
        if total > limits.max_bytes or (total > limits.ratio_from and total > limits.max_ratio * packed):
            raise DataError(
                f"{archive}: {packed:,} bytes would unpack to {total:,} or more; refused as an archive bomb"
            )
        if member.path in members:
            raise DataError(f"{archive}: member {str(member.path)!r} comes twice")
        members[member.path] = member
    clash = next((path for path in members for parent in path.parents if parent in members), None)
    if clash is not None:
        raise DataError(f"{archive}: member {str(clash)!r} lies below another one that is a file")
    if not members:
        raise DataError(f"{archive}: no files in it; get it again")
    return list(members.values())


def _records(opened: OpenArchive, archive: Path) -> Iterator[Record]:
    if isinstance(opened, zipfile.ZipFile):
        yield from opened.infolist()
        return
    with ProgressBar(desc=f"reading {archive.name}", unit=" members") as bar:
        for record in opened:
            bar.update()
            yield record
    # `tarfile` takes a damaged header, and the end of a truncated file, for the end of the archive.
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it breaks off, or a header in it is damaged")
    while opened.fileobj.read(BLOCK):  # to the end, where gzip compares its checksum
        pass


def _accept(record: Record, archive: Path) -> Member | None:
    """The member to write, None for a folder, or `DataError` for anything that is not welcome."""
    if isinstance(record, zipfile.ZipInfo):
        name, size, folder = record.filename, record.file_size, record.is_dir()
        kind = stat.S_IFMT(record.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        if record.flag_bits & 1:
            raise DataError(f"{archive}: member {name!r} is encrypted")
    else:
        name, size, folder = record.name, record.size, record.isdir()
        plain = folder or record.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    if not plain:
        raise DataError(f"{archive}: member {name!r} is a link, a device or another special file; refused")
    path = _safe_path(name)
    if path is None:
        raise DataError(f"{archive}: member {name!r} would be written outside the destination; refused")
    return None if folder else Member(path, size, record)


def _safe_path(name: str) -> Path | None:
    """``name`` as a path that stays below its destination on every system, or None.

    Colons and backslashes are drives and separators on Windows, so they are refused everywhere.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or any(char in name for char in ":\\\0"):
        return None
    return Path(*parts)


def _is_there(path: Path, size: int) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _write_member(opened: OpenArchive, member: Member, folder: Path, archive: Path) -> None:
    """Let the library write one file below ``folder``; it adds its own safeguards and compares checksums.

    What has its full size is whole: a stop on the way leaves a shorter file, which is written anew.
    """
    target = folder / member.path
    target.unlink(missing_ok=True)  # what is in the way, a link for one, is replaced and not written through
    if isinstance(member.record, tarfile.TarInfo):
        assert isinstance(opened, tarfile.TarFile)
        opened.extract(member.record, folder, set_attrs=False, filter="data")
    else:
        assert isinstance(opened, zipfile.ZipFile)
        target = Path(opened.extract(member.record, folder))  # on Windows it may have changed the name
    if not _is_there(target, member.size):
        raise DataError(f"{archive}: member {str(member.path)!r} is cut short; get the archive again")


def _move_into_place(partial: Path, destination: Path) -> None:
    """Move all files below ``partial`` to ``destination``, whatever makes a data set recognisable last."""
    files = [Path(folder) / name for folder, _, names in os.walk(partial) for name in names]
    files.sort(key=lambda path: ("ImageSets" in path.parts, path))
    try:
        for path in files:
            target = destination / path.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{target}: cannot be put in place: {error.strerror or error}") from None
