"""How fast networks are: one picture at a time, several networks side by side on the same pictures, all in turn.

While a split is scored, one network after the other, a machine may change its pace by half.
"""

from __future__ import annotations

import torch
from torch import nn

from basics.batch import normalize
from basics.device import autocast
from basics.tiling import blended_bands, fits
from basics.timing import interleave
from dataset import SegmentationDataset
from networks.working_size import logits_in_bands
from scoring.tables import SummaryRow

PICTURES = 20  # spread over the split, each timed once
WARMUP_ROUNDS = 2
AHEAD = 2  # untimed runs before each timed one, of which the first brings the picture to the device
LIMIT_S = 60.0  # of warm-up, and of the rounds: then fewer pictures have to do
MOST_BYTES = 2 << 30  # of networks that are kept until all are scored


class InTurn:
    """Networks and their rows; `time` puts into each row the median milliseconds of one picture.

    If the networks are too large to be kept side by side, the rows keep the time that was taken while they were scored.

    Args:
        dataset: whose pictures they are timed on.
        tile: larger pictures are run in tiles of this side; 0: none are.
        amp: off, bf16 or fp16.
    """

    def __init__(self, dataset: SegmentationDataset, tile: int = 0, amp: str = "off") -> None:
        self.dataset, self.tile, self.amp = dataset, tile, amp
        self._networks: list[tuple[SummaryRow, nn.Module, torch.device]] = []
        self._bytes: dict[str, int] = {}  # by name: a network at several sizes is kept once
        self._held: tuple[int, torch.device, torch.Tensor] | None = None

    def add(self, row: SummaryRow, model: nn.Module, device: torch.device) -> None:
        """Time ``model`` (images (N, 3, H, W), normalised -> logits (N, C, H, W); in eval mode, on ``device``), too."""
        self._bytes[row["checkpoint"]] = 4 * (row["parameters"] or 0)
        self._networks.append((row, model, device))
        if self._too_large():
            self._networks.clear()

    def time(self) -> None:
        """Run all of them, in turn."""
        if self._too_large():
            print("ms/image: taken while each network was scored; together they are too large to be timed in turn")
        variants = {
            str(place): lambda number, model=model, device=device: self._run(model, device, number)
            for place, (_, model, device) in enumerate(self._networks)
        }
        if not variants:
            return
        devices = (device for _, _, device in self._networks if device.type != "cpu")
        count = min(PICTURES, len(self.dataset))
        timings = interleave(variants, count, WARMUP_ROUNDS, next(devices, torch.device("cpu")), LIMIT_S, AHEAD)
        for name, (row, _, _) in zip(variants, self._networks, strict=True):
            row["ms_per_image"] = 1000 * timings.median(name)

    def _too_large(self) -> bool:
        return sum(self._bytes.values()) > MOST_BYTES

    @torch.inference_mode()
    def _run(self, model: nn.Module, device: torch.device, number: int) -> None:
        images = self._picture(number, device)
        with autocast(device, self.amp):
            whole = fits(images, self.tile)
            for _ in logits_in_bands(model, images) if whole else blended_bands(model, images, self.tile):
                pass

    def _picture(self, number: int, device: torch.device) -> torch.Tensor:
        """Normalised, on ``device``; one is held, and read anew for the next round."""
        if self._held is None or self._held[:2] != (number, device):
            count = min(PICTURES, len(self.dataset))
            image = self.dataset[number % count * len(self.dataset) // count]["image"]
            self._held = number, device, normalize(image[None].to(device))
        return self._held[2]
