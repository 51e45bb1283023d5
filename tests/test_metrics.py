"""The confusion matrix and its scores, against hand-computed values and torchmetrics."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from scoring.metrics import ConfusionMatrix, image_miou


def random_maps(classes, shape=(3, 37, 41), seed=0):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, shape, generator=generator)
    mask = torch.randint(0, classes, shape, generator=generator)
    mask[torch.rand(shape, generator=generator) < 0.1] = 255
    return prediction, mask


def test_by_hand():
    confusion = ConfusionMatrix(3)
    mask = torch.tensor([[0, 0, 1, 255], [1, 1, 0, 255]])
    prediction = torch.tensor([[0, 1, 1, 2], [1, 0, 0, 0]])
    confusion.update(prediction, mask)
    assert confusion.matrix.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    scores = confusion.scores()
    assert scores.iou[:2].tolist() == [0.5, 0.5]  # 2 / (3 + 3 - 2)
    assert math.isnan(scores.iou[2])
    assert scores.classes_left_out == 1
    assert scores.miou == 0.5
    assert scores.pixel_accuracy == pytest.approx(4 / 6)
    assert scores.pixels == 6


def test_predicted_but_absent_class_scores_zero():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([[0, 2]]), torch.tensor([[0, 0]]))
    scores = confusion.scores()
    assert scores.iou[2] == 0
    assert math.isnan(scores.iou[1])
    assert math.isnan(scores.accuracy[2])  # no true pixel to recall
    assert scores.miou == pytest.approx((0.5 + 0) / 2)


@pytest.mark.parametrize("classes", [2, 21, 150])
def test_agrees_with_torchmetrics(classes):
    prediction, mask = random_maps(classes)
    confusion = ConfusionMatrix(classes)
    for one_prediction, one_mask in zip(prediction, mask, strict=True):
        confusion.update(one_prediction[None], one_mask[None])
    oracle = MulticlassJaccardIndex(classes, average=None, ignore_index=255)
    expected = oracle(prediction, mask).double()
    torch.testing.assert_close(confusion.scores().iou, expected, rtol=1e-6, atol=1e-7)
    assert confusion.matrix.sum() == (mask != 255).sum()  # every labelled pixel once


def test_background_counts():
    """A void label must not be taken for a class, nor class 0 for void."""
    confusion = ConfusionMatrix(2)
    confusion.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long))
    assert confusion.scores().pixels == 16
    assert confusion.scores().miou == 1


def test_accepts_uint8_and_leaves_its_arguments_alone():
    prediction, mask = random_maps(5)
    kept = mask.clone(), prediction.clone()
    first, second = ConfusionMatrix(5), ConfusionMatrix(5)
    first.update(prediction, mask)
    second.update(prediction.to(torch.uint8), mask.to(torch.uint8))
    assert torch.equal(first.matrix, second.matrix)
    assert torch.equal(mask, kept[0]) and torch.equal(prediction, kept[1])
    int_mask = mask.to(torch.int32)
    first.update(prediction.to(torch.int32), int_mask)
    assert torch.equal(int_mask, mask.to(torch.int32))


def test_image_without_labels_has_no_score():
    assert math.isnan(image_miou(torch.zeros(4, 4), torch.full((4, 4), 255), 3))


def test_shares_are_those_of_the_truth_by_hand():
    confusion = ConfusionMatrix(3, torch.device("cpu"))
    confusion.update(torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 1, 1, 1]]))
    scores = confusion.scores()
    assert scores.pixel_share.tolist() == [0.25, 0.75, 0]
    assert scores.accuracy[:2].tolist() == pytest.approx([1, 1 / 3])
