"""The order of an epoch and the seed of each sample's augmentation, as functions of numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(index, sample_seed)`` pairs in a shuffled order.

    Order and seeds are functions of ``(seed, epoch)`` and ``(seed, epoch, index)``: no number of workers,
    no resume and no other use of random numbers changes what an epoch shows.

    Args:
        num_samples: size of the data set.
        seed: the run's seed, any integer.
        epoch: which epoch to yield; `set_epoch` changes it.
        rank, world_size: of a distributed run. Every rank gets the same number of samples (the order is
            wrapped round if need be), and the ranks' n-th batches together are the n-th batch of one
            process with the whole batch size.
        start: how many samples of this rank to leave out at the beginning, to resume within an epoch.
    """

    def __init__(self, num_samples: int, seed: int, epoch: int = 0, rank: int = 0, world_size: int = 1, start: int = 0):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of world size {world_size}")
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Turn to another epoch, leaving out its first ``start`` samples of this rank."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return -(-self.num_samples // self.world_size) - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        total = -(-self.num_samples // self.world_size) * self.world_size
        order += order[: total - self.num_samples]
        for index in order[self.rank : total : self.world_size][self.start :]:
            yield index, mix_seed(self.seed, self.epoch, index)


def mix_seed(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several integers (NumPy's SeedSequence hash)."""
    words = [number % 2**64 for number in numbers]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from ``seed`` inside, leaving the global CPU generator as it was; None changes nothing.

    `torch.manual_seed` would also reseed every GPU, hence the CPU generator by itself.
    """
    if seed is None:
        yield
        return
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
