"""Objectives that divide, or look at tokens, in ways that none of ours does by name."""

from __future__ import annotations

from typing import ClassVar

import torch

from dft_plugin.objectives import DFT, Divisor, Objective, Scope


class Divided(DFT):
    """DFT over the sum of its weights."""

    name: ClassVar[str] = "divided"
    divisor: ClassVar[Divisor] = "weights"


class OfSequence(Objective):
    """The mean p of a sequence."""

    name: ClassVar[str] = "of_sequence"
    summary: ClassVar[str] = "w = mean p of the sequence"
    source: ClassVar[str] = "nowhere"
    scope: ClassVar[Scope] = "sequence"

    def weigh(self, rows, targets, clock):
        p_T = rows.logp_T.exp()
        sums_P = torch.zeros_like(p_T).index_add(0, targets.sequence_T, p_T)
        counts_P = torch.zeros_like(p_T).index_add(0, targets.sequence_T, torch.ones_like(p_T))
        return (sums_P / counts_P.clamp(min=1))[targets.sequence_T]


class OfBatch(Objective):
    """p over the mean p of the step."""

    name: ClassVar[str] = "of_batch"
    summary: ClassVar[str] = "w = p / mean p"
    source: ClassVar[str] = "nowhere"
    scope: ClassVar[Scope] = "batch"

    def weigh(self, rows, targets, clock):
        p_T = rows.logp_T.exp()
        return p_T / p_T.mean() if len(p_T) else p_T
