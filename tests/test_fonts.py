"""Class names in any script: drawn with a font that has them, or said to be boxes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from basics import fonts
from segdata.drawing import ClassRow, Example, PanelRow, contact_sheet, panel
from training.curves import draw_curves

fontbuilder = pytest.importorskip("fontTools.fontBuilder")
pen = pytest.importorskip("fontTools.pens.ttGlyphPen")

FISH, SHRIMP, KOREAN = "魚", "虾", "물"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Nothing is remembered from other tests, no font of this machine beside matplotlib's own is known."""
    monkeypatch.setattr(fonts, "_said", False)
    fonts._families.cache_clear()
    yield
    fonts._families.cache_clear()


@pytest.fixture
def only(monkeypatch):
    """``only(path, ...)``: DejaVu and these are all the fonts there are."""
    own = [entry for entry in font_manager.fontManager.ttflist if entry.name == "DejaVu Sans"]

    def choose(*paths):
        monkeypatch.setattr(font_manager.fontManager, "ttflist", list(own))
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in paths])

    choose()
    return choose


def make_font(path, name, characters):
    """A font whose glyphs are full black squares."""
    square = pen.TTGlyphPen(None)
    square.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        square.lineTo(point)
    square.closePath()
    glyph = square.glyph()
    names = [".notdef", *(f"u{ord(char):X}" for char in characters)]
    builder = fontbuilder.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(char): f"u{ord(char):X}" for char in characters})
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.mark.parametrize("texts", [["cat", "näit", "straße"], ["кошка", "γάτα"], ["a_b $1 ~", ""], []])
def test_what_the_own_font_has_needs_no_other(texts, only, capsys):
    with fonts.fonts_for(texts):
        assert fonts._families(frozenset("".join(texts))) == ((), frozenset())
    assert capsys.readouterr().out == ""


def test_what_no_font_has_is_said_once(only, capsys):
    for _ in range(2):
        with fonts.fonts_for([f"{FISH} market", SHRIMP]):
            pass
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and FISH in said[0] and SHRIMP in said[0] and "install" in said[0]
    with fonts.fonts_for([KOREAN]):
        pass
    assert capsys.readouterr().out == ""


def test_fonts_are_chosen_by_what_they_have(only, tmp_path, capsys):
    both = make_font(tmp_path / "both.ttf", "Both", FISH + SHRIMP)
    one = make_font(tmp_path / "one.ttf", "Aone", FISH)
    korean = make_font(tmp_path / "korean.ttf", "Korean", KOREAN)
    only(one, both, korean)
    assert fonts._families(frozenset(FISH + SHRIMP + "cat")) == (("Both",), frozenset())
    assert fonts._families(frozenset(KOREAN + SHRIMP))[0] in (("Both", "Korean"), ("Korean", "Both"))
    assert fonts._families(frozenset(KOREAN + "ア")) == (("Korean",), frozenset("ア"))
    assert fonts._families(frozenset("cat")) == ((), frozenset())


def test_a_damaged_font_is_passed_over(only, tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    only(tmp_path / "bad.ttf")
    assert fonts._families(frozenset(FISH)) == ((), frozenset(FISH))


def test_a_font_of_boxes_for_every_character_is_no_font(only, tmp_path):
    """As matplotlib brings one along since 3.11."""
    only(make_font(tmp_path / "boxes.ttf", "Last Resort High-Efficiency", FISH))
    assert fonts._families(frozenset(FISH)) == ((), frozenset(FISH))


def draw(path, name):
    mask = np.ones((40, 40), np.uint8)
    panel([PanelRow("x", np.full((40, 40, 3), 255, np.uint8), [mask])], ["In", "Out"], ["a", name], [[0] * 3] * 2, path)
    return np.asarray(Image.open(path).convert("L"))


def test_panels_and_curves_show_the_characters(only, tmp_path, capsys):
    """The font's glyph is a filled square: with it the legend has more black than with a box's outline."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxes = draw(tmp_path / "boxes.png", FISH)
        draw_curves([{"epoch": 1, "val_miou": 0.5}], tmp_path / "c.png", title=FISH)
    assert FISH in capsys.readouterr().out
    fonts._families.cache_clear()
    only(make_font(tmp_path / "f.ttf", "Fishy", FISH))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = draw(tmp_path / "shown.png", FISH)
        draw_curves([{"epoch": 1, "val_miou": 0.5}], tmp_path / "d.png", title=FISH)
    assert capsys.readouterr().out == ""
    legend = slice(int(0.85 * len(shown)), None)
    assert (shown[legend] < 60).sum() > (boxes[legend] < 60).sum() + 20
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "d.png").read_bytes()


def test_contact_sheets_show_the_characters(only, tmp_path, capsys):
    def sheet(name):
        example = Example("x", np.full((20, 20, 3), 255, np.uint8), np.ones((20, 20), np.uint8))
        rows = [ClassRow(1, "in 1 image", [example])]
        contact_sheet(rows, "t", [], ["a", FISH], [[0] * 3, [255] * 3], tmp_path / name)
        return np.asarray(Image.open(tmp_path / name).convert("L"))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxes = sheet("boxes.png")
        assert FISH in capsys.readouterr().out
        fonts._families.cache_clear()
        only(make_font(tmp_path / "f.ttf", "Fishy", FISH))
        shown = sheet("shown.png")
    assert capsys.readouterr().out == ""
    assert (shown < 60).sum() > (boxes < 60).sum() + 20
