"""Losses between feature maps of student and teacher on a common grid: pure functions of tensors.

Common to all: ``student`` (N, D, h, w), ``teacher`` (N, D', h, w), ``valid`` (N, h, w) bool -> scalar. D = D'
where a loss compares channel by channel (its student side then passes through a 1x1 adapter, see `LOSSES`); elsewhere
they may differ. Computed in float32 with autocast off; gradient to the student alone.

Padding (``valid`` False) is left out, whatever lies under it; void pixels stay in, because the teacher's features
are defined there too. No valid position: 0 with zero gradients. Identical maps: 0. Tiling along N, h or w changes
nothing.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from basics.distributed import add_up, sum_over_ranks
from kd.loss_tools import (
    channel_divergence,
    cosine_distance,
    distance_of_sums,
    mean_over_images,
    mean_over_positions,
    soft_loss,
    unit,
)


@soft_loss
def cosine(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over valid positions of 1 - cos(f_s, f_t), the angle between the channel vectors of one position.

    Source: the usual feature loss of distillation recipes, after the hints of Romero et al., FitNets, ICLR 2015.
    Shapes: student and teacher (N, D, h, w).
    Scale: in [0, 2], whatever D, h, w and the features' magnitude. Two zero vectors are at distance 0.
    Void and padding: void counts, padding is left out.
    """
    return mean_over_positions(cosine_distance(student, teacher, dim=1), valid)


@soft_loss
def pixelwise(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over valid positions of ||f_s / |f_s| - f_t / |f_t| ||^2, summed over channels.

    Source: Mansourian et al., "An Efficient Knowledge Distillation Architecture for Real-time Semantic
    Segmentation", 2023: the decoder's last map before the classifier and before its ReLU. The authors' code first
    collapses the channels to their mean square and normalises along the height; here each position's channel
    vector is normalised, which keeps the channels apart. See `kd.losses.PAPER_LAMBDAS` for the scale.
    Shapes: student and teacher (N, D, h, w).
    Scale: in [0, 4]; for non-zero vectors twice the `cosine` loss of the same map.
    Void and padding: void counts, padding is left out.
    """
    return 2 * mean_over_positions(cosine_distance(student, teacher, dim=1), valid)


@soft_loss
def pairwise(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over all pairs (i, j) of valid positions of (cos(s_i, s_j) - cos(t_i, t_j))^2.

    Source: Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019.
    Shapes: student (N, D, h, w), teacher (N, D', h, w). The matrices are (h*w)^2: bound the grid.
    Scale: mean over the pairs of an image, then over images with a valid position; in [0, 4]. The paper's
    1/(h*w)^2 and the mean over images are the same.
    Void and padding: void counts; a pair with a padded position is left out.
    """

    def cosines(features: torch.Tensor) -> torch.Tensor:
        vectors = unit(features.flatten(2), dim=1)  # (N, D, P), 0 under padding
        return vectors.transpose(1, 2) @ vectors  # (N, P, P)

    squared = (cosines(student) - cosines(teacher)).square().sum(dim=(1, 2))
    pairs = valid.flatten(1).sum(dim=1).clamp(min=1).square()
    return mean_over_images(squared / pairs, valid)


@soft_loss
def at(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """||A_s / |A_s| - A_t / |A_t| ||^2 of the attention maps A = sum over channels of f^2, as vectors over positions.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, with p = 2.
    Shapes: student (N, D, h, w), teacher (N, D', h, w).
    Scale: summed over the positions of an image (in [0, 2], whatever the grid), mean over images with a valid
    position. The authors' code takes the mean over positions, so that its beta = 1000 is 1000 / (h*w) here.
    Void and padding: void counts, padding has no attention and is left out of the norm.
    """
    map_s, map_t = (features.square().mean(dim=1).flatten(1) for features in (student, teacher))  # (N, h*w) each
    return mean_over_images(2 * cosine_distance(map_s, map_t, dim=1), valid)


@soft_loss
def csd(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Cauchy-Schwarz divergence -log((sum p q)^2 / (sum p^2 * sum q^2)), p = relu(f_s), q = relu(f_t).

    Source: Jenssen et al., "The Cauchy-Schwarz Divergence and Parzen Windowing", J. Franklin Inst. 343, 2006.
    Shapes: student and teacher (N, D, h, w). The sums run over the channels and valid positions of an image.
    Scale: mean over images with a valid position; 0 for proportional maps, at most 27.6 (maps that never overlap
    are taken at a cosine of 1e-6, where the logarithm would be infinite).
    Void and padding: void counts, padding is left out.
    """
    distance = cosine_distance(F.relu(student), F.relu(teacher), dim=(1, 2, 3))
    # (sum p q)^2 / (sum p^2 sum q^2) is the squared cosine.
    return mean_over_images(-2 * torch.log1p(-distance.clamp(max=1 - 1e-6)), valid)


@soft_loss
def cwd_feat(
    student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """T^2 * mean over channels of sum_x p_t (log p_t - log p_s), p = softmax(f / T) over an image's positions.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, on the feature map before
    the classifier. The authors' adapter has a BatchNorm and a ReLU behind its 1x1 convolution; ours is the convolution.
    Shapes: student and teacher (N, D, h, w).
    Scale: nats a channel, mean over channels and over images with a valid position, as in the authors' code, whose runs
    on features have lambda = 35 and T from 1 to 8.
    Void and padding: void counts, padding has no probability.
    """
    return channel_divergence(student, teacher, valid, temperature)


@soft_loss
def pkd(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over channels of 1 - Pearson(f_s, f_t), each channel over all valid positions of the batch.

    That is half the mean squared difference of maps whose channels have mean 0 and deviation 1.

    Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient", NeurIPS 2022, made for the maps of a detector's neck: here the decoder's.
    Shapes: student and teacher (N, D, h, w).
    Scale: in [0, 2], whatever the channels' means and deviations. A constant channel has no correlation: two of them
    count 0, one counts 1/2. In a distributed run the batch is that of all ranks.
    Void and padding: void counts, padding is left out of means and sums.
    """
    inside = valid[:, None].to(student.dtype)
    cells = add_up(valid.sum()).clamp(min=1)

    def centred(maps: torch.Tensor) -> torch.Tensor:
        mean = sum_over_ranks(maps.sum(dim=(0, 2, 3))) / cells
        return (maps - mean[:, None, None]) * inside

    s, t = centred(student), centred(teacher)
    sums = torch.stack([(x * y).sum(dim=(0, 2, 3)) for x, y in ((s, s), (t, t), (s, t))])  # (3, D)
    squares_s, squares_t, products = sum_over_ranks(sums)
    return distance_of_sums(squares_s, squares_t, products, cells).mean()


@soft_loss
def attnfd(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """||g_s / |g_s| - g_t / |g_t| ||^2 of the maps g that attention to channels, then to positions leaves of f.

    f' = f * sigmoid(mean + maximum of each channel over positions); g = f' * sigmoid(mean + maximum of each
    position over channels).

    Source: Mansourian et al., "Attention-guided Feature Distillation for Semantic Segmentation", 2024 (VOC, ResNet-18:
    67.5 alone, 73.1 with it). This attention without parameters is the authors' for the teacher. Their student has a
    trained CBAM in its place, which stays in the network; here both sides have the same, and the file is the plain
    student's.
    Shapes: student and teacher (N, D, h, w).
    Scale: summed over the channels and positions of an image (in [0, 4], whatever the grid), mean over images with a
    valid position. The authors divide a distance of the whole batch by its size: their lambda 2 at batch size 6 is
    1/3 here.
    Void and padding: void counts; padding has no part in means and maxima, and is left out.
    """
    hidden = ~valid[:, None]
    cells = valid.sum(dim=(1, 2))[:, None, None, None].clamp(min=1)

    def attended(maps: torch.Tensor) -> torch.Tensor:
        mean = maps.sum(dim=(2, 3), keepdim=True) / cells  # (N, D, 1, 1)
        highest = maps.masked_fill(hidden, torch.finfo(maps.dtype).min).amax(dim=(2, 3), keepdim=True)
        maps = maps * torch.sigmoid(mean + highest)
        return maps * torch.sigmoid(maps.mean(dim=1, keepdim=True) + maps.amax(dim=1, keepdim=True))

    return mean_over_images(2 * cosine_distance(attended(student), attended(teacher), dim=(1, 2, 3)), valid)
