"""Every command that the project tells people to paste is parsed by the script's real parser."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from basics.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "train.txt",
    "test.txt",
    "count_params.txt",
    "README.md",
    "CONTRIBUTING.md",
    "docs/teachers.md",
    "docs/losses.md",
)


def documented_commands():
    """(file:line, script, arguments) of each `python SCRIPT.py ...` in the command files and the code of both .md."""
    for name in FILES:
        fenced = False
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if line.startswith("```"):
                fenced = not fenced
            if name.endswith(".md") and not fenced:
                continue
            for command in re.findall(r"(?:^|&& )(python \w+\.py[^&#]*)", line):
                words = shlex.split(command)
                yield pytest.param(words[1], words[2:], id=f"{name}:{number}")


@pytest.mark.parametrize(("script", "arguments"), documented_commands())
def test_documented_command_parses(script, arguments):
    module = importlib.import_module(Path(script).stem)
    args = module.get_args_parser().parse_args(arguments)
    if script == "train_kd.py":
        module.check_arguments(args)
        recipe = module.make_recipe(args)
        from zoo import check_name

        check_name(args.student)
        if recipe.needs_teacher:
            check_name(args.teacher, "teacher")


def test_there_are_commands():
    names = {parameters.id.split(":")[0] for parameters in documented_commands()}
    assert names == set(FILES)


def test_a_wrong_command_would_be_noticed():
    from train_kd import get_args_parser, make_recipe

    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--no-such-flag"])
    with pytest.raises(UserError):
        make_recipe(get_args_parser().parse_args(["--preset", "no-such-preset"]))
