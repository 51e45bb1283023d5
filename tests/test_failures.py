"""Losses that are no numbers, states not worth saving, memory that runs out, deterministic runs."""

import csv
import shutil
import subprocess
import sys

import pytest
import torch

from basics.checkpoint import load_file
from basics.errors import UserError
from basics.memory import explain_memory
from tests import forks
from tests.conftest import ROOT, assert_one_line_error
from tests.test_train import arguments, assert_same_run
from tests.tiny import tiny_in_zoo  # noqa: F401 (a fixture)
from train_kd import main, make_recipe
from training.failures import LossWatch, refuse_non_finite
from training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def tiny_args(demo_data, tmp_path):
    return lambda *more: arguments(demo_data, tmp_path, "--student", "tiny", *more)


def poison(trainer, step, what):
    """Let ``what(trainer)`` happen before the ``step``-th optimizer step (from 0)."""
    train_step = trainer.train_step

    def poisoned(batch):
        if trainer.progress.step == step:
            what(trainer)
        return train_step(batch)

    trainer.train_step = poisoned


def spoil_weights(trainer):
    with torch.no_grad():
        trainer.student.classifier.weight.fill_(float("nan"))


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 20])
def test_no_state_after_a_bad_loss_is_ever_saved(every, tiny_args, tmp_path):
    """Also where losses are looked at only now and then, as on a GPU."""
    args = tiny_args("--save-steps", "1")
    trainer = Trainer(args, make_recipe(args))
    trainer.watch.every = every
    poison(trainer, 2, spoil_weights)
    with pytest.raises(UserError, match=r"the loss is nan in epoch 1, batch of demo_\w+, .*last\.pth holds the last"):
        trainer.run()
    checkpoint = load_file(tmp_path / "run" / "last.pth")
    assert checkpoint["training"]["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_a_run_that_another_process_went_on_with_meanwhile_is_left_alone(tiny_args, tmp_path):
    args = tiny_args()
    late = Trainer(args, make_recipe(args))
    assert Trainer(args, make_recipe(args)).run() == 0
    before = (tmp_path / "run" / "last.pth").read_bytes()
    with pytest.raises(UserError, match="another process has gone on with this run meanwhile: start again"):
        late.run()
    assert (tmp_path / "run" / "last.pth").read_bytes() == before


@pytest.mark.parametrize("clip", [[], ["--clip-norm", "1"]], ids=["", "clipped"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("every", [1, 20])
def test_gradients_that_are_not_finite_stop_the_run_before_they_spoil_a_weight(
    every, optimizer, clip, tiny_args, tmp_path
):
    """The loss of the step is finite; its gradient is not. Looked at late, as on a GPU, further steps come after it."""
    args = tiny_args("--optimizer", optimizer, *clip)
    trainer = Trainer(args, make_recipe(args))
    trainer.watch.every = every
    before = {}

    def spoil_next_gradient(trainer):
        before.update({name: value.detach().clone() for name, value in trainer.student.named_parameters()})
        trainer.student.classifier.bias.register_hook(lambda gradient: gradient * float("inf"))

    poison(trainer, 2, spoil_next_gradient)
    with pytest.raises(
        UserError, match=r"the norm of the gradients is \w+ \(of the loss [\d.]+\) in epoch 1, batch of demo_"
    ):
        trainer.run()
    assert trainer.progress.step == (2 if every == 1 else 4)
    assert all(torch.equal(before[name], value) for name, value in trainer.student.named_parameters())
    assert all(value.isfinite().all() for value in trainer.optimization.moments)


def test_weights_that_a_step_has_spoilt_are_not_saved(tiny_args, tmp_path):
    """Its loss and its gradient were finite; the step was too long."""
    args = tiny_args("--save-steps", "1", "--optimizer", "sgd")
    trainer = Trainer(args, make_recipe(args))

    def lengthen(trainer):
        trainer.optimization.optimizer.param_groups[0]["lr"] = 3e38
        for parameter in trainer.student.parameters():
            parameter.register_hook(lambda gradient: gradient * 1e4)

    poison(trainer, 2, lengthen)
    with pytest.raises(UserError, match=r"not finite, not saved; .*last\.pth holds the last good state"):
        trainer.run()
    checkpoint = load_file(tmp_path / "run" / "last.pth")
    assert checkpoint["training"]["progress"]["step"] == 2
    args = tiny_args("--save-steps", "1", "--optimizer", "sgd", "--resume", "auto")
    assert Trainer(args, make_recipe(args)).run() == 0


def test_the_first_bad_batch_is_named(tmp_path):
    watch = LossWatch(torch.device("meta"), torch.amp.GradScaler("cpu", enabled=False), tmp_path / "last.pth")
    watch.every = 3
    one = torch.tensor(1.0)
    watch.add(one, one, ["good"], 1)
    watch.add(torch.tensor(float("inf")), one, ["bad", "other"], 1)
    with pytest.raises(UserError, match="the loss is inf in epoch 1, batch of bad, other; nothing was saved yet"):
        watch.add(torch.tensor(float("nan")), one, ["later"], 2)
    watch.every = 1
    watch.add(one, one, ["good"], 1)
    with pytest.raises(
        UserError, match=r"the norm of the gradients is nan \(of the loss 1\) in epoch 3, batch of steep;"
    ):
        watch.add(one, one * float("nan"), ["steep"], 3)


def test_refuse_non_finite(tmp_path):
    good = [torch.ones(3), torch.tensor([10**9]), torch.ones(2, dtype=torch.bfloat16)]
    refuse_non_finite(good, tmp_path)
    refuse_non_finite([], tmp_path)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="not finite"):
            refuse_non_finite([*good, torch.tensor([1.0, bad])], tmp_path)


# -- fp16 scaling ----------------------------------------------------------------------------------


def scaled(args, init_scale):
    """A run whose loss is scaled as under --amp fp16, on the CPU."""
    trainer = Trainer(args, make_recipe(args))
    trainer.optimization.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    trainer.watch.scaler = trainer.optimization.scaler
    return trainer


def test_steps_that_overflow_are_skipped_and_counted(tiny_args, tmp_path):
    """2^127 times a loss of 19 is inf in float32: the first steps are skipped, until the scale has halved enough."""
    trainer = scaled(tiny_args("--loss", "ce=10"), 2.0**127)
    before = [parameter.clone() for parameter in trainer.student.parameters()]
    changed = []
    train_step = trainer.train_step

    def watched(batch):
        losses = train_step(batch)
        changed.append(any(not torch.equal(a, b) for a, b in zip(before, trainer.student.parameters(), strict=True)))
        return losses

    trainer.train_step = watched
    assert trainer.run() == 0
    skipped = changed.index(True)
    assert skipped > 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["skipped_steps"]) == skipped
    report = (tmp_path / "run" / "report.txt").read_text()
    line = next(line for line in report.splitlines() if line.startswith("steps skipped"))
    assert line.split()[-1] == str(skipped)


def test_a_loss_left_out_by_scaling_leaves_no_nan_in_the_log(tiny_args, tmp_path, capsys):
    trainer = scaled(tiny_args("--epochs", "1"), 1.0)
    state = {}

    def spoil(trainer):
        state["weight"] = trainer.student.classifier.weight.clone()
        spoil_weights(trainer)

    def heal(trainer):
        with torch.no_grad():
            trainer.student.classifier.weight.copy_(state["weight"])

    poison(trainer, 1, spoil)
    poison(trainer, 2, heal)
    assert trainer.run() == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["skipped_steps"] == "1" and 0.5 < float(row["train_loss"]) < 5
    assert capsys.readouterr().out.count("warning: the loss is nan in epoch 1, batch of ") == 1


def test_scaling_that_never_ends_stops_the_run(tiny_args):
    trainer = scaled(tiny_args("--epochs", "9"), 2.0**-5)
    trainer.student.classifier.bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match="overflow fp16 at every step: use --amp bf16"):
        trainer.run()
    assert trainer.progress.step < 20


# -- memory ----------------------------------------------------------------------------------------


def cuda_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


def worker_killed():
    raise RuntimeError("DataLoader worker (pid 123) is killed by signal: Killed. ")


def shared_memory():
    raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device, /dev/shm is full")


@pytest.mark.parametrize("script", ["train_kd.py", "evaluate.py"])
def test_a_bad_file_that_a_loader_process_met_ends_the_run(script, demo_data, demo_checkpoint, tmp_path):
    """Loader processes ignore SIGTERM, by which Python ends them at exit: it used to wait for them for ever."""
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    for path in (data / "demo" / "JPEGImages").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-500])
    options = ["--dataset", "demo", "--data-dir", data, "--device", "cpu", "--workers", "2"]
    if script == "train_kd.py":
        options += ["--student", "compact", "--student-weights", "none", "--crop-size", "64", "--batch-size", "2"]
        options += ["--output-dir", tmp_path / "out"]
    else:
        options = [demo_checkpoint("compact"), *options]
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, options)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert_one_line_error(done, "truncated or damaged")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (lambda: torch.empty(10**15), ["out of memory", "lower --batch-size"]),
        (cuda_out_of_memory, ["out of memory", "20.00 GiB", "lower --batch-size"]),
        (lambda: [0] * 10**18, ["out of memory"]),
        (worker_killed, ["lower --workers"]),
        (shared_memory, ["--workers", "--shm-size"]),
    ],
)
def test_out_of_memory_is_one_line(failure, words):
    with pytest.raises(UserError) as error, explain_memory("lower --batch-size"):
        failure()
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="size mismatch"), explain_memory("lower --batch-size"):
        raise RuntimeError("size mismatch")


def test_the_script_explains_memory(tiny_args, monkeypatch):
    monkeypatch.setattr(Trainer, "train_step", lambda self, batch: torch.empty(10**15))
    with pytest.raises(UserError, match="lower --batch-size or --crop-size"):
        main(tiny_args())


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ([], "score in tiles: --eval-tile 512"),
        (["--batch-size", "4"], "lower --batch-size or score in tiles: --eval-tile 512"),
        (["--eval-tile", "256"], "lower --eval-tile from 256"),
    ],
)
def test_the_evaluation_script_explains_memory(options, advice, demo_data, demo_checkpoint, monkeypatch):
    import evaluate
    from scoring import protocol

    monkeypatch.setattr(protocol, "prepare_batch", lambda batch, device: torch.empty(10**15))
    parser = evaluate.get_args_parser()
    argv = [demo_checkpoint("tiny"), "--dataset", "demo", "--data-dir", demo_data, "--workers", 0, *options]
    with pytest.raises(UserError, match="out of memory") as error:
        evaluate.main(parser.parse_args([*map(str, argv), "--device", "cpu"]))
    assert str(error.value).endswith(f": {advice}")


def test_memory_that_runs_out_in_validation_is_not_blamed_on_training(tiny_args, monkeypatch):
    from scoring import protocol

    monkeypatch.setattr(protocol._TimedNetwork, "__call__", lambda self, images: torch.empty(10**15))
    with pytest.raises(UserError, match=r"lower --eval-batch-size or score in tiles: --eval-tile 512$"):
        main(tiny_args("--max-steps", "1", "--eval-batch-size", "2"))


# -- determinism -----------------------------------------------------------------------------------


@forks.needs_fork
def test_deterministic_runs(tiny_args, demo_data, tmp_path):
    """In processes of their own: the switch is PyTorch's, and stays on."""

    def work(name):
        args = arguments(demo_data, tmp_path / name, "--student", "tiny", "--loss", "dice=1", "--deterministic")
        status = main(args)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        return status

    for name in ("one", "two"):
        assert forks.wait(forks.fork(lambda name=name: work(name), tmp_path / "output.txt"), 60) == 0
    assert_same_run(tmp_path / "one" / "run", tmp_path / "two" / "run")
    assert "does not have a deterministic implementation" not in (tmp_path / "output.txt").read_text()
