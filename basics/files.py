"""Files that are either the old one or the new one, whatever happens while they are written."""

from __future__ import annotations

import codecs
import contextlib
import functools
import glob
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from basics.errors import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


LONGEST_NAME = 255  # bytes, in all common file systems
END = 16384  # bytes of a file's beginning, and of its end, by which a picture is known


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends without an error it becomes ``path``.

    The content is flushed to the disk before the rename, and the rename after it, so that a kill or
    a power cut at any instant leaves the old file or the new one. An error removes the temporary
    file and leaves ``path`` as it was. Missing folders are made. One process may write a path at a time.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    # A fixed name: what a killed run left behind is overwritten by the next one. The suffix stays
    # last because image writers choose the format by it.
    temporary = path.with_name(_temporary_name(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _rename(temporary, path)
        _sync_folder(path.parent)
    except UserError:  # from what is written, not from writing it
        raise
    except Exception as error:
        # Libraries report a failed write as errors of their own, raised while handling the OSError.
        reason = _first_os_error(error)
        if reason is None:
            raise
        old = "; the file that was there is untouched" if path.exists() else ""
        raise UserError(
            f"cannot write {path}: {reason.strerror or reason}{old}; free some space or name another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a parent that is no folder, say: already reported above
            temporary.unlink(missing_ok=True)


def _rename(temporary: Path, path: Path) -> None:
    """Windows refuses to replace a file that another program has open, often for a moment: a scanner for viruses."""
    for wait_s in (0.1, 0.5, 2.0) if sys.platform == "win32" else ():
        with contextlib.suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(wait_s)
    temporary.replace(path)


def _temporary_name(path: Path) -> str:
    name = f".{path.stem}.tmp{path.suffix}"
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp{path.suffix}"


@contextlib.contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """As `replacing`, for a folder: yield an empty one beside ``path``, which becomes ``path`` when the block ends.

    Raises:
        UserError: the disk is full, the place cannot be written, or ``path`` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write the folder {path}: a file of that name is there; name another place")
    fresh, old = (path.with_name(f".{path.stem}.{word}{path.suffix}") for word in ("tmp", "old"))
    try:
        if old.exists() and not path.exists():  # a process was killed between the two renames below
            old.replace(path)
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        if path.exists():
            _rename(path, old)
        _rename(fresh, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or name another place"
        ) from error
    finally:
        if not path.exists():  # an error or Ctrl-C between the two
            with contextlib.suppress(OSError):
                old.replace(path)
        for folder in (fresh, *([old] if path.exists() else [])):
            shutil.rmtree(folder, ignore_errors=True)


def expanded(paths: Iterable[Path]) -> list[Path]:
    """The paths, and what those with wildcards match that name no file: shells of Windows leave that to programs."""
    found: list[Path] = []
    for path in paths:
        is_pattern = glob.has_magic(str(path)) and not path.exists()
        matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if is_pattern else []
        found += matches or [path]
    return found


def files_below(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """All files and dangling links, but hidden ones; links to folders are followed, each folder is searched once.

    The files of a folder come sorted, before those of the folders in it; those behind links come last, so that what can
    be reached without one is. A folder that is closed is left out, aloud.

    Args:
        depth: folders below this one are not looked into; 1: ``folder`` alone.
    """
    seen: set[Path] = set()
    starts = [folder]
    for start in starts:  # which grows
        for place, folders, files in os.walk(start, onerror=_say_closed):
            here = Path(place)
            real = here.resolve()
            if real in seen or (depth is not None and len(here.relative_to(folder).parts) >= depth):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [here / name for name in folders if (here / name).is_symlink()]
            yield from (here / name for name in sorted(files) if not name.startswith("."))


def _say_closed(error: OSError) -> None:
    _say_once(f"remark: {error.filename}: cannot be listed ({error.strerror}): what lies there is left out")


@functools.cache
def _say_once(line: str) -> None:
    """However often a folder is gone through."""
    print(line)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8, newlines as given) to ``path`` by way of `replacing`.

    File names that are no UTF-8, which Python carries in surrogates, are spelled out.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def read_text(path: Path) -> str:
    """The text of a file that a person wrote: UTF-8, or UTF-16 with the mark that Windows' editors begin it with.

    Raises:
        OSError: it is not there, or closed.
        ValueError: it is of another encoding; the message says what to do.
    """
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is no UTF-8: save the file as UTF-8") from None
    if 4 * text.count("\0") > len(text):  # UTF-16 without its mark
        raise ValueError("it is no plain text of UTF-8: save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as text is read elsewhere


def nearest(path: Path) -> Path:
    """``path``, or the nearest of its parents that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds ``path``, or would hold it."""
    return shutil.disk_usage(nearest(path)).free


def file_bytes(path: Path) -> int:
    """The size of a file; 0 where there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def can_write(folder: Path) -> bool:
    """Whether files can be made in ``folder``; what is marked as read-only is respected by the administrator, too."""
    with contextlib.suppress(OSError):
        tempfile.TemporaryFile(dir=folder).close()
        # On Windows the mark of a folder as read-only forbids nothing.
        return sys.platform == "win32" or bool(folder.stat().st_mode & 0o222)
    return False


def require_room(folder: Path, needed: int, what: str, advice: str, error: type[UserError] = UserError) -> None:
    """A `UserError` if ``needed`` bytes are more than are free in ``folder``.

    Args:
        what: that needs them, as the message begins.
        advice: what to do, as it ends.
        error: a subclass to raise instead.
    """
    free = free_bytes(folder)
    if needed > free:
        raise error(f"{what}: {needed / 1e9:.2f} GB are needed in {folder}, {free / 1e9:.2f} GB are free; {advice}")


def _first_os_error(error: BaseException | None) -> OSError | None:
    """The `OSError` behind ``error``, itself included."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open a folder (Windows cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that a killed process left in ``folder``."""
    for path in folder.glob(".*.tmp*"):
        with contextlib.suppress(OSError):
            path.unlink()


def try_lock(file: IO) -> bool:
    """Lock a file that is open for writing, without waiting; False if another process has it.

    The system gives the lock back when the file is closed or the process ends, however it ends; its children do not
    inherit it.

    Raises:
        OSError: the file system knows no locks.
    """
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def lock_folder(folder: Path, way_out: str = "name another run with --name") -> IO:
    """Keep other processes from writing into ``folder``, as long as this one lives and the file is open.

    Args:
        way_out: what else to do than to wait for the other process.

    Where the file system knows no locks, nothing is kept.

    Raises:
        UserError: another process has the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; name another --output-dir") from error
    locked = True
    with contextlib.suppress(OSError):
        locked = try_lock(file)
    if not locked:
        file.close()
        raise UserError(f"another process is at work in {folder}: wait for it, or {way_out}")
    return file


@contextlib.contextmanager
def folder_locked(folder: Path, way_out: str) -> Iterator[None]:
    """As `lock_folder`, for a block, after which nothing is left of it: the folder may be one of a person's."""
    is_new = not folder.exists()
    lock = lock_folder(folder, way_out)
    try:
        yield
    finally:
        if sys.platform == "win32":  # where nothing that is open can be removed, by anybody
            lock.close()
        with contextlib.suppress(OSError):
            Path(lock.name).unlink()
        lock.close()
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                folder.rmdir()


def digest_of_ends(path: Path) -> str:
    """A short hash of how a file begins and ends: tells pictures of equal size apart without reading them whole."""
    with path.open("rb") as file:
        ends = file.read(END)
        file.seek(max(path.stat().st_size - END, 0))
        ends += file.read(END)
    return hashlib.sha256(ends).hexdigest()[:16]
