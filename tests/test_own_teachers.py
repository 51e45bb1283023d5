"""Teachers of a user's own: how many classes they have, what these are called, and what their weights' file says."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import textwrap

import numpy as np
import pytest
import torch

from basics.errors import UserError, reason_of
from kd.teacher_cache import weights_sha256
from networks import user_file
from networks.hub import find_repository
from tests.families import NAMES, save_family
from tests.small import SmallStudent as Small
from tests.small import in_zoo, lively
from tests.test_imports import ROOMS, SCRIPTS
from zoo import create_model, load_any_teacher

FIVE = ["background", "cat", "dog", "tree", "sky"]
NET = """
    import pathlib
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
            torch.manual_seed(0)  # weights that are always the same, as those of a trained network are
            self.body, self.head = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, classes, 1)

        def forward(self, images):
            return self.head(self.body(images))

    def default(num_classes=5):
        return Net(num_classes)

    def must(num_classes):
        return Net(num_classes)

    def fixed():
        return Net(5)

    def loaded(num_classes=5):
        net = Net(num_classes)
        net.load_state_dict(torch.load(pathlib.Path(__file__).with_name("w.pth"), weights_only=True))
        net.class_names = ["background", "cat", "dog", "tree", "sky"]
        return net
"""


def tensors(classes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of ``Net``."""
    torch.manual_seed(seed)
    body, head = torch.nn.Conv2d(3, 4, 4, 4), torch.nn.Conv2d(4, classes, 1)
    layers = {"body": body, "head": head}
    return {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}


def logits_of(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What ``Net`` says, strided, by PyTorch's own functions."""
    body = torch.nn.functional.conv2d(images, state["body.weight"], state["body.bias"], stride=4)
    return torch.nn.functional.conv2d(body, state["head.weight"], state["head.bias"])


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(textwrap.dedent(NET), encoding="utf-8")
    return f"{tmp_path / 'net.py'}:"


def save(content, path) -> str:
    torch.save(content, path)
    return str(path)


# -- how many classes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "classes"), [("default", 5), ("must", 3), ("fixed", 5)])
def test_a_teacher_is_told_the_classes_of_the_data_only_if_it_must_be(function, classes, net):
    assert load_any_teacher(net + function, num_classes=3).num_classes == classes


def test_the_file_of_the_documentation_teaches_other_classes(net, tmp_path):
    state = tensors(5)
    save(state, tmp_path / "w.pth")
    teacher = load_any_teacher(f"{net}loaded", num_classes=3)
    images = torch.randn(1, 3, 64, 64)
    assert teacher.class_names == FIVE
    torch.testing.assert_close(teacher.forward_taps(images)[0], logits_of(state, images))


@pytest.mark.parametrize("function", ["default", "must"])
@pytest.mark.parametrize("classes", [3, 5, 7])
def test_a_file_of_weights_tells_how_many_classes_there_are(function, classes, net, tmp_path):
    state = tensors(classes)
    teacher = load_any_teacher(net + function, save(state, tmp_path / "bare.pth"), num_classes=3)
    images = torch.randn(1, 3, 64, 64)
    assert teacher.num_classes == classes
    torch.testing.assert_close(teacher.forward_taps(images)[0], logits_of(state, images))


def test_a_function_that_takes_no_number_is_refused_weights_of_another(net, tmp_path):
    with pytest.raises(UserError, match="made for 7 classes, needed are 5"):
        load_any_teacher(f"{net}fixed", save(tensors(7), tmp_path / "bare.pth"), num_classes=3)


def test_a_row_of_the_zoo_takes_the_number_of_its_weights(tmp_path):
    with in_zoo():
        donor = lively(Small(5), seed=3)
        path = save(donor.state_dict(), tmp_path / "bare.pth")
        teacher = load_any_teacher("small", path, num_classes=3)
        assert torch.equal(teacher.state_dict()["classifier.weight"], donor.state_dict()["classifier.weight"])


def test_what_the_users_code_says_comes_through(net, tmp_path):
    save(tensors(3), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"fails: RuntimeError: Error.* for Net: size mismatch for head.*net.py, line"):
        load_any_teacher(f"{net}loaded", num_classes=3)
    assert reason_of(ValueError("one\ntwo")) == "one" and reason_of(ValueError(" ")) == "ValueError"


# -- what the weights' file says -------------------------------------------------------------------


def put(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: put(state, "module."),
        lambda state: put(state, "net."),
        lambda state: {"state_dict": put(state, "model."), "pytorch-lightning_version": "2.4.0"},
        lambda state: {"model": state, "ema": {name: value + 1 for name, value in state.items()}},
        lambda state: put(state, "network."),
        lambda state: {"state_dict": put(state, "model.") | {"criterion.weight": torch.ones(3)}},
    ],
    ids=["key", "module", "prefix", "lightning", "ema", "ours", "beside"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_found_wherever_they_lie(wrap, suffix, net, tmp_path):
    state, path = tensors(5), tmp_path / f"w{suffix}"
    content = wrap(state)
    if suffix == ".pth":
        torch.save(content, path)
    elif all(isinstance(value, torch.Tensor) for value in content.values()):
        pytest.importorskip("safetensors.torch").save_file(content, path)
    else:
        pytest.skip("safetensors holds tensors alone")
    teacher = load_any_teacher(f"{net}default", str(path), num_classes=3)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(teacher.forward_taps(images)[0], logits_of(state, images))


def test_a_network_that_its_author_has_wrapped_takes_plain_weights(net, tmp_path):
    file = tmp_path / "net.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text}\ndef parallel(): return nn.DataParallel(Net(5))\n", encoding="utf-8")
    state = tensors(5)
    teacher = load_any_teacher(f"{net}parallel", save(put(state, "module."), tmp_path / "w.pth"))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(teacher.forward_taps(images)[0], logits_of(state, images))


def test_a_network_of_smp_in_a_lightning_file(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    other = smp.Unet("resnet18", encoder_weights=None, classes=5, decoder_channels=(16, 8, 8, 4, 4))
    reference = smp.Unet("resnet18", encoder_weights=None, classes=5)
    state = {"state_dict": put(reference.state_dict(), "model."), "hyper_parameters": {"classes": FIVE, "lr": 0.1}}
    teacher = load_any_teacher("smp:Unet/resnet18", save(state, tmp_path / "pl.ckpt"), num_classes=3)
    assert teacher.class_names == FIVE
    assert torch.equal(teacher.segmentation_head[0].weight, reference.segmentation_head[0].weight)
    with pytest.raises(UserError, match="not this model's weights"):
        load_any_teacher("smp:Unet/resnet18", save(other.state_dict(), tmp_path / "other.pth"), num_classes=3)


def test_the_names_of_the_classes_in_a_file_are_the_teachers(net, tmp_path):
    named = {"state_dict": tensors(3), "class_names": ["dog", "cat", "background"]}
    path = save(named, tmp_path / "named.pth")
    for function in ("default", "must"):
        teacher = load_any_teacher(net + function, path, num_classes=5)
        assert teacher.class_names == ["dog", "cat", "background"] and teacher.num_classes == 3


def test_a_student_of_other_classes_in_a_file_is_not_taken_whole(net, tmp_path):
    path = save({"state_dict": tensors(3), "class_names": ["dog", "cat", "background"]}, tmp_path / "named.pth")
    with pytest.raises(UserError, match="the same classes in another order: number 0 is 'dog' there"):
        create_model(f"{net}default", 3, path, ["background", "cat", "dog"])
    state = create_model(f"{net}default", 3, path, ["dog", "cat", "background"]).state_dict()
    assert torch.equal(state["network.head.weight"], tensors(3)["head.weight"])


# -- normalisation ---------------------------------------------------------------------------------


@pytest.fixture
def described(tmp_path):
    """``described("net.mean = ...")`` -> the teacher of a file whose network says that of itself."""

    def build(lines: str):
        body = "".join(f"    {line}\n" for line in lines.splitlines())
        text = f"{textwrap.dedent(NET)}\nimport numpy as np\ndef build():\n    net = Net(3)\n{body}    return net\n"
        (tmp_path / "described.py").write_text(text, encoding="utf-8")
        return load_any_teacher(f"{tmp_path / 'described.py'}:build")

    return build


@pytest.mark.parametrize("kind", ["list({})", "tuple({})", "np.array({})", "torch.tensor({}).view(1, 3, 1, 1)"])
def test_numbers_of_any_kind_are_a_normalisation(kind, described):
    mean, std = (kind.format(values) for values in ([0.1, 0.2, 0.3], [0.5, 0.25, 1.0]))
    said = described(f"net.mean = {mean}\nnet.std = {std}").normalisation
    np.testing.assert_allclose([said.mean, said.std], [[0.1, 0.2, 0.3], [0.5, 0.25, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("net.mean = [123.675, 116.28, 103.53]", r"its mean \[123.675, .*0..255.*divide mean and std by 255"),
        ("net.std = np.array([58.4, 57.1, 57.4])", r"its std \[58.4, .*divide mean and std by 255"),
        ("net.mean = 0.5", "its mean must be three numbers, one a channel, not 0.5"),
        ("net.std = torch.tensor(0.5)", "its std must be three numbers"),
        ("net.mean = 'imagenet'", "its mean must be three numbers, one a channel, not 'imagenet'"),
        ("net.mean = {'r': 0.5}", "its mean must be three numbers"),
        ("net.std = [0.0, 0.5, 0.5]", "must be larger than 0"),
        ("net.mean = [float('nan')] * 3", "its mean must be three numbers"),
    ],
)
def test_what_is_no_normalisation_is_refused(lines, message, described):
    with pytest.raises(UserError, match=message) as caught:
        described(lines)
    assert "\n" not in str(caught.value)


def test_what_a_network_uses_itself_is_left_to_it_and_said(described, capsys):
    teacher = described("net.register_buffer('mean', torch.full((3, 1, 1), 128.0))\nnet.std = lambda: 3")
    assert teacher.normalisation.is_imagenets
    assert "its buffer 'mean' is left to the network itself" in capsys.readouterr().out


# -- classes.txt in the folder of a published network ----------------------------------------------


@pytest.mark.parametrize("kind", ["hf", "smp"])
def test_a_list_beside_a_published_network(kind, tmp_path):
    if kind == "hf":
        pytest.importorskip("transformers")
        folder = save_family("segformer", tmp_path / "net")
    else:
        smp = pytest.importorskip("segmentation_models_pytorch")
        folder = tmp_path / "net"
        smp.Unet("resnet18", encoder_weights=None, classes=len(NAMES)).save_pretrained(str(folder))
    count = load_any_teacher(f"{kind}:{folder}").num_classes
    names = [f"class {number}" for number in range(count)]
    (folder / "classes.txt").write_text("\n".join(names), encoding="utf-8-sig")
    assert load_any_teacher(f"{kind}:{folder}").class_names == names
    (folder / "classes.txt").write_text("\n".join(names[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match=rf"classes.txt in that folder names {count - 1} classes, the network has"):
        load_any_teacher(f"{kind}:{folder}")
    (folder / "classes.txt").write_bytes("Straße".encode("latin-1"))
    with pytest.raises(UserError, match="save the file as UTF-8"):
        load_any_teacher(f"{kind}:{folder}")


# -- where the logits are --------------------------------------------------------------------------


@pytest.fixture
def giving(tmp_path):
    """``giving("{'aux': 0 * z, 'out': z}")`` -> the teacher of a network that gives that, z its logits."""

    def build(output: str):
        text = f"""
            class Giving(Net):
                def forward(self, images):
                    z = super().forward(images)
                    return {output}

            def build():
                net = Giving(3)
                net.load_state_dict(torch.load(pathlib.Path(__file__).with_name("w.pth"), weights_only=True))
                return net
        """
        content = textwrap.dedent(NET) + textwrap.dedent(text)
        (tmp_path / "giving.py").write_text(content, encoding="utf-8")
        return load_any_teacher(f"{tmp_path / 'giving.py'}:build")

    return build


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("{'aux': 0 * z, 'main': z}", "its output main, not aux"),
        ("{'aux_out': 0 * z, 'pred': z}", "its output pred, not aux_out"),
        ("{'deep': 0 * z, 'pred': z + 1, 'logits': z}", "its output logits, not deep, pred"),
        ("{'loss': None, 'vector': z[0], 'pred': z}", ""),
        ("{'aux': z}", ""),
        ("(z, 0 * z)", "its output number 0, not number 1"),
        ("z", ""),
    ],
)
def test_logits_are_not_an_auxiliary_heads(output, said, giving, tmp_path, capsys):
    state = tensors(3)
    save(state, tmp_path / "w.pth")
    teacher, images = giving(output), torch.randn(1, 3, 64, 64)
    printed = capsys.readouterr().out
    assert said in printed and ("the logits are" in printed) == bool(said)
    torch.testing.assert_close(teacher.forward_taps(images)[0], logits_of(state, images))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("z.argmax(1)", "class numbers already .an argmax inside"),
        ("z.argmax(1, keepdim=True)", "class numbers already"),
        ("z[:, :1]", "of one channel, the score of a single class by a sigmoid"),
        ("z[:, 0]", "no logits"),
    ],
)
def test_what_tells_no_two_classes_apart_is_refused(output, message, giving, tmp_path):
    save(tensors(3), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        giving(output)


def test_two_channels_of_a_single_score_are_its_sigmoid():
    """What the refusal of one channel advises."""
    z = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(torch.cat([torch.zeros_like(z), z], 1).softmax(1)[:, 1:], z.sigmoid())


# -- whether it is still the same ------------------------------------------------------------------


def test_the_digest_is_of_all_that_the_teacher_is_made_of(tmp_path):
    """The files that it imports, packages too; weights that it loads itself; its normalisation. Nothing else."""

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    def digest() -> str:
        return weights_sha256(load_any_teacher(f"{tmp_path / 'main.py'}:build"))

    save(tensors(5), tmp_path / "w.pth")
    write("parts.py", textwrap.dedent(NET))
    write("deep/inner.py", "SCALE = [0.5] * 3")
    write("main.py", "from parts import loaded\nfrom deep.inner import SCALE\n"
          "def build():\n    net = loaded()\n    net.std = SCALE\n    return net\n")  # fmt: skip
    write("unused.py", "")
    seen = [digest()]
    write("unused.py", "x = 1")
    assert digest() == seen[0]
    # Beside the file a module of a name that this project has, too, and has loaded.
    write("networks/__init__.py", "")
    write("networks/base.py", "SHIFT = 0")
    write("main.py", "import networks.base\n" + (tmp_path / "main.py").read_text())
    seen = [digest()]
    for change in (
        lambda: write("parts.py", textwrap.dedent(NET) + "\n# another line\n"),
        lambda: write("deep/inner.py", "SCALE = [0.4] * 3"),
        lambda: save(tensors(5, seed=1), tmp_path / "w.pth"),
        lambda: write("networks/base.py", "SHIFT = 1"),
    ):
        change()
        seen.append(digest())
    assert len(set(seen)) == 5 and digest() == seen[-1]


def test_a_python_that_lies_in_the_users_folder_is_not_his(monkeypatch, tmp_path):
    """As `conda create -p ./env` makes it: which of its modules are loaded first depends on what ran before."""
    save(tensors(5), tmp_path / "w.pth")
    (tmp_path / "env" / "lib").mkdir(parents=True)
    (tmp_path / "env" / "lib" / "of_pythons_own.py").write_text("X = 1")
    (tmp_path / "main.py").write_text("import of_pythons_own\n" + textwrap.dedent(NET), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "env" / "lib")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    assert "imported" not in load_any_teacher(f"{tmp_path / 'main.py'}:loaded").made_of


def test_a_log_that_begins_while_the_file_is_imported_goes_on(tmp_path, capsys):
    save(tensors(5), tmp_path / "w.pth")
    lines = "import logging\nlog = logging.getLogger('theirs')\nlog.addHandler(logging.StreamHandler())\n"
    (tmp_path / "main.py").write_text(lines + textwrap.dedent(NET), encoding="utf-8")
    load_any_teacher(f"{tmp_path / 'main.py'}:loaded")
    logging.getLogger("theirs").warning("heard")
    assert "heard" in capsys.readouterr().err


def test_a_file_among_our_own_modules_counts_its_own_imports_alone(monkeypatch, tmp_path):
    """As in the folder of this project, which is ``ROOT``."""
    (tmp_path / "parts.py").write_text(textwrap.dedent(NET), encoding="utf-8")
    (tmp_path / "bench.py").touch()
    (tmp_path / "main.py").write_text("import bench\nfrom parts import fixed\n", encoding="utf-8")
    monkeypatch.setattr(user_file, "ROOT", tmp_path)
    for _ in range(2):
        model = load_any_teacher(f"{tmp_path / 'main.py'}:fixed")
        assert list(model.made_of["imported"]) == ["parts.py"]
    sys.modules.pop("bench", None)


def test_every_module_of_ours_is_known_as_such():
    assert {*ROOMS, *SCRIPTS} <= user_file.OURS


def test_a_published_network_with_another_preparation_is_another(tmp_path):
    pytest.importorskip("transformers")
    folder = save_family("segformer", tmp_path / "net")
    before = weights_sha256(load_any_teacher(f"hf:{folder}"))
    assert weights_sha256(load_any_teacher(f"hf:{folder}")) == before
    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(said | {"image_mean": [0.5, 0.5, 0.5]}), encoding="utf-8")
    assert weights_sha256(load_any_teacher(f"hf:{folder}")) != before


# -- files that are scripts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import argparse\nargparse.ArgumentParser().parse_args(['--epochs'])", "while it is imported: put what reads"),
        ("import sys\nprint('said', file=sys.stderr)\nsys.exit(0)", "while it is imported"),
        ("import sys\ndef build(): sys.exit('no weights')", "ends the program: it must return the network"),
    ],
)
def test_a_file_that_ends_the_program_is_one_line(text, message, tmp_path, capfd):
    (tmp_path / "script.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_any_teacher(f"{tmp_path / 'script.py'}:build")
    assert capfd.readouterr().err == ""


def test_what_an_import_says_on_stderr_is_not_lost(net, tmp_path, capfd):
    file = tmp_path / "net.py"
    said = "import sys\nprint('deprecated', file=sys.stderr)\n"
    file.write_text(said + textwrap.dedent(NET), encoding="utf-8")
    load_any_teacher(f"{net}fixed")
    assert "deprecated" in capfd.readouterr().err


# -- what is something else ------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1234\n"


def test_a_pointer_of_git_lfs_is_named(net, tmp_path):
    pytest.importorskip("onnxruntime")
    for name in ("w.pth", "w.safetensors", "w.onnx", "folder/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(POINTER)
    for teacher, weights in (
        (f"{net}fixed", f"{tmp_path}/w.pth"),
        (f"{net}fixed", f"{tmp_path}/w.safetensors"),
        (f"{tmp_path}/w.onnx", "default"),
        (f"hf:{tmp_path}/folder", "default"),
        (f"smp:{tmp_path}/folder", "default"),
    ):
        with pytest.raises(UserError, match=r"only Git LFS's pointer .* by `git lfs pull`"):
            load_any_teacher(teacher, weights, 3)


def test_pointers_to_weights_that_nobody_reads_are_no_fault(tmp_path):
    """As `git lfs pull --include model.safetensors` leaves them."""
    (tmp_path / "pytorch_model.bin").write_bytes(POINTER)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    assert find_repository(f"hf:{tmp_path}").is_folder
    (tmp_path / "config.json").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"config\.json: only Git LFS's pointer"):
        find_repository(f"hf:{tmp_path}")


def test_what_is_no_file_of_weights_is_told_what_it_is(net, tmp_path):
    """And the advice works."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 4, 4))
    torch.jit.trace(module, torch.zeros(1, 3, 64, 64)).save(str(tmp_path / "script.pt"))
    torch.save(module, tmp_path / "whole.pt")
    torch.save({"state_dict": module.state_dict(), "args": argparse.Namespace()}, tmp_path / "objects.pt")
    for name, message in (
        ("script.pt", r"a program of TorchScript, not weights.* torch.jit.load\(FILE\).state_dict\(\)"),
        ("whole.pt", r"torch.load\(FILE, weights_only=False\).state_dict\(\), \"weights.pth"),
        ("objects.pt", r"torch.load\(FILE, weights_only=False\)\[\"state_dict\"\], \"weights.pth"),
    ):
        with pytest.raises(UserError, match=message):
            load_any_teacher(f"{net}fixed", str(tmp_path / name))
    text = f"import torch\ndef build(): return torch.jit.load({str(tmp_path / 'script.pt')!r})\n"
    (tmp_path / "jit.py").write_text(text, encoding="utf-8")
    teacher, images = load_any_teacher(f"{tmp_path / 'jit.py'}:build"), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(teacher.forward_taps(images)[0], module(images).detach())


def test_a_published_network_whose_labels_are_fewer_than_its_outputs(tmp_path):
    pytest.importorskip("transformers")
    folder = save_family("segformer", tmp_path / "net")
    file = folder / "config.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    count = len(said["id2label"])
    labels = {number: name for number, name in said["id2label"].items() if int(number) < count - 1}
    numbers = {name: number for number, name in labels.items()}
    file.write_text(json.dumps(said | {"id2label": labels, "label2id": numbers}), encoding="utf-8")
    with pytest.raises(UserError, match=rf"names {count - 1} classes \(id2label\), its weights are for {count}: mend"):
        load_any_teacher(f"hf:{folder}")
    file.write_text(json.dumps(said | {"decoder_hidden_size": 7}), encoding="utf-8")
    with pytest.raises(UserError, match=r"do not fit its config.json: .* there, and has to be"):
        load_any_teacher(f"hf:{folder}")


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("net.class_names = {1: 'b', 0: 'a', 2: 'c'}", ["a", "b", "c"]),
        ("net.class_names = np.array(['a', 'b', 'c'])", ["a", "b", "c"]),
        ("net.class_names = 'a,b'", None),
        ("net.class_names = {1: 'a', 2: 'b', 3: 'c'}", None),
        ("net.class_names = 3", None),
    ],
)
def test_class_names_of_a_module(lines, names, described):
    if names:
        assert described(lines).class_names == names
        return
    with pytest.raises(UserError, match="its class_names must be a list of names, one a class, not"):
        described(lines)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("z.permute(0, 2, 3, 1)", r"no whole number"),  # a map of another stride looks the same
        ("nn.functional.interpolate(z, images.shape[2:]).permute(0, 2, 3, 1)", r"channels last: .*permute\(0, 3, 1, 2"),
        ("images.view(1, 3, 512, 512)", r"fails on 64x96 pixels: .*; images are padded to multiples of 32: .*`stride`"),
    ],
)
def test_networks_of_another_shape_are_told_the_remedy(output, message, giving, tmp_path):
    save(tensors(3), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        giving(output)
