"""Gradients: their norm, clipping, and the steps that are left out."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from torch import nn

from tests.test_train import arguments
from train_kd import get_args_parser, main, make_recipe
from training.optim import Optimization, learning_rate_factor, make_optimizer, make_scheduler
from training.recipe import settle
from training.state import on_this_device
from training.trainer import Trainer

CPU = torch.device("cpu")


def make(name: str = "sgd", scale: float | None = None) -> tuple[nn.Module, Optimization]:
    """Two parameters with gradients (3, 0), (0, 4): a norm of 5; a third has none."""
    model = nn.Module()
    model.a, model.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 1))
    model.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    model.a.grad, model.b.grad = torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])
    optimizer = make_optimizer(model, name, lr=0.1, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    return model, Optimization(optimizer, make_scheduler(optimizer, 10, 0, "step"), scaler, CPU)


@pytest.mark.parametrize(("most", "factor"), [(None, 1.0), (10.0, 1.0), (5.0, 1.0), (2.5, 0.5), (1e-3, 2e-4)])
def test_gradients_are_clipped_to_their_norm_together(most, factor):
    model, optimization = make()
    assert optimization.clip(most).item() == pytest.approx(5.0)  # as it was before
    torch.testing.assert_close(model.a.grad, factor * torch.tensor([3.0, 0.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(model.b.grad, factor * torch.tensor([[0.0], [4.0]]), rtol=1e-5, atol=0)


def test_the_norm_is_that_without_the_loss_scale():
    model, optimization = make(scale=64.0)
    optimization.scaler.scale(torch.ones(()))  # as before a backward pass
    model.a.grad *= 64
    model.b.grad *= 64
    assert optimization.clip(2.5).item() == pytest.approx(5.0)
    assert model.b.grad[1].item() == pytest.approx(2.0, rel=1e-5)
    optimization.step(torch.tensor(5.0))
    assert model.b[1].item() == pytest.approx(1 - 0.1 * 1.9 * 2.0, rel=1e-5)  # Nesterov's first step: 1 + momentum


def test_momentum_begins_at_nothing_even_if_the_first_step_is_left_out():
    """A scaler's first steps often are; a fused SGD then keeps what lay in the memory of its buffers."""
    model, optimization = make()
    optimizer = optimization.optimizer
    assert all(optimizer.state[p]["momentum_buffer"].eq(0).all() for p in (model.a, model.b))
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
    optimizer.step()
    assert model.a.eq(1).all() and all(optimizer.state[p]["momentum_buffer"].eq(0).all() for p in (model.a, model.b))
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    torch.testing.assert_close(model.a.detach(), torch.tensor([1 - 0.1 * 1.9 * 3, 1.0]))  # Nesterov's first


@pytest.mark.parametrize("fused", [True, False])  # as on Apple's GPUs
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_step_of_gradients_that_are_not_finite_changes_nothing(name, norm, fused):
    model, optimization = make(name)
    for settings in (optimization.optimizer.defaults, *optimization.optimizer.param_groups):
        settings["fused"] = fused
    optimization.step(optimization.clip(None))
    weights, moments = model.a.detach().clone(), [value.clone() for value in optimization.moments]
    model.a.grad[1] = norm
    found = optimization.clip(1.0)
    assert not found.isfinite()
    optimization.step(found)
    assert torch.equal(model.a, weights)
    assert all(torch.equal(one, other) for one, other in zip(optimization.moments, moments, strict=True))
    model.a.grad, model.b.grad = torch.ones(2), torch.ones(2, 1)
    optimization.step(optimization.clip(None))
    assert not torch.equal(model.a, weights) and model.a.isfinite().all()


def test_no_gradient_at_all_has_the_norm_zero():
    model, optimization = make()
    model.a.grad = model.b.grad = None
    assert optimization.clip(1.0).item() == 0


def test_the_log_has_the_mean_norm_before_clipping(demo_data, tmp_path):
    """Against the gradients themselves, in float64; clipped, the first step is shorter by the factor that it should."""
    steps, norms = {}, {}
    for clip in (None, 0.05):
        more = ["--optimizer", "sgd", "--lr", "1e-2", "--weight-decay", "0", "--warmup-epochs", "0", "--max-steps", "1"]
        more += ["--clip-norm", clip] if clip else []
        args = arguments(demo_data, tmp_path / str(clip), *more)
        run = Trainer(args, make_recipe(args))
        before = {key: value.detach().clone() for key, value in run.student.named_parameters()}
        run.run()
        with (tmp_path / str(clip) / "run" / "metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        norms[clip] = float(row["grad_norm"])
        steps[clip] = {key: value.detach() - before[key] for key, value in run.student.named_parameters()}
        if clip is None:
            squares = [p.grad.double().square().sum() for p in run.student.parameters() if p.grad is not None]
            assert norms[clip] == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    assert norms[0.05] == norms[None] > 0.05
    for key, whole in steps[None].items():
        torch.testing.assert_close(steps[0.05][key], 0.05 / norms[None] * whole, rtol=1e-2, atol=1e-7)


def test_epochs_and_resumes_keep_the_norm(demo_data, tmp_path):
    """Exactly: the mean of an epoch is that of both its halves."""
    for name, *cuts in (("whole",), ("parts", 2)):
        for more in [*(["--max-steps", cut] for cut in cuts), ["--resume", "auto"]]:
            assert main(arguments(demo_data, tmp_path / name, "--clip-norm", "0.5", *more)) == 0
    columns = []
    for name in ("whole", "parts"):
        with (tmp_path / name / "run" / "metrics.csv").open() as file:
            columns.append([row["grad_norm"] for row in csv.DictReader(file)])
    assert columns[0] == columns[1] and all(float(value) > 0 for value in columns[0])


@pytest.mark.parametrize(
    ("words", "lr", "factor"),
    [
        ([], 3e-3, 0.03),
        (["--student", "compact", "--student-weights", "some.pth"], 3e-3, 0.03),
        (["--student-weights", "none"], 5e-4, 1),
        (["--student", "fastlitessnet"], 5e-4, 1),
        (["--student", "smp:Unet/resnet18"], 5e-4, 1),
        (["--lr", "1e-4"], 1e-4, 1),  # nobody has measured the share beside another rate
        (["--backbone-lr-factor", "0.5"], 3e-3, 0.5),
        (["--qat", "--student-weights", "run/best.pth"], 1e-4, 1),  # it is trained already
        (["--lr", "1e-3", "--backbone-lr-factor", "0"], 1e-3, 0),
    ],
)
def test_rates_are_those_that_were_measured_for_the_student(words, lr, factor):
    args = get_args_parser().parse_args(words)
    settle(args, torch.device("cpu"))
    assert (args.lr, args.backbone_lr_factor) == (lr, factor)
    before = args.as_plain()
    settle(args, torch.device("cpu"))
    assert args.as_plain() == before


def test_schedules_by_hand():
    """110 steps, ten of them warm-up: 60 is half of the rest, 70 six tenths, 95 seventeen twentieths."""
    cosine, step, poly = (
        [learning_rate_factor(number, 110, 10, name) for number in (0, 5, 10, 60, 69, 70, 94, 95, 110)]
        for name in ("cosine", "step", "poly")
    )
    for factors in (cosine, step, poly):
        assert factors[:3] == pytest.approx([0.01, 0.505, 1])
    assert [cosine[3], cosine[-1]] == pytest.approx([0.5, 0], abs=1e-12)
    assert step[4:8] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert [poly[3], poly[-1]] == pytest.approx([0.5**0.9, 0])


@pytest.mark.parametrize("fused", [True, False])
def test_counts_of_steps_lie_where_this_devices_kernels_look_for_them(fused):
    """From a device without fused kernels to one with them (meta stands for it), and back."""
    layer = nn.Linear(3, 2)
    before = torch.optim.AdamW(layer.parameters(), fused=not fused)
    layer(torch.ones(1, 3)).sum().backward()
    before.step()
    other = torch.optim.AdamW(nn.Linear(3, 2, device="meta").parameters())
    other.defaults["fused"] = fused
    other.load_state_dict(on_this_device(before.state_dict(), other))
    assert [group["fused"] for group in other.param_groups] == [fused]
    steps = [moments["step"].device.type for moments in other.state.values()]
    assert steps == 2 * ["meta" if fused else "cpu"]
