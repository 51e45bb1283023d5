"""Sections of a plan as command lines of train_kd.py, checked by its own parser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from basics.errors import UserError, choose
from training.arguments import Arguments, Parser, check_arguments, flags, get_args_parser, names_of, option_of
from training.recipe import make_recipe

# What a method is: its losses, what it starts and learns from. All else is the budget, which all methods share.
METHOD_ARGUMENTS = names_of("method", "teacher")
# What concerns a teacher alone, and is left out of the command line of a run that needs none.
TEACHER_ARGUMENTS = names_of("teacher")
# What compare.py gives to each run itself.
OWN_ARGUMENTS = names_of("run")


def section_arguments(table: dict, path: Path, section: str, allowed: frozenset[str] | None) -> dict[str, object]:
    """The section's arguments by their names in `Arguments`, each known and in its place."""
    known: dict[str, object] = vars(Arguments())
    abouts = {each.name: about for each, about in flags()}
    arguments: dict[str, object] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        choose(known, name, f"argument of train_kd.py in {path}: [{section}]")
        if name in OWN_ARGUMENTS:
            raise UserError(f"{path}: [{section}] {key} is given by the comparison itself: take it out")
        if allowed is not None and name not in allowed:
            raise UserError(
                f"{path}: [{section}] {key}: every method has the same budget, so {key} belongs in [common]; "
                f"a method may set {', '.join(sorted(allowed))}"
            )
        if name in arguments:
            raise UserError(f"{path}: [{section}] {key} is given twice")
        if isinstance(value, list) and not isinstance(known[name], list):
            raise UserError(f"{path}: [{section}] {key} takes one value, not {value!r}")
        if value is False and not isinstance(known[name], bool) and abouts[name].nargs != "?":
            raise UserError(f"{path}: [{section}] {key} takes a value, not false: say which, or leave it out")
        arguments[name] = value
    return arguments


def to_words(arguments: Mapping[str, object]) -> list[str]:
    """Arguments as words of a command line: true is a bare flag, false none at all, a list a flag each.

    A list for one flag with a fixed number of values stays together.
    """
    words: list[str] = []
    abouts = {each.name: about for each, about in flags()}
    for name, value in arguments.items():
        flag = option_of(name)
        if isinstance(abouts[name].nargs, int) and isinstance(value, list):
            words += [flag, *map(str, value)]
            continue
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(flag)
            elif item is not False:
                words += [flag, str(item)] if not str(item).startswith("-") else [f"{flag}={item}"]
    return words


class _PlanParser(Parser):
    """Mistakes are those of the plan, not of a command line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(words: list[str], where: str) -> tuple[Arguments, bool]:
    """Parse and check as train_kd.py would; also whether a teacher is needed."""
    try:
        args = get_args_parser(kind=_PlanParser).parse_args(words)
        check_arguments(args)
        return args, make_recipe(args).needs_teacher
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def place_of(path: Path, method: str) -> str:
    return f"{path}: [methods.{method}] with [common]"


def needs_teacher(arguments: dict[str, object], path: Path, method: str) -> bool:
    return parse(to_words(arguments), place_of(path, method))[1]
