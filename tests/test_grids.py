"""Padding, pooling and upsampling between grids."""

import pytest
import torch
from torch.nn import functional as F

from basics.errors import UserError
from basics.grids import adaptive_average, common_stride, pad_to_stride, to_stride, upsample_logits, valid_cells


def test_pad_to_stride_adds_zeros_right_and_bottom():
    images = torch.ones(1, 3, 33, 64)
    padded = pad_to_stride(images, 16)
    assert padded.shape == (1, 3, 48, 64)
    assert torch.equal(padded[..., :33, :], images)
    assert padded[..., 33:, :].eq(0).all()


@pytest.mark.parametrize("grid", [(24, 24), (17, 40), (33, 20), (16, 31)])
def test_adaptive_average_is_torchs(grid):
    torch.manual_seed(0)
    values = torch.randn(2, 3, *grid, dtype=torch.float64)
    torch.testing.assert_close(adaptive_average(values, (16, 16)), F.adaptive_avg_pool2d(values, (16, 16)))


def test_cell_is_valid_only_as_a_whole():
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[0, 3, 5] = False
    assert valid_cells(valid, 4).tolist() == [[[True, False], [True, True]]]


def test_to_stride_averages_cells():
    feature_map = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert to_stride(feature_map, 4, 8).tolist() == [[[[4.0]]]]
    assert to_stride(feature_map, 8, 8) is feature_map


def test_common_stride():
    assert common_stride(4, 16, 8) == 16
    with pytest.raises(UserError, match="common grid"):
        common_stride(6, 16)


def test_upsampling_is_half_pixel_exact():
    """A ramp over cell centres becomes the ramp over pixel centres (away from the clamped border)."""
    stride = 4
    centres = (torch.arange(8.0) + 0.5) * stride - 0.5  # pixel coordinate of each cell's centre
    logits = centres.expand(1, 1, 8, 8)
    full = upsample_logits(logits, stride, (32, 30))
    assert full.shape == (1, 1, 32, 30)
    inner = slice(stride // 2, 30 - stride // 2)
    torch.testing.assert_close(full[0, 0, 0, inner], torch.arange(30.0)[inner])
