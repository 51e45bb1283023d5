"""Which of a network's outputs the logits are, by what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAIN = ("out", "logits", "main")
AUXILIARY = re.compile(r"(^|[^a-z])aux", re.IGNORECASE)  # heads that are there to be trained with


def is_main(name: str) -> bool:
    """Whether it is what logits are usually called."""
    return name.casefold() in MAIN


def by_preference(names: Iterable[str]) -> list[str]:
    """``names``, those of `MAIN` first, and without those of auxiliary heads if there are others."""
    names = list(names)
    kept = [name for name in names if not AUXILIARY.search(name)] or names
    return sorted(kept, key=lambda name: MAIN.index(name.casefold()) if is_main(name) else len(MAIN))
