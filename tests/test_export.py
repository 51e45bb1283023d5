"""Exported files: that they do what the network does, at any size, and say what they are."""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import export
import predict
from basics.batch import MEAN, STD
from basics.checkpoint import save_atomic
from basics.errors import UserError, run_cli
from deploy import export_checks
from deploy.arguments import make_deployed
from deploy.exporting import Deployed, export_program
from deploy.formats import FORMATS, load_exported
from deploy.int8_files import LEAST_TELLING
from deploy.model_card import ModelCard
from deploy.segmenter import load_segmenter
from deploy.speed import file_table, size_alone
from tests.conftest import assert_one_line_error
from tests.small import CLASS_NAMES, PALETTE, SmallStudent, balanced, in_zoo, lively, small_checkpoint
from zoo import load_checkpoint_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run_export(checkpoint, output, *more):
    arguments = [checkpoint, "--output", output, *(() if "--rounds" in more else ("--rounds", "0")), *more]
    export.main(export.get_args_parser().parse_args(list(map(str, arguments))))
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with best.pth, a `SmallStudent` with class names beyond ASCII."""
    path = tmp_path_factory.mktemp("export")
    save_atomic(small_checkpoint(), path / "best.pth")
    with in_zoo():
        yield path


@pytest.fixture(scope="module")
def plain(folder):
    """Normalised images in, logits out."""
    return run_export(folder / "best.pth", folder / "plain.onnx")


@pytest.fixture(scope="module")
def demo_student(demo_data, folder):
    """A student of the demo classes, as a file."""
    from dataset import build_dataset
    from zoo import model_file_dict

    data = build_dataset("demo", demo_data, "val")
    model = balanced(lively(SmallStudent(data.num_classes)), by_hand(raw_pictures(1, 64, 96)))
    save_atomic(model_file_dict("small", model, data), folder / "demo.pth")
    return folder / "demo.pth"


@pytest.fixture(scope="module")
def raw(demo_student):
    """Raw RGB in, classes out."""
    return run_export(demo_student, demo_student.with_name("raw.onnx"), "--uint8", "--argmax")


@pytest.fixture(scope="module")
def pt2(folder):
    """Raw RGB in, logits out, for PyTorch."""
    return run_export(folder / "best.pth", folder / "plain.pt2", "--uint8")


def raw_pictures(images, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, height, width), generator=generator, dtype=torch.uint8)


def by_hand(pictures):
    """ImageNet's normalisation in float64 NumPy."""
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return torch.from_numpy(((pictures.numpy() / 255.0 - mean) / std).astype(np.float32))


SIZES = [(1, 32, 32), (2, 33, 47), (2, 128, 64), (1, 65, 201)]


@pytest.mark.parametrize("size", SIZES)
def test_onnx_gives_the_networks_logits_at_any_size(plain, network, size):
    session = onnxruntime.InferenceSession(str(plain), providers=["CPUExecutionProvider"])
    images = by_hand(raw_pictures(*size))
    (got,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, network(images).numpy(), rtol=0, atol=1e-4)


def test_the_file_describes_itself(plain, raw):
    """Read with ONNX Runtime alone, as a stranger would."""
    session = onnxruntime.InferenceSession(str(plain), providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", ["batch", 3, "height", "width"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == CLASS_NAMES
    assert json.loads(metadata["palette"]) == PALETTE
    assert json.loads(metadata["mean"]) == list(MEAN)
    assert json.loads(metadata["std"]) == list(STD)
    assert (metadata["model"], metadata["input"], metadata["output"]) == ("small", "normalized", "logits")
    session = onnxruntime.InferenceSession(str(raw), providers=["CPUExecutionProvider"])
    (images,), (mask,) = session.get_inputs(), session.get_outputs()
    assert (images.type, mask.type, mask.shape) == ("tensor(uint8)", "tensor(uint8)", ["batch", "height", "width"])


def test_nothing_of_this_machine_is_in_the_file(plain):
    content = plain.read_bytes()
    assert str(export.__file__).rpartition("/")[0].encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize("size", SIZES)
def test_raw_pictures_in_and_classes_out(raw, demo_student, size):
    from zoo import load_checkpoint_model

    session = onnxruntime.InferenceSession(str(raw), providers=["CPUExecutionProvider"])
    pictures = raw_pictures(*size)
    (got,) = session.run(None, {"images": pictures.numpy()})
    model, _ = load_checkpoint_model(demo_student, "cpu")
    with torch.no_grad():
        expected = model(by_hand(pictures)).argmax(1).numpy()
    assert got.shape == expected.shape
    assert len(np.unique(expected)) > 1
    assert (got == expected).mean() > 0.999


@pytest.mark.parametrize("size", SIZES)
def test_pt2_round_trip(pt2, network, size):
    """By plain `torch.export.load`, and by this project's reader, which normalises back and forth."""
    pictures = raw_pictures(*size)
    with torch.no_grad():
        expected = network(by_hand(pictures))
        program = torch.export.load(pt2).module(check_guards=False)
        torch.testing.assert_close(program(pictures), expected, rtol=0, atol=1e-4)
        model = load_exported(pt2)
        torch.testing.assert_close(model(by_hand(pictures)), expected, rtol=0, atol=1e-4)
    assert (model.card.class_names, model.card.palette, model.card.input) == (CLASS_NAMES, PALETTE, "uint8")


def test_a_format_is_a_row(folder, network, tmp_path, monkeypatch):
    """Export, its check, and what reads files know a format from its row alone."""
    row = dataclasses.replace(FORMATS["pt2"], suffix=".new", engine="something new")
    monkeypatch.setitem(FORMATS, "new", row)
    path = run_export(folder / "best.pth", tmp_path / "student.new", "--uint8", "--rounds", "1")
    pictures = raw_pictures(1, 40, 50)
    with torch.no_grad():
        torch.testing.assert_close(load_segmenter(path).logits(pictures), network(by_hand(pictures)), rtol=0, atol=1e-4)


def test_checkpoint_and_onnx_score_the_same(raw, demo_student, demo_data, tmp_path):
    import evaluate

    results = tmp_path / "scores.json"
    options = ["--agreement", "--workers", "0", "--device", "cpu", "--dataset", "demo", "--data-dir", demo_data]
    arguments = [demo_student, raw, *options, "--json", results]
    evaluate.main(evaluate.get_args_parser().parse_args(list(map(str, arguments))))
    first, second = json.loads(results.read_text())
    assert second["agreement"] > 0.999
    assert second["miou"] == pytest.approx(first["miou"], abs=1e-3)
    assert second["parameters"] == first["parameters"]
    assert second["iou"].keys() == first["iou"].keys()


def test_half_precision_is_no_matter_of_a_file_that_computes_itself(raw, run_script, demo_data):
    """On a machine with a GPU that its runtime does not use."""
    data = ["--dataset", "demo", "--data-dir", demo_data, "--workers", 0, "--device", "cpu"]
    assert "computed in" not in run_script("evaluate.py", raw, *data, "--amp", "fp16").stdout


def test_an_int8_file_that_nobody_named_and_nothing_runs_is_left_out(folder, tmp_path, run_script):
    (tmp_path / "a_int8.onnx").write_bytes(b"damaged")
    said = run_script("export.py", folder / "best.pth", "--output", tmp_path / "a.pt2", "--rounds", 1).stdout
    assert f"left out: {tmp_path / 'a_int8.onnx'}" in said and "torch.export fp32" in said.rpartition("left out")[2]


# -- refusals -------------------------------------------------------------------------------------


def test_a_file_that_disagrees_is_refused(folder, tmp_path, monkeypatch):
    """The graph of another network is written; the check finds out, and nothing is left behind."""

    def exchanged(deployed, size):
        return export_program(Deployed(lively(SmallStudent(3), seed=1), deployed.card), size)

    monkeypatch.setattr("deploy.export_run.export_program", exchanged)
    with pytest.raises(UserError, match="differ, file not written"):
        run_export(folder / "best.pth", tmp_path / "out" / "a.onnx")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("shift", "refused"), [(0.005, True), (1e-5, False)])
def test_logits_that_differ_alike_in_all_classes_are_noticed(folder, tmp_path, monkeypatch, shift, refused):
    """Every mask is the same; a thousandth is what formats are allowed (docs/formats.md)."""

    def exchanged(deployed, size):
        network = copy.deepcopy(deployed.model)
        network.classifier.bias.data += shift
        return export_program(Deployed(network, deployed.card), size)

    monkeypatch.setattr("deploy.export_run.export_program", exchanged)
    if refused:
        with pytest.raises(UserError, match="differ, file not written"):
            run_export(folder / "best.pth", tmp_path / "a.pt2")
    else:
        run_export(folder / "best.pth", tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").exists() != refused


def test_an_older_file_survives_a_refusal(folder, tmp_path, monkeypatch):
    (tmp_path / "a.pt2").write_bytes(b"older")

    def exchanged(deployed, size):
        return export_program(Deployed(lively(SmallStudent(3), seed=1), deployed.card), size)

    monkeypatch.setattr("deploy.export_run.export_program", exchanged)
    with pytest.raises(UserError, match="differ, file not written"):
        run_export(folder / "best.pth", tmp_path / "a.pt2")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.pt2", b"older")]


def test_nan_is_no_agreement():
    from deploy.export_checks import Difference, require_agreement

    good = Difference(1, 32, 32, 1e-5, 1.0)
    require_agreement([good], 0.999, 1e-3)
    for bad in (Difference(1, 32, 32, float("nan"), 1.0), Difference(1, 32, 32, 0.01, 1.0)):
        with pytest.raises(UserError):
            require_agreement([good, bad], 0.999, 1e-3)
    with pytest.raises(UserError):
        require_agreement([Difference(1, 32, 32, 0.0, 0.99)], 0.999, 1e-3)


@pytest.mark.parametrize("student", ["student.pth", "compact.pth"])
@pytest.mark.parametrize("fault", ["says background", "takes blue for red"])
def test_the_students_background_hides_no_fault(student, fault, monkeypatch):
    """The students that come along say background of all made-up pictures; a telling one decides what passes."""
    network, checkpoint = load_checkpoint_model(predict.DEFAULT_STUDENT.with_name(student))
    args = export.get_args_parser().parse_args(["x.pth", "--uint8", "--argmax"])
    deployed = make_deployed(network, checkpoint, args)

    def run(pictures):
        mask = deployed(pictures.flip(1))
        return torch.zeros_like(mask) if fault == "says background" else mask

    faulty = SimpleNamespace(fitted_size=None, run=run)
    monkeypatch.setattr(export_checks, "load_exported", lambda path: faulty)
    *smooth, telling = export_checks.compare(deployed, Path("a.onnx"), network)
    assert min(difference.agreement for difference in smooth) > 0.99, "the reason for the test"
    assert telling.is_telling and telling.agreement < LEAST_TELLING
    with pytest.raises(UserError, match="differ, file not written"):
        export_checks.require_agreement([*smooth, telling], 0.9, least_telling=LEAST_TELLING)


def test_mistakes(folder, plain, pt2, tmp_path):
    cases = [
        (folder / "best.pth", tmp_path / "a.ncnn", r"must end in one of \.onnx, \.pt2, "),
        (folder / "best.pth", tmp_path / "a.tflite", r"LiteRT takes pictures of one size: say which with --size"),
        (plain, tmp_path / "a.onnx", "exported already"),
        (tmp_path / "none.pth", tmp_path / "a.onnx", "none.pth"),
    ]
    for checkpoint, output, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            run_export(checkpoint, output)
        assert "\n" not in str(caught.value)
    save_atomic(small_checkpoint() | {"qat": {"a": torch.zeros(1)}}, tmp_path / "qat.pth")
    with pytest.raises(UserError, match=r"quantize\.py makes its file"):
        run_export(tmp_path / "qat.pth", tmp_path / "a.onnx")
    for original in (plain, pt2):
        damaged = tmp_path / f"damaged{original.suffix}"
        damaged.write_bytes(original.read_bytes()[:-2000])
        with pytest.raises(UserError, match=r"damaged\.(onnx|pt2)") as caught:
            load_exported(damaged)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.onnx").exists()


def test_a_stranger_onnx_file_says_what_it_lacks(plain, tmp_path):
    import onnx

    model = onnx.load(plain)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "stranger.onnx")
    with pytest.raises(UserError, match="metadata has no 'model'"):
        load_exported(tmp_path / "stranger.onnx")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_names", "5"), ("class_names", "[1, 2, 3]"), ("class_names", "null"), ("class_names", "[]"),
        ("palette", "[]"), ("palette", "[[1, 2], [3, 4], [5, 6]]"), ("palette", '"x"'), ("mean", "[0]"),
        ("mean", '["a", 0, 0]'), ("mean", "[NaN, 0, 0]"), ("std", "[0, 1, 1]"), ("input_size", "-5"),
        ("input_size", '"x"'), ("parameters", "null"), ("class_names", "[" * 100_000),
    ],
)  # fmt: skip
def test_a_damaged_card_is_one_line(name, value):
    card = ModelCard("small", CLASS_NAMES, PALETTE, list(MEAN), list(STD), 7, input_size=64, format=2)
    told = card.to_metadata()
    assert ModelCard.from_metadata(told, "a.onnx") == card
    with pytest.raises(UserError, match=r"a\.onnx: its metadata .*damaged"):
        ModelCard.from_metadata(told | {name: value}, "a.onnx")


def called_int8(file, copy, **changes):
    """A copy of an .onnx file whose card says INT8, and what else ``changes`` say."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(file)
    for entry in model.metadata_props:
        entry.value = ({"precision": "int8"} | changes).get(entry.key, entry.value)
    onnx.save(model, copy)
    return copy


def test_the_table_of_speeds(folder, plain, tmp_path):
    deployed = Deployed(SmallStudent(3), load_exported(plain).card)
    files = {"exported": plain, "INT8": called_int8(plain, tmp_path / "int8.onnx")}
    lines = file_table(deployed, folder / "best.pth", files, rounds=2).splitlines()
    titles = ["PyTorch eager fp32", "ONNX Runtime fp32", "ONNX Runtime INT8"]
    assert [line[: len(title)] for line, title in zip(lines[1:4], titles, strict=True)] == titles
    assert lines[1].count("1.00 x") == 2  # eager PyTorch is what speed-ups refer to
    assert f"{plain.stat().st_size / 1e6:.2f}" in lines[2]


def test_int8_that_is_no_faster_is_for_size_alone():
    fast = {"PyTorch eager fp32": 1.0, "ONNX Runtime fp32": 10.0, "ONNX Runtime INT8": 8.0}
    slow = fast | {"ONNX Runtime INT8": 11.0, "torch.export INT8": 99.0}  # of which there is no fp32 to compare with
    assert size_alone([fast]) == []
    (line,) = size_alone([slow])
    assert line == "ONNX Runtime INT8 is for size alone on this machine: it takes 1.10 x the time of fp32"
    (line,) = size_alone([slow, fast])
    assert "at some of these sizes: it takes 1.10 and 0.80 x" in line


def test_the_table_of_speeds_compares_like_with_like(folder, plain, raw):
    """Raw pictures in and classes out, in every row; what takes or gives anything else is left out."""
    card = load_exported(raw).card
    inputs = []

    class Watched(SmallStudent):
        def forward(self, images):
            inputs.append(images.dtype)
            return super().forward(images)

    deployed = Deployed(Watched(len(card.class_names)), card)
    deployed.register_forward_hook(lambda module, args, output: inputs.append((args[0].dtype, output.dtype)))
    lines = file_table(deployed, folder / "best.pth", {"exported": raw, "INT8": plain}, rounds=2).splitlines()
    assert set(inputs) == {torch.float32, (torch.uint8, torch.uint8)}
    assert [line.split("  ")[0] for line in lines[1:3]] == ["PyTorch eager fp32", "ONNX Runtime fp32"]
    assert lines[-1] == f"left out: {plain} is not the INT8 form of {folder / 'best.pth'}: make it by quantize.py"


@pytest.mark.parametrize(
    "changes", [{"parameters": "7"}, {"model": "other"}, {"input_size": "64"}, {"precision": "fp32"}]
)
def test_int8_of_another_network_has_no_row(folder, plain, tmp_path, changes):
    """A file of an earlier student lies beside the new one under the usual name."""
    deployed = Deployed(SmallStudent(3), load_exported(plain).card)
    files = {"exported": plain, "INT8": called_int8(plain, tmp_path / "int8.onnx", **changes)}
    table = file_table(deployed, folder / "best.pth", files, rounds=1)
    assert " INT8 " not in table.partition("left out")[0] and "int8.onnx is not the INT8 form of" in table


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export.py", "none.pth", "--output", str(tmp_path / "a.onnx")])
    with pytest.raises(SystemExit) as ended:
        run_cli(export.main, export.get_args_parser)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "none.pth" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compact", "standard", "fastlitessnet", "segformer_b0"])
def test_students_of_the_zoo(name, demo_checkpoint, tmp_path):
    """The command's own check compares five sizes."""
    if name.startswith("segformer"):
        pytest.importorskip("segmentation_models_pytorch")
    for suffix in (".onnx", ".pt2"):
        assert run_export(demo_checkpoint(name), tmp_path / f"a{suffix}").is_file()


def test_an_int8_file_of_no_known_kind_is_refused_before_the_work(run_script, demo_student, tmp_path):
    other = tmp_path / "int8.bin"
    other.write_bytes(b"x")
    output = tmp_path / "student.onnx"
    done = run_script("export.py", demo_student, "--output", output, "--int8", other, check=False)
    assert_one_line_error(done, "int8.bin", "wanted is a file of quantize.py, .onnx, .pt2, .xml")
    assert not output.exists()


def test_a_file_of_one_size_has_no_other_working_size(folder, tmp_path):
    file = tmp_path / "small.onnx"
    arguments = [str(folder / "best.pth"), "--output", str(file), "--size", "64x48", "--rounds", "0"]
    export.main(export.get_args_parser().parse_args(arguments))
    assert load_segmenter(file).name == "small at 64x48"
    with pytest.raises(UserError, match="pictures of 64x48"):
        load_segmenter(file).at(96)
