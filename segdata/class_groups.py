"""Classes brought together to fewer: a small file that says which of the old classes each new one takes.

    animal = cat, dog                       # or, as TOML: animal = ["cat", "dog"]
    road = road, road marking, parking
    other = *                               # all that is named nowhere else
    ignore = sky, static                    # void: neither learnt nor scored

The new classes are numbered in the order of their lines. Each old class must be named once, or fall under `*`. Names
are compared exactly; failing that without case, spaces, hyphens and underscores, and in singular and plural.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from basics.errors import UserError
from basics.toml_file import parse_toml

IGNORE = "ignore"
REST = "*"


@dataclass(frozen=True)
class ClassGroups:
    """What a file of groups says.

    Attributes:
        members: by new class, in order, the old ones as they are written; `*` for the rest.
        ignored: old classes that become void.
    """

    path: Path
    members: dict[str, list[str]]
    ignored: list[str]

    @property
    def names(self) -> list[str]:
        """The new classes."""
        return list(self.members)


def is_groups(text: str) -> bool:
    """Whether a file holds groups, and is no list of classes: some line has ``=`` behind a name."""
    return any(re.match(r"[^#=]*[^#=\s]\s*=", line) for line in text.splitlines())


def parse_groups(text: str, path: Path) -> ClassGroups:
    """Groups in TOML or in plain lines.

    Raises:
        UserError: a line is neither; a class is named twice; there is no group.
    """
    lists_of_toml = re.search(r"=\s*[\[\"']", text)
    groups = _from_toml(parse_toml(text, path), path) if lists_of_toml else _from_lines(text, path)
    ignored = [name for key in groups if key.lower() == IGNORE for name in groups[key]]
    members = {key: names for key, names in groups.items() if key.lower() != IGNORE}
    if not members:
        raise UserError(f"{path}: no classes; wanted are lines such as `animal = cat, dog`")
    named = [name for names in groups.values() for name in names]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"{path}: {name!r} stands there more than once")
    for key, names in groups.items():
        if not names:
            raise UserError(f"{path}: {key!r} has no classes; wanted are lines such as `animal = cat, dog`")
    return ClassGroups(path, members, ignored)


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
    number_of: dict[str, int] = {}
    rest: int | None = None
    numbered = [*((void, name) for name in groups.ignored)]
    numbered += [(number, name) for number, members in enumerate(groups.members.values()) for name in members]
    for number, written in numbered:
        if written == REST:
            rest = number
            continue
        name = find_name(written, names)
        if name is None:
            raise UserError(
                f"{groups.path}: {written!r} is no class of {whose}, which has {_shown(names)}; the file names "
                f"{_shown(written for _, written in numbered)}"
            )
        if name in number_of:
            raise UserError(f"{groups.path}: {written!r} is the class {name!r}, which is named already")
        number_of[name] = number
    left = [name for name in names if name not in number_of]
    if left and rest is None:
        raise UserError(
            f"{groups.path}: nothing is said of {_shown(left)} ({whose}): add them to a line, or to `{IGNORE} = ...`; "
            f"`{REST}` stands for all the rest"
        )
    numbers = [number_of.get(name, void if rest is None else rest) for name in names]
    for number, name in enumerate(groups.names):
        if number not in numbers:  # `*` alone
            raise UserError(f"{groups.path}: {name!r} is all the rest, and nothing is left for it ({whose})")
    return numbers


def find_name(written: str, names: Sequence[str]) -> str | None:
    """The one of ``names`` that ``written`` means; None if there is none, or more than one."""
    if written in names:
        return written
    alike = [name for name in names if _forms(name) & _forms(written)]
    closest = [name for name in alike if _plain(name) == _plain(written)]
    found = closest or alike
    return found[0] if len(found) == 1 else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _forms(name: str) -> set[str]:
    """The name without case and separators, and what it may be the plural of."""
    plain = _plain(name)
    singular = {plain.removesuffix("s"), plain.removesuffix("es")}
    if plain.endswith("ies"):
        singular.add(plain.removesuffix("ies") + "y")
    return {plain, *(form for form in singular if len(form) > 1)}


def _shown(names: Iterable[str]) -> str:
    """At most a dozen of ``names``."""
    listed = list(names)
    return ", ".join(listed[:12]) + ", ..." * (len(listed) > 12)
