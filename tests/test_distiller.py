"""The distiller: what is computed, on which grid, and what must never change."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kd.distiller as distiller_module
from basics.errors import UserError
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe, pad_batch
from kd.losses import LOSSES, PRESETS
from tests.test_losses_reference import reference_pairwise
from tests.tiny import TinyModel, tiny_batch


def make_distiller(weights, student=None, teacher_model=None, temperature=2.0, **options):
    torch.manual_seed(0)
    student = student or TinyModel()
    recipe = Recipe(weights, temperature=temperature, **options)
    teacher = LiveTeacher(teacher_model or TinyModel(width=16)) if recipe.needs_teacher else None
    model = DistilledStudent(student, recipe, teacher)
    return Distiller(model, student, recipe, teacher)


def test_baseline_needs_no_teacher_and_is_cross_entropy():
    distiller = make_distiller({"ce": 1.0, "kl": 0.0})
    assert distiller.teacher is None and distiller.recipe.weights == {"ce": 1.0}
    batch = tiny_batch()
    distiller.model.eval()
    losses = distiller.losses(batch)
    expected = F.cross_entropy(distiller.student(batch["image"]), batch["mask"], ignore_index=255)
    assert list(losses) == ["ce"]
    torch.testing.assert_close(losses["ce"], expected)
    torch.testing.assert_close(distiller.total(losses), expected)


def test_total_is_the_weighted_sum():
    distiller = make_distiller({"ce": 1.0, "kl": 0.5, "cosine": 2.0})
    losses = distiller.losses(tiny_batch())
    torch.testing.assert_close(distiller.total(losses), losses["ce"] + 0.5 * losses["kl"] + 2 * losses["cosine"])


def test_kl_by_the_formula_on_the_coarser_grid():
    """Teacher at stride 8, student at 4: the student's logits are averaged 2 x 2, then T^2 * KL per cell."""
    teacher = TinyModel(width=16, logit_stride=8)
    distiller = make_distiller({"ce": 1.0, "kl": 1.0}, teacher_model=teacher, temperature=3.0)
    distiller.model.eval()
    batch = tiny_batch()
    with torch.no_grad():
        measured = distiller.losses(batch)["kl"].item()
        student = distiller.student.forward_taps(batch["image"])[0].double()
        told = teacher.forward_taps(batch["image"])[0].double()
    n, c, h, w = student.shape
    student = student.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    log_s, log_t = (student / 3).log_softmax(1), (told / 3).log_softmax(1)
    expected = 9 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
    assert measured == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "name", [name for name, spec in LOSSES.items() if spec.kind == "features" and not spec.adapter]
)
def test_losses_without_adapter_vanish_for_equal_networks(name):
    model = TinyModel().eval()
    distiller = make_distiller({"ce": 1.0, name: 1.0}, student=model, teacher_model=model)
    distiller.model.eval()
    assert distiller.losses(tiny_batch())[name].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_trains_the_student_and_only_the_student(name):
    weights = {"ce": 0.0 if LOSSES[name].kind == "hard" else 1e-9, name: 1.0}
    distiller = make_distiller(weights)
    batch = tiny_batch(size=96)
    total = distiller.total(distiller.losses(batch))
    total.backward()
    assert torch.isfinite(total)
    grads = [p.grad for p in distiller.student.backbone.parameters() if p.grad is not None]
    assert sum(g.abs().sum().item() for g in grads) > 0
    if distiller.teacher:
        assert all(p.grad is None for p in distiller.teacher.model.parameters())


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_student_and_teacher_run_in_the_precision_that_was_asked_for(amp):
    seen = []

    class Watched(TinyModel):
        def _forward_padded(self, images):
            seen.append((type(self).__name__, torch.is_autocast_enabled("cpu")))
            return super()._forward_padded(images)

    class Teacher(Watched):
        pass

    recipe, student = Recipe({"ce": 1.0, "kl": 1.0}), Watched()
    teacher = LiveTeacher(Teacher(), amp)
    distiller = Distiller(DistilledStudent(student, recipe, teacher), student, recipe, teacher, amp=amp)
    seen.clear()
    losses = distiller.losses(tiny_batch())
    assert set(seen) == {("Watched", amp == "bf16"), ("Teacher", amp == "bf16")}
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_teacher_is_bit_identical_after_steps():
    teacher = TinyModel(width=16)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    distiller = make_distiller({"ce": 1.0, "kl": 1.0, "cosine": 1.0}, teacher_model=teacher)
    optimizer = torch.optim.SGD(distiller.model.parameters(), lr=0.1)
    teacher.train()  # somebody meddles; the distiller must put it right
    for seed in range(3):
        distiller.model.train()
        optimizer.zero_grad()
        distiller.total(distiller.losses(tiny_batch(seed=seed))).backward()
        optimizer.step()
    assert not teacher.training
    after = teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_teacher_is_not_saved_with_the_student():
    distiller = make_distiller({"ce": 1.0, "kl": 1.0})
    teacher_values = sum(p.numel() for p in distiller.teacher.model.parameters())
    assert sum(p.numel() for p in distiller.model.parameters()) < teacher_values
    assert all(key.startswith(("student.", "adapters.")) for key in distiller.model.state_dict())


def test_adapters_are_built_once_and_trained():
    distiller = make_distiller({"ce": 1.0, "cosine": 1.0})
    assert sorted(distiller.model.adapters) == ["cosine_high", "cosine_low", "cosine_mid"]
    distiller.total(distiller.losses(tiny_batch())).backward()
    for adapter in distiller.model.adapters.values():
        assert isinstance(adapter, nn.Conv2d) and adapter.weight.grad.abs().sum() > 0


def test_terms_on_other_maps_have_adapters_and_losses_of_their_own():
    distiller = make_distiller({"ce": 1.0, "cosine": 1.0, "cosine@high": 2.0, "at@decoder+mid": 1.0, "pkd@mid": 1.0})
    adapters = ["cosine@high_high", "cosine_high", "cosine_low", "cosine_mid", "pkd@mid_mid"]
    assert sorted(distiller.model.adapters) == adapters
    assert distiller.model.adapters["pkd@mid_mid"].out_channels == 32  # the teacher's
    distiller.model.eval()
    batch = tiny_batch()
    losses = distiller.losses(batch)
    assert list(losses) == ["ce", "cosine", "cosine@high", "at@mid+decoder", "pkd@mid"]
    # By hand: the attention of two maps, each at the student's own stride, and their mean.
    student_taps = distiller.student.forward_taps(batch["image"])[1]
    told = distiller.teacher(batch).taps
    by_hand = []
    for tap in ("mid", "decoder"):
        valid = torch.ones(2, *told[tap].shape[-2:], dtype=torch.bool)
        by_hand.append(LOSSES["at"].fn(student_taps[tap], told[tap], valid))
    torch.testing.assert_close(losses["at@mid+decoder"], sum(by_hand) / 2)
    distiller.total(losses).backward()
    assert all(adapter.weight.grad.abs().sum() > 0 for adapter in distiller.model.adapters.values())


def test_an_auxiliary_head_has_the_losses_of_its_own_logits():
    """ce at the mask's size, by hand; kl on the head's grid, to which student and teacher have a stride of 16 and 4."""
    weights = {"ce": 1.0, "ce@high": 0.5, "ce@mid+high": 1.0, "kl@high": 2.0}
    distiller = make_distiller(weights, temperature=3.0)
    distiller.model.eval()
    heads = distiller.model.adapters
    assert set(heads) == {"head_high", "head_mid"} and heads["head_high"][0].weight.shape == (8, 32, 3, 3)
    batch = tiny_batch()
    losses = distiller.losses(batch)
    _, taps = distiller.student.forward_taps(batch["image"])
    said = {tap: heads[f"head_{tap}"](taps[tap]) for tap in ("mid", "high")}
    by_hand = {}
    for tap, logits in said.items():
        full = F.interpolate(logits, size=batch["mask"].shape[-2:], mode="bilinear", align_corners=False)
        by_hand[tap] = F.cross_entropy(full, batch["mask"], ignore_index=255)
    torch.testing.assert_close(losses["ce@high"], by_hand["high"])
    torch.testing.assert_close(losses["ce@mid+high"], (by_hand["mid"] + by_hand["high"]) / 2)
    told = distiller.teacher.model.forward_taps(batch["image"])[0]
    n, c, h, w = said["high"].shape
    told = told.reshape(n, c, h, 4, w, 4).mean((3, 5))
    log_s, log_t = ((logits.double() / 3).log_softmax(1) for logits in (said["high"], told))
    expected = 9 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
    assert losses["kl@high"].item() == pytest.approx(expected.item(), rel=1e-4)
    total = losses["ce"] + 0.5 * losses["ce@high"] + losses["ce@mid+high"] + 2 * losses["kl@high"]
    torch.testing.assert_close(distiller.total(losses), total)


def test_an_auxiliary_head_is_no_part_of_the_student_and_changes_none_of_its_other_losses():
    plain, helped = (make_distiller({"ce": 1.0, **more}) for more in ({}, {"ce@high": 0.5}))
    helped.student.load_state_dict(plain.student.state_dict())
    assert helped.student.state_dict().keys() == plain.student.state_dict().keys()
    for distiller in (plain, helped):
        distiller.model.eval()
    batch = tiny_batch()
    losses = helped.losses(batch)
    assert torch.equal(losses["ce"], plain.losses(batch)["ce"])
    losses["ce@high"].backward()
    assert helped.student.backbone["high"][0].weight.grad.abs().sum() > 0
    assert helped.student.classifier.weight.grad is None  # a head passes by what comes after its map
    batch["mask"].fill_(255)
    assert helped.losses(batch)["ce@high"] == 0
    with pytest.raises(UserError, match="auxiliary head @decoder needs the feature map 'decoder', which this student"):
        student = TinyModel()
        del student.tap_channels["decoder"]
        make_distiller({"ce": 1.0, "ce@decoder": 1.0}, student=student)


def test_a_map_that_a_term_names_and_a_network_lacks_is_an_error_that_names_both():
    teacher = TinyModel()
    del teacher.tap_channels["decoder"]
    with pytest.raises(UserError, match=r"loss 'cosine@decoder' needs the feature map 'decoder', which this teacher"):
        make_distiller({"ce": 1.0, "cosine@decoder": 1.0}, teacher_model=teacher)


def test_losses_are_told_temperature_and_stride(monkeypatch):
    told = {}

    def spy(name):
        def fn(student, teacher, valid, **options):
            told[name] = options
            return student.sum() * 0

        return dataclasses.replace(LOSSES[name], fn=fn)

    for name in ("bpkd", "cwd_feat", "pkd"):
        monkeypatch.setitem(LOSSES, name, spy(name))
    weights = {"ce": 1.0, "bpkd": 1.0, "cwd_feat@mid": 1.0, "pkd": 1.0}
    make_distiller(weights, teacher_model=TinyModel(width=16, logit_stride=8), temperature=3.0).losses(tiny_batch())
    assert told == {"bpkd": {"temperature": 3.0, "stride": 8}, "cwd_feat": {"temperature": 3.0}, "pkd": {}}


def test_what_lies_under_padding_changes_no_distillation_loss():
    """The maps under invalid cells are overwritten after both networks have run."""
    names = [name for name, spec in LOSSES.items() if spec.kind != "hard"]
    distiller = make_distiller({"ce": 1.0} | dict.fromkeys(names, 1.0))
    distiller.model.eval()
    batch = tiny_batch(size=64)
    batch["valid"][:, 48:] = False
    with torch.no_grad():
        logits, adapted = distiller.model(batch["image"])
        told = distiller.teacher(batch)
        clean = [distiller._logit_loss("kl", logits, distiller.student.logit_stride, told, batch["valid"]).item()]
        clean += [
            distiller._feature_loss(name, adapted[f"{name}_{tap}"], told.taps[tap], tap, batch["valid"]).item()
            for name, tap in distiller.model.feature_terms
        ]
        for feature_map in (logits, told.logits, *adapted.values(), *told.taps.values()):
            feature_map[..., feature_map.shape[-2] * 3 // 4 :, :] = 1e4
        dirty = [distiller._logit_loss("kl", logits, distiller.student.logit_stride, told, batch["valid"]).item()]
        dirty += [
            distiller._feature_loss(name, adapted[f"{name}_{tap}"], told.taps[tap], tap, batch["valid"]).item()
            for name, tap in distiller.model.feature_terms
        ]
    assert clean == pytest.approx(dirty, rel=1e-6)
    assert all(value > 0 for value in clean)


def test_odd_sizes_are_padded_for_both_networks():
    distiller = make_distiller({"ce": 1.0, "kl": 1.0, "cosine": 1.0})
    batch = tiny_batch(size=75)
    padded = pad_batch(batch, 16)
    assert padded["image"].shape[-2:] == (80, 80)
    assert padded["mask"][:, 75:].eq(255).all() and not padded["valid"][:, 75:].any()
    assert torch.isfinite(distiller.total(distiller.losses(batch)))


def test_batch_without_a_label_costs_nothing():
    distiller = make_distiller({"ce": 1.0, "dice": 1.0, "focal": 1.0})
    batch = tiny_batch()
    batch["mask"][:] = 255
    total = distiller.total(distiller.losses(batch))
    total.backward()
    assert total.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in distiller.model.parameters())


def test_adaptive_recipe_shifts_the_weight_to_the_hard_loss():
    distiller = make_distiller({"ce": 1.0, "kl": 1.0, "cosine": 2.0}, adaptive=True)
    losses = {"ce": torch.tensor(2.0), "kl": torch.tensor(3.0), "cosine": torch.tensor(5.0)}
    for progress in (0.0, 0.25, 1.0):
        expected = progress * 2 + (1 - progress) * (3 + 2 * 5)
        assert distiller.total(losses, progress=progress).item() == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert not distiller.recipe.without_hard().adaptive, "it would fade to nothing"


@pytest.mark.parametrize("recipe", [{"ce": 1.0}, {"ce": 1.0, "dice": 1.0}])
def test_class_weights_reach_the_cross_entropy(recipe):
    """Both ways in which it is computed."""
    weights, student, batch = torch.tensor([1.0, 0.5, 3.0]), TinyModel().eval(), tiny_batch()
    recipe = Recipe(recipe)
    distiller = Distiller(DistilledStudent(student, recipe), student, recipe, class_weights=weights)
    expected = F.cross_entropy(student(batch["image"]).double(), batch["mask"], weights.double(), ignore_index=255)
    assert distiller.losses(batch)["ce"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("weights", [{"nonsense": 1.0}, {"ce": 0.0}, {"ce": float("nan")}, {"ce": 1.0, "kl": -1.0}])
def test_senseless_recipes_are_refused(weights):
    with pytest.raises(UserError):
        Recipe(weights)


def test_missing_tap_is_an_error_that_names_it():
    teacher = TinyModel()
    del teacher.tap_channels["mid"]
    with pytest.raises(UserError, match="mid"):
        make_distiller({"ce": 1.0, "cosine": 1.0}, teacher_model=teacher)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_recipes(name):
    preset = PRESETS[name]
    assert Recipe(preset.weights, preset.temperature, preset.adaptive).needs_teacher


# -- a teacher's first word --------------------------------------------------------------------------


class Saying(TinyModel):
    """Ends in ``function``, applied to its logits."""

    def __init__(self, function):
        super().__init__(width=16)
        self.function, self.calls = function, 0

    def _forward_padded(self, images):
        self.calls += 1
        logits, taps = super()._forward_padded(images)
        return self.function(logits), taps


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda z: z.softmax(1), "probabilities already, which sum to 1"),
        (lambda z: z.softmax(1).half().float(), "probabilities already, which sum to 1"),
        (torch.sigmoid, "probabilities already, all of them between 0 and 1"),
        (lambda z: F.one_hot(z.argmax(1), 3).movedim(-1, 1).float(), "probabilities already"),
        (lambda z: z * float("nan"), "not finite"),
        (lambda z: z.masked_fill(z == z.max(), float("inf")), "not finite"),
    ],
)
def test_a_teacher_that_gives_no_logits_is_refused_by_name(function, words):
    torch.manual_seed(0)
    teacher = LiveTeacher(Saying(function), name="T1")
    with pytest.raises(UserError, match=rf"the teacher T1 says of the images 0, 1 is {words}"):
        teacher(tiny_batch())


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z,
        lambda z: z.log_softmax(1),
        lambda z: z.softmax(1).log(),
        lambda z: z.relu() * 5 + 0.1,
        lambda z: 1e-4 * z,
        lambda z: z - z.mean(1, keepdim=True) + 1 / 3,  # sums to 1, but is negative somewhere
    ],
)
def test_what_may_be_logits_is_taken(function):
    torch.manual_seed(0)
    teacher = LiveTeacher(Saying(function))
    assert teacher(tiny_batch()).logits.shape[1] == 3
    assert teacher.first_word.seen


def test_only_the_first_word_is_looked_at(monkeypatch):
    """Each look waits for the device."""
    torch.manual_seed(0)
    looks = []
    monkeypatch.setattr(distiller_module, "fault_of_logits", lambda logits: looks.append(len(logits)) or "")
    teacher = LiveTeacher(TinyModel(width=16))
    for _ in range(3):
        teacher(tiny_batch(images=4))
    assert looks == [2]


def test_maps_too_large_for_all_pairs_are_averaged_and_cells_with_padding_left_out():
    """Of 6 x 40 cells the long side alone is brought to 16; the last of those has padding in it."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, channels, 6, 40, generator=generator) for channels in (5, 7))
    valid = torch.ones(1, 6, 40, dtype=torch.bool)
    valid[..., 38:] = False
    found = distiller_module._on_bounded_grid(LOSSES["pairwise"], student, teacher, valid)
    edges = [(column * 40 // 16, -(-(column + 1) * 40 // 16)) for column in range(16)]
    pooled = [
        np.stack([image.double().numpy()[..., low:high].mean(-1) for low, high in edges], axis=-1)
        for image in (student, teacher)
    ]
    inside = np.broadcast_to([high <= 38 for _, high in edges], (1, 6, 16))
    assert inside.sum() == 6 * 15
    assert found.item() == pytest.approx(reference_pairwise(*pooled, inside), rel=1e-5)
