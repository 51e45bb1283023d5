"""The benchmark runs, measures what it says, and its baselines compute what they claim to."""

import copy
import itertools
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import default_collate

from basics.batch import normalize
from basics.timing import PartTimer, Timings, interleave
from benchmarks.loading import bench_loading
from benchmarks.loops import StepClock, WithLoss, missing_packages
from benchmarks.naive import NaiveDataset, NaiveStep
from benchmarks.pictures import first_images, make_pictures
from benchmarks.report import GOALS, PARTS
from dataset import build_dataset
from segdata.transforms import TrainTransform
from student_model import StudentNet
from tests.conftest import assert_one_line_error
from tests.tiny import tiny_batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures") / "made"
    make_pictures(root, 3, size=(90, 120))
    return build_dataset("folder", root, "train")


@pytest.mark.slow
def test_every_number_is_there(run_script, tmp_path):
    out = tmp_path / "bench.json"
    done = run_script("bench.py", "--quick", "--device", "cpu", "--json", out)
    results = json.loads(out.read_text())
    ratios = {name: value for part in PARTS for name, value in results[part]["ratios"].items()}
    optional = {name for name in GOALS if name.startswith("Hugging Face") and missing_packages()}
    assert ratios.keys() == GOALS.keys() - optional and all(value > 0 for value in ratios.values())
    assert all(name in done.stdout for name in ratios)
    assert results["machine"]["torch"] == torch.__version__ and results["machine"]["threads"] >= 1
    assert len(results["steps"]["steps"]) == 5 and len(results["loader"]["images_per_s"]) == 4
    for shares in [*results["steps"]["shares"].values(), results["validation"]["shares"]]:
        assert sum(shares.values()) == pytest.approx(1)
    assert results["validation"]["same_as_torchmetrics"] and results["validation"]["batched_is_single"]
    assert 0 <= results["steps"]["cache"]["agreement"]["argmax_agreement"] <= 1


def test_it_measures_a_data_set_of_ones_own(run_script, demo_data, tmp_path):
    out = tmp_path / "bench.json"
    run_script(
        "bench.py", "--quick", "--only", "loader", "--dataset", "demo", "--data-dir", demo_data, "--json", out
    )  # fmt: skip
    results = json.loads(out.read_text())
    assert results["settings"]["pictures"] == "demo, 8 images" and "steps" not in results


def test_nonsense_is_one_line(run_script):
    assert_one_line_error(run_script("bench.py", "--rounds", "0", check=False), "--rounds")


def test_ratios_are_paired():
    """A disturbance that hits a whole round leaves its ratio alone."""
    timings = Timings({"a": [1.0, 10.0, 1.0], "b": [2.0, 20.0, 2.0]})
    assert timings.ratio("b", "a") == 2 and timings.median("a") == 1


def test_interleaving_draws_the_order_and_leaves_the_warmup_out():
    seen = []
    variants = {name: (lambda n, name=name: seen.append((n, name))) for name in "abcd"}
    timings = interleave(variants, rounds=40, warmup=2, device=CPU)
    assert [len(values) for values in timings.seconds.values()] == [40] * 4
    assert sorted(seen) == sorted((n, name) for n in range(42) for name in "abcd")
    neighbours = {(one, other) for (_, one), (_, other) in itertools.pairwise(seen)}
    assert neighbours >= set(itertools.permutations("abcd", 2))


def test_calls_ahead_are_not_timed():
    """The first of three calls in a row is slow, as in the wake of another variant."""
    state = {"last": ""}

    def run(name):
        slow = state["last"] != name
        state["last"] = name
        time.sleep(0.02 if slow else 0.0)

    variants = {name: (lambda _, name=name: run(name)) for name in "ab"}
    assert interleave(variants, rounds=4, warmup=0, device=CPU).median("a") >= 0.02
    assert interleave(variants, rounds=4, warmup=0, device=CPU, ahead=2).median("a") < 0.01


def test_parts_add_up(monkeypatch):
    clock = [0.0]

    def nap(seconds):
        clock[0] += seconds

    timer = PartTimer(CPU)
    monkeypatch.setattr("basics.timing.time.perf_counter", lambda: clock[0])
    for part, seconds in (("nap", 0.03), ("rest", 0.01), ("nap", 0.03)):
        timer(part, nap, seconds)
    assert timer.shares()["nap"] == pytest.approx(6 / 7)


def test_the_naive_loss_is_the_usual_one(monkeypatch):
    """In float64 from the networks' own outputs: CE + T^2 KL at full size + the mean of three cosines."""
    torch.manual_seed(0)
    student = StudentNet(5, "compact").eval()
    naive = NaiveStep(student, temperature=3.0)
    batch = tiny_batch(size=64, classes=5)
    measured = naive.losses(batch).item()
    with torch.no_grad():
        logits, taps = student.forward_taps(batch["image"])
        told = naive.teacher(batch["image"])["out"].double()
        logits = F.interpolate(logits, size=(64, 64), mode="bilinear").double()
        log_s, log_t = (logits / 3).log_softmax(1), (told / 3).log_softmax(1)
        expected = F.cross_entropy(logits, batch["mask"], ignore_index=255)
        expected += 9 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
        for tap in ("low", "mid", "high"):
            teacher_map = naive.teacher_taps[tap].double()
            mine = F.interpolate(taps[tap], size=teacher_map.shape[-2:], mode="bilinear")
            mine = naive.adapters[tap](mine).double()
            cosine = (mine * teacher_map).sum(1) / (mine.norm(dim=1) * teacher_map.norm(dim=1))
            expected += (1 - cosine).mean() / 3
    assert measured == pytest.approx(expected.item(), rel=1e-4)
    assert naive.teacher_taps["high"].shape[1:] == (2048, 8, 8)


def test_the_naive_pipeline_gives_what_ours_gives(pictures, monkeypatch):
    """Without chance (scale 1, whole image, no flip, no jitter) both make the same tensors."""
    naive = NaiveDataset(pictures, crop_size=80)
    naive.jitter = lambda image: image
    monkeypatch.setattr("benchmarks.naive.random.uniform", lambda low, high: 1.0)
    monkeypatch.setattr("benchmarks.naive.random.randint", lambda low, high: 5)
    monkeypatch.setattr("benchmarks.naive.random.random", lambda: 0.9)
    image, mask = naive[1]
    whole = copy.copy(pictures)
    whole.transform = None
    sample = whole[1]
    assert torch.equal(mask, sample["mask"][5:85, 5:85])
    ours = normalize(sample["image"][None])[0][:, 5:85, 5:85]
    assert (image - ours).abs().mean() < 0.05  # PIL's and torchvision's JPEG decoders may round differently


def test_made_up_pictures_cost_what_photographs_cost(tmp_path):
    """VOC's pictures take about 110 KB each at 500 x 375; a decoder's time follows the bytes."""
    make_pictures(tmp_path / "made", 2)
    data = build_dataset("folder", tmp_path / "made", "train", TrainTransform(256))
    sizes = [data.image_path(n).stat().st_size for n in range(2)]
    assert all(40_000 < size < 250_000 for size in sizes)
    assert np.asarray(Image.open(data.image_path(0))).shape == (375, 500, 3)
    assert data.num_classes == 21 and len(default_collate([data[0, 0], data[1, 1]])["id"]) == 2


def test_first_images_leaves_the_data_set_alone(pictures):
    part = first_images(pictures, 2)
    assert len(part) == 2 and len(pictures) == 3 and part.ids == pictures.ids[:2]
    assert torch.equal(part[1]["image"], pictures[1]["image"])


def test_only_the_pictures_that_are_measured_are_decoded(pictures, tmp_path, capsys):
    bench_loading(first_images(pictures, 2), tmp_path, crop_size=32, rounds=1)
    assert "decoded cache: 2 images" in capsys.readouterr().out


# -- whole loops -------------------------------------------------------------------------------------


def test_a_clock_leaves_the_warm_up_out(monkeypatch):
    times = iter([10.0, 16.0])
    monkeypatch.setattr("benchmarks.loops.time.perf_counter", lambda: next(times))
    clock = StepClock(3, CPU)
    for _ in range(5):
        clock.tick()
    assert clock.seconds == 2  # three steps in six seconds


def test_the_other_loops_learn_what_they_should():
    """In float64: CE + T^2 KL at full size; the teacher gets no gradient and belongs to no parameter list."""
    torch.manual_seed(0)
    student, teacher = StudentNet(5, "compact").eval(), StudentNet(5, "compact").eval()
    model = WithLoss(student, teacher)
    batch = tiny_batch(size=64, classes=5)
    out = model(batch["image"], batch["mask"])
    out["loss"].backward()
    log_s, log_t = ((net(batch["image"]).double() / 4).log_softmax(1) for net in (student, teacher))
    expected = F.cross_entropy(student(batch["image"]).double(), batch["mask"], ignore_index=255)
    expected += 16 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert {id(p) for p in model.parameters()} == {id(p) for p in student.parameters()}
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.slow
def test_the_loops_run_side_by_side(run_script, tmp_path):
    out = tmp_path / "bench.json"
    done = run_script("bench.py", "--quick", "--only", "loops", "--device", "cpu", "--json", out)
    loops = json.loads(out.read_text())["loops"]
    others = 1 if missing_packages() else 2
    assert len(loops["images_per_s"]) == 3 + 2 * others and all(rate > 0 for rate in loops["images_per_s"].values())
    assert loops["waiting"].keys() == {"plain", "distillation", "distillation, cached teacher"}
    assert all(0 <= share < 1 for share in loops["waiting"].values())
    assert bool(loops["left_out"]) == bool(missing_packages()) and "waits for pictures" in done.stdout
