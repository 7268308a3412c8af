"""Which tokens the log counts: those of the rows of an evaluation batch that are no repetition."""

from __future__ import annotations

import logging

from torch import Tensor

from dft_plugin.core.targets import Selection
from dft_plugin.saying import warn

logger = logging.getLogger(__name__)


def of_tokens(counted: Tensor, scored: Selection) -> Tensor | None:
    """Return which of the scored tokens a mask of rows or positions counts; None if it was made for another batch.

    Args:
        counted: on the CPU.
        scored: what was scored.
    """
    counted_BS = counted if counted.dim() == 2 else counted[:, None]
    if counted_BS.shape[0] != scored.shape[0] or counted_BS.shape[1] not in (1, scored.shape[1]):
        warn(
            logger,
            "dft: the rows of an evaluation batch were changed before the model saw them, so that those which were "
            "repeated to fill it up cannot be told apart: dft/* of this evaluation count them.",
        )
        return None
    return counted_BS.expand(scored.shape).reshape(-1)[scored.positions_T]
