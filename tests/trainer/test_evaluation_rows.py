"""Which rows count, for every sharding that accelerate does: over all ranks each row of the data once.

The ranks are loaders in one process, which accelerate lets one name; two real ranks are in tests/hosts.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.state import PartialState
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset
from transformers.trainer_pt_utils import IterableDatasetShard

from dft_plugin.hf.evaluation import evaluation_rows


@pytest.fixture(autouse=True)
def state():
    PartialState(cpu=True)


class Numbered(Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        whole_batch = isinstance(index, list)
        return {"labels": torch.tensor([[i, i] for i in index] if whole_batch else [index, index])}


class Stream(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return ({"labels": torch.tensor([index, index])} for index in range(self.size))


class Batches(BatchSampler):
    """A batch sampler with batches of any size; not restartable, so that nobody may look ahead."""

    def __init__(self, sizes, batch_size=None):
        ends = list(itertools.accumulate(sizes, initial=0))
        self.batches = [list(range(a, b)) for a, b in itertools.pairwise(ends)]
        self.rounds = 0
        self.batch_size, self.drop_last = batch_size, False

    def __iter__(self):
        self.rounds += 1
        assert self.rounds == 1, "iterated twice"
        return iter([list(batch) for batch in self.batches])

    def __len__(self):
        return len(self.batches)


def read(loaders):
    """Return for each rank the rows that it was given and those that count."""
    given, counted = [], []
    for loader in loaders:
        with ExitStack() as stack:
            rows = stack.enter_context(evaluation_rows(loader, len(loaders)))
            for batch in loader:
                ids = batch["labels"][:, 0].tolist()
                mask = rows.counted(batch)
                assert rows.counted(batch) is mask, "asked twice for one batch"
                given += ids
                counted += ids if mask is None else [i for i, real in zip(ids, mask.tolist(), strict=True) if real]
    return Counter(given), Counter(counted)


def ranks(make, processes, **how):
    return [
        prepare_data_loader(make(), num_processes=processes, process_index=rank, **how) for rank in range(processes)
    ]


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("drop_last", [False, True], ids=["", "drop_last"])
@pytest.mark.parametrize("even", [False, True], ids=["uneven", "even"])
@pytest.mark.parametrize("processes", [2, 3])
def test_over_all_ranks_each_row_of_the_data_counts_once(processes, even, drop_last, split):
    for size in (*range(1, 14), 24, 25):
        make = lambda size=size: DataLoader(Numbered(size), batch_size=6 if split else 2, drop_last=drop_last)  # noqa: E731
        loaders = ranks(make, processes, even_batches=even, split_batches=split)
        given, counted = read(loaders)
        assert set(counted.values()) <= {1}
        assert counted.keys() == given.keys()
        if not drop_last:
            assert counted == Counter(range(size))


def test_the_test_has_repeats_to_find():
    given, _ = read(ranks(lambda: DataLoader(Numbered(5), batch_size=2), 2))
    assert given == Counter([0, 1, 2, 3, 4, 0, 1, 2])


@pytest.mark.parametrize("even", [False, True], ids=["uneven", "even"])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("sizes", [(2, 3, 4), (4, 4, 1), (1, 4, 2, 4, 3), (4,), (3, 3, 3), (4, 2, 4, 4)], ids=str)
def test_batches_of_any_size(sizes, batch_size, even):
    """Accelerate may lose rows of such batches; those that it gives out count once each."""
    make = lambda: DataLoader(Numbered(sum(sizes)), batch_sampler=Batches(sizes, batch_size))  # noqa: E731
    given, counted = read(ranks(make, 2, even_batches=even))
    assert counted == Counter(given.keys())


def test_a_batch_sampler_behind_an_unbatched_loader():
    make = lambda: DataLoader(Numbered(9), sampler=Batches((3, 3, 3), 3), batch_size=None)  # noqa: E731
    loaders = ranks(make, 2, even_batches=True)
    assert read(loaders)[1] == Counter(range(9))


class SlowAtEnd(Numbered):
    def __getitem__(self, index):
        # The batch before the last is overtaken, if it may be.
        time.sleep(0.5 if index == 4 else 0)
        return super().__getitem__(index)


@pytest.mark.parametrize("in_order", [True, False])
def test_workers_read_ahead_and_may_not_overtake_each_other(in_order):
    make = lambda: DataLoader(SlowAtEnd(9), batch_size=2, num_workers=2, in_order=in_order)  # noqa: E731
    loaders = ranks(make, 2)
    assert read(loaders)[1] == Counter(range(9))
    assert loaders[0].base_dataloader.in_order is in_order


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_streams(split):
    for size in (1, 3, 4, 5, 8, 11):
        make = lambda size=size: DataLoader(Stream(size), batch_size=4 if split else 2)  # noqa: E731
        given, counted = read(ranks(make, 2, split_batches=split))
        assert counted == Counter(range(size))
        assert given.keys() == counted.keys()


def test_the_stream_shards_of_transformers():
    shards = [IterableDatasetShard(Stream(7), 2, num_processes=2, process_index=rank) for rank in range(2)]
    assert read([DataLoader(shard, batch_size=2) for shard in shards])[1] == Counter(range(7))


def test_a_stream_that_workers_read_is_counted_whole_and_said(caplog):
    make = lambda: DataLoader(Stream(3), batch_size=2, num_workers=1)  # noqa: E731
    with caplog.at_level(logging.WARNING):
        given, counted = read(ranks(make, 2))
    assert counted == given == Counter([0, 1, 2, 0])
    assert "Set dataloader_num_workers to 0" in caplog.text


@pytest.mark.parametrize("size", [1, 5, 6, 7])
def test_a_distributed_sampler_of_ones_own(size):
    data = Numbered(size)
    loaders = [DataLoader(data, 2, sampler=DistributedSampler(data, 3, rank, shuffle=False)) for rank in range(3)]
    given, counted = read(loaders)
    assert counted == Counter(range(size))
    assert sum(given.values()) % 3 == 0


def test_one_process_never_has_repeats():
    (loader,) = ranks(lambda: DataLoader(Numbered(9), batch_sampler=Batches((2, 3, 4), 4)), 1)
    assert read([loader])[1] == Counter(range(9))


def test_a_wrapper_around_a_prepared_loader_is_looked_through():
    class Wrapped:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            return iter(self.loader)

    loaders = ranks(lambda: DataLoader(Numbered(5), batch_size=2), 2)
    assert read([Wrapped(loader) for loader in loaders])[1] == Counter(range(5))


def test_the_loader_is_as_before_also_where_an_evaluation_fails():
    (loader, _) = ranks(lambda: DataLoader(Numbered(5), batch_size=2), 2)
    before = loader.batch_sampler.batch_sampler

    def metric():
        assert loader.batch_sampler.batch_sampler is not before
        raise RuntimeError("metric")

    with pytest.raises(RuntimeError, match="metric"), evaluation_rows(loader, 2):
        metric()
    assert loader.batch_sampler.batch_sampler is before
    for _ in range(2):
        assert read(ranks(lambda: DataLoader(Numbered(5), batch_size=2), 2))[1] == Counter(range(5))


def test_a_second_evaluation_with_workers_that_stay(caplog):
    make = lambda: DataLoader(Numbered(5), batch_size=2, num_workers=1, persistent_workers=True)  # noqa: E731
    loaders = ranks(make, 2)
    assert read(loaders)[1] == read(loaders)[1] == Counter(range(5))


def test_samples_that_were_joined_into_one_row_count_whole_or_not_at_all(caplog):
    """A collator without padding; a batch of both kinds cannot be told apart, and this is said."""

    def joined(features):
        return {"labels": torch.cat([f["labels"] for f in features])[None]}

    def totals(size):
        loaders = ranks(lambda: DataLoader(Numbered(size), batch_size=2, collate_fn=joined), 2)
        found = []
        for loader in loaders:
            with evaluation_rows(loader, 2) as rows:
                found.append([rows.counted(batch) for batch in loader])
        return found

    assert totals(2) == [[None], [torch.tensor([False])]]
    assert not caplog.records
    assert totals(3) == [[None], [None]]
    assert "came as 1 rows" in caplog.text


def test_samples_that_were_joined_into_one_row_are_told_apart_by_their_position_ids(caplog):
    def joined(features):
        # As transformers' DataCollatorWithFlattening: the first label of each sample is ignored.
        labels = [torch.cat([torch.tensor([-100]), f["labels"].repeat(1 + int(f["labels"][0]) % 3)]) for f in features]
        positions = [torch.arange(len(of_one)) for of_one in labels]
        return {"labels": torch.cat(labels)[None], "position_ids": torch.cat(positions)[None]}

    for size in (3, 5, 6, 7):
        counted = Counter()
        for loader in ranks(lambda size=size: DataLoader(Numbered(size), batch_size=2, collate_fn=joined), 2):
            with evaluation_rows(loader, 2) as rows:
                for batch in loader:
                    mask, labels = rows.counted(batch), batch["labels"]
                    counted.update(
                        labels.flatten().tolist() if mask is None else labels[mask.expand_as(labels)].tolist()
                    )
        del counted[-100]
        assert counted == Counter({index: 2 * (1 + index % 3) for index in range(size)})
    assert not caplog.records


def test_a_loader_that_is_read_twice_in_one_pass_begins_anew():
    (_, second) = ranks(lambda: DataLoader(Numbered(3), batch_size=2), 2)
    with evaluation_rows(second, 2) as rows:
        counted = [rows.counted(batch) for _ in range(2) for batch in second]
    assert [mask.tolist() for mask in counted] == [[True, False]] * 2
