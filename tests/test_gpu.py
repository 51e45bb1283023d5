"""What only a CUDA GPU can show: `make gpu` runs this; without one each test is skipped and says so."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from basics.batch import VOID, prepare_batch
from basics.checkpoint import load_file
from dataset import EpochSampler, build_dataset
from kd.cached_teacher import collate_for
from kd.class_map import ClassMap
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe, pad_batch
from kd.losses import LOSSES
from kd.mapped_teacher import MappedTeacher
from kd.teacher_cache import open_teacher_cache
from scoring.protocol import evaluate_model
from segdata.transforms import TrainTransform
from tests import forks
from tests.conftest import ROOT, assert_one_line_error
from tests.test_train import arguments, assert_same_run, rows
from tests.tiny import TinyModel, tiny_batch
from train_kd import main
from training.optim import Optimization, make_optimizer, make_scheduler

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic runs want it before CUDA starts
GPU, CPU = torch.device("cuda"), torch.device("cpu")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")]


def on_gpu(demo_data, output_dir, *more):
    """A tiny run (see `tests.test_train.arguments`) on the GPU."""
    return arguments(demo_data, output_dir, "--device", "cuda", *more)


@pytest.fixture(scope="module")
def teacher_file(demo_data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("teacher")
    assert main(on_gpu(demo_data, output, "--student", "standard", "--max-steps", "2")) == 0
    return output / "run" / "best.pth"


@pytest.fixture
def distilled(teacher_file, tmp_path):
    taught = ["--teacher", "standard", "--teacher-weights", teacher_file, "--alpha", "0.5", "--beta", "0.2"]
    return [*taught, "--cache-dir", tmp_path / "cache"]


@pytest.fixture(autouse=True)
def kernels_of_any_kind():
    """A test of deterministic runs leaves nothing behind for the others."""
    yield
    torch.use_deterministic_algorithms(False)


# -- losses and steps --------------------------------------------------------------------------------


def values_of(name: str, device: torch.device) -> tuple[float, torch.Tensor]:
    """A loss of fixed maps and its gradient, computed on ``device``."""
    spec, generator = LOSSES[name], torch.Generator().manual_seed(0)
    # Of few cells enlarged: class borders, and what lies between them (bpkd).
    student, teacher = (torch.randn(2, 5, 3, 4, generator=generator).repeat_interleave(4, 2) for _ in range(2))
    student, teacher = (maps.repeat_interleave(4, 3) + 0.1 * torch.randn(2, 5, 12, 16, generator=generator)
                        for maps in (student, teacher))  # fmt: skip
    student = student.to(device).requires_grad_(True)
    if spec.kind == "hard":
        mask = torch.randint(0, 5, (2, 12, 16), generator=generator)
        mask[:, :2] = VOID
        loss = spec.fn(student, mask.to(device), class_weights=torch.arange(1.0, 6.0, device=device))
    else:
        valid = torch.ones(2, 12, 16, dtype=torch.bool)
        valid[1, 9:] = False
        options = {"temperature": 2.0} if spec.uses_temperature else {}
        options |= {"stride": 4} if spec.uses_stride else {}
        loss = spec.fn(student, teacher.to(device), valid.to(device), **options)
    loss.backward()
    return loss.item(), student.grad.cpu()


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_is_the_cpus(name):
    (loss, gradient), (expected, expected_gradient) = values_of(name, GPU), values_of(name, CPU)
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_a_step_never_waits_for_the_gpu(name, amp):
    """CUDA's own watch: whatever synchronises raises. Batches come pinned, as from the loader."""
    recipe = Recipe({"ce": 1.0, name: 1.0}, temperature=2.0)
    torch.manual_seed(0)
    student = TinyModel(4).to(GPU)
    teacher = None
    if recipe.needs_teacher:
        live = LiveTeacher(TinyModel(5).to(GPU), amp)
        teacher = MappedTeacher(live, ClassMap(tuple("abcd"), tuple("abcde"), (0, 1, 2, 2, -1)), 0.1)
    model = DistilledStudent(student, recipe, teacher).to(GPU)
    distiller = Distiller(model, student, recipe, teacher, amp=amp)
    optimizer = make_optimizer(model, "adamw", 1e-3, 1e-2)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    optimization = Optimization(optimizer, make_scheduler(optimizer, 9, 1, "poly"), scaler, GPU)
    plain = tiny_batch(classes=4) | {"labelled": torch.tensor([True, False])}
    plain |= {"image": (plain["image"] * 50 + 128).clamp(0, 255).byte(), "mask": plain["mask"].byte()}
    plain["jitter"] = torch.ones(2, 3)
    pinned = {key: value.pin_memory() if isinstance(value, torch.Tensor) else value for key, value in plain.items()}

    def step() -> torch.Tensor:
        losses = distiller.losses(prepare_batch(pinned, GPU))
        total = distiller.total(losses)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimization.step(optimization.clip(1.0))
        return total.detach()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(total.item())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_gradients_that_are_not_finite_change_no_weight(name):
    model = TinyModel(4).to(GPU)
    optimizer = make_optimizer(model, name, 1e-2, 1e-2)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    optimization = Optimization(optimizer, make_scheduler(optimizer, 9, 1, "poly"), scaler, GPU)

    def step(gradient: float) -> list[torch.Tensor]:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimization.step(optimization.clip(None))
        return [parameter.detach().clone() for parameter in model.parameters()]

    before = step(0.1)
    assert all(torch.equal(one, other) for one, other in zip(step(math.nan), before, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(step(0.1), before, strict=True))


def test_training_for_int8(demo_data, tmp_path):
    pytest.importorskip("torchao")
    assert main(on_gpu(demo_data, tmp_path, "--qat", "--max-steps", "2")) == 0
    assert load_file(tmp_path / "run" / "last.pth")["qat"]


# -- runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", ["auto", "off", "bf16", "fp16"])
def test_amp(amp, demo_data, distilled, tmp_path, capsys):
    if amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip(f"{torch.cuda.get_device_name()} has no bf16")
    assert main(on_gpu(demo_data, tmp_path, "--amp", amp, *distilled)) == 0
    kept = load_file(tmp_path / "run" / "last.pth")["training"]["arguments"]["amp"]
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert kept == (("bf16" if has_bf16 else "off") if amp == "auto" else amp)
    assert all(math.isfinite(float(row["train_loss"])) for row in rows(tmp_path / "run"))
    assert "% training steps" in capsys.readouterr().out


def test_compiled(demo_data, distilled, tmp_path):
    if importlib.util.find_spec("triton") is None or not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("torch.compile needs triton and a C compiler on a GPU")
    assert main(on_gpu(demo_data, tmp_path, "--compile", "--amp", "off", "--epochs", "1", *distilled)) == 0
    assert main(on_gpu(demo_data, tmp_path / "plain", "--amp", "off", "--epochs", "1", *distilled)) == 0
    losses = [float(rows(folder / "run")[0]["train_loss"]) for folder in (tmp_path, tmp_path / "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=5e-2)  # compiled dropout draws other numbers


@pytest.mark.parametrize("amp", ["off", "auto"])
def test_a_resumed_run_is_the_whole_run(amp, demo_data, distilled, tmp_path):
    options = ["--deterministic", "--amp", amp, "--workers", "2", *distilled]
    assert main(on_gpu(demo_data, tmp_path / "whole", *options)) == 0
    assert main(on_gpu(demo_data, tmp_path / "parts", *options, "--max-steps", "3")) == 0
    assert main(on_gpu(demo_data, tmp_path / "parts", *options, "--resume", "auto", "--workers", "0")) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")


@pytest.mark.parametrize("dtype", ["fp16", "uint8"])
def test_a_run_with_a_cached_teacher(dtype, demo_data, distilled, tmp_path):
    assert main(on_gpu(demo_data, tmp_path, "--cache-teacher", dtype, "--workers", "2", *distilled)) == 0
    assert all(math.isfinite(float(row["train_kl"])) for row in rows(tmp_path / "run"))


def test_what_a_cache_says_comes_pinned_and_unchanged(demo_data, tmp_path):
    recipe = Recipe({"ce": 1.0, "kl": 1.0, "cosine": 1.0})
    train_set = build_dataset("demo", demo_data, "train", TrainTransform(64))
    torch.manual_seed(0)
    cached = open_teacher_cache(
        tmp_path, TinyModel(num_classes=7, width=32).eval(), "tiny", train_set, recipe=recipe, device=GPU
    )
    sampler, collate = EpochSampler(8, seed=1), collate_for(cached, 16)
    loader = DataLoader(train_set, 4, sampler=sampler, collate_fn=collate, pin_memory=True, num_workers=1)
    for batch in loader:
        assert all(values.is_pinned() for values in batch["told"].values())
        told = cached(pad_batch(prepare_batch(batch, GPU), 16))
        assert told.logits.device.type == "cuda"
        here = cached(pad_batch(prepare_batch({**batch, "told": None}, CPU), 16))
        assert torch.equal(told.logits.cpu(), here.logits)
        assert all(torch.equal(told.taps[tap].cpu(), here.taps[tap]) for tap in here.taps)


def test_scores_are_the_cpus(demo_data):
    val_set = build_dataset("demo", demo_data, "val")
    torch.manual_seed(0)
    model = TinyModel(val_set.num_classes)
    expected = evaluate_model(copy.deepcopy(model), val_set, CPU, progress=False)
    for batch_size in (1, 4):
        found = evaluate_model(model.to(GPU), val_set, GPU, batch_size=batch_size, progress=False)
        assert found.scores.pixels == expected.scores.pixels
        assert found.scores.pixel_accuracy == pytest.approx(expected.scores.pixel_accuracy, abs=2e-3)
        assert found.loss == pytest.approx(expected.loss, rel=1e-3)


def test_dry_run(demo_data, distilled, tmp_path, capsys):
    assert main(on_gpu(demo_data, tmp_path, "--dry-run", *distilled)) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out


def test_out_of_memory_is_one_line(run_script, demo_data, tmp_path):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(64e6 / total)
    try:
        done = run_script(
            "train_kd.py", "--dataset", "demo", "--data-dir", demo_data, "--student", "standard",
            "--student-weights", "none", "--device", "cuda", "--crop-size", "512", "--batch-size", "16",
            "--workers", "0", "--epochs", "1", "--output-dir", tmp_path, "--name", "run", check=False,
        )  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_one_line_error(done, "out of memory", "--batch-size")


# -- two processes on one card -----------------------------------------------------------------------

# NCCL wants a card for each process; gloo, which goes by way of the CPU, does not.
SHARED_CARD = """
import sys
from basics import distributed
from basics.errors import run_cli
import train_kd
distributed._choose_backend = lambda device: "gloo"
sys.argv = ["train_kd.py", *sys.argv[1:]]
run_cli(train_kd.main, train_kd.get_args_parser)
"""


def test_two_processes_share_the_card(demo_data, tmp_path):
    """Their losses are those of one process with the whole batch, to rounding."""
    words = [
        "--dataset", "demo", "--data-dir", str(demo_data), "--student", "compact", "--student-weights", "none",
        "--crop-size", "64", "--batch-size", "4", "--epochs", "1", "--max-steps", "2", "--workers", "0",
        "--amp", "off", "--device", "cuda", "--name", "run",
    ]  # fmt: skip
    assert main(on_gpu(demo_data, tmp_path / "one", "--epochs", "1", "--max-steps", "2", "--amp", "off")) == 0
    port = str(forks.free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED_CARD, *words, "--output-dir", str(tmp_path / "two")],
            cwd=ROOT,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    one, two = (float(rows(tmp_path / name / "run")[0]["train_loss"]) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=5e-2)  # dropout differs


# -- speed -------------------------------------------------------------------------------------------


def test_the_benchmark_runs(run_script, tmp_path):
    out = tmp_path / "bench.json"
    run_script("bench.py", "--quick", "--device", "cuda", "--json", out)
    results = json.loads(out.read_text())
    assert results["machine"]["device"] == torch.cuda.get_device_name()
    assert all(rate > 0 for rate in results["loops"]["images_per_s"].values())
