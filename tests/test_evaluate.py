"""The evaluation protocol: native size, one matrix, independent of the batch size; the script around it."""

import copy
import csv
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

import zoo
from basics.batch import normalize
from basics.checkpoint import save_atomic
from basics.device import exact_dtype
from basics.errors import UserError
from basics.files import expanded
from dataset import build_dataset
from deploy.segmenter import load_segmenter
from networks.working_size import at_working_size
from scoring import protocol
from scoring.front import Point, draw_front, label_sizes, on_front, place_legend, short_names, size_of
from scoring.in_turn import InTurn
from scoring.metrics import ConfusionMatrix
from scoring.protocol import evaluate_model, same_size_batches
from scoring.tables import lab_score, summary_row, write_results
from tests.conftest import assert_one_line_error
from tests.tiny import TinyModel
from zoo import create_model, model_file_dict

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def val_set(demo_data):
    return build_dataset("demo", demo_data, "val")


@pytest.fixture(scope="module")
def model(val_set):
    torch.manual_seed(0)
    return TinyModel(num_classes=val_set.num_classes)


@pytest.fixture(scope="module")
def checkpoint(val_set, tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "student.pth"
    torch.manual_seed(0)
    student = create_model("compact", val_set.num_classes, "none")
    save_atomic(model_file_dict("compact", student, val_set), path)
    return path


def test_scores_agree_with_torchmetrics(model, val_set):
    evaluation = evaluate_model(model, val_set, CPU, progress=False)
    iou = MulticlassJaccardIndex(val_set.num_classes, average=None, ignore_index=255)
    accuracy = MulticlassAccuracy(val_set.num_classes, average="micro", ignore_index=255)
    losses, pixels = 0.0, 0
    model.eval()
    with torch.no_grad():
        for sample in val_set:
            logits = model(normalize(sample["image"][None]))
            mask = sample["mask"][None].long()
            assert logits.shape[-2:] == mask.shape[-2:]
            iou.update(logits.argmax(1), mask)
            accuracy.update(logits.argmax(1), mask)
            losses += F.cross_entropy(logits.double(), mask, ignore_index=255, reduction="sum").item()
            pixels += (mask != 255).sum().item()
    present = evaluation.scores.iou.isnan().logical_not()
    torch.testing.assert_close(evaluation.scores.iou[present].float(), iou.compute()[present])
    assert evaluation.scores.pixel_accuracy == pytest.approx(accuracy.compute().item(), rel=1e-6)
    assert evaluation.loss == pytest.approx(losses / pixels, rel=1e-5)
    assert evaluation.scores.pixels == pixels
    assert "native resolution" in evaluation.protocol and "demo/val" in evaluation.protocol


class NoFloat64(TorchDispatchMode):
    """What MPS would refuse: an operation with a float64 result."""

    on_device = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.on_device and isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{func}: float64")
        return result


def test_scores_without_float64_on_the_device(model, val_set, monkeypatch):
    """As on MPS, but for the scores, which are taken on the CPU."""
    expected = evaluate_model(model, val_set, CPU, progress=False)
    monkeypatch.setattr(protocol, "exact_dtype", lambda device: exact_dtype(torch.device("mps")))
    scores = ConfusionMatrix.scores

    mode = NoFloat64()

    def on_the_cpu(self):
        mode.on_device = False
        return scores(self)

    monkeypatch.setattr(ConfusionMatrix, "scores", on_the_cpu)
    with mode:
        with pytest.raises(TypeError, match="float64"):
            torch.zeros((), dtype=torch.float64)
        found = evaluate_model(model, val_set, CPU, progress=False)
    assert found.scores.miou == expected.scores.miou
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_batches_of_equal_size_score_as_single_images(model, val_set):
    one = evaluate_model(model, val_set, CPU, progress=False)
    many = evaluate_model(model, val_set, CPU, batch_size=4, workers=1, progress=False)
    assert torch.equal(one.scores.iou.nan_to_num(-1), many.scores.iou.nan_to_num(-1))
    assert one.scores.pixels == many.scores.pixels


def test_only_equal_sizes_share_a_batch(val_set):
    batches = same_size_batches(val_set, 4)
    assert sorted(index for batch in batches for index in batch) == list(range(len(val_set)))
    for batch in batches:
        assert len({tuple(val_set[index]["image"].shape) for index in batch}) == 1
    assert len(same_size_batches(val_set, 1)) == len(val_set)


def test_evaluation_leaves_mode_and_random_numbers_alone(model, val_set):
    model.train()
    state = torch.get_rng_state()
    evaluate_model(model, val_set, CPU, progress=False)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_lab_score():
    assert lab_score(0.6, 1_000_000) == pytest.approx(1.2)


def test_script_prints_tables_and_writes_files(run_script, checkpoint, demo_data, tmp_path):
    done = run_script(
        "evaluate.py", checkpoint, "--dataset", "demo", "--data-dir", demo_data, "--device", "cpu",
        "--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv",
    )  # fmt: skip
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert 0 <= row["miou"] <= 1 and "native resolution" in row["protocol"]
    assert f"{100 * row['miou']:.2f}" in done.stdout
    with (tmp_path / "out.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert float(line["miou"]) == row["miou"]
    names = build_dataset("demo", demo_data, "val").class_names
    assert all(name in done.stdout and f"iou/{name}" in line for name in names)


def test_patterns_are_expanded_where_the_shell_does_not(tmp_path, monkeypatch):
    """Those of Windows; a file whose name has brackets is itself, and what matches nothing stays, to be named."""
    monkeypatch.chdir(tmp_path)
    for name in ("b/best.pth", "a/best.pth", "c[1].pth"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    given = [Path("*/best.pth"), Path("c[1].pth"), Path("*.onnx"), tmp_path / "a" / "*.pth"]
    assert [path.as_posix() for path in expanded(given)] == [
        "a/best.pth", "b/best.pth", "c[1].pth", "*.onnx", (tmp_path / "a" / "best.pth").as_posix(),
    ]  # fmt: skip


def test_checkpoint_of_other_classes_is_one_line(run_script, tmp_path, demo_data, val_set):
    torch.manual_seed(0)
    student = create_model("compact", 2, "none")
    content = model_file_dict("compact", student, val_set)
    content["class_names"], content["palette"] = ["cat", "dog"], [[0, 0, 0], [9, 9, 9]]
    save_atomic(content, tmp_path / "other.pth")
    done = run_script("evaluate.py", tmp_path / "other.pth", "--dataset", "demo", "--data-dir", demo_data, check=False)
    assert_one_line_error(done, "2 classes", "other.pth")


def test_what_was_scored_before_a_fault_is_not_lost(run_script, checkpoint, demo_data, tmp_path):
    options = ["--dataset", "demo", "--data-dir", demo_data, "--device", "cpu", "--workers", "0"]
    results = tmp_path / "s.json"
    done = run_script("evaluate.py", checkpoint, "nope.pth", *options, "--json", results, check=False)
    assert_one_line_error(done, "nope.pth: no such file")
    assert [row["checkpoint"] for row in json.loads(results.read_text())] == [str(checkpoint)]
    done = run_script("evaluate.py", checkpoint, *options, "--json", tmp_path, check=False)
    assert_one_line_error(done, str(tmp_path), "a folder")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_broken_checkpoint_is_one_line(run_script, tmp_path, demo_data, content):
    (tmp_path / "broken.pth").write_bytes(content)
    done = run_script("evaluate.py", tmp_path / "broken.pth", "--dataset", "demo", "--data-dir", demo_data, check=False)
    assert_one_line_error(done, "broken.pth")


# -- scores that are no numbers ----------------------------------------------------------------------


class Broken(torch.nn.Module):
    """Logits of 0, with ``value`` in one pixel of images numbers 1 and 4."""

    def __init__(self, classes, value):
        super().__init__()
        self.classes, self.value, self.calls = classes, value, 0

    def forward(self, images):
        logits = torch.zeros(len(images), self.classes, *images.shape[-2:])
        if self.calls in (1, 4):
            logits[:, 2, 5, 7] = self.value
        self.calls += 1
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_have_no_score(val_set, value):
    second = val_set.ids[1]
    with pytest.raises(UserError, match=rf"demo/val: no score.*not finite for 2 of 6 images, first for {second}: look"):
        evaluate_model(Broken(val_set.num_classes, value), val_set, CPU, progress=False)
    with pytest.raises(UserError, match="or leave out --amp bf16"):
        evaluate_model(Broken(val_set.num_classes, value), val_set, CPU, amp="bf16", progress=False)
    assert evaluate_model(Broken(val_set.num_classes, 3.0), val_set, CPU, progress=False).scores.pixels > 0


@pytest.fixture
def void_data(demo_data, tmp_path):
    """The demo data, all of whose validation masks are void."""
    shutil.copytree(demo_data, tmp_path / "data")
    val_set = build_dataset("demo", tmp_path / "data", "val")
    for index in range(len(val_set)):
        path = val_set.mask_path(index)
        with Image.open(path) as mask:
            void = Image.new(mask.mode, mask.size, 255)
            if mask.mode == "P":
                void.putpalette(mask.getpalette())
        void.save(path)
    return tmp_path / "data"


def test_a_split_without_a_labelled_pixel_has_no_score(run_script, checkpoint, void_data, tmp_path):
    with pytest.raises(UserError, match=r"demo/val: no score: not one labelled pixel in its 6 masks"):
        evaluate_model(TinyModel(7), build_dataset("demo", void_data, "val"), CPU, progress=False)
    options = ["--dataset", "demo", "--data-dir", void_data, "--workers", 0, "--json", tmp_path / "s.json"]
    done = run_script("evaluate.py", checkpoint, *options, check=False)
    assert_one_line_error(done, "demo/val", "not one labelled pixel")
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("itself", [False, True])
def test_what_pytorch_does_not_compute_has_no_half_precision(val_set, model, itself):
    """Autocast does not reach another runtime, and the protocol says nothing of it."""
    seen = []

    class Watched(torch.nn.Module):
        computes_itself = itself

        def forward(self, images):
            seen.append(torch.is_autocast_enabled("cpu"))
            return model(images)

    evaluation = evaluate_model(Watched(), val_set, CPU, amp="bf16", progress=False)
    assert set(seen) == {not itself} and ("computed in bf16" in evaluation.protocol) is not itself


def test_numbers_that_are_none_are_null_in_json_and_empty_in_csv(val_set, tmp_path):
    """Of a network that gives masks there is no loss; and none is read as a number."""

    class Masks(torch.nn.Module):
        decides_only = True

        def forward(self, images):
            return F.one_hot(torch.zeros(len(images), *images.shape[-2:], dtype=torch.long), 7).movedim(-1, 1).float()

    row = summary_row("m", "m", 1, evaluate_model(Masks(), val_set, CPU, progress=False), val_set.class_names)
    write_results([row], tmp_path / "r.json", tmp_path / "r.csv")
    (line,) = json.loads((tmp_path / "r.json").read_text())
    assert line["loss"] is None and line["miou"] == row["miou"]
    with (tmp_path / "r.csv").open() as file:
        (cells,) = csv.DictReader(file)
    assert cells["loss"] == "" and float(cells["miou"]) == row["miou"]


@pytest.mark.parametrize("script", ["evaluate.py", "test_teacher.py"])
def test_mixed_precision_that_only_costs_time_is_refused(script, run_script, checkpoint, demo_data):
    model = [checkpoint] if script == "evaluate.py" else ["--teacher", "compact", "--teacher-weights", checkpoint]
    options = ["--dataset", "demo", "--data-dir", demo_data, "--workers", 0, "--device", "cpu", "--amp", "fp16"]
    assert_one_line_error(run_script(script, *model, *options, check=False), "--amp fp16 is for GPUs")


class Ticking(torch.nn.Module):
    """Each image costs ``seconds`` of a clock of its own; the first ``warmup`` calls cost a thousand times more."""

    def __init__(self, clock, seconds, warmup=2):
        super().__init__()
        self.clock, self.seconds, self.warmup, self.seen = clock, seconds, warmup, []

    def forward(self, images):
        self.seen.append(images)
        self.clock[0] += self.seconds * (1000 if len(self.seen) <= self.warmup else 1)
        return images


def test_networks_side_by_side_are_timed_in_turn_on_the_same_pictures(val_set, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("basics.timing.time.perf_counter", lambda: clock[0])
    models = [Ticking(clock, 0.02), Ticking(clock, 0.005)]
    rows = [{"checkpoint": name, "ms_per_image": 1.0, "parameters": 1} for name in "ab"]
    in_turn = InTurn(val_set)
    for row, model in zip(rows, models, strict=True):
        in_turn.add(row, model, CPU)
    in_turn.time()
    assert [row["ms_per_image"] for row in rows] == pytest.approx([20, 5])
    shown = [{image.double().mean().item() for image in model.seen} for model in models]
    assert shown[0] == shown[1] and len(shown[0]) == min(20, len(val_set))


def test_a_working_size_is_timed_in_bands(val_set, monkeypatch):
    """As it is scored: a phone's picture at full size would want gigabytes."""
    network, seen = at_working_size(TinyModel(7).eval(), 48), []
    bands_of = network.bands_of
    monkeypatch.setattr(network, "bands_of", lambda images: seen.append(images.shape) or bands_of(images))
    monkeypatch.setattr(network, "forward", None)
    row = {"checkpoint": "a", "ms_per_image": 0.0, "parameters": 1}
    in_turn = InTurn(val_set)
    in_turn.add(row, network, CPU)
    in_turn.time()
    assert row["ms_per_image"] > 0 and len(seen) >= len(val_set)


def test_networks_too_large_to_be_kept_side_by_side_are_not(val_set, capsys):
    large = {"ms_per_image": 1.0, "parameters": 300_000_000}
    in_turn, rows = InTurn(val_set), [large | {"checkpoint": name} for name in "ab"]
    for row in rows:
        in_turn.add(row, torch.nn.Identity(), CPU)
    in_turn.time()
    assert [row["ms_per_image"] for row in rows] == [1, 1]
    assert "too large to be timed in turn" in capsys.readouterr().out
    in_turn, rows = InTurn(val_set), [large | {"checkpoint": "a"} for _ in range(3)]  # one network at three sizes
    for row in rows:
        in_turn.add(row, torch.nn.Identity(), CPU)
    in_turn.time()
    assert all(row["ms_per_image"] != 1 for row in rows)


def test_half_precision_is_a_part_of_the_protocol():
    assert protocol.protocol_text(amp="bf16") == f"{protocol.protocol_text()}, computed in bf16"


def test_the_front_holds_what_nothing_as_fast_beats():
    slow_and_bad, best = Point(9.0, 30.0), Point(8.0, 80.0)
    fastest, equal, better = Point(1.0, 40.0), Point(2.0, 40.0), Point(2.0, 60.0)
    assert on_front([slow_and_bad, best, equal, better, fastest]) == [fastest, better, best]


def test_sizes_in_the_chart_cover_neither_each_other_nor_the_legend():
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    points = [Point(5.0 + number / 100, 50.0, str(100 + number)) for number in range(9)] + [Point(9.0, 90.0, "native")]
    axes.plot([point.ms for point in points], [point.percent for point in points], label="a file")
    axes.legend(loc="upper right")  # where the last point lies
    label_sizes(figure, axes, [(point, "black") for point in points])
    boxes = [text.get_window_extent() for text in axes.texts] + [axes.get_legend().get_window_extent()]
    assert axes.texts[0].get_text() == "100" and 1 < len(axes.texts) < 9
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_the_legend_keeps_away_from_the_points():
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    places = [(1.0, 90.0), (1.2, 80.0), (9.0, 10.0), (5.0, 50.0), (1.0, 10.0), (2.0, 15.0)]  # none is upper right
    points = [Point(*place) for place in places]
    axes.plot([point.ms for point in points], [point.percent for point in points], label="a file of a long name")
    axes.legend(loc="best")
    place_legend(figure, axes, points)
    figure.draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    assert not any(box.contains(*at) for at in axes.transData.transform(places))


def test_a_name_in_the_chart_is_no_formula_and_is_not_left_out(tmp_path, monkeypatch):
    names = ["r/$\\frac$.pth", "r/a$b_{$.pth", "r/_x.pth", "r/\udcff.pth"]
    rows = [
        {"checkpoint": name, "model": "small at 64", "protocol": "", "ms_per_image": 1.0 + number, "miou": 0.1 * number}
        for number, name in enumerate(names)
    ]
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: figures.append(self) or save(self, *args, **more)
    )
    draw_front(rows, tmp_path / "front.png")
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert legend == ["none faster is better", "$\\frac$.pth", "a$b_{$.pth", " _x.pth", "\\udcff.pth"]


def test_sizes_in_the_chart_are_those_of_the_protocol():
    common = "masks at native resolution, single scale"
    for model, said, size in (
        ("small at 64", f"voc/val, 9 images: working size 64, {common}", "64"),
        ("small at 48x64", f"voc/val, 9 images: working size 80, pictures fitted into 48x64, {common}", "48x64"),
        ("teacher", f"voc/val, 9 images: working size 192, {common}", "192"),
        ("teacher", "voc/val, 9 images: native resolution, single scale", "native"),
    ):
        assert size_of({"model": model, "protocol": said}) == size


def test_names_in_the_chart_are_as_short_as_they_can_be():
    assert short_names(["runs/a/best.pth", "runs/a/best.onnx"]) == ["best.pth", "best.onnx"]
    assert short_names(["runs/a/best.pth", "runs/b/best.pth"]) == ["a/best.pth", "b/best.pth"]
    assert short_names(["best.pth"]) == ["best.pth"]


def test_script_scores_at_other_working_sizes(run_script, checkpoint, demo_data, val_set, tmp_path):
    common = ["evaluate.py", str(checkpoint), "--dataset", "demo", "--data-dir", str(demo_data)]
    teacher, chart, results = tmp_path / "teacher.json", tmp_path / "charts" / "front.png", tmp_path / "all.json"
    run_script(*common, "--agreement", "--json", str(teacher))
    sizes = ["--input-size", "0", "64", "48", "--mean-over", "ring", "background"]
    result = run_script(*common, *sizes, "--chart", str(chart), "--beside", str(teacher), "--json", str(results))
    rows = json.loads(results.read_text())
    assert [row["model"] for row in rows] == ["compact", "compact at 64", "compact at 48"]
    assert "working size 48" in rows[2]["protocol"] and "native resolution" in rows[0]["protocol"].split(",")[1]
    [alone] = json.loads(teacher.read_text())
    assert rows[0]["miou"] == alone["miou"] and result.stdout.count(f"{100 * alone['miou']:.2f}") >= 2
    sized = load_segmenter(checkpoint, "cpu").at(48)
    assert rows[2]["miou"] == evaluate_model(sized.model, val_set, CPU, progress=False).scores.miou
    for row in rows:
        assert f"{50 * (row['iou']['ring'] + row['iou']['background']):.2f}" in result.stdout
    with Image.open(chart) as picture:
        assert picture.format == "PNG" and picture.width > 600
    assert not list(chart.parent.glob(".*"))


def test_agreement_is_the_share_of_pixels_decided_alike(run_script, demo_data, val_set, tmp_path, monkeypatch):
    """Of all pixels, void ones, too, with the first file, whichever are between."""
    monkeypatch.setitem(zoo.MODELS, "tiny", zoo.ModelSpec(TinyModel, None, "random"))
    files = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        model = TinyModel(7).eval()
        with torch.no_grad():  # every class somewhere
            model.classifier.weight.mul_(8)
            model.classifier.bias.sub_(model(torch.randn(4, 3, 64, 64)).mean((0, 2, 3)))
        save_atomic(model_file_dict("tiny", model, val_set), file)
    options = ["--dataset", "demo", "--data-dir", demo_data, "--workers", 0, "--device", "cpu", "--agreement"]
    run_script("evaluate.py", files[0], files[1], files[0], *options, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    one, other = (load_segmenter(file, "cpu") for file in files)
    alike = [one.mask(sample["image"]) == other.mask(sample["image"]) for sample in val_set]
    share = sum(int(same.sum()) for same in alike) / sum(same.numel() for same in alike)
    assert rows[1]["agreement"] == pytest.approx(share, abs=1e-12) and 0 < share < 0.9
    assert rows[0]["agreement"] == rows[2]["agreement"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--chart", "front.chart"], "name a picture"),
        (["--json", "classes.txt/scores.json"], "a file lies where its folder should be"),
        (["--input-size", "16"], "at least 32"),
        (["--mean-over", "rings"], "--mean-over rings: no such class; there are background"),
        (["--beside", "missing.json"], "missing.json: No such file"),
        (["--beside", "classes.txt"], "classes.txt: no results of evaluate.py"),
        (["--beside", "empty.json"], "empty.json: no results of evaluate.py"),
        (["--beside", "text.json"], "text.json: no results of evaluate.py"),
    ],
)
def test_what_cannot_stand_beside_or_be_drawn_is_one_line(run_script, checkpoint, demo_data, tmp_path, options, said):
    (tmp_path / "classes.txt").write_text('[{"a": 1}]')
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "text.json").write_text("background")
    options = [str(tmp_path / option) if "." in option else option for option in options]
    result = run_script(
        "evaluate.py", str(checkpoint), "--dataset", "demo", "--data-dir", str(demo_data), *options, check=False
    )
    assert_one_line_error(result, said)


def test_results_on_other_masks_cannot_stand_beside(run_script, checkpoint, demo_data, tmp_path):
    """As many pictures of the same names, and other masks."""
    options = ["--dataset", "demo", "--data-dir", demo_data, "--device", "cpu", "--workers", "0"]
    results = tmp_path / "scores.json"
    run_script("evaluate.py", checkpoint, *options, "--json", results)
    [row] = json.loads(results.read_text())
    assert sum(row["class_pixels"].values()) == row["pixels"]
    row["class_pixels"]["background"] -= 1
    row["class_pixels"]["ring"] += 1
    results.write_text(json.dumps([row]))
    done = run_script("evaluate.py", checkpoint, *options, "--beside", results, check=False)
    assert_one_line_error(done, "--beside", "was scored on other masks")
    assert f"{100 * row['miou']:.2f}" in done.stdout.splitlines()[-1]  # what was scored is not lost


def test_the_protocol_tells_of_pictures_that_are_fitted_into_a_file(model, val_set):
    model = copy.copy(model)
    model.fitted_size = (48, 64)
    told = evaluate_model(at_working_size(model, 80), val_set, CPU, progress=False).protocol
    assert "working size 80, pictures fitted into 48x64, masks at native resolution" in told


def test_of_equally_fast_points_the_better_lies_on_the_front():
    assert on_front([Point(2, 50), Point(2, 60), Point(1, 40)]) == [Point(1, 40), Point(2, 60)]


def test_pictures_to_be_timed_are_spread_over_the_split():
    asked = []

    class Hundred:
        def __len__(self):
            return 100

        def __getitem__(self, index):
            asked.append(index)
            return {"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}

    in_turn = InTurn(Hundred())
    for number in range(20):
        in_turn._picture(number, torch.device("cpu"))
    assert asked == [5 * number for number in range(20)]


def test_milliseconds_are_those_of_one_image_of_a_batch(demo_data, monkeypatch):
    dataset, clock = build_dataset("demo", demo_data, "val"), [0.0]

    class Slow(TinyModel):
        def forward(self, images):
            clock[0] += 0.02 * len(images)
            return super().forward(images)

    monkeypatch.setattr(protocol, "same_size_batches", lambda data, size: [[0], [0, 0], [1, 1]])
    monkeypatch.setattr(protocol, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    model = Slow(dataset.num_classes).eval()
    found = evaluate_model(model, dataset, torch.device("cpu"), batch_size=2)
    assert found.ms_per_image == pytest.approx(20)
