"""No file, class or function of the product outgrows a reader."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.test_imports import ROOT, local_modules

# Lines, docstrings and comments included.
FILE, SCRIPT, CLASS, FUNCTION = 400, 120, 250, 60

# Modules that other code imports, and that have a command line besides.
MODULES = {"dataset", "zoo", "student_model"}

# What may be larger, and how large: "path" or "path:name" -> lines. Say why in a comment.
EXCEPTIONS: dict[str, int] = {}


def measured() -> Iterator[tuple[str, int, int]]:
    """(what, its lines, its limit) of every file, class and function, nested ones included."""
    for file in sorted(local_modules().values()):
        path, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
        script = file.parent == ROOT and file.stem not in MODULES
        yield path, len(text.splitlines()), SCRIPT if script else FILE
        for name, node in definitions(ast.parse(text)):
            lines = node.end_lineno - node.lineno + 1
            yield f"{path}:{name}", lines, CLASS if isinstance(node, ast.ClassDef) else FUNCTION


def definitions(parent: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Dotted name and node of each class and function below ``parent``."""
    for node in ast.iter_child_nodes(parent):
        named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        name = f"{prefix}{node.name}" if named else prefix
        if named:
            yield name, node
        yield from definitions(node, f"{name}." if named else prefix)


def test_nothing_outgrows_its_limit():
    too_large = [
        f"{what}: {lines} lines, at most {EXCEPTIONS.get(what, limit)}"
        for what, lines, limit in measured()
        if lines > EXCEPTIONS.get(what, limit)
    ]
    assert not too_large, "\n" + "\n".join(too_large)


def test_no_exception_outlives_its_reason():
    """Whatever is excepted is there, and still beyond the ordinary limit."""
    sizes = {what: (lines, limit) for what, lines, limit in measured()}
    for what in EXCEPTIONS:
        lines, limit = sizes[what]
        assert lines > limit, f"{what} has {lines} lines: it needs no exception any more"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f():\n    pass\n", [("f", 2)]),
        ("class A:\n    def f(self):\n        def g():\n            return 1\n", [("A", 4), ("A.f", 3), ("A.f.g", 2)]),
        ("if True:\n    def f():\n        pass\n", [("f", 2)]),
    ],
)
def test_definitions_are_found_wherever_they_stand(code, expected):
    found = [(name, node.end_lineno - node.lineno + 1) for name, node in definitions(ast.parse(code))]
    assert found == expected
