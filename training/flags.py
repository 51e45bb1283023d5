"""A flag as a field of a dataclass: what a field says of its flag, and the parser's keywords derived from that.

lr: float = flag("optimization", "budget", 5e-4, "base learning rate", above=0)
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, Literal

# budget: what all methods of a comparison share.  method: what a method is.  teacher: a part of that which means
# nothing without a teacher.  machine: where and how a run works, not what it computes.  run: which run it is, given
# by compare.py itself.
Scope = Literal["budget", "method", "teacher", "machine", "run"]


@dataclass(frozen=True)
class Flag:
    """What a field says of its flag; see `argparse.ArgumentParser.add_argument` for the second half.

    Attributes:
        group: its heading in the help.
        scope: what it is about.
        may_change: a resumed run may have another value.
        least, above, most: bounds of its number.
        shared: other scripts have it, too; one of their functions adds it.
        parse: makes a value of a word, where its type alone cannot.
    """

    group: str
    scope: Scope
    help: str | None = None
    may_change: bool = False
    least: float | None = None
    above: float | None = None
    most: float = math.inf
    shared: bool = False
    option: str | None = None
    metavar: str | tuple[str, ...] | None = None
    choices: Sequence[str] | None = None
    nargs: int | str | None = None
    const: object = None
    parse: Callable[[str], object] | None = None


def flag(group: str, scope: Scope, default: Any, help: str | None = None, **about: Any) -> Any:
    """A field of a dataclass of flags; ``about`` are further attributes of its `Flag`."""
    about_it = {"flag": Flag(group, scope, help, **about)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=about_it)
    return field(default=default, metadata=about_it)


def parser_options(each: Field, about: Flag, hint: Any) -> dict[str, Any]:
    """Keywords of `add_argument` for a field of the type ``hint``."""
    options: dict[str, Any] = {"dest": each.name, "help": about.help}
    if hint is bool:
        return options | {"action": "store_true"}
    options["default"] = each.default_factory() if each.default_factory is not MISSING else each.default
    given = {name: getattr(about, name) for name in ("metavar", "choices", "nargs", "const")}
    options |= {name: value for name, value in given.items() if value is not None}
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if typing.get_origin(hint) is list and about.nargs is None:
        options["action"] = "append"
    kind = about.parse or kinds[0]
    return options | ({"type": kind} if kind is not str else {})


def fault_of_bounds(value: float, about: Flag, option: str) -> str | None:
    """Why a number is refused by its flag's bounds; None if it is not."""
    if about.above is not None and not about.above < value < math.inf:
        return f"{option} must be above {about.above:g}, not {value}"
    if about.least is not None and not (about.least <= value <= about.most and value < math.inf):
        bounds = f"at least {about.least:g}" if about.most == math.inf else f"from {about.least:g} to {about.most}"
        return f"{option} must be {bounds}, not {value}"
    return None
