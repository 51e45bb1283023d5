"""Every command that the project tells people to paste is parsed by the script's real parser."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from basics.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


TEXTS = ["train.txt", "test.txt", "count_params.txt", "README.md", "CONTRIBUTING.md"]
PAGES = [f"{folder}/README.md" for folder in ("results", "checkpoints", "checkpoints/animals", "data")]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
# A script behind any Python, or torchrun and its options, with variables set before it.
COMMAND = re.compile(r"(?:^ *|&& )(?:\w+=\S* )*(?:[\w./]*python3?|torchrun(?: --\w+(?:=\S+| \d+)?)*) (\w+\.py[^&#]*)")


def documented_commands():
    """(file:line, script, arguments) of each `python SCRIPT.py ...` in the command files and the code of all .md."""
    for name in TEXTS + PAGES:
        fenced = False
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if line.startswith("```"):
                fenced = not fenced
            if name.endswith(".md") and not fenced and not line.startswith("    "):
                continue
            for command in COMMAND.findall(line):
                words = shlex.split(command)
                yield pytest.param(words[0], words[1:], id=f"{name}:{number}")


@pytest.mark.parametrize(("script", "arguments"), documented_commands())
def test_documented_command_parses(script, arguments):
    module = importlib.import_module(Path(script).stem)
    args = module.get_args_parser().parse_args(arguments)
    if script == "train_kd.py":
        module.check_arguments(args)
        recipe = module.make_recipe(args)
        from zoo import FILES, check_name

        check_name(args.student)
        if recipe.needs_teacher and Path(args.teacher).suffix not in FILES:  # which may be anywhere
            check_name(args.teacher, "teacher")


def test_there_are_commands():
    names = {parameters.id.split(":")[0] for parameters in documented_commands()}
    texts = {"train.txt", "test.txt", "count_params.txt", "README.md"}
    assert names >= {*texts, "docs/data.md", "docs/teachers.md", "docs/unlabelled.md", "docs/prediction.md"}
    assert names >= {"docs/clusters.md", "docs/weights.md", "docs/working_size.md", "checkpoints/animals/README.md"}


def test_a_wrong_command_would_be_noticed():
    from train_kd import get_args_parser, make_recipe

    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--no-such-flag"])
    with pytest.raises(UserError):
        make_recipe(get_args_parser().parse_args(["--preset", "no-such-preset"]))
