"""Masks that a teacher wrote (``predict.py --teacher``), and which of them no person has mended since.

A score against them is agreement with the teacher, and no mIoU. The folder of such a data set keeps their hashes: who
mends a mask changes its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from basics.checkpoint import file_sha256
from basics.files import write_text
from segdata.parallel import map_in_order

FILE = "masks_of_the_teacher.json"  # beside classes.txt: name of each mask's file -> sha256


def written_masks(folder: Path) -> dict[str, str]:
    """Hashes of the masks that a teacher wrote in the data set ``folder``, by file name; {} where none did."""
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(digest) for name, digest in kept.items()} if isinstance(kept, dict) else {}


def keep_written(folder: Path, masks: dict[str, str]) -> None:
    """Write down the hashes of the teacher's masks."""
    write_text(folder / FILE, json.dumps(masks, indent=0, sort_keys=True) + "\n")


def is_mended(path: Path, masks: dict[str, str]) -> bool:
    """Whether a mask that is there is not, or no longer, as a teacher wrote it."""
    return path.is_file() and masks.get(path.name) != file_sha256(path)


def unmended(paths: Iterable[Path]) -> list[Path]:
    """Those of the masks that are as a teacher wrote them."""
    paths = list(paths)
    known = {folder: written_masks(folder) for folder in {path.parent.parent for path in paths}}
    suspects = [path for path in paths if path.name in known[path.parent.parent]]
    mended = map_in_order(
        lambda path: is_mended(path, known[path.parent.parent]), suspects, desc="comparing", total=len(suspects)
    )
    return [path for path, changed in zip(suspects, mended, strict=True) if not changed]


def warning(where: str, count: int, total: int) -> str:
    """What to say of a score against ``total`` masks of which ``count`` are as a teacher wrote them."""
    return (
        f"warning: {where}: {count:,} of {total:,} masks are as a teacher wrote them; as far as these go the score"
        " is agreement with the teacher, and no mIoU; mend them, or list mended ones in val.txt"
    )


def warn(where: str, masks: Iterable[Path], total: int) -> None:
    """Print the `warning` of a score against ``total`` masks, if any of ``masks`` is as a teacher wrote it."""
    if said := unmended(masks):
        print(warning(where, len(said), total))
