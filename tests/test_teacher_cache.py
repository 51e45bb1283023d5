"""The teacher cache: exact where it must be, refused where it does not fit, whole whatever happens to its builder."""

import copy
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from basics.batch import prepare_batch
from basics.errors import UserError
from dataset import build_dataset
from kd import cache_builder, cache_store
from kd.cache_builder import CacheBuilder
from kd.cache_store import CacheWriter, RecordLayout, locked
from kd.cached_teacher import CachedTeacher, measure_agreement
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe, pad_batch
from kd.losses import LOSSES
from kd.projection import fit_projection
from kd.teacher_cache import describe, open_teacher_cache, weights_sha256
from networks.base import SegmentationModel
from networks.folding import fold_batchnorm
from segdata.layouts import SplitFiles
from segdata.transforms import TrainTransform
from tests import forks
from tests.conftest import ROOT
from tests.tiny import TinyModel

CPU = torch.device("cpu")
CLASSES = 7
EVERYTHING = Recipe({"ce": 1.0, "kl": 1.0, "cosine": 1.0, "pixelwise": 1.0}, temperature=4.0)


def make_teacher(seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyModel(num_classes=CLASSES, width=32, logit_stride=8, **options)
        model.num_classes = CLASSES
        model.classifier.weight.data.mul_(10)  # softmaxes that say something
        return model.eval()


def live_teacher() -> LiveTeacher:
    """The teacher as a live run and the cache's build take it."""
    return LiveTeacher(fold_batchnorm(make_teacher()))


@pytest.fixture(scope="module")
def train_set(demo_data):
    return build_dataset("demo", demo_data, "train", TrainTransform(64))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def cached(cache_dir, train_set):
    return open_teacher_cache(cache_dir, make_teacher(), "tiny", train_set, recipe=EVERYTHING)


def crops(train_set, indices, seed=0, **options):
    """A prepared batch of training crops."""
    data = copy.copy(train_set)
    data.transform = TrainTransform(64, **options)
    return prepare_batch(default_collate([data[index, seed + index] for index in indices]), CPU)


def whole(train_set):
    """The same split as full images."""
    full = copy.copy(train_set)
    full.transform = None
    return full


def full_batch(train_set, index):
    """One full image as a prepared batch, padded as the distiller pads it."""
    return pad_batch(prepare_batch(default_collate([whole(train_set)[index]]), CPU), 16)


# -- what it serves ----------------------------------------------------------------------------------


def test_full_image_at_scale_one_is_the_live_output_to_fp16(train_set, cached):
    """Padded to the stride, as the distiller pads it: every cell, not only those inside the image."""
    for index in (0, 5):
        batch = full_batch(train_set, index)
        live, told = live_teacher()(batch), cached(batch)
        assert told.logits.shape == live.logits.shape
        assert torch.equal(told.logits, live.logits.half().float())


def test_uint8_is_within_half_a_step(train_set, tmp_path):
    cached = open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set, dtype="uint8")
    batch = full_batch(train_set, 3)
    live, told = live_teacher()(batch).logits, cached(batch).logits
    step = (live.max() - live.min()) / 255
    assert (told - live).abs().max() <= step * 0.501
    assert (told - live).abs().max() > 0


def test_losses_of_the_full_image_agree_with_live_to_the_storage_precision(train_set, cached):
    """Every logit loss through the distiller, the student's logits at stride 4 and the teacher's at 8."""
    recipe = Recipe({"ce": 1.0} | {name: 1.0 for name, spec in LOSSES.items() if spec.kind == "logits"}, 4.0)
    torch.manual_seed(0)
    student = TinyModel(num_classes=CLASSES).eval()
    batch = prepare_batch(
        default_collate([whole(train_set)[2]]), CPU
    )  # the distiller itself pads to the stride, box and all
    values = []
    for teacher in (live_teacher(), cached):
        distiller = Distiller(DistilledStudent(student, recipe, teacher).eval(), student, recipe, teacher)
        with torch.no_grad():
            values.append(distiller.losses(batch))
    for name in recipe.weights:
        assert values[1][name].item() == pytest.approx(values[0][name].item(), rel=2e-3), name


def test_a_flipped_crop_is_the_flip_of_the_crop(train_set, cached):
    batch = crops(train_set, range(6))
    mirrored = batch | {"flip": ~batch["flip"]}
    one, other = cached(batch), cached(mirrored)
    assert torch.equal(one.logits.flip(-1), other.logits)
    for tap in one.taps:
        assert torch.equal(one.taps[tap].flip(-1), other.taps[tap])


def test_the_batch_is_as_each_crop_by_itself(train_set, cached):
    """Images of different sizes lie side by side in one tensor: none may see its neighbour's padding."""
    batch = crops(train_set, range(8))
    together = cached(batch)
    for n in range(8):
        one = {key: batch[key][n : n + 1] for key in ("image", "index", "box", "flip")}
        valid = batch["valid"][n : n + 1]
        alone = cached(one)
        inside = -F.max_pool2d(-valid[:, None].float(), 8) > 0.5
        torch.testing.assert_close(together.logits[n : n + 1] * inside, alone.logits * inside)


def test_the_border_of_the_smaller_image_is_its_own(tmp_path):
    """Enlarged corners of a 32- and a 96-pixel image in one batch: the small one ends where the other goes on."""
    images = [["a", 32, 32, 1], ["b", 96, 96, 1]]
    made_from = {"teacher": "t", "dtype": "fp16", "pad": 16, "maps": {"logits": [3, 8]}, "images": images}
    layout = RecordLayout(made_from)
    records = [layout.encode(index, {"logits": 5 + torch.rand(layout.shape("logits", index))}) for index in (0, 1)]
    (tmp_path / "outputs.bin").write_bytes(b"".join(records))
    teacher = CachedTeacher(tmp_path, {"made_from": made_from})
    batch = {
        "image": torch.zeros(2, 3, 64, 64),
        "index": torch.tensor([0, 1]),
        "box": torch.tensor([[16.0, 16.0, 32.0, 32.0], [16.0, 16.0, 80.0, 80.0]]),
        "flip": torch.tensor([False, False]),
    }
    told = teacher(batch).logits[0].numpy()
    grid = teacher.reader.windows("logits", [0], [(0, 4)], [(0, 4)])[0].double().numpy()
    np.testing.assert_allclose(told, reference_crop(grid, (16, 16, 32, 32), False, 8, (8, 8), 1), atol=1e-5)


def test_a_teacher_of_stride_eight_has_its_last_map_at_sixteen(train_set, tmp_path):
    """Its images are padded further than it needs, so that the coarser grid is exact, too."""
    model = make_teacher(high_stride=8)
    model.stride = 8
    cached = open_teacher_cache(tmp_path, model, "tiny", train_set, recipe=Recipe({"ce": 1.0, "cosine": 1.0}))
    batch = full_batch(train_set, 0)
    live, told = LiveTeacher(fold_batchnorm(model))(batch), cached(batch)
    assert torch.equal(told.logits, live.logits.half().float())
    low = live.taps["low"]  # 32 channels: stored as they are
    torch.testing.assert_close(told.taps["low"], low, atol=2e-3, rtol=2e-3)
    high = F.avg_pool2d(live.taps["high"], 2)
    assert told.taps["high"].shape[-2:] == high.shape[-2:] and cached.tap_strides == {"low": 4, "mid": 8, "high": 16}
    measured = cached.manifest["feature_maps"]["high"]
    assert measured["stride"] == 8 and measured["kept_stride"] == 16
    assert measured["variance_kept"] < measured["grid_variance_kept"] and measured["grid_variance_kept"] > 0.88


def reference_crop(grid, box, flip, stride, cells, samples):
    """Half-pixel bilinear sampling in float64: ``samples`` points a cell and side, averaged; clamped at the border."""
    channels, height, width = grid.shape
    x0, y0, x1, y1 = (value / stride for value in box)
    out = np.zeros((channels, *cells))

    def at(y, x):
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        fy, fx = y - top, x - left
        return (1 - fy) * ((1 - fx) * grid[:, top, left] + fx * grid[:, top, right]) + fy * (
            (1 - fx) * grid[:, bottom, left] + fx * grid[:, bottom, right]
        )

    for i in range(cells[0]):
        for j in range(cells[1]):
            column = cells[1] - 1 - j if flip else j
            points = [
                at(
                    y0 + (y1 - y0) * (i + (a + 0.5) / samples) / cells[0] - 0.5,
                    x0 + (x1 - x0) * (column + (b + 0.5) / samples) / cells[1] - 0.5,
                )
                for a in range(samples)
                for b in range(samples)
            ]
            out[:, i, j] = np.mean(points, axis=0)
    return out


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.7])
def test_crops_by_the_formula(train_set, cached, scale):
    """Scaled, flipped and padded crops against a float64 reference on the stored grid."""
    batch = crops(train_set, [1, 4, 7], scale=(scale, scale))
    told = cached(batch).logits
    for n in range(3):
        index, box = int(batch["index"][n]), batch["box"][n].tolist()
        rows, columns = cached.reader.layout.shape("logits", index)[1:]
        grid = cached.reader.windows("logits", [index], [(0, rows)], [(0, columns)])[0].double().numpy()
        samples = math.ceil((box[2] - box[0]) / 8 / 8)  # stored cells in an output cell
        expected = reference_crop(grid, box, bool(batch["flip"][n]), 8, (8, 8), samples)
        inside = (-F.max_pool2d(-batch["valid"][n : n + 1, None].float(), 8) > 0.5)[0].numpy()
        np.testing.assert_allclose(told[n].numpy() * inside, expected * inside, atol=1e-4)


def test_crops_that_the_distiller_pads_keep_their_place(train_set, cached):
    """A 56-pixel crop is padded to 64: its cells are those of the bigger window that the padding stands for."""
    data = copy.copy(train_set)
    for flip in (0.0, 1.0):
        data.transform = TrainTransform(56, scale=(1, 1), flip=flip)
        batch = prepare_batch(default_collate([data[index, index] for index in (0, 3)]), CPU)
        padded = pad_batch(batch, 16)
        told = cached(padded).logits
        boxes = batch["box"].clone()
        boxes[:, 3] += 8
        boxes[:, 0 if flip else 2] += -8 if flip else 8
        assert torch.equal(padded["box"], boxes)
        expected = cached(padded | {"box": boxes}).logits
        assert torch.equal(told, expected)


def test_feature_maps_keep_angles_and_lengths(train_set, cached):
    """Pairwise products of the projected vectors are those of the teacher's, up to the variance that is left out."""
    batch = full_batch(train_set, 6)
    live, told = live_teacher()(batch), cached(batch)
    for tap, loose in (("low", 0.01), ("mid", 0.01), ("high", 0.1)):  # 32, 64 and 128 channels
        assert told.taps[tap].shape[-2:] == live.taps[tap].shape[-2:]
        assert (told.taps[tap].shape[1] < 128) if tap == "high" else told.taps[tap].shape == live.taps[tap].shape
        full, small = live.taps[tap].flatten(2)[0], told.taps[tap].flatten(2)[0]
        true, kept = full.T @ full, small.T @ small
        assert (kept - true).abs().max() <= loose * true.abs().max(), tap


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.rotatable])
def test_every_kept_loss_trains_with_the_cache(train_set, cache_dir, cached, name):
    recipe = Recipe({"ce": 1e-9, name: 1.0})
    torch.manual_seed(0)
    student = TinyModel(num_classes=CLASSES)
    distiller = Distiller(DistilledStudent(student, recipe, cached), student, recipe, cached)
    loss = distiller.losses(crops(train_set, range(4)))[name]
    loss.backward()
    assert loss.item() > 0
    assert sum(p.grad.abs().sum().item() for p in student.backbone.parameters() if p.grad is not None) > 0


def test_terms_on_other_maps_are_served_from_the_cache(train_set, tmp_path):
    """The decoder's map is kept because a term names it; a loss on the teacher's own channels is refused as ever."""
    recipe = Recipe({"ce": 1e-9, "cosine@decoder": 1.0, "at@high": 1.0})
    other = open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set, recipe=recipe)
    assert other.folder.name.endswith("_decoder_high") and sorted(other.tap_channels) == ["decoder", "high"]
    torch.manual_seed(0)
    student = TinyModel(num_classes=CLASSES)
    distiller = Distiller(DistilledStudent(student, recipe, other), student, recipe, other)
    losses = distiller.losses(crops(train_set, range(4)))
    assert losses["cosine@decoder"] > 0 and losses["at@high"] > 0
    again = Recipe({"ce": 1e-9, "at@high": 1.0})
    assert open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set, recipe=again).folder == other.folder
    for term in ("csd@high", "cwd_feat", "pkd@high", "attnfd"):
        with pytest.raises(UserError, match=rf"loss '{term}' needs the teacher's own channels"):
            open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set, recipe=Recipe({"ce": 1.0, term: 1.0}))


def test_pairwise_is_the_live_loss_up_to_the_projection(train_set, cached):
    """No adapter stands between: the projected maps must give the loss of the full ones."""
    recipe = Recipe({"ce": 1.0, "pairwise": 1.0})
    torch.manual_seed(0)
    student = TinyModel(num_classes=CLASSES).eval()
    batch = full_batch(train_set, 4)
    values = {}
    for kind, teacher in (("live", live_teacher()), ("cached", cached)):
        model = DistilledStudent(student, recipe, teacher).eval()
        with torch.no_grad():
            values[kind] = Distiller(model, student, recipe, teacher).losses(batch)
    assert values["cached"]["pairwise"].item() == pytest.approx(values["live"]["pairwise"].item(), rel=0.05)


# -- what it says of itself --------------------------------------------------------------------------


def test_agreement_is_measured_and_written_down(cached):
    manifest = json.loads((cached.folder / "manifest.json").read_text())
    agreement = manifest["agreement"]
    assert agreement["crops"] == 16 and agreement["cells"] > 0
    assert 0 < agreement["argmax_agreement"] <= 1 and 0 <= agreement["mean_abs_dp"] < 0.3
    assert manifest["made_from"]["images"][0][0] == "demo_train_0000"
    assert manifest["live_seconds_per_crop"] > 0 and manifest["pays_after_epochs"] >= 1
    assert not list(cached.folder.glob("journal*")) and not list(cached.folder.glob("building*"))


def test_agreement_by_hand(train_set, cached):
    """The crops are those of seed = index; each cell counts that lies in the image altogether."""
    data = copy.copy(train_set)
    data.transform = TrainTransform(96)  # some reach beyond the image
    agreement, _ = measure_agreement(cached, live_teacher(), data, CPU, batch_size=5)
    differences, same = [], []
    for index in range(16):
        batch = prepare_batch(default_collate([data[index, index]]), CPU)
        p_live = live_teacher()(batch).logits.double().softmax(1)
        p_cached = cached(batch).logits.double().softmax(1)
        for i in range(12):
            for j in range(12):
                if batch["valid"][0, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].all():
                    differences.append((p_live - p_cached)[0, :, i, j].abs().mean().item())
                    same.append(p_live[0, :, i, j].argmax().item() == p_cached[0, :, i, j].argmax().item())
    assert agreement["cells"] == len(same) < 16 * 12 * 12
    assert agreement["mean_abs_dp"] == pytest.approx(np.mean(differences), rel=1e-4)
    assert agreement["argmax_agreement"] == pytest.approx(np.mean(same))


def test_agreement_is_perfect_where_the_crop_is_the_image(demo_data, train_set, tmp_path, capsys):
    """The same measure on whole images: nothing between live and cached but the storage type."""
    cached = open_teacher_cache(tmp_path, make_teacher(), "tiny", whole(train_set))
    assert cached.manifest["agreement"]["argmax_agreement"] > 0.999
    assert cached.manifest["agreement"]["mean_abs_dp"] < 1e-3
    printed = capsys.readouterr().out
    assert "GB to write" in printed and "pays for itself after" in printed and "mean |dp|" in printed


def test_projection_is_orthonormal_and_holds_the_mean():
    torch.manual_seed(0)
    vectors = torch.randn(2000, 80) * torch.linspace(0.1, 3, 80) + 5
    projection = fit_projection(vectors.split(100), 80)
    torch.testing.assert_close(projection.basis @ projection.basis.T, torch.eye(projection.dims), atol=1e-5, rtol=0)
    torch.testing.assert_close(projection.basis.T @ projection.offset, projection.mean, atol=1e-3, rtol=1e-4)
    centred = (vectors - vectors.mean(0)).double()
    share = (centred @ projection.basis.T.double()).square().sum() / centred.square().sum()
    assert 0.9 < share < 0.93
    restored = projection.restored(projection.centred(vectors.T[None, :, :, None]))[0, :, :, 0].T
    error = (vectors - restored).double().square().sum() / centred.square().sum()
    assert error.item() == pytest.approx(1 - share.item(), abs=1e-4)
    small = fit_projection([vectors[:, :10]], 10)
    assert torch.equal(small.basis, torch.eye(10))


def test_a_projection_has_what_other_images_need():
    """Of few images with their own directions, the components of one half keep little of the other half."""
    torch.manual_seed(0)
    bases = [torch.randn(6, 100) for _ in range(8)]
    images = [torch.randn(200, 6) @ basis for basis in bases]  # six directions each
    everything = torch.cat(images)
    covariance = np.cov(everything.numpy().T)
    spectrum = np.linalg.eigvalsh(covariance)[::-1].cumsum() / np.trace(covariance)
    enough_here = int((spectrum < 0.9).sum()) + 1
    assert fit_projection(images, 100).dims > 1.5 * enough_here
    alike = everything[torch.randperm(len(everything))].split(200)
    assert abs(fit_projection(alike, 100).dims - enough_here) <= 2
    assert fit_projection(images[:1], 100).dims <= 7  # nothing else to look at
    assert fit_projection([torch.zeros(5, 100)], 100).dims >= 1  # a dead map


def test_what_is_left_of_feature_maps_by_hand(train_set, tmp_path, capsys):
    """The share of variance and the cosine distance in float64, of the maps that the cache gives whole images."""
    model = make_teacher(high_stride=8)
    cached = open_teacher_cache(tmp_path, model, "tiny", train_set, recipe=EVERYTHING, dtype="uint8")
    printed = capsys.readouterr().out
    projection = torch.load(cached.folder / "projection.pth", weights_only=True)["high"]
    basis, mean = (projection[key].double().numpy() for key in ("basis", "mean"))
    errors = squares = grid_errors = grid_squares = 0.0
    distances, live = [], LiveTeacher(fold_batchnorm(model))
    for index in range(16):
        batch = full_batch(train_set, index)
        true = live(batch).taps["high"][0].double().numpy()  # stride 8
        kept = np.einsum("kd,khw->dhw", basis, cached(batch).taps["high"][0].double().numpy())  # stride 16
        height, width = whole(train_set)[index]["image"].shape[-2:]
        for y in range(height // 8):
            for x in range(width // 8):
                f, g = true[:, y, x], kept[:, y // 2, x // 2]
                errors, squares = errors + ((f - g) ** 2).sum(), squares + ((f - mean) ** 2).sum()
                distances.append(1 - f @ g / np.sqrt((f @ f) * (g @ g)))
        for y in range(height // 16):
            for x in range(width // 16):
                f, g = true[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2)), kept[:, y, x]
                grid_errors, grid_squares = grid_errors + ((f - g) ** 2).sum(), grid_squares + ((f - mean) ** 2).sum()
    measured = json.loads((cached.folder / "manifest.json").read_text())["feature_maps"]["high"]
    assert measured["variance_kept"] == pytest.approx(1 - errors / squares, rel=1e-3)
    assert measured["grid_variance_kept"] == pytest.approx(1 - grid_errors / grid_squares, rel=1e-3)
    assert measured["cosine_distance"] == pytest.approx(np.mean(distances), rel=1e-3)
    assert measured["images"] == 16 and measured["dims"] == len(basis) < measured["channels"] == 128
    cells = np.mean([math.prod(cached.reader.layout.shape("high", index)[1:]) for index in range(16)])
    assert measured["mb_per_image"] == pytest.approx(cells * len(basis) / 1e6)
    assert f"high is kept with {len(basis)} of 128 channels at stride 16" in printed
    assert f"{100 * measured['variance_kept']:.0f} % of its variance" in printed


def test_an_older_cache_serves_its_blurred_maps_and_says_so(train_set, tmp_path, capsys):
    """Feature maps were once averaged to stride 16 and cut to 64 dimensions; their records are read by their papers."""
    recipe = Recipe({"ce": 1.0, "kl": 1.0, "cosine@high": 1.0})
    whole_one = open_teacher_cache(tmp_path / "new", make_teacher(), "tiny", train_set, recipe=recipe)
    manifest = json.loads((whole_one.folder / "manifest.json").read_text())
    old = copy.deepcopy(manifest)
    del old["made_from"]["dims"], old["feature_maps"]
    old["made_from"]["projection"] = {"kind": "mean and principal components", "dims": 64, "images": 48}
    old["made_from"]["maps"]["high"] = [64, 16]
    layouts = RecordLayout(manifest["made_from"]), RecordLayout(old["made_from"])
    folder = tmp_path / "old" / whole_one.folder.name
    folder.mkdir(parents=True)
    records = []
    for index in range(16):
        _, rows, columns = layouts[0].shape("logits", index)
        logits = whole_one.reader.windows("logits", [index], [(0, rows)], [(0, columns)])[0]
        high = torch.zeros(layouts[1].shape("high", index))
        records.append(layouts[1].encode(index, {"logits": logits, "high": high}))
    (folder / "outputs.bin").write_bytes(b"".join(records))
    (folder / "manifest.json").write_text(json.dumps(old))
    torch.save({"high": {"basis": torch.eye(64, 128), "mean": torch.ones(128), "kept": 0.7}}, folder / "projection.pth")
    batch = full_batch(train_set, 3)
    for wanted in (None, recipe):
        capsys.readouterr()
        served = open_teacher_cache(tmp_path / "old", make_teacher(), "tiny", train_set, recipe=wanted)
        assert served.folder == folder and torch.equal(served(batch).logits, whole_one(batch).logits)
        assert ("keeps feature maps blurred" in capsys.readouterr().out) == (wanted is not None)
    assert served.tap_channels == {"high": 64} and served.tap_strides == {"high": 16}
    inside = served(batch).taps["high"][:, :, :2, :2]
    assert torch.equal(inside, torch.ones_like(inside))  # the stored zeros and the mean


# -- what it refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "sha256"),
        ({"logit_stride": 4}, "logits has channels and stride"),
        ({"renamed": True}, "1 of 16 images are not there, such as new"),
        ({"swapped": True}, "2 images differ"),
    ],
)
def test_a_cache_made_from_something_else_is_refused(train_set, tmp_path, change, words):
    open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    model, data = make_teacher(change.get("seed", 0)), copy.copy(train_set)
    if "logit_stride" in change:
        model.logit_stride = 4
    files = data.files
    data.files = copy.copy(files)
    if "renamed" in change:
        data.files.ids = [*files.ids[:-1], "new"]
    if "swapped" in change:  # the same names for other files
        data.files.images = [*files.images[1::-1], *files.images[2:]]
    with pytest.raises(UserError, match=words) as refusal:
        open_teacher_cache(tmp_path, model, "tiny", data)
    assert "\n" not in str(refusal.value) and "--cache-dir" in str(refusal.value)


def test_what_else_lies_beside_the_caches_is_passed_over(train_set, tmp_path):
    (tmp_path / "my_photos").mkdir()
    (tmp_path / "my_photos" / "manifest.json").write_text('{"name": "an app for the web"}')
    open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    assert (tmp_path / "my_photos" / "manifest.json").read_text() == '{"name": "an app for the web"}'


def test_fewer_images_in_another_order_are_served_their_own(train_set, tmp_path, capsys):
    """Label budgets share one cache: what is asked for by index belongs to that image, wherever its record lies."""
    whole = open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    capsys.readouterr()
    fewer = copy.copy(train_set)
    fewer.files = train_set.files.part([9, 2, 15])
    part = open_teacher_cache(tmp_path, make_teacher(), "tiny", fewer)
    assert part.folder == whole.folder and "done" not in capsys.readouterr().out
    for place, index in enumerate([9, 2, 15]):
        ours, theirs = (default_collate([data[at, 7]]) for data, at in ((fewer, place), (train_set, index)))
        assert ours["id"] == theirs["id"] and ours["index"] != theirs["index"]
        assert torch.equal(part(prepare_batch(ours, CPU)).logits, whole(prepare_batch(theirs, CPU)).logits)


def test_an_unfinished_cache_goes_on_for_the_same_images_in_another_order(train_set, tmp_path, monkeypatch):
    """Another label budget or seed puts the same images in another order: what is done is done."""
    whole = open_teacher_cache(tmp_path / "whole", make_teacher(), "tiny", train_set)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            open_teacher_cache(tmp_path / "parts", make_teacher(), "tiny", train_set)
    turned = copy.copy(train_set)
    turned.files = train_set.files.part(range(15, -1, -1))
    parts = open_teacher_cache(tmp_path / "parts", make_teacher(), "tiny", turned)
    for index in (0, 2, 9, 15):
        ours, theirs = (default_collate([data[at, 7]]) for data, at in ((turned, 15 - index), (train_set, index)))
        assert ours["id"] == theirs["id"]
        assert torch.equal(parts(prepare_batch(ours, CPU)).logits, whole(prepare_batch(theirs, CPU)).logits)


def test_other_pictures_of_equal_name_and_size_are_refused(train_set, tmp_path):
    """Two folders of uncompressed pictures: names, sides and bytes agree, the pixels do not."""
    sets = []
    for seed, place in enumerate("ab"):
        images = []
        for number in range(4):
            path = tmp_path / place / f"{number}.bmp"
            path.parent.mkdir(exist_ok=True)
            noise = np.random.default_rng([seed, number]).integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(noise).save(path)
            images.append(path)
        data = copy.copy(train_set)
        data.files = SplitFiles([str(number) for number in range(4)], images, None)
        sets.append(data)
    open_teacher_cache(tmp_path / "cache", make_teacher(), "tiny", sets[0])
    with pytest.raises(UserError, match="4 images differ"):
        open_teacher_cache(tmp_path / "cache", make_teacher(), "tiny", sets[1])


def test_an_unfinished_cache_of_something_else_is_refused(train_set, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    monkeypatch.undo()
    with pytest.raises(UserError, match="sha256"):
        open_teacher_cache(tmp_path, make_teacher(1), "tiny", train_set)


def test_losses_that_need_more_than_a_projection_are_refused(train_set, tmp_path):
    with pytest.raises(UserError, match="csd"):
        open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set, recipe=Recipe({"ce": 1.0, "csd": 1.0}))
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_noticed(train_set, tmp_path):
    cached = open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    os.truncate(cached.folder / "outputs.bin", 1000)
    with pytest.raises(UserError, match="damaged"):
        open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    (cached.folder / "manifest.json").write_text('{"made_from": 3}')
    with pytest.raises(UserError, match="cannot be read"):
        open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)


def test_a_finished_cache_runs_no_teacher_and_serves_fewer_maps(train_set, cache_dir, cached, monkeypatch):
    monkeypatch.setattr(TinyModel, "forward_taps", None)
    logits_only = open_teacher_cache(cache_dir, make_teacher(), "tiny", train_set, recipe=Recipe({"ce": 1.0, "kl": 1}))
    assert logits_only.folder == cached.folder and logits_only.tap_channels == {}
    again = open_teacher_cache(cache_dir, make_teacher(), "tiny", train_set, recipe=EVERYTHING)
    assert again.folder == cached.folder and set(again.tap_channels) == {"low", "mid", "high", "decoder"}


def test_the_hash_is_of_the_weights():
    model = make_teacher()
    assert weights_sha256(model) == weights_sha256(make_teacher()) != weights_sha256(make_teacher(1))
    model.classifier.bias.data[0] += 1e-6
    assert weights_sha256(model) != weights_sha256(make_teacher())


# -- what happens to its builder ---------------------------------------------------------------------


def interrupt_after(monkeypatch, images, error=KeyboardInterrupt):
    """The builder is broken off after so many records."""
    append = CacheWriter.append

    def broken(self, record):
        if self.done == images:
            raise error
        append(self, record)

    monkeypatch.setattr(CacheWriter, "append", broken)


def outputs(folder):
    return (folder / "outputs.bin").read_bytes()


@pytest.fixture(scope="module")
def plain_bytes(train_set, tmp_path_factory):
    """The file that an undisturbed build writes."""
    return outputs(open_teacher_cache(tmp_path_factory.mktemp("plain"), make_teacher(), "tiny", train_set).folder)


class Fourteen(SegmentationModel):
    """A network of patches of 14 pixels, as DINOv2 has them; one map beside its logits."""

    stride = logit_stride = 14
    tap_channels, tap_strides = {"high": 6}, {"high": 14}

    def __init__(self, num_classes=CLASSES):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = nn.Conv2d(3, 6, 14, 14)
        self.classifier = nn.Conv2d(6, num_classes, 1)

    def _forward_padded(self, images):
        features = self.backbone(images)
        return self.classifier(features), {"high": features}


def test_strides_that_are_no_power_of_two(train_set, tmp_path):
    model = Fourteen().eval()
    cached = open_teacher_cache(tmp_path, model, "patches", train_set, recipe=Recipe({"ce": 1.0, "cosine@high": 1.0}))
    maps = json.loads((cached.folder / "manifest.json").read_text())["made_from"]["maps"]
    assert maps["logits"] == [CLASSES, 14] and maps["high"][1] == 14


def test_an_interrupted_build_goes_on_where_it_stopped(train_set, tmp_path, monkeypatch, capsys, plain_bytes):
    interrupt_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    monkeypatch.undo()
    cached = open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    assert "going on after 5 of 16" in capsys.readouterr().out
    assert outputs(cached.folder) == plain_bytes


def test_records_beyond_the_journal_are_written_anew(train_set, tmp_path, monkeypatch, plain_bytes):
    """As after a power cut: the file is longer than the journal says, and what is beyond may be garbage."""
    interrupt_after(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    layout = RecordLayout(json.loads((folder / "building.json").read_text())["made_from"])
    with (folder / "outputs.bin").open("r+b") as file:
        file.seek(int(layout.offsets[4]))
        file.write(os.urandom(int(layout.offsets[6] - layout.offsets[4]) + 100))
    (folder / "journal.txt").write_text("2\n4\n6")  # the last line was cut short
    assert outputs(open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set).folder) == plain_bytes


BUILDER = """
import sys, time, torch
sys.path.insert(0, {root!r})
from kd import cache_store
from kd.teacher_cache import open_teacher_cache
from tests.test_teacher_cache import make_teacher
from dataset import build_dataset
from segdata.transforms import TrainTransform
cache_store.COMMIT_SECONDS = 0
cache_store.LOCK_POLL_SECONDS = 0.05
append = cache_store.CacheWriter.append
def slow(self, record):
    time.sleep({delay})
    append(self, record)
    print("record", self.done, flush=True)
cache_store.CacheWriter.append = slow
data = build_dataset("demo", {data!r}, "train", TrainTransform(64))
print("ready", flush=True)
cached = open_teacher_cache({cache!r}, make_teacher(), "tiny", data)
print("finished", cached.folder, flush=True)
"""


def start_builder(data, cache, delay):
    code = BUILDER.format(root=str(ROOT), data=str(data), cache=str(cache), delay=delay)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def read_until(process, word):
    for line in process.stdout:
        if line.startswith(word):
            return
    pytest.fail(f"the builder ended without saying {word!r}")


def test_a_killed_build_leaves_nothing_that_is_trusted(demo_data, train_set, tmp_path, capsys, plain_bytes):
    process = start_builder(demo_data, tmp_path, delay=0.05)
    read_until(process, "record 7")
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = tmp_path.iterdir()
    assert not (folder / "manifest.json").exists()
    cached = open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    assert "going on after" in capsys.readouterr().out  # and the dead process holds no lock
    assert outputs(folder) == plain_bytes
    assert cached.folder == folder


def test_two_runs_share_one_cache(demo_data, train_set, tmp_path, monkeypatch, capsys, plain_bytes):
    """The second waits for the first, then uses what it has made: no record is computed twice."""
    process = start_builder(demo_data, tmp_path, delay=0.1)
    read_until(process, "record 2")
    monkeypatch.setattr(cache_store, "LOCK_POLL_SECONDS", 0.05)
    monkeypatch.setattr(CacheWriter, "append", None)
    cached = open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    printed = capsys.readouterr().out
    assert "waiting" in printed and "GB to write" not in printed
    read_until(process, "finished")
    assert process.wait(60) == 0
    assert outputs(cached.folder) == plain_bytes


def test_a_full_disk_is_one_line_and_costs_nothing_that_is_done(train_set, tmp_path, monkeypatch, plain_bytes):
    class FullDisk:
        """Takes four writes, then there is no room; half of the fifth arrives."""

        def __init__(self, file):
            self.file, self.writes = file, 0

        def write(self, data):
            self.writes += 1
            if self.writes > 4:
                self.file.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    start = CacheWriter.__init__

    def full(self, *args):
        start(self, *args)
        self._data = FullDisk(self._data)

    monkeypatch.setattr(CacheWriter, "__init__", full)
    with pytest.raises(UserError, match="No space left on device") as report:
        open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    assert "\n" not in str(report.value)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    assert outputs(open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set).folder) == plain_bytes


def test_too_little_room_is_told_before_writing(train_set, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="uint8"):
        open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set)
    (folder,) = tmp_path.iterdir()
    assert not outputs(folder)


def test_a_teacher_of_nonsense_is_refused(train_set, tmp_path):
    model = make_teacher()
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        open_teacher_cache(tmp_path, model, "tiny", train_set)


def test_the_lock_is_exclusive_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_store, "LOCK_POLL_SECONDS", 0.01)

    class Waited(Exception):
        pass

    def give_up(seconds):
        raise Waited

    def hold():
        with locked(tmp_path / "lock"):
            (tmp_path / "ready").touch()
            time.sleep(60)

    child = forks.fork(hold, tmp_path / "output.txt")
    forks.wait_for(tmp_path / "ready")
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", give_up)
        with pytest.raises(Waited), locked(tmp_path / "lock"):
            pass
    forks.kill(child)
    with locked(tmp_path / "lock"):  # the lock went with its owner
        pass


def test_sizes_are_as_described(train_set):
    """500 x 375 at stride 8 with 21 classes: 63 x 48 cells padded to 16 pixels, two bytes each."""
    here = describe(make_teacher(), "tiny", train_set, ["high"], "fp16")
    here |= {"images": [["a", 375, 500, 1]], "maps": {"logits": [21, 8], "high": [64, 16]}}
    layout = RecordLayout(here)
    assert layout.shape("logits", 0) == (21, 48, 64) and layout.shape("high", 0) == (64, 24, 32)
    assert layout.total_bytes == 2 * (21 * 48 * 64 + 64 * 24 * 32)
    assert RecordLayout(here | {"dtype": "uint8"}).total_bytes == 21 * 48 * 64 + 64 * 24 * 32 + 2 * 8


class Probable(TinyModel):
    """Gives probabilities for logits."""

    def _forward_padded(self, images):
        logits, taps = super()._forward_padded(images)
        return logits.softmax(1), taps


def test_a_cache_of_probabilities_is_not_built(train_set, tmp_path):
    """At the first image, not after the last."""
    with pytest.raises(UserError, match=r"the teacher prob says of the images \w+ is probabilities already"):
        open_teacher_cache(tmp_path, Probable(num_classes=CLASSES), "prob", train_set)
    (outputs,) = tmp_path.rglob("outputs.bin")
    assert outputs.stat().st_size == 0


@pytest.mark.parametrize("dtype", ["fp16", "uint8"])
def test_a_cache_of_probabilities_that_is_there_is_not_served(dtype, train_set, tmp_path, monkeypatch):
    """As earlier versions built them."""
    monkeypatch.setattr("kd.distiller.fault_of_logits", lambda logits: "")
    teacher = Probable(num_classes=CLASSES)
    open_teacher_cache(tmp_path, teacher, "prob", train_set, dtype=dtype)
    monkeypatch.undo()
    cached = open_teacher_cache(tmp_path, teacher, "prob", train_set, dtype=dtype)
    with pytest.raises(UserError, match=r"the teacher prob \(from its cache .*probabilities already"):
        cached(crops(train_set, range(4)))


# -- the builder by hand ----------------------------------------------------------------------------


def test_a_projection_keeps_just_enough():
    """The mean's direction, along which nothing varies here, and components of known variance until 90 % are kept."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(80, 80, generator=generator, dtype=torch.float64))[0]
    spectrum = np.concatenate([[0.0], 0.93 ** np.arange(79)])
    steps = torch.from_numpy(np.sqrt(spectrum))[:, None] * axes.T  # a row an axis
    image = (5 * axes[:, 0] + torch.cat([steps, -steps])).float()
    shares = np.cumsum(spectrum) / spectrum.sum()
    enough = int(np.argmax(shares >= 0.9)) + 1
    assert abs(shares - 0.9).min() > 1e-3 and 10 < enough < 60
    assert fit_projection([image, image], 80).dims == enough


def builder_of(count: int, **attributes) -> CacheBuilder:
    """One of ``count`` images that are drawn from nothing."""
    builder = CacheBuilder.__new__(CacheBuilder)
    builder.taps, builder.full = ("high",), range(count)
    builder._full_images = lambda indices, workers: [{"image": torch.zeros(1, 3, 40, 72)} for _ in indices]
    for name, value in attributes.items():
        setattr(builder, name, value)
    return builder


def test_maps_are_measured_on_images_that_no_projection_was_fitted_to():
    builder = builder_of(96, _tell=lambda batch: types.SimpleNamespace(taps={}))
    probes = [index for index, _, _ in builder._probes()]
    assert probes == [(2 * number + 1) * 96 // 32 for number in range(16)]
    assert not {*probes} & {number * 96 // 48 for number in range(48)}


def test_cells_that_are_partly_padding_have_no_say_in_a_projection(tmp_path):
    """Of 40 x 72 pixels at a stride of 16 two by four cells are whole."""
    maps = torch.randn(1, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    maps[:, :, 2] = maps[..., 4] = 1e3
    teacher = types.SimpleNamespace(tap_channels={"high": 8})
    whole = maps[0, :, :2, :4].mean((1, 2))
    builder = builder_of(1, folder=tmp_path, maps={"high": (8, 16)}, teacher=teacher, _outputs=lambda _: {"high": maps})
    torch.testing.assert_close(builder._make_projections()["high"].mean, whole)


def test_after_how_many_epochs_a_cache_pays_by_hand(train_set, tmp_path, monkeypatch):
    """3 s an image to build, 0.4 s a crop to teach live."""
    fill, measure = CacheBuilder._fill, cache_builder.measure_agreement
    monkeypatch.setattr(CacheBuilder, "_fill", lambda self, *args: fill(self, *args) and 3.0)
    monkeypatch.setattr(cache_builder, "measure_agreement", lambda *args: (measure(*args)[0], 0.4))
    cached = open_teacher_cache(tmp_path, make_teacher(), "tiny", train_set, recipe=EVERYTHING)
    assert cached.manifest["pays_after_epochs"] == 8
