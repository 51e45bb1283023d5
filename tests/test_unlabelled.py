"""Pictures without masks in training: how they are mixed in, what they take part in."""

from __future__ import annotations

import pytest

from segdata.sampler import EpochSampler, Mixture


@pytest.mark.parametrize(
    ("labelled", "per_batch", "images", "batch_size"), [(5, 2, 23, 6), (40, 1, 43, 8), (3, 3, 9, 4)]
)
def test_every_batch_has_its_labelled_images(labelled, per_batch, images, batch_size):
    sampler = EpochSampler(images, seed=1, mixture=Mixture(labelled, per_batch), batch_size=batch_size)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) == images // batch_size * batch_size
    for start in range(0, len(pairs), batch_size):
        batch = [index for index, _ in pairs[start : start + batch_size]]
        assert sum(index < labelled for index in batch) == per_batch
    seen = [index for index, _ in pairs if index < labelled]
    times = [seen.count(index) for index in range(labelled)]
    assert max(times) - min(times) <= 1, "all of them come round before any comes again"
    assert len({seed for _, seed in pairs}) == len(pairs), "what comes again is seen otherwise"


def test_a_mixture_is_resumed_and_shared_among_ranks():
    def make(**options):
        return EpochSampler(24, seed=2, epoch=3, mixture=Mixture(5, 2), batch_size=6, **options)

    whole = list(make())
    assert list(make(start=7)) == whole[7:]
    ranks = [list(make(rank=rank, world_size=2)) for rank in range(2)]
    for step in range(4):
        batch = ranks[0][3 * step : 3 * step + 3] + ranks[1][3 * step : 3 * step + 3]
        assert sorted(batch) == sorted(whole[6 * step : 6 * step + 6])
