"""Several processes as one run: the same gradients, the same scores, the same files; a death stops all."""

import copy
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from basics import distributed
from basics.batch import prepare_batch
from basics.checkpoint import load_file, save_atomic
from basics.errors import UserError
from dataset import build_dataset
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe
from kd.losses import LOSSES
from scoring.protocol import evaluate_model, scoring_loader
from tests.conftest import ROOT
from tests.forks import Ranks, free_port, needs_fork
from tests.test_train import arguments, assert_same_run, rows
from tests.tiny import TinyModel, tiny_batch
from train_kd import check_arguments, main, make_recipe, name_run
from training.trainer import Trainer

pytestmark = needs_fork
CPU = torch.device("cpu")


class SteadyModel(TinyModel):
    """Without dropout, whose random numbers no two numbers of processes can share."""

    def __init__(self, num_classes: int = 3):
        super().__init__(num_classes)
        self.dropout = nn.Identity()


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    for name, build in (("tiny", TinyModel), ("steady", SteadyModel)):
        monkeypatch.setitem(zoo.MODELS, name, zoo.ModelSpec(build, None, "random"))


@pytest.fixture(scope="module")
def teacher_file(demo_data, tmp_path_factory):
    dataset = build_dataset("demo", demo_data, "val")
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    save_atomic(zoo.model_file_dict("tiny", TinyModel(dataset.num_classes), dataset), path)
    return path


@pytest.fixture
def tiny_run(demo_data, teacher_file):
    """``tiny_run(output_dir, "--more")`` -> arguments of a distilled run of a tiny student, 4 steps an epoch."""

    def make(output_dir, *more):
        distilled = ["--teacher", "tiny", "--teacher-weights", teacher_file, "--alpha", "0.5", "--beta", "0.2"]
        return arguments(demo_data, output_dir, "--student", "tiny", "--loss", "dice=0.5", *distilled, *more)

    return make


def train(args):
    """As the script does from within a session; what goes wrong ends the process as it ends the script."""
    check_arguments(args)
    recipe = make_recipe(args)
    name_run(args, recipe)
    status = Trainer(args, recipe).run()
    if status:
        sys.exit(status)


# -- the same numbers ------------------------------------------------------------------------------


def uneven_batch(images: int = 4, size: int = 32) -> dict:
    """Ranks get very different numbers of labelled and valid pixels; one image of rank 1 has neither."""
    batch = tiny_batch(size=size, images=images)
    batch["image"] = batch["image"].double()
    batch["mask"][1, :20] = 255
    batch["mask"][3] = 255
    batch["valid"][1, :, 17:] = False
    batch["valid"][3] = False
    batch["mask"][~batch["valid"]] = 255
    return batch


def share(batch: dict, rank: int, world: int) -> dict:
    return {key: value[rank::world] for key, value in batch.items()}


def gradients(rank: int, world: int, weights: dict) -> tuple[dict, dict, dict]:
    """One step of the distiller in float64: (mean losses, gradients by parameter, buffers)."""
    torch.manual_seed(0)
    student, teacher = SteadyModel().double(), TinyModel(width=12).double()
    student = distributed.synchronize_batchnorm(student, CPU)
    recipe = Recipe(weights, temperature=2.0)
    guide = LiveTeacher(teacher) if recipe.needs_teacher else None
    model = DistilledStudent(student, recipe, guide).double().train()
    distributed.synchronize_batchnorm(model.adapters, CPU)
    for module in model.adapters.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each rank draws its own
    distiller = Distiller(distributed.wrap(model, CPU), student, recipe, guide)
    losses = distiller.losses(share(uneven_batch(), rank, world))
    distiller.total(losses).backward()
    means = {name: distributed.add_up(value.detach().clone()) / world for name, value in losses.items()}
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return means, grads, {name: buffer.clone() for name, buffer in student.named_buffers()}


@pytest.fixture
def in_float64(monkeypatch):
    """The distiller casts logits to float32; the comparison shall not drown in its rounding."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.double())


def test_every_loss_has_the_gradient_of_one_process(in_float64, tmp_path):
    recipes = {name: {"ce": 0.0 if LOSSES[name].kind == "hard" else 1e-3, name: 1.0} for name in LOSSES}
    recipes["auxiliary heads"] = {"ce": 1e-3, "ce@high": 1.0, "kl@mid": 1.0}

    def work(rank):
        return {name: gradients(rank, 2, weights) for name, weights in recipes.items()}

    one = {name: gradients(0, 1, weights) for name, weights in recipes.items()}
    for result in Ranks(work, 2, tmp_path / "ranks").results():
        for name in recipes:
            for got, expected in zip(result[name], one[name], strict=True):
                assert got.keys() == expected.keys()
                for key in got:
                    torch.testing.assert_close(got[key], expected[key], rtol=1e-9, atol=1e-12, msg=f"{name}: {key}")


def test_all_ranks_go_by_the_slowest_clock(tmp_path):
    results = Ranks(lambda rank: distributed.largest_over_ranks(0.1 + rank), 2, tmp_path / "ranks").results()
    assert results == [1.1, 1.1] and distributed.largest_over_ranks(0.1) == 0.1


def test_class_weights_count_for_all_ranks(tmp_path):
    def loss(rank, world):
        torch.manual_seed(1)
        batch = uneven_batch()
        logits = torch.randn(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)
        fn = LOSSES["ce"].fn
        value = fn(logits[rank::world], batch["mask"][rank::world], class_weights=torch.tensor([0.2, 1.0, 5.0]))
        value.backward()
        return value.detach(), logits.grad

    value, grad = loss(0, 1)
    results = Ranks(lambda rank: loss(rank, 2), 2, tmp_path / "ranks").results()
    torch.testing.assert_close(sum(result[0] for result in results) / 2, value)
    torch.testing.assert_close(sum(result[1] for result in results) / 2, grad)


def test_batchnorm_over_ranks_is_batchnorm_over_the_batch(tmp_path):
    torch.manual_seed(0)
    images = 3 + 2 * torch.randn(6, 5, 4, 3, dtype=torch.float64)
    weights = torch.randn_like(images)

    def work(rank, world):
        norm = nn.BatchNorm2d(5, momentum=0.3).double()
        nn.init.uniform_(norm.weight)
        norm = distributed.synchronize_batchnorm(nn.Sequential(norm), CPU)[0]
        part = images[rank::world].clone().requires_grad_()
        out = norm(part)
        (out.square() * weights[rank::world]).sum().backward()
        norm.eval()
        return out.detach(), part.grad, norm.weight.grad, norm.state_dict(), norm(part).detach()

    torch.manual_seed(1)
    out, grad, weight_grad, state, scored = work(0, 1)
    torch.manual_seed(1)
    ranks = Ranks(lambda rank: work(rank, 3), 3, tmp_path / "ranks").results()
    for rank, (out_r, grad_r, _, state_r, scored_r) in enumerate(ranks):
        torch.testing.assert_close(out_r, out[rank::3])
        torch.testing.assert_close(grad_r, grad[rank::3])
        torch.testing.assert_close(scored_r, scored[rank::3])
        assert state_r.keys() == state.keys()
        for key in state:
            torch.testing.assert_close(state_r[key], state[key])
    torch.testing.assert_close(sum(result[2] for result in ranks), weight_grad)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_timms_activations_survive(device, monkeypatch, capsys):
    """`nn.SyncBatchNorm` would leave out the activation inside; other kinds keep their statistics, and are named."""
    layers = pytest.importorskip("timm.layers")

    class OfAUser(nn.BatchNorm2d):
        def forward(self, images):
            return 2 * super().forward(images)

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), layers.BatchNormAct2d(4), nn.Sequential(nn.BatchNorm2d(4)), nn.Sigmoid(), OfAUser(4)
    )
    images, names = 3 * torch.randn(2, 3, 5, 5), list(net.state_dict())
    net(images)  # for statistics
    before = copy.deepcopy(net)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    net = distributed.synchronize_batchnorm(net, torch.device(device))
    assert capsys.readouterr().out.startswith(
        "remark: layers of the kind OfAUser take their statistics in each process"
    )
    assert list(net.state_dict()) == names and type(net[4]) is OfAUser
    torch.testing.assert_close(net.eval()(images), before.eval()(images))
    kinds = [type(net[1]).__name__, type(net[2][0]).__name__]
    assert kinds == (
        ["SyncedBatchNormAct", "SyncedBatchNorm"] if device == "cpu" else ["SyncBatchNormAct", "SyncBatchNorm"]
    )
    if device == "cpu":
        monkeypatch.setattr(distributed, "world_size", lambda: 1)  # then it is the same in training, too
        torch.testing.assert_close(net.train()(images), before.train()(images))
        torch.testing.assert_close(net.state_dict(), before.state_dict())


def test_batchnorm_over_ranks_takes_half_types(tmp_path):
    """As autocast hands them over: sums are taken in float32, the output has the input's type."""
    torch.manual_seed(0)
    images = (100 + torch.randn(4, 5, 8, 8)).bfloat16()

    def work(rank, world):
        norm = distributed.synchronize_batchnorm(nn.Sequential(nn.BatchNorm2d(5)), CPU)[0]
        return norm(images[rank::world]).detach(), norm.running_mean

    expected = nn.BatchNorm2d(5)
    out = expected(images.float())
    for rank, (out_r, mean_r) in enumerate(Ranks(lambda rank: work(rank, 2), 2, tmp_path / "ranks").results()):
        assert out_r.dtype == torch.bfloat16
        torch.testing.assert_close(out_r.float(), out[rank::2], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(mean_r, expected.running_mean)


def test_a_frozen_backbone_whose_maps_are_compared_as_they_are(tiny_run, tmp_path):
    more = ["--alpha", "0", "--beta", "0", "--loss", "at=1", "--freeze-epochs", "1", "--max-steps", "5"]
    Ranks(lambda rank: train(tiny_run(tmp_path / "two", *more)), 2, tmp_path / "ranks").results()
    assert len(rows(tmp_path / "two" / "run")) == 2


@pytest.mark.parametrize(("world", "batch"), [(2, 1), (7, 1), (4, 4)])
def test_validation_counts_every_pixel_once(world, batch, demo_data, tmp_path):
    """Six images of one size: even shares, one rank without any, and two batches of them for four ranks."""
    for number, sample in enumerate(build_dataset("demo", demo_data, "val")):
        for place, pixels in (("images", sample["image"].permute(1, 2, 0)), ("masks", sample["mask"])):
            (tmp_path / "equal" / place).mkdir(parents=True, exist_ok=True)
            pixels = pixels[:96, :128].to(torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "equal" / place / f"{number}.png")
    (tmp_path / "equal" / "classes.txt").write_text("\n".join("abcdefg"))
    (tmp_path / "equal" / "val.txt").write_text("".join(f"{number}\n" for number in range(6)))
    dataset = build_dataset("folder", tmp_path / "equal", "val")
    torch.manual_seed(0)
    model = TinyModel(dataset.num_classes)
    one = evaluate_model(model, dataset, CPU, progress=False)

    def work(rank):
        return evaluate_model(model, dataset, CPU, loader=scoring_loader(dataset, CPU, batch, 0))

    ranks = Ranks(work, world, tmp_path / "ranks").results()
    labelled = sum(int((sample["mask"] != 255).sum()) for sample in dataset)
    for evaluation in ranks:
        assert evaluation.scores.pixels == one.scores.pixels == labelled
        assert torch.equal(evaluation.scores.iou.nan_to_num(-1), one.scores.iou.nan_to_num(-1))
        assert evaluation.scores.miou == one.scores.miou
        assert evaluation.loss == pytest.approx(one.loss, rel=1e-12 if batch == 1 else 1e-6)


def test_two_ranks_train_as_one_process(tiny_run, tmp_path):
    # Not AdamW: it turns the rounding of a gradient that is 0 (a bias before BatchNorm) into whole steps.
    more = ["--student", "steady", "--save-every", "1", "--optimizer", "sgd"]
    assert main(tiny_run(tmp_path / "one", *more)) == 0
    Ranks(lambda rank: train(tiny_run(tmp_path / "two", *more)), 2, tmp_path / "ranks").results()
    for one, two in zip(rows(tmp_path / "one" / "run"), rows(tmp_path / "two" / "run"), strict=True):
        for key in one:
            assert float(two[key]) == pytest.approx(float(one[key]), rel=1e-4), key
    one, two = (load_file(tmp_path / name / "run" / "last.pth")["state_dict"] for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
    output = (tmp_path / "ranks" / "output_0.txt").read_text()
    assert output.count("| val loss") == 2
    assert "val loss" not in (tmp_path / "ranks" / "output_1.txt").read_text()


# -- the same run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_two_ranks_resume_exactly(cached, tiny_run, tmp_path):
    """Within an epoch, with dropout: each rank goes on with its own random numbers. They share the caches."""

    def run(name, *more):
        caches = ["--cache-teacher", "--cache-dir", tmp_path / "cache", "--decode-cache", tmp_path / "cache"]
        args = tiny_run(tmp_path / name, *more, *(caches if cached else []))
        Ranks(lambda rank: train(copy.deepcopy(args)), 2, tmp_path / "ranks").results()

    run("whole")
    run("parts", "--max-steps", "3")
    saved = load_file(tmp_path / "parts" / "run" / "last.pth")["training"]
    assert len(saved["rng"]) == 2 and not torch.equal(saved["rng"][0]["cpu"], saved["rng"][1]["cpu"])
    run("parts", "--resume", "auto")
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")


def test_one_process_goes_on_where_two_stopped(tiny_run, tmp_path):
    more = ["--student", "steady", "--optimizer", "sgd"]
    assert main(tiny_run(tmp_path / "one", *more)) == 0
    args = tiny_run(tmp_path / "two", *more, "--max-steps", "3")
    Ranks(lambda rank: train(args), 2, tmp_path / "ranks").results()
    assert main(tiny_run(tmp_path / "two", *more, "--resume", "auto")) == 0
    for one, two in zip(rows(tmp_path / "one" / "run"), rows(tmp_path / "two" / "run"), strict=True):
        assert {key: float(value) for key, value in two.items()} == pytest.approx(
            {key: float(value) for key, value in one.items()}, rel=1e-4
        )


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tiny_run, tmp_path, monkeypatch):
    step = Trainer.train_step

    def step_and_signal(self, batch):
        if distributed.rank() == 1 and self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", step_and_signal)
    ranks = Ranks(lambda rank: train(tiny_run(tmp_path)), 2, tmp_path / "ranks")
    assert ranks.statuses() == [130, 130]
    assert load_file(tmp_path / "run" / "last.pth")["training"]["progress"]["step"] == 3
    assert "--resume auto" in ranks.output(0).read_text()


# -- what must not go on ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_stops_the_others(number, tiny_run, tmp_path, monkeypatch):
    step = Trainer.train_step

    def step_and_die(self, batch):
        if distributed.rank() == 1 and self.progress.step == 2:
            os.kill(os.getpid(), number)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", step_and_die)
    start = time.monotonic()
    ranks = Ranks(lambda rank: train(tiny_run(tmp_path, "--save-steps", "1")), 2, tmp_path / "ranks", timeout_s=10)
    ranks.children.reverse()  # the dead one first, to look at the survivor
    dead, alive = ranks.children
    ranks.children = [alive]
    assert ranks.statuses(timeout=60) == [2]
    assert time.monotonic() - start < 60
    os.kill(dead, signal.SIGKILL)
    os.waitpid(dead, 0)
    message = ranks.output(0).read_text()
    assert "another process of this run ended or did not answer" in message and "Traceback" not in message
    assert load_file(tmp_path / "run" / "last.pth")["training"]["progress"]["step"] == 2


def test_a_loss_that_is_no_number_on_one_rank_stops_all(tiny_run, tmp_path, monkeypatch):
    def poisoned(batch, device):
        batch = prepare_batch(batch, device)
        if distributed.rank() == 1:
            batch["image"][0] = float("nan")
        return batch

    monkeypatch.setattr("training.trainer.prepare_batch", poisoned)
    monkeypatch.setattr(distributed, "synchronize_batchnorm", lambda model, device: model)  # else both are spoilt
    args = tiny_run(tmp_path, "--loss", "dice=0")  # dice adds up over ranks, and both would see the nan
    ranks = Ranks(lambda rank: train(args), 2, tmp_path / "ranks")
    assert ranks.statuses() == [2, 2]
    assert "another rank" in ranks.output(0).read_text()
    assert "batch of demo_" in ranks.output(1).read_text()
    assert not (tmp_path / "run" / "last.pth").exists()


def test_a_batch_that_cannot_be_shared_is_refused(tiny_run, tmp_path):
    ranks = Ranks(lambda rank: train(tiny_run(tmp_path)), 3, tmp_path / "ranks")
    assert ranks.statuses() == [2, 2, 2]
    assert "--batch-size 4 is what all 3 processes share" in ranks.output(0).read_text()


def test_ranks_that_see_other_folders_are_refused(tiny_run, tmp_path):
    assert main(tiny_run(tmp_path / "0", "--max-steps", "1")) == 0
    work = lambda rank: train(tiny_run(tmp_path / str(rank), "--resume", "auto"))  # noqa: E731
    ranks = Ranks(work, 2, tmp_path / "ranks")
    assert ranks.statuses() == [2, 2]
    assert "must be shared" in ranks.output(0).read_text()


def test_more_processes_than_gpus_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="has 2 GPUs"), distributed.session("cuda"):
        pass


@pytest.mark.slow
def test_torchrun_runs_the_script(demo_data, tmp_path):
    """The real launcher and the real script, two processes with loader workers; then on with one more epoch."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()),
        str(ROOT / "train_kd.py"), "--dataset", "demo", "--data-dir", str(demo_data), "--student", "compact",
        "--student-weights", "none", "--crop-size", "64", "--batch-size", "8", "--epochs", "1", "--workers", "1",
        "--device", "cpu", "--output-dir", str(tmp_path), "--name", "run",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best mIoU") == 1
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1"]
    assert (tmp_path / "run" / "report.txt").exists()
