"""How masks are written: numbers, colours, merged classes; and the class lists that say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from basics.errors import UserError
from datalayouts.published import CITYSCAPES
from dataset import build_dataset, find_layout
from segdata.class_groups import find_name, group_numbers, is_groups, parse_groups
from segdata.class_tables import VOID_NAMES, choose_table, class_list_text, read_class_names, read_class_table
from segdata.decode_cache import describe_sources
from segdata.labels import ColourLabels, IndexLabels, MergedLabels, describe_content
from segdata.palettes import voc_palette
from segdata.reading import DataError, read_mask

RNG = np.random.default_rng(0)
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (7, 8, 9)]
VOID_COLOUR = (224, 224, 192)
TABLE = ColourLabels(("a", "b", "c", "d"), tuple(COLOURS), (VOID_COLOUR,), False, Path("classes.txt"))
LABELS = RNG.choice([0, 1, 2, 3, 255], (20, 30)).astype(np.uint8)


def painted(labels: np.ndarray) -> np.ndarray:
    """The labels in their colours, uint8 (H, W, 3)."""
    table = np.zeros((256, 3), np.uint8)
    table[:4], table[255] = COLOURS, VOID_COLOUR
    return table[labels]


def palette_by_chance(rgb: np.ndarray) -> Image.Image:
    """A palette image of these colours, whose numbers mean nothing."""
    colours, numbers = np.unique(rgb.reshape(-1, 3), axis=0, return_inverse=True)
    order = np.random.default_rng(7).permutation(len(colours))
    image = Image.fromarray(order[numbers].reshape(rgb.shape[:2]).astype(np.uint8))
    image.putpalette(colours[np.argsort(order)].tobytes())
    return image


# -- colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("convert", "suffix", "options"),
    [
        (Image.fromarray, ".png", {}),
        (Image.fromarray, ".bmp", {}),
        (Image.fromarray, ".tif", {}),
        (Image.fromarray, ".tif", {"compression": "tiff_lzw"}),
        (Image.fromarray, ".webp", {"lossless": True}),
        (lambda rgb: Image.fromarray(rgb).convert("RGBA"), ".png", {}),
        (palette_by_chance, ".png", {}),
        (palette_by_chance, ".bmp", {}),
        (palette_by_chance, ".gif", {}),
        (lambda rgb: palette_by_chance(rgb).convert("PA"), ".tif", {}),
    ],
)
def test_colours_are_classes_in_whatever_form(tmp_path, convert, suffix, options):
    path = tmp_path / f"mask{suffix}"
    try:
        convert(painted(LABELS)).save(path, **options)
    except OSError:
        pytest.skip("Pillow cannot write this form")
    assert np.array_equal(TABLE.read(path), LABELS)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "LA"])
def test_0_and_255_are_two_classes_where_a_table_says_so(tmp_path, mode):
    table = ColourLabels(("background", "crack"), ((0, 0, 0), (255, 255, 255)), (), False, Path("classes.txt"))
    truth = RNG.integers(0, 2, (9, 11)).astype(np.uint8)
    Image.fromarray(255 * truth).convert(mode).save(tmp_path / "mask.png")
    assert np.array_equal(table.read(tmp_path / "mask.png"), truth)


@settings(max_examples=60)
@given(data=st.data())
def test_any_table_maps_as_a_dictionary_does(tmp_path_factory, data):
    colour = st.tuples(*[st.integers(0, 255)] * 3)
    colours = data.draw(st.lists(colour, min_size=1, max_size=40, unique=True))
    void = [colours.pop() for _ in range(data.draw(st.integers(0, min(2, len(colours) - 1))))]
    names = tuple(map(str, range(len(colours))))
    table = ColourLabels(names, tuple(colours), tuple(void), False, Path("classes.txt"))
    by_colour = {colour: label for label, colour in enumerate(colours)} | dict.fromkeys(void, 255)
    pixels = np.random.default_rng(0).choice(len(by_colour), (5, 6))
    rgb = np.array([[list(by_colour)[index] for index in row] for row in pixels], np.uint8)
    path = tmp_path_factory.getbasetemp() / "any.png"
    expected = [[by_colour[tuple(map(int, pixel))] for pixel in row] for row in rgb]
    for image in (Image.fromarray(rgb), palette_by_chance(rgb)):
        image.save(path)
        assert table.read(path).tolist() == expected


def test_unknown_colours_are_counted_and_named(tmp_path):
    rgb = painted(LABELS)
    rgb[0, :5], rgb[1, :2] = (120, 3, 3), (0, 0, 1)
    for name, image in (("rgb.png", Image.fromarray(rgb)), ("palette.png", palette_by_chance(rgb))):
        image.save(tmp_path / name)
        with pytest.raises(DataError) as caught:
            TABLE.read(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: 7 pixels have colours that classes.txt does not name: ")
        assert "(120, 3, 3) 5 times, nearest is b (128, 0, 0)" in message
        assert "(0, 0, 1) 2 times, nearest is a (0, 0, 0)" in message and "`void *`" in message
    rest_is_void = ColourLabels(TABLE.names, TABLE.colours, TABLE.void, True, TABLE.source)
    expected = LABELS.copy()
    expected[0, :5] = expected[1, :2] = 255
    assert np.array_equal(rest_is_void.read(tmp_path / "rgb.png"), expected)
    assert np.array_equal(rest_is_void.read(tmp_path / "palette.png"), expected)


def test_class_numbers_beside_a_table_of_colours_are_told(tmp_path):
    Image.fromarray((LABELS % 3).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="if the mask's numbers are classes, take the colours out"):
        TABLE.read(tmp_path / "mask.png")


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".jpg", {}), (".webp", {}), (".webp", {"quality": 100}), (".tif", {"compression": "jpeg"})],
)
def test_lossy_masks_are_refused_with_a_table_or_without(tmp_path, suffix, options):
    path = tmp_path / f"mask{suffix}"
    Image.fromarray(painted(LABELS)).save(path, **options)
    for labels in (TABLE, IndexLabels()):
        with pytest.raises(DataError, match="lossy compression"):
            labels.read(path)


# -- numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_numbers_are_classes_in_whatever_form(tmp_path, suffix, mode):
    image = Image.fromarray(LABELS)
    if mode == "P":
        image.putpalette([channel for colour in voc_palette() for channel in colour])
    elif mode == "RGB":  # three times the same
        image = image.convert("RGB")
    image.save(tmp_path / f"mask{suffix}")
    assert np.array_equal(IndexLabels().read(tmp_path / f"mask{suffix}"), LABELS)


def test_a_lossless_webp_is_read_and_transparency_that_varies_is_not(tmp_path):
    Image.fromarray(LABELS).convert("RGB").save(tmp_path / "mask.webp", lossless=True)
    assert np.array_equal(read_mask(tmp_path / "mask.webp"), LABELS)
    image = Image.fromarray(np.zeros_like(LABELS)).convert("RGBA")
    image.putalpha(Image.fromarray(LABELS))
    image.save(tmp_path / "alpha.png")
    with pytest.raises(DataError, match=r"holds RGBA colours.*`name r g b`"):
        read_mask(tmp_path / "alpha.png")


def test_numbers_in_a_gif_are_no_classes(tmp_path):
    Image.fromarray(np.full((4, 5), 2, np.uint8)).save(tmp_path / "mask.gif")
    with Image.open(tmp_path / "mask.gif") as stored:
        assert not (np.asarray(stored) == 2).all()  # why it is refused
    with pytest.raises(DataError, match="GIF mask"):
        read_mask(tmp_path / "mask.gif")


# -- class lists -------------------------------------------------------------------------------------

TABLES = {
    "classes.txt": "road 128 64 128\ntraffic light 250 170 30\nvoid 0 0 0\n",
    "commas/classes.txt": "road,128,64,128\ntraffic light, 250, 170, 30\nVoid,0,0,0\n",
    "brackets/classes.txt": "road (128, 64, 128)\n\ntraffic light: [250 170 30]\nignore = 0 0 0\n",
    "hex/classes.txt": "road #804080\ntraffic light #FAAA1E\nunlabeled #000000\n",
    "tabs/classes.txt": "\ufeffroad\t128\t64\t128\r\ntraffic light\t250\t170\t30\r\nunlabelled\t0\t0\t0\r\n",
    "label_colors.txt": "128 64 128\troad\n250 170 30\ttraffic light\n0 0 0\tVoid\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,64,128::\ntraffic light:250,170,30::\nvoid:0,0,0::\n",
    "class_dict.csv": "name,r,g,b\nroad,128,64,128\ntraffic light, 250,170, 30\nunknown,0,0,0\n",
    "CLASS_DICT_SEG.csv": "Name, Red, Green, Blue\nroad,128,64,128\ntraffic light,250,170,30\nunlabeled,0,0,0\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_colours_are_read_in_the_forms_in_use(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(TABLES[name], encoding="utf-8", newline="")
    table = read_class_table(path)
    assert table.names == ["road", "traffic light"]
    assert table.colours == table.palette == [(128, 64, 128), (250, 170, 30)]
    assert table.void == [(0, 0, 0)] and not table.others_are_void
    (told,) = table.void_names
    assert told.split()[0].lower() in VOID_NAMES


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("classes.txt", "road\n\n traffic light \n#3\nvoid\n", ["road", "traffic light", "#3", "void"]),
        ("classes.txt", "lane 1\nlane 2\n", ["lane 1", "lane 2"]),
        ("classes.txt", "3d object\n2d object\n", ["3d object", "2d object"]),
        ("classes.txt", "background\n1 euro\n2 euro\n", ["background", "1 euro", "2 euro"]),
        ("classes.txt", "1 cat\n2 big dog\n0 background\n", ["background", "cat", "big dog"]),
        ("classes.txt", "0: road\n1:car\n\n255: void\n", ["road", "car"]),
        ("classes.txt", "0: 1 euro\n1: 2 euro\n", ["1 euro", "2 euro"]),
        ("classes.txt", "0,road\r\n1,car\r\n", ["road", "car"]),
        ("classes.txt", "0\troad\n01\tcar\n", ["road", "car"]),
        ("classes.txt", "# my classes\nroad\ncar\n#\n", ["road", "car"]),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, crack\n", ["background", "crack"]),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:::\ncar:::\n", ["road", "car"]),
    ],
)
def test_lists_without_colours_are_names_of_numbers(tmp_path, name, content, names):
    (tmp_path / name).write_text(content)
    table = read_class_table(tmp_path / name)
    assert table.names == names and table.colours is None and isinstance(table.labels, IndexLabels)


def test_words_for_the_same_class_in_one_line(tmp_path):
    """ADE20K's names have commas; plain lines part them. In two lines they are a contradiction."""
    names = ["wall", "person, individual, someone", "bed"]
    groups = parse_groups("human = person, individual, someone\nrest = *\n", tmp_path / "g.txt")
    assert group_numbers(groups, names, "the data", 255) == [1, 0, 1]
    groups = parse_groups("human = person\nother = individual\nrest = *\n", tmp_path / "g.txt")
    with pytest.raises(
        UserError, match="'individual' is the class 'person, individual, someone', which is named already"
    ):
        group_numbers(groups, names, "the data", 255)
    groups = parse_groups("human = indivdual\nrest = *\n", tmp_path / "g.txt")
    with pytest.raises(
        UserError, match=r"\(did you mean 'person, .*'\?\), which has 'wall', 'person, individual, someone'"
    ):
        group_numbers(groups, names, "the data", 255)


@pytest.mark.parametrize(
    "names",
    [
        ["background", "zone 1 2 3"],
        ["zone 1 2 3", "area 4 5 6"],
        ["background", "other *"],
        ["a #ff0000", "b"],
        ["street, 12 30 40", "b"],
        ["a:b:c:d"],
        ["person, individual"],
        ["# x", "y"],
        ["1 a", "0 b"],
        ["# names alone", "3 a 1 2 3"],
        ["0: a 1 2 3", "# b"],
        ["sky", "3d object"],
    ],
)
def test_what_a_program_lists_is_read_as_the_same_names(tmp_path, names):
    (tmp_path / "classes.txt").write_text(class_list_text(names))
    table = read_class_table(tmp_path / "classes.txt")
    assert (table.names, table.colours, table.comments) == (names, None, [])
    assert read_class_names(tmp_path / "classes.txt") == names


def test_plain_names_are_listed_plainly():
    assert class_list_text(["sky", "traffic light"]) == "sky\ntraffic light\n"


def test_comments_in_a_list_of_names_are_said(tmp_path):
    for text, comments in (("# my classes\na\nb\n", ["# my classes"]), ("# x\na 1 1 1\nb 2 2 2\n", [])):
        (tmp_path / "classes.txt").write_text(text)
        table = read_class_table(tmp_path / "classes.txt")
        assert (table.names, table.comments) == (["a", "b"], comments)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nroad:::\ncar:::\n")
    assert read_class_table(tmp_path / "labelmap.txt").comments == []


@pytest.mark.parametrize(
    ("content", "colours"),
    [
        ("1 car 1 1 1\n0 road 2 2 2\n2 void 0 0 0\n", {"road": (2, 2, 2), "car": (1, 1, 1)}),
        ("3 series 1 1 1\n5 series 2 2 2\n", {"3 series": (1, 1, 1), "5 series": (2, 2, 2)}),
    ],
)
def test_numbers_before_colours(tmp_path, content, colours):
    (tmp_path / "classes.txt").write_text(content)
    table = read_class_table(tmp_path / "classes.txt")
    assert list(table.by_name.items()) == list(colours.items())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings_of_other_systems(tmp_path, encoding):
    """What has a mark is read; of what has none it is said what to do."""
    path = tmp_path / "classes.txt"
    path.write_text("Straße\nHäuser\n", encoding=encoding)
    if encoding in ("utf-16-le", "cp1252"):
        with pytest.raises(DataError, match=r"classes.txt: cannot be read: .* save the file as UTF-8"):
            read_class_table(path)
    else:
        assert read_class_table(path).names == ["Straße", "Häuser"]


def test_grey_values_may_be_given(tmp_path):
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n255, crack\n")
    table = read_class_table(tmp_path / "_classes.csv")
    assert table.colours == [(0, 0, 0), (255, 255, 255)]
    (tmp_path / "classes.txt").write_text("background 0 0 0\ncrack 255 255 255\nvoid *\n")
    table = read_class_table(tmp_path / "classes.txt")
    assert table.others_are_void and table.names == ["background", "crack"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", "a 0 0 0\nb\n", r"line 2: no colour in 'b'.*`name r g b`"),
        ("classes.txt", "a 0 0 0\nb 0 0 0\n", r"line 2: 'b' has the colour of 'a' in line 1"),
        ("classes.txt", "a 0 0 0\na 1 2 3\n", "'a' stands there more than once"),
        ("classes.txt", "a 0 0 0\nb 256 0 0\n", r"line 2: colour 256 0 0"),
        ("classes.txt", "a 0 0 0\nb *\n", r"line 2: .*`void \*`"),
        ("classes.txt", "void 0 0 0\n", "0 class names"),
        ("classes.txt", "1: cat\n2: dog\n", "they begin with 1: number from 0, as masks do"),
        ("classes.txt", "1 euro\n2 euro\n", "they begin with 1: number from 0.* names: `0: 1 euro`"),
        ("classes.txt", "0 bg\n1 cat\n3 dog\n", "2 is missing"),
        ("classes.txt", "0 bg\n1 cat\n1 dog\n", "1 stands there more than once"),
        ("classes.txt", "0 bg\n1 cat\n2 cat\n", "class name 'cat' stands there more than once"),
        ("classes.txt", "background,cat,dog\n", "one a line"),
        ("class_dict.csv", "name,r,g,b\na,1,2\n", r"line 2: .* is no colour"),
        ("class_dict.csv", "id,colour\na,1\n", r"columns are id, colour; wanted are name,r,g,b"),
        ("class_dict.csv", "", "columns are none"),
        ("labelmap.txt", "a:1,2::\n", r"line 1: '1 2' is no colour"),
        ("labelmap.txt", "a:1,2,3::\nb:::\n", r"line 2: 'b' has no colour"),
    ],
)
def test_faulty_tables_are_one_line_with_its_number(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_class_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        ("a\nb\n", "b 1 1 1\na 2 2 2\n", (["a", "b"], [(2, 2, 2), (1, 1, 1)])),
        ("a 1 1 1\nb 2 2 2\n", "b\na\n", (["a", "b"], [(1, 1, 1), (2, 2, 2)])),
        ("a\nb\n", "a\nb\n", (["a", "b"], None)),
        ("a\nb\n", "a\nc\n", "name other classes: in the first alone b; in the second alone c"),
        ("a\nb\n", "b\na\n", "have the classes in another order"),
        ("a 1 1 1\nb 2 2 2\n", "a 2 2 2\nb 1 1 1\n", "give other colours to the same classes"),
    ],
)
def test_two_class_lists_agree_or_are_refused(tmp_path, first, second, result):
    tables = []
    for name, content in (("classes.txt", first), ("label_colors.txt", second)):
        (tmp_path / name).write_text(content)
        tables.append(read_class_table(tmp_path / name))
    if isinstance(result, str):
        with pytest.raises(DataError, match=result) as caught:
            choose_table(tables)
        assert "classes.txt and label_colors.txt" in str(caught.value) and "--classes" in str(caught.value)
    else:
        chosen = choose_table(tables)
        assert (chosen.names, chosen.colours) == result


# -- merged classes ----------------------------------------------------------------------------------

NAMES = ["background", "cat", "dog", "traffic_light", "bus"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("animal = cat, dog\nthing = bus, traffic_light, background", [1, 0, 0, 1, 1]),
        ("animal = Cats, dogs # both\nrest = *\n", [1, 0, 0, 1, 1]),
        ('# or: animal = ["cat", "dog"]\nanimal = cat, dog\nrest = *', [1, 0, 0, 1, 1]),
        ("animal=cat,dog\n\n# more\nvehicle = Buses\nignore = *", [255, 0, 0, 255, 1]),
        ("ignore = background\nlight = Traffic Lights\nrest = *", [255, 1, 1, 0, 1]),
        ("light = traffic-light\nanimal = *\nignore = bus, background", [255, 1, 1, 0, 255]),
        ('animal = ["cat", "dog"]\n"the rest" = ["*"]', [1, 0, 0, 1, 1]),
        ('animal = [\n  "cat",\n  "dog",\n]\nignore = ["background"]\nrest = "*"', [255, 0, 0, 1, 1]),
    ],
)
def test_groups_by_hand(text, numbers):
    assert is_groups(text)
    assert group_numbers(parse_groups(text, Path("groups")), NAMES, "the data", 255) == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("animal = cat, horse\nrest = *", "'horse' is no class of the data, which has background, cat.*cat, horse"),
        ("animal = cat, dog", "nothing is said of background, traffic_light, bus"),
        ("animal = cat, cat\nrest = *", "'cat' stands there more than once"),
        ("animal = cat, hrose\nhorse = dog", r"'hrose' is no class of the data, which has"),
        ("animal = cta, dog\nrest = *", r"'cta' is no class of the data \(did you mean 'cat'\?\), which has"),
        ("animal = cat\npet = cats\nrest = *", "'cats' is the class 'cat', which is named already"),
        ("animal = cat\nanimal = dog", "line 2: 'animal' stands there more than once"),
        ("animal = cat\ndog", "line 2: 'dog'; wanted is `animal = cat, dog`"),
        ("animal =\nrest = *", "'animal' has no classes"),
        ("ignore = cat", "no classes"),
        ("all = background, cat, dog, bus, traffic_light\nrest = *", "'rest' is all the rest, and nothing is left"),
        ('animal = ["cat", 3]', "wanted is a list of class names"),
        ('animal = ["cat"', "not a TOML file"),
        ('[animal]\nof = ["cat"]', "wanted is a list of class names"),
    ],
)
def test_groups_that_do_not_fit_are_refused(text, message):
    with pytest.raises(UserError, match=message) as caught:
        group_numbers(parse_groups(text, Path("groups")), NAMES, "the data", 255)
    assert "groups" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "names", "found"),
    [
        ("cat", ["Cat", "cat"], "cat"),
        ("CAT", ["Cat", "cat"], None),
        ("cats", ["cat", "catss"], None),
        ("Cats", ["cat", "cats"], "cats"),
        ("berries", ["berry"], "berry"),
        ("bus", ["buses"], "buses"),
        ("glass", ["glasses"], "glasses"),
        ("s", ["a"], None),
        ("potted plant", ["pottedplant"], "pottedplant"),
    ],
)
def test_names_are_found_exactly_first(written, names, found):
    assert find_name(written, names) == found


def test_a_name_that_could_be_two_is_not_called_unknown():
    with pytest.raises(UserError, match=r"line 1: 'CAT' may be 'Cat' or 'cat' of the data$"):
        group_numbers(parse_groups("pet = CAT\nrest = *", Path("groups")), ["Cat", "cat"], "the data", 255)


def test_a_list_of_classes_is_no_file_of_groups():
    assert not is_groups("background\nroad tile\n# a = b\n")


def test_merged_labels_by_hand(tmp_path):
    stored = RNG.choice([0, 1, 2, 255], (6, 7)).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "mask.png")
    merged = MergedLabels(IndexLabels(), (1, 255, 0)).read(tmp_path / "mask.png")
    assert merged.tolist() == [[{0: 1, 1: 255, 2: 0, 255: 255}[int(value)] for value in row] for row in stored]
    with pytest.raises(DataError, match="labels 2 are neither a class"):
        MergedLabels(IndexLabels(), (0, 0)).read(tmp_path / "mask.png")


# -- --classes ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "d"
    for number in range(4):
        for place, pixels in (("images", RNG.integers(0, 9, (8, 8, 3))), ("masks", RNG.integers(0, 3, (8, 8)))):
            (root / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / place / f"{number}.png")
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    return root


def stored(root: Path, data, index: int) -> np.ndarray:
    return np.asarray(Image.open(root / "masks" / f"{data.ids[index]}.png"))


def test_classes_are_merged_dropped_and_reordered(folder, tmp_path):
    for text, names, numbers in (
        ("animal = cats, dogs\nbackground = background", ["animal", "background"], [1, 0, 0]),
        ("dog = dog\nignore = *", ["dog"], [255, 255, 0]),
        ("dog\nbackground\ncat", ["dog", "background", "cat"], [1, 2, 0]),
        ("background 9 9 9\ncat 1 1 1\ndog 2 2 2", ["background", "cat", "dog"], None),
    ):
        (tmp_path / "given").write_text(text)
        data = build_dataset("folder", folder, "train", classes=tmp_path / "given")
        assert data.class_names == names and len(set(data.palette)) == len(names)
        if numbers:
            expected = np.array(numbers)[stored(folder, data, 0)]
            assert np.array_equal(data[0]["mask"].numpy(), expected)
        else:
            with pytest.raises(DataError, match="given does not name"):
                data[0]


def test_colours_after_an_equals_sign_are_no_groups(folder, tmp_path):
    """What is read as classes.txt is read as the file of --classes, too."""
    (tmp_path / "given").write_text("cat = 1 1 1\nbackground = 0 0 0\ndog = #020202\n")
    layout = find_layout("folder", folder, classes=tmp_path / "given")
    assert layout.class_names == ["cat", "background", "dog"] and layout.palette[2] == (2, 2, 2)
    assert layout.read_labels(folder / "masks/0.png").tolist() == [
        [{0: 1, 1: 0, 2: 2}[value] for value in row] for row in np.asarray(Image.open(folder / "masks/0.png")).tolist()
    ]


def test_a_table_of_something_else_is_a_remark_beside_a_class_list(folder):
    (folder / "classes.csv").write_text("id,name\n0,background\n")
    layout = find_layout("folder", folder)
    assert layout.class_names == ["background", "cat", "dog"]
    assert any("classes.csv, line 1: the columns are id, name" in remark for remark in layout.remarks)
    (folder / "classes.txt").rename(folder / "given")
    with pytest.raises(DataError, match="the columns are id, name"):
        find_layout("folder", folder)
    assert find_layout("folder", folder, classes=folder / "given").class_names == ["background", "cat", "dog"]


def test_masks_of_one_bit_are_described_in_numbers(tmp_path):
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "a.png")
    assert describe_content([tmp_path / "a.png"]) == "the first masks hold the numbers 0, 1"


def test_a_class_list_for_data_that_bring_none(folder, tmp_path):
    (folder / "classes.txt").rename(tmp_path / "list")
    with pytest.raises(DataError, match=r"classes\.txt: no such file"):
        find_layout("folder", folder)
    assert find_layout("folder", folder, classes=tmp_path / "list").class_names == ["background", "cat", "dog"]
    (tmp_path / "groups").write_text("animal = cat, dog\nrest = *")
    with pytest.raises(DataError, match=r"classes\.txt: no such file.*groups says which of these belong together"):
        find_layout("folder", folder, classes=tmp_path / "groups")
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        find_layout("folder", folder, classes=tmp_path / "nowhere")


def test_contradicting_lists_stop_until_one_is_named(folder):
    (folder / "labelmap.txt").write_text("background:0,0,0::\ncow:1,1,1::\ndog:2,2,2::\n")
    with pytest.raises(DataError, match=r"classes\.txt and labelmap\.txt name other classes.*cat.*cow"):
        find_layout("folder", folder)
    layout = find_layout("folder", folder, classes=folder / "labelmap.txt")
    assert layout.class_names == ["background", "cow", "dog"]


def test_other_names_are_refused_with_both_lists(folder, tmp_path):
    (tmp_path / "list").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=r"in the first alone a, b, c; in the second alone background, cat, dog"):
        find_layout("folder", folder, classes=tmp_path / "list")


def test_voc_says_that_a_class_list_beside_it_is_not_read(folder):
    (folder / "images").rename(folder / "JPEGImages")
    (folder / "masks").rename(folder / "SegmentationClass")
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/train.txt").write_text("0\n1\n")
    (remark,) = find_layout("voc", folder).remarks
    assert "classes.txt" in remark and "--dataset folder" in remark and "21" in remark


def test_what_was_made_of_labels_is_not_taken_for_another_meaning(folder, tmp_path):
    """The decoded cache's name is made of these: equal for equal meanings, and as ever for plain numbers."""
    sources = []
    for text in ("", "animal = cat, dog\nrest = *", "animal = cat\nrest = *", "background 0 0 0\ncat 1 1 1\ndog 2 2 2"):
        (tmp_path / "given").write_text(text)
        layout = find_layout("folder", folder, classes=tmp_path / "given" if text else None)
        sources.append(describe_sources(layout, layout.files("train")))
    assert all(len(each) == 3 for each in sources[0])  # name, size, time
    assert len({str(each) for each in sources}) == 4 and all(each[: len(sources[0])] == sources[0] for each in sources)


# -- Cityscapes --------------------------------------------------------------------------------------


def write_cityscapes(root: Path, endings: tuple[str, ...]) -> Path:
    for split, cities in (("train", ("aachen", "bochum")), ("val", ("lindau",)), ("test", ("berlin",))):
        for city in cities:
            for kind in ("leftImg8bit", "gtFine"):
                (root / kind / split / city).mkdir(parents=True, exist_ok=True)
            name = f"{city}_000000_000019"
            image = Image.fromarray(RNG.integers(0, 9, (10, 35, 3)).astype(np.uint8))
            image.save(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
            numbers = np.tile(np.append(np.arange(34), 255).astype(np.uint8), (10, 1))  # every number there is
            for ending in (*endings, "instanceIds", "color"):
                stored = numbers % 19 if ending == "labelTrainIds" else numbers
                Image.fromarray(stored).save(root / f"gtFine/{split}/{city}/{name}_gtFine_{ending}.png")
    (root / "gtCoarse" / "train").mkdir(parents=True)
    return root


@pytest.mark.parametrize("place", ["cityscapes", "Cityscapes", "."])
def test_cityscapes_has_19_of_34_classes(tmp_path, place):
    root = write_cityscapes(tmp_path / place, ("labelIds", "labelTrainIds"))
    layout = find_layout("cityscapes", tmp_path)
    assert layout.splits() == ["train", "val", "test"] and len(layout.class_names) == 19
    train, val, test = (build_dataset("cityscapes", tmp_path, split) for split in layout.splits())
    assert (len(train), len(val), len(test)) == (2, 1, 1) and not test.has_masks
    assert train.image_path(1).name == "bochum_000000_000019_leftImg8bit.png" and train.root == root
    # The ids that are scored, as the benchmark's helpers/labels.py has them.
    scored = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = [scored.index(number) if number in scored else 255 for number in (*range(34), 255)]
    assert train[0]["mask"][0].tolist() == expected
    assert train.class_names[0] == "road" and train.class_names[13] == "car" and train.palette[13] == (0, 0, 142)
    assert len(set(train.palette)) == 19 and [number for _, _, number in CITYSCAPES] == scored


def test_cityscapes_with_masks_of_19_classes_alone(tmp_path):
    write_cityscapes(tmp_path / "cityscapes", ("labelTrainIds",))
    assert build_dataset("cityscapes", tmp_path, "val")[0]["mask"][0, :20].tolist() == [*range(19), 0]


def test_cityscapes_in_the_folders_of_its_archives(tmp_path):
    made = write_cityscapes(tmp_path / "made", ("labelIds",))
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "cityscapes" / f"{kind}_trainvaltest").mkdir(parents=True)
        (made / kind).rename(tmp_path / "cityscapes" / f"{kind}_trainvaltest" / kind)
    assert len(build_dataset("cityscapes", tmp_path, "train")) == 2


def test_cityscapes_may_be_merged_and_its_absence_says_what_to_get(tmp_path):
    (tmp_path / "groups").write_text("person = person, rider\nrest = *\n")
    with pytest.raises(UserError, match=r"gtFine_trainvaltest\.zip.*--data-dir"):
        find_layout("cityscapes", tmp_path)
    write_cityscapes(tmp_path, ("labelIds",))
    mask = build_dataset("cityscapes", tmp_path, "val", classes=tmp_path / "groups")[0]["mask"][0].tolist()
    assert (mask[24], mask[25], mask[26], mask[9]) == (0, 0, 1, 255)
