"""INT8: what training for it keeps of the network, that the files do what the simulation does, with integers."""

import contextlib
import copy
import io
import json
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from basics.batch import normalize
from basics.checkpoint import load_file, save_atomic
from basics.errors import UserError
from networks.working_size import resize
from segdata.pictures import read_picture
from tests.conftest import ROOT, assert_one_line_error
from tests.small import DROPOUT, EPS, MOMENTUM, SmallStudent, in_zoo, lively, small_checkpoint

pytest.importorskip("torchao")

from deploy import graphs, quantization, torch_internals
from deploy import int8_files as writing
from deploy.arguments import make_deployed
from deploy.calibration import quantize_calibrated
from deploy.quantized import FakeQuantModel, capture
from predict import DEFAULT_STUDENT
from quantize import get_args_parser
from zoo import load_checkpoint_model


@pytest.fixture
def student():
    return lively(SmallStudent(3))


@pytest.fixture(scope="module")
def prepared():
    return FakeQuantModel(lively(SmallStudent(3)))


@pytest.fixture
def model(prepared):
    """A fake-quantized student of one's own (torchao takes seconds to prepare one)."""
    return copy.deepcopy(prepared)


def pictures(images=2, height=64, width=96, seed=0):
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(seed))


def switch_off(model):
    """Leave the graph as training for INT8 has it, but without any rounding."""
    from torchao.quantization.pt2e import disable_fake_quant

    model.graph.apply(disable_fake_quant)


# -- what the graph keeps of the network ----------------------------------------------------------


def test_eps_momentum_and_dropout_rate_survive_mode_switches(model):
    for mode in (True, False, True, False):
        model.train(mode)
        nodes = list(quantization.batch_norms(model.graph))
        assert len(nodes) == 5
        assert {node.args[quantization.BN_EPS] for node in nodes} == {EPS}
        assert {node.args[quantization.BN_MOMENTUM] for node in nodes} == {MOMENTUM}
        assert {node.args[quantization.BN_TRAINING] for node in nodes} == {mode}
        (dropout,) = (node for node in model.graph.graph.nodes if node.target in quantization.DROPOUT)
        assert dropout.args[1:] == (DROPOUT, mode)
        # The eps by which convolution weights are scaled is that of the BatchNorm they are joined to.
        scaled = [quantization._variance_sum(node) for node in nodes]
        assert [node.args[1] for node in scaled] == [EPS] * 5


def test_torchaos_own_switch_would_lose_them(student):
    """The trap that `set_training` is there for; if this fails, torchao was mended, and it may go."""
    from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train

    graph = capture(student)
    move_exported_model_to_train(graph)
    move_exported_model_to_eval(graph)
    assert {node.args[quantization.BN_EPS] for node in quantization.batch_norms(graph)} != {EPS}


@pytest.mark.parametrize("training", [False, True])
def test_without_rounding_it_is_the_float_network(model, training):
    """Same outputs, same BatchNorm statistics, same gradients, with the same dropout."""
    student = model.source
    reference = copy.deepcopy(student).train(training)
    model.train(training)
    switch_off(model)
    results = []
    for network in (model, reference):
        torch.manual_seed(3)
        logits, taps = network.forward_taps(pictures())
        (logits.square().mean() + sum(tap.mean() for tap in taps.values())).backward()
        results.append((logits, *(taps[name] for name in student.tap_channels)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    ours, theirs = student.state_dict(), reference.state_dict()
    for name in ours:
        if "num_batches_tracked" not in name:  # counted by nobody, used by nobody: momentum is a number
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    for (name, parameter), other in zip(student.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_statistics_move_by_the_models_momentum(model):
    """Hand computation for the first BatchNorm: 0.99 * old + 0.01 * batch."""
    conv, norm = model.source.backbone["low"][0]
    images, old = pictures(), norm.running_mean.clone()
    expected = 0.99 * old + 0.01 * conv(images).mean((0, 2, 3))
    switch_off(model.train())
    model(images)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-5, atol=1e-6)
    model.eval()(images)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-5, atol=1e-6)


def trained(model, steps=4):
    """The fake-quantized student after a few steps."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        loss = model(pictures(seed=step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_training_is_in_place_and_ranges_rest_in_eval(model):
    student = model.source
    before = copy.deepcopy(student.state_dict())
    trained(model)
    after = student.state_dict()
    weights = [name for name, _ in student.named_parameters()]
    moved = [name for name in weights if not torch.equal(before[name], after[name])]
    assert set(weights) - set(moved) <= {"backbone.mid.0.0.bias"}  # which BatchNorm takes out again
    assert not torch.equal(before["backbone.low.0.1.running_var"], after["backbone.low.0.1.running_var"])
    assert len(list(model.parameters())) == len(weights)
    ranges = model.ranges()
    with torch.no_grad():
        model(100 * pictures())
    assert all(torch.equal(ranges[name], value) for name, value in model.ranges().items())


def test_int8_is_bit_for_bit_what_was_trained(model):
    trained(model)
    with torch.no_grad():
        expected = model(pictures(seed=9))
        int8 = model.to_int8()
        torch.testing.assert_close(int8(pictures(seed=9)), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(pictures(seed=9)), expected, rtol=0, atol=0)  # left as it was
    assert not list(quantization.batch_norms(int8.graph))


def test_weights_and_ranges_are_all_there_is(model, prepared):
    again = copy.deepcopy(prepared)
    trained(model)
    again.source.load_state_dict(model.source.state_dict())
    again.load_ranges(model.ranges())
    with torch.no_grad():
        torch.testing.assert_close(again(pictures()), model(pictures()), rtol=0, atol=0)
    with pytest.raises(UserError, match="ranges"):
        again.load_ranges({})


# -- the scheme -----------------------------------------------------------------------------------


def quantized_tensors(int8):
    """Arguments of the quantized weights: (values, scales, zero points) by layer."""
    ops = torch.ops.quantized_decomposed
    for node in int8.graph.graph.nodes:
        if node.target == ops.dequantize_per_channel.default:
            yield tuple(graphs.tensor_of(int8.graph, argument) for argument in node.args[:3])


@pytest.mark.parametrize("how", ["trained", "calibrated"])
def test_weights_are_symmetric_int8_by_channel(model, how):
    # A channel whose weights have one sign: no reason for a zero point.
    model.source.backbone["same"][0].weight.data.abs_()
    folded = fold_by_hand(model.source.mix)
    int8 = trained(model).to_int8() if how == "trained" else quantize_calibrated(model.source, [pictures()])
    layers = list(quantized_tensors(int8))
    assert len(layers) == 7
    for values, scales, zero_points in layers:
        assert values.dtype == torch.int8
        assert values.min() >= -127
        assert not zero_points.any()
        assert scales.shape == (len(values),)
    if how == "calibrated":  # BatchNorm folded with its own eps, then rounded to 127 steps a channel
        close = [
            values.shape == folded.shape
            and torch.allclose(values * scales.view(-1, 1, 1, 1), folded, atol=folded.abs().max().item() / 250)
            for values, scales, _ in layers
        ]
        assert close.count(True) == 1


def fold_by_hand(block):
    """float64 weights of convolution and BatchNorm in one."""
    conv, norm = block
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return (conv.weight.double() * factor.view(-1, 1, 1, 1)).detach().float()


def test_calibration_leaves_the_network_alone_and_stays_near_it(student):
    before = copy.deepcopy(student.state_dict())
    images = [pictures(1, 50, 70, seed) for seed in range(6)]
    with torch.no_grad():
        expected = student(images[0])
        int8 = quantize_calibrated(student, images)
        got = int8(images[0])
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert got.shape == expected.shape
    assert (got - expected).abs().mean() < 0.05 * expected.std()
    assert (got.argmax(1) == expected.argmax(1)).float().mean() > 0.95


def test_logits_that_are_a_sum_stay_float():
    """As LR-ASPP's: 8 bits would leave 256 values at most."""
    from zoo import create_model

    torch.manual_seed(0)
    model = create_model("lraspp_mobilenet_v3_large", 3, "none").eval()
    int8 = quantize_calibrated(model, [pictures(1, 64, 96, seed) for seed in range(2)])
    with torch.no_grad():
        logits = int8(pictures(1, 64, 96))
    assert logits.unique().numel() > 2 * 256


def test_calibration_needs_images(student):
    with pytest.raises(UserError, match="at least one image"):
        quantize_calibrated(student, [])


def test_a_network_that_cannot_be_captured_says_so():
    class Stubborn(SmallStudent):
        def _forward_padded(self, images):
            if images.mean() > 0:  # decided by the picture: no graph holds that
                images = -images
            return super()._forward_padded(images)

    with pytest.raises(UserError, match=r"cannot capture a Stubborn, so it has no INT8 form"):
        FakeQuantModel(Stubborn(3))


# -- files and commands ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo_with_small():
    with in_zoo():
        yield


@pytest.fixture(scope="module")
def demo_student(demo_data, zoo_with_small, tmp_path_factory):
    """A (badly) trained small student of the demo classes, as a file."""
    from dataset import build_dataset
    from zoo import model_file_dict

    data = build_dataset("demo", demo_data, "val")
    model = lively(SmallStudent(data.num_classes))
    path = tmp_path_factory.mktemp("student") / "best.pth"
    save_atomic(model_file_dict("small", model, data), path)
    return path


def train_arguments(demo_data, output, *more):
    from train_kd import get_args_parser

    return get_args_parser().parse_args(
        [
            "--qat", "--dataset", "demo", "--data-dir", str(demo_data), "--student", "small",
            "--crop-size", "64", "--batch-size", "4", "--epochs", "2", "--lr", "1e-4", "--workers", "0",
            "--device", "cpu", "--output-dir", str(output), "--name", "run", *map(str, more),
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def qat_run(demo_data, demo_student, tmp_path_factory):
    """Two epochs of quantization-aware training under a teacher, broken off and resumed in between."""
    from train_kd import main

    folder = tmp_path_factory.mktemp("qat")
    taught = ["--student-weights", demo_student, "--alpha", "0.5", "--beta", "0.2"]
    taught += ["--teacher", "small", "--teacher-weights", demo_student]
    assert main(train_arguments(demo_data, folder / "whole", *taught)) == 0
    assert main(train_arguments(demo_data, folder / "parts", *taught, "--max-steps", "6")) == 0
    assert main(train_arguments(demo_data, folder / "parts", *taught, "--resume", "auto")) == 0
    return folder


def test_a_dead_channel_keeps_a_scale_that_its_bias_can_be_counted_in():
    """ONNX Runtime keeps biases as int32 in units of input scale times weight scale; also after saving and loading."""
    student = lively(SmallStudent(3))
    student.mix[0].weight.data[0] = 0
    trained = FakeQuantModel(student).train()
    trained(pictures())
    loaded = FakeQuantModel(student)
    loaded.load_ranges(trained.ranges())
    for model in (trained, loaded):
        state = model.eval().to_int8().graph.state_dict()
        scales = [value.min().item() for name, value in state.items() if name.startswith("_scale_")]
        assert min(scales) == quantization.LEAST_SCALE


def test_training_for_int8_resumes_exactly(qat_run):
    whole, parts = (load_file(qat_run / name / "run" / "last.pth") for name in ("whole", "parts"))
    for part in ("state_dict", "qat"):
        assert whole[part].keys() == parts[part].keys()
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())


def test_a_file_of_such_a_run_is_a_plain_student_and_its_ranges(qat_run):
    content = load_file(qat_run / "whole" / "run" / "best.pth")
    model = SmallStudent(len(content["class_names"]))
    model.load_state_dict(content["state_dict"])
    assert content["qat"]


@pytest.fixture(scope="module")
def int8_files(qat_run, demo_student, demo_data, tmp_path_factory):
    """A folder with qat.onnx and qat.pt2 (raw RGB in), ptq.onnx and ptq.pt2, and what was printed meanwhile."""
    import quantize

    folder, printed = tmp_path_factory.mktemp("int8"), io.StringIO()
    parse = quantize.get_args_parser().parse_args
    qat = [str(qat_run / "whole" / "run" / "best.pth"), "--output", str(folder / "qat.onnx"), "--uint8"]
    ptq = [str(demo_student), "--output", str(folder / "ptq.onnx"), "--calibration-images", "8"]
    data = ["--dataset", "demo", "--data-dir", str(demo_data)]
    with contextlib.redirect_stdout(printed):
        quantize.main(parse([*qat, *data]))
        quantize.main(parse([*ptq, *data]))
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def float_pt2(demo_student, tmp_path_factory):
    """The small student as a .pt2 file in float32."""
    import export

    path = tmp_path_factory.mktemp("float") / "student.pt2"
    export.main(export.get_args_parser().parse_args([str(demo_student), "--output", str(path), "--rounds", "0"]))
    return path


def test_quantize_and_score_side_by_side(int8_files, qat_run, demo_student, demo_data, tmp_path):
    """The scores of a --qat checkpoint are those of its INT8 files, in both engines; PTQ works beside it."""
    import evaluate

    folder, printed = int8_files
    # The last layer, whose output stays float, is a convolution of floats.
    assert printed.count("executes 6 of 7 layers with integer kernels") == 2
    qat = qat_run / "whole" / "run" / "best.pth"
    files = [qat, folder / "qat.onnx", folder / "qat.pt2", demo_student, folder / "ptq.onnx"]
    results = tmp_path / "scores.json"
    options = ["--agreement", "--workers", "0", "--json", str(results), "--dataset", "demo", "--data-dir", demo_data]
    evaluate.main(evaluate.get_args_parser().parse_args([*map(str, files), *map(str, options)]))
    rows = json.loads(results.read_text())
    assert [row["model"] for row in rows] == ["small qat", "small int8", "small int8", "small", "small int8"]
    assert rows[0]["agreement"] == 1
    assert rows[1]["agreement"] > 0.98
    assert rows[2]["agreement"] > 0.98
    assert rows[4]["miou"] == pytest.approx(rows[3]["miou"], abs=0.05)
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert rows[1]["file_mb"] * 1e6 == (folder / "qat.onnx").stat().st_size


def test_both_files_are_scored_on_pictures(int8_files):
    """Beside the network they were made from: a --qat checkpoint with its rounding, which its files keep."""
    printed = int8_files[1]
    shown = re.findall(
        r"(\w+\.\w+): mIoU [\d.]+ -> [\d.]+ % \(([-+.\d]+) points\), ([\d.]+) % .* on \d+ pictures of demo/val", printed
    )
    assert [name for name, _, _ in shown] == ["qat.onnx", "qat.pt2", "ptq.onnx", "ptq.pt2"]
    assert all(abs(float(points)) < 1 and float(alike) > 98 for _, points, alike in shown)


def test_int8_stands_in_the_table_of_formats(int8_files, demo_student, demo_data, tmp_path, monkeypatch, run_script):
    """Both files of a checkpoint, scored as `quantize.py` does; others are refused."""
    from deploy.formats import FORMATS

    monkeypatch.setattr("deploy.export_run.FORMATS", {name: FORMATS[name] for name in ("onnx", "pt2")})
    command = ["export.py", demo_student, "--format", "all", "--output", tmp_path, "--rounds", 1]
    data = ["--dataset", "demo", "--data-dir", demo_data, "--score-images", 3]
    table = run_script(*command, *data, "--int8", int8_files[0] / "ptq.onnx").stdout
    rows = {line.split("  ")[0]: line.split() for line in table.partition("\nruntime ")[2].splitlines()[1:]}
    assert {"torch.export INT8", "torch.export fp32", "ONNX Runtime INT8", "ONNX Runtime fp32"} <= set(rows)
    assert f"{(int8_files[0] / 'ptq.pt2').stat().st_size / 1e6:.2f}" in rows["torch.export INT8"]
    assert float(rows["torch.export INT8"][-1]) > 98 and float(rows["torch.export fp32"][-1]) > 99.9
    done = run_script(*command, "--int8", int8_files[0] / "qat.onnx", check=False)
    assert "qat.onnx: not this checkpoint's INT8 form" in done.stderr


@pytest.mark.parametrize("fails", ["loss", "second"])
def test_all_files_are_written_or_none(demo_student, demo_data, tmp_path, monkeypatch, fails):
    """That lose no more than is allowed and do what the network does; those that were there stay."""
    import quantize

    words = [str(demo_student), "--output", str(tmp_path / "a.onnx"), "--calibration-images", "2"]
    words += ["--score-images", "3", "--dataset", "demo", "--data-dir", str(demo_data)]
    message = r"a\.onnx: INT8 loses .* points of mIoU, more than --max-drop -50: nothing written; train for"
    if fails == "second":
        message = "the second is no good"

        def refuse(*args):
            raise UserError(message)

        compare = writing.compare
        checked = {".onnx": compare, ".pt2": refuse}
        monkeypatch.setattr(writing, "compare", lambda *args: checked[args[1].suffix](*args))
    with pytest.raises(UserError, match=message):
        quantize.main(quantize.get_args_parser().parse_args([*words, *(["--max-drop", "-50"] * (fails == "loss"))]))
    assert not list(tmp_path.iterdir())


def test_without_pictures_a_file_is_written_and_the_lack_said(qat_run, tmp_path, capsys):
    import quantize

    words = [
        str(qat_run / "whole" / "run" / "best.pth"),
        "--output",
        str(tmp_path / "a.onnx"),
        "--data-dir",
        str(tmp_path),
    ]
    parse = quantize.get_args_parser().parse_args
    with pytest.raises(UserError):
        quantize.main(parse([*words, "--max-drop", "1"]))
    assert not list(tmp_path.glob("*.onnx"))
    quantize.main(parse(words))
    assert "warning: what INT8 loses is not measured" in capsys.readouterr().out
    assert (tmp_path / "a.onnx").is_file()


@pytest.mark.parametrize(("overflows", "type_name"), [(False, "INT8"), (True, "UINT8")])
def test_weights_are_signed_unless_the_processor_overflows(int8_files, monkeypatch, tmp_path, overflows, type_name):
    """As ONNX Runtime will execute them."""
    import onnx

    from networks import onnx_session

    monkeypatch.setattr(onnx_session, "int8_overflows", lambda: overflows)
    onnx_session.open_session(int8_files[0] / "qat.onnx", device="cpu", optimized=tmp_path / "as_run.onnx")
    graph = onnx.load(tmp_path / "as_run.onnx").graph
    weights = {node.input[3] for node in graph.node if node.op_type == "QLinearConv"}
    kinds = {onnx.TensorProto.DataType.Name(value.data_type) for value in graph.initializer if value.name in weights}
    assert kinds == {type_name}


@pytest.mark.parametrize(
    ("machine", "capabilities", "overflows"),
    [
        ("x86_64", {"avx2": True, "avx512_vnni": False}, True),
        ("AMD64", {"avx2": True, "avx_vnni": True}, False),
        ("x86_64", {"avx512_vnni": True}, False),
        ("arm64", {}, False),
    ],
)
def test_which_processors_overflow(monkeypatch, machine, capabilities, overflows):
    from networks import onnx_session

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert onnx_session.int8_overflows() is overflows


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="oneDNN's INT8 kernels are for x86")
def test_pt2_runs_with_integer_kernels_and_any_size(int8_files):
    from deploy.pt2_format import Pt2Model

    model = Pt2Model(int8_files[0] / "qat.pt2")
    assert model.integer_layers() == (7, 7)
    with torch.inference_mode():
        assert model(pictures(3, 45, 130)).shape == (3, 7, 45, 130)


def test_openvino_runs_with_integer_kernels(int8_files, demo_student, demo_data, tmp_path, run_script):
    """Its file decides as ONNX Runtime's of the same ranges, to the roundings that each engine does its own way."""
    pytest.importorskip("openvino")
    output = tmp_path / "ptq.onnx"
    words = ["quantize.py", demo_student, "--output", output, "--openvino", "--calibration-images", 8]
    printed = run_script(*words, "--dataset", "demo", "--data-dir", demo_data).stdout
    executed = re.search(r"ptq\.xml: OpenVINO executes (\d) of 7 layers with integer kernels", printed)
    assert executed is not None
    assert int(executed[1]) >= 6 or platform.machine().lower() not in ("x86_64", "amd64")
    from deploy.formats import load_exported, stored_bytes

    ours, other = load_exported(tmp_path / "ptq.xml"), load_exported(int8_files[0] / "ptq.onnx")
    assert ours.card == other.card
    with torch.inference_mode():
        images = pictures(3, 45, 130)
        assert (ours(images).argmax(1) == other(images).argmax(1)).float().mean() > 0.98
    again = run_script("quantize.py", demo_student, "--output", output, check=False)  # the .xml would stay behind
    assert_one_line_error(again, "ptq.xml is there, of an earlier run: pass --openvino, or remove it")
    weights = (tmp_path / "ptq.bin").stat().st_size
    assert weights < 0.35 * 4 * ours.card.parameters  # a byte a weight, and what else there is
    assert stored_bytes(tmp_path / "ptq.xml") > weights


# -- what is private in PyTorch -------------------------------------------------------------------

FREEZING, DECOMPOSED = "torch._inductor.fx_passes.freezing_patterns", "torch.ao.quantization.fx._decomposed"


def assert_says_what_to_do(error):
    assert f"PyTorch {torch.__version__} has them elsewhere" in str(error)
    assert "use the .onnx file, or PyTorch " in str(error)
    assert "\n" not in str(error)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="oneDNN's INT8 kernels are for x86")
def test_an_int8_pt2_file_whose_kernels_have_moved_away_is_one_error(int8_files, monkeypatch):
    from deploy.segmenter import load_segmenter

    monkeypatch.setitem(sys.modules, FREEZING, None)
    with pytest.raises(UserError) as caught:
        load_segmenter(int8_files[0] / "qat.pt2", "cpu")
    assert_says_what_to_do(caught.value)
    assert FREEZING in str(caught.value)
    assert load_segmenter(int8_files[0] / "qat.onnx", "cpu").name == "small int8"


def test_operators_that_have_moved_away_are_missed_by_int8_alone(int8_files, float_pt2, monkeypatch):
    from deploy.pt2_format import read_pt2

    monkeypatch.setitem(sys.modules, DECOMPOSED, None)
    _, card = read_pt2(float_pt2)
    assert card.precision == "fp32"

    def unknown_operator(*args, **options):
        raise RuntimeError("quantized_decomposed::quantize_per_tensor is not known")

    monkeypatch.setattr(torch.export, "load", unknown_operator)
    with pytest.raises(UserError) as caught:
        read_pt2(int8_files[0] / "qat.pt2")
    assert_says_what_to_do(caught.value)


def test_every_private_name_is_looked_for_before_it_is_used(monkeypatch):
    nothing = torch.fx.symbolic_trace(nn.Identity())
    monkeypatch.delattr("torch._inductor.constant_folding.constant_fold")
    with pytest.raises(UserError) as caught:
        torch_internals.freeze(nothing, torch.zeros(1))
    assert_says_what_to_do(caught.value)
    program = torch.export.export(nn.Identity(), (torch.zeros(1),))
    monkeypatch.delattr("torch._export.utils._is_cia_op")
    with pytest.raises(UserError) as caught:
        torch_internals.split_composites(program)
    assert_says_what_to_do(caught.value)


def test_nothing_else_imports_what_is_private_in_pytorch():
    """Module names of torch with an underscore, anywhere in the product.

    The two that PyTorch's own notes on extending it name (dispatch modes, trees of tensors) are public all the same.
    """
    root = Path(torch_internals.__file__).parents[1]
    documented = r"(?!torch\.utils\._(python_dispatch|pytree)\b)"
    private = re.compile(rf"^\s*(import|from) {documented}torch(ao)?(\.\w+)*\._", re.MULTILINE)
    guilty = {
        path.name
        for path in [*root.glob("*.py"), *root.glob("*/*.py")]
        if path.parent.name != "tests" and private.search(path.read_text(encoding="utf-8"))
    }
    assert guilty == {"torch_internals.py"}


# -- what does not go together --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--amp", "bf16"], "--qat and --amp exclude"),
        (["--compile"], "--qat and --compile exclude"),
        (["--freeze-epochs", "1"], "--qat and --freeze-epochs exclude"),
    ],
)
def test_what_does_not_go_together(demo_data, tmp_path, more, words):
    from train_kd import main

    with pytest.raises(UserError, match=words):
        main(train_arguments(demo_data, tmp_path, *more))


def test_mistakes_of_quantize(demo_student, demo_data, tmp_path):
    import quantize

    parse = quantize.get_args_parser().parse_args
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        quantize.main(parse([str(demo_student), "--output", str(tmp_path / "a.pth")]))
    with pytest.raises(UserError, match="--calibration-images"):
        quantize.main(parse([str(demo_student), "--calibration-images", "0"]))
    with pytest.raises(UserError, match="--score-images"):
        quantize.main(parse([str(demo_student), "--score-images", "0", "--max-drop", "1"]))
    with pytest.raises(UserError, match="exported already"):
        quantize.main(parse([str(tmp_path / "a.onnx")]))
    save_atomic(small_checkpoint(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="was trained for 3 classes"):
        quantize.main(parse([str(tmp_path / "other.pth"), "--dataset", "demo", "--data-dir", str(demo_data)]))
    assert not list(tmp_path.glob("*.onnx"))
    with pytest.raises(UserError, match=r"student\.pt2 is there already, and is no INT8 file"):
        (tmp_path / "student.pt2").touch()
        quantize.main(parse([str(demo_student), "--output", str(tmp_path / "student.onnx")]))
    assert (tmp_path / "student.pt2").exists() and not (tmp_path / "student.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compact", "fastlitessnet", "segformer_b0"])
def test_students_of_the_zoo(name):
    """Captured, trained a step, converted; INT8 is what was trained."""
    from zoo import create_model

    if name.startswith("segformer"):
        pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = FakeQuantModel(create_model(name, 4)).train()
    images = pictures(2, 64, 96)
    for _ in range(2):
        model(images).square().mean().backward()
    model.eval()
    with torch.no_grad():
        expected, got = model(images), model.to_int8()(images)
    assert np.isfinite(expected).all()
    # equal but where a value lay at the edge between two integers and a sum in another order moved it over
    difference, largest = (got - expected).abs(), expected.abs().max()
    assert (difference > 1e-3 * largest).float().mean() < 0.01
    assert difference.max() < 0.05 * largest
    assert all(isinstance(module, nn.Module) for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("student", ["student.pth", "compact.pth"])
def test_the_students_that_come_along_can_be_quantized(student, tmp_path):
    """Trained for long, they have layers whose rounding shows; no file is refused for it."""
    model, checkpoint = load_checkpoint_model(DEFAULT_STUDENT.with_name(student))
    cat = read_picture(ROOT / "docs" / "cat.jpg")[None]
    images = [resize(normalize(cat), (side, side)) for side in (192, 256)]
    args = get_args_parser().parse_args(["x.pth"])
    deployed = make_deployed(model, checkpoint, args, quantize_calibrated(model, images))
    writing.write_int8(deployed, model, None, None, [tmp_path / "a.onnx", tmp_path / "a.pt2"])
    assert len(list(tmp_path.iterdir())) == 2
