"""What a frozen reference made of a batch, turned into what an objective reads.

Shapes: N positions (flattened), T scored ones, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dft_plugin.core.targets import Selection
from dft_plugin.core.transfer import send
from dft_plugin.kernels import (
    IDENTITY,
    Head,
    KernelResult,
    OpaqueHead,
    ShardedHead,
    Transform,
    auto,
    beside_another,
    opaque,
    score_logits,
)
from dft_plugin.kernels.gemm import autocast_dtype
from dft_plugin.kernels.terms import ByHead, OfLogits
from dft_plugin.objectives import Distribution, ReferenceColumns, Targets


@dataclass(frozen=True)
class Wanted:
    """What is read of a reference at one time of a run.

    Attributes:
        columns: those of `objectives.REFERENCE_COLUMNS` that are to be made.
        distribution: whether its logits are read, too.
    """

    columns: tuple[str, ...] = ()
    distribution: bool = False

    def __bool__(self) -> bool:
        """Whether anything is."""
        return bool(self.columns) or self.distribution


@dataclass(frozen=True)
class Referred:
    """One pass of a reference over a batch, without a graph.

    Attributes:
        wanted: what is read of it.
        states: hidden states [..., D], or, where there is no `project`, transformed logits [..., V].
        vocab_size: V.
        project: hidden [T, D] to the reference's raw logits [T, V].
        transform: what it does to them, where it is another model; None: what the model does.
        read: hidden [T, D] and a transform to a context in which the reference's head can be read, with the head; None
            where it can only be called.
    """

    wanted: Wanted
    states: Tensor
    vocab_size: int
    project: Callable[[Tensor], Tensor] | None = None
    transform: Transform | None = None
    read: Callable[[Tensor, Transform], AbstractContextManager[Head | None]] | None = None

    def fill(self, targets: Targets, chosen: Selection, head: Head | OpaqueHead | ShardedHead | None) -> Targets:
        """Put into the targets what the reference says of them.

        Args:
            targets: of the scored positions.
            chosen: where they are.
            head: that of the model; None where its logits are there.
        """
        made: KernelResult | None
        distribution: Distribution
        with torch.no_grad():
            if self.project is None:
                logits_NV = self.states.reshape(-1, self.states.shape[-1])
                positions_T = send(chosen.positions_T, logits_NV.device)
                distribution = OfLogits(logits_NV, IDENTITY, positions_T)
                made = score_logits(logits_NV, positions_T, targets, self._weigher) if self.wanted.columns else None
            else:
                hidden_TD, transform = (
                    chosen.rows(self.states),
                    self.transform or (head.transform if head else IDENTITY),
                )
                autocast = autocast_dtype(hidden_TD.device.type)
                distribution = ByHead(hidden_TD, self.project, transform, autocast)
                reads = self.read(hidden_TD, transform) if self.read and isinstance(head, Head) else nullcontext()
                with reads as readable:
                    called = OpaqueHead(self.project, self.vocab_size, transform)
                    made = self._score(hidden_TD, readable or called, targets) if self.wanted.columns else None
        columns = {} if made is None else {name: column_T.float() for name, column_T in made.statistics.items()}
        return replace(
            targets,
            columns={**targets.columns, **columns},
            reference=distribution if self.wanted.distribution else None,
        )

    @property
    def _weigher(self) -> ReferenceColumns:
        return ReferenceColumns(self.wanted.columns)

    def _score(self, hidden_TD: Tensor, head: Head | OpaqueHead, targets: Targets) -> KernelResult:
        if isinstance(head, Head):
            return auto(hidden_TD, head, targets, self._weigher)
        return opaque(
            hidden_TD, head, targets, self._weigher, scratch_bytes=beside_another(hidden_TD.device.type, None)
        )
