"""Classes brought together to fewer: a small file that says which of the old classes each new one takes.

    animal = cat, dog                       # or, as TOML: animal = ["cat", "dog"]
    road = road, road marking, parking
    other = *                               # all that is named nowhere else
    ignore = sky, static                    # void: neither learnt nor scored

The new classes are numbered in the order of their lines. Each old class must be named once, or fall under `*`. Names
are compared exactly; failing that without case, spaces, hyphens and underscores, by one of several words for the same
thing ("person, individual"), and in singular and plural.

The same form says which of a teacher's classes mean a class of the data (`kd.class_matching`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from basics.errors import UserError
from basics.toml_file import parse_toml

IGNORE = "ignore"
REST = "*"
WORD = re.compile(r"\"[^\"]*\"|'[^']*'|[^,=\[\]\"'#]+")  # of a line of such a file: a name, maybe in quotes


@dataclass(frozen=True)
class ClassGroups:
    """What a file of groups says.

    Attributes:
        members: by new class, in order, the old ones as they are written; `*` for the rest.
        ignored: old classes that become void.
        text: of the file, to find lines in.
    """

    path: Path
    members: dict[str, list[str]]
    ignored: list[str]
    text: str = field(default="", repr=False)

    @property
    def names(self) -> list[str]:
        """The new classes."""
        return list(self.members)

    def place(self, name: str, *, new: bool = False) -> str:
        """The file, and the line in which ``name`` stands, as a message begins; see `place_of`."""
        return place_of(name, self.text, self.path, new=new)


def is_groups(text: str) -> bool:
    """Whether a file holds groups, and is no list of classes: some line has ``=`` behind a name."""
    return any(re.match(r"[^#=]*[^#=\s]\s*=", line) for line in text.splitlines())


def place_of(name: str, text: str, path: Path, *, new: bool = False, nth: int = 1) -> str:
    """``path`` and the line of ``text`` where ``name`` stands for the ``nth`` time as a ``new`` class, or an old one.

    ``path`` alone where that is not found.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        key, equals, names = ("" if line.lstrip().startswith("#") else line).partition("=")
        part = key if new else names if equals else key  # a list may go on over several lines
        words = [word.strip().strip("\"'").strip() for word in WORD.findall(part)]
        found += [number] * words.count(name)
    return f"{path}, line {found[nth - 1]}" if len(found) >= nth else str(path)


def parse_groups(text: str, path: Path, *, allow_empty: bool = False) -> ClassGroups:
    """Groups in TOML or in plain lines.

    Args:
        allow_empty: a group may take no class.

    Raises:
        UserError: a line is neither; a class is named twice; there is no group.
    """
    lists_of_toml = re.search(r"^[^#\n]*=\s*[\[\"']", text, re.MULTILINE)
    groups = _from_toml(parse_toml(text, path), path) if lists_of_toml else _from_lines(text, path)
    ignored = [name for key in groups if key.lower() == IGNORE for name in groups[key]]
    members = {key: names for key, names in groups.items() if key.lower() != IGNORE}
    if not members:
        raise UserError(f"{path}: no classes; wanted are lines such as `animal = cat, dog`")
    named = [name for names in groups.values() for name in names]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"{place_of(name, text, path, nth=2)}: {name!r} stands there more than once")
    for key, names in groups.items():
        if not names and not allow_empty:
            place = place_of(key, text, path, new=True)
            raise UserError(f"{place}: {key!r} has no classes; wanted are lines such as `animal = cat, dog`")
    return ClassGroups(path, members, ignored, text)


def _from_toml(content: dict, path: Path) -> dict[str, list[str]]:
    groups = {}
    for key, value in content.items():
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f'{path}: {key} = {value!r}; wanted is a list of class names, as {key} = ["cat", "dog"]')
        groups[key.strip()] = [name.strip() for name in names]
    return groups


def _from_lines(text: str, path: Path) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, names = (part.strip() for part in line.split("#")[0].partition("="))
        if not key or not equals:
            raise UserError(f"{path}, line {number}: {line.strip()!r}; wanted is `animal = cat, dog`")
        if key in groups:
            raise UserError(f"{path}, line {number}: {key!r} stands there more than once")
        groups[key] = [name.strip() for name in names.split(",") if name.strip()]
    return groups


def group_numbers(groups: ClassGroups, names: Sequence[str], whose: str, void: int) -> list[int]:
    """The number of the new class of each old class in ``names``, or ``void``.

    Args:
        whose: the old classes are, as a message calls it.

    Raises:
        UserError: a name in the file is no old class or could be several; an old class is named twice or nowhere.
    """
    new = {key: number for number, key in enumerate(groups.names)} | {IGNORE: void}
    key_of, rest = assign(groups, names, whose)
    left = [name for name in names if name not in key_of]
    if left and rest is None:
        raise UserError(
            f"{groups.path}: nothing is said of {shown(left)} ({whose}): add them to a line, or to `{IGNORE} = ...`; "
            f"`{REST}` stands for all the rest"
        )
    numbers = [new[key_of.get(name, rest or IGNORE)] for name in names]
    for number, name in enumerate(groups.names):
        if number not in numbers:  # `*` alone
            raise UserError(f"{groups.path}: {name!r} is all the rest, and nothing is left for it ({whose})")
    return numbers


def assign(groups: ClassGroups, names: Sequence[str], whose: str) -> tuple[dict[str, str], str | None]:
    """Which group takes each old class that is named, by the group's key or `IGNORE`; and which one takes the rest.

    Args:
        names: the old classes.
        whose: they are, as a message calls it.

    Raises:
        UserError: a name in the file is no old class or could be several; an old class is named twice.
    """
    key_of: dict[str, str] = {}
    rest: str | None = None
    written_in = [(IGNORE, name) for name in groups.ignored]
    written_in += [(key, name) for key, members in groups.members.items() for name in members]
    for key, written in written_in:
        if written == REST:
            rest = key
            continue
        found = find_names(written, names)
        if len(found) > 1:
            raise UserError(f"{groups.place(written)}: {written!r} may be {' or '.join(map(repr, found))} of {whose}")
        if not found:
            raise UserError(
                f"{groups.place(written)}: {written!r} is no class of {whose}{meant(written, names)}, which has "
                f"{shown(names)}; the file names {shown(written for _, written in written_in)}"
            )
        (name,) = found
        if key_of.get(name) == key:
            continue  # several of its words, as in `person = person, individual`
        if name in key_of:
            raise UserError(f"{groups.place(written)}: {written!r} is the class {name!r}, which is named already")
        key_of[name] = key
    return key_of, rest


def find_name(written: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that ``written`` means; None if there is none, or more than one."""
    found = find_names(written, names)
    return found[0] if len(found) == 1 else None


def find_names(written: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that ``written`` may mean, by the strictest way of comparing by which it means any.

    A name may be several words for the same thing, with commas between them ("person, individual, someone"): the
    first one counts before the others.
    """
    names = list(dict.fromkeys(names))
    if written in names:
        return [written]
    for forms in (_plain, _first, _words, _forms):
        if found := [name for name in names if forms(name) & forms(written)]:
            return found
    return []


def _plain(name: str) -> set[str]:
    """The name without case and separators."""
    return {re.sub(r"[\s_-]+", "", name.casefold())}


def _words(name: str) -> set[str]:
    """The words it has for the same thing."""
    return set().union(*(_plain(word) for word in name.split(",") if word.strip()))


def _first(name: str) -> set[str]:
    """The first of its words."""
    return _plain(name.split(",")[0])


def _forms(name: str) -> set[str]:
    """Its words, and what they may be the plural of."""
    forms = set()
    for word in _words(name):
        forms |= {word, word.removesuffix("s"), word.removesuffix("es")}
        if word.endswith("ies"):
            forms.add(word.removesuffix("ies") + "y")
    return {form for form in forms if len(form) > 1 or form == name.casefold()}


def meant(written: str, names: Sequence[str]) -> str:
    """The name that looks most like what was written, as a question; empty where none does."""
    words = {word.strip().casefold(): name for name in reversed(names) for word in (*name.split(","), name)}
    found = difflib.get_close_matches(written.casefold(), words, n=1)
    return f" (did you mean {words[found[0]]!r}?)" if found else ""


def shown(names: Iterable[str]) -> str:
    """At most a dozen of ``names``; in quotes where commas are in some, as in ADE20K's."""
    listed = list(names)
    quoted = [repr(name) for name in listed] if any("," in name for name in listed) else listed
    return ", ".join(quoted[:12]) + ", ..." * (len(listed) > 12)
