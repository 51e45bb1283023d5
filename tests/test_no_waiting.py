"""A training step asks the device for no number: on a GPU each question waits for all that it has to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kd.class_map import ClassMap
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe
from kd.losses import LOSSES
from kd.mapped_teacher import MappedTeacher
from tests.tiny import TinyModel, tiny_batch
from training.optim import Optimization, make_optimizer, make_scheduler
from training.state import LossSums

CPU = torch.device("cpu")
# What only numbers, not shapes, can answer: the value of a tensor, or how many of its elements are something.
QUESTIONS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2"}


class Questions(TorchDispatchMode):
    """Notes the operations of its block that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple)
        by_truth = chosen and any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in args[1])
        if name in QUESTIONS or by_truth:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("ask", "noticed"),
    [
        (lambda x: x.sum().item(), True),
        (lambda x: x[x > 1], True),
        (lambda x: bool(x.any()), True),
        (lambda x: x.bincount(), True),
        (lambda x: x[torch.tensor([0, 1])], False),
        (lambda x: torch.where(x > 1, x, 0).sum(), False),
    ],
)
def test_what_counts_as_a_question(ask, noticed):
    x = torch.arange(4)
    with Questions() as questions:
        ask(x)
    assert bool(questions.asked) == noticed


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", list(LOSSES))
def test_a_step_with_any_loss_asks_nothing(name, mapped):
    recipe = Recipe({"ce": 1.0, name: 1.0}, temperature=2.0)
    if mapped and not recipe.needs_teacher:
        pytest.skip("no teacher, no class map")
    torch.manual_seed(0)
    student, teacher = TinyModel(4), LiveTeacher(TinyModel(5 if mapped else 4))
    if mapped:
        teacher = MappedTeacher(teacher, ClassMap(tuple("abcd"), tuple("abcde"), (0, 1, 2, 2, -1)), 0.3)
    teacher = teacher if recipe.needs_teacher else None
    model = DistilledStudent(student, recipe, teacher)
    distiller = Distiller(model, student, recipe, teacher, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    optimizer = make_optimizer(model, "adamw", 1e-3, 1e-2)
    optimization = Optimization(
        optimizer, make_scheduler(optimizer, 9, 1, "poly"), torch.amp.GradScaler("cpu", enabled=False), CPU
    )
    sums = LossSums([*recipe.weights], CPU)
    batch = tiny_batch(classes=4) | {"labelled": torch.tensor([True, False])}

    def step() -> None:
        losses = distiller.losses(batch)
        optimizer.zero_grad(set_to_none=True)
        distiller.total(losses).backward()
        optimization.step(optimization.clip(1.0))
        sums.add(torch.stack([losses[term].detach() for term in recipe.weights]))

    step()  # the first looks at the teacher's word, and makes the optimizer's moments
    with Questions() as questions:
        step()
    assert not questions.asked
