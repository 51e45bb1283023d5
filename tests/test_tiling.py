"""Scoring in tiles: the same blending as predict.py's, no tiles where none are needed, no more memory than said."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from basics.batch import normalize
from basics.errors import UserError
from basics.memory import LiveBytes
from basics.tiling import blended_bands, blended_blocks, check_tile, fade, tile_starts
from dataset import build_dataset
from deploy.segmenter import Segmenter
from scoring.memory import memory_advice, scoring_bytes
from scoring.protocol import PROTOCOL, evaluate_model
from tests.conftest import assert_one_line_error
from tests.tiny import TinyModel

CPU = torch.device("cpu")


class Position(nn.Module):
    """Logits that depend on where in the tile a pixel lies: blending shows."""

    def forward(self, images):
        height, width = images.shape[-2:]
        rows = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
        return torch.stack([images[:, 0] + rows / 9, images[:, 1] - rows / 7, images[:, 2]], dim=1)


def blended_by_hand(network, image, tile):
    """Logits (C, H, W) in float64: every tile's weighted mean, all at once."""
    height, width = image.shape[-2:]
    total, weights = 0, np.zeros((height, width))
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            logits = network(image[None, :, top : top + tile, left : left + tile])[0].numpy().astype(np.float64)
            rows, columns = logits.shape[-2:]
            weight = np.outer(fade(rows, tile).numpy(), fade(columns, tile).numpy())
            layer = np.zeros((len(logits), height, width))
            layer[:, top : top + rows, left : left + columns] = logits * weight
            total = total + layer
            weights[top : top + rows, left : left + columns] += weight
    return total / weights


@pytest.mark.parametrize("size", [(64, 65), (150, 200), (40, 300), (300, 40), (129, 127)])
def test_bands_are_the_weighted_mean_of_all_tiles(size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    bands = list(blended_bands(Position(), images, 64))
    assert [top for top, _ in bands] == tile_starts(size[0], 64)
    together = torch.cat([band for _, band in bands], dim=2)
    assert together.shape == (2, 3, *size)
    for image, logits in zip(images, together, strict=True):
        np.testing.assert_allclose(logits.numpy(), blended_by_hand(Position(), image, 64), rtol=1e-4, atol=1e-4)


def test_wide_pictures_need_no_more_than_the_overlaps():
    """Of logits, a row of tiles as a whole would take more than is allowed here."""
    height, width, tile, classes = 400, 6400, 64, 20
    row_bytes = 4 * classes * tile * width

    def network(images):
        return images[:, :1].expand(-1, classes, -1, -1)

    with LiveBytes() as memory:
        rows = torch.zeros(1, 3, tile, width)
        blocks = blended_blocks(network, lambda top, bottom: rows[..., : bottom - top, :], (height, width), tile)
        assert sum(logits[0, 0].numel() for _, _, logits in blocks) == height * width
    assert memory.peak < 0.75 * row_bytes


@pytest.mark.parametrize("tile", [1, 63, -5])
def test_tiles_that_are_too_small_are_refused(tile, run_script, demo_checkpoint, demo_data):
    check_tile("--tile", 0)
    check_tile("--tile", 64)
    with pytest.raises(UserError, match="--eval-tile must be at least 64"):
        check_tile("--eval-tile", tile)
    options = ["--dataset", "demo", "--data-dir", demo_data, "--workers", 0, f"--eval-tile={tile}"]
    assert_one_line_error(
        run_script("evaluate.py", demo_checkpoint("compact"), *options, check=False), "--eval-tile must be at least 64"
    )


@pytest.fixture(scope="module")
def val_set(demo_data):
    return build_dataset("demo", demo_data, "val")


@pytest.fixture(scope="module")
def model(val_set):
    torch.manual_seed(0)
    return TinyModel(num_classes=val_set.num_classes)


def test_tiles_as_large_as_the_pictures_change_no_bit(model, val_set):
    largest = max(max(val_set[index]["image"].shape) for index in range(len(val_set)))
    whole = evaluate_model(model, val_set, CPU, progress=False)
    for tile in (largest, 4096):
        tiled = evaluate_model(model, val_set, CPU, tile=tile, progress=False)
        assert (tiled.scores.miou, tiled.loss) == (whole.scores.miou, whole.loss)
        assert torch.equal(tiled.scores.iou.nan_to_num(-1), whole.scores.iou.nan_to_num(-1))
        assert tiled.protocol.endswith(f"{PROTOCOL}, larger pictures in blended tiles of {tile} pixels a side")
    assert whole.protocol.endswith(PROTOCOL)


class Kept:
    def __init__(self):
        self.masks = {}

    def update(self, batch, prediction):
        self.masks |= dict(zip(batch["index"].tolist(), prediction.to(torch.uint8), strict=True))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scoring_in_tiles_decides_as_prediction_in_tiles(batch_size, model, val_set):
    names, palette = val_set.class_names, [list(colour) for colour in val_set.palette]
    segmenter = Segmenter(model.eval(), "tiny", names, palette, 0, 0, CPU)
    kept = Kept()
    tiled = evaluate_model(model, val_set, CPU, batch_size=batch_size, tile=64, watcher=kept, progress=False)
    right = labelled = 0
    for index in range(len(val_set)):
        sample = val_set[index]
        assert max(sample["image"].shape) > 64
        mask = segmenter.mask(sample["image"], tile=64)
        assert (kept.masks[index] == mask).float().mean() > 0.9999  # batches add in another order
        inside = sample["mask"] != 255
        right += int((mask == sample["mask"])[inside].sum())
        labelled += int(inside.sum())
    assert tiled.scores.pixel_accuracy == pytest.approx(right / labelled, rel=1e-4)
    assert tiled.scores.pixels == labelled


@torch.no_grad()
def test_the_loss_in_tiles_is_that_of_the_blended_logits(model, val_set):
    one, sample = copy.copy(val_set), val_set[2]
    one.files = type(val_set.files)(*[part[2:3] for part in vars(val_set.files).values()])
    logits = torch.from_numpy(blended_by_hand(model.eval(), normalize(sample["image"][None])[0], 64))
    loss = nn.functional.cross_entropy(logits[None], sample["mask"][None].long(), ignore_index=255).item()
    assert evaluate_model(model, one, CPU, tile=64, progress=False).loss == pytest.approx(loss, rel=1e-5)


# -- memory ------------------------------------------------------------------------------------------


class TwoMaps(nn.Module):
    """Takes (N, 3, H, W); at its peak two maps of ten channels are there at once."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        wide = images.new_empty(len(images), 10, *images.shape[-2:])
        wide = wide.add(1)
        return wide[:, : self.classes].clone()


def test_bytes_to_score_by_hand():
    """4 bytes a value: logits of 2 classes, their plain copy, its log-softmax, the loss; the masks, the images."""
    pixels = 3 * 100 * 200
    needed = scoring_bytes(TwoMaps(2), 2, (100, 200), 3, 0)
    scoring = 4 * pixels * (3 + 2 + 2 + 2 + 1) + 2 * 8 * pixels
    forward = 4 * pixels * (3 + 10 + 10)
    assert needed >= max(scoring, forward)
    assert needed < 1.5 * max(scoring, forward)


def test_bytes_grow_with_the_picture_but_for_tiles(model):
    whole = [scoring_bytes(model, 7, (side, 2 * side), 1, 0) for side in (512, 1024, 2048)]
    assert whole[1] == pytest.approx(4 * whole[0], rel=0.01) and whole[2] == pytest.approx(16 * whole[0], rel=0.01)
    tiled = [scoring_bytes(model, 7, (side, 2 * side), 1, 256) for side in (512, 1024, 2048)]
    pictures = (2 * 8 + 3 * 4) * 2048 * 4096  # masks and images are there whole
    assert tiled[2] - pictures < (whole[2] - pictures) / 4
    assert scoring_bytes(model, 7, (512, 512), 1, 512) == scoring_bytes(model, 7, (512, 512), 1, 0)


def test_a_network_that_looks_at_numbers_is_not_estimated():
    class Curious(nn.Module):
        def forward(self, images):
            return images if images.mean().item() > 0 else images * 2

    assert scoring_bytes(Curious(), 3, (64, 64), 1, 0) is None


def test_advice():
    assert memory_advice(1, 0, "--batch-size") == "score in tiles: --eval-tile 512"
    assert memory_advice(4, 256, "--batch-size") == "lower --batch-size or lower --eval-tile from 256"


def test_tiles_share_a_quarter_and_fade_over_it_by_hand():
    assert tile_starts(200, 64) == [0, 48, 96, 136] and tile_starts(64, 64) == [0]
    ramp = np.arange(1, 17) / 17
    np.testing.assert_allclose(fade(64, 64).numpy(), np.concatenate([ramp, np.ones(32), ramp[::-1]]), rtol=1e-6)
