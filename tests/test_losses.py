"""The rules that every loss keeps, for each row of the registry, and values worked out by hand."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch
from torch.nn import functional as F

from basics.batch import VOID
from basics.errors import UserError, choose
from kd.loss_tools import class_borders
from kd.losses import LOSSES, PAPER_LAMBDAS, PRESETS, TAPS, Recipe, adaptive_weights, loss_of, term_name

HARD = [name for name, spec in LOSSES.items() if spec.kind == "hard"]
SOFT = [name for name, spec in LOSSES.items() if spec.kind != "hard"]
CHANNELS = 5


def soft_inputs(name: str, seed: int = 0, n: int = 3, h: int = 4, w: int = 6):
    """Random student, teacher and valid for the soft loss ``name``; about a fifth of the cells is padding."""
    generator = torch.Generator().manual_seed(seed)
    spec = LOSSES[name]
    same_channels = spec.kind == "logits" or spec.adapter
    student = torch.randn(n, CHANNELS, h, w, generator=generator)
    teacher = 2 * torch.randn(n, CHANNELS if same_channels else CHANNELS + 3, h, w, generator=generator)
    valid = torch.rand(n, h, w, generator=generator) > 0.2
    return student, teacher, valid


def hard_inputs(seed: int = 0, n: int = 3, h: int = 4, w: int = 6):
    """Random logits and a mask with void pixels, in which the last class is absent."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, CHANNELS, h, w, generator=generator)
    mask = torch.randint(CHANNELS - 1, (n, h, w), generator=generator)
    return logits, mask.masked_fill(torch.rand(n, h, w, generator=generator) < 0.2, VOID)


def inputs(name: str, **kwargs):
    """Arguments of the loss ``name``: (student or logits, teacher or mask[, valid])."""
    return hard_inputs(**kwargs) if LOSSES[name].kind == "hard" else soft_inputs(name, **kwargs)


def value_and_grad(name: str, student: torch.Tensor, *rest, **options):
    """The loss and its gradient with respect to the student."""
    student = student.detach().clone().requires_grad_()
    loss = LOSSES[name].fn(student, *rest, **options)
    loss.backward()
    return loss.detach(), student.grad


# ---- rules for every loss ----


@pytest.mark.parametrize("name", LOSSES)
def test_registry_row_fits_its_function(name):
    spec = LOSSES[name]
    parameters = inspect.signature(spec.fn).parameters
    assert spec.kind in ("hard", "logits", "features")
    assert spec.uses_temperature == ("temperature" in parameters)
    assert spec.uses_stride == ("stride" in parameters)
    assert ("class_weights" in parameters) == (spec.kind == "hard")
    assert bool(spec.taps) == (spec.kind == "features")
    assert set(spec.taps) <= set(TAPS)
    assert spec.source
    for word in ("shapes", "scale", "void and padding"):
        assert word in spec.fn.__doc__.lower()


@pytest.mark.parametrize("name", LOSSES)
def test_is_a_positive_scalar_with_a_useful_gradient(name):
    student, *rest = inputs(name)
    loss, grad = value_and_grad(name, student, *rest)
    assert loss.shape == () and loss.dtype == torch.float32 and loss > 1e-3
    assert grad.isfinite().all() and grad.abs().sum() > 0
    step = student - 1e-2 * grad / grad.norm()
    assert LOSSES[name].fn(step, *rest) < loss


@pytest.mark.parametrize("name", SOFT)
def test_identical_maps_cost_nothing(name):
    student, _, valid = soft_inputs(name)
    loss, grad = value_and_grad(name, student, student.clone(), valid)
    assert abs(loss.item()) < 1e-6
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", HARD)
def test_perfect_prediction_costs_nothing(name):
    _, mask = hard_inputs()
    logits = 100.0 * torch.nn.functional.one_hot(mask.where(mask != VOID, 0), CHANNELS).movedim(-1, 1)
    assert abs(LOSSES[name].fn(logits, mask).item()) < 1e-6


@pytest.mark.parametrize("fill", [0.0, 3.0])
@pytest.mark.parametrize("name", SOFT)
def test_identical_constant_maps_cost_nothing(name, fill):
    constant = torch.full((2, CHANNELS, 4, 4), fill)
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    loss, grad = value_and_grad(name, constant, constant.clone(), valid)
    assert abs(loss.item()) < 1e-6
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", SOFT)
def test_constant_student_has_a_bounded_gradient(name):
    _, teacher, valid = soft_inputs(name)
    for fill in (0.0, 1e-12, 1.0):
        loss, grad = value_and_grad(name, torch.full((3, CHANNELS, 4, 6), fill), teacher, valid)
        assert loss.isfinite()
        assert grad.abs().max() < 100


@pytest.mark.parametrize("tiles", [(2, 1, 1), (1, 3, 1), (1, 1, 2), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_tiling_changes_nothing(name, tiles):
    tensors = inputs(name)
    n, h, w = tiles
    tiled = [x.repeat(n, 1, h, w) if x.ndim == 4 else x.repeat(n, h, w) for x in tensors]
    torch.testing.assert_close(LOSSES[name].fn(*tiled), LOSSES[name].fn(*tensors), rtol=1e-5, atol=1e-6)


def test_bpkd_does_not_change_when_a_picture_is_mirrored_at_its_edges():
    """The other losses see no neighbourhood; here copies side by side would make borders where they meet."""
    student, teacher, valid = bordered()
    border = class_borders(teacher, valid, window=3)
    assert 0 < border.sum() < valid.sum(), "both halves of the loss are at work"

    def mirrored(x, dims):
        return torch.cat([torch.cat([x, x.flip(-1)], -1), torch.cat([x, x.flip(-1)], -1).flip(dims)], dims)

    tiled = [mirrored(x, -2) for x in (student, teacher, valid)]
    for stride in (1, 3, 8):
        expected = LOSSES["bpkd"].fn(student, teacher, valid, stride=stride)
        torch.testing.assert_close(LOSSES["bpkd"].fn(*tiled, stride=stride), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_what_lies_under_padding_changes_nothing(name):
    student, teacher, valid = soft_inputs(name)
    assert not valid.all()
    loss, grad = value_and_grad(name, student, teacher, valid)
    padding = ~valid[:, None]
    assert grad.masked_select(padding).abs().max() == 0
    for s, t in [(1e30, 0.0), (0.0, -1e30), (1e30, 1e30), (-7.0, 5.0)]:
        changed, changed_grad = value_and_grad(
            name, student.masked_fill(padding, s), teacher.masked_fill(padding, t), valid
        )
        assert torch.equal(changed, loss)
        assert torch.equal(changed_grad, grad)


@pytest.mark.parametrize("name", HARD)
def test_what_lies_under_void_changes_nothing(name):
    logits, mask = hard_inputs()
    loss, grad = value_and_grad(name, logits, mask)
    void = (mask == VOID)[:, None]
    assert grad.masked_select(void).abs().max() == 0
    for value in (1e30, -1e30):
        # One class far away, so that the softmax under void changes too.
        other = logits.clone()
        other[:, :1] = other[:, :1].masked_fill(void, value)
        changed, changed_grad = value_and_grad(name, other, mask)
        assert torch.equal(changed, loss)
        assert torch.equal(changed_grad, grad)


@pytest.mark.parametrize("name", SOFT)
def test_valid_positions_count(name):
    """The converse of the padding rule: each valid cell of either map has a say."""
    student, teacher, valid = soft_inputs(name)
    n, y, x = valid.nonzero()[0]
    before = LOSSES[name].fn(student, teacher, valid)
    for changed in (student, teacher):
        kept = changed[n, :, y, x].clone()
        changed[n, :, y, x] = kept.roll(1) + torch.tensor([0.0, 1.0, 0.0, -1.0, 2.0, 0.5, 1.0, 0.0])[: len(kept)]
        assert LOSSES[name].fn(student, teacher, valid) != before
        changed[n, :, y, x] = kept


@pytest.mark.parametrize("name", SOFT)
def test_an_image_without_a_valid_position_is_left_out(name):
    student, teacher, valid = soft_inputs(name)
    expected = LOSSES[name].fn(student[:2], teacher[:2], valid[:2])
    valid[2] = False
    loss, grad = value_and_grad(name, student, teacher, valid)
    torch.testing.assert_close(loss, expected)
    assert grad[2].abs().max() == 0


@pytest.mark.parametrize("name", SOFT)
def test_no_valid_position_gives_zero(name):
    student, teacher, valid = soft_inputs(name)
    for fill in (None, 1e30):
        maps = [x if fill is None else torch.full_like(x, fill) for x in (student, teacher)]
        loss, grad = value_and_grad(name, *maps, torch.zeros_like(valid))
        assert loss.item() == 0
        assert grad.abs().max() == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", HARD)
def test_no_labelled_pixel_gives_zero(name, weighted):
    logits, mask = hard_inputs()
    weights = torch.rand(CHANNELS) if weighted else None
    loss, grad = value_and_grad(name, logits, torch.full_like(mask, VOID), class_weights=weights)
    assert loss.item() == 0
    assert grad.abs().max() == 0


@pytest.mark.parametrize("name", SOFT)
def test_single_valid_position(name):
    student, teacher, valid = soft_inputs(name)
    valid = torch.zeros_like(valid)
    valid[0, 1, 2] = True
    loss, grad = value_and_grad(name, student, teacher, valid)
    assert loss.isfinite() and loss >= 0
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", SOFT)
def test_gradient_goes_to_the_student_alone(name):
    student, teacher, valid = soft_inputs(name)
    student.requires_grad_()
    teacher.requires_grad_()
    LOSSES[name].fn(student, teacher, valid).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name, dtype):
    """Under autocast with half inputs: the very value of the same inputs in float32 without autocast."""
    student, *rest = inputs(name)
    student = student.to(dtype)
    rest = [x.to(dtype) if x.is_floating_point() else x for x in rest]
    expected, _ = value_and_grad(name, student.float(), *[x.float() if x.dtype == dtype else x for x in rest])
    with torch.autocast("cpu", dtype=dtype):
        loss, grad = value_and_grad(name, student, *rest)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype and grad.isfinite().all()
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_huge_values_give_finite_gradients(name, dtype):
    student, *rest = inputs(name)
    student = (1e4 * student.sign()).to(dtype)
    rest = [(1e4 * x.sign()).to(dtype) if x.is_floating_point() else x for x in rest]
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype):
        loss, grad = value_and_grad(name, student, *rest)
    assert loss.isfinite()
    assert grad.isfinite().all()


# Standardised logits have no scale that a temperature could take away: see below.
@pytest.mark.parametrize("name", [name for name in SOFT if LOSSES[name].uses_temperature and name != "kl_std"])
def test_temperature_softens_and_rescales(name):
    student, teacher, valid = soft_inputs(name)
    fn = LOSSES[name].fn
    torch.testing.assert_close(
        fn(student, teacher, valid, temperature=4.0), 16 * fn(student / 4, teacher / 4, valid, temperature=1.0)
    )
    torch.testing.assert_close(fn(student, teacher, valid), fn(student, teacher, valid, temperature=1.0))


def test_kl_std_sees_neither_scale_nor_offset():
    student, teacher, valid = soft_inputs("kl_std")
    fn = LOSSES["kl_std"].fn
    expected = fn(student, teacher, valid, temperature=2.0)
    torch.testing.assert_close(fn(5 * student + 3, 0.1 * teacher - 7, valid, temperature=2.0), expected)
    torch.testing.assert_close(fn(teacher * 9, teacher, valid), torch.tensor(0.0), atol=1e-6, rtol=0)
    standard = [(x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (student, teacher)]
    torch.testing.assert_close(expected, LOSSES["kl"].fn(*standard, valid, temperature=2.0))


@pytest.mark.parametrize("name", SOFT)
def test_maps_that_do_not_fit_are_refused(name):
    student, teacher, valid = soft_inputs(name)
    bad = [(student[:1], teacher, valid), (student, teacher[..., :3], valid), (student, teacher, valid[:, :1])]
    for arguments in [*bad, (student, teacher, valid.float())]:
        with pytest.raises(ValueError, match=name):
            LOSSES[name].fn(*arguments)


@pytest.mark.parametrize("name", HARD)
def test_mask_of_another_size_is_refused(name):
    logits, mask = hard_inputs()
    with pytest.raises(ValueError, match="mask"):
        LOSSES[name].fn(logits, mask[:, :2])


@pytest.mark.parametrize("name", HARD)
def test_equal_class_weights_are_no_weights(name):
    logits, mask = hard_inputs()
    weighted = LOSSES[name].fn(logits, mask, class_weights=torch.full((CHANNELS,), 7.0))
    torch.testing.assert_close(weighted, LOSSES[name].fn(logits, mask))


@pytest.mark.parametrize("name", HARD)
def test_a_class_of_weight_zero_has_no_say(name):
    logits, mask = hard_inputs()
    weights = torch.ones(CHANNELS)
    weights[1] = 0
    unlike = LOSSES[name].fn(logits, mask, class_weights=weights)
    assert unlike != LOSSES[name].fn(logits, mask)
    assert LOSSES[name].fn(logits, torch.full_like(mask, 1), class_weights=weights) == 0


# ---- values worked out by hand ----

# KL of (3/4, 1/4) from (1/2, 1/2), in nats.
KL_QUARTER = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def maps(*positions: list[float]) -> torch.Tensor:
    """(1, D, 1, w) from one list of D channel values a position."""
    return torch.tensor(positions).T[None, :, None, :]


def soft(name: str, student: torch.Tensor, teacher: torch.Tensor, **options) -> float:
    valid = torch.ones(student.shape[0], *student.shape[2:], dtype=torch.bool)
    return LOSSES[name].fn(student, teacher, valid, **options).item()


def test_ce_by_hand():
    logits = torch.zeros(1, 4, 1, 3)
    mask = torch.tensor([[[0, 3, VOID]]])
    assert LOSSES["ce"].fn(logits, mask).item() == pytest.approx(math.log(4))
    logits = torch.log(maps([0.75, 0.25], [0.5, 0.5]))
    mask = torch.tensor([[[0, 1]]])
    expected = -(1 * math.log(0.75) + 3 * math.log(0.5)) / 4
    weights = torch.tensor([1.0, 3.0])
    assert LOSSES["ce"].fn(logits, mask, class_weights=weights).item() == pytest.approx(expected)


def test_focal_by_hand():
    logits = torch.log(maps([0.75, 0.25], [0.5, 0.5], [0.9, 0.1]))
    mask = torch.tensor([[[0, 1, VOID]]])
    easy, even = -(0.25**2) * math.log(0.75), -(0.5**2) * math.log(0.5)
    assert LOSSES["focal"].fn(logits, mask).item() == pytest.approx((easy + even) / 2)
    weights = torch.tensor([1.0, 3.0])
    assert LOSSES["focal"].fn(logits, mask, class_weights=weights).item() == pytest.approx((easy + 3 * even) / 4)
    cross_entropy = LOSSES["ce"].fn(logits, mask)
    torch.testing.assert_close(LOSSES["focal"].fn(logits, mask, gamma=0.0), cross_entropy)


def test_dice_by_hand():
    # Two labelled pixels, both of class 0; class 1 is absent and left out.
    logits = torch.log(maps([0.75, 0.25], [0.5, 0.5], [0.1, 0.9]))
    mask = torch.tensor([[[0, 0, VOID]]])
    score = 2 * (0.75 + 0.5) / (0.75**2 + 0.5**2 + 2)
    assert LOSSES["dice"].fn(logits, mask).item() == pytest.approx(1 - score)
    # Both present: the mean of the classes, weighted if asked for.
    mask = torch.tensor([[[0, 1, VOID]]])
    first = 1 - 2 * 0.75 / (0.75**2 + 0.5**2 + 1)
    second = 1 - 2 * 0.5 / (0.25**2 + 0.5**2 + 1)
    assert LOSSES["dice"].fn(logits, mask).item() == pytest.approx((first + second) / 2)
    weights = torch.tensor([1.0, 3.0])
    assert LOSSES["dice"].fn(logits, mask, class_weights=weights).item() == pytest.approx((first + 3 * second) / 4)


def test_kl_by_hand():
    student, teacher = maps([0.0, 0.0]), torch.log(maps([3.0, 1.0]))
    assert soft("kl", student, teacher) == pytest.approx(KL_QUARTER)
    assert soft("kl", student, 2 * teacher, temperature=2.0) == pytest.approx(4 * KL_QUARTER)
    # A second position where both agree halves the mean; as padding it does not count.
    student, teacher = maps([0.0, 0.0], [5.0, 1.0]), torch.log(maps([3.0, 1.0], [1.0, 1.0]))
    teacher[..., 1] = student[..., 1]
    assert soft("kl", student, teacher) == pytest.approx(KL_QUARTER / 2)
    valid = torch.tensor([[[True, False]]])
    assert LOSSES["kl"].fn(student, teacher, valid).item() == pytest.approx(KL_QUARTER)


def test_cwd_by_hand():
    # Softmax over the two positions: class 0 differs, class 1 is equal (a constant offset does not matter).
    student = maps([0.0, 1.0], [0.0, 2.0])
    teacher = maps([math.log(3.0), 11.0], [0.0, 12.0])
    assert soft("cwd", student, teacher) == pytest.approx(KL_QUARTER / 2, rel=1e-5)


def test_dist_by_hand():
    # Swapped probabilities: correlation -1 over classes at every position and over positions in every class.
    student = torch.log(maps([0.9, 0.1], [0.2, 0.8]))
    assert soft("dist", student, student.flip(1)) == pytest.approx(4.0)
    # Constant in space: nothing to correlate there, and -1 over classes.
    student = torch.log(maps([0.9, 0.1], [0.9, 0.1]))
    assert soft("dist", student, student.flip(1)) == pytest.approx(2.0)


def test_icsd_by_hand():
    # A flat student has no differences between classes: zero rows against the teacher's unit rows.
    teacher = maps([5.0, 0.0, 1.0], [0.0, 5.0, 2.0], [1.0, 1.0, 5.0])
    assert soft("icsd", torch.zeros_like(teacher), teacher) == pytest.approx(1.0)
    # p_0 = p_1 in the student, p_0 = p_2 in the teacher: rows 0 are (0, 0, 1) and (0, 1, 0), at squared distance 2;
    # rows 1 are (0, 0, 1) and (1, 0, 1) / sqrt 2; rows 2 are (1, 1, 0) / sqrt 2 and (0, 1, 0).
    a, b = [0.0, 1.0], [2.0, 0.0]
    student = torch.tensor([a, a, b])[None, :, None, :]
    teacher = torch.tensor([a, b, a])[None, :, None, :]
    expected = (2 + 2 * (2 - math.sqrt(2))) / 3
    assert soft("icsd", student, teacher) == pytest.approx(expected, rel=1e-5)


def test_icsd_does_not_magnify_rounding_errors():
    """A student flat but for rounding has no similarities to speak of: the value of a flat one, a small gradient."""
    _, teacher, valid = soft_inputs("icsd")
    flat = LOSSES["icsd"].fn(torch.zeros_like(teacher), teacher, valid)
    loss, grad = value_and_grad("icsd", 1e-5 * torch.randn(teacher.shape), teacher, valid)
    torch.testing.assert_close(loss, flat, rtol=1e-2, atol=0)
    assert grad.abs().max() < 1


def test_cosine_and_pixelwise_by_hand():
    student = maps([1.0, 0.0], [0.0, 2.0], [3.0, 3.0])
    teacher = maps([5.0, 0.0], [0.0, -1.0], [1.0, 0.0])
    distances = 0 + 2 + (1 - math.sqrt(0.5))
    assert soft("cosine", student, teacher) == pytest.approx(distances / 3)
    assert soft("pixelwise", student, teacher) == pytest.approx(2 * distances / 3)


def test_pairwise_by_hand():
    # Cosines between the two positions: student 0, teacher 1; the diagonal agrees: 2 of 4 entries differ by 1.
    student = maps([1.0, 0.0], [0.0, 1.0])
    teacher = maps([1.0, 1.0, 0.0], [2.0, 2.0, 0.0])
    assert soft("pairwise", student, teacher) == pytest.approx(0.5)


def test_at_by_hand():
    # Attention (1, 0) and (0, 1): unit vectors at a right angle. A factor does not matter.
    assert soft("at", maps([1.0, 0.0], [0.0, 0.0]), maps([0.0], [7.0])) == pytest.approx(2.0)
    # Attention (1, 1) / sqrt 2 and (1, 0).
    assert soft("at", maps([-1.0], [1.0]), maps([3.0], [0.0])) == pytest.approx(2 - math.sqrt(2))


def test_csd_by_hand():
    # cos^2 of (1, 0) and (1, 1) is 1/2; what is negative counts as 0.
    assert soft("csd", maps([1.0, -4.0]), maps([3.0, 3.0])) == pytest.approx(math.log(2))
    assert soft("csd", maps([1.0, 0.0]), maps([0.0, 1.0])) == pytest.approx(-2 * math.log(1e-6), rel=1e-2)


def bordered(classes: int = 3):
    """Random student, teacher and valid of 2 pictures, whose left and right halves are of another class each."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(2, classes, 10, 12, generator=generator) for _ in range(2))
    teacher[:, 0, :, :5] += 20
    teacher[0, 1, :, 5:] += 20
    teacher[1, 2, :, 5:] += 20
    valid = torch.rand(2, 10, 12, generator=generator) > 0.1
    return student, teacher, valid


def test_class_borders_by_hand():
    labels = torch.tensor([[[0, 0, 0, 0, 1, 1, 2]]])
    logits = F.one_hot(labels, 3).movedim(-1, 1).float()
    valid = torch.ones(1, 1, 7, dtype=torch.bool)
    assert class_borders(logits, valid, 3).int().tolist() == [[[0, 0, 0, 1, 1, 1, 1]]]
    assert class_borders(logits, valid, 5).int().tolist() == [[[0, 0, 1, 1, 1, 1, 1]]]
    assert class_borders(logits, valid, 1).any() == 0
    valid[..., 4:6] = False  # between 0 and 2 lies nothing now, but they are neighbours at three cells' distance
    assert class_borders(logits, valid, 3).int().tolist() == [[[0] * 7]]
    assert class_borders(logits, valid, 7).int().tolist() == [[[0, 0, 0, 1, 0, 0, 1]]]


@pytest.mark.parametrize(
    ("stride", "columns"), [(1, range(2, 8)), (2, range(3, 7)), (3, range(4, 6)), (16, range(4, 6))]
)
def test_bpkd_is_kl_within_three_pixels_of_a_border_and_cwd_elsewhere(stride, columns):
    student, teacher, valid = bordered()
    border = torch.zeros_like(valid)
    border[..., list(columns)] = True
    expected = LOSSES["kl"].fn(student, teacher, valid & border, temperature=2.0)
    expected = expected + LOSSES["cwd"].fn(student, teacher, valid & ~border, temperature=2.0)
    torch.testing.assert_close(LOSSES["bpkd"].fn(student, teacher, valid, temperature=2.0, stride=stride), expected)


def test_pkd_by_hand():
    # Channel 0: the same up to scale and offset; channel 1: opposite; channel 2: constant in the student.
    student = maps([1.0, 1.0, 5.0], [2.0, 2.0, 5.0], [3.0, 3.0, 5.0])
    teacher = maps([10.0, 0.0, 1.0], [30.0, -4.0, 2.0], [50.0, -8.0, 4.0])
    assert soft("pkd", student, teacher) == pytest.approx((0 + 2 + 0.5) / 3, abs=1e-6)
    # Over the whole batch: two images that are constant each, and differ as the teacher's do.
    assert soft("pkd", torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), torch.tensor([0.0, 9.0]).view(2, 1, 1, 1)) < 1e-6


def test_attnfd_by_hand():
    sigmoid = [1 / (1 + math.exp(-z)) for z in (2 + 4, -1.5 - 1)]  # channel 0: mean 2, maximum 4; channel 1: -1.5, -1
    f = [[0 * sigmoid[0], -2 * sigmoid[1]], [4 * sigmoid[0], -1 * sigmoid[1]]]  # by position
    gates = [1 / (1 + math.exp(-(sum(values) / 2 + max(values)))) for values in f]
    student = [value * gate for values, gate in zip(f, gates, strict=True) for value in values]
    teacher = [1.0, 1.0, 1.0, 1.0]  # a constant map stays one
    cosine = sum(student) / math.hypot(*student) / math.hypot(*teacher)
    assert soft("attnfd", maps([0.0, -2.0], [4.0, -1.0]), maps([7.0, 7.0], [7.0, 7.0])) == pytest.approx(2 - 2 * cosine)


def test_per_image_losses_average_over_images():
    """One valid cell or twenty: each image has the same weight where the loss belongs to an image."""
    for name in ("cwd", "icsd", "pairwise", "at", "csd", "cwd_feat", "attnfd"):
        student, teacher, valid = soft_inputs(name, n=2)
        valid[:] = True
        valid[0, 1:] = False
        alone = [LOSSES[name].fn(student[i : i + 1], teacher[i : i + 1], valid[i : i + 1]) for i in range(2)]
        torch.testing.assert_close(LOSSES[name].fn(student, teacher, valid), sum(alone) / 2)


def test_per_position_losses_average_over_positions():
    for name in ("kl", "kl_std", "cosine", "pixelwise"):
        student, teacher, valid = soft_inputs(name, n=2)
        valid[:] = True
        valid[0, 1:] = False
        alone = [LOSSES[name].fn(student[i : i + 1], teacher[i : i + 1], valid[i : i + 1]) for i in range(2)]
        counts = [int(v.sum()) for v in valid]
        expected = (counts[0] * alone[0] + counts[1] * alone[1]) / sum(counts)
        torch.testing.assert_close(LOSSES[name].fn(student, teacher, valid), expected)


# ---- schedule, presets, look-up ----


def test_adaptive_weights_pass_from_teacher_to_labels():
    assert adaptive_weights(0.0) == (0.0, 1.0)
    assert adaptive_weights(0.25) == (0.25, 0.75)
    assert adaptive_weights(1.0) == (1.0, 0.0)
    for progress in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="progress"):
            adaptive_weights(progress)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_names_known_losses(name):
    preset = PRESETS[name]
    assert set(preset.weights) <= set(LOSSES)
    assert preset.names("hard", "logits", "features") == list(preset.weights)
    assert {"kl", "cosine"} <= set(preset.dials), "alpha and beta are the dials of these two"
    assert {term: weight for term, weight in preset.dials.items() if weight} == preset.weights
    assert all(weight >= 0 for weight in preset.weights.values())
    assert sum(weight for term, weight in preset.weights.items() if LOSSES[term].kind == "hard") > 0
    assert sum(weight for term, weight in preset.weights.items() if LOSSES[term].kind != "hard") > 0
    assert preset.temperature > 0 and preset.source
    if preset.temperature != 1:
        assert any(weight and LOSSES[term].uses_temperature for term, weight in preset.weights.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset.temperature = 2.0


def test_presets_are_the_published_mixes():
    assert set(PRESETS) == {"response", "feature", "hdl", "papi", "aicsd", "cwd", "dist"}
    nonzero = {name: {k: w for k, w in preset.weights.items() if w} for name, preset in PRESETS.items()}
    assert nonzero["hdl"] == {"ce": 0.5, "dice": 0.2, "csd": 0.3}
    assert nonzero["papi"] == {"ce": 1.0, "pairwise": 1.0, "pixelwise": pytest.approx(100 / 129)}
    assert nonzero["cwd"] == {"ce": 1.0, "cwd": 3.0} and PRESETS["cwd"].temperature == 4.0
    assert nonzero["aicsd"] == {"ce": 1.0, "kl": pytest.approx(10 / 21), "icsd": 1.0}
    assert nonzero["dist"] == {"ce": 1.0, "dist": 1.0} and nonzero["feature"] == {"ce": 1.0, "cosine": 1.0}
    assert nonzero["response"] == {"ce": 1.0, "kl": 1.0} and PRESETS["response"].temperature == 4.0
    assert [name for name, preset in PRESETS.items() if preset.adaptive] == ["aicsd"]


def test_paper_lambdas_name_known_losses():
    for loss, factor in PAPER_LAMBDAS.values():
        assert loss in LOSSES and factor > 0


def test_unknown_loss_lists_the_known_ones():
    with pytest.raises(UserError, match=r"cosine.*kl"):
        choose(LOSSES, "cosinus", "loss")


# ---- what a loss can act on ----


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.kind != "features"])
def test_the_least_number_of_classes_is_true(name, classes):
    """From it on there is a gradient; below there is none, nor (but for a sign, in `kl_std`) a loss."""
    generator = torch.Generator().manual_seed(classes)
    student = torch.randn(2, classes, 6, 6, generator=generator)
    if LOSSES[name].kind == "hard":
        rest = (torch.randint(classes, (2, 6, 6), generator=generator),)
    else:
        rest = (torch.randn(2, classes, 6, 6, generator=generator), torch.ones(2, 6, 6, dtype=torch.bool))
    loss, gradient = value_and_grad(name, student, *rest)
    if classes >= LOSSES[name].min_classes:
        assert loss > 0 and gradient.abs().max() > 1e-5
    else:
        assert gradient.abs().max() < 1e-6
        assert loss.abs() < 1e-6 or (name, classes) == ("kl_std", 2)


def test_recipes_name_every_term_that_cannot_act():
    recipe = Recipe({"ce": 1.0, "kl": 1.0, "icsd": 1.0, "cosine": 1.0})
    recipe.require_classes(3)
    with pytest.raises(UserError, match=r"^icsd would teach nothing: the data set has 2 classes.* --loss icsd=0$"):
        recipe.require_classes(2)
    with pytest.raises(UserError, match=r"^ce and kl and icsd would teach nothing: the data set has 1 class, "):
        recipe.require_classes(1)
    Recipe({"ce": 1.0, "icsd": 0.0}).require_classes(2)


# ---- terms: losses on maps of one's choice ----


@pytest.mark.parametrize(
    ("term", "name", "taps"),
    [
        ("cosine", "cosine", ("low", "mid", "high")),
        ("cosine@high", "cosine@high", ("high",)),
        ("cosine@decoder+low", "cosine@low+decoder", ("low", "decoder")),
        ("cosine@decoder,low", "cosine@low+decoder", ("low", "decoder")),
        ("cosine@high+mid+low", "cosine", ("low", "mid", "high")),
        ("cwd_feat@decoder", "cwd_feat", ("decoder",)),
        ("at@high+high", "at@high", ("high",)),
        ("kl", "kl", ()),
        ("ce@high", "ce@high", ("high",)),
        ("kl@high+mid", "kl@mid+high", ("mid", "high")),
    ],
)
def test_a_term_names_its_maps(term, name, taps):
    assert term_name(term) == name
    assert loss_of(term).taps == taps
    assert loss_of(term).fn is LOSSES[term.partition("@")[0]].fn


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ("cosin@high", ["unknown loss 'cosin'", "cosine"]),
        ("cosine@hihg", ["unknown feature map in the loss 'cosine@hihg'", "'hihg'", "high", "decoder"]),
        ("cosine@", ["unknown feature map", "low"]),
        ("cosine@low+", ["unknown feature map"]),
        ("kl@hihg", ["unknown feature map in the loss 'kl@hihg'"]),
        ("ce@high", ["no loss looks at what the student itself says", "give ce"]),
    ],
)
def test_terms_that_mean_nothing_are_refused(term, words):
    with pytest.raises(UserError) as error:
        Recipe({term: 1.0})
    assert all(word in str(error.value) for word in words), error.value


def test_a_recipe_may_have_several_terms_of_one_loss():
    recipe = Recipe({"ce": 1.0, "cosine": 1.0, "cosine@decoder": 2.0, "at@high+mid": 0.5, "kl": 0.0})
    assert recipe.weights == {"ce": 1.0, "cosine": 1.0, "cosine@decoder": 2.0, "at@mid+high": 0.5}
    assert recipe.names("features") == ["cosine", "cosine@decoder", "at@mid+high"]
    assert recipe.taps == ["decoder", "high", "low", "mid"]
    assert Recipe({"ce": 1.0, "at@high": 1.0}).taps == ["high"]


def test_terms_on_auxiliary_heads_want_nothing_of_the_teachers_maps():
    recipe = Recipe({"ce": 1.0, "ce@high": 0.5, "kl@high+mid": 0.5, "at@low": 1.0})
    assert recipe.heads == ["high", "mid"] and recipe.taps == ["low"]
    assert recipe.names("hard") == ["ce", "ce@high"] and recipe.names("logits") == ["kl@mid+high"]
    assert not Recipe({"ce": 1.0, "ce@high": 0.5}).needs_teacher
    assert Recipe({"ce": 1.0, "ce@high": 0.5, "kl": 1.0}).without_hard().weights == {"kl": 1.0}


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.kind == "features"])
def test_what_a_cache_may_rotate(name):
    """A loss on inner products alone has the same value where the vectors of both sides are turned, no other has."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 8, 6, 7, generator=generator) for _ in range(2))
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    spec, valid = LOSSES[name], torch.ones(2, 6, 7, dtype=torch.bool)
    more = {"temperature": 2.0} if spec.uses_temperature else {}
    plain, turned = (
        spec.fn(*(torch.einsum("ij,bjhw->bihw", by, maps) for maps in (student, teacher)), valid, **more)
        for by in (torch.eye(8), turn)
    )
    assert torch.isclose(plain, turned, rtol=1e-4) == spec.rotatable
