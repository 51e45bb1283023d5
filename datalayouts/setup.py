"""Set a data set up: find it; failing that extract its archive; failing that fetch the archive first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from basics.errors import UserError
from datalayouts.archives import check_md5, extract, find_archive, unfinished
from datalayouts.download import SOURCES, Source, download
from segdata.layouts import Layout


def set_up(name: str, data_dir: Path, find: Callable[[], Layout], *, fetch: bool, verify: bool) -> Layout:
    """The data set ``name`` below ``data_dir``, extracted there if it was not yet.

    Args:
        find: looks for it and raises a `UserError` where it is not.
        fetch: download the archive if neither it nor the data are there.
        verify: compare the archive with its published md5 before it is extracted.

    Raises:
        UserError: it is not there and cannot be had, or its archive is damaged.
    """
    source = SOURCES.get(name)
    if source is None:
        if fetch:
            known = ", ".join(SOURCES)
            raise UserError(f"--download: nothing to fetch for --dataset {name}; there is for {known}")
        return find()
    archive = find_archive(data_dir, source.stem)
    try:
        layout = find()
        # A VOC folder may hold the test set alone, and an extraction may have been stopped at its end.
        if archive is None or ("train" in layout.splits() and not unfinished(archive, data_dir)):
            return layout
    except UserError:
        if archive is None and not fetch:
            raise
    archive = archive or download(source, data_dir)
    _warn(archive, source, verify)
    print(f"extracted {extract(archive, data_dir):,} files from {archive}")
    return find()


def _warn(archive: Path, source: Source, verify: bool) -> None:
    """Compare the md5 and say so where that is not to be, or cannot be; another one is a `DataError`."""
    if source.md5 and verify:
        warning = check_md5(archive, source.md5)
    else:
        warning = f"{archive}: not compared with a published md5"
    if warning:
        print(f"warning: {warning}")
