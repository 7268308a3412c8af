"""What a frozen reference made of a batch, turned into what an objective reads.

Shapes: N positions (flattened), T scored ones, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dft_plugin.core.targets import Selection
from dft_plugin.core.transfer import send
from dft_plugin.kernels import IDENTITY, OpaqueHead, Transform, opaque, score_logits
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
    """

    wanted: Wanted
    states: Tensor
    vocab_size: int
    project: Callable[[Tensor], Tensor] | None = None
    transform: Transform | None = None

    def fill(self, targets: Targets, chosen: Selection, transform: Transform) -> Targets:
        """Put into the targets what the reference says of them.

        Args:
            targets: of the scored positions.
            chosen: where they are.
            transform: what the model does to raw logits.
        """
        transform = self.transform or transform
        weigher = ReferenceColumns(self.wanted.columns)
        distribution: Distribution
        with torch.no_grad():
            if self.project is None:
                logits_NV = self.states.reshape(-1, self.states.shape[-1])
                positions_T = send(chosen.positions_T, logits_NV.device)
                distribution = OfLogits(logits_NV, IDENTITY, positions_T)
                made = score_logits(logits_NV, positions_T, targets, weigher) if self.wanted.columns else None
            else:
                hidden_TD = chosen.rows(self.states)
                autocast = autocast_dtype(hidden_TD.device.type)
                distribution = ByHead(hidden_TD, self.project, transform, autocast)
                head = OpaqueHead(self.project, self.vocab_size, transform)
                made = opaque(hidden_TD, head, targets, weigher) if self.wanted.columns else None
        columns = {} if made is None else {name: column_T.float() for name, column_T in made.statistics.items()}
        return replace(
            targets,
            columns={**targets.columns, **columns},
            reference=distribution if self.wanted.distribution else None,
        )
