"""Class lists as people have them: names, one a line, or names with the colours that stand for them in masks.

    classes.txt             a name a line; or `name r g b`, `name #rrggbb`, `r g b name`; or `0: name` in every line
    labelmap.txt            of CVAT: `name:r,g,b:parts:actions`
    class_dict.csv          columns name, r, g, b
    _classes.csv            of Roboflow: columns Pixel Value, Class

Which of these forms a file has is told by its content; a first line `# names alone` settles it for names that would
be taken for colours. A line that begins with `# ` is a comment. In a table of colours
the names `VOID_NAMES` are no classes: their colours mean void, and the colour `*` means all that are not named.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from basics.batch import VOID
from basics.files import read_text
from segdata.labels import ColourLabels, IndexLabels, Labels
from segdata.palettes import Color, distinct_palette
from segdata.reading import DataError

CLASS_FILES = (
    "classes.txt",
    "labelmap.txt",
    "class_dict.csv",
    "class_dict_seg.csv",
    "label_colors.txt",
    "_classes.csv",
    "classes.csv",
)
VOID_NAMES = ("void", "ignore", "ignored", "unlabelled", "unlabeled", "unknown", "__ignore__")
CVAT_HEADER = "# label:color_rgb:parts:actions"
NAMES_ALONE = "# names alone"
ANY = "*"  # in the place of a colour

_BETWEEN = r"[\s,;:=(\[]+"
_RGB = r"(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})"
_HEX = re.compile(
    rf"(?P<name>\S.*?){_BETWEEN}#(?P<r>[0-9a-f]{{2}})(?P<g>[0-9a-f]{{2}})(?P<b>[0-9a-f]{{2}})", re.IGNORECASE
)
_COLOURED = (
    re.compile(rf"(?P<name>\S.*?){_BETWEEN}{_RGB}[\s)\]]*"),
    re.compile(rf"[(\[]?{_RGB}[\s,;:)\]]+(?P<name>[^\s\d].*)"),
)
_LINES = (*_COLOURED, _HEX, re.compile(r"(?P<name>\S.*?)[\s,;:=]+(?P<any>\*)"))
_NUMBERED = re.compile(r"(?P<number>\d+)(\s*[:,]\s*|\s+)(?P<name>\S.*)")  # `3d object` has no number of a class
_CVAT_LINE = re.compile(r"(?P<name>[^:]+):(?P<colour>[^:]*):[^:]*:[^:]*")


@dataclass(frozen=True)
class ClassTable:
    """A class list, read.

    Attributes:
        names: of the classes, in their order.
        colours: of the classes; None where the file has names alone.
        void: colours that mean void.
        others_are_void: colours that are not named mean void.
        void_names: the lines in the file that are no classes for this reason.
        comments: in a list of names alone, where they might have been meant for names.
    """

    path: Path
    names: list[str]
    colours: list[Color] | None = None
    void: list[Color] = field(default_factory=list)
    others_are_void: bool = False
    void_names: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    @property
    def by_name(self) -> dict[str, Color]:
        """The colours, if there are any."""
        return dict(zip(self.names, self.colours or [], strict=self.colours is not None))

    @property
    def palette(self) -> list[Color]:
        """To show the classes in."""
        return self.colours or distinct_palette(self.names)

    @property
    def labels(self) -> Labels:
        """How masks are written that this list is for."""
        if self.colours is None:
            return IndexLabels()
        colours = tuple(self.colours), tuple(self.void), self.others_are_void
        return ColourLabels(tuple(self.names), *colours, self.path)


def read_class_names(path: Path) -> list[str]:
    """The class names of a plain list, one a line; blank lines and comments are skipped.

    Raises:
        DataError: missing, unreadable, empty, a name twice, or more than 255 classes; or the lines are numbered, and
            not from 0 on.
    """
    return _table(path, _read_lines(path), names_alone=True).names


def read_class_table(path: Path) -> ClassTable:
    """A class list in any of the forms of this module's text.

    Raises:
        DataError: missing, unreadable or empty; a name or a colour twice; a line without a colour among others that
            have one; too many classes; or the lines are numbered, and not from 0 on.
    """
    return _table(path, _read_lines(path))


def read_class_tables(paths: Iterable[Path]) -> tuple[list[ClassTable], list[str]]:
    """Those that can be read, and the faults of the others: what is called classes.csv may be of another kind."""
    tables, faults = [], []
    for path in paths:
        try:
            tables.append(read_class_table(path))
        except DataError as error:
            faults.append(str(error))
    return tables, faults


def _table(path: Path, lines: list[str], *, names_alone: bool = False) -> ClassTable:
    """The lines, read; with ``names_alone`` none of them has a colour, whatever it looks like."""
    numbered, comments = _without_comments(lines)
    marked = any(line.strip() == NAMES_ALONE for line in lines)
    if path.suffix.lower() == ".csv":
        entries, comments = list(_csv_entries(path, lines)), []
    elif marked or names_alone:
        entries = _in_order(path, [Entry(*line, None) for line in numbered])
    else:
        entries = _in_order(path, list(_line_entries(path, numbered)))
    if any(entry.colour for entry in entries):
        return _coloured(path, entries)
    names = [entry.name for entry in entries]
    if len(names) == 1 and re.search("[,;]", names[0]) and not marked:
        raise DataError(f"{path}: {names[0]!r} is all there is; write the class names one a line")
    _check_names(names, path)
    return ClassTable(path, names, comments=comments)


def _without_comments(lines: list[str]) -> tuple[list[tuple[int, str]], list[str]]:
    """The lines that say something, stripped, with their numbers; and the comments."""
    told = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    comments = [line for _, line in told if re.match(r"#+(\s|$)", line)]
    told = [(number, line) for number, line in told if line not in comments]
    return told, [line for line in comments if line not in (CVAT_HEADER, NAMES_ALONE)]


def class_list_text(names: Sequence[str]) -> str:
    """The text of a list of ``names``, each on one line and there once, that is read as these.

    Plain where that will do; with numbers, or the line `# names alone`, where a name looks like a number, a comment or
    a colour.
    """
    plain, numbered = list(names), [f"{number}: {name}" for number, name in enumerate(names)]
    for lines in (plain, numbered, [NAMES_ALONE, *plain]):
        with contextlib.suppress(DataError):
            if _table(Path(CLASS_FILES[0]), lines).names == plain:
                return "".join(f"{line}\n" for line in lines)
    return "".join(f"{line}\n" for line in [NAMES_ALONE, *numbered])


def has_colours(text: str) -> bool:
    """Whether some line of a text says a class and its colour."""
    told, _ = _without_comments(text.splitlines())
    return any(form.fullmatch(line) for _, line in told for form in (*_COLOURED, _HEX))


class Entry(NamedTuple):
    """A line of a class list; the colour is `ANY`, too."""

    line: int
    name: str
    colour: Color | str | None


def _line_entries(path: Path, numbered: list[tuple[int, str]]) -> Iterator[Entry]:
    # `#label:color_rgb:parts:actions` is a comment in a table; in a list of names alone `#3` is a name.
    told = [(number, line) for number, line in numbered if not line.startswith("#")]
    cvat = [(number, _CVAT_LINE.fullmatch(line)) for number, line in told]
    if cvat and all(match for _, match in cvat):
        for number, match in cvat:
            assert match is not None
            words = match["colour"].replace(",", " ").split()
            yield Entry(number, match["name"].strip(), _colour(words, path, number) if words else None)
        return
    matches = [next((match for form in _LINES if (match := form.fullmatch(line))), None) for _, line in told]
    if not any(matches):
        yield from (Entry(number, line, None) for number, line in numbered)
        return
    for (number, line), match in zip(told, matches, strict=True):
        if match is None:
            raise DataError(
                f"{path}, line {number}: no colour in {line!r}, though other lines have one; wanted is `name r g b`"
            )
        groups = match.groupdict()
        words = [groups[key] for key in ("r", "g", "b", "any") if groups.get(key)]
        if match.re is _HEX:
            words = [str(int(word, 16)) for word in words]
        yield Entry(number, match["name"].strip(), _colour(words, path, number))


def _in_order(path: Path, entries: list[Entry]) -> list[Entry]:
    """The entries by the numbers that all of them begin with, if so, and without these; a void 255 left out.

    Where masks have colours, numbers that do not count from 0 are part of the names.
    """
    matches = [_NUMBERED.fullmatch(entry.name) for entry in entries]
    of_number = [
        (int(match["number"]), entry._replace(name=match["name"].strip()))
        for entry, match in zip(entries, matches, strict=True)
        if match
    ]
    if not entries or len(of_number) < len(entries):
        return entries
    of_number = [each for each in of_number if each[0] != VOID or each[1].name.lower() not in VOID_NAMES]
    of_number.sort(key=lambda each: each[0])
    found = [number for number, _ in of_number]
    if found == list(range(len(found))):
        return [entry for _, entry in of_number]
    if any(entry.colour for entry in entries):
        return entries
    doubled = next((number for number in found if found.count(number) > 1), None)
    if doubled is not None:
        fault = f"{doubled} stands there more than once"
    elif found[0]:
        fault = f"they begin with {found[0]}: number from 0, as masks do, with the background if there is one"
    else:
        fault = f"{next(number for number in range(len(found)) if number not in found)} is missing"
    first = entries[0].name
    whole = "" if ":" in first else f" (numbers that belong to the names: `0: {first}`)"
    raise DataError(f"{path}: all lines begin with numbers, which are taken for the classes'; {fault}{whole}")


def _csv_entries(path: Path, lines: list[str]) -> Iterator[Entry]:
    reader = csv.reader(lines, skipinitialspace=True)
    header = [cell.strip().lower() for cell in next(reader, [])]

    def column(*titles: str) -> int | None:
        return next((header.index(title) for title in titles if title in header), None)

    name = column("name", "class", "class name", "class_name", "label", "classes")
    value = column("pixel value", "pixel_value", "value")  # grey: red, green and blue at once
    channels = [column(letter, word) for letter, word in (("r", "red"), ("g", "green"), ("b", "blue"))]
    if None in channels:
        channels = [value] * 3
    if name is None or None in channels:
        raise DataError(
            f"{path}, line 1: the columns are {', '.join(header) or 'none'}; wanted are name,r,g,b (or, for masks of "
            "class numbers, a classes.txt with a name a line)"
        )
    for row in reader:
        if row:
            label, *words = (row[at].strip() if at is not None and at < len(row) else "" for at in (name, *channels))
            yield Entry(reader.line_num, label, _colour(words, path, reader.line_num))


def _colour(words: Sequence[str], path: Path, line: int) -> Color | str:
    if set(words) == {ANY}:
        return ANY
    try:
        red, green, blue = map(int, words)
    except ValueError:
        raise DataError(f"{path}, line {line}: {' '.join(words)!r} is no colour; wanted are r, g, b") from None
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise DataError(f"{path}, line {line}: colour {red} {green} {blue}; wanted are numbers from 0 to 255")
    return red, green, blue


def _coloured(path: Path, entries: list[Entry]) -> ClassTable:
    """The table of entries of which each has a colour."""
    first: dict[Color | str, Entry] = {}
    classes: dict[str, list[Color]] = {}
    void: dict[str, Color | str] = {}
    for entry in entries:
        line, name, colour = entry
        if colour is None:
            raise DataError(f"{path}, line {line}: {name!r} has no colour, though others have one")
        if colour in first:
            other = first[colour]
            raise DataError(
                f"{path}, line {line}: {name!r} has the colour of {other.name!r} in line {other.line}; each class "
                "needs its own"
            )
        first[colour] = entry
        if name.lower() in VOID_NAMES:
            void[f"{name} {colour}"] = colour
        elif isinstance(colour, str):
            raise DataError(f"{path}, line {line}: all other colours, `{ANY}`, can be void alone: `void {ANY}`")
        else:
            classes.setdefault(name, []).append(colour)
    _check_names([entry.name for entry in entries if entry.name in classes], path, most=VOID - 1)
    colours = [colour for (colour,) in classes.values()]
    if colours == [(number,) * 3 for number in range(len(entries))]:
        return ClassTable(path, list(classes))  # class numbers, and no colours (Roboflow)
    exact = [colour for colour in void.values() if not isinstance(colour, str)]
    return ClassTable(path, list(classes), colours, exact, ANY in void.values(), list(void))


def _read_lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; write the class names there, one a line") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _check_names(names: list[str], path: Path, most: int = VOID) -> None:
    if not 1 <= len(names) <= most:
        raise DataError(f"{path}: {len(names)} class names; between 1 and {most} are possible")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"{path}: class name {doubled[0]!r} stands there more than once")


# -- which of several files counts -------------------------------------------------------------------


def choose_table(tables: Sequence[ClassTable]) -> ClassTable:
    """The one class list that the ``tables`` which a data set brings agree on.

    Names alone in the first file give the order, colours beside the same names in another say how masks are written.

    Raises:
        DataError: they contradict each other.
    """
    chosen = tables[0]
    for other in tables[1:]:
        fault = ""
        if set(chosen.names) != set(other.names):
            fault = f"name other classes: {difference(chosen.names, other.names)}"
        elif chosen.by_name and other.by_name and chosen.by_name != other.by_name:
            fault = "give other colours to the same classes"
        elif not chosen.by_name and not other.by_name and chosen.names != other.names:
            fault = "have the classes in another order"
        if fault:
            raise DataError(
                f"{chosen.path} and {other.path.name} {fault}; keep one of them, or name one by --classes FILE"
            )
        if not chosen.by_name and other.by_name:
            chosen = replace(other, names=chosen.names, colours=[other.by_name[name] for name in chosen.names])
    return chosen


def difference(first: Sequence[str], second: Sequence[str]) -> str:
    """In words, which names are in one list alone."""
    alone = {
        "in the first alone": [name for name in first if name not in second],
        "in the second alone": [name for name in second if name not in first],
    }
    return "; ".join(
        f"{where} {', '.join(names[:5])}{', ...' * (len(names) > 5)}" for where, names in alone.items() if names
    )
