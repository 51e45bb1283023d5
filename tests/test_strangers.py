"""Files and command lines from strangers: one clear error or a sound result; no code runs, nothing hangs or bursts.

Damaged images, masks and lists are in test_dataset.py, archives in test_archives.py, single faults of checkpoints
in test_checkpoint.py and test_zoo.py.
"""

import argparse
import importlib
import io
import math
import os
import shutil
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basics.checkpoint import load_file
from basics.errors import UserError
from tests.test_train import arguments
from tests.tiny import tiny_in_zoo  # noqa: F401 (a fixture)
from train_kd import main, make_recipe
from training import made_from
from training.trainer import Trainer
from zoo import load_checkpoint_model

FUZZ = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def folder(demo_data, tmp_path_factory):
    """A run of one step: best.pth and last.pth of a tiny student."""
    output = tmp_path_factory.mktemp("strangers")
    assert main(arguments(demo_data, output, "--student", "tiny", "--max-steps", "1")) == 0
    return output / "run"


# -- code in checkpoints ---------------------------------------------------------------------------


class Bomb:
    """Pickles as a call that makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def run_script(name, *argv):
    """A script's `main` on a command line, as `run_cli` calls it."""
    module = importlib.import_module(name)
    return module.main(module.get_args_parser().parse_args([str(word) for word in argv]))


def doors(bomb, demo_data, output):
    """Every command that reads a checkpoint, given the file ``bomb``."""
    data = ["--dataset", "demo", "--data-dir", demo_data]
    train = [*data, "--student", "tiny", "--output-dir", output, "--name", "run", "--device", "cpu", "--workers", 0]
    yield "train_kd", [*train, "--student-weights", bomb]
    yield "train_kd", [*train, "--student-weights", "none", "--resume", bomb]
    teacher = ["--teacher", "tiny", "--teacher-weights", bomb]
    yield "train_kd", [*train, "--student-weights", "none", "--alpha", 1, *teacher]
    yield "evaluate", [bomb, *data]
    yield "test_teacher", [*data, *teacher]
    yield "visualize", [bomb, *data, "--output-dir", output]


@pytest.mark.parametrize("kept", ["in place of the file", "beside good weights"])
def test_no_command_runs_the_code_in_a_checkpoint(kept, folder, demo_data, tmp_path):
    bomb = tmp_path / "bomb.pth"
    whole = torch.load(folder / "last.pth", weights_only=True)
    fuse = Bomb(tmp_path / "ran")
    torch.save(fuse if kept.startswith("in place") else whole | {"info": fuse}, bomb)
    for script, argv in doors(bomb, demo_data, tmp_path / "out"):
        with pytest.raises(UserError, match=r"bomb\.pth"):
            run_script(script, *argv)
        assert not (tmp_path / "ran").exists(), script
    assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "out" / "run").exists()
    torch.load(bomb, weights_only=False)  # the fuse is live: it is the reader that holds
    assert (tmp_path / "ran").exists()


def test_a_checkpoint_that_unpacks_to_more_than_itself_is_refused(tmp_path):
    plain = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(10_000_000)}}, plain)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.pth: compressed"):
        load_file(bomb)


# -- damaged checkpoints ---------------------------------------------------------------------------


@settings(FUZZ, max_examples=150)
@given(
    edits=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=40)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 2**20)),
)
def test_a_checkpoint_with_changed_bytes_is_one_error_or_a_model(folder, tmp_path, edits, cut):
    content = bytearray((folder / "best.pth").read_bytes())
    for place, patch in edits:
        place %= len(content)
        content[place : place + len(patch)] = patch
    path = tmp_path / "stranger.pth"
    path.write_bytes(content[: cut % len(content)] if cut is not None else content)
    try:
        model, checkpoint = load_checkpoint_model(path)
    except UserError as error:
        assert "stranger.pth" in str(error) and len(str(error)) < 2000
        return
    assert cut is None
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, len(checkpoint["class_names"]), 32, 32)


def laughs(depth: int = 40) -> list:
    """2^40 words, kept as 40 lists."""
    words = ["ha"]
    for _ in range(depth):
        words = [words, words]
    return words


JUNK = st.sampled_from(
    [
        None, True, -1, 0, 1, 2, 3, 10**30, 0.5, math.nan, math.inf, "", "x" * 300, "../../../etc/passwd", [], [1], {},
        {"a": 1},
        {1: 2}, [["a"]], (), laughs(), torch.tensor(1.0), torch.zeros(0), torch.zeros(2, 3), torch.full((1,), math.nan),
        torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.complex64), torch.zeros(3, 3).to_sparse(),
        torch.zeros(1).expand(10**6, 10**6), torch.zeros(4, device="meta"), torch.ones(3, dtype=torch.bool),
    ]
)  # fmt: skip


def replace_leaf(tree, path, junk, drop):
    """Walk into ``tree`` by the numbers in ``path`` and put ``junk`` where they lead, or nothing."""
    steps = list(path)
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = keys[steps.pop(0) % len(keys)]
        child = tree[key]
        if not steps or not (isinstance(child, dict | list) and child):
            break
        tree = child
    if drop:
        del tree[key]
    elif isinstance(child, torch.Tensor) and isinstance(junk, int) and not isinstance(junk, bool):
        # Of the right shape, but not what it should be.
        kinds = (torch.Tensor.to_sparse, torch.Tensor.cfloat, lambda x: x.to("meta"), lambda x: x * math.inf)
        tree[key] = kinds[junk % len(kinds)](child)
    else:
        tree[key] = junk


PATHS = st.lists(st.integers(0, 500), min_size=1, max_size=5)


@settings(FUZZ, max_examples=200)
@given(path=PATHS, junk=JUNK, drop=st.booleans())
def test_a_checkpoint_with_other_content_is_one_error_or_a_model(folder, demo_data, tmp_path, path, junk, drop):
    checkpoint = load_file(folder / "best.pth")
    replace_leaf(checkpoint, path, junk, drop)
    file = tmp_path / "stranger.pth"
    torch.save(checkpoint, file)
    try:
        model, checkpoint = load_checkpoint_model(file)
    except UserError as error:
        assert "stranger.pth" in str(error) and len(str(error)) < 2000
        return
    assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()
    assert ", ".join(checkpoint["class_names"])
    assert all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in checkpoint["palette"])


def test_a_list_that_holds_a_tensor_is_another_argument():
    """Found by the test below: the comparison of the two is no yes or no."""
    assert not made_from._same_argument([torch.tensor([]), 2.0], [0.5, 2.0])
    assert made_from._same_argument([0.5, 2.0], [0.5, 2.0])


@settings(FUZZ, max_examples=150)
@given(path=PATHS, junk=JUNK, drop=st.booleans())
def test_a_changed_training_state_is_one_error_or_goes_on(folder, demo_data, tmp_path, path, junk, drop):
    checkpoint = load_file(folder / "last.pth")
    replace_leaf(checkpoint["training"], path, junk, drop)
    file = tmp_path / "stranger.pth"
    torch.save(checkpoint, file)
    args = arguments(demo_data, tmp_path, "--student", "tiny", "--max-steps", "1", "--resume", file)
    try:
        trainer = Trainer(args, make_recipe(args))
        trainer.enter_stage(trainer.stages.of(0))
        samples = [trainer.data.train_set[index, index] for index in range(2)]
        trainer.train_step(torch.utils.data.default_collate(samples))
    except UserError as error:
        assert len(str(error)) < 2000
        assert "stranger.pth" in str(error)


# -- command lines ---------------------------------------------------------------------------------

# Not drawn: what takes long (demo data are made anew in another folder) and tells nothing about reading arguments.
LEFT_OUT = {
    "--help", "--workers", "--data-dir", "--compile", "--tensorboard", "--wandb", "--dry-run", "--cache-teacher",
    "--qat",
}  # fmt: skip
WORDS = [
    "", "0", "-1", "1", "2", "3", "0.5", "nan", "inf", "-inf", "1e400", "1" + 30 * "0", "-" + 30 * "9", "x", "..", "/",
    "a\nb", "\udc80", "é", "x" * 300, "none", "auto", "default", "cpu", "off", "bf16", "=", "ce=1", "ce=0", "kl=1",
    "=1", "dice=nan", "cosine=1e308", "adamw", "sgd", "step", "train", "val", "tiny", "demo", "voc", "folder", "papi",
    "{file}", "{image}", "{folder}", "{file}/x",
]  # fmt: skip


def options(script: str) -> list[argparse.Action]:
    parser = importlib.import_module(script).get_args_parser()
    return [action for action in parser._actions if not LEFT_OUT & set(action.option_strings)]


def command_lines(script: str, most: int) -> st.SearchStrategy[list[str]]:
    """Any options of ``script``, each with any word it takes."""

    def spelled(action: argparse.Action) -> st.SearchStrategy[list[str]]:
        takes_none = action.nargs == 0
        words = st.just([]) if takes_none else st.sampled_from(WORDS).map(lambda word: [word])
        return words.map(lambda word: [*action.option_strings[-1:], *word])

    drawn = st.lists(st.sampled_from(options(script)).flatmap(spelled), max_size=most)
    return drawn.map(lambda parts: [word for part in parts for word in part])


@pytest.fixture
def sandbox(folder, demo_data, tmp_path, monkeypatch):
    """A folder deep enough that ``..`` stays within the test's own; ``fill`` puts paths into a command line."""
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    image = next(demo_data.rglob("*.jpg"))
    places = {"file": str(folder / "best.pth"), "image": str(image), "folder": str(demo_data)}

    def fill(argv):
        return [word.format(**places) if word.startswith("{") else word for word in argv]

    return fill


def ends_well(script: str, argv: list[str]) -> bool:
    """Run a script; True if it succeeded, False after one clear error; anything else is raised."""
    try:
        status = run_script(script, *argv)
    except UserError as error:
        assert str(error).strip() and len(str(error)) < 3000
        return False
    except SystemExit as error:  # argparse has said what is wrong
        assert error.code == 2
        return False
    assert status in (None, 0)
    return True


@settings(FUZZ, max_examples=100)
@given(argv=command_lines("train_kd", 3))
def test_any_training_command_trains_or_is_one_error(sandbox, demo_data, folder, tmp_path, argv):
    base = [
        "--dataset", "demo", "--data-dir", str(demo_data), "--student", "tiny", "--student-weights", "none",
        "--teacher", "tiny", "--teacher-weights", str(folder / "best.pth"), "--crop-size", "64", "--batch-size", "2",
        "--workers", "0", "--device", "cpu", "--epochs", "2", "--name", "run",
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "a" / "b" / "c" / "checkpoints", ignore_errors=True)
    if ends_well("train_kd", [*base, *sandbox(argv), "--max-steps", "1"]):
        for last in tmp_path.rglob("last.pth"):
            assert all(value.isfinite().all() for value in load_file(last)["state_dict"].values())
    assert not list(tmp_path.rglob(".*.tmp*"))
