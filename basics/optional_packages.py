"""Packages that few need: imported where they are used, named in one line where they are missing."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from types import ModuleType

from basics.errors import UserError, reason_of


def need(module: str, package: str, purpose: str, error_type: type[UserError] = UserError) -> ModuleType:
    """Import an optional ``module``.

    Args:
        package: what pip calls it.
        purpose: what wants it, as the message begins.

    Raises:
        UserError: or ``error_type``: it is not installed, or cannot be imported.
    """
    with needing(module, package, purpose, error_type):
        return importlib.import_module(module)


@contextlib.contextmanager
def needing(module: str, package: str, purpose: str, error_type: type[UserError] = UserError) -> Iterator[None]:
    """As `need`, around import statements: for names that type checkers are to see."""
    try:
        yield
    except ImportError as error:
        top = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name in (top, module, package)
        reason = "" if missing else f", which is there but cannot be imported ({reason_of(error)})"
        raise error_type(f"{purpose} needs the package {package}{reason}: pip install {package}") from error


@contextlib.contextmanager
def quiet_tree_log() -> Iterator[None]:
    """While a package is imported: torchao registers enums in a way that torch warns about at each start."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
