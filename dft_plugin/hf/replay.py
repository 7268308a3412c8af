"""Run accelerate's sharding of a loader once more, for every rank, on positions instead of data.

So it is accelerate's own code, in the installed release, that says what each rank is given, whatever the sizes of the
batches are. What the ranks share, the batch sampler or the stream, notes its sizes while it is iterated for real.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any


class RecordedBatches:
    """The batch sampler that all ranks share, which notes how long its batches are."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.sizes: list[int] = []
        self.round = 0

    def __iter__(self) -> Iterator[Any]:
        self.sizes, self.round = [], self.round + 1
        for batch in self.inner:
            self.sizes.append(len(batch))
            yield batch

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def positions(self) -> Iterator[list[int]]:
        """Yield the batches noted so far, with positions in place of indices."""
        start = 0
        for size in self.sizes:
            yield list(range(start, start + size))
            start += size


class RecordedStream(RecordedBatches):
    """The iterable dataset that all ranks share, which notes how many samples it gave."""

    def __iter__(self) -> Iterator[Any]:
        self.sizes, self.round = [0], self.round + 1
        for sample in self.inner:
            self.sizes[0] += 1
            yield sample


class _Positions:
    """A stand-in for data that were recorded."""

    def __init__(self, recorded: RecordedBatches) -> None:
        self._recorded = recorded
        self.batch_size = getattr(recorded.inner, "batch_size", None)

    def __iter__(self) -> Iterator[Any]:
        if not isinstance(self._recorded, RecordedStream):
            yield from self._recorded.positions()
            return
        position = 0
        while position < self._recorded.sizes[0]:
            yield position
            position += 1


Ranks = tuple[list[Iterator[list[int]]], Callable[[], int]]
"""What each rank is given, batch by batch, and below which position data may come again."""


def _ranks_of_sampler(shard: Any, recorded: RecordedBatches) -> Ranks:
    ranks = []
    for rank in range(shard.num_processes):
        replica = copy.copy(shard)
        replica.process_index, replica.batch_sampler = rank, _Positions(recorded)
        ranks.append(iter(replica))
    return ranks, lambda: sum(recorded.sizes[: shard.num_processes])


def _ranks_of_stream(shard: Any, recorded: RecordedBatches, size: int) -> Ranks:
    def batches(rank: int) -> Iterator[list[int]]:
        replica = copy.copy(shard)
        replica.process_index, replica.dataset = rank, _Positions(recorded)
        samples = iter(replica)
        while batch := list(islice(samples, size)):
            yield batch

    split = getattr(shard, "split_batches", False)
    horizon = shard.batch_size * (1 if split else shard.num_processes)
    return [batches(rank) for rank in range(shard.num_processes)], lambda: horizon


class Replay:
    """Runs accelerate's sharding on positions, and finds which of this rank's come for the first time on any rank."""

    def __init__(self, shard: Any, recorded: RecordedBatches, ranks: Callable[..., Ranks]) -> None:
        self._shard, self._recorded, self._make = shard, recorded, ranks
        self._round = -1

    def __call__(self, rows: int) -> list[bool]:
        """Return, for each sample of this rank's next batch, whether it comes for the first time."""
        if self._round != self._recorded.round:
            self._round, self._seen = self._recorded.round, set[int]()
            self._ranks, self._horizon = self._make(self._shard, self._recorded)
        flags: list[bool] = []
        horizon = self._horizon()
        for rank, batches in enumerate(self._ranks):
            for position in next(batches, []):
                fresh = position not in self._seen
                if position < horizon:
                    self._seen.add(position)
                if rank == self._shard.process_index:
                    flags.append(fresh)
        return flags


@contextmanager
def _recording(shard: Any, name: str, kind: Callable[[Any], RecordedBatches]) -> Iterator[RecordedBatches]:
    before = getattr(shard, name)
    recorded = kind(before)
    setattr(shard, name, recorded)
    try:
        yield recorded
    finally:
        setattr(shard, name, before)


@contextmanager
def replaying_batches(shard: Any) -> Iterator[Replay]:
    """Watch one pass over accelerate's BatchSamplerShard."""
    with _recording(shard, "batch_sampler", RecordedBatches) as recorded:
        yield Replay(shard, recorded, _ranks_of_sampler)


@contextmanager
def replaying_stream(shard: Any, batch_size: int) -> Iterator[Replay]:
    """Watch one pass over an IterableDatasetShard, whose samples are put into batches of `batch_size`."""
    with _recording(shard, "dataset", RecordedStream) as recorded:
        yield Replay(shard, recorded, functools.partial(_ranks_of_stream, size=batch_size))
