"""Plans, the runs they need, statistics and tables; and one comparison of real runs from end to end."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import compare
from basics.errors import UserError
from comparison import runs, scoring
from comparison.markdown import escape, to_markdown
from comparison.notes import reading_notes
from comparison.plan import check_files, load_plan
from comparison.runs import refuse_mixed, state_of, train_missing
from comparison.scoring import Comparison, Cost, ImageScores, measure_costs, score_run
from comparison.statistics import Spread, summarize, t_quantile, verdict
from comparison.tables import runs_csv, summary_csv, tex_escape, to_tex
from comparison.words import METHOD_ARGUMENTS
from datachecks import teacher_masks
from dataset import build_dataset
from deploy.segmenter import load_segmenter
from deploy.teachers import TeacherChoice
from kd.losses import LOSSES
from scoring.metrics import image_miou
from scoring.protocol import evaluate_model
from tests.comparisons import PARAMETERS, invent, pretend_done, read_plan, write_plan
from training.arguments import flags

METHODS = """
[methods.baseline]
[methods.kl]
alpha = 1
temperature = 2
"""


@pytest.fixture
def val_set(demo_data):
    return build_dataset("demo", demo_data, "val")


# -- plans ---------------------------------------------------------------------------------------


def test_a_plan_is_a_list_of_commands_that_train_kd_understands(tmp_path, demo_data):
    path = write_plan(tmp_path, demo_data, methods=METHODS + 'loss = ["cwd=3", "at@high=0.5"]\ncache_teacher = true\n')
    path.write_text(path.read_text().replace("[common]", "[common]\nscale_range = [0.75, 1.5]"))
    plan = read_plan(path, tmp_path)
    names = [run.name for run in plan.runs]
    assert names == [f"{method}_compact_seed{seed}" for method in ("baseline", "kl") for seed in (0, 1)]
    run = plan.runs[-1]
    assert (run.args.alpha, run.args.temperature, run.args.loss) == (1, 2, ["cwd=3", "at@high=0.5"])
    assert (run.args.cache_teacher, run.args.seed, run.args.resume) == ("fp16", 1, "auto")
    assert run.args.scale_range == [0.75, 1.5] and "--scale-range 0.75 1.5 " in run.command
    assert run.folder == tmp_path / "runs" / "tiny" / "kl_compact_seed1" == run.args.output_dir / run.args.name
    assert run.needs_teacher and not plan.runs[0].needs_teacher


def test_what_concerns_the_teacher_is_no_part_of_a_run_without_one(tmp_path, demo_data):
    """Another teacher must not make the trained baseline another run."""
    path = write_plan(tmp_path, demo_data, 'teacher = "fcn_resnet101"\ncache_teacher = "uint8"', methods=METHODS)
    baseline, *_, kl = read_plan(path, tmp_path).runs
    assert "fcn_resnet101" in kl.command and "--cache-teacher uint8" in kl.command
    assert "--teacher" not in baseline.command and "--cache" not in baseline.command


def test_methods_may_set_all_losses_and_nothing_else():
    """A loss argument that is new in train_kd.py has to be let in here."""
    losses = {each.name for each, about in flags() if about.group == "losses"}
    teacher = {
        "teacher",
        "teacher_weights",
        "class_map",
        "teacher_size",
        "min_confidence",
        "cache_teacher",
        "cache_dir",
    }
    others = {"student_weights", "unlabelled", "labelled_per_batch", "clip_norm", "ema"}
    assert losses | teacher | others == METHOD_ARGUMENTS


@pytest.mark.parametrize(
    ("common", "methods", "words"),
    [
        ("epohcs = 3", METHODS, ["epohcs", "did you mean 'epochs'", "[common]"]),
        ('lr = "fast"', METHODS, ["--lr", "fast"]),
        ("lr = -1", METHODS, ["--lr must be above 0"]),
        ("scale_range = [0.5]", METHODS, ["--scale-range"]),
        ("seed = 3", METHODS, ["[common] seed", "take it out"]),
        ('student = "standard"', METHODS, ["[common] student"]),
        ("", "[methods.baseline]\n[methods.kl]\nalpah = 1", ["alpah", "[methods.kl]", "did you mean 'alpha'"]),
        ("", "[methods.baseline]\nepochs = 90", ["[methods.baseline] epochs", "same budget", "[common]"]),
        ("", "[methods.baseline]\nlr = 1e-3", ["same budget"]),
        ("", "[methods.baseline]\nbatch-size = 4", ["same budget"]),
        ("", '[methods.baseline]\nloss = ["nope=1"]', ["[methods.baseline]", "unknown loss 'nope'"]),
        ("", '[methods.baseline]\nloss = ["at@hi=1"]', ["[methods.baseline]", "feature map in the loss 'at@hi'"]),
        ("", "[methods.kl]\nalpha = 1", ["baseline = 'baseline' is not among", "kl"]),
        ("", '[methods.baseline]\n[methods."a/b"]', ["'a/b'", "folder"]),
        ("", METHODS + "[reprot]", ["reprot", "did you mean 'report'"]),
        ("", METHODS + '[report]\nsize = "big"', ["[report] size"]),
        ("", METHODS + '[report]\ncheckpoint = "first"', ["[report]", "checkpoint"]),
        ("", METHODS + '[teacher]\nteacher = "resnet"', ["unknown teacher", "resnet"]),
        ("", METHODS + '[teacher]\nweights = "x"', ["[teacher]", "weights"]),
        ("", METHODS + "[teacher]\nteacher = 5", ["[teacher] teacher must be text"]),
        ("", METHODS + "[methods.KL]\nalpha = 2", ["differ in case"]),
        ("warmup_epochs = [3, 9]", METHODS, ["[common] warmup_epochs takes one value"]),
        ("batch-size = 8", METHODS, ["[common] batch-size is given twice"]),
        ("amp = false", METHODS, ["[common] amp takes a value, not false"]),
        ("", METHODS + "beta = false\n", ["[methods.kl] beta takes a value, not false"]),
        ("labels = 5", METHODS + 'unlabelled = ["train"]', ["[common] wants epoch_images = N, or time_budget"]),
        (
            "",
            METHODS + '[methods.pretrained]\nstudent_weights = "default"',
            ["learning rates of their own (0.0005, 0.003)", "[common] wants lr"],
        ),
    ],
)
def test_errors_of_a_plan_are_one_line_that_names_the_place(tmp_path, demo_data, common, methods, words):
    path = write_plan(tmp_path, demo_data, common, methods=methods)
    with pytest.raises(UserError) as error:
        load_plan(path, tmp_path)
    for word in [str(path), *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("seeds", ["3", "[]", "[0, 0]", "[true]", '["a"]', "[0.5]"])
def test_seeds_must_be_different_whole_numbers(tmp_path, seeds):
    path = tmp_path / "plan.toml"
    path.write_text(f"seeds = {seeds}\n[methods.baseline]\n")
    with pytest.raises(UserError, match="seeds must be a list"):
        load_plan(path, tmp_path)


def test_the_baseline_is_one_name(tmp_path, demo_data):
    path = write_plan(tmp_path, demo_data, methods=METHODS)
    path.write_text('baseline = ["baseline"]\n' + path.read_text())
    with pytest.raises(UserError, match=r"baseline = \['baseline'\] is not among its methods"):
        load_plan(path, tmp_path)


@pytest.mark.parametrize("text", ["a = = b", "\xff"])
def test_a_file_that_is_no_toml(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not a TOML file"):
        load_plan(path, tmp_path)
    with pytest.raises(UserError, match="No such file"):
        load_plan(tmp_path / "absent.toml", tmp_path)


def test_missing_weights_are_named_before_anything_is_trained(tmp_path, demo_data):
    path = write_plan(tmp_path, demo_data, 'teacher_weights = "absent.pth"', methods=METHODS)
    args = compare.get_args_parser().parse_args([str(path), "--output-dir", str(tmp_path / "runs")])
    with pytest.raises(UserError, match=r"no such file: absent\.pth"):
        compare.main(args)
    write_plan(tmp_path, demo_data, 'teacher = "absent.PTH"', methods=METHODS)  # a file says itself what network it is
    with pytest.raises(UserError, match=r"no such file: absent\.PTH"):
        compare.main(args)
    assert not (tmp_path / "runs").exists()


def test_costs_of_a_teacher_that_another_file_of_its_name_replaced_are_measured_anew(tmp_path, demo_data, monkeypatch):
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    plan = dataclasses.replace(plan, teacher=TeacherChoice(str(tmp_path / "t.pth")))
    measured: list[int] = []
    cost = Cost(1, None, 1.0, "a machine")
    monkeypatch.setattr(scoring, "_measure", lambda models, *_: measured.append(len(models)) or [cost] * len(models))
    monkeypatch.setattr(scoring, "load_any_teacher", lambda *args: torch.nn.Identity())
    for content, times in ((b"one", 1), (b"one", 1), (b"another", 2)):
        (tmp_path / "t.pth").write_bytes(content)
        plan.folder.mkdir(parents=True, exist_ok=True)
        measure_costs(Comparison(plan, build_dataset("demo", demo_data, "val"), [], [], None))
        assert len(measured) == times


def test_a_loss_that_cannot_act_on_the_data_is_named_before_anything_is_trained(tmp_path, demo_data, monkeypatch):
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS + '[methods.icsd]\nloss = ["icsd=1"]\n'), tmp_path)
    icsd = LOSSES["icsd"]
    monkeypatch.setitem(LOSSES, "icsd", dataclasses.replace(icsd, min_classes=8))
    with pytest.raises(UserError, match="icsd would teach nothing: the data set has 7 classes"):
        check_files(plan)


def test_an_onnx_teacher_goes_by_its_file(tmp_path, demo_data):
    path = write_plan(tmp_path, demo_data, methods=METHODS + '[teacher]\nteacher_weights = "some/big.onnx"')
    teacher = read_plan(path, tmp_path).teacher
    assert (teacher.label, teacher.weights) == ("big", "some/big.onnx")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "results").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_plans_of_the_project_are_sound(path, tmp_path):
    assert load_plan(path, tmp_path).name == path.stem


# -- which runs are done -------------------------------------------------------------------------


def test_states(tmp_path, demo_data):
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    pretend_done(plan, ["baseline_compact_seed0", "baseline_compact_seed1"])
    (plan.runs[1].folder / "report.txt").unlink()
    assert [state_of(run).kind for run in plan.runs] == ["done", "part", "missing", "missing"]
    assert state_of(plan.runs[1]).epochs == 1


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [("epochs", 9, True), ("max_steps", 7, True), ("lr", 1.0, True), ("workers", 9, False), ("device", "mps", False),
     ("data_dir", "elsewhere", False), ("teacher", "another", False)],
)  # fmt: skip
def test_a_folder_with_another_run_is_refused(tmp_path, demo_data, key, value, refused):
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    pretend_done(plan)
    path = plan.runs[0].folder / "config.json"
    content = json.loads(path.read_text())
    content["arguments"][key] = value
    path.write_text(json.dumps(content))
    if refused:
        with pytest.raises(UserError, match=rf"{plan.runs[0].name} holds another run.*--{key.replace('_', '-')} was"):
            state_of(plan.runs[0])
    else:
        assert state_of(plan.runs[0]).kind == "done"


@pytest.mark.parametrize(
    ("key", "value"), [("workers", 9), ("compile", True), ("device", "mps"), ("decode_cache", True)]
)
def test_what_sets_the_pace_is_part_of_a_run_of_equal_time(tmp_path, demo_data, key, value):
    plan = read_plan(write_plan(tmp_path, demo_data, "time_budget = 3", methods=METHODS), tmp_path)
    pretend_done(plan)
    path = plan.runs[0].folder / "config.json"
    content = json.loads(path.read_text())
    content["arguments"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"--{key.replace('_', '-')} was"):
        state_of(plan.runs[0])


@pytest.mark.parametrize(
    ("key", "other", "words"),
    [
        ("val_images", "baseline_compact_seed1", "validation pictures"),
        ("images", "kl_compact_seed0", "training pictures"),
        ("masks", "kl_compact_seed0", "masks"),
        ("whole teacher", "kl_compact_seed1", "teachers"),
        ("class weights", "kl_compact_seed0", "class weights"),
    ],
)
def test_runs_that_saw_different_data_are_no_pairs(tmp_path, demo_data, key, other, words):
    """Masks were mended, or the teacher trained on, between two runs; images and masks of another seed may differ."""
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    pretend_done(plan)
    for run in plan.runs:
        path = run.folder / "config.json"
        content = json.loads(path.read_text())
        content["arguments"] |= {"images": f"im{run.seed}", "val_images": "val", "masks": f"mask{run.seed}"}
        weights = {"class weights": f"w{run.seed}"}  # of the masks that were drawn
        content["arguments"]["weight_files"] = weights | ({"whole teacher": "t"} if run.method == "kl" else {})
        path.write_text(json.dumps(content))
    refuse_mixed(plan.runs)
    path = plan.folder / other / "config.json"
    content = json.loads(path.read_text())
    in_files = key in content["arguments"]["weight_files"]
    where = content["arguments"]["weight_files"] if in_files else content["arguments"]
    where[key] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{other}.* trained with different {words}, and are no pair"):
        refuse_mixed(plan.runs)
    del where[key]  # a run of old
    path.write_text(json.dumps(content))
    refuse_mixed(plan.runs)


def test_an_argument_younger_than_a_run_had_its_default(tmp_path, demo_data):
    plan = read_plan(write_plan(tmp_path, demo_data, "lr = 0.01", methods=METHODS), tmp_path)
    pretend_done(plan)
    path = plan.runs[0].folder / "config.json"
    content = json.loads(path.read_text())
    del content["arguments"]["weight_decay"]  # the plan's is the default
    path.write_text(json.dumps(content))
    assert state_of(plan.runs[0]).kind == "done"
    del content["arguments"]["lr"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"--lr was 0\.0005, is 0\.01"):
        state_of(plan.runs[0])


def test_runs_of_a_gpu_are_told_on_a_laptop(tmp_path, demo_data):
    """Precision of a GPU that the machine at hand would refuse to train with; and runs that settled what was open."""
    plan = read_plan(write_plan(tmp_path, demo_data, 'amp = "fp16"', methods=METHODS), tmp_path)
    pretend_done(plan)
    path = plan.runs[0].folder / "config.json"
    content = json.loads(path.read_text())
    assert content["arguments"]["lr"] is None
    for lr in (None, 5e-4):  # that of a student from scratch
        content["arguments"] |= {"lr": lr, "backbone_lr_factor": 1.0}
        path.write_text(json.dumps(content))
        assert state_of(plan.runs[0]).kind == "done"
    content["arguments"]["amp"] = "off"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="--amp was 'off', is 'fp16' in the plan"):
        state_of(plan.runs[0])


def test_runs_that_chose_a_gpus_precision_are_done_on_a_laptop_too(tmp_path, demo_data):
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    pretend_done(plan)
    path = plan.runs[0].folder / "config.json"
    content = json.loads(path.read_text())
    assert content["arguments"]["amp"] == "auto"
    for amp in ("bf16", "off"):
        content["arguments"]["amp"] = amp
        path.write_text(json.dumps(content))
        assert state_of(plan.runs[0]).kind == "done"


def test_runs_that_chose_when_to_validate_are_done_until_the_plan_says_when(tmp_path, demo_data):
    for line, done in (("", True), ("eval_every = 3", False)):
        plan = read_plan(write_plan(tmp_path, demo_data, line, methods=METHODS), tmp_path)
        pretend_done(plan)
        path = plan.runs[0].folder / "config.json"
        content = json.loads(path.read_text())
        content["arguments"]["eval_every"] = 5
        path.write_text(json.dumps(content))
        if done:
            assert state_of(plan.runs[0]).kind == "done"
            continue
        with pytest.raises(UserError, match="--eval-every was 5, is 3 in the plan"):
            state_of(plan.runs[0])


@pytest.mark.parametrize("file", ["best", "last"])
def test_the_checkpoint_that_the_plan_names_is_scored(tmp_path, demo_data, demo_checkpoint, file):
    """And the report says which: the last is chosen by nobody, the best by the pictures that score it."""
    methods = f'[methods.baseline]\n[report]\ncheckpoint = "{file}"\n'
    plan = read_plan(write_plan(tmp_path, demo_data, methods=methods, seeds=[0]), tmp_path)
    pretend_done(plan)
    (run,) = plan.runs
    dataset, scores = build_dataset("demo", demo_data, "val"), {}
    for seed, name in enumerate(("best", "last")):
        shutil.copy(demo_checkpoint("compact", seed=seed), run.folder / f"{name}.pth")
        model = load_segmenter(run.folder / f"{name}.pth", "cpu").model
        scores[name] = evaluate_model(model, dataset, torch.device("cpu"), progress=False).scores.miou
    result = score_run(run, plan, dataset)
    assert result.row["miou"] == scores[file] != scores["last" if file == "best" else "best"]
    assert (run.folder / f"scores_{file}.json").is_file()
    costs = {"compact": Cost(1, None, 1.0, "a machine")}
    said = " ".join(reading_notes(Comparison(plan, dataset, [result], [], None, costs)))
    assert ("its last epoch" in said) == (file == "last")


def test_each_picture_has_its_own_score(demo_data, demo_checkpoint):
    dataset, images = build_dataset("demo", demo_data, "val"), ImageScores(7)
    segmenter = load_segmenter(demo_checkpoint("compact"), "cpu")
    evaluate_model(segmenter.model, dataset, torch.device("cpu"), watcher=images, progress=False)
    alone = {one["id"]: image_miou(segmenter.mask(one["image"]), one["mask"], 7) for one in dataset}
    assert images.images == pytest.approx(alone, abs=1e-3) and len(set(alone.values())) > 2


def test_masks_that_a_teacher_wrote_are_no_truth(tmp_path, demo_data, monkeypatch, capsys):
    plan = read_plan(write_plan(tmp_path, demo_data, methods="[methods.baseline]\n"), tmp_path)
    monkeypatch.setattr(teacher_masks, "unmended", lambda masks: list(masks)[:1])
    check_files(plan)
    assert "warning: demo/val" in capsys.readouterr().out
    monkeypatch.setattr(teacher_masks, "unmended", list)
    with pytest.raises(UserError, match="all masks of demo/val are a teacher's own: scores would be agreement"):
        check_files(plan)


def test_a_plan_as_windows_editors_save_it(tmp_path, demo_data):
    path = write_plan(tmp_path, demo_data, methods=METHODS)
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(path.read_bytes().decode("utf-8-sig").encode(encoding))
        assert read_plan(path, tmp_path).seeds == (0, 1)
        path.write_bytes(path.read_bytes().decode(encoding).encode())


def test_a_teacher_file_with_another_content_is_another_run(tmp_path, demo_data):
    weights = tmp_path / "teacher.pth"
    weights.write_bytes(b"one")
    text = f'teacher_weights = "{weights}"'
    plan = read_plan(write_plan(tmp_path, demo_data, text, methods=METHODS), tmp_path)
    pretend_done(plan)
    taught = plan.runs[2]
    path = taught.folder / "config.json"
    content = json.loads(path.read_text())
    content["arguments"]["weight_files"] = {"teacher": hashlib.sha256(b"one").hexdigest()}
    path.write_text(json.dumps(content))
    assert state_of(taught).kind == "done"
    weights.write_bytes(b"another")
    with pytest.raises(UserError, match=r"the teacher's .*teacher\.pth has another content now"):
        state_of(taught)


def test_a_damaged_config_is_named(tmp_path, demo_data):
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    pretend_done(plan)
    (plan.runs[0].folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not a run's configuration"):
        state_of(plan.runs[0])


# -- training, with a stand-in for train_kd.py that needs no PyTorch -----------------------------

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
value = lambda flag: words[words.index(flag) + 1]
folder = Path(value("--output-dir")) / value("--name")
def stop(number, frame):
    (folder / "saved").write_text("")
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("threads", os.environ.get("OMP_NUM_THREADS"), "of", os.environ.get("LOCAL_WORLD_SIZE"))
print("gpu", os.environ.get("CUDA_VISIBLE_DEVICES"))
(folder / "began").write_text(str(time.time()))
if "--alpha" in words and value("--seed") == "0" and MODE == "fail":
    sys.exit("error: out of luck")
end = time.time() + 30
while MODE == "meet" and len(list(folder.parent.glob("*/began"))) < 2 and time.time() < end:
    time.sleep(0.01)
time.sleep(60 if MODE == "wait" else 0.1)
(folder / "report.txt").write_text("done")
(folder / "best.pth").write_text("")
(folder / "ended").write_text(str(time.time()))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """``stand_in("fail")`` puts a script in train_kd.py's place that fails, waits (for another) or just ends."""

    def put(mode: str) -> None:
        script = tmp_path / "stand_in.py"
        script.write_text(f"MODE = {mode!r}\n{STAND_IN}")
        monkeypatch.setattr(runs, "SCRIPT", script)

    return put


def test_a_run_that_dies_does_not_take_the_others_with_it(tmp_path, demo_data, stand_in, capsys):
    stand_in("fail")
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    failures = train_missing(plan, plan.runs, jobs=1)
    assert [failure.partition(":")[0] for failure in failures] == ["kl_compact_seed0"]
    assert "out of luck" in failures[0]
    assert "out of luck" in (plan.runs[2].folder / "train.log").read_text()
    assert [(run.folder / "report.txt").exists() for run in plan.runs] == [True, True, False, True]
    assert "[kl_compact_seed1] threads" in capsys.readouterr().out


def test_jobs_run_at_the_same_time_and_share_the_threads(tmp_path, demo_data, stand_in, capsys, monkeypatch):
    stand_in("meet")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    assert train_missing(plan, plan.runs[:2], jobs=2) == []
    began, ended = ([float((run.folder / name).read_text()) for run in plan.runs[:2]] for name in ("began", "ended"))
    assert max(began) < min(ended)
    assert capsys.readouterr().out.count("threads 4 of 2") == 2  # loader processes go by the second number
    assert not plan.runs[2].folder.exists()


@pytest.mark.parametrize(
    ("visible", "jobs", "expected"),
    [(None, 2, ["0", "1", "0", "1"]), ("5,7,GPU-x", 4, ["5", "7", "GPU-x", "5"]), ("3", 2, ["3"] * 4)],
)
def test_each_of_several_runs_has_a_gpu_for_itself(
    tmp_path, demo_data, stand_in, capsys, monkeypatch, visible, jobs, expected
):
    stand_in("pass")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    assert train_missing(plan, plan.runs, jobs) == []
    said = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "] gpu " in line]
    assert sorted(said) == sorted(expected)


@pytest.mark.parametrize(("common", "order"), [("", "0101"), ("time_budget = 3", "0011")])
def test_at_equal_time_runs_of_a_seed_follow_each_other(tmp_path, demo_data, stand_in, capsys, common, order):
    """A machine's pace comes and goes, and it decides what fits into the time: what is paired shares it."""
    stand_in("pass")
    plan = read_plan(write_plan(tmp_path, demo_data, common, methods=METHODS), tmp_path)
    assert train_missing(plan, plan.runs, jobs=1) == []
    said = [line for line in capsys.readouterr().out.splitlines() if "python train_kd.py" in line]
    assert "".join(line.partition("_seed")[2][0] for line in said) == order


def test_what_is_done_is_not_started(tmp_path, demo_data, stand_in):
    stand_in("pass")
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)
    pretend_done(plan, [plan.runs[0].name])
    train_missing(plan, plan.runs[:2], jobs=1)
    assert [(run.folder / "began").exists() for run in plan.runs[:2]] == [False, True]


def test_ctrl_c_lets_the_runs_save_themselves_and_says_how_to_go_on(tmp_path, demo_data, stand_in, capsys):
    stand_in("wait")
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS), tmp_path)

    log = plan.runs[0].folder / "train.log"

    def press() -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end and not (log.exists() and "threads" in log.read_text()):
            pressed.wait(0.05)
        said.append(log.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    pressed = threading.Event()
    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train_missing(plan, plan.runs, jobs=1)
    thread.join()
    assert "threads" in said[0], "what a run prints is kept line by line"
    assert (plan.runs[0].folder / "saved").exists()
    assert not plan.runs[1].folder.exists()
    assert "the same command goes on" in capsys.readouterr().out


def test_dry_run_and_only(tmp_path, demo_data, capsys):
    path = write_plan(tmp_path, demo_data, methods=METHODS)
    pretend_done(load_plan(path, tmp_path / "runs"), ["kl_compact_seed0"])
    words = [str(path), "--output-dir", str(tmp_path / "runs"), "--dry-run"]
    assert compare.main(compare.get_args_parser().parse_args([*words, "--only", "kl"])) == 0
    out = capsys.readouterr().out
    assert "kl_compact_seed0: done" in out and "kl_compact_seed1: missing\n  python train_kd.py" in out
    assert "baseline" not in out
    with pytest.raises(UserError, match=r"unknown method .*'kd'.*known: baseline, kl"):
        compare.main(compare.get_args_parser().parse_args([*words, "--only", "kd"]))
    path = write_plan(tmp_path, demo_data, 'teacher_weights = "absent.pth"', methods=METHODS)
    with pytest.raises(UserError, match=r"no such file: absent\.pth; train that network first"):
        compare.main(compare.get_args_parser().parse_args([str(path), "--output-dir", str(tmp_path), "--dry-run"]))
    assert "kl_compact_seed1: missing" in capsys.readouterr().out


# -- statistics ----------------------------------------------------------------------------------


def test_spread_by_hand():
    spread = Spread.of([0.03, 0.04, 0.01])
    assert spread.mean == pytest.approx(0.08 / 3)
    # (1/300)^2 + (4/300)^2 + (-5/300)^2 = 42/90000, halved: 21/90000
    assert spread.std == pytest.approx(math.sqrt(21 / 90000))
    assert Spread.of([0.5]) == Spread(0.5, None)
    assert Spread.of([]) is None
    # t(2 degrees) = 4.302653: 4.302653 * sqrt(21 / 90000 / 3) = 0.0379458
    assert spread.interval == pytest.approx((0.08 / 3 - 0.0379458, 0.08 / 3 + 0.0379458), rel=1e-5)
    assert Spread.of([0.5]).interval is None


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216), (10, 2.22814), (30, 2.04227),
     (120, 1.97993), (1000, 1.96234)],
)  # fmt: skip
def test_quantiles_are_those_of_the_printed_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-5 * quantile)


def test_the_interval_holds_the_truth_in_95_of_100_cases():
    generator = random.Random(0)
    for n in (2, 3, 5):
        samples = [Spread.of([generator.gauss(0.3, 2.0) for _ in range(n)]).interval for _ in range(4000)]
        assert sum(low < 0.3 < high for low, high in samples) / 4000 == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("values", "word"),
    [([0.03, 0.04, 0.01], "within noise"), ([0.03, 0.04, 0.035], "yes"), ([-0.03, -0.04, -0.035], "no"),
     # Of the same mean and deviation: three seeds leave it open, nine do not.
     ([0.01, 0.02, 0.03], "within noise"), ([0.01, 0.02, 0.03] * 3, "yes"), ([-0.01, -0.02, -0.03] * 3, "no"),
     # More than twice their deviation above 0, which three seeds do not make sure of: 2.1 < 4.3 / sqrt(3).
     ([0.011, 0.021, 0.031], "within noise"),
     ([-0.03, 0.04, 0.0], "within noise"), ([0.0, 0.0, 0.0], "within noise"), ([0.05, 0.05], "—"),
     ([0.05], "—"), ([], "—")],
)  # fmt: skip
def test_verdict(values, word):
    assert verdict(Spread.of(values)) == word


def test_the_table_by_hand(tmp_path, demo_data, val_set):
    methods = METHODS + "[methods.cosine]\nbeta = 1\n[methods.never]\nbeta = 2\n"
    plan = read_plan(write_plan(tmp_path, demo_data, methods=methods, seeds=[0, 1, 2]), tmp_path)
    mious = {"baseline": [0.50, 0.54, 0.52], "kl": [0.53, 0.58, 0.555], "cosine": [0.52, 0.50]}
    teacher, baseline, kl, cosine = summarize(invent(plan, val_set, mious))
    assert (teacher.kind, teacher.miou, teacher.helps) == ("teacher", Spread(0.8, None), "—")
    assert (baseline.kind, baseline.difference, baseline.helps) == ("baseline", None, "—")
    assert (baseline.miou.mean, baseline.miou.std) == pytest.approx((0.52, 0.02))
    assert (kl.difference.mean, kl.difference.std, kl.pairs) == pytest.approx((0.035, 0.005, 3))  # 3, 4, 3.5 points
    assert kl.helps == "yes"
    assert kl.share == pytest.approx(0.555 / 0.8)
    assert kl.score == pytest.approx(4 * 0.555 / 1.4)
    assert (kl.parameters, kl.macs, kl.ms, kl.train_seconds) == (PARAMETERS, 120_000_000, 12.5, 33.0)
    assert kl.steps == 31  # 30, 31, 32
    # Two seeds of three: +2 and -4 points, paired with their own baselines; too few for a word.
    assert (cosine.seeds, cosine.pairs, cosine.helps) == ((0, 1), 2, "—")
    assert (cosine.difference.mean, cosine.difference.std) == pytest.approx((-0.01, math.sqrt(2) * 0.03))
    assert kl.iou[val_set.class_names[0]] == pytest.approx(0.555)
    assert kl.iou[val_set.class_names[-1]] is None


def test_chosen_classes_by_hand(tmp_path, demo_data, val_set):
    names = val_set.class_names
    path = write_plan(tmp_path, demo_data, methods=METHODS, seeds=[0, 1, 2])
    path.write_text(path.read_text() + f'[report]\nclasses = ["{names[0]}", "{names[1]}", "{names[-1]}"]\n')
    comparison = invent(read_plan(path, tmp_path), val_set, {"baseline": [0.5, 0.54, 0.52], "kl": [0.53, 0.58, 0.555]})
    lines = summarize(comparison)
    teacher, baseline, kl = lines
    # The first class has the invented mIoU, the second 0.5, the last none: it is left out.
    assert teacher.chosen == Spread(pytest.approx((0.8 + 0.5) / 2), None)
    assert (baseline.chosen.mean, baseline.chosen.std) == pytest.approx(((0.52 + 0.5) / 2, 0.01))
    assert (kl.chosen_difference.mean, kl.chosen_difference.std) == pytest.approx((0.0175, 0.0025))
    assert (verdict(baseline.chosen_difference), verdict(kl.chosen_difference)) == ("—", "yes")
    assert (kl.difference.mean, kl.pairs) == pytest.approx((0.035, 3))  # the other columns stay as they are
    text = to_markdown(comparison, lines)
    assert "| mIoU-3 % | mIoU-3 difference | mIoU-3 helps? |" in text
    assert "| 52.75 ± 1.25 | +1.75 (+1.13 to +2.37) | yes |" in text
    assert f"mIoU-3: the same over these classes alone, chosen in the plan: {names[0]}, {names[1]}" in text
    assert "mIoU-3 difference" in to_tex(comparison, lines)
    summary = list(csv.DictReader(io.StringIO(summary_csv(lines))))
    assert float(summary[2]["chosen_difference_mean"]) == pytest.approx(0.0175)


def test_no_chosen_classes_no_columns(invented):
    comparison, lines = invented
    assert "mIoU-" not in to_markdown(comparison, lines)
    assert all(line.chosen is None and line.chosen_difference is None for line in lines)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ('["sky"]', "unknown class"),
        ('"circle"', r"must be a list of different values such as \['cat', 'dog'\]"),
        ("[]", "must be a list"),
        ("[1]", "must be a list"),
    ],
)
def test_wrong_chosen_classes_are_refused(tmp_path, demo_data, classes, message):
    path = write_plan(tmp_path, demo_data, methods=METHODS)
    path.write_text(path.read_text() + f"[report]\nclasses = {classes}\n")
    with pytest.raises(UserError, match=message) as found:
        check_files(read_plan(path, tmp_path))
    assert str(path) in str(found.value)


@pytest.fixture
def invented(tmp_path, demo_data, val_set):
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS, seeds=[0, 1, 2]), tmp_path)
    comparison = invent(plan, val_set, {"baseline": [0.50, 0.54, 0.52], "kl": [0.53, 0.58]})
    return comparison, summarize(comparison)


def test_markdown(invented):
    comparison, lines = invented
    text = to_markdown(comparison, lines)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    titles, _, teacher, baseline, kl = rows[:5]
    assert {len(row) for row in rows[:5]} == {len(titles)}
    cells = dict(zip(titles, kl, strict=True))
    assert "steps" not in cells  # which are equal
    assert cells["method"] == "kl" and cells["seeds"] == "2"
    assert cells["mIoU %"] == "55.50 ± 3.54"
    assert cells["difference to baseline"] == "+3.50 (-2.85 to +9.85)"
    assert cells["helps?"] == "—"
    assert dict(zip(titles, teacher, strict=True))["MACs G"] == "—"
    assert dict(zip(titles, baseline, strict=True))["difference to baseline"] == "—"
    for piece in ("native resolution", "abc123", "a &lt;machine&gt;", "python compare.py", "kl_compact_seed2"):
        assert piece in text
    assert "over up to 3 seeds (some runs are not finished" in text
    assert "the mean of these paired differences over seeds and, in brackets, its 95 % t-interval" in text
    assert "the largest difference to the baseline is that of kl, +3.50 points (95 % interval -2.85 to +9.85)." in text


def test_text_that_means_something_in_markdown():
    assert escape("a_b | <b> *x* [y] `z` _w_") == r"a_b \| &lt;b&gt; \*x\* \[y\] \`z\` \_w\_"


def test_at_equal_time_the_table_says_how_many_steps_that_were(tmp_path, demo_data, val_set):
    plan = read_plan(write_plan(tmp_path, demo_data, "time_budget = 60", methods=METHODS), tmp_path)
    assert "--time-budget 60" in plan.runs[0].command and plan.args.time_budget == 60
    comparison = invent(plan, val_set, {"baseline": [0.5, 0.6], "kl": [0.5, 0.7]})
    text = to_markdown(comparison, summarize(comparison))
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    assert dict(zip(rows[0], rows[4], strict=True))["steps"] == "30"  # 30 and 31: the even one
    assert "every run trained for 60 s" in text
    steps = [row["steps"] for row in csv.DictReader(io.StringIO(runs_csv(comparison)))]
    assert steps == ["30", "31", "30", "31"]


def test_one_seed_has_no_standard_deviation(tmp_path, demo_data, val_set):
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS, seeds=[0]), tmp_path)
    comparison = invent(plan, val_set, {"baseline": [0.5], "kl": [0.53]}, teacher=None)
    text = to_markdown(comparison, summarize(comparison))
    assert "| 53.00 ± — | +3.00 | — |" in text
    assert "is that of kl, +3.00 points. With one pair" in text
    assert "One seed only" in text


def test_csv(invented):
    comparison, lines = invented
    rows = list(csv.DictReader(io.StringIO(runs_csv(comparison))))
    assert [(row["method"], row["seed"], float(row["miou"])) for row in rows] == [
        ("baseline", "0", 0.5), ("baseline", "1", 0.54), ("baseline", "2", 0.52), ("kl", "0", 0.53), ("kl", "1", 0.58)
    ]  # fmt: skip
    assert rows[0]["iou/background"] == "0.5" and rows[0]["iou/cross"] == ""
    assert rows[4]["command"] == comparison.results[4].run.command
    assert (rows[1]["train_seconds"], rows[1]["best_epoch"]) == ("33.0", "3")
    summary = list(csv.DictReader(io.StringIO(summary_csv(lines))))
    assert [row["method"] for row in summary] == ["teacher", "baseline", "kl"]
    assert summary[0]["miou_std"] == "" and summary[0]["macs"] == ""
    assert float(summary[2]["difference_mean"]) == pytest.approx(0.035)
    assert (summary[2]["pairs"], summary[2]["helps"]) == ("2", "")


def test_summaries_by_hand(tmp_path, demo_data, val_set):
    """Differences of 0.03, 0.04 and 0.035; t has two degrees of freedom. Of the times one is of a busy machine."""
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS, seeds=[0, 1, 2]), tmp_path)
    comparison = invent(plan, val_set, {"baseline": [0.5, 0.54, 0.52], "kl": [0.53, 0.58, 0.555]})
    busy = dataclasses.replace(comparison.results[-1], train_seconds=90.0)
    comparison = dataclasses.replace(comparison, results=[*comparison.results[:-1], busy])
    row = list(csv.DictReader(io.StringIO(summary_csv(summarize(comparison)))))[2]
    half = 4.302653 * 0.005 / math.sqrt(3)
    assert [float(row["difference_low"]), float(row["difference_high"])] == pytest.approx([0.035 - half, 0.035 + half])
    assert float(row["miou_std"]) == pytest.approx(math.sqrt((0.025**2 + 0.025**2) / 2))
    assert float(row["train_seconds"]) == 33


def test_the_best_epoch_is_that_of_the_best_score(invented):
    result = invented[0].results[0]
    metrics = [{"epoch": 1, "val_miou": 0.2}, {"epoch": 2, "val_miou": 0.5}, {"epoch": 3, "val_miou": 0.4}]
    assert dataclasses.replace(result, metrics=metrics).best_epoch == 2


def test_tex(invented):
    comparison, lines = invented
    text = to_tex(comparison, lines)
    body = re.search(r"\\toprule(.*)\\bottomrule", text, re.DOTALL)[1]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    assert len(rows) == 4 and {row.count(" & ") + 1 for row in rows} == {columns}
    assert r"55.50 $\pm$ 3.54" in rows[3] and r"mIoU \%" in rows[0]
    assert tex_escape("-1.9 (-2.6 to +0.1), mIoU-7, one-pixel") == "$-$1.9 ($-$2.6 to +0.1), mIoU-7, one-pixel"
    assert tex_escape(r"a_b & 50 % \x {~^}#$") == (
        r"a\_b \& 50 \% \textbackslash{}x \{\textasciitilde{}\textasciicircum{}\}\#\$"
    )


# -- from end to end -----------------------------------------------------------------------------


def test_a_comparison_from_end_to_end(tmp_path, demo_data, demo_checkpoint, monkeypatch, capsys):
    """Part of the runs first, then the rest two at a time, then nothing again: what is done stays as it is."""
    teacher = f'teacher = "fastlitessnet"\nteacher_weights = "{demo_checkpoint("fastlitessnet")}"'
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    path = write_plan(tmp_path, data, teacher, methods=METHODS + "[report]\npanels = 1\nsize = 64\n")
    words = [str(path), "--output-dir", str(tmp_path / "runs"), "--results-dir", str(tmp_path / "results")]

    def call(*more: str) -> Path:
        assert compare.main(compare.get_args_parser().parse_args([*words, *more])) == 0
        return tmp_path / "results" / "tiny"

    folder = call("--only", "baseline")
    assert [row["method"] for row in csv.DictReader((folder / "results.csv").open())] == ["baseline"] * 2
    assert "kl_compact_seed0" in (folder / "results.md").read_text().partition("not finished")[2]

    runs_folder = tmp_path / "runs" / "tiny"
    stamp = (runs_folder / "baseline_compact_seed0" / "best.pth").stat().st_mtime_ns
    call("--jobs", "2")
    assert "2 of 4 runs are done, 2 to train" in capsys.readouterr().out
    assert (runs_folder / "baseline_compact_seed0" / "best.pth").stat().st_mtime_ns == stamp

    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("baseline", "0"), ("baseline", "1"), ("kl", "0"), ("kl", "1")
    ]  # fmt: skip
    # The same figures as the run's own: it has one epoch, scored by the same protocol.
    metrics = list(csv.DictReader((runs_folder / "kl_compact_seed1" / "metrics.csv").open()))
    assert float(rows[3]["miou"]) == pytest.approx(float(metrics[0]["val_miou"]), abs=1e-12)
    assert float(rows[3]["train_seconds"]) == pytest.approx(float(metrics[0]["epoch_s"]))
    assert (folder / "config.toml").read_text() == path.read_text()
    assert (folder / "report.html").stat().st_size > 10_000
    assert "toprule" in (folder / "results.tex").read_text()

    def refuse(*args, **kwargs):
        raise AssertionError("computed a second time")

    monkeypatch.setattr(scoring, "evaluate_model", refuse)
    monkeypatch.setattr(scoring, "measure_latencies", refuse)
    before = (folder / "results.csv").read_text()
    call("--report-only")
    call()
    assert (folder / "results.csv").read_text() == before
    # So is everything when the masks change.
    mask = next((data / "demo" / "SegmentationClass").glob("*_val_*"))
    os.utime(mask, (0, 0))
    with pytest.raises(AssertionError, match="second time"):
        call("--report-only")
    shutil.copystat(demo_data / mask.relative_to(data), mask)
    call("--report-only")
    # Other weights in the folder are scored anew.
    (runs_folder / "kl_compact_seed1" / "best.pth").write_bytes(demo_checkpoint("compact").read_bytes())
    with pytest.raises(AssertionError, match="second time"):
        call("--report-only")


@pytest.mark.parametrize(("size", "expected"), [("teacher_size = 48\ncache_teacher = true", 0), ("", 64)])
def test_a_teacher_of_a_working_size_is_not_cut_into_tiles(
    tmp_path, demo_data, demo_checkpoint, val_set, monkeypatch, size, expected
):
    """Each tile would be enlarged to that size; the students, which see pictures natively, are cut."""
    teacher = f'teacher = "fastlitessnet"\nteacher_weights = "{demo_checkpoint("fastlitessnet")}"'
    plan = read_plan(write_plan(tmp_path, demo_data, f"{teacher}\neval_tile = 64\n{size}", methods=METHODS), tmp_path)
    evaluate, tiles = scoring.evaluate_model, []

    def watch(*args, **options):
        tiles.append(options["tile"])
        return evaluate(*args, **options)

    monkeypatch.setattr(scoring, "evaluate_model", watch)
    plan.folder.mkdir(parents=True)
    assert scoring.score_teacher(plan, val_set).row["miou"] > 0
    assert tiles == [expected]


def test_report_only_without_a_finished_run(tmp_path, demo_data, demo_checkpoint):
    teacher = f'teacher = "fastlitessnet"\nteacher_weights = "{demo_checkpoint("fastlitessnet")}"'
    path = write_plan(tmp_path, demo_data, teacher, methods=METHODS)
    args = compare.get_args_parser().parse_args([str(path), "--output-dir", str(tmp_path), "--report-only"])
    with pytest.raises(UserError, match=r"no run of .* is done yet"):
        compare.main(args)


def test_a_run_ends_although_nobody_reads_what_it_prints(tmp_path, monkeypatch):
    """`compare.py | head -1`, or a disk that is full: a pipe that is not emptied would stop it for ever."""

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    (tmp_path / "chatty.py").write_text("for number in range(20_000):\n    print('line', number)\n")
    monkeypatch.setattr(runs, "SCRIPT", tmp_path / "chatty.py")
    monkeypatch.setattr(sys, "stdout", Gone())
    job = runs.Job(SimpleNamespace(folder=tmp_path / "run", name="run", words=[]), dict(os.environ))
    due = time.monotonic() + 60
    while job.process.poll() is None and time.monotonic() < due:
        time.sleep(0.05)
    if job.process.poll() is None:
        job.process.kill()
        pytest.fail("it waits")
    assert job.poll() == 0 and job.last_line == "line 19999"
    assert len((tmp_path / "run" / runs.LOG).read_text().splitlines()) == 20_000
