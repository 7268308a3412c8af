"""`softmax.score_block_`, compiled for an accelerator: what is run where the Triton kernel is not.

Shapes: T rows of the block, V vocabulary.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dft_plugin.kernels.softmax import HALF_PEAK, Scored, score_block_
from dft_plugin.kernels.types import Transform
from dft_plugin.objectives import RowStatistic
from dft_plugin.saying import warn

logger = logging.getLogger(__name__)


class CompiledScorer:
    """`score_block_`, compiled until the compiler fails (no Triton, no C compiler, a dtype that it does not know).

    From then on it runs as it is, which is slower and gives the same numbers. A compiler may fail at any call that it
    has to compile for: at a new shape, dtype or option.
    """

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._compiled: Callable[..., Scored] | None = None
        self._failed = False
        self._ran: set[tuple[Any, ...]] = set()

    @property
    def code(self) -> str:
        """What scores now: `torch.compile`, or `plain` once that failed."""
        return "plain" if self._failed else "torch.compile"

    def __call__(
        self,
        logits_TV: Tensor,
        targets_T: Tensor,
        transform: Transform,
        needs: frozenset[RowStatistic] = frozenset(),
        *,
        peak: float = HALF_PEAK,
    ) -> Scored:
        """Score a block; arguments as those of `score_block_`."""
        if self._failed:
            return score_block_(logits_TV, targets_T, transform, needs, peak=peak)
        call = (logits_TV.device, logits_TV.dtype, logits_TV.shape, transform, needs, peak)
        # A compiler may fail as late as when one kernel of many is launched: the others may have written.
        kept_TV = None if call in self._ran else logits_TV.clone()
        try:
            if self._compiled is None:
                self._compiled = torch.compile(score_block_, dynamic=True)
            scored = self._compiled(logits_TV, targets_T, transform, needs, peak=peak)
        except Exception as error:
            if out_of_memory(error):
                raise
            if kept_TV is not None:
                logits_TV.copy_(kept_TV)
            elif not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                # It was compiled already. (What dynamo raises comes before anything runs.)
                raise
            # What is wrong with the inputs or the device raises here again, and is not the compiler's.
            scored = score_block_(logits_TV, targets_T, transform, needs, peak=peak)
            self._failed, self._compiled = True, None
            say_without("torch.compile does not work", self._device_type, error)
        else:
            self._ran.add(call)
        return scored


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, which no slower code mends; the driver and compilers wrap it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()


def say_without(what: str, device_type: str, error: Exception) -> None:
    """Warn of what failed, with one line of the reason: the first, but Triton's compiler begins with a place."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    reason = " ".join([first, *others[:1]]) if first.endswith(":") else first
    if re.match(r"at \d+:\d+:", first):
        reason = [first, *others][-1]
    warn(logger, "dft: %s on %s, going on without it: %s", what, device_type, reason)
