"""A teacher's classes in the student's: probabilities add up exactly, and what means nothing is not listened to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kd.class_map import NOTHING, ClassMap
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, TeacherOutput
from kd.losses import LOSSES, Recipe
from kd.mapped_teacher import MappedTeacher
from tests.tiny import TinyModel, tiny_batch

TEACHER = ("sky", "cat", "dog", "lamp", "cow")
STUDENT = ("background", "animal", "cow")
GROUPS = {"background": ["sky"], "animal": ["cat", "dog"], "cow": ["cow"]}


def make_map(groups=GROUPS, student=STUDENT) -> ClassMap:
    return ClassMap.by_groups(student, TEACHER, groups)


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_probabilities_of_a_group_add_up():
    """Against float64 NumPy: the softmax of the mapped logits is the sum over each group, over all that is mapped."""
    logits = 5 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = softmax(logits.numpy())
    sums = np.stack([p[:, 0], p[:, 1] + p[:, 2], p[:, 4]], axis=1)
    mapped = make_map().logits(logits).double().softmax(1).numpy()
    np.testing.assert_allclose(mapped, sums / sums.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_whole_map_loses_no_probability():
    groups = {"background": ["sky", "lamp"], "animal": ["cat", "dog"], "cow": ["cow"]}
    logits = torch.randn(1, 5, 2, 2, generator=torch.Generator().manual_seed(1))
    p = logits.softmax(1)
    mapped = make_map(groups).logits(logits).softmax(1)
    torch.testing.assert_close(mapped[:, 0], p[:, 0] + p[:, 3])
    assert make_map(groups).speaks(logits) is None


def test_extreme_logits_stay_finite():
    logits = torch.tensor([1e4, -1e4, -1e4, 0.0, -1e4]).view(1, 5, 1, 1).to(torch.bfloat16)
    assert make_map().logits(logits).isfinite().all()


def test_the_same_list_is_the_identity():
    same = ClassMap.by_groups(TEACHER, TEACHER, {name: [name] for name in TEACHER})
    logits = torch.randn(1, 5, 2, 3)
    assert same == ClassMap.identity(TEACHER) and same.groups == {name: [name] for name in TEACHER}
    torch.testing.assert_close(same.logits(logits), logits)
    turned = ClassMap.by_groups(TEACHER[::-1], TEACHER, {name: [name] for name in TEACHER})
    torch.testing.assert_close(turned.logits(logits), logits.flip(1))


def test_a_name_in_no_list_or_twice_is_refused():
    with pytest.raises(KeyError, match="tiger"):
        make_map({"animal": ["tiger"]})
    with pytest.raises(KeyError, match="beast"):
        make_map({"beast": ["cat"]})
    with pytest.raises(ValueError, match="'cat' is in two groups"):
        make_map({"animal": ["cat"], "cow": ["cat"]})


class Says(nn.Module):
    """A teacher with the logits it is given, at stride 4."""

    stride, logit_stride, tap_channels, tap_strides = 4, 4, {}, {}

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def __call__(self, batch: dict) -> TeacherOutput:
        return TeacherOutput(self.logits)


def distiller(teacher, loss: str, classes: int = 3, temperature: float = 1.0) -> tuple[Distiller, TinyModel]:
    torch.manual_seed(0)
    student = TinyModel(classes).eval()
    recipe = Recipe({loss: 1.0}, temperature=temperature)
    return Distiller(DistilledStudent(student, recipe, teacher), student, recipe, teacher), student


@pytest.mark.parametrize("loss", [name for name, spec in LOSSES.items() if spec.kind == "logits"])
def test_where_the_teacher_says_nothing_it_is_not_heard(loss):
    """Cells at which it says `lamp` change no loss, whatever else it says there."""
    logits = torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(2))
    logits[:, 3] = -10
    logits[:, 3, :, 5:9] = 10
    other = logits.clone()
    other[:, [0, 1, 2, 4], :, 5:9] = torch.randn(2, 4, 16, 4, generator=torch.Generator().manual_seed(3))
    batch = tiny_batch()
    values = [
        distiller(MappedTeacher(Says(told), make_map()), loss)[0].losses(batch)[loss].item() for told in (logits, other)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6) and values[0] > 0
    heard = other.clone()
    heard[:, 3] = -10  # now its word on the other classes counts there, too
    changed = distiller(MappedTeacher(Says(heard), make_map()), loss)[0].losses(batch)[loss].item()
    assert changed != pytest.approx(values[0], rel=1e-3)


def test_feature_losses_listen_everywhere():
    """Where it says `lamp` alone there is no class to learn, and its maps are as good as any."""

    class Shows(Says):
        tap_channels, tap_strides = {"low": 8}, {"low": 4}

        def __call__(self, batch):
            maps = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(1))
            return TeacherOutput(self.logits, {"low": maps})

    logits = torch.zeros(2, 5, 16, 16)
    logits[:, 3] = 10  # lamp
    values = []
    for teacher in (Shows(logits), MappedTeacher(Shows(logits), make_map())):
        torch.manual_seed(0)
        student, recipe = TinyModel(3).eval(), Recipe({"cosine@low": 1.0})
        found = Distiller(DistilledStudent(student, recipe, teacher), student, recipe, teacher).losses(tiny_batch())
        values.append(found["cosine@low"].item())
    assert values[0] == values[1] > 0


def test_a_class_that_the_teacher_lacks_is_left_out_on_both_sides():
    """KL over the two classes that both know, by hand; the third student logit gets no gradient."""
    class_map = make_map({"background": ["sky", "lamp"], "cow": ["cow"]})
    assert class_map.known == (0, 2) and class_map.meaning.count(NOTHING) == 2
    logits = torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(4))
    logits[:, 1:3] = -50  # it never says cat or dog
    made, student = distiller(MappedTeacher(Says(logits), class_map), "kl")
    batch = tiny_batch()
    loss = made.losses(batch)["kl"]
    with torch.no_grad():
        own = student.forward_taps(batch["image"])[0].double().numpy()
    log_s = np.log(softmax(own[:, [0, 2]]))
    p_t = softmax(np.stack([np.logaddexp(*logits.double().numpy()[:, [0, 3]].transpose(1, 0, 2, 3)), logits[:, 4]], 1))
    assert loss.item() == pytest.approx((p_t * (np.log(p_t) - log_s)).sum(1).mean(), rel=1e-4)
    loss.backward()
    gradient = student.classifier.weight.grad
    assert gradient[1].abs().max() == 0 and gradient[0].abs().max() > 0


def test_unsure_positions_are_left_out():
    logits = torch.zeros(1, 5, 16, 16)
    logits[:, 4, :8] = 5.0  # sure of cow in the upper half, of nothing in the lower
    told = MappedTeacher(Says(logits), make_map(), min_confidence=0.9)({})
    assert told.speaks is not None and told.speaks[0, :8].all() and not told.speaks[0, 8:].any()
    assert MappedTeacher(Says(logits), make_map())({}).speaks[0, :8].all()


def test_how_much_is_heard_is_said_once(capsys):
    logits = torch.zeros(1, 5, 16, 16)
    logits[:, 3, :4] = 5.0  # lamp in a quarter
    logits[:, 1, 4:] = 5.0
    teacher = MappedTeacher(Says(logits), make_map(), tells=True)
    for _ in range(25):
        teacher({})
    assert capsys.readouterr().out == "the teacher is listened to at 75.0 % of the positions (10 batches)\n"


def test_a_hard_loss_weighs_the_labelled_share():
    """One labelled image of two: half of its cross-entropy, exactly; none: 0 without a gradient that is no number."""
    student = TinyModel(3).eval()
    recipe = Recipe({"ce": 1.0})
    made = Distiller(DistilledStudent(student, recipe), student, recipe)
    batch = tiny_batch()
    batch["mask"][1] = 255
    whole = made.losses(batch)["ce"]
    half = made.losses(batch | {"labelled": torch.tensor([True, False])})["ce"]
    torch.testing.assert_close(half, whole / 2)
    batch["mask"][:] = 255
    none = made.losses(batch | {"labelled": torch.tensor([False, False])})["ce"]
    none.backward()
    assert none.item() == 0 and all(p.grad is None or (p.grad == 0).all() for p in student.parameters())


def test_a_recipe_may_do_without_hard_losses():
    assert Recipe({"ce": 0.0, "kl": 1.0}).names("hard") == []
    teacher = LiveTeacher(TinyModel(3))
    made, _ = distiller(teacher, "kl")
    assert list(made.losses(tiny_batch())) == ["kl"]
