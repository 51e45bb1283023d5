"""Crop-first augmentation against an independent mapping of pixels, written out below."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from basics.batch import MEAN, STD, jitter_colours, prepare_batch
from segdata.transforms import FILL, TrainTransform, _draw_offset, cut_image, cut_mask, full_sample


def picture(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)
    mask = torch.from_numpy(rng.integers(0, 21, (height, width), dtype=np.uint8))
    return image, mask


def source_pixels(box, size: int, axis: int, flip: bool) -> np.ndarray:
    """The original pixel under the centre of each of ``size`` sample pixels: float64, half-pixel centres."""
    low, high = (box[0], box[2]) if axis == 1 else (box[1], box[3])
    centres = (np.arange(size) + 0.5) * (high - low) / size + low
    return np.floor(centres[::-1] if flip and axis == 1 else centres).astype(int)


@pytest.mark.parametrize("shape", [(60, 80), (37, 23), (200, 41), (1, 1)])
def test_mask_valid_and_box_agree_with_an_independent_mapping(shape):
    image, mask = picture(*shape)
    transform = TrainTransform(32, jitter=None)
    flips = set()
    for seed in range(60):
        torch.manual_seed(seed)
        sample = transform(image, mask)
        rows = source_pixels(sample["box"].tolist(), 32, 0, sample["flip"])
        columns = source_pixels(sample["box"].tolist(), 32, 1, sample["flip"])
        inside = ((rows >= 0) & (rows < shape[0]))[:, None] & ((columns >= 0) & (columns < shape[1]))
        wanted = np.where(inside, mask.numpy()[rows.clip(0, shape[0] - 1)][:, columns.clip(0, shape[1] - 1)], 255)
        assert np.array_equal(sample["valid"].numpy(), inside)
        assert np.array_equal(sample["mask"].numpy(), wanted)
        flips.add(sample["flip"])
    assert flips == {True, False}


def test_types_and_shapes():
    sample = TrainTransform((24, 40))(*picture(60, 80))
    assert sample["image"].shape == (3, 24, 40) and sample["image"].dtype == torch.uint8
    assert sample["mask"].shape == (24, 40) and sample["mask"].dtype == torch.uint8
    assert sample["valid"].shape == (24, 40) and sample["valid"].dtype == torch.bool
    assert sample["box"].shape == (4,) and sample["box"].dtype == torch.float32
    assert isinstance(sample["flip"], bool)
    assert sample["image"].is_contiguous() and sample["mask"].is_contiguous()


def test_masks_travel_as_bytes_and_are_widened_on_the_device():
    """255 stays 255 on the way, and a loss may take the mask for indices."""
    image, mask = picture(20, 20)
    mask[:, ::2] = 255
    samples = [TrainTransform(16)(image, mask), TrainTransform(16)(*picture(30, 12))]
    collated = default_collate(samples)
    batch = prepare_batch(collated, torch.device("cpu"))
    assert collated["mask"].dtype == torch.uint8 and batch["mask"].dtype == torch.int64
    assert 255 in batch["mask"] and batch["mask"].tolist() == [sample["mask"].tolist() for sample in samples]


def test_writing_to_a_whole_sample_leaves_its_source_alone():
    image, mask = picture(8, 8)
    before = mask.clone()
    full_sample(image, mask)["mask"].zero_()
    assert torch.equal(mask, before) and mask.any()


def test_padding_is_void_and_invalid_but_void_is_not_padding():
    image, mask = picture(20, 20)
    mask[:] = 255
    torch.manual_seed(0)
    sample = TrainTransform(32, scale=(1, 1))(image, mask)
    assert sample["valid"].sum() == 20 * 20
    assert (sample["mask"] == 255).all()


def test_padding_has_the_mean_colour_and_normalises_to_nothing_whatever_the_jitter():
    torch.manual_seed(0)
    sample = TrainTransform(64, scale=(1, 1), jitter=(0.9, 0.9, 0.9))(*picture(40, 40))
    padding = sample["image"][:, ~sample["valid"]]
    assert padding.numel()
    assert (padding == torch.tensor(FILL)[:, None]).all()
    assert np.allclose(np.array(FILL) / 255, MEAN, atol=0.5 / 255)
    resized = TrainTransform(64, scale=(0.5, 0.5), jitter=(0.9, 0.9, 0.9))(*picture(40, 40))  # blends at the edge
    batch = prepare_batch(default_collate([sample, resized]), torch.device("cpu"))
    assert resized["valid"].any() and (batch["image"].movedim(1, -1)[~batch["valid"]] == 0).all()
    assert (batch["image"].movedim(1, -1)[batch["valid"]] != 0).float().mean() > 0.9


def test_without_scaling_a_crop_is_a_plain_cut():
    image, mask = picture(50, 70)
    transform = TrainTransform(32, scale=(1, 1), flip=0.0, jitter=None)
    for seed in range(10):
        torch.manual_seed(seed)
        sample = transform(image, mask)
        x0, y0, x1, y1 = (int(value) for value in sample["box"])
        assert (x1 - x0, y1 - y0) == (32, 32)
        assert torch.equal(sample["image"], image[:, y0:y1, x0:x1])
        assert torch.equal(sample["mask"], mask[y0:y1, x0:x1])
        assert sample["valid"].all()


def test_crop_of_the_image_size_without_scaling_is_the_whole_image():
    image, mask = picture(48, 32)
    sample = TrainTransform((48, 32), scale=(1, 1), flip=0.0, jitter=None)(image, mask)
    whole = full_sample(image, mask)
    assert sample.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(torch.as_tensor(sample[key]), torch.as_tensor(value)), key


def test_flip_is_the_mirror_of_the_same_crop():
    image, mask = picture(50, 70)
    samples = []
    for flip in (0.0, 1.0):
        torch.manual_seed(3)
        samples.append(TrainTransform(32, flip=flip)(image, mask))
    plain, mirrored = samples
    assert torch.equal(plain["box"], mirrored["box"])
    for key in ("image", "mask", "valid"):
        assert torch.equal(plain[key].flip(-1), mirrored[key]), key


def test_image_pixels_follow_the_box():
    """A ramp keeps its place under bilinear resizing: its value at a pixel centre is the centre's coordinate."""
    ramp = torch.arange(0, 200, dtype=torch.uint8)
    image = torch.stack([ramp[None].expand(200, -1), ramp[:, None].expand(-1, 200), ramp[None].expand(200, -1)])
    mask = torch.zeros(200, 200, dtype=torch.uint8)
    for factor in (0.7, 1.0, 1.6):
        torch.manual_seed(1)
        sample = TrainTransform(64, scale=(factor, factor), flip=0.0, jitter=None)(image, mask)
        x0, y0, x1, y1 = sample["box"].numpy()
        inner = slice(4, -4)  # away from the window's edge, where antialiasing has nothing beyond to average
        columns = (np.arange(64) + 0.5) * (x1 - x0) / 64 + x0 - 0.5
        rows = (np.arange(64) + 0.5) * (y1 - y0) / 64 + y0 - 0.5
        assert np.abs(sample["image"][0].numpy()[inner, inner] - columns[None, inner]).max() <= 1.01
        assert np.abs(sample["image"][1].numpy()[inner, inner] - rows[inner, None]).max() <= 1.01


def test_scale_range_and_offsets_are_used_to_their_ends():
    transform = TrainTransform(32)
    torch.manual_seed(0)
    windows = np.array([transform.draw_window(100, 100) for _ in range(3000)])
    sides = windows[:, 2] - windows[:, 0]
    assert sides.min() == 16 and sides.max() >= 62  # 32 / 2 and nearly 32 / 0.5
    assert (windows >= 0).all() and (windows <= 100).all()
    small = np.array([transform.draw_window(10, 10) for _ in range(500)])
    assert (small[:, :2] <= 0).all() and (small[:, 2:] >= 10).all()  # the image is never cut where it fits


def test_only_the_window_is_touched():
    """Pixels outside the window may hold anything, for instance a page of a file that was never read."""
    image, mask = picture(100, 100)
    window, size = (20, 30, 60, 70), (16, 16)
    before, (mask_before, valid) = cut_image(image, window, size), cut_mask(mask, window, size)
    assert valid.all()
    image[:, :30], image[:, 70:], image[:, :, :20], image[:, :, 60:] = 0, 0, 0, 0
    mask[:30], mask[70:], mask[:, :20], mask[:, 60:] = 255, 255, 255, 255
    assert torch.equal(before, cut_image(image, window, size))
    assert torch.equal(mask_before, cut_mask(mask, window, size)[0])


@pytest.mark.parametrize("side", [16, 33, 41, 64, 200])
def test_masks_are_resized_as_torchvision_does(side):
    _, mask = picture(41, 41)
    wanted = functional.resize(mask[None], (side, side), interpolation=InterpolationMode.NEAREST_EXACT)[0]
    ours = cut_mask(mask, (0, 0, 41, 41), (side, side))[0]
    assert (ours != wanted).float().mean() < 0.05  # torchvision rounds in float32 where a centre lies on an edge
    if side in (33, 41, 200):  # no centre on an edge
        assert torch.equal(ours, wanted)


FACTORS = [(1, 1, 1), (1.3, 1, 1), (0.7, 1, 1), (1, 1.3, 1), (1, 0.7, 1), (1, 1, 1.3), (1, 1, 0), (1.2, 0.8, 1.25)]


def test_jitter_is_torchvisions_in_one_step():
    """Each image of a batch with its own factors."""
    images = [picture(30, 40, seed)[0] // 3 + 80 for seed in range(len(FACTORS))]  # no step in between clips
    ours = jitter_colours(torch.stack(images), torch.tensor(FACTORS))
    assert ours.dtype == torch.float32 and ours.is_contiguous()
    for image, (brightness, contrast, saturation), got in zip(images, FACTORS, ours, strict=True):
        wanted = functional.to_dtype(image, torch.float32, scale=True)
        wanted = functional.adjust_brightness(wanted, brightness)
        wanted = functional.adjust_contrast(wanted, contrast)
        wanted = functional.adjust_saturation(wanted, saturation)
        torch.testing.assert_close(got, 255 * wanted, rtol=0, atol=0.02)  # its luma is rounded
    torch.testing.assert_close(ours[0], images[0].float(), rtol=0, atol=1e-4)


def test_jitter_does_not_look_under_padding():
    """Contrast is scaled about the mean grey of the picture alone."""
    image = picture(30, 40)[0] // 3 + 80
    factors = torch.tensor([[1.1, 1.4, 0.8]])
    valid = torch.zeros(1, 48, 48, dtype=torch.bool)
    valid[0, :30, :40] = True
    wanted = jitter_colours(image[None], factors)[0]
    for colour in (0, 117, 255):
        padded = torch.full((3, 48, 48), colour, dtype=torch.uint8)
        padded[:, :30, :40] = image
        got = jitter_colours(padded[None], factors, valid)[0, :, :30, :40]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3)
    nothing = jitter_colours(padded[None], factors, torch.zeros_like(valid))
    assert nothing.isfinite().all()


def test_jitter_clips():
    images = torch.stack([picture(10, 10)[0]] * 2)
    bright, dark = jitter_colours(images, torch.tensor([[100.0, 1, 1], [0, 1, 1]]))
    assert (bright[images[0] > 2] == 255).all()
    assert dark.sum() == 0


def test_a_batch_is_jittered_by_the_factors_that_were_drawn():
    torch.manual_seed(1)
    transform = TrainTransform(24, jitter=(0.3, 0.2, 0.1))
    samples = [transform(*picture(60, 60, seed)) for seed in range(200)]
    factors = torch.stack([sample["jitter"] for sample in samples])
    reach = (factors - 1).abs().amax(0)
    assert (reach <= torch.tensor([0.3, 0.2, 0.1])).all() and (reach > torch.tensor([0.27, 0.18, 0.09])).all()
    batch = prepare_batch(default_collate(samples[:4]), torch.device("cpu"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for sample, got in zip(samples, batch["image"], strict=False):
        wanted = jitter_colours(sample["image"][None], sample["jitter"][None], sample["valid"][None])[0] / 255
        torch.testing.assert_close(got, (wanted - mean) / std * sample["valid"])


def test_inputs_are_left_alone():
    image, mask = picture(40, 40)
    copies = image.clone(), mask.clone()
    sample = TrainTransform(40, scale=(1, 1))(image, mask)
    sample["image"].zero_()
    sample["mask"].zero_()
    full_sample(image, mask)
    assert torch.equal(mask, copies[1])
    assert torch.equal(image, copies[0])


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="crop_size"):
        TrainTransform(0)
    with pytest.raises(ValueError, match="scale"):
        TrainTransform(32, scale=(2.0, 0.5))


def test_the_transform_pickles():
    transform = pickle.loads(pickle.dumps(TrainTransform(32)))
    image, mask = picture(60, 60)
    torch.manual_seed(5)
    first = transform(image, mask)
    torch.manual_seed(5)
    assert torch.equal(TrainTransform(32)(image, mask)["image"], first["image"])


def test_jitter_goes_both_ways_and_to_its_ends():
    transform, reach = TrainTransform(8, jitter=(0.3, 0.2, 0.1)), torch.tensor([0.3, 0.2, 0.1])
    torch.manual_seed(0)
    factors = torch.stack([transform(*picture(8, 8))["jitter"] for _ in range(500)]) - 1
    assert (factors.amin(0) < -0.9 * reach).all() and (factors.amax(0) > 0.9 * reach).all()
    assert (factors.abs().amax(0) <= reach + 1e-6).all() and (factors.mean(0).abs() < 0.15 * reach).all()


def test_scales_are_drawn_uniformly():
    """Their mean is that of the range; drawn by their logarithm it would be 1.08."""
    transform = TrainTransform(320, scale=(0.5, 2.0))
    torch.manual_seed(0)
    windows = [transform.draw_window(400, 400) for _ in range(3000)]
    assert np.mean([320 / (right - left) for left, _, right, _ in windows]) == pytest.approx(1.25, abs=0.03)


def test_every_offset_comes_up():
    torch.manual_seed(0)
    assert {_draw_offset(10, 8) for _ in range(200)} == {0, 1, 2}
    assert {_draw_offset(8, 10) for _ in range(200)} == {-2, -1, 0}
