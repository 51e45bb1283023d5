"""Each loss against its formula written out in float64 NumPy, image by image and pair by pair, and its gradient.

The formulas are taken from the papers with plain loops over images, positions and classes, on purpose: nothing
here shares a line or a trick with `kd.losses`.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kd.losses import LOSSES

CLASSES, GRID = 4, (3, 5)
TEMPERATURE = 2.5


def softmax(z: np.ndarray) -> np.ndarray:
    """Softmax of a vector."""
    e = np.exp(z - z.max())
    return e / e.sum()


def kl_divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def valid_images(*tensors: np.ndarray):
    """For each image with a valid position: its maps as (channels, valid positions)."""
    *maps, valid = tensors
    for i in range(len(valid)):
        if valid[i].any():
            yield [m[i][:, valid[i]] for m in maps]


def positions(*tensors: np.ndarray):
    """For each valid position of the batch: its channel vectors."""
    for columns in valid_images(*tensors):
        yield from zip(*[c.T for c in columns], strict=True)


def reference_ce(logits, mask, weights):
    total = norm = 0.0
    for n, y, x in np.argwhere(mask != 255):
        c = mask[n, y, x]
        total -= weights[c] * np.log(softmax(logits[n, :, y, x])[c])
        norm += weights[c]
    return total / norm


def reference_focal(logits, mask, weights):
    total = norm = 0.0
    for n, y, x in np.argwhere(mask != 255):
        c = mask[n, y, x]
        p = softmax(logits[n, :, y, x])[c]
        total -= weights[c] * (1 - p) ** 2 * np.log(p)
        norm += weights[c]
    return total / norm


def reference_dice(logits, mask, weights):
    pixels = [(softmax(logits[n, :, y, x]), mask[n, y, x]) for n, y, x in np.argwhere(mask != 255)]
    total = norm = 0.0
    for c in {truth for _, truth in pixels}:
        p = np.array([probabilities[c] for probabilities, _ in pixels])
        y = np.array([float(truth == c) for _, truth in pixels])
        total += weights[c] * (1 - 2 * (p * y).sum() / ((p**2).sum() + (y**2).sum()))
        norm += weights[c]
    return total / norm


def reference_kl(student, teacher, valid, temperature):
    return temperature**2 * np.mean(
        [
            kl_divergence(softmax(t / temperature), softmax(s / temperature))
            for s, t in positions(student, teacher, valid)
        ]
    )


def reference_kl_std(student, teacher, valid, temperature):
    def standard(z):
        return (z - z.mean()) / z.std(ddof=1) / temperature

    return temperature**2 * np.mean(
        [kl_divergence(softmax(standard(t)), softmax(standard(s))) for s, t in positions(student, teacher, valid)]
    )


def reference_cwd(student, teacher, valid, temperature):
    images = [
        np.mean(
            [
                kl_divergence(softmax(t / temperature), softmax(s / temperature))
                for s, t in zip(image_s, image_t, strict=True)
            ]
        )
        for image_s, image_t in valid_images(student, teacher, valid)
    ]
    return temperature**2 * np.mean(images)


def reference_bpkd(student, teacher, valid, temperature, stride):
    assert stride == 8  # 3 pixels reach into the next cell, and no further
    classes = teacher.argmax(axis=1)
    border = np.zeros_like(valid)
    for n, y, x in np.argwhere(valid):
        window = [
            classes[n, v, u]
            for v in range(max(y - 1, 0), min(y + 2, valid.shape[1]))
            for u in range(max(x - 1, 0), min(x + 2, valid.shape[2]))
            if valid[n, v, u]
        ]
        border[n, y, x] = len(set(window)) > 1
    body = valid & ~border
    assert border.any() and body.any()
    at_borders = reference_kl(student, teacher, border, temperature)
    return at_borders + reference_cwd(student, teacher, body, temperature)


def reference_dist(student, teacher, valid):
    inter = [1 - np.corrcoef(softmax(s), softmax(t))[0, 1] for s, t in positions(student, teacher, valid)]
    intra = []
    for image_s, image_t in valid_images(student, teacher, valid):
        p_s = np.stack([softmax(z) for z in image_s.T], axis=1)
        p_t = np.stack([softmax(z) for z in image_t.T], axis=1)
        intra.append(np.mean([1 - np.corrcoef(p_s[c], p_t[c])[0, 1] for c in range(CLASSES)]))
    return np.mean(inter) + np.mean(intra)


def reference_icsd(student, teacher, valid):
    def rows(image):
        p = [softmax(class_map) for class_map in image]
        matrix = np.array([[kl_divergence(a, b) for b in p] for a in p])
        return [row / np.linalg.norm(row) for row in matrix]

    images = [
        np.mean([((s - t) ** 2).sum() for s, t in zip(rows(image_s), rows(image_t), strict=True)])
        for image_s, image_t in valid_images(student, teacher, valid)
    ]
    return np.mean(images)


def reference_cosine(student, teacher, valid):
    return np.mean([1 - cos(s, t) for s, t in positions(student, teacher, valid)])


def reference_pixelwise(student, teacher, valid):
    return np.mean(
        [((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2).sum() for s, t in positions(student, teacher, valid)]
    )


def reference_pairwise(student, teacher, valid):
    images = []
    for image_s, image_t in valid_images(student, teacher, valid):
        pairs = itertools.product(range(image_s.shape[1]), repeat=2)
        images.append(
            np.mean([(cos(image_s[:, i], image_s[:, j]) - cos(image_t[:, i], image_t[:, j])) ** 2 for i, j in pairs])
        )
    return np.mean(images)


def reference_at(student, teacher, valid):
    images = []
    for image_s, image_t in valid_images(student, teacher, valid):
        a, b = (image_s**2).sum(axis=0), (image_t**2).sum(axis=0)
        images.append(((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2).sum())
    return np.mean(images)


def reference_csd(student, teacher, valid):
    images = []
    for image_s, image_t in valid_images(student, teacher, valid):
        p, q = np.maximum(image_s, 0), np.maximum(image_t, 0)
        images.append(-np.log((p * q).sum() ** 2 / ((p**2).sum() * (q**2).sum())))
    return np.mean(images)


def reference_cwd_feat(student, teacher, valid, temperature):
    return reference_cwd(student, teacher, valid, temperature)


def reference_pkd(student, teacher, valid):
    columns = [x.swapaxes(0, 1)[:, valid] for x in (student, teacher)]  # (channels, valid positions of the batch)
    halves = []
    for s, t in zip(*columns, strict=True):
        s, t = ((x - x.mean()) / x.std() for x in (s, t))
        halves.append(((s - t) ** 2).mean() / 2)
    return np.mean(halves)


def reference_attnfd(student, teacher, valid):
    def attended(image):  # (channels, positions)
        image = np.stack([row / (1 + np.exp(-row.mean() - row.max())) for row in image])
        image = np.stack([column / (1 + np.exp(-column.mean() - column.max())) for column in image.T])
        return image / np.sqrt((image**2).sum())

    return np.mean([((attended(s) - attended(t)) ** 2).sum() for s, t in valid_images(student, teacher, valid)])


REFERENCES = {name.removeprefix("reference_"): fn for name, fn in globals().items() if name.startswith("reference_")}


def random_case(name: str, seed: int):
    """Arguments of the loss in float64, the options, and the same as NumPy arguments of the reference."""
    generator = torch.Generator().manual_seed(seed)
    spec = LOSSES[name]

    def normal(*shape):
        return 1.5 * torch.randn(*shape, *GRID, generator=generator, dtype=torch.float64)

    if spec.kind == "hard":
        mask = torch.randint(CLASSES, (3, *GRID), generator=generator)
        mask[torch.rand(3, *GRID, generator=generator) < 0.25] = 255
        # Seed 0 has no class weights and an absent class.
        weights = torch.rand(CLASSES, generator=generator, dtype=torch.float64) + 0.1 if seed else None
        if not seed:
            mask[mask == 2] = 0
        numpy_weights = np.ones(CLASSES) if weights is None else weights.numpy()
        logits = normal(3, CLASSES)
        return (logits, mask), {"class_weights": weights}, (logits.numpy(), mask.numpy(), numpy_weights)
    teacher_channels = CLASSES if spec.kind == "logits" or spec.adapter else CLASSES + 2
    valid = torch.rand(3, *GRID, generator=generator) > 0.25
    if seed == 1:
        valid[1] = False
    arguments = (normal(3, CLASSES), normal(3, teacher_channels), valid)
    if spec.uses_stride:  # pictures of two halves, so that not every cell is at a border
        arguments[1][:, 0, :, :2] += 9
        arguments[1][:, 1, :, 2:] += 9
    options = {"temperature": TEMPERATURE} if spec.uses_temperature else {}
    options |= {"stride": 8} if spec.uses_stride else {}
    return arguments, options, (*(x.numpy() for x in arguments), *options.values())


def test_every_loss_has_a_reference():
    assert set(REFERENCES) == set(LOSSES)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_agrees_with_the_formula(name, seed):
    arguments, options, numpy_arguments = random_case(name, seed)
    expected = REFERENCES[name](*numpy_arguments)
    assert LOSSES[name].fn(*arguments, **options).item() == pytest.approx(expected, rel=1e-9)
    # The same numbers as float32, the type of training.
    single = [x.float() if x.is_floating_point() else x for x in arguments]
    assert LOSSES[name].fn(*single, **options).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_agrees_with_finite_differences(name):
    (student, *rest), options, _ = random_case(name, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: LOSSES[name].fn(s, *rest, **options), (student.requires_grad_(),), eps=1e-6, atol=1e-7
    )
