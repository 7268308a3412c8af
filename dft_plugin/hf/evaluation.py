"""Where evaluation's mask comes from: which rows of an evaluation batch are repeats, for statistics only.

On several ranks accelerate fills up the last batches with rows from the beginning. `eval_loss` has them in it, as the
stock trainer's has; sums over tokens must not. What is a repeat is asked of the loader that is being iterated: its own
sharding is run once more, for every rank, on positions instead of data.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher, DataLoaderStateMixin
from accelerate.data_loader import IterableDatasetShard as AccelerateStreamShard
from torch import Tensor
from torch.utils.data import DistributedSampler
from transformers.trainer_pt_utils import IterableDatasetShard

from dft_plugin.hf.batch_parts import labels_of
from dft_plugin.hf.replay import replaying_batches, replaying_stream
from dft_plugin.saying import warn

logger = logging.getLogger(__name__)

Flags = list[bool] | None
"""For each sample of a batch, whether it is there for the first time; None: all are."""


class EvaluationRows:
    """Says of each batch of one pass over a loader which of its rows count.

    Attributes:
        digest: of every batch so far, where the loader is none that we know, so that ranks with the same data show.
    """

    def __init__(self, samples: Callable[[int], Flags], *, foreign: bool = False) -> None:
        self.digest = hashlib.blake2b(digest_size=7) if foreign else None
        self._samples = samples
        self._seen: Any = None
        self._counted: Tensor | None = None
        self._said: set[str] = set()

    def counted(self, batch: Any) -> Tensor | None:
        """Return the mask of the rows (or positions) that count, bool [B] or [B, S] on the CPU; None: all of them.

        Args:
            batch: as the loader gave it; the same one may be asked for again.
        """
        if batch is not self._seen:
            self._seen = batch
            self._counted = self._ask(batch)
        return self._counted

    def warn(self, text: str, *args: object) -> None:
        """Log a warning, the first time in this pass: what holds for a batch mostly holds for the next."""
        if text not in self._said:
            self._said.add(text)
            warn(logger, text, *args)

    def copies(self, accelerator: Any) -> int:
        """Return how many ranks were given exactly this rank's data. Every rank must call it."""
        assert self.digest is not None
        own = torch.tensor([int.from_bytes(self.digest.digest(), "big")], device=accelerator.device)
        return int((accelerator.gather(own) == own).sum())

    def _ask(self, batch: Any) -> Tensor | None:
        labels = labels_of(batch)
        if labels is None:
            self._samples(0)
            return None
        if self.digest is not None:
            self.digest.update(_bytes(batch))
        rows = labels.shape[0]
        flags = self._samples(rows)
        if flags is None or all(flags):
            return None
        if not any(flags):
            return torch.zeros(rows, dtype=torch.bool)
        if len(flags) != rows:
            flattened = _of_flattened(batch, labels, flags)
            if flattened is not None:
                return flattened
            self.warn(
                "dft: a batch of %d samples came as %d rows, so that the %d samples that were repeated to fill it up "
                "cannot be told apart: dft/* of this evaluation count them.",
                len(flags),
                rows,
                flags.count(False),
            )
            return None
        return torch.tensor(flags)


@contextmanager
def evaluation_rows(loader: Any, processes: int) -> Iterator[EvaluationRows]:
    """Watch one pass over `loader`.

    Args:
        loader: what `evaluation_loop` iterates.
        processes: number of ranks; one alone never has repeats.
    """
    if processes == 1:
        yield EvaluationRows(_all_real)
        return
    loader = _prepared_inside(loader)
    if isinstance(loader, DataLoaderDispatcher):
        yield EvaluationRows(lambda rows: _dispatched(loader, rows))
        return
    sharded = _sharded_sampler(loader)
    if sharded is not None:
        with _in_order(loader), replaying_batches(sharded) as replay:
            yield EvaluationRows(replay)
        return
    stream = getattr(loader, "dataset", None)
    if isinstance(stream, (AccelerateStreamShard, IterableDatasetShard)):
        if getattr(loader, "num_workers", 0):
            warn(
                logger,
                "dft: rows repeated to fill up the last batch are read by the loader's workers, where they cannot be "
                "told apart: dft/* of this evaluation count them. Set dataloader_num_workers to 0, or leave "
                "dispatch_batches as it is.",
            )
            yield EvaluationRows(_all_real)
            return
        with replaying_stream(stream, loader.batch_size or 1) as replay:
            yield EvaluationRows(replay)
        return
    split = _distributed_sampler(loader)
    if split is not None:
        yield EvaluationRows(_Distributed(split))
        return
    yield EvaluationRows(_all_real, foreign=not isinstance(loader, DataLoaderStateMixin))


def _all_real(rows: int) -> Flags:
    return None


def _dispatched(loader: Any, rows: int) -> Flags:
    """Process 0 reads and gives out equal parts; only the last batch is filled up."""
    if not loader.end_of_dataloader or loader.remainder < 0:
        return None
    real = loader.remainder - loader.state.process_index * rows
    return [row < real for row in range(rows)]


class _Distributed:
    """torch's DistributedSampler: rank, rank + P, rank + 2 P ... of the data, filled up from the beginning."""

    def __init__(self, sampler: DistributedSampler[Any]) -> None:
        self.sampler = sampler
        self.samples = 0

    def __call__(self, rows: int) -> Flags:
        first, self.samples = self.samples, self.samples + rows
        sampler = self.sampler
        size = len(sampler.dataset)  # type: ignore[arg-type]  # the sampler has asked for it
        return [
            sample < sampler.num_samples and sample * sampler.num_replicas + sampler.rank < size
            for sample in range(first, first + rows)
        ]


@contextmanager
def _in_order(loader: Any) -> Iterator[None]:
    """Have batches arrive in the order of the sampler, also where workers may overtake each other."""
    inner = getattr(loader, "base_dataloader", loader)
    if getattr(inner, "in_order", True):
        yield
        return
    inner.in_order = True
    try:
        yield
    finally:
        inner.in_order = False


def _prepared_inside(loader: Any) -> Any:
    """Return the loader that accelerate prepared, if `loader` is a thin wrapper around one."""
    if isinstance(loader, DataLoaderStateMixin):
        return loader
    held = [item for item in getattr(loader, "__dict__", {}).values() if isinstance(item, DataLoaderStateMixin)]
    return held[0] if len(held) == 1 else loader


def _sharded_sampler(loader: Any) -> BatchSamplerShard | None:
    for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        if isinstance(sampler, BatchSamplerShard) and sampler.num_processes > 1:
            return sampler
    return None


def _distributed_sampler(loader: Any) -> DistributedSampler[Any] | None:
    if isinstance(loader, DataLoaderStateMixin):
        return None
    for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        for candidate in (sampler, getattr(sampler, "sampler", None)):
            if isinstance(candidate, DistributedSampler):
                return candidate
    return None


def _of_flattened(batch: Mapping[str, Any], labels: Tensor, flags: list[bool]) -> Tensor | None:
    """Return a mask of positions [B, S] for samples that a collator has put behind one another in one row.

    Their boundaries are where position ids begin again. None where these are not there, or tell another number.
    """
    positions = batch.get("position_ids")
    if not isinstance(positions, Tensor) or positions.shape != labels.shape:
        return None
    sample_BS = ((positions == 0).flatten().cumsum(0) - 1).reshape(labels.shape)
    if int(sample_BS.max()) + 1 != len(flags) or int(sample_BS.min()) < 0:
        return None
    return torch.tensor(flags, device=sample_BS.device)[sample_BS].cpu()


def _bytes(batch: Mapping[str, Any]) -> bytes:
    tensors = (batch[key] for key in sorted(batch) if isinstance(batch[key], Tensor))
    whole = (tensor.detach().cpu() for tensor in tensors if not tensor.dtype.is_floating_point)
    return b"".join(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes() for tensor in whole)
