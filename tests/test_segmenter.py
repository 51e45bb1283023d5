"""What a network says of a picture, and how sure it is: against a float64 softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from basics.errors import UserError
from deploy.segmenter import Segmenter

CPU = torch.device("cpu")


class Bright(torch.nn.Module):
    """Logits of two classes that are linear in each pixel's red and green."""

    def forward(self, images):
        return torch.stack([3 * images[:, 0], 2 * images[:, 1]], dim=1)


def segmenter(model=None):
    return Segmenter(model or Bright(), "bright", ["a", "b"], [[0, 0, 0], [9, 9, 9]], 0, 0, CPU)


def picture(height=40, width=50, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def probabilities(image):
    """(2, H, W) in float64, normalised by hand."""
    red, green = (image[channel].numpy().astype(np.float64) / 255 for channel in (0, 1))
    logits = np.stack([3 * (red - 0.485) / 0.229, 2 * (green - 0.456) / 0.224])
    powers = np.exp(logits)
    return powers / powers.sum(0)


@pytest.mark.parametrize(("size", "tile"), [((40, 50), 0), ((200, 150), 64), ((8, 5), 0)])
def test_confidence_is_the_probability_of_the_class_in_the_mask(size, tile):
    image = picture(*size)
    said = segmenter().predict(image, tile, confidence=True)
    expected = probabilities(image)
    assert said.mask.dtype == said.confidence.dtype == torch.uint8
    assert (said.mask.numpy() == expected.argmax(0)).mean() > 0.999
    assert np.abs(said.confidence.numpy() - 255 * expected.max(0)).max() <= 0.51
    assert said.confidence.min() >= 127  # of two classes the likelier has half at least


def test_confidence_is_made_only_when_asked_for():
    assert segmenter().predict(picture()).confidence is None


def test_very_large_logits_are_certain():
    class Certain(torch.nn.Module):
        def forward(self, images):
            return torch.stack([torch.full_like(images[:, 0], 1e4), images[:, 0]], dim=1)

    said = segmenter(Certain()).predict(picture(), confidence=True)
    assert (said.confidence == 255).all() and (said.mask == 0).all()


def test_a_file_of_masks_has_no_confidence():
    model = Bright()
    model.decides_only = True
    assert segmenter(model).mask(picture()).shape == (40, 50)
    with pytest.raises(UserError, match="without --argmax"):
        segmenter(model).predict(picture(), confidence=True)


def test_rows_are_asked_for_from_the_top_and_never_all_at_once():
    image, asked = picture(300, 100), []

    def read_rows(top, bottom):
        asked.append((top, bottom))
        return image[:, top:bottom]

    bands = list(segmenter().bands(read_rows, (300, 100), tile=64))
    assert [top for top, _ in bands] == sorted(top for top, _ in bands)
    torch.testing.assert_close(torch.cat([band.mask for _, band in bands]), segmenter().mask(image, 64))
    assert asked == sorted(asked) and max(bottom - top for top, bottom in asked) == 64
