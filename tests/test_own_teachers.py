"""Teachers of a user's own: how many classes they have, what these are called, and what their weights' file says."""

from __future__ import annotations

import textwrap

import pytest
import torch

from basics.errors import UserError, reason_of
from tests.small import SmallStudent as Small
from tests.small import in_zoo, lively
from zoo import load_any_teacher, load_teacher

FIVE = ["background", "cat", "dog", "tree", "sky"]
NET = """
    import pathlib
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
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
        with pytest.raises(UserError, match="made for 5 classes, needed are 3"):
            load_teacher("small", 3, path)


def test_what_the_users_code_says_comes_through(net, tmp_path):
    save(tensors(3), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"fails: RuntimeError: Error.* for Net: size mismatch for head.*net.py, line"):
        load_any_teacher(f"{net}loaded", num_classes=3)
    assert reason_of(ValueError("one\ntwo")) == "one" and reason_of(ValueError(" ")) == "ValueError"
