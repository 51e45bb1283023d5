"""The order of an epoch and the seed of each sample's augmentation, as functions of numbers alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Mixture:
    """Batches of which a fixed number of images is labelled.

    Attributes:
        labelled: how many of the data set's images are: the first ones.
        per_batch: how many of each batch are. They come round more often, or less, than the others.
    """

    labelled: int
    per_batch: int

    def order(self, images: int, steps: int, batch_size: int, generator: torch.Generator) -> list[int]:
        """Indices of ``steps`` batches out of ``images``; in each batch the labelled ones come first."""
        labelled = _rounds(range(self.labelled), steps * self.per_batch, generator)
        others = _rounds(range(self.labelled, images), steps * (batch_size - self.per_batch), generator)
        return [
            index
            for _ in range(steps)
            for source, count in ((labelled, self.per_batch), (others, batch_size - self.per_batch))
            for index in itertools.islice(source, count)
        ]


def _rounds(indices: range, count: int, generator: torch.Generator) -> Iterator[int]:
    """``count`` of ``indices``, all of them in a shuffled order before any comes again."""
    rounds = -(-count // max(len(indices), 1))
    shuffled = (
        indices[place] for _ in range(rounds) for place in torch.randperm(len(indices), generator=generator).tolist()
    )
    return itertools.islice(shuffled, count)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(index, sample_seed)`` pairs in a shuffled order.

    Order and seeds are functions of ``(seed, epoch)`` and ``(seed, epoch, index)``: no number of workers,
    no resume and no other use of random numbers changes what an epoch shows.

    Args:
        num_samples: size of the data set.
        epoch_samples: of an epoch: all come round before any comes again; None: all, once.
        seed: the run's seed, any integer.
        epoch: which epoch to yield; `set_epoch` changes it.
        rank, world_size: of a distributed run. Every rank gets the same number of samples (the order is
            wrapped round if need be), and the ranks' n-th batches together are the n-th batch of one
            process with the whole batch size.
        start: how many samples of this rank to leave out at the beginning, to resume within an epoch.
        mixture: fixes how many images of a batch are labelled; by default chance mixes them by their shares.
        batch_size: of all ranks together, for the mixture.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        mixture: Mixture | None = None,
        batch_size: int = 1,
        epoch_samples: int | None = None,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of world size {world_size}")
        self.num_samples, self.epoch_samples = num_samples, epoch_samples or num_samples
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.mixture = mixture
        self.batch_size = batch_size

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Turn to another epoch, leaving out its first ``start`` samples of this rank."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        samples = self.epoch_samples
        if self.mixture:
            samples -= samples % self.batch_size
        return -(-samples // self.world_size) - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        if self.mixture:
            steps = self.epoch_samples // self.batch_size
            order = self.mixture.order(self.num_samples, steps, self.batch_size, generator)
        else:
            order = list(_rounds(range(self.num_samples), self.epoch_samples, generator))
        seen: dict[int, int] = {}
        numbered = []
        for index in order:
            seen[index] = seen.get(index, -1) + 1
            numbered.append((index, seen[index]))
        total = -(-len(order) // self.world_size) * self.world_size
        numbered += numbered[: total - len(order)]
        for index, again in numbered[self.rank : total : self.world_size][self.start :]:
            # An image that comes again within an epoch is seen otherwise.
            yield index, mix_seed(self.seed, self.epoch, index, *([again] if again else []))


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
