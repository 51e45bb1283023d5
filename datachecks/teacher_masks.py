"""Masks that a teacher wrote (``predict.py --teacher``), and which of them no person has mended since.

A score against them is agreement with the teacher, and no mIoU. The folder of such a data set keeps their hashes: who
mends a mask changes its own; who looks at one and finds it right names it in ``checked.txt``. Both make it a person's.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from basics.checkpoint import file_sha256
from basics.errors import UserError
from basics.files import files_below, read_text, write_text
from segdata.pairing import IMAGE_SUFFIXES, same_name
from segdata.parallel import map_in_order

Written = dict[str, set[str]]  # sha256 by name of the mask's file; several where one was written over another

FILE = "masks_of_the_teacher.json"  # beside classes.txt: name of each mask's file -> sha256, or a list of them
JOURNAL = "masks_of_the_teacher.jsonl"  # what is not yet in FILE, a line a mask: a process that is killed leaves it
CHECKED = "checked.txt"  # names of pictures, one a line, whose masks a person has found right


class Files(Protocol):
    @property
    def masks(self) -> Sequence[Path] | None: ...


class Split(Protocol):
    """A split of a data set."""

    name: str
    split: str

    @property
    def files(self) -> Files: ...

    def __len__(self) -> int: ...


def written_masks(folder: Path) -> Written:
    """Hashes of the masks that a teacher wrote in the data set ``folder``, and that no person has found right, by file
    name; {} where there are none.

    Raises:
        UserError: the list of those found right cannot be read.
    """
    written, checked = all_written(folder), _checked(folder / CHECKED)
    strange = checked - set(map(_mask_name, written)) if written else set()
    for name in sorted(strange):
        if not (folder / "mask" / f"{name}.png").is_file():
            raise UserError(f"{folder / CHECKED}: the teacher labelled no picture of the name {name!r}")
    return {name: digests for name, digests in written.items() if _mask_name(name) not in checked}


def all_written(folder: Path) -> Written:
    """As `written_masks`, with those that a person has found right."""
    written = _object(folder / FILE)
    for name, digest in _journal(folder / JOURNAL):
        written.setdefault(name, set()).add(digest)
    return written


def are_in(folder: Path) -> bool:
    """Whether a teacher has labelled the data set ``folder``, whoever mended its masks since."""
    return (folder / FILE).is_file() or (folder / JOURNAL).is_file()


def labelled_below(folders: Iterable[Path]) -> list[Path]:
    """The data sets in ``folders``, at any depth, that a teacher has labelled."""
    below = (path for folder in folders for path in files_below(folder))
    return sorted({path.parent for path in below if path.name in (FILE, JOURNAL)})


def _checked(path: Path) -> set[str]:
    """The names in the list, without the endings of pictures; lines that begin with # are remarks."""
    if not path.exists():
        return set()
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the list cannot be read: {error}") from None
    names = [PurePosixPath(line.replace("\\", "/")) for line in lines if line and not line.startswith("#")]
    return {same_name(name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name) for name in names}


def _mask_name(file: str) -> str:
    return same_name(PurePosixPath(file).stem)


def _object(path: Path) -> Written:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    items = kept.items() if isinstance(kept, dict) else ()
    return {name: set(map(str, said)) if isinstance(said, list) else {str(said)} for name, said in items}


def _journal(path: Path) -> Iterator[tuple[str, str]]:
    """Its masks and hashes; a last line that is cut off is none."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            name, digest = json.loads(line)
            yield str(name), str(digest)


def note_written(folder: Path, name: str, digest: str) -> None:
    """Add a mask to the journal, before it gets its name: whenever a process is killed, none is unknown."""
    with (folder / JOURNAL).open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps([name, digest]) + "\n")
        file.flush()
        os.fsync(file.fileno())


def keep_written(folder: Path) -> None:
    """Bring what the journal has, if there is one, into the list of all masks."""
    if (folder / JOURNAL).is_file():
        masks = {name: sorted(digests) for name, digests in all_written(folder).items()}
        plain = {name: digests[0] if len(digests) == 1 else digests for name, digests in masks.items()}
        write_text(folder / FILE, json.dumps(plain, indent=0, sort_keys=True) + "\n")
        (folder / JOURNAL).unlink(missing_ok=True)


def is_mended(path: Path, masks: Written) -> bool:
    """Whether a mask that is there is not, or no longer, as a teacher wrote it."""
    return path.is_file() and file_sha256(path) not in masks.get(path.name, ())


def unmended(paths: Iterable[Path]) -> list[Path]:
    """Those of the masks that are as a teacher wrote them."""
    paths = list(paths)
    known = {folder: written_masks(folder) for folder in {path.parent.parent for path in paths}}
    suspects = [path for path in paths if path.name in known[path.parent.parent]]
    mended = map_in_order(
        lambda path: is_mended(path, known[path.parent.parent]), suspects, desc="comparing", total=len(suspects)
    )
    return [path for path, changed in zip(suspects, mended, strict=True) if not changed]


def warning(split: Split, count: int) -> str:
    """What to say of a score against a split's masks, of which ``count`` are as a teacher wrote them."""
    return (
        f"warning: {split.name}/{split.split}: {count:,} of {len(split):,} masks are as a teacher wrote them; as "
        "far as these go the score is agreement with the teacher, and no mIoU; mend them, or name those that are right "
        f"in {CHECKED}, and list both in val.txt"
    )


def warn(split: Split) -> None:
    """Print the `warning` of a score against a split's masks, if any of them is as a teacher wrote it."""
    if said := unmended(split.files.masks or []):
        print(warning(split, len(said)))
