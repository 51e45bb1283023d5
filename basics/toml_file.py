"""Reading TOML, with Python's own reader where it has one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from basics.errors import UserError


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """The content of a TOML file whose text is ``text``.

    Raises:
        UserError: it is none; or Python 3.10 lacks the package that reads it.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise UserError(f"{path}: Python 3.10 needs a package to read TOML: pip install tomli") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from error
