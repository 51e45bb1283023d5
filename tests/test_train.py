"""Training end to end on the demo data: what a run leaves behind, that it resumes exactly, that it refuses nonsense."""

import csv
import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
import zoo
from basics.checkpoint import load_file
from basics.errors import UserError
from basics.signals import Stopped
from kd.distiller import Distiller
from segdata.palettes import palette_image
from tests.conftest import assert_one_line_error
from tests.tiny import TinyModel
from train_kd import get_args_parser, main, make_recipe, name_run
from training import build, pace
from training import trainer as trainer_module
from training.arguments import MAY_CHANGE
from training.stages import Stages
from training.state import Progress
from training.trainer import Trainer
from zoo import load_checkpoint_model

TIMES = {"images_per_s", "epoch_s", "elapsed_s"}


def arguments(demo_dir, output_dir, *more):
    """A tiny run: a compact student from scratch, 64-pixel crops, two epochs."""
    return get_args_parser().parse_args(
        [
            "--dataset", "demo", "--data-dir", str(demo_dir), "--student", "compact", "--student-weights", "none",
            "--crop-size", "64", "--batch-size", "4", "--epochs", "2", "--workers", "0", "--device", "cpu",
            "--output-dir", str(output_dir), "--name", "run", *map(str, more),
        ]
    )  # fmt: skip


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(first, second):
    """Weights, optimizer, scheduler, adapters, random numbers and metric rows agree bit for bit."""
    assert rows(first) == rows(second)
    one, two = load_file(first / "last.pth"), load_file(second / "last.pth")

    def compare(a, b, where):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), where
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                compare(a[key], b[key], f"{where}/{key}")
        elif isinstance(a, list | tuple):
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(x, y, f"{where}/{index}")
        else:
            assert a == b, where

    compare(one["state_dict"], two["state_dict"], "state_dict")
    for part in ("optimizer", "scheduler", "scaler", "adapters", "rng", "loss_sums", "norm_sums"):
        compare(one["training"][part], two["training"][part], part)
    # An epoch that was cut is scored, too: which one is the best may differ then.
    apart = ("best", "stale")
    progress = [
        {key: value for key, value in run["training"]["progress"].items() if not key.endswith("_s")}
        for run in (one, two)
    ]
    for key, value in progress[0].items():
        assert key.startswith(apart) or value == progress[1][key], key


@pytest.fixture(scope="module")
def teacher_file(demo_data, tmp_path_factory):
    """A (bad) teacher checkpoint: a standard student after one step."""
    output = tmp_path_factory.mktemp("teacher")
    args = arguments(demo_data, output, "--student", "standard", "--max-steps", "1")
    assert main(args) == 0
    return output / "run" / "best.pth"


@pytest.fixture(scope="module")
def distilled(teacher_file):
    return ["--teacher", "standard", "--teacher-weights", teacher_file, "--alpha", "0.5", "--beta", "0.2"]


@pytest.fixture(scope="module")
def whole_run(demo_data, distilled, tmp_path_factory):
    """Two distilled epochs in one go."""
    output = tmp_path_factory.mktemp("whole")
    assert main(arguments(demo_data, output, *distilled)) == 0
    return output / "run"


def test_a_run_leaves_its_folder(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert {"config.json", "metrics.csv", "curves.png", "report.txt", "best.pth", "last.pth"} <= names
    assert [row["epoch"] for row in rows(whole_run)] == ["1", "2"]
    config = json.loads((whole_run / "config.json").read_text())
    assert config["arguments"]["alpha"] == 0.5
    report = (whole_run / "report.txt").read_text()
    assert "score (best)" in report and "best mIoU" in report
    best = load_file(whole_run / "best.pth")
    assert "training" not in best and best["model"] == "compact"
    assert not any("adapter" in key or "teacher" in key for key in best["state_dict"])


def test_resume_after_an_epoch_is_exact(demo_data, distilled, whole_run, tmp_path):
    steps = int(rows(whole_run)[0]["step"])
    assert main(arguments(demo_data, tmp_path, *distilled, "--max-steps", steps)) == 0
    assert main(arguments(demo_data, tmp_path, *distilled, "--resume", "auto")) == 0
    assert_same_run(whole_run, tmp_path / "run")


def test_resume_within_an_epoch_is_exact_with_workers(demo_data, distilled, whole_run, tmp_path):
    steps = int(rows(whole_run)[0]["step"]) + 1
    assert main(arguments(demo_data, tmp_path, *distilled, "--max-steps", steps, "--workers", "2")) == 0
    assert load_file(tmp_path / "run" / "last.pth")["training"]["progress"]["step_in_epoch"] == 1
    resume = ["--resume", str(tmp_path / "run" / "last.pth"), "--workers", "1"]
    assert main(arguments(demo_data, tmp_path, *distilled, *resume)) == 0
    assert_same_run(whole_run, tmp_path / "run")


def test_a_checkpoint_from_before_norm_and_mean_goes_on_as_ever(demo_data, distilled, whole_run, tmp_path):
    """Cut within the first epoch, by a version that knew neither: the rest is the same, bit for bit."""
    assert main(arguments(demo_data, tmp_path, *distilled, "--max-steps", "3")) == 0
    last = load_file(tmp_path / "run" / "last.pth")
    del last["training"]["norm_sums"], last["training"]["arguments"]["clip_norm"], last["training"]["arguments"]["ema"]
    torch.save(last, tmp_path / "run" / "last.pth")
    assert main(arguments(demo_data, tmp_path, *distilled, "--resume", "auto")) == 0
    seen = [{key: value for key, value in row.items() if key != "grad_norm"} for row in rows(tmp_path / "run")]
    assert seen == [{key: value for key, value in row.items() if key != "grad_norm"} for row in rows(whole_run)]
    one, two = (load_file(folder / "last.pth")["state_dict"] for folder in (whole_run, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_resume_with_terms_on_other_maps_is_exact(demo_data, distilled, tmp_path):
    terms = [*distilled, "--loss", "cosine@high=1", "--loss", "pkd@mid=0.5", "--loss", "bpkd=0.1"]
    for name, *cuts in (("whole",), ("parts", 3)):
        for more in [*(["--max-steps", cut] for cut in cuts), ["--resume", "auto"]]:
            assert main(arguments(demo_data, tmp_path / name, *terms, *more)) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    row = rows(tmp_path / "whole" / "run")[0]
    assert {"train_cosine", "train_cosine@high", "train_pkd@mid", "train_bpkd"} <= row.keys()
    adapters = load_file(tmp_path / "whole" / "run" / "last.pth")["training"]["adapters"]
    assert {key.partition(".")[0] for key in adapters} == {
        "cosine_low", "cosine_mid", "cosine_high", "cosine@high_high", "pkd@mid_mid",
    }  # fmt: skip


def test_an_auxiliary_head_is_resumed_exactly_and_in_no_file(demo_data, distilled, tmp_path):
    """With the mean of the weights, a frozen stage, and a stop within an epoch; the file is the plain student's."""
    terms = [*distilled, "--loss", "ce@high=0.5", "--loss", "kl@high=0.1", "--ema", "0.9", "--freeze-epochs", "1"]
    for name, *cuts in (("whole",), ("parts", 3)):
        for more in [*(["--max-steps", cut] for cut in cuts), ["--resume", "auto"]]:
            assert main(arguments(demo_data, tmp_path / name, *terms, *more)) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    assert {"train_ce@high", "train_kl@high"} <= rows(tmp_path / "whole" / "run")[0].keys()
    last = load_file(tmp_path / "whole" / "run" / "last.pth")
    heads = {key: value for key, value in last["training"]["adapters"].items() if key.startswith("head_high.")}
    assert heads["head_high.1.num_batches_tracked"] == last["training"]["progress"]["step"]
    model, _ = load_checkpoint_model(tmp_path / "whole" / "run" / "best.pth")
    assert last["state_dict"].keys() == model.state_dict().keys()


@pytest.mark.parametrize("dtype", ["fp16", "uint8"])
def test_resume_with_caches_is_exact(dtype, demo_data, distilled, tmp_path):
    """Teacher and decoded images from disk, cut within the second epoch; the other run builds caches of its own."""
    for name, *cuts in (("whole",), ("parts", 6)):
        caches = ["--cache-teacher", dtype, "--cache-dir", tmp_path / name, "--decode-cache", tmp_path / name]
        for more in [*(["--max-steps", cut] for cut in cuts), ["--resume", "auto"]]:
            assert main(arguments(demo_data, tmp_path / name, *distilled, *caches, *more)) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")


def test_save_steps_changes_nothing(demo_data, distilled, whole_run, tmp_path):
    assert main(arguments(demo_data, tmp_path, *distilled, "--save-steps", "1", "--save-every", "1")) == 0
    assert_same_run(whole_run, tmp_path / "run")
    assert load_file(tmp_path / "run" / "epoch_1.pth")["info"]["epoch"] == 1


def test_the_seed_decides(demo_data, distilled, whole_run, tmp_path):
    assert main(arguments(demo_data, tmp_path, *distilled, "--seed", "1")) == 0
    assert rows(tmp_path / "run") != rows(whole_run)


def test_baseline_builds_no_teacher(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "load_teacher_for", lambda *a, **k: pytest.fail("a teacher was built"))
    args = arguments(demo_data, tmp_path, "--alpha", "0", "--beta", "0", "--max-steps", "2")
    assert main(args) == 0


def test_distilled_and_baseline_start_alike(demo_data, distilled, tmp_path):
    """The adapters take random numbers; the student's first weights and dropout must not depend on them."""
    runs = []
    for name, more in (("a", []), ("b", distilled)):
        args = arguments(demo_data, tmp_path, "--name", name, *more)
        run = Trainer(args, make_recipe(args))
        runs.append((run, torch.rand(3)))
    (one, first), (two, second) = runs
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(one.student.parameters(), two.student.parameters(), strict=True))


def test_frozen_epochs_leave_the_backbone_alone(demo_data, tmp_path):
    more = ["--freeze-epochs", "1", "--freeze-batch-size", "2", "--freeze-crop-size", "48"]
    args = arguments(demo_data, tmp_path, *more)
    run = Trainer(args, make_recipe(args))
    before = {key: value.clone() for key, value in run.student.state_dict().items()}
    images = len(run.data.train_set)
    assert run.stages.total_steps == images // 2 + images // 4
    run.args.max_steps = images // 2
    run.run()
    after = run.student.state_dict()
    backbone = [key for key in before if key.startswith("backbone.")]
    assert backbone and all(torch.equal(before[key], after[key]) for key in backbone)
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("classifier"))
    args = arguments(demo_data, tmp_path, *more, "--resume", "auto")
    run = Trainer(args, make_recipe(args))
    run.run()
    after = run.student.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in backbone)


def test_what_a_user_has_frozen_stays_frozen(demo_data, tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))\n"
        "        self.encoder[0].requires_grad_(False)\n"
        "        self.head = nn.Conv2d(8, classes, 1)\n"
        "    def forward(self, images):\n"
        "        return self.head(self.encoder(images))\n"
        "def build(num_classes):\n"
        "    return Net(num_classes)\n"
        "def plain(num_classes):\n"
        "    return nn.Conv2d(3, num_classes, 1)\n"
    )
    args = arguments(demo_data, tmp_path, "--student", f"{net}:build", "--freeze-epochs", "1", "--epochs", "2")
    run = Trainer(args, make_recipe(args))
    before = {key: value.clone() for key, value in run.student.state_dict().items()}
    run.run()
    changed = {
        key.removeprefix("network.") for key, value in run.student.state_dict().items() if (value != before[key]).any()
    }
    assert changed == {"encoder.2.weight", "encoder.2.bias", "head.weight", "head.bias"}
    for more in (["--freeze-epochs", "1"], ["--backbone-lr-factor", "0.1"]):
        args = arguments(demo_data, tmp_path, "--student", f"{net}:plain", "--name", "plain", *more)
        with pytest.raises(UserError, match=r"plain: has no module called backbone or encoder, of which"):
            Trainer(args, make_recipe(args))


def test_the_backbone_learns_at_its_own_rate(demo_data, tmp_path):
    """SGD's first step is the gradient times the rate: a tenth of the rate, a tenth of the step, elsewhere the same."""
    steps = {}
    for factor in (1, 0.1):
        more = ["--optimizer", "sgd", "--lr", "1e-2", "--weight-decay", "0", "--warmup-epochs", "0", "--max-steps", "1"]
        args = arguments(demo_data, tmp_path / str(factor), *more, "--backbone-lr-factor", factor)
        run = Trainer(args, make_recipe(args))
        before = {key: value.detach().clone() for key, value in run.student.named_parameters()}
        run.run()
        steps[factor] = {key: value.detach() - before[key] for key, value in run.student.named_parameters()}
    for key, whole in steps[1].items():
        share = 0.1 if key.startswith("backbone.") else 1
        torch.testing.assert_close(steps[0.1][key], share * whole, rtol=1e-3, atol=1e-6)
    assert any(step.abs().max() > 1e-4 for key, step in steps[1].items() if key.startswith("backbone."))


def test_the_scale_range_is_that_of_the_crops(demo_data, tmp_path):
    args = arguments(demo_data, tmp_path, "--scale-range", "0.5", "0.8")
    run = Trainer(args, make_recipe(args))
    loader = run.enter_stage(run.stages.of(0))
    sides = {int(box[2] - box[0]) for batch in loader for box in batch["box"]}
    assert min(sides) >= 64 / 0.8 and max(sides) <= 64 / 0.5 and max(sides) - min(sides) > 30


def test_resuming_with_other_arguments_is_refused_by_name(demo_data, distilled, whole_run, tmp_path):
    changed = ["--resume", whole_run / "last.pth", "--batch-size", "2", "--epochs", "9"]
    with pytest.raises(UserError, match=r"--epochs was 2, is 9.*--allow-changed") as error:
        main(arguments(demo_data, whole_run.parent, *distilled, *changed))
    assert "--batch-size was 4, is 2" in str(error.value)


def test_a_teacher_that_has_changed_is_noticed(demo_data, distilled, tmp_path):
    teacher = tmp_path / "teacher.pth"
    shutil.copy(distilled[distilled.index("--teacher-weights") + 1], teacher)
    more = [*distilled, "--teacher-weights", teacher]
    assert main(arguments(demo_data, tmp_path, *more, "--max-steps", "1")) == 0
    content = load_file(teacher)
    next(iter(content["state_dict"].values())).add_(1)
    torch.save(content, teacher)
    more += ["--resume", "auto", "--max-steps", "2"]
    with pytest.raises(UserError, match=r"made with another teacher than .*teacher\.pth now holds"):
        main(arguments(demo_data, tmp_path, *more))
    assert main(arguments(demo_data, tmp_path, *more, "--allow-changed")) == 0


def test_a_run_folder_is_not_overwritten(demo_data, distilled, whole_run):
    with pytest.raises(UserError, match="--resume auto"):
        main(arguments(demo_data, whole_run.parent, *distilled))


def test_a_kill_between_the_first_row_and_the_first_checkpoint_is_survived(demo_data, distilled, whole_run, tmp_path):
    """The run has a metrics row but no last.pth: it begins anew, and the row is not doubled."""
    folder = tmp_path / "run"
    folder.mkdir()
    first_row = (whole_run / "metrics.csv").read_text().splitlines()[:2]
    (folder / "metrics.csv").write_text("\n".join(first_row) + "\n")
    assert main(arguments(demo_data, tmp_path, *distilled, "--resume", "auto")) == 0
    assert_same_run(whole_run, folder)


def test_a_history_without_its_checkpoint_is_not_written_over(demo_data, distilled, whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    (folder / "last.pth").unlink()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"holds a run of 2 epochs, but not the last\.pth"):
        main(arguments(demo_data, tmp_path, *distilled, "--resume", "auto"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--beta", "1", "--student", "bare"], "needs the feature map 'low', which this student lacks"),
     (["--alpha", "1", "--class-weights", "none.csv"], "none.csv"),
     (["--alpha", "1", "--loss", "ce@high=1", "--student", "bare"], "the auxiliary head @high needs the feature map")],
)  # fmt: skip
def test_what_can_never_train_is_said_before_the_teachers_cache_is_filled(
    demo_data, distilled, tmp_path, monkeypatch, more, words
):
    class Bare(TinyModel):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.tap_channels = self.tap_strides = {}

    monkeypatch.setitem(zoo.MODELS, "bare", zoo.ModelSpec(Bare, None, "random"))
    cache = ["--cache-teacher", "--cache-dir", tmp_path / "cache"]
    with pytest.raises(UserError, match=words):
        main(arguments(demo_data, tmp_path, *distilled, *cache, *more))
    assert not (tmp_path / "cache").exists()


def test_a_state_from_elsewhere_does_not_go_on_with_another_runs_rows(
    demo_data, distilled, whole_run, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_bytes((whole_run / "metrics.csv").read_bytes())
    monkeypatch.setattr(trainer_module, "build_data", None)  # said before any preparation
    with pytest.raises(UserError, match="already holds a run of 2 epochs"):
        main(arguments(demo_data, tmp_path, *distilled, "--resume", whole_run / "last.pth"))


@pytest.mark.parametrize(
    ("more", "steps", "epochs"),
    [
        (["--max-steps", "3"], 3, 1),  # within the first of two epochs
        (["--max-steps", "4"], 4, 1),  # at its end
        (["--patience", "1", "--epochs", "9", "--lr", "1e-20", "--warmup-epochs", "0"], 8, 2),
    ],
)
def test_a_run_that_has_ended_stays_so_when_resumed(more, steps, epochs, demo_data, tmp_path, monkeypatch):
    if "--patience" in more:  # an evaluation without a gain
        keep_best = Trainer.keep_best

        def keep_first(self, evaluation):
            self.progress.best_score = 1.0 if self.progress.best_epoch else -1.0
            keep_best(self, evaluation)

        monkeypatch.setattr(Trainer, "keep_best", keep_first)
    folder = tmp_path / "run"
    assert main(arguments(demo_data, tmp_path, *more)) == 0
    first = rows(folder), (folder / "last.pth").read_bytes(), (folder / "best.pth").read_bytes()
    (folder / "report.txt").unlink()  # as if killed just before its end
    assert main(arguments(demo_data, tmp_path, *more, "--resume", "auto")) == 0
    assert (rows(folder), (folder / "last.pth").read_bytes(), (folder / "best.pth").read_bytes()) == first
    assert load_file(folder / "last.pth")["training"]["progress"]["step"] == steps
    assert len(rows(folder)) == epochs and (folder / "report.txt").exists()


@pytest.mark.parametrize("steps", [3, 4])
def test_a_stop_while_the_last_step_is_scored_costs_no_score(steps, demo_data, tmp_path, monkeypatch):
    more = ["--max-steps", steps]
    assert main(arguments(demo_data, tmp_path / "whole", *more)) == 0

    def stop(*args, **kwargs):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "evaluate_model", stop)
        assert main(arguments(demo_data, tmp_path / "parts", *more)) == 130
    assert not (tmp_path / "parts" / "run" / "metrics.csv").exists()
    assert main(arguments(demo_data, tmp_path / "parts", *more, "--resume", "auto")) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    assert (tmp_path / "parts" / "run" / "best.pth").exists()


def test_changed_hyperparameters_take_effect_when_they_are_allowed(demo_data, tmp_path):
    """Constant rates (schedule `step` before its first drop), so that what was set can be read off."""
    more = ["--schedule", "step", "--warmup-epochs", "0", "--max-steps", "1", "--backbone-lr-factor", "0.5"]
    assert main(arguments(demo_data, tmp_path, *more, "--lr", "1e-3", "--weight-decay", "0.01")) == 0
    changed = ["--lr", "2e-3", "--weight-decay", "0.3", "--resume", "auto", "--allow-changed", "--max-steps", "2"]
    assert main(arguments(demo_data, tmp_path, *more, *changed)) == 0
    state = load_file(tmp_path / "run" / "last.pth")["training"]
    groups = state["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [2e-3, 2e-3, 1e-3, 1e-3]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.3, 0.0]
    assert state["scheduler"]["base_lrs"] == [2e-3, 2e-3, 1e-3, 1e-3]
    assert [row["lr"] for row in rows(tmp_path / "run")] == ["0.002"]


def test_an_adaptive_recipe_outlives_its_planned_steps(demo_data, distilled, tmp_path):
    more = [*distilled, "--beta", "0", "--preset", "aicsd", "--epochs", "3"]
    assert main(arguments(demo_data, tmp_path, *more, "--batch-size", "2", "--max-steps", "20")) == 0
    more += ["--batch-size", "16", "--resume", "auto", "--allow-changed"]
    assert main(arguments(demo_data, tmp_path, *more)) == 0
    assert len(rows(tmp_path / "run")) == 3


@pytest.fixture
def a_second_a_step(monkeypatch):
    """A clock that stands still but for optimizer steps."""
    clock, step = [0.0], Trainer.train_step

    def slow_step(self, batch):
        clock[0] += 1
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", slow_step)
    monkeypatch.setattr(pace, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))


def test_a_time_budget_ends_the_run_and_bends_the_schedule(demo_data, tmp_path, a_second_a_step, capsys):
    """6.5 s are seven steps of a second; --epochs 2 of four steps each say that the first half is warm-up."""
    more = ["--time-budget", "6.5", "--schedule", "poly", "--lr", "1e-3", "--backbone-lr-factor", "1"]
    assert main(arguments(demo_data, tmp_path, *more)) == 0
    history = rows(tmp_path / "run")
    assert [(row["epoch"], row["step"]) for row in history] == [("1", "4"), ("2", "7")]
    # Set after 4 s, at 4 / 6.5 of eight steps of which four are warm-up; and after 7 s, at the end.
    rates = [1e-3 * (1 - (8 * 4 / 6.5 - 4) / 4) ** 0.9, 0.0]
    assert [float(row["lr"]) for row in history] == pytest.approx(rates)
    assert history[-1]["val_miou"] and "epoch 2 |" in capsys.readouterr().out
    assert "optimizer steps" in (tmp_path / "run" / "report.txt").read_text()
    more = ["--time-budget", "10.5", "--epochs", "1"]  # epochs are no bound
    assert main(arguments(demo_data, tmp_path / "longer", *more)) == 0
    assert [row["step"] for row in rows(tmp_path / "longer" / "run")] == ["4", "8", "11"]


def test_a_resumed_run_has_the_rest_of_its_time(demo_data, distilled, tmp_path, a_second_a_step):
    more = [*distilled, "--preset", "aicsd", "--time-budget", "6.5", "--save-steps", "1"]
    for name, *cuts in (("whole",), ("parts", 3)):
        for again in [*(["--max-steps", cut] for cut in cuts), ["--resume", "auto"], ["--resume", "auto"]]:
            assert main(arguments(demo_data, tmp_path / name, *more, *again)) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    assert load_file(tmp_path / "parts" / "run" / "last.pth")["training"]["progress"]["train_s"] == 7
    with pytest.raises(UserError, match=r"--time-budget was 6\.5, is 9\.0"):
        main(arguments(demo_data, tmp_path / "parts", *more, "--resume", "auto", "--time-budget", "9"))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], {"ce": 1.0}),
        (["--alpha", "0.5", "--beta", "0.1"], {"ce": 1.0, "kl": 0.5, "cosine": 0.1}),
        (["--alpha", "0", "--loss", "dice=0.3", "--loss", "ce=0.5"], {"ce": 0.5, "dice": 0.3}),
        (["--preset", "hdl"], {"ce": 0.5, "csd": 0.3, "dice": 0.2}),
        (["--preset", "cwd", "--loss", "cwd=1"], {"ce": 1.0, "cwd": 1.0}),
        (["--pa_lambda", "2"], {"ce": 1.0, "pairwise": 2.0}),
        (["--loss", "cwd_feat@decoder=30", "--loss", "cosine@high=1"], {"ce": 1.0, "cwd_feat": 30.0, "cosine@high": 1}),
        (
            ["--beta", "1", "--loss", "cosine@high+mid+low=2", "--loss", "cosine@mid=1"],
            {"ce": 1.0, "cosine": 2.0, "cosine@mid": 1.0},
        ),
    ],
)
def test_recipes_from_the_command_line(more, expected):
    recipe = make_recipe(get_args_parser().parse_args(more))
    assert dict(recipe.weights) == pytest.approx(expected)


def test_runs_of_different_settings_get_different_folders():
    names = set()
    settings = [[], ["--alpha", "1"], ["--alpha", "2"], ["--seed", "1"], ["--student", "compact"]]
    settings += [["--loss", "cosine=1"], ["--loss", "cosine@high=1"], ["--loss", "cosine@high+mid=1"]]
    for more in settings:
        args = get_args_parser().parse_args(more)
        name_run(args, make_recipe(args))
        names.add(args.name)
    assert len(names) == len(settings)
    assert "voc_standard_cosine@mid+high1_seed0" in names


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--student", "standart"], ["standart", "standard", "compact"]),
        (["--loss", "kll=1"], ["kll", "cosine"]),
        (["--loss", "kl=x"], ["kl=x", "NAME=WEIGHT"]),
        (["--loss", "cosine@hi=1"], ["cosine@hi", "known: decoder, high, low, mid"]),
        (["--loss", "ce=0", "--loss", "ce@high=1"], ["ce@high alone: no loss looks at what the student itself says"]),
        (["--loss", "ce@hgih=1"], ["unknown feature map", "high"]),
        (["--preset", "nothing"], ["nothing", "papi"]),
        (["--epochs", "0"], ["--epochs"]),
        (["--lr", "-1"], ["--lr must be above 0"]),
        (["--dist-timeout", "-1"], ["--dist-timeout must be above 0"]),
        (["--scale-range", "2", "0.5"], ["--scale-range", "2 0.5"]),
        (["--scale-range", "0", "1"], ["--scale-range"]),
        (["--backbone-lr-factor", "-1"], ["--backbone-lr-factor"]),
        (["--freeze-batch-size", "-4"], ["--freeze-batch-size"]),
        (["--freeze-crop-size", "8"], ["--freeze-crop-size", "32"]),
        (["--warmup-epochs", "inf"], ["--warmup-epochs"]),
        (["--max-steps", "0"], ["--max-steps"]),
        (["--time-budget", "0"], ["--time-budget must be above 0"]),
        (["--batch-size", "100000"], ["--batch-size", "train"]),
        (["--student-weights", "absent.pth"], ["absent.pth"]),
        (["--alpha", "1", "--teacher-weights", "absent.pth"], ["absent.pth"]),
        (["--alpha", "1", "--teacher", "nobody"], ["nobody", "fcn_resnet50"]),
        (["--train-split", "nosuch"], ["nosuch"]),
        (["--data-dir", "absent", "--dataset", "voc"], ["absent"]),
        (["--resume", "absent.pth"], ["absent.pth"]),
        (["--amp", "fp16"], ["fp16", "--amp off"]),
    ],
)
def test_mistakes_are_one_line(more, words, demo_data, tmp_path):
    with pytest.raises(UserError) as error:
        main(arguments(demo_data, tmp_path, *more))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert not list(tmp_path.rglob("*.pth"))


def test_mistake_at_the_command_line(run_script, demo_data):
    done = run_script("train_kd.py", "--dataset", "demo", "--data-dir", demo_data, "--student", "nobody", check=False)
    assert_one_line_error(done, "nobody", "standard")


# -- what gives the numbers their meaning ------------------------------------------------------------


@pytest.fixture
def stopped(demo_data, tmp_path):
    """``stopped(*more)`` -> a run of one step and the folder of its data, which may be changed."""
    shutil.copytree(demo_data, tmp_path / "data")

    def train(*more):
        assert main(arguments(tmp_path / "data", tmp_path, "--max-steps", "1", *more)) == 0
        return tmp_path / "run"

    return train


def rename_classes(monkeypatch, change):
    """Let the demo data be read with another class list."""
    find = dataset.DATASETS["demo"]

    def changed(data_dir):
        layout = find(data_dir)
        return dataclasses.replace(layout, class_names=change(list(layout.class_names)))

    monkeypatch.setitem(dataset.DATASETS, "demo", changed)


@pytest.mark.parametrize("allow", [[], ["--allow-changed"]])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: [names[1], names[0], *names[2:]], "the same classes in another order: number 0"),
        (lambda names: [*names[:-1], "comet"], "classes of other names: number 6"),
    ],
)
def test_resuming_with_other_classes_is_refused(change, words, allow, stopped, tmp_path, monkeypatch):
    """Whatever is allowed: the outputs would bear names that they were not trained for. Older files tell it, too."""
    folder = stopped()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    rename_classes(monkeypatch, change)
    with pytest.raises(UserError, match=words):
        main(arguments(tmp_path / "data", tmp_path, "--resume", "auto", *allow))
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_of_another_device_goes_on(optimizer, stopped, tmp_path):
    """On Apple's GPUs optimizers are not fused, and their state says so."""
    more = ["--optimizer", optimizer]
    stopped(*more)
    last = load_file(tmp_path / "run" / "last.pth")
    for group in last["training"]["optimizer"]["param_groups"]:
        group["fused"] = False
    torch.save(last, tmp_path / "run" / "last.pth")
    assert main(arguments(tmp_path / "data", tmp_path, "--resume", "auto", "--max-steps", "2", *more)) == 0
    groups = load_file(tmp_path / "run" / "last.pth")["training"]["optimizer"]["param_groups"]
    assert all(group["fused"] for group in groups)


def test_resuming_with_other_validation_images_is_refused(stopped, tmp_path):
    stopped()
    (val,) = (tmp_path / "data").rglob("Segmentation/val.txt")
    val.write_text("\n".join(val.read_text().split()[1:]))
    with pytest.raises(UserError, match="other images in the split val"):
        main(arguments(tmp_path / "data", tmp_path, "--resume", "auto"))
    last = load_file(tmp_path / "run" / "last.pth")
    del last["training"]["val_images"], last["training"]["masks"]  # as older ones are
    torch.save(last, tmp_path / "run" / "last.pth")
    assert main(arguments(tmp_path / "data", tmp_path, "--resume", "auto", "--max-steps", "2")) == 0


def test_resuming_with_masks_of_other_classes_is_refused(stopped, tmp_path):
    """Two classes change places in every mask: lists, names and files are called as before."""
    stopped()
    for path in (tmp_path / "data").rglob("SegmentationClass/*.png"):
        with Image.open(path) as image:
            mask = np.array(image)
            swapped = np.choose((mask == 1) + 2 * (mask == 2), [mask, np.full_like(mask, 2), np.full_like(mask, 1)])
            swapped = palette_image(swapped.astype(np.uint8), np.array(image.getpalette()).reshape(-1, 3))
        swapped.save(path)
    with pytest.raises(UserError, match="made with masks that held something else"):
        main(arguments(tmp_path / "data", tmp_path, "--resume", "auto"))
    last = load_file(tmp_path / "run" / "last.pth")
    del last["training"]["masks"]  # as older ones are
    torch.save(last, tmp_path / "run" / "last.pth")
    assert main(arguments(tmp_path / "data", tmp_path, "--resume", "auto", "--max-steps", "2")) == 0


def test_class_weights_that_have_changed_are_noticed(stopped, tmp_path):
    weights = tmp_path / "weights.txt"
    weights.write_text("\n".join("1234567"))
    stopped("--class-weights", weights)
    weights.write_text("\n".join("7654321"))
    with pytest.raises(UserError, match=r"made with another class weights than .*weights\.txt now holds"):
        main(arguments(tmp_path / "data", tmp_path, "--class-weights", weights, "--resume", "auto"))


def test_an_argument_that_an_older_run_did_not_know_was_not_given(stopped, tmp_path):
    folder = stopped()
    last = load_file(folder / "last.pth")
    del last["training"]["arguments"]["eval_tile"]
    torch.save(last, folder / "last.pth")
    with pytest.raises(UserError, match="--eval-tile was 0, is 64"):
        main(arguments(tmp_path / "data", tmp_path, "--resume", "auto", "--eval-tile", "64"))
    assert main(arguments(tmp_path / "data", tmp_path, "--resume", "auto", "--max-steps", "2")) == 0


def test_a_best_score_that_is_no_number_is_overcome(stopped, tmp_path):
    """Earlier versions kept nan, which nothing is greater than."""
    folder = stopped()
    last = load_file(folder / "last.pth")
    last["training"]["progress"]["best_score"] = float("nan")
    torch.save(last, folder / "last.pth")
    assert main(arguments(tmp_path / "data", tmp_path, "--resume", "auto", "--max-steps", "2")) == 0
    best = load_file(folder / "last.pth")["training"]["progress"]["best_score"]
    assert 0 <= best <= 1


def test_a_loss_that_cannot_act_ends_the_run_before_it_begins(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "load_teacher_for", lambda *args: pytest.fail("the teacher was loaded"))
    data = types.SimpleNamespace(train_set=types.SimpleNamespace(num_classes=2))
    args = arguments(demo_data, tmp_path, "--loss", "icsd=1", "--loss", "dist=1")
    with pytest.raises(UserError, match=r"^icsd would teach nothing: the data set has 2 classes, and at least 3"):
        build.build_models(args, make_recipe(args), data, torch.device("cpu"))


def test_what_may_differ_between_the_parts_of_a_run_changes_nothing_that_is_computed():
    """All else is compared on --resume: who adds a name here has thought about it."""
    places = {"data_dir", "cache_dir", "decode_cache", "output_dir", "name"}
    machine = {"device", "workers", "dist_timeout", "compile"}
    looking = {"eval_every", "eval_batch_size", "save_every", "save_steps", "tensorboard", "wandb"}
    ends = {"max_steps", "patience", "resume", "allow_changed", "dry_run"}
    assert places | machine | looking | ends == MAY_CHANGE


# -- against values by hand, not another run of the same code ------------------------------------


def score(monkeypatch, *mious):
    """Let the validations give these mIoUs, one after the other."""
    real, left = trainer_module.evaluate_model, iter(mious)

    def evaluate(*args, **options):
        found = real(*args, **options)
        return dataclasses.replace(found, scores=dataclasses.replace(found.scores, miou=next(left)))

    monkeypatch.setattr(trainer_module, "evaluate_model", evaluate)


def test_the_best_file_is_that_of_the_best_epoch(demo_data, tmp_path, monkeypatch):
    score(monkeypatch, 0.3, 0.6, 0.4)
    assert main(arguments(demo_data, tmp_path, "--epochs", "3", "--save-every", "1")) == 0
    best, second, third = (load_file(tmp_path / "run" / f"{name}.pth") for name in ("best", "epoch_2", "epoch_3"))
    assert (best["info"]["epoch"], best["info"]["miou"]) == (2, 0.6)
    assert all(torch.equal(tensor, second["state_dict"][key]) for key, tensor in best["state_dict"].items())
    assert not all(torch.equal(tensor, third["state_dict"][key]) for key, tensor in best["state_dict"].items())


def test_a_worse_epoch_after_a_resume_is_not_the_best(demo_data, tmp_path, monkeypatch):
    score(monkeypatch, 0.6, 0.3, 0.4)
    args = arguments(demo_data, tmp_path, "--epochs", "3")
    assert main(dataclasses.replace(args, max_steps=4)) == 0
    assert main(dataclasses.replace(args, resume="auto")) == 0
    assert load_file(tmp_path / "run" / "best.pth")["info"]["epoch"] == 1 and len(rows(tmp_path / "run")) == 3


def test_patience_begins_anew_at_every_gain(demo_data, tmp_path, monkeypatch):
    score(monkeypatch, 0.3, 0.2, 0.4, 0.3, 0.2, 0.9)
    assert main(arguments(demo_data, tmp_path, "--patience", "2", "--epochs", "6")) == 0
    assert len(rows(tmp_path / "run")) == 5
    assert load_file(tmp_path / "run" / "best.pth")["info"]["epoch"] == 3


def test_epochs_are_scored_and_saved_as_often_as_asked(demo_data, tmp_path):
    """And the last one is scored."""
    assert main(arguments(demo_data, tmp_path, "--epochs", "5", "--eval-every", "2", "--save-every", "2")) == 0
    scored = [row["epoch"] for row in rows(tmp_path / "run") if row["val_miou"]]
    assert scored == ["2", "4", "5"]
    assert sorted(path.name for path in (tmp_path / "run").glob("epoch_*")) == ["epoch_2.pth", "epoch_4.pth"]


def test_an_adaptive_recipe_follows_the_steps(demo_data, distilled, tmp_path, monkeypatch):
    """Of two epochs of four steps: 0/8, 1/8, ..."""
    seen, total = [], Distiller.total

    def spy(self, losses, progress=0.0):
        seen.append(progress)
        return total(self, losses, progress)

    monkeypatch.setattr(Distiller, "total", spy)
    assert main(arguments(demo_data, tmp_path, *distilled, "--beta", "0", "--preset", "aicsd")) == 0
    assert seen == pytest.approx(np.arange(8) / 8)


def test_an_epoch_that_was_resumed_has_the_time_of_both_parts(demo_data, tmp_path, a_second_a_step, monkeypatch):
    """Four steps of a second, sixteen images."""
    monkeypatch.setattr(trainer_module, "time", pace.time)
    more = ["--epochs", "1"]
    assert main(arguments(demo_data, tmp_path, *more, "--max-steps", "3")) == 0
    assert main(arguments(demo_data, tmp_path, *more, "--resume", "auto")) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (float(row["epoch_s"]), float(row["images_per_s"])) == (4, 4)


def test_what_is_done_aside_is_no_training(demo_data, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(pace, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    args, progress = arguments(demo_data, tmp_path), Progress()
    own = pace.Pace(args, Stages(args, 16), progress)

    def pass_by(seconds):
        clock[0] += seconds

    own.start()
    pass_by(2)
    assert own.aside(lambda: pass_by(100)) == 100
    pass_by(3)
    own.tick()
    assert progress.train_s == 5


def test_the_warm_up_is_counted_in_steps_of_the_first_stage(demo_data, tmp_path):
    more = ["--freeze-epochs", "1", "--freeze-batch-size", "2", "--warmup-epochs", "1"]
    stages = Stages(arguments(demo_data, tmp_path, *more), 16)
    assert (stages.warmup_steps, stages.total_steps) == (8, 8 + 4)


@pytest.mark.parametrize(
    ("words", "temperature"),
    [("--preset aicsd", 1), ("--preset cwd", 4), ("--alpha 1", 4), ("--preset cwd --temperature 2", 2)],
)
def test_the_temperature_is_the_presets_unless_it_is_given(words, temperature):
    assert make_recipe(get_args_parser().parse_args(words.split())).temperature == temperature
