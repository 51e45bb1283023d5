"""The averaged student: the mean itself, and that it is what is scored, saved, resumed and exported."""

from __future__ import annotations

import pytest
import torch

from basics.checkpoint import load_file
from basics.errors import UserError
from tests.test_train import arguments, assert_same_run
from tests.tiny import TinyModel
from train_kd import check_arguments, main, make_recipe
from training import trainer as trainer_module
from training.average import AveragedStudent
from training.trainer import Trainer
from zoo import load_checkpoint_model


def test_the_mean_by_hand():
    """With decay 0.3 the bound (1 + n) / (10 + n) = 0.1, 2/11, 0.25 holds for three steps, then the decay does."""
    student = TinyModel()
    averaged = AveragedStudent(student, 0.3)
    expected = student.classifier.weight.detach().double().clone()
    running = student.backbone["low"][1].running_mean.double().clone()
    for step, decay in enumerate([0.1, 2 / 11, 0.25, 0.3, 0.3]):
        with torch.no_grad():
            student.classifier.weight.normal_()
            student.backbone["low"][1].running_mean.normal_()
            student.backbone["low"][1].num_batches_tracked += 1
        expected = decay * expected + (1 - decay) * student.classifier.weight.detach().double()
        running = decay * running + (1 - decay) * student.backbone["low"][1].running_mean.double()
        averaged.update(student, step)
    torch.testing.assert_close(averaged.model.classifier.weight.double(), expected, rtol=1e-5, atol=1e-6)
    norm = averaged.model.backbone["low"][1]
    torch.testing.assert_close(norm.running_mean.double(), running, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 5 and not averaged.model.training
    assert not any(parameter.requires_grad for parameter in averaged.model.parameters())


def test_a_tensor_of_two_names_is_averaged_once():
    student = TinyModel()
    student.alias = student.classifier  # as networks have that call their encoder a backbone, too
    averaged = AveragedStudent(student, 0.9)
    with torch.no_grad():
        averaged.model.classifier.weight.zero_()
        student.classifier.weight.fill_(1)
    averaged.update(student, 1000)
    torch.testing.assert_close(averaged.model.alias.weight, torch.full_like(student.classifier.weight, 0.1))


def test_what_is_scored_and_saved_is_the_mean(demo_data, tmp_path, monkeypatch):
    scored = []
    evaluate = trainer_module.evaluate_model

    def watch(model, *args, **kwargs):
        scored.append(model)
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "evaluate_model", watch)
    args = arguments(demo_data, tmp_path, "--ema", "0.9", "--max-steps", "3", "--save-every", "1")
    run = Trainer(args, make_recipe(args))
    first = {name: value.clone() for name, value in run.student.state_dict().items()}
    assert run.run() == 0
    mean, trained = run.models.average.model.state_dict(), run.student.state_dict()
    assert scored == [run.models.average.model]
    key = "classifier.weight"
    assert not torch.equal(mean[key], trained[key]) and not torch.equal(mean[key], first[key])
    for file in ("best.pth", "last.pth"):
        saved = load_file(tmp_path / "run" / file)["state_dict"]
        assert all(torch.equal(saved[name], value) for name, value in mean.items()), file
    kept = load_file(tmp_path / "run" / "last.pth")["training"]["weights"]
    assert all(torch.equal(kept[name], value) for name, value in trained.items())
    assert "training" not in load_file(tmp_path / "run" / "best.pth")
    exported, _ = load_checkpoint_model(tmp_path / "run" / "best.pth")  # what export.py, predict.py and the rest load
    assert torch.equal(exported.state_dict()[key], mean[key])


def test_training_is_that_without_a_mean(demo_data, tmp_path):
    """It follows the weights and leaves them alone: the same losses, the same weights."""
    weights = {}
    for decay in (0, 0.99):
        args = arguments(demo_data, tmp_path / str(decay), "--ema", decay, "--max-steps", "3")
        run = Trainer(args, make_recipe(args))
        run.run()
        weights[decay] = run.student.state_dict()
    assert all(torch.equal(weights[0][name], value) for name, value in weights[0.99].items())


@pytest.mark.parametrize("cut", [3, 4])
def test_resuming_is_exact(cut, demo_data, tmp_path):
    for name, *cuts in (("whole",), ("parts", cut)):
        for more in [*(["--max-steps", step] for step in cuts), ["--resume", "auto"]]:
            assert main(arguments(demo_data, tmp_path / name, "--ema", "0.9", *more)) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    one, two = (load_file(tmp_path / name / "run" / "last.pth")["training"]["weights"] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_mean_may_begin_or_end_where_that_is_allowed(demo_data, tmp_path):
    """Without the mean's weights training goes on from the trained ones, never from the mean."""
    assert main(arguments(demo_data, tmp_path, "--ema", "0.9", "--max-steps", "2")) == 0
    with pytest.raises(UserError, match=r"--ema was 0\.9, is 0\.0"):
        main(arguments(demo_data, tmp_path, "--max-steps", "3", "--resume", "auto"))
    trained = load_file(tmp_path / "run" / "last.pth")["training"]["weights"]
    args = arguments(demo_data, tmp_path, "--max-steps", "3", "--resume", "auto", "--allow-changed")
    run = Trainer(args, make_recipe(args))
    assert all(torch.equal(trained[name], value) for name, value in run.student.state_dict().items())
    run.run()
    last = load_file(tmp_path / "run" / "last.pth")
    assert "weights" not in last["training"]
    args = arguments(demo_data, tmp_path, "--ema", "0.9", "--resume", "auto", "--allow-changed")
    run = Trainer(args, make_recipe(args))
    for model in (run.student, run.models.average.model):
        assert all(torch.equal(last["state_dict"][name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ema", "1"], r"--ema must be from 0 to 0\.99999, not 1\.0"),
        (["--ema", "-0.1"], "--ema must be from 0"),
        (["--ema", "nan"], "--ema must be from 0"),
        (["--ema", "0.9", "--qat"], "--qat and --ema exclude each other"),
        (["--clip-norm", "0"], "--clip-norm must be above 0, not 0"),
        (["--clip-norm", "inf"], "--clip-norm must be above 0"),
    ],
)
def test_senseless_values_are_refused(more, message, demo_data, tmp_path):
    with pytest.raises(UserError, match=message):
        check_arguments(arguments(demo_data, tmp_path, *more))
