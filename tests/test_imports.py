"""Arrows between modules run one way, and importing a script does nothing but define things."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A module imports from its own layer and those before it; what is in no layer is a script, from which nothing imports.
LAYERS = [
    {"basics"},
    {"kd", "networks", "segdata", "datachecks", "datalayouts", "student_model", "dataset"},
    {"zoo"},
    {"scoring"},
    {"deploy"},
    {"training"},
    {"comparison", "benchmarks"},
]
ROOMS = [name for layer in LAYERS for name in sorted(layer) if (ROOT / name).is_dir()]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))


def room(module: str) -> str:
    return module.partition(".")[0]


def layer(module: str) -> int:
    return next((number for number, names in enumerate(LAYERS) if room(module) in names), len(LAYERS))


def local_modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the project, tests apart."""
    files = [*ROOT.glob("*.py"), *(file for package in ROOMS for file in (ROOT / package).rglob("*.py"))]
    names = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    return {".".join(parts).removesuffix(".__init__"): file for file, parts in names.items()}


def imported(file: Path) -> set[str]:
    """Project modules that ``file`` imports, wherever in it the import stands."""
    modules, found = local_modules(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            candidates = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name for name in candidates if name in modules}
    return found


@pytest.mark.parametrize("module", sorted(local_modules()))
def test_arrows_run_one_way(module):
    for other in imported(local_modules()[module]) - {module}:
        assert layer(other) < len(LAYERS), f"{module} imports the script {other}: what both need belongs in a room"
        assert layer(other) <= layer(module), f"{module} imports {other}, which stands above it"


def assert_no_cycles(graph: dict[str, set[str]], what: str) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"{what} import each other in a circle: {' -> '.join(error.args[1])}")


def test_no_cycles_of_modules_nor_of_rooms():
    graph = {module: imported(file) - {module} for module, file in local_modules().items()}
    assert_no_cycles(graph, "modules")
    rooms: dict[str, set[str]] = {}
    for module, others in graph.items():
        rooms.setdefault(room(module), set()).update(room(other) for other in others if room(other) != room(module))
    assert_no_cycles(rooms, "rooms")


def test_every_folder_of_code_is_a_room():
    """A folder that no layer names would be out of reach of these tests."""
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == {*ROOMS, "tests"}


def test_importing_scripts_has_no_side_effect(tmp_path):
    """All of them in one fresh process: nothing printed, no file, the random state and the threads as before."""
    code = (
        "import importlib, random, sys, numpy, torch\n"
        "def state(): return (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),"
        " torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), sys.path[:])\n"
        "before = state()\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert state() == before, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *SCRIPTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_a_parser_and_a_main(script):
    """What runs as a script has `get_args_parser`, `main` and one guarded line; nothing else acts at import."""
    tree = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))
    guards = [node for node in tree.body if isinstance(node, ast.If)]
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for guard in guards:
        assert ast.unparse(guard) == "if __name__ == '__main__':\n    run_cli(main, get_args_parser)"
        assert {"main", "get_args_parser"} <= functions
    calls = [node for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert not calls, f"{script}.py acts when imported, line {calls[0].lineno}"
    assert ast.get_docstring(tree), f"{script}.py says nothing about itself"
