"""A head whose rows are split over the ranks of a process group.

Shapes: D hidden size, V vocabulary, L rows of it on this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dft_plugin.errors import ShardError
from dft_plugin.kernels.types import IDENTITY, Transform


@dataclass(frozen=True)
class VocabShard:
    """How the rows of a head lie on the ranks of a group: contiguous, in the order of the ranks.

    Attributes:
        group: the ranks; None is the default group.
        rows: number of rows on each rank of the group; they may differ, and be 0.
    """

    group: dist.ProcessGroup | None
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        size = dist.get_world_size(self.group)
        if len(self.rows) != size or min(self.rows) < 0 or not sum(self.rows):
            raise ShardError(
                f"the rows {self.rows} do not describe a vocabulary on {size} ranks; give the number of rows on each "
                "rank of the group, one of them at least."
            )

    @property
    def local_rows(self) -> int:
        """L."""
        return self.rows[dist.get_rank(self.group)]

    @property
    def first_row(self) -> int:
        """Index in the vocabulary of this rank's first row."""
        return sum(self.rows[: dist.get_rank(self.group)])

    @property
    def vocab_size(self) -> int:
        """V."""
        return sum(self.rows)

    @classmethod
    def even(cls, vocab_size: int, group: dist.ProcessGroup | None = None) -> VocabShard:
        """As `torch.chunk` and a DTensor's `Shard(0)` split V rows: ceil(V / ranks) on each, the rest on the last."""
        size = dist.get_world_size(group)
        most = -(-vocab_size // size)
        return cls(group, tuple(max(0, min(most, vocab_size - rank * most)) for rank in range(size)))

    @classmethod
    def gather(cls, weight_LD: Tensor, labels: Tensor, group: dist.ProcessGroup | None = None) -> VocabShard:
        """Ask every rank how many rows it holds, and whether it was given the same labels. A collective.

        Raises:
            ShardError: on every rank, if the ranks' labels or hidden sizes differ.
        """
        rows, width = weight_LD.shape
        ranks = _told([rows, width, labels.numel(), int(labels.sum())], weight_LD.device, group)
        withdrawn = [number for number, rank in enumerate(ranks) if rank[0] < 0]
        if withdrawn:
            raise ShardError(
                f"rank {withdrawn[0]} of the vocabulary was given what nothing can be computed with, and says why. "
                "Give every rank of the group the same hidden states and labels."
            )
        if any(rank[1:] != ranks[0][1:] for rank in ranks):
            raise ShardError(
                f"the ranks of the vocabulary were given different inputs: hidden size, number and sum of labels are "
                f"{', '.join(str(tuple(rank[1:])) for rank in ranks)}. Give every rank of the group the same hidden "
                "states and labels; different batches belong on different groups."
            )
        return cls(group, tuple(rank[0] for rank in ranks))

    @staticmethod
    def withdraw(group: dist.ProcessGroup | None = None, *, near: Sequence[object] = ()) -> None:
        """Let the other ranks' `gather` fail, since this rank is about to raise: none waits for it. A collective.

        Args:
            group: that would have been asked.
            near: what was given; the first tensor that is somewhere says on which device the others are.
        """
        if dist.is_initialized():
            places = [one.device for one in near if isinstance(one, Tensor) and not one.is_meta]
            _told([-1] * 4, places[0] if places else torch.device("cpu"), group)


def _told(numbers: list[int], device: torch.device, group: dist.ProcessGroup | None) -> list[list[int]]:
    """Return the numbers of every rank."""
    mine = torch.tensor(numbers, device=device)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group=group)
    return [part.tolist() for part in parts]


@dataclass(frozen=True)
class ShardedHead:
    """This rank's rows of a head: logits = transform(hidden @ weight.T + bias).

    Attributes:
        weight_LD: the local rows.
        shard: whose rows they are.
        bias_L: or None; on all ranks alike.
        transform: what the model does to the raw logits.
    """

    weight_LD: Tensor
    shard: VocabShard
    bias_L: Tensor | None = None
    transform: Transform = IDENTITY

    def __post_init__(self) -> None:
        for name, tensor in (("weight", self.weight_LD), ("bias", self.bias_L)):
            if tensor is not None and tensor.shape[0] != self.shard.local_rows:
                raise ShardError(
                    f"the local {name} has {tensor.shape[0]} rows, but the shard gives this rank "
                    f"{self.shard.local_rows} of {self.shard.vocab_size}; pass this rank's rows, not the whole head."
                )

    @property
    def vocab_size(self) -> int:
        """Number of logits per position, on all ranks together."""
        return self.shard.vocab_size
