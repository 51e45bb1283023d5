"""`--compile`: every model is one graph for torch.compile, and what is compiled computes what it computes otherwise.

Most of this runs with ``backend="eager"``: the graph is captured as for any backend and then executed by PyTorch as
usual, so that nothing has to be built and every bit must agree.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import nn

from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe
from tests.test_models import CLASSES, build
from tests.test_train import arguments, assert_same_run, rows
from tests.tiny import TinyModel, tiny_batch
from train_kd import main
from zoo import MODELS

# Of different make; all the others together take minutes.
QUICK = {"compact", "fastlitessnet", "segformer_b0"}
ONE_GRAPH = {"backend": "eager", "fullgraph": True}


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    """What another test has compiled counts towards PyTorch's limit of recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
class TestEveryModel:
    @torch.no_grad()
    def test_logits_in_eval_mode(self, name):
        model, images = build(name), torch.randn(1, 3, 61, 75)
        assert torch.equal(torch.compile(model, **ONE_GRAPH)(images), model(images))

    def test_training_step(self, name):
        """Logits, feature maps, gradients and BatchNorm's statistics; dropout takes the same random numbers."""
        plain, images = build(name).train(), torch.randn(2, 3, 64, 64)
        captured = copy.deepcopy(plain)
        results = []
        for forward in (plain.forward_taps, torch.compile(captured.forward_taps, **ONE_GRAPH)):
            torch.manual_seed(0)
            logits, taps = forward(images)
            (logits.square().mean() + sum(tap.square().mean() for tap in taps.values())).backward()
            results.append({"logits": logits, **taps})
        assert_equal(*results)
        assert_equal(gradients(plain), gradients(captured))
        assert gradients(plain)
        assert_equal(plain.state_dict(), captured.state_dict())


def test_distilled_student():
    """Losses and gradients of logit and feature terms, the adapters' included, are those without compiling."""
    recipe = Recipe({"ce": 1.0, "kl": 0.5, "cosine": 0.3, "cwd": 0.2}, temperature=2.0)
    teacher = LiveTeacher(TinyModel(CLASSES, width=16, logit_stride=8))
    plain = DistilledStudent(build("compact"), recipe, teacher).train()
    captured = copy.deepcopy(plain)
    results = []
    for model, forward in ((plain, plain), (captured, torch.compile(captured, **ONE_GRAPH))):
        distiller = Distiller(forward, model.student, recipe, teacher)
        torch.manual_seed(0)
        losses = distiller.losses(tiny_batch(size=72, classes=CLASSES))  # padded to 80
        distiller.total(losses).backward()
        results.append(losses)
    assert_equal(*results)
    assert set(results[0]) == {"ce", "kl", "cosine", "cwd"}
    assert_equal(gradients(plain), gradients(captured))
    assert any(name.startswith("adapters.") for name in gradients(plain))


@pytest.fixture(scope="module")
def teacher_file(demo_data, tmp_path_factory):
    """A (bad) teacher checkpoint: a fastlitessnet after one step."""
    output = tmp_path_factory.mktemp("teacher")
    assert main(arguments(demo_data, output, "--student", "fastlitessnet", "--max-steps", "1")) == 0
    return output / "run" / "best.pth"


@pytest.fixture
def distilled(teacher_file):
    weights = ["--alpha", "0.5", "--beta", "0.2", "--loss", "cwd=0.1"]
    return ["--teacher", "fastlitessnet", "--teacher-weights", teacher_file, *weights]


def test_a_compiled_run_is_the_run(demo_data, distilled, tmp_path, monkeypatch):
    """A frozen and a free stage of other batch and crop sizes, scored in between: bit for bit as without --compile."""
    stages = ["--freeze-epochs", "1", "--freeze-batch-size", "2", "--freeze-crop-size", "48"]
    assert main(arguments(demo_data, tmp_path / "plain", *distilled, *stages)) == 0
    graphs = []

    def execute(graph, inputs):
        assert not any(isinstance(value, torch.SymInt) for value in inputs), "compiled for sizes that never change"
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=execute, fullgraph=True))
    assert main(arguments(demo_data, tmp_path / "compiled", *distilled, *stages, "--compile")) == 0
    assert len(graphs) == 4  # of student and teacher one a stage: scoring in between has cost none
    assert_same_run(tmp_path / "plain" / "run", tmp_path / "compiled" / "run")


@pytest.mark.slow
def test_two_steps_with_the_default_backend(demo_data, distilled, tmp_path):
    """Kernels are really built. They add in another order: losses and scores agree closely, not bit for bit."""
    import torch._inductor.config as inductor

    steps = ["--max-steps", "2", "--warmup-epochs", "0"]  # so that the second loss shows what the first step did
    # Dropout draws eager's random numbers; left alone, compiled code has its own.
    with inductor.patch(fallback_random=True):
        for name, more in (("plain", []), ("compiled", ["--compile"])):
            assert main(arguments(demo_data, tmp_path, *distilled, *steps, "--name", name, *more)) == 0
    (plain,), (compiled,) = rows(tmp_path / "plain"), rows(tmp_path / "compiled")
    for key, value in plain.items():
        # Adam's first step is as long for gradients of 1e-8 as for others, and their signs are chance.
        rel = 5e-2 if key == "grad_norm" else 1e-3
        assert float(compiled[key]) == pytest.approx(float(value), rel=rel, abs=1e-3), key
