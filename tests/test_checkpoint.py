"""Saving: the old file or the new one, never half of one. Loading: tensors and plain values, nothing else."""

from __future__ import annotations

import hashlib
import os
import sys

import numpy as np
import pytest
import torch

from basics.checkpoint import external_data, file_sha256, load_file, save_atomic
from basics.errors import UserError

OLD = {"weights": torch.arange(4.0), "epoch": 1}


@pytest.fixture
def path(tmp_path):
    save_atomic(OLD, tmp_path / "last.pth")
    return tmp_path / "last.pth"


def assert_old_file_alone(path):
    assert [file.name for file in path.parent.iterdir()] == [path.name], "something was left behind"
    content = load_file(path)
    assert torch.equal(content["weights"], OLD["weights"]) and content["epoch"] == 1


def test_round_trip_makes_folders(tmp_path):
    content = {"a": torch.randn(3).half(), "b": [1, 2.5, "x", None, True], "c": {"d": (1, 2)}}
    save_atomic(content, tmp_path / "new/folder/file.pth")
    loaded = load_file(tmp_path / "new/folder/file.pth")
    assert torch.equal(loaded.pop("a"), content.pop("a")) and loaded == content


def test_a_second_save_replaces_the_first(path):
    save_atomic({"epoch": 2}, path)
    assert load_file(path) == {"epoch": 2} and len(list(path.parent.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_full_disk_is_one_error_and_keeps_the_old_file(path):
    """A real failed write: the process may not write files beyond 100 kB for a moment."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*last\.pth.*untouched"):
            save_atomic({"weights": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_old_file_alone(path)


@pytest.mark.parametrize("instant", ["while writing", "before the rename"])
def test_interruption_keeps_the_old_file(path, monkeypatch, instant):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    if instant == "while writing":

        def half(content, file):
            file.write(b"half of it")
            stop()

        monkeypatch.setattr(torch, "save", half)
    else:
        monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save_atomic({"epoch": 2}, path)
    monkeypatch.undo()
    assert_old_file_alone(path)


def test_what_cannot_be_pickled_keeps_the_old_file(path):
    with pytest.raises(Exception, match=r"(?i)pickle|local"):
        save_atomic({"weights": lambda: None}, path)
    assert_old_file_alone(path)


def test_leftover_of_a_killed_run_is_overwritten(path):
    (path.parent / ".last.tmp.pth").write_bytes(b"half of it")
    save_atomic(OLD, path)
    assert_old_file_alone(path)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        save_atomic(OLD, tmp_path / "runs/last.pth")


class Bomb:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, zipped):
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"bomb\.pth.*refused"):
        load_file(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"score": np.float64(0.5)}], ids=["module", "numpy"])
def test_objects_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "object.pth")
    with pytest.raises(UserError, match=r"object\.pth.*state_dict"):
        load_file(tmp_path / "object.pth")


def damaged_files():
    yield "empty", lambda whole: b""
    yield "text", lambda whole: b"# Weights\n\nRead in place.\n"
    yield "truncated", lambda whole: whole[: len(whole) // 2]
    yield "zeroed", lambda whole: whole[:64] + bytes(len(whole) - 64)
    yield "other zip", lambda whole: b"PK\x05\x06" + bytes(18)
    yield "other pickle", lambda whole: b"\x80\x04\x95broken"


@pytest.mark.parametrize(
    ("damage"), [damage for _, damage in damaged_files()], ids=[name for name, _ in damaged_files()]
)
def test_damaged_file_is_one_error_naming_it(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"last\.pth: not a torch file, or a damaged one"):
        load_file(path)


def test_missing_file_folder_and_list(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_file(tmp_path / "none.pth")
    with pytest.raises(UserError, match="a folder"):
        load_file(tmp_path)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="list, not a dict"):
        load_file(tmp_path / "list.pth")


@pytest.mark.parametrize("names", [["t.onnx.data"], ["model.onnx_data"], ["a.bin", "weights of β.bin"]])
def test_the_hash_of_an_onnx_is_of_its_weights_too(names, tmp_path):
    """Wherever they lie: the format's own library writes what the hash has to find."""
    onnx = pytest.importorskip("onnx")
    tensors = []
    for number, name in enumerate(names):
        tensor = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), f"w{number}")
        onnx.external_data_helper.set_external_data(tensor, name)
        tensors.append(tensor)
        (tmp_path / name).write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    path = tmp_path / "t.onnx"
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    path.write_bytes(model.SerializeToString())
    (tmp_path / "other.bin").write_bytes(b"other")
    assert sorted(file.name for file in external_data(path)) == sorted(names)
    seen = {file_sha256(path)}
    for name in names:
        (tmp_path / name).write_bytes(b"changed" + name.encode())
        seen.add(file_sha256(path))
    assert len(seen) == 1 + len(names)
    (tmp_path / names[0]).unlink()
    assert file_sha256(path) not in seen
    path.write_bytes(b"")
    assert file_sha256(path) == hashlib.sha256(b"").hexdigest()
