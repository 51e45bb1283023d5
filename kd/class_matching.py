"""Which of a teacher's classes mean a class of the data: by their names, by a file, or by a map that comes along.

    class_map, how = match_classes(dataset.class_names, teacher.class_names, "segformer", "demo", given="classes.toml")

The file is one of groups (`segdata.class_groups`), the data's classes standing before the ``=``:

    background = ["*"]              # all that is named nowhere else
    animal = ["cat", "dog"]
    "potted plant" = []             # the teacher does not know it
    ignore = ["plant, flora"]       # neither a class nor the rest

What is named nowhere means nothing here. `BUILT_IN` maps are of the same form, in ``class_maps/``. Where the names do
not do, a file to fill in is written into the current folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from basics.errors import UserError
from basics.files import read_text, write_text
from kd.class_map import ClassMap
from networks.class_lists import CITYSCAPES, VOC, ade20k, same_names
from networks.class_names import list_classes
from segdata.class_groups import IGNORE, REST, ClassGroups, assign, find_name, meant, parse_groups, shown

BUILT_IN = {path.stem: path for path in sorted(Path(__file__).with_name("class_maps").glob("*.txt"))}
ADE20K_SHARE = 0.85  # of the names that a list of ADE20K's has in common with any other: some have other words
KEY = re.compile(r"\s*([^\"'#\[=][^=#]*?)\s*=\s*[\[\"']")  # of a line of TOML, without quotes
COCO_CLASSES = range(80, 184)  # things alone; with stuff merged, kept apart, or with its unused numbers
CITYSCAPES_CLASSES = range(19, 36)  # those that are scored, or all


def match_classes(
    student_names: Sequence[str], teacher_names: Sequence[str], teacher: str, data: str, given: str | None = None
) -> tuple[ClassMap | None, str]:
    """The map from a teacher's classes to those of the data, and how it was found, in words.

    Args:
        teacher, data: names of the teacher and of the data set, for messages.
        given: a file, or one of `BUILT_IN`; None looks at the names.

    Returns:
        None for two lists that are the same but for case, blanks and underscores.

    Raises:
        UserError: the names do not say it, and no file does; or the file does not fit.
    """
    if given is not None:
        groups = read_groups(given)
        return _by_file(groups, student_names, teacher_names, teacher, data, lenient=given in BUILT_IN), f"by {given}"
    if same_names(student_names, teacher_names):
        return None, "the same names"
    if same_names(student_names, VOC) and (name := known_list(teacher_names)):
        groups = read_groups(name)
        how = f"by the map {name}, which comes along"
        return _by_file(groups, student_names, teacher_names, teacher, data, lenient=True), how
    return _by_name(student_names, teacher_names, teacher, data), "by name"


def map_file(given: str) -> Path:
    """The file of --class-map, which may be one of `BUILT_IN`."""
    return BUILT_IN.get(given, Path(given))


def read_groups(given: str) -> ClassGroups:
    """The groups of a file, or of one of `BUILT_IN`.

    Raises:
        UserError: there is none, or it is malformed.
    """
    path = map_file(given)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"--class-map {given}: cannot be read: {reason}; give a file, or one of {', '.join(BUILT_IN)}"
        ) from None
    try:
        return parse_groups(text, path, allow_empty=True)
    except UserError as error:
        for number, line in enumerate(text.splitlines(), start=1):
            if (found := KEY.match(line)) and _key(found[1]) != found[1]:
                raise UserError(
                    f"{path}, line {number}: a name with blanks or other signs wants quotes in TOML: "
                    f'{_quoted(found[1])} = ["..."]'
                ) from error
        raise


def known_list(teacher_names: Sequence[str]) -> str | None:
    """The built-in map for a teacher whose classes are a published list; None if they are no such list.

    A map says that all the rest is background, which is true of these lists alone.
    """
    count, names = len(teacher_names), ade20k()
    found = sum(find_name(name, teacher_names) is not None for name in names)
    if count in (len(names), len(names) + 1) and found >= ADE20K_SHARE * len(names):
        return "ade20k_voc"
    wanted = {
        "coco_voc": (COCO_CLASSES, [name for names in read_groups("coco_voc").members.values() for name in names]),
        "cityscapes_voc": (CITYSCAPES_CLASSES, [name for name, _, _ in CITYSCAPES]),
    }
    for known, (counts, named) in wanted.items():
        if count in counts and all(find_name(name, teacher_names) for name in named if name != REST):
            return known
    return None


# -- by a file -----------------------------------------------------------------------------------------


def _by_file(
    groups: ClassGroups,
    student_names: Sequence[str],
    teacher_names: Sequence[str],
    teacher: str,
    data: str,
    *,
    lenient: bool,
) -> ClassMap:
    """The map that a file says; ``lenient``: what is in neither list is passed over, as lists differ in words."""
    if lenient:
        groups = _that_is_there(groups, student_names, teacher_names)
    class_of: dict[str, str] = {}
    for key in groups.names:
        name = find_name(key, student_names)
        if name is None:
            place = groups.place(key, new=True)
            raise UserError(
                f"{place}: {key!r} is no class of the data set {data}{meant(key, student_names)}, which has "
                f"{shown(student_names)}"
            )
        if name in class_of.values():
            raise UserError(f"{groups.place(key, new=True)}: {key!r} is the class {name!r}, which has a line already")
        class_of[key] = name
    key_of, rest = assign(groups, teacher_names, f"the teacher {teacher}")
    members: dict[str, list[str]] = {name: [] for name in class_of.values()}
    for name in dict.fromkeys(teacher_names):
        key = key_of.get(name, rest or IGNORE)
        if key in class_of:
            members[class_of[key]].append(name)
    class_map = ClassMap.by_groups(student_names, teacher_names, members)
    if len(class_map.known) < min(2, len(student_names)):
        says = f"all that the teacher {teacher} says means {class_map.known and student_names[class_map.known[0]]!r}"
        nothing = f"none of the classes of the teacher {teacher} is named"
        raise UserError(
            f"{groups.path}: {says if class_map.known else nothing}: that teaches nothing; wanted are lines such as "
            f'{_key(student_names[-1])} = ["{teacher_names[0]}"]'
        )
    return class_map


def _that_is_there(groups: ClassGroups, student_names: Sequence[str], teacher_names: Sequence[str]) -> ClassGroups:
    """The groups without names that a teacher lacks; groups that the data lack are ignored.

    What the data lack may be in any other class of theirs: it must not fall to the rest.
    """
    there = {key: _that_has(names, teacher_names) for key, names in groups.members.items()}
    foreign = [key for key in there if find_name(key, student_names) is None]
    ignored = [*_that_has(groups.ignored, teacher_names), *(name for key in foreign for name in there[key])]
    members = {key: names for key, names in there.items() if key not in foreign}
    return ClassGroups(groups.path, members, [name for name in ignored if name != REST], groups.text)


def _that_has(written: Sequence[str], teacher_names: Sequence[str]) -> list[str]:
    """The teacher's classes that the ``written`` names mean, each once; `REST` stays."""
    found = [name if name == REST else find_name(name, teacher_names) for name in written]
    return [name for name in dict.fromkeys(found) if name is not None]


# -- by name -------------------------------------------------------------------------------------------


def _by_name(student_names: Sequence[str], teacher_names: Sequence[str], teacher: str, data: str) -> ClassMap:
    """Each class of the data is the one of the teacher's that has its name."""
    found = {name: find_name(name, teacher_names) for name in student_names}
    taken = list(found.values())
    groups = {name: [match] for name, match in found.items() if match is not None and taken.count(match) == 1}
    missing = [name for name in student_names if name not in groups]
    if not missing:
        return ClassMap.by_groups(student_names, teacher_names, groups)
    theirs, ours = list_classes(teacher_names), list_classes(student_names)
    path = _write_form(groups, student_names, teacher_names, teacher, data)
    way_on = (
        f"say in {path}, which was written for you, what they mean, and pass --class-map {path}"
        if path
        else "write a file of lines such as `animal = cat, dog` (docs/teachers.md), and pass it by --class-map FILE"
    )
    raise UserError(
        f"the teacher {teacher} has {theirs}, the data set {data} has {ours}: no name there means "
        f"{shown(repr(name) for name in missing)}; {way_on}"
    )


def _write_form(
    groups: dict[str, list[str]], student_names: Sequence[str], teacher_names: Sequence[str], teacher: str, data: str
) -> Path | None:
    """A file to fill in, in the current folder; what a person has filled in stays. None: it cannot be written."""
    stem = re.sub(r"[^\w.+-]+", "_", f"class_map_{teacher}_{data}")
    head, tail = _explanation(teacher, data), _list_of_names(teacher_names, teacher)
    lines = [head, *(_form_line(name, groups.get(name)) for name in student_names), f"{IGNORE} = []", "", tail]
    text = "\n".join(lines)
    for number in range(1, 100):
        path = Path(f"{stem}.toml" if number == 1 else f"{stem}_{number}.toml")
        try:
            if path.is_file():
                there = path.read_text(encoding="utf-8")
                if head in there and tail in there and all(f"{_key(name)} =" in there for name in student_names):
                    return path
                continue
            write_text(path, text)
        except (OSError, ValueError, UserError):
            return None
        return path
    return None


def _explanation(teacher: str, data: str) -> str:
    return "\n".join(
        [
            f"# What the classes of the teacher {teacher} mean in the data set {data}: give this file by --class-map.",
            "# A class takes the teacher's classes in its list; [] says that the teacher does not know it.",
            f'# "{REST}" stands for all that is named nowhere else, but for what `{IGNORE}` lists.',
            "# Where the teacher says a class that is named nowhere, it is not listened to.",
            "",
        ]
    )


def _form_line(name: str, found: list[str] | None) -> str:
    if found:
        return f"{_key(name)} = [{', '.join(map(_quoted, found))}]"
    if name.casefold() == "background":
        return f'{_key(name)} = ["{REST}"]  # is all the rest background, here?'
    return f"{_key(name)} = []  # nothing of that name"


def _list_of_names(teacher_names: Sequence[str], teacher: str) -> str:
    return "\n".join(
        [f"# The {len(teacher_names)} classes of {teacher}:", *(f"#   {_quoted(name)}," for name in teacher_names), ""]
    )


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)  # which is a string of TOML's, too


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)
