"""Folding BatchNorm into convolutions changes what a network costs, not what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks.folding import fold_batchnorm
from tests.small import lively
from tests.tiny import TinyModel
from zoo import build_model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [("fcn_resnet50", 0), ("deeplabv3_mobilenet_v3_large", 0), ("lraspp_mobilenet_v3_large", 0), ("fastlitessnet", 0)],
)
def test_zoo_teachers(name, left):
    torch.manual_seed(0)
    model = build_model(name, 5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batchnorm(model)
    assert norms(folded) == left < norms(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    images = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        (logits, taps), (logits_f, taps_f) = model.forward_taps(images), folded.forward_taps(images)
    assert taps.keys() == taps_f.keys()
    for expected, got in [(logits, logits_f), *((taps[tap], taps_f[tap]) for tap in taps)]:
        assert (expected - got).abs().max() <= 1e-4 * expected.abs().max()


def test_a_layer_by_hand():
    """w * gamma / sqrt(var + eps), (b - mean) * gamma / sqrt(var + eps) + beta."""
    torch.manual_seed(0)
    model = lively(TinyModel())
    conv, norm = model.backbone["low"][0], model.backbone["low"][1]
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = fold_batchnorm(model).backbone["low"][0]
    torch.testing.assert_close(folded.weight, conv.weight * gain[:, None, None, None])
    torch.testing.assert_close(folded.bias, (conv.bias - norm.running_mean) * gain + norm.bias)


class Shared(TinyModel):
    """The first convolution's output is used twice: behind its BatchNorm, and as it is."""

    def _forward_padded(self, images):
        logits, taps = super()._forward_padded(images)
        return logits, taps | {"raw": self.backbone["low"][0](images)}


class Hidden(TinyModel):
    """The same, where no module shows it."""

    def _forward_padded(self, images):
        logits, taps = super()._forward_padded(images)
        conv = self.backbone["low"][0]
        return logits, taps | {"raw": F.conv2d(images, conv.weight, conv.bias, conv.stride, conv.padding)}


@pytest.mark.parametrize(("kind", "folded_norms"), [(Shared, 2), (Hidden, None)])
def test_what_cannot_be_folded_stays(kind, folded_norms):
    torch.manual_seed(0)
    model = lively(kind())
    folded = fold_batchnorm(model)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = model.forward_taps(images)[1]["raw"], folded.forward_taps(images)[1]["raw"]
    torch.testing.assert_close(got, expected)
    assert folded is model if folded_norms is None else norms(model) - norms(folded) == folded_norms


def test_layers_without_statistics_stay():
    model = lively(TinyModel())
    model.backbone["low"][1] = nn.BatchNorm2d(8, track_running_stats=False)
    folded = fold_batchnorm(model)
    assert norms(folded) == 1 and norms(model) == 3
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded.eval()(images), model.eval()(images), rtol=1e-4, atol=1e-4)


def test_nothing_to_fold():
    model = nn.Conv2d(3, 3, 1)
    assert fold_batchnorm(model) is model
