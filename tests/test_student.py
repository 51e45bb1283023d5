"""The student: size, parts, and the ImageNet weights in the encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

from basics.checkpoint import load_file
from basics.errors import UserError
from student_model import ASPP, VARIANTS, DepthwiseConv, ImagePooling, StudentNet
from zoo import create_model

WEIGHTS = Path(__file__).parents[2] / "shared/weights/mobilenet_v3_small_imagenet_features.pth"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS.name} is not on this machine")


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes():
    assert 1.5e6 <= parameters(StudentNet(21)) <= 1.8e6
    assert parameters(StudentNet(21, "compact")) < 0.5e6


def test_aspp_parameters_by_hand():
    """1x1, three separable 3x3 branches behind it, pooling with a bias, projection; BatchNorm has 2 a channel."""
    width, inner = 8, 12
    narrow = width * inner + 2 * inner
    separable = 9 * inner + 2 * inner + inner * inner + 2 * inner
    pooling = width * inner + inner
    project = 5 * inner * inner + 2 * inner
    assert parameters(ASPP(width, inner)) == narrow + 3 * separable + pooling + project


@pytest.mark.parametrize(("kernel", "dilation"), [(5, 2), (3, 3), (3, 9)])
@pytest.mark.parametrize("size", [(16, 16), (21, 13), (33, 40), (5, 4)])
def test_depthwise_convolution_in_training_is_the_ordinary_one(kernel, dilation, size):
    torch.manual_seed(0)
    layer = DepthwiseConv(6, kernel, dilation).double().train()
    ordinary = nn.Conv2d(6, 6, kernel, padding="same", dilation=dilation, groups=6, bias=False).double()
    ordinary.load_state_dict(layer.state_dict())
    features = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn_like(features)
    for module in (layer, layer.eval()):
        outputs = module(features), ordinary(features)
        torch.testing.assert_close(*outputs)
        gradients = (
            torch.autograd.grad(output, (features, weight), gradient)
            for output, weight in zip(outputs, (module.weight, ordinary.weight), strict=True)
        )
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_of_one_in_training(variant):
    student = StudentNet(4, variant).train()
    student(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())


def test_image_pooling_is_the_mean_everywhere():
    pooling = ImagePooling(3, 2)
    features = torch.randn(2, 3, 5, 7)
    pooled = pooling(features)
    assert pooled.shape == (2, 2, 5, 7)
    weight, bias = pooling.conv.weight[:, :, 0, 0].double(), pooling.conv.bias.double()
    expected = (features.double().mean(dim=(2, 3)) @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(pooled[:, :, 4, 3].double(), expected, rtol=1e-5, atol=1e-6)
    assert (pooled == pooled[:, :, :1, :1]).all()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in pooling.modules())


@pytest.mark.parametrize(("variant", "blocks"), [("standard", 13), ("compact", 10)])
def test_encoder_is_torchvisions(variant, blocks):
    """Same key names, and with the same tensors the same feature maps as torchvision's own blocks."""
    torch.manual_seed(0)
    reference = mobilenet_v3_small(weights=None, dilated=True).features[:blocks].eval()
    student = StudentNet(21, variant).eval()
    student.backbone.load_state_dict({f"features.{key}": value for key, value in reference.state_dict().items()})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        _, taps = student.forward_taps(images)
        assert torch.equal(taps["low"], reference[:2](images))
        assert torch.equal(taps["mid"], reference[:4](images))
        assert torch.equal(taps["high"], reference(images))


def test_logits_follow_the_decoder_tap():
    student = StudentNet(3, "compact").eval()
    with torch.no_grad():
        logits, taps = student.forward_taps(torch.randn(1, 3, 32, 48))
        assert torch.equal(logits, student.classifier(taps["decoder"].clamp(min=0)))


def test_unknown_variant_lists_the_known():
    with pytest.raises(UserError, match="compact, standard"):
        StudentNet(21, "tiny")


@needs_weights
@pytest.mark.parametrize("variant", VARIANTS)
def test_imagenet_weights_fill_the_whole_encoder(variant, capsys):
    student = create_model(variant, 21, str(WEIGHTS))
    file = load_file(WEIGHTS)
    for name, value in student.backbone.state_dict().items():
        assert torch.equal(value, file[name]), name
    assert "random" not in capsys.readouterr().out
