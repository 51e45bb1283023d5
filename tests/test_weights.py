"""Weights under other people's keys and prefixes: found, said aloud, or refused for what is really wrong."""

from __future__ import annotations

import argparse
import sys

import pytest
import torch

from basics.batch import MEAN
from basics.checkpoint import save_atomic
from basics.errors import UserError
from networks.class_names import class_difference, named_classes
from networks.weights import unwrap
from tests.small import SmallStudent as Small
from tests.small import in_zoo, lively
from zoo import create_model, load_any_teacher, load_checkpoint_model, model_file_dict

NAMES = ["background", "cat", "dog"]


@pytest.fixture(autouse=True)
def small_in_zoo():
    with in_zoo():
        yield


@pytest.fixture
def donor():
    return lively(Small(3), seed=3)


@pytest.fixture
def state(donor):
    return dict(donor.state_dict())


@pytest.fixture
def saved(tmp_path):
    def save(content, name="w.pth") -> str:
        save_atomic(content, tmp_path / name)
        return str(tmp_path / name)

    return save


def put(state, prefix, shift=0.0):
    """``state`` with names that begin with ``prefix``; ``shift`` makes it another network."""
    return {prefix + name: value + shift if value.is_floating_point() else value for name, value in state.items()}


def assert_is(model, state):
    own = model.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in state)


PLAIN_KEYS = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "student",
    "net",
    "network",
    "params",
    "weights",
]
AVERAGE_KEYS = ["ema", "ema_state_dict", "model_ema", "params_ema", "state_dict_ema", "ema_model", "swa_model"]
PREFIXES = ["model.", "net.", "network.", "student.", "segmentor.", "model.net.", "module.model."]


def small_teacher(weights: str):
    return load_any_teacher("small", weights, num_classes=3)


@pytest.mark.parametrize("key", PLAIN_KEYS + AVERAGE_KEYS)
def test_any_key_alone_is_unwrapped(key, state, saved, capsys):
    teacher = small_teacher(saved({"epoch": 3, key: state, "optimizer": {"state": {0: {"m": torch.ones(3)}}}}))
    assert_is(teacher, state)
    assert f"unwrapped `{key}`" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", [None, "state_dict", "checkpoint"])
def test_any_prefix_is_removed(prefix, key, state, saved, capsys):
    content = put(state, prefix)
    teacher = small_teacher(saved({key: content} if key else content))
    assert_is(teacher, state)
    said = capsys.readouterr().out
    assert f"prefix `{prefix.removeprefix('module.')}` removed" in said and (not key or f"unwrapped `{key}`" in said)


def test_dicts_in_dicts_and_networks_in_pieces(state, saved):
    assert_is(small_teacher(saved({"ema": {"module": {"state_dict": state}}})), state)
    pieces = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        pieces.setdefault(part, {})[rest] = value
    assert_is(small_teacher(saved(pieces)), state)


def test_what_came_bare_is_not_talked_about(state, saved, capsys):
    assert_is(small_teacher(saved(put(state, "module."))), state)
    assert "unwrapped" not in (said := capsys.readouterr().out) and "removed" not in said


@pytest.mark.parametrize(
    ("content", "average"),
    [
        (lambda s: {"params": s, "params_ema": put(s, "", 1)}, "params_ema"),
        (lambda s: {"state_dict_ema": put(s, "", 1), "state_dict": s}, "state_dict_ema"),
        (lambda s: {"state_dict": put(s, "ema_model.module.", 1) | put(s, "model.")}, "ema_model.module"),
        (lambda s: s | put(s, "model_ema.", 1), "model_ema"),
    ],
)
def test_the_weights_come_before_their_average(content, average, state, saved, capsys):
    assert_is(small_teacher(saved(content(state))), state)
    said = capsys.readouterr().out
    assert "left aside: the average under" in said and average in said


def test_what_else_a_module_holds_is_left_aside_and_said(state, saved, capsys):
    extras = {"criterion.weight": torch.ones(3), "mean": torch.zeros(1, 3, 1, 1)}
    assert_is(small_teacher(saved({"state_dict": put(state, "model.") | extras})), state)
    assert "left aside: criterion, mean" in capsys.readouterr().out


def test_two_networks_are_refused_by_their_prefixes(state, saved):
    both = put(state, "student.") | put(state, "teacher.", 1)
    with pytest.raises(UserError, match=r"2 times, under `state_dict\.student\.` and `state_dict\.teacher\.`"):
        small_teacher(saved({"state_dict": both}))
    with pytest.raises(UserError, match=r"2 times, under `a\.` and `b\.`"):
        backbones = {name: value for name, value in state.items() if name.startswith("backbone.")}
        create_model("small", 3, saved(put(backbones, "a.") | put(backbones, "b.", 1)))


def test_the_same_network_twice_is_one(state, saved):
    """A Lightning module with a second name for its network."""
    assert_is(small_teacher(saved({"state_dict": put(state, "model.") | put(state, "net.")})), state)


@pytest.mark.parametrize("prefix", ["model.backbone.", "net.encoder.", "encoder.", "features.", "trunk.", ""])
@pytest.mark.parametrize("key", [None, "state_dict"])
def test_a_backbone_is_found_under_any_prefix(prefix, key, donor, saved, capsys):
    content = put(donor.backbone.state_dict(), prefix) | put({"weight": torch.ones(4)}, prefix + "fc.")
    if prefix.endswith(("backbone.", "encoder.", "features.")):  # there a head is no part of it
        del content[f"{prefix}fc.weight"]
    model = create_model("small", 7, saved({key: content} if key else content))
    assert_is(model.backbone, donor.backbone.state_dict())
    count = sum(not name.endswith("num_batches_tracked") for name in donor.backbone.state_dict())
    assert f"backbone: {count} of {count} tensors" in capsys.readouterr().out


def test_a_student_takes_the_whole_and_says_whose_classes_are_unknown(state, saved, capsys):
    path = saved({"state_dict": put(state, "model.")}, "t.ckpt")
    assert_is(create_model("small", 3, path, NAMES), state)
    assert f"small: all weights from {path}, which does not name its classes" in capsys.readouterr().out


def test_errors_name_what_is_there(state, saved):
    foreign = {"state_dict": {"decode_head.conv_seg.weight": torch.ones(3), "stem.0.weight": torch.ones(2)}}
    with pytest.raises(UserError, match=r"no weights of a whole small.*state_dict\.decode_head\.conv_seg\.weight"):
        small_teacher(saved(foreign))
    with pytest.raises(UserError, match=r"low\.0\.0\.weight.*its own are state_dict\.decode_head\.conv_seg\.weight"):
        create_model("small", 3, saved(foreign))
    with pytest.raises(UserError, match=r"no tensors in it, but epoch, lr"):
        create_model("small", 3, saved({"epoch": 3, "lr": 0.1}))
    del state["classifier.bias"]
    with pytest.raises(UserError, match=r"1 tensors missing \(classifier\.bias\)"):
        small_teacher(saved({"state_dict": put(state, "model.")}))


def test_damage_is_found_where_it_counts(state, saved):
    ruined = {"optimizer": {"state": {0: {"m": torch.tensor([float("nan")])}}}, "model": state}
    assert_is(small_teacher(saved(ruined)), state)
    state["gate.bias"] = state["gate.bias"] * float("nan")
    with pytest.raises(UserError, match=r"'gate\.bias' holds numbers that are not finite"):
        small_teacher(saved({"model": put(state, "net.")}))


def test_damage_in_a_backbone_is_found(donor, saved):
    backbone = donor.backbone.state_dict()
    name = next(name for name in backbone if name.endswith("weight"))
    with pytest.raises(UserError, match=r"holds numbers that are not finite"):
        create_model("small", 3, saved({"state_dict": put(backbone, "") | {name: backbone[name] * float("nan")}}))


def test_objects_are_named_with_the_remedy(state, tmp_path):
    torch.save({"state_dict": state, "hyper_parameters": argparse.Namespace(lr=1)}, tmp_path / "l.ckpt")
    with pytest.raises(UserError, match=r'l\.ckpt.*argparse\.Namespace.*weights_only=False\)\["state_dict"\]'):
        small_teacher(str(tmp_path / "l.ckpt"))


def test_safetensors(state, tmp_path, monkeypatch):
    tensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "w.safetensors"
    tensors.save_file(put(state, "model."), path)
    assert_is(small_teacher(str(path)), state)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"w\.safetensors: not a safetensors file, or a damaged one"):
        small_teacher(str(path))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        small_teacher(str(path))


# -- whose classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {"class_names": NAMES},
        {"classes": tuple(NAMES)},
        {"meta": {"CLASSES": tuple(NAMES)}},
        {"meta": {"dataset_meta": {"classes": NAMES, "palette": [[0, 0, 0]]}}},
        {"hyper_parameters": {"class_names": NAMES}},
        {"id2label": {"0": "background", "1": "cat", "2": "dog"}},
        {"hyper_parameters": {"id2label": {2: "dog", 1: "cat", 0: "background"}}},
    ],
)
def test_where_files_name_their_classes(content, state, saved):
    assert named_classes(content) == NAMES
    path = saved({"state_dict": state, **content})
    teacher = small_teacher(path)
    assert_is(teacher, state)
    assert teacher.class_names == NAMES


@pytest.mark.parametrize(
    "content", [{}, {"classes": 3}, {"class_names": []}, {"classes": [1, 2]}, {"meta": None}, {"id2label": {5: "x"}}]
)
def test_what_names_no_classes(content):
    assert named_classes(content) is None


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (NAMES, NAMES, ""),
        (tuple(NAMES), NAMES, ""),
        (NAMES, NAMES[:2], "3 classes there, 2 here"),
        (NAMES, ["background", "dog", "cat"], "the same classes in another order: number 1 is 'cat' there, 'dog' here"),
        (NAMES, ["background", "cat", "Dog"], "classes of other names: number 2 is 'dog' there, 'Dog' here"),
    ],
)
def test_differences_in_words(theirs, ours, words):
    assert class_difference(theirs, ours) == words


class Labels:
    class_names = NAMES
    palette = [[0, 0, 0]] * 3


@pytest.mark.parametrize("names", [["background", "dog", "cat"], ["background", "cat", "cow"]])
def test_a_student_of_other_classes_gives_its_backbone(names, donor, saved, capsys):
    path = saved(model_file_dict("small", donor, Labels()))
    assert_is(create_model("small", 3, path, NAMES), donor.state_dict())
    model = create_model("small", 3, path, names)
    assert_is(model.backbone, donor.backbone.state_dict())
    assert not torch.equal(model.classifier.weight, donor.classifier.weight)
    assert f"{class_difference(NAMES, names)}: only the backbone is taken" in capsys.readouterr().out


def test_a_student_is_built_with_the_arguments_in_its_file(saved):
    wide = lively(Small(3, width=12))
    wide.model_args = {"width": 12}
    path = saved(model_file_dict("small", wide, Labels()))
    model = create_model("small", 3, path, NAMES)
    assert_is(model, wide.state_dict())
    assert model.model_args == {"width": 12}


def test_another_normalisation_is_refused(donor, saved):
    content = model_file_dict("small", donor, Labels())
    path = saved(content | {"mean": [0.5, 0.5, 0.5]})
    for load in (load_checkpoint_model, lambda path: small_teacher(path)):
        with pytest.raises(UserError, match=r"mean \[0\.5, 0\.5, 0\.5\]"):
            load(path)
    load_checkpoint_model(saved(content | {"mean": [value + 1e-9 for value in MEAN]}))


def test_a_qat_file_says_what_is_not_taken(donor, saved, capsys):
    small_teacher(saved(model_file_dict("small", donor, Labels()) | {"qat": {}}))
    assert "trained with the rounding of INT8" in capsys.readouterr().out


def test_unwrap_leaves_another_network_as_it_is(donor):
    from networks.weights import WeightsFile

    file = WeightsFile("f", {"a.b": torch.ones(1), "c": torch.ones(2)})
    assert unwrap(donor, file) == file.state_dict
