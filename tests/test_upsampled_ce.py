"""Cross-entropy of strided logits, image by image: value and gradient are those of the plain way."""

from __future__ import annotations

import math

import pytest
import torch

from basics.grids import upsample_logits, upsampling_matrix
from kd.distiller import DistilledStudent, Distiller, Recipe
from kd.hard_losses import ce, upsampled_ce
from tests.tiny import TinyModel, tiny_batch


def made(size, stride, dtype=torch.float32, classes=5):
    generator = torch.Generator().manual_seed(0)
    cells = [-(-side // stride) for side in size]
    logits = torch.randn(3, classes, *cells, generator=generator, dtype=dtype) * 4
    mask = torch.randint(0, classes, (3, *size), generator=generator)
    mask[0, :5], mask[2] = 255, 255
    return logits, mask


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 3.0, 0.0, 2.0])])
@pytest.mark.parametrize(("size", "stride"), [((32, 48), 4), ((30, 45), 4), ((17, 24), 8), ((16, 16), 1)])
def test_it_is_cross_entropy_after_enlarging(size, stride, weights):
    logits, mask = made(size, stride, torch.float64)
    one, other = (logits.clone().requires_grad_(True) for _ in range(2))
    found, expected = upsampled_ce(one, stride, mask, weights), ce(upsample_logits(other, stride, size), mask, weights)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-14)


def test_it_is_as_exact_in_float32():
    logits, mask = made((32, 48), 4)
    exact = ce(upsample_logits(logits.double(), 4, mask.shape[1:]), mask)
    assert upsampled_ce(logits, 4, mask).item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_nothing_labelled_and_extreme_logits(scale):
    logits, mask = made((16, 16), 4)
    logits = (logits * scale).requires_grad_(True)
    upsampled_ce(logits, 4, mask).backward()
    assert logits.grad.isfinite().all() and (logits.grad[2] == 0).all() and (logits.grad[0] != 0).any()
    logits.grad = None
    loss = upsampled_ce(logits, 4, torch.full_like(mask, 255))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_the_matrix_is_the_enlargement():
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    rows, columns = (
        upsampling_matrix(cells, 4, size, x.dtype, x.device) for cells, size in zip((6, 7), (22, 28), strict=True)
    )
    torch.testing.assert_close(rows @ x @ columns.T, upsample_logits(x, 4, (22, 28)))


@pytest.mark.parametrize("stride", [4, 1])
def test_logits_of_full_size_go_the_plain_way(monkeypatch, stride):
    """There is nothing to enlarge: the other way is many times slower."""
    asked = []
    monkeypatch.setattr("kd.distiller.upsampled_ce", lambda *args: asked.append(args[1]) or upsampled_ce(*args))
    student = TinyModel(3)
    student.forward_taps = lambda images: (torch.zeros(2, 3, 64 // stride, 64 // stride, requires_grad=True), {})
    student.logit_stride = stride
    recipe = Recipe({"ce": 1.0})
    losses = Distiller(DistilledStudent(student, recipe), student, recipe).losses(tiny_batch())
    assert losses["ce"].item() == pytest.approx(math.log(3), rel=1e-6)
    assert asked == ([4] if stride == 4 else [])


def test_a_step_trains_the_same_with_either():
    """Whatever other term there is makes the distiller go the plain way."""
    torch.manual_seed(0)
    student = TinyModel(3).eval()
    batch = tiny_batch(size=60)
    gradients = []
    for recipe in (Recipe({"ce": 1.0}), Recipe({"ce": 1.0, "dice": 1e-12})):
        distiller = Distiller(DistilledStudent(student, recipe), student, recipe)
        student.zero_grad()
        losses = distiller.losses(batch)
        distiller.total(losses).backward()
        gradients.append((losses["ce"].item(), [p.grad.clone() for p in student.parameters() if p.grad is not None]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
