"""Many records of bytes one after the other in one memory-mapped file, and a JSON manifest that says what they are."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from basics.files import file_bytes, write_text

# Said by torch.from_numpy of what is mapped; here, for loader processes import anew.
warnings.filterwarnings("ignore", message="The given NumPy array is not writ")


def record_offsets(lengths: Iterable[int]) -> np.ndarray:
    """int64 (N + 1,): where each of N records of these lengths in bytes begins, and where the last one ends."""
    return np.cumsum([0, *lengths], dtype=np.int64)


class RecordFile:
    """Read access to the records between ``offsets`` (see `record_offsets`) in the file ``path``.

    The file is mapped when it is first looked at, and the operating system keeps what is used in memory. A pickled
    copy holds no open file, so that DataLoader workers of any start method map it anew.
    """

    def __init__(self, path: Path, offsets: np.ndarray):
        self.path = path
        self.offsets = offsets
        self._mapped: np.ndarray | None = None

    def is_whole(self) -> bool:
        """Whether the file is there and ends where its last record does."""
        return file_bytes(self.path) == self.offsets[-1]

    @property
    def data(self) -> np.ndarray:
        """All of the file, uint8 (bytes,), read-only: a tensor made of it must not be written to.

        A private copy of what is written (copy on write) would be safer to hand out, and count as memory in full, in
        each process that maps the file: larger files than the memory could not be mapped.
        """
        if self._mapped is None:
            self._mapped = np.memmap(self.path, np.uint8, mode="r")
        return self._mapped

    def record(self, index: int) -> np.ndarray:
        """One record, a view of `data`."""
        return self.data[self.offsets[index] : self.offsets[index + 1]]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": None}


def read_manifest(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or not an object.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(manifest, dict):
        raise ValueError(f"a JSON {type(manifest).__name__}, not an object")
    return manifest


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest`` (plain finite values) to ``path`` by way of a temporary file; `UserError` where that fails."""
    write_text(path, json.dumps(manifest, indent=1, allow_nan=False) + "\n")
