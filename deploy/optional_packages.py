"""Packages that one format alone needs: imported where it is used, named in one line where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from basics.errors import UserError, reason_of


def need(module: str, package: str, purpose: str) -> ModuleType:
    """Import an optional ``module``.

    Args:
        package: what pip calls it.
        purpose: what wants it, as the message begins.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name in (top, module)
        reason = "" if missing else f", which is there but cannot be imported ({reason_of(error)})"
        raise UserError(f"{purpose} needs the package {package}{reason}: pip install {package}") from error
