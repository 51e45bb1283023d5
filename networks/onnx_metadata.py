"""What an ONNX file says of itself in its metadata, or the list that lies beside it says of it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basics.errors import UserError
from networks.class_names import numbered_names
from networks.hub import CLASSES_FILE, read_listed_classes
from networks.normalisation import Normalisation

GRIDS = ("half_pixel", "corner")


class OnnxMetadata:
    """The entries that count here.

    Attributes:
        class_names: of ``class_names`` (JSON: a list, or names by number), or of ``names`` as YOLO's exporter writes
            it; or None.
        normalisation: of ``mean`` and ``std``, JSON lists of three numbers each; by default ImageNet's.
        grid: one of `GRIDS`, or None.
        input_size: the working size it was trained for, in pixels; 0: none.

    Raises:
        UserError: an entry is none of these.
    """

    def __init__(self, path: Path, entries: Mapping[str, str]):
        self.path, self._entries = path, entries
        self.class_names = self._read_class_names()
        try:
            self.normalisation = Normalisation.of(
                self._read("mean", Normalisation.mean), self._read("std", Normalisation.std)
            )
        except ValueError as error:
            raise UserError(f"{path}: its metadata entry {error}") from error
        self.grid = entries.get("grid")
        if self.grid not in (None, *GRIDS):
            raise UserError(f"{path}: its metadata entry 'grid' must be one of {', '.join(GRIDS)}, not {self.grid!r}")
        size = entries.get("input_size", "0")
        self.input_size = int(size) if size.isdecimal() else 0

    def _read(self, key: str, default: Any) -> Any:
        """An entry in JSON; the text itself where it is none."""
        if key not in self._entries:
            return default
        try:
            return json.loads(self._entries[key])
        except ValueError:
            return self._entries[key]

    def _read_class_names(self) -> list[str] | None:
        if "class_names" not in self._entries:
            return _literal_names(self._entries.get("names", ""))
        said = self._read("class_names", None)
        names = numbered_names(said) if isinstance(said, Mapping) else said
        if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
            raise UserError(
                f"{self.path}: its metadata entry 'class_names' must be a JSON list such as "
                f'["background", "cat"], not {self._entries["class_names"]!r}'
            )
        return [str(name) for name in names]

    def names_of(self, classes: int) -> list[str] | None:
        """The names of its ``classes`` classes: its own, or those of ``classes.txt`` beside it; that is said.

        Raises:
            UserError: it names another number.
        """
        if self.class_names is not None:
            if len(self.class_names) != classes:
                raise UserError(
                    f"{self.path}: its metadata name {len(self.class_names)} classes, its outputs have {classes}"
                )
            return self.class_names
        try:
            listed = read_listed_classes(self.path.parent)
        except UserError as error:
            print(f"{self.path}: the list beside it is not taken for its own: {error}")
            listed = None
        if listed is None:
            return None
        if len(listed) != classes:
            print(
                f"{self.path}: {CLASSES_FILE} beside it lists {len(listed)} classes, its outputs have {classes}: not "
                "taken for its own"
            )
            return None
        print(f"{self.path}: its classes are named by {CLASSES_FILE} beside it")
        return listed


def _literal_names(text: str) -> list[str] | None:
    """Names by number as Python writes a dict, ``{0: 'cat'}``; None where it is something else."""
    try:
        said = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    names = numbered_names(said) if isinstance(said, dict) else said
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return [str(name) for name in names]
