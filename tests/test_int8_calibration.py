"""INT8 after training: what the calibration of `deploy/calibration.py` does to a graph, against hand computation."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from basics.errors import UserError
from tests.small import SmallStudent, lively

pytest.importorskip("torchao")

from deploy import calibration, quantization
from deploy.int8_score import RealPictures
from deploy.quantized import capture


def pictures(seed=0):
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


class Swish(SmallStudent):
    """The small student with both functions of MobileNetV3 that saturate, each behind a layer."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.squash = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardsigmoid())
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardswish())

    def _forward_padded(self, images):
        return super()._forward_padded(self.stem(10 * images) * self.squash(10 * images))


@pytest.fixture(scope="module")
def calibrated():
    student = lively(Swish(3))
    graph = quantization.prepare_calibration(capture(student))
    with torch.no_grad():
        for seed in range(4):
            graph(pictures(seed))
    return student, graph


def test_ranges_end_where_hardswish_and_hardsigmoid_change_no_more(calibrated):
    student, graph = calibrated
    ranges = {
        user: (observer.min_val.item(), observer.max_val.item())
        for node, observer in calibration.observed(graph)
        if not calibration.is_of_weights(observer)
        for user in node.users
    }
    swishes = [found for user, found in ranges.items() if "hardswish" in str(user.target)]
    gates = [found for user, found in ranges.items() if "hardsigmoid" in str(user.target)]
    assert len(swishes) == 3 and len(gates) == 2
    assert min(low for low, _ in swishes) == -3 and max(high for _, high in swishes) > 3
    assert (min(low for low, _ in gates), max(high for _, high in gates)) == (-3, 3)
    with torch.no_grad():  # they would reach further
        assert student.stem[0](10 * pictures()).min() < -3.5 and student.squash[0](10 * pictures()).max() > 3.5


def test_ranges_in_training_end_there_too_and_change_neither_value_nor_gradient(calibrated):
    from deploy.quantization import TrainedBeforeHardsigmoid, TrainedBeforeHardswish
    from deploy.quantized import FakeQuantModel

    model = FakeQuantModel(copy.deepcopy(calibrated[0])).train()
    model(30 * pictures())
    swishes, gates = (
        [each for each in model.graph.modules() if isinstance(each, kind)]
        for kind in (TrainedBeforeHardswish, TrainedBeforeHardsigmoid)
    )
    assert len(swishes) == 3 and len(gates) == 2
    swish, gate = swishes[0], gates[0]  # of the stem, which the pictures go into
    assert swish.activation_post_process.min_val == -3 and swish.activation_post_process.max_val > 3
    assert (gate.activation_post_process.min_val, gate.activation_post_process.max_val) == (-3, 3)
    for function, rounding in ((F.hardsigmoid, gate), (F.hardswish, swish)):
        values = torch.linspace(-8, 8, 99, requires_grad=True)
        rounded, whole = function(rounding(values)), function(values)
        assert (rounded - whole).abs().max() < 1.5 * rounding.scale
        gradients = [torch.autograd.grad(out.sum(), values)[0] for out in (rounded, whole)]
        assert gradients[0][values < -3].eq(0).all() and gradients[1][values < -3].eq(0).all()


def test_biases_take_back_what_rounded_weights_add_to_the_mean(calibrated):
    student, graph = copy.deepcopy(calibrated)
    conv = student.stem[0]
    scale = conv.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
    rounded = (conv.weight.detach() / scale).round() * scale
    batches = [pictures(seed) for seed in range(3)]
    error = (rounded - conv.weight.detach())[..., 0, 0]
    shift = sum(torch.einsum("oi,nihw->nohw", error, 10 * x).mean((0, 2, 3)) for x in batches)
    before = conv.bias.detach().clone()
    with torch.no_grad():
        calibration.correct_biases(graph, batches)
    corrected = graph.get_buffer("corrected_bias_0")  # of the first layer
    torch.testing.assert_close(corrected, before - shift / 3, rtol=1e-3, atol=1e-6)
    assert not torch.equal(corrected, before)
    assert torch.equal(conv.bias, before)  # the network's own


def test_a_map_that_rounding_spoils_stays_float():
    """A range ten thousand times too wide: 256 steps leave nothing of the map."""
    student = lively(SmallStudent(3))
    graph = quantization.prepare_calibration(capture(student))
    with torch.no_grad():
        graph(pictures())
        observed = calibration.observed(graph)
        names = {str(node.target) for node, observer in observed if not calibration.is_of_weights(observer)}
        victim = min(names)
        graph.get_submodule(victim).max_val.mul_(10_000)
        assert victim in calibration.harmful_roundings(graph, [pictures()])
        expected = calibration.Rounding(graph, names - {victim}).run(pictures())[0]
        calibration.leave_float(graph, {victim})
        assert victim not in {str(node.target) for node in graph.graph.nodes}
        torch.testing.assert_close(calibration.Rounding(graph, names).run(pictures())[0], expected)


@pytest.mark.parametrize(("share", "harmful"), [(0.001, False), (0.003, True)])
def test_two_thousandths_of_the_decisions_may_change(monkeypatch, share, harmful):
    graph = quantization.prepare_calibration(capture(lively(SmallStudent(3))))
    logits = torch.zeros(1, 3, 100, 100)
    changed = logits.clone()
    changed[0, 1].view(-1)[: round(share * 10_000)] = 1
    monkeypatch.setattr(calibration.Rounding, "run", lambda self, images: [changed if self.rounded else logits])
    names = {str(node.target) for node, each in calibration.observed(graph) if not calibration.is_of_weights(each)}
    assert calibration.harmful_roundings(graph, [pictures()]) == (names if harmful else set())


def test_what_is_simulated_is_what_is_converted(calibrated):
    _, graph = copy.deepcopy(calibrated)
    with torch.no_grad():
        everything = {str(node.target) for node, _ in calibration.observed(graph)}
        expected = calibration.Rounding(graph, everything).run(pictures())[0]
        got = quantization.convert_calibrated(graph)(pictures())[0]
    assert (got - expected).abs().mean() < 0.01 * expected.std()


# -- scores ---------------------------------------------------------------------------------------


class Pictures:
    """Two pictures of four pixels, of classes 0 and 1."""

    name, split, num_classes = "tiny", "val", 2

    def __init__(self, masks=((0, 0, 1, 1), (0, 1, 1, 255))):
        self.masks = masks

    def __len__(self):
        return 2

    def require_masks(self):
        pass

    def __getitem__(self, index):
        mask = torch.tensor(self.masks[index], dtype=torch.uint8).view(2, 2)
        return {"image": torch.zeros(3, 2, 2, dtype=torch.uint8), "mask": mask}


class Says(nn.Module):
    """Gives one mask after the other, whatever it is shown."""

    def __init__(self, *masks):
        super().__init__()
        self.masks = iter(masks)

    def forward(self, images):
        mask = torch.tensor(next(self.masks)).view(1, 2, 2)
        return nn.functional.one_hot(mask, 2).movedim(-1, 1).float()


def test_cost_in_points_of_miou_and_agreement():
    real = RealPictures(Says((0, 0, 1, 1), (0, 1, 1, 0)), Pictures(), 5)
    assert real.miou == 1
    cost = real.cost(Says((0, 0, 1, 0), (0, 1, 1, 1)))
    # class 0: 3 of 4, class 1: 3 of 4; two of eight pixels decided otherwise, one of them void
    assert cost.drop == pytest.approx(25)
    assert cost.agreement == 6 / 8
    assert (
        str(cost) == "mIoU 100.0 -> 75.0 % (-25.0 points), 75.00 % of pixels decided alike, on 2 pictures of tiny/val"
    )


def test_what_a_file_of_masks_loses_by_its_borders_is_not_int8s():
    """At a working size masks are enlarged where logits would be: the same network, if it decides, loses nothing."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 3, padding=1)

    class Photos(Pictures):
        def __getitem__(self, index):
            generator = torch.Generator().manual_seed(index)
            picture = torch.randint(256, (3, 45, 60), generator=generator, dtype=torch.uint8)
            return {"image": picture, "mask": torch.randint(2, (45, 60), generator=generator, dtype=torch.uint8)}

    class Masks(nn.Module):
        decides_only = True

        def forward(self, images):
            return nn.functional.one_hot(network(images).argmax(1), 2).movedim(-1, 1).float()

    real = RealPictures(network, Photos(), 2, input_size=32)
    cost = real.cost(Masks())
    assert cost.drop == 0 and cost.agreement == 1
    assert cost.before != real.miou, "the borders are coarser"


def test_pictures_without_a_labelled_pixel_are_refused():
    void = Pictures(((255,) * 4, (255,) * 4))
    with pytest.raises(UserError, match="2 pictures of tiny/val: not one labelled pixel"):
        RealPictures(Says((0, 0, 0, 0), (0, 0, 0, 0)), void, 2)


def test_the_cost_is_measured_on_pictures_spread_over_the_split():
    class Ten(Pictures):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return super().__getitem__(index % 2)

    assert RealPictures(Says(*[(0, 0, 1, 1)] * 5), Ten(), 5).indices == [0, 2, 4, 6, 8]


def test_biases_are_corrected_on_images_of_the_whole_split(monkeypatch):
    """Of forty images sixteen are kept, each with the same chance: not the first ones alone."""
    seen, correct = [], calibration.correct_biases
    monkeypatch.setattr(calibration, "correct_biases", lambda graph, kept: seen.extend(kept) or correct(graph, kept))
    images = [torch.full((1, 3, 32, 32), number / 40) for number in range(40)]
    calibration.quantize_calibrated(lively(SmallStudent(3)), images)
    assert len(seen) == 16 and max(image.mean().item() for image in seen) > 0.5
