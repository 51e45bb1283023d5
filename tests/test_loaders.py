"""What loader processes do: they cut a cached teacher's windows, and those that score stay between validations."""

from __future__ import annotations

import copy
import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from basics.batch import prepare_batch
from dataset import EpochSampler, build_dataset
from kd.cached_teacher import CachedTeacher, collate_for
from kd.class_map import ClassMap
from kd.distiller import LiveTeacher, Recipe, pad_batch
from kd.mapped_teacher import MappedTeacher
from kd.teacher_cache import open_teacher_cache
from scoring.protocol import evaluate_model, scoring_loader
from segdata.transforms import TrainTransform
from tests.tiny import TinyModel

CPU = torch.device("cpu")
CLASSES = 7
RECIPE = Recipe({"ce": 1.0, "kl": 1.0, "cosine": 1.0})


@pytest.fixture(scope="module")
def train_set(demo_data):
    return build_dataset("demo", demo_data, "train", TrainTransform(64))


@pytest.fixture(scope="module")
def cached(train_set, tmp_path_factory):
    torch.manual_seed(0)
    teacher = TinyModel(num_classes=CLASSES, width=32, logit_stride=8).eval()
    return open_teacher_cache(tmp_path_factory.mktemp("cache"), teacher, "tiny", train_set, recipe=RECIPE)


def batches(train_set, collate, crop_size=64, **options):
    data = copy.copy(train_set)
    data.transform = TrainTransform(crop_size)
    sampler = EpochSampler(8, seed=1)
    return list(DataLoader(data, batch_size=4, sampler=sampler, collate_fn=collate, **options))


@pytest.mark.parametrize("crop_size", [64, 72])  # the second is padded to the stride, box and all
@pytest.mark.parametrize(("workers", "method"), [(0, None), (1, "fork"), (1, "spawn")])
def test_windows_cut_by_the_loader_are_those_cut_in_the_step(
    train_set, cached, crop_size, workers, method, monkeypatch
):
    if method and method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    if method == "spawn" and crop_size == 72:
        pytest.skip("once is enough: a new process takes seconds")
    stride = 16
    plain = [pad_batch(prepare_batch(batch, CPU), stride) for batch in batches(train_set, default_collate, crop_size)]
    in_the_step = [cached(batch) for batch in plain]
    options = {"num_workers": workers, "multiprocessing_context": method} if workers else {}
    cut = batches(train_set, collate_for(cached, stride), crop_size, **options)

    def refuse(self, batch):
        raise AssertionError("the step has nothing left to cut")

    monkeypatch.setattr(CachedTeacher, "cut", refuse)
    for batch, expected in zip(cut, in_the_step, strict=True):
        told = cached(pad_batch(prepare_batch(batch, CPU), stride))
        assert torch.equal(told.logits, expected.logits) and told.taps.keys() == expected.taps.keys()
        for tap, values in expected.taps.items():
            assert torch.equal(told.taps[tap], values), tap
        assert told.logits.shape[-1] * cached.logit_stride == crop_size + -crop_size % stride


def test_only_a_cached_teacher_has_its_say_in_the_loader(cached):
    mapped = MappedTeacher(cached, ClassMap.identity([str(n) for n in range(CLASSES)]), 0.5)
    assert collate_for(mapped, 16).func is collate_for(cached, 16).func
    assert collate_for(None, 16) is collate_for(LiveTeacher(TinyModel()), 16) is default_collate


# -- scoring -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_score_stay_between_validations(demo_data, method):
    """The same processes, the same scores, and no random number taken from the training."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    val_set = build_dataset("demo", demo_data, "val")
    torch.manual_seed(0)
    model = TinyModel(val_set.num_classes)
    alone = evaluate_model(model, val_set, CPU, progress=False)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    others = set(multiprocessing.active_children())
    try:
        loader = scoring_loader(val_set, CPU, 1, workers=1, lasting=True)
        state, seen = torch.get_rng_state(), []
        for _ in range(3):
            evaluation = evaluate_model(model, val_set, CPU, loader=loader, progress=False)
            seen.append({child.pid for child in set(multiprocessing.active_children()) - others})
            assert evaluation.loss == alone.loss and evaluation.scores.miou == alone.scores.miou
        assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 1
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_a_broken_off_validation_leaves_the_loader_usable(demo_data):
    """As after a signal: what was fetched ahead is thrown away, the next pass begins at the first picture."""
    val_set = build_dataset("demo", demo_data, "val")
    loader = scoring_loader(val_set, CPU, 1, workers=1, lasting=True)
    for batch in loader:
        assert batch["index"].tolist() == [0]
        break
    assert [batch["index"].item() for batch in loader] == list(range(len(val_set)))
