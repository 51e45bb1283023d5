"""What we compare with: distillation, loading and validation as most repositories of the field do them.

Nothing here is slowed down on purpose: the teacher runs without gradients, student maps are enlarged before they are
lifted to the teacher's channels, masks are read as palette indices, the metric is torchmetrics' own.
"""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F
from torchvision import transforms as T
from torchvision.models.segmentation import fcn_resnet50
from torchvision.transforms import functional as TF

from basics.batch import MEAN, STD, VOID, prepare_batch
from dataset import SegmentationDataset
from networks.base import SegmentationModel

TAPS = {"layer1": "low", "layer2": "mid", "layer4": "high"}
TEACHER_CHANNELS = {"low": 256, "mid": 512, "high": 2048}


class NaiveStep:
    """Cross-entropy, KL and cosine of three feature maps, all at the resolution they come in.

    The teacher is torchvision's network as its published weights make it, auxiliary head included; its output and
    the student's are enlarged to the crop before the KL. The student's feature maps are enlarged to the teacher's
    and lifted to its channels (2,048 at stride 8 for the last).
    """

    def __init__(self, student: SegmentationModel, temperature: float = 4.0):
        self.student, self.temperature = student, temperature
        device = next(student.parameters()).device
        self.teacher = fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=student.num_classes, aux_loss=True
        ).to(device)
        self.teacher.eval()
        self.teacher_taps: dict[str, torch.Tensor] = {}
        for layer, tap in TAPS.items():
            self.teacher.backbone[layer].register_forward_hook(partial(self._keep, tap))
        self.adapters = nn.ModuleDict(
            {tap: nn.Conv2d(student.tap_channels[tap], TEACHER_CHANNELS[tap], 1) for tap in TAPS.values()}
        ).to(device)
        self.optimizer = torch.optim.AdamW([*student.parameters(), *self.adapters.parameters()], lr=5e-4)

    def _keep(self, tap: str, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.teacher_taps[tap] = output

    def losses(self, batch: dict) -> torch.Tensor:
        """The total for a prepared batch."""
        images, mask = batch["image"], batch["mask"]
        size = mask.shape[-2:]
        with torch.no_grad():
            teacher_logits = self.teacher(images)["out"]
        logits, taps = self.student.forward_taps(images)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        total = F.cross_entropy(logits, mask, ignore_index=VOID)
        t = self.temperature
        kl = F.kl_div(F.log_softmax(logits / t, 1), F.softmax(teacher_logits / t, 1), reduction="none").sum(1).mean()
        total = total + t**2 * kl
        for tap, wanted in self.teacher_taps.items():
            mine = F.interpolate(taps[tap], size=wanted.shape[-2:], mode="bilinear", align_corners=False)
            total = total + (1 - F.cosine_similarity(self.adapters[tap](mine), wanted, dim=1)).mean() / len(TAPS)
        return total

    def __call__(self, batch: dict) -> None:
        total = self.losses(batch)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


class NaiveDataset:
    """PIL images, the whole picture resized, then cropped, flipped and jittered, then float tensors."""

    def __init__(self, dataset: SegmentationDataset, crop_size: int):
        self.dataset, self.crop_size = dataset, crop_size
        self.jitter = T.ColorJitter(0.3, 0.3, 0.3)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image: Image.Image = Image.open(self.dataset.image_path(index)).convert("RGB")
        path = self.dataset.mask_path(index)
        assert path is not None  # bench.py takes a split with masks
        mask: Image.Image = Image.fromarray(self.dataset.layout.read_labels(path))
        scale = random.uniform(0.5, 2.0)
        size = (round(image.width * scale), round(image.height * scale))
        image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
        crop = self.crop_size
        pad = (0, 0, max(crop - size[0], 0), max(crop - size[1], 0))
        if any(pad):
            image, mask = ImageOps.expand(image, pad, fill=0), ImageOps.expand(mask, pad, fill=VOID)
        left, top = random.randint(0, image.width - crop), random.randint(0, image.height - crop)
        window = (left, top, left + crop, top + crop)
        image, mask = image.crop(window), mask.crop(window)
        if random.random() < 0.5:
            image, mask = TF.hflip(image), TF.hflip(mask)
        pixels = TF.normalize(TF.to_tensor(self.jitter(image)), MEAN, STD)
        return pixels, torch.from_numpy(np.array(mask)).long()


class NaiveValidation:
    """argmax over the enlarged logits, and torchmetrics' Jaccard index."""

    def __init__(self, model: nn.Module, num_classes: int, device: torch.device):
        from torchmetrics.classification import MulticlassJaccardIndex

        self.model, self.device = model, device
        self.metric = MulticlassJaccardIndex(num_classes, average="none", ignore_index=VOID).to(device)

    @torch.no_grad()
    def __call__(self, batch: dict) -> None:
        batch = prepare_batch(batch, self.device)
        self.metric.update(self.model(batch["image"]).argmax(1), batch["mask"])
