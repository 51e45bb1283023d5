"""Which of a teacher's classes mean a class of the data: names, files, the maps that come along, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from basics.errors import UserError
from basics.toml_file import parse_toml
from kd.class_map import ClassMap
from kd.class_matching import BUILT_IN, known_list, match_classes, read_groups
from networks.class_lists import CITYSCAPES, VOC, ade20k
from networks.class_names import list_classes
from segdata.class_groups import REST, find_name, shown
from tests.conftest import ROOT

TEACHER = [
    "wall",
    "person, individual, someone",
    "Traffic_Light",
    "cats",
    "dog",
    "bed ",
    "step, stair",
    "stairs, steps",
]
COCO = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip
# The panoptic list goes on with stuff; these are some of its 53.
PANOPTIC = [*COCO, "table-merged", "tree-merged", "grass-merged", *(f"stuff {number}" for number in range(50))]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def match(student, teacher=TEACHER, given=None) -> ClassMap:
    class_map, _ = match_classes(student, teacher, "net", "mine", given)
    assert class_map is not None
    return class_map


def by_file(text, student=("background", "animal", "light"), teacher=TEACHER) -> ClassMap:
    Path("map.toml").write_text(text, encoding="utf-8")
    return match(list(student), teacher, "map.toml")


# -- by name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("person", TEACHER[1]),
        ("Someone", TEACHER[1]),
        ("people", None),
        ("traffic-lights", "Traffic_Light"),
        ("CAT", "cats"),
        ("bed", "bed "),
        ("step", TEACHER[6]),  # the first word of one, the plural of a further one of the other
        ("steps", TEACHER[7]),
        ("stair", TEACHER[6]),
        ("stairs", TEACHER[7]),
    ],
)
def test_names(name, meant):
    assert find_name(name, TEACHER) == meant


def test_matched_by_name():
    class_map = match(["Dogs", "persons", "wall"])
    assert class_map.meaning == (2, 1, -1, -1, 0, -1, -1, -1)
    assert class_map.known == (0, 1, 2) and class_map.unknown == []
    assert class_map.unheard == ["Traffic_Light", "cats", "bed ", "step, stair", "stairs, steps"]


def test_the_same_list_needs_no_map():
    assert match_classes(["a b", "C"], ["A_B", "c "], "net", "mine")[0] is None
    assert match(["b", "a"], ["a", "b"]).meaning == (1, 0)


def test_two_teacher_classes_of_one_name_are_one():
    assert match(["x", "y"], ["x", "y", "x"]).meaning == (0, 1, 0)


def test_what_does_not_match_is_refused_with_a_file_to_fill_in():
    with pytest.raises(UserError) as caught:
        match(["background", "potted plant", "dog", "individuals", "person"])
    said = str(caught.value)
    assert "\n" not in said
    assert "net has 8 classes ('wall', " in said and "mine has 5 classes (background, potted plant, dog, ...)" in said
    # One class of the teacher's cannot be two.
    assert "means 'background', 'potted plant', 'individuals', 'person';" in said
    path = Path("class_map_net_mine.toml")
    assert f"--class-map {path}" in said
    text = path.read_text(encoding="utf-8")
    assert parse_toml(text, path) == {
        "background": [REST], "potted plant": [], "dog": ["dog"], "individuals": [], "person": [], "ignore": []
    }  # fmt: skip
    assert all(f'"{name}"' in text for name in TEACHER)
    # Filled in, it does.
    path.write_text(text.replace("person = []", 'person = ["person, individual, someone"]'), encoding="utf-8")
    filled = match(["background", "potted plant", "dog", "individuals", "person"], given=str(path))
    assert filled.groups["person"] == [TEACHER[1]] and filled.unknown == ["potted plant", "individuals"]
    assert filled.groups["background"] == [name for name in TEACHER if name not in ("dog", TEACHER[1])]


def test_what_a_person_has_filled_in_stays():
    student = ["background", "dog"]
    path = Path("class_map_net_mine.toml")
    with pytest.raises(UserError, match=path.name):
        match(student)
    mine = path.read_text().replace('["*"]', '["wall"]')
    path.write_text(mine)
    with pytest.raises(UserError, match=path.name):
        match(student)
    assert path.read_text() == mine
    with pytest.raises(UserError, match=r"class_map_net_mine_2\.toml"):  # other classes: another file
        match(["background", "cow"])
    assert path.read_text() == mine


def test_a_folder_that_cannot_be_written_hides_nothing(monkeypatch):
    def refuse(*args):
        raise UserError("cannot write")

    monkeypatch.setattr("kd.class_matching.write_text", refuse)
    with pytest.raises(UserError, match=r"means 'cow'; write a file of lines"):
        match(["dog", "cow"])


# -- by file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ('background = ["*"]\nanimal = ["cats", "dog"]\nlight = ["traffic light"]', (0, 0, 2, 1, 1, 0, 0, 0)),
        ('light = ["traffic light"]\nanimal = ["cat"]', (-1, -1, 2, 1, -1, -1, -1, -1)),
        ('Animals = "dog"\nbackground = ["*"]\nlight = []\nignore = ["person", "bed"]', (0, -1, 0, 0, 1, -1, 0, 0)),
        ("background = *\nanimal = cat, dogs  # both\nlight =", (0, 0, 0, 1, 1, 0, 0, 0)),
        ('background = ["wall"]\nanimal = ["dog"]\nignore = ["*"]', (0, -1, -1, -1, 1, -1, -1, -1)),
    ],
)
def test_files_by_hand(text, meaning):
    assert by_file(text).meaning == meaning


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'animal = ["dog"]\nlight = [\n  "lamp",\n]',
            r"map.toml, line 3: 'lamp' is no class of the teacher net, which",
        ),
        (
            'animal = ["dog"]\nbeast = ["cats"]',
            r"map.toml, line 2: 'beast' is no class of the data set mine, which has",
        ),
        ('animal = ["dog"]\nlight = ["wall", "dog"]', r"map.toml, line 2: 'dog' stands there more than once"),
        ('animal = ["dog"]\nlight = ["wall", "Dogs"]', r"map.toml, line 2: 'Dogs' is the class 'dog', which is named"),
        ('animal = ["dog"]\nAnimals = ["cat"]', r"map.toml, line 2: 'Animals' is the class 'animal', which has a line"),
        ("animal = []\nlight = []", r"map.toml: none of the classes of the teacher net is named"),
        ('background = ["*"]', r"map.toml: all that the teacher net says means 'background': that teaches nothing"),
        ('ignore = ["dog"]', r"map.toml: no classes"),
        ("", r"map.toml: no classes"),
        ('animal = [dog"]\nlight = []', r"map.toml: not a TOML file \(.*line 1"),
        ("animal = dog\nlight", r"map.toml, line 2: 'light'; wanted is"),
        ('animal = ["dog"]\nanimal = ["cat"]\nlight = []', r"map.toml: not a TOML file \(.*line 2"),
        ('animal = ["dog", 3]', r"map.toml: animal = .*wanted is a list of class names"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_that_names_the_place(text, message):
    with pytest.raises(UserError, match=message) as caught:
        by_file(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'animal = ["dgo"]\nlight = []',
            r"line 1: 'dgo' is no class of the teacher net \(did you mean 'dog'\?\), which has",
        ),
        (
            'animl = ["dog"]\nlight = []',
            r"'animl' is no class of the data set mine \(did you mean 'animal'\?\), which has",
        ),
        ('animal = ["persn"]', r"did you mean 'person, individual'"),
        (
            'animal = ["dog"]\ntraffic light = ["wall"]',
            r"map.toml, line 2: .* wants quotes in TOML: \"traffic light\" = \[",
        ),
        ('animal = ["dog"]\nköder = []', r"line 2: .* wants quotes in TOML: \"köder\" = \["),
        ('animal = ["dog"]\na.b = ["wall"]', r"line 2: .* wants quotes in TOML: \"a.b\" = \["),
    ],
)
def test_slips_of_the_pen_are_told_the_remedy(text, message):
    with pytest.raises(UserError, match=message) as caught:
        by_file(text, teacher=["wall", "dog", "person, individual"])
    assert "\n" not in str(caught.value)


def test_names_with_commas_are_quoted_in_lists():
    assert shown(["a", "b c"]) == "a, b c" and shown(["a", "b, c"]) == "'a', 'b, c'"
    assert list_classes(["a", "b, c"]) == "2 classes ('a', 'b, c')" and list_classes(["a", "b"]) == "2 classes (a, b)"
    with pytest.raises(UserError, match=r"which has 'wall', 'person, individual';"):
        by_file('animal = ["zebra"]', teacher=["wall", "person, individual"])


def test_no_such_file():
    with pytest.raises(UserError, match=r"--class-map nowhere.toml: .*ade20k_voc, cityscapes_voc, coco_voc"):
        match(["a"], given="nowhere.toml")


def test_classes_without_names_go_by_their_numbers():
    class_map = by_file('animal = ["3", "12"]\nlight = ["0"]', teacher=[str(number) for number in range(15)])
    assert class_map.groups == {"background": [], "animal": ["3", "12"], "light": ["0"]}


def test_python_3_10_needs_no_package_for_the_maps_that_come_along(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setitem(sys.modules, "tomli", None)
    assert all(read_groups(name).names for name in BUILT_IN)


# -- the maps that come along ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_class_of_voc_has_its_line(name):
    groups = read_groups(name)
    assert groups.names == list(VOC) and groups.members["background"] == [REST]


def test_ade20k_to_voc():
    names = list(ade20k())
    class_map, how = match_classes(list(VOC), names, "net", "voc")
    assert "ade20k_voc" in how
    assert class_map is not None and class_map.student_names == tuple(VOC)
    means = {name: place for name, place in zip(names, class_map.meaning, strict=True)}
    expected = {
        "airplane": "aeroplane", "van": "car", "ship": "boat", "armchair": "chair", "minibike": "motorbike",
        "television receiver": "tvmonitor", "crt screen": "tvmonitor", "table": "diningtable", "wall": "background",
        "truck": "background", "coffee table": "background", "bench": "background",
    }  # fmt: skip
    assert {name: VOC[means[name]] for name in expected} == expected
    assert class_map.unheard == ["plant", "seat", "cushion", "flower", "computer", "pot", "animal", "screen"]
    assert class_map.unknown == ["bird", "cat", "cow", "dog", "horse", "pottedplant", "sheep", "train"]


def test_other_words_for_the_same_classes():
    """As detectron2's list has them, from which Mask2Former's and others' come."""
    other = {
        "airplane": "plane", "television receiver": "tv", "minibike": "minibike, motorbike", "bathtub": "tub",
        "sidewalk": "sidewalk, pavement", "plaything": "plaything, toy", "swimming pool": "pool",
        "toilet": "toilet, can, commode, crapper, pot, potty, stool, throne", "streetlight": "street lamp",
        "screen door": "screen door, screen", "blind": "blind, screen", "apparel": "clothes", "waterfall": "falls",
    }  # fmt: skip
    class_map = match(list(VOC), [other.get(name, name) for name in ade20k()])
    assert class_map.meaning == match(list(VOC), list(ade20k())).meaning


def test_coco_and_cityscapes_to_voc():
    class_map = match(list(VOC), PANOPTIC)
    assert class_map.unknown == [] and class_map.unheard == ["tie", "table-merged"]
    assert class_map.groups["sofa"] == ["couch"] and class_map.groups["tvmonitor"] == ["tv"]
    assert {"truck", "laptop", "zebra", "tree-merged"} <= set(class_map.groups["background"])
    streets = match(list(VOC), [name for name, _, _ in CITYSCAPES])
    assert streets.groups["person"] == ["person", "rider"] and streets.unheard == []
    assert {"road", "truck", "sky"} <= set(streets.groups["background"]) and "dog" in streets.unknown


def test_what_is_no_published_list_is_not_taken_for_one():
    """All the rest is background in these lists alone: in a longer one it may be a dog."""
    assert known_list([*ade20k(), *(f"class {number}" for number in range(700))]) is None
    assert known_list(list(ade20k())[:100]) is None and known_list(list(VOC)) is None
    assert known_list(COCO) == known_list(PANOPTIC) == "coco_voc"
    assert known_list([name for name in COCO if name != "sheep"]) is None
    with pytest.raises(UserError, match="no name there means"):
        match(["background", "car", "dog"], list(ade20k()))


def test_a_map_for_data_with_fewer_classes():
    """What such data lack is no background of theirs: nobody knows what they made of it."""
    class_map = match(["background", "person", "dog"], PANOPTIC, "coco_voc")
    assert class_map.known == (0, 1, 2) and {"cat", "car", "tie"} <= set(class_map.unheard)


def test_the_map_that_the_page_shows_fits_ade20k(tmp_path):
    """The example is for the teacher of the commands around it."""
    page = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "map.toml").write_text(text, encoding="utf-8")
    names = read_groups(str(tmp_path / "map.toml")).names
    class_map, _ = match_classes(names, list(ade20k()), "net", "mine", str(tmp_path / "map.toml"))
    assert class_map is not None and class_map.unknown == ["road kerb"]
    assert class_map.groups["vehicle"] == ["car", "bus", "truck"] and len(class_map.groups["background"]) > 100
