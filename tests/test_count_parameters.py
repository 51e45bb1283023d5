"""Costs against counts by hand, and the table that shows them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import count_parameters as script
from basics.checkpoint import save_atomic
from basics.errors import UserError
from networks.cost import count_macs, file_megabytes, measure_latencies, parameters_by_part
from tests.conftest import assert_one_line_error
from zoo import build_model

CPU = torch.device("cpu")


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.strided = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, images):
        return self.norm(self.grouped(self.strided(images)))


def test_macs_by_hand():
    """Each output value of a convolution takes inputs-per-group x 9 multiply-accumulates; BatchNorm none."""
    expected = 8 * 16 * 16 * (3 * 9) + 8 * 16 * 16 * (2 * 9)
    assert count_macs(Tiny().eval(), 32) == expected


def test_macs_of_a_matrix_product():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 7))
    assert count_macs(model, 4) == 3 * 4 * 4 * 7


def test_macs_of_attention():
    """q @ k and attention @ v of SegFormer are matrix products, too: they are not forgotten."""
    pytest.importorskip("segmentation_models_pytorch")
    from segmentation_models_pytorch.encoders.mix_transformer import Attention

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(dim=8, num_heads=2)

        def forward(self, images):
            tokens = images[:, :1].flatten(2).transpose(1, 2).expand(-1, -1, 8)  # (1, 16, 8)
            return self.attention(tokens, 4, 4)

    linear = 16 * 8 * 8 * (1 + 2 + 1)  # q, k and v, projection
    assert count_macs(Wrapped().eval(), 4) == linear + 2 * 16 * 16 * 8


def test_macs_grow_with_the_area_and_leave_the_model_alone():
    model = build_model("compact", 3).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, large = count_macs(model, 64), count_macs(model, 128)
    assert large / small == pytest.approx(4, rel=0.02)  # the gates see one value a channel at any size
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and next(model.parameters()).device == CPU


def test_parameters_by_part():
    assert parameters_by_part(Tiny()) == {"strided": 8 * 27 + 8, "grouped": 8 * 18, "norm": 16, "(own)": 5}


def test_file_size_is_that_of_the_file(tmp_path):
    model = build_model("standard", 21)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert file_megabytes(model) == pytest.approx((tmp_path / "model.pth").stat().st_size / 1e6, rel=0.03)


class Counting(nn.Module):
    """Notes how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, images):
        self.calls.append((tuple(images.shape), self.training, torch.is_inference_mode_enabled()))
        return images


def test_latency_is_of_warm_eval_mode_runs(monkeypatch):
    """The median of the timed runs: a slow warm-up and one slow run do not count."""
    seconds = iter([9.0, 9.0, 0.002, 0.001, 5.0, 0.003, 0.002])
    clock = {"now": 0.0, "reads": 0}

    def read():
        clock["reads"] += 1
        return clock["now"]

    class Slow(Counting):
        def forward(self, images):
            clock["now"] += next(seconds)
            return super().forward(images)

    monkeypatch.setattr("basics.timing.time.perf_counter", read)
    model = Slow().train()
    assert measure_latencies([model], 32, CPU, warmup=2, repeats=5, limit_s=100) == pytest.approx([2.0])
    assert model.calls == [((1, 3, 32, 32), False, True)] * 7


def test_latency_ends_in_time():
    model = Counting()
    assert measure_latencies([model], 32, CPU, warmup=5, repeats=10_000, limit_s=0)[0] >= 0
    assert len(model.calls) == 2


def cost(title, scale):
    return script.Cost(title, {"backbone": 100 * scale, "head": 20 * scale}, 10**9 * scale, 2.0 * scale, 5.0 * scale)


def test_table_compares_with_the_first():
    lines = script.format_table([cost("teacher", 4), cost("student", 1)]).splitlines()
    cells = {" ".join(line.split()[:-2]): line.split() for line in lines}
    assert lines[0].split() == ["teacher", "student"]
    assert cells["backbone"][-2:] == ["400", "100"] and cells["parameters"][-2:] == ["480", "120"]
    assert all(cells[f"x {what}"][-2:] == ["1.0", "4.0"] for what in ("parameters", "MACs", "file", "latency"))


def test_main_puts_checkpoints_beside_models(demo_checkpoint, capsys):
    path = demo_checkpoint("compact")
    arguments = [
        str(path),
        "--models",
        "lraspp_mobilenet_v3_large",
        "--size",
        "64",
        "--repeats",
        "1",
        "--device",
        "cpu",
    ]
    script.main(script.get_args_parser().parse_args(arguments))
    said = capsys.readouterr().out
    assert "lraspp_mobilenet_v3_large  compact_0/best (compact)" in said
    assert "threads" in said and "64 x 64" in said and "median" in said


def test_defaults_are_the_teacher_and_both_students(monkeypatch, capsys):
    monkeypatch.setattr(script, "measure", lambda models, *args: [cost(title, 1) for title, _ in models])
    script.main(script.get_args_parser().parse_args(["--device", "cpu"]))
    assert "fcn_resnet50      standard       compact" in capsys.readouterr().out


def test_two_networks_of_one_title_have_two_columns():
    """As the best.pth of two folders of runs with the same names have."""
    costs = script.measure([("run/best (tiny)", Tiny()), ("run/best (tiny)", nn.Conv2d(3, 4, 1))], 32, CPU, repeats=1)
    assert [cost.title for cost in costs] == ["run/best (tiny)"] * 2 and costs[1].parameters == 16


def test_errors(tmp_path, run_script):
    assert_one_line_error(run_script("count_parameters.py", "--models", "nothing", check=False), "nothing", "standard")
    save_atomic({"a": torch.zeros(1)}, tmp_path / "bare.pth")
    for arguments, message in (
        ([str(tmp_path / "bare.pth")], "bare weights"),
        (["--size", "8"], "at least 32"),
        (["--repeats", "0"], "at least 1"),
        ([str(tmp_path / "missing.pth")], "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            script.main(script.get_args_parser().parse_args(["--device", "cpu", *arguments]))
