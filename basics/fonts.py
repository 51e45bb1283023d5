"""Fonts for pictures: matplotlib's own lacks Chinese, Japanese, Korean and more, which class names may be in."""

from __future__ import annotations

import contextlib
import functools
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

REGULAR = (400, "normal", "regular", "book")
PLACEHOLDERS = "Last Resort"  # fonts with a box for every character there is

_said = False


@contextlib.contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Within it, matplotlib draws ``texts`` with whatever installed fonts have their characters.

    Characters that none has are printed, those of the first text that has some alone; a box stands for each.
    """
    families, missing = _families(frozenset("".join(texts)))
    if missing and not _said:  # once: a folder of pictures has a name a picture
        _say(missing)
    family = [*matplotlib.rcParams["font.family"], *families]
    with matplotlib.rc_context({"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@functools.lru_cache(maxsize=64)
def _families(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families to take beside the default one, and the characters that no font has.

    Of several, the one with most of what is still missing.
    """
    visible = {char for char in characters if unicodedata.category(char)[0] not in "CZM"}
    missing = visible - _in_font(font_manager.findfont(font_manager.FontProperties()), visible)
    families: list[str] = []
    if missing:
        _learn_new_fonts()
        fonts = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist if _is_plain(entry)}
        found = {name: _in_font(path, missing) for name, path in sorted(fonts.items())}
        while missing and (best := max(found, key=lambda name: len(found[name] & missing), default=None)):
            if not found[best] & missing:
                break
            families.append(best)
            missing = missing - found[best]
    return tuple(families), frozenset(missing)


def _is_plain(entry: font_manager.FontEntry) -> bool:
    return entry.style == "normal" and entry.weight in REGULAR and PLACEHOLDERS not in entry.name


def _in_font(path: str, characters: Iterable[str]) -> set[str]:
    """Those of ``characters`` that a font file has; none, if it cannot be read."""
    try:
        font = FT2Font(path)
        return {char for char in characters if font.get_char_index(ord(char))}
    except (OSError, RuntimeError):
        return set()


def _learn_new_fonts() -> None:
    """matplotlib keeps a list of the fonts of its first day; what was installed since is added."""
    known = {Path(entry.fname) for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if Path(path) not in known:
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # a damaged font
                font_manager.fontManager.addfont(path)


def _say(missing: frozenset[str]) -> None:
    global _said
    _said = True
    listed = "".join(sorted(missing)[:10]) + ("..." if len(missing) > 10 else "")
    print(
        f"no font on this machine has the characters {listed}: boxes stand for them in pictures; install one that has "
        "them, such as Noto Sans CJK (apt install fonts-noto-cjk)"
    )
