"""Scores, all of them made from one integer confusion matrix over the whole split."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scores:
    """Scores of one split; every share and score lies in 0..1.

    Attributes:
        miou: mean IoU over the classes that occur in truth or prediction.
        pixel_accuracy: correctly labelled share of the labelled pixels.
        iou: (C,) float64, nan for a class absent from truth and prediction.
        accuracy: (C,) float64 recall by class, nan for a class absent from the truth.
        pixel_share: (C,) float64 share of the labelled pixels whose true class this is.
        classes_left_out: number of classes without an IoU.
        pixels: number of labelled pixels.
    """

    miou: float
    pixel_accuracy: float
    iou: torch.Tensor
    accuracy: torch.Tensor
    pixel_share: torch.Tensor
    classes_left_out: int
    pixels: int


class ConfusionMatrix:
    """Counts of (true class, predicted class) over labelled pixels, as int64 on one device.

    Only 255 (void) is dropped; background counts. Matrices of several processes are added, never averaged.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: torch.Tensor, mask: torch.Tensor) -> None:
        """Count one batch: ``prediction`` and ``mask`` are integer (N, H, W) or (H, W), on one device."""
        classes = self.num_classes
        # Void becomes an extra row that is cut off afterwards: much faster than selecting the labelled pixels,
        # and int32 halves the traffic of the counting loop.
        rows = mask.clamp(max=classes).to(torch.int32)
        cells = rows.mul_(classes).add_(prediction.to(torch.int32)).flatten()
        counts = torch.bincount(cells, minlength=(classes + 1) * classes)
        self.matrix += counts[: classes * classes].view(classes, classes)

    def scores(self) -> Scores:
        """IoU = TP / (TP + FP + FN) by class; a class predicted but absent from the truth scores 0."""
        matrix = self.matrix.cpu().double()
        hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        iou = hits / (truth + predicted - hits)  # 0/0 is nan: absent from both
        total = truth.sum()
        return Scores(
            miou=iou.nanmean().item(),
            pixel_accuracy=(hits.sum() / total).item(),
            iou=iou,
            accuracy=hits / truth,
            pixel_share=truth / total,
            classes_left_out=int(iou.isnan().sum()),
            pixels=int(total),
        )


def image_miou(prediction: torch.Tensor, mask: torch.Tensor, num_classes: int) -> float:
    """mIoU of a single image (H, W), over the classes in its truth or prediction; nan if it has no label."""
    matrix = ConfusionMatrix(num_classes, mask.device)
    matrix.update(prediction, mask)
    return matrix.scores().miou
