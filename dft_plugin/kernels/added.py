"""Statistics of rows that objectives add (`objectives.RowFunction`), made before the logits' memory is used again.

Shapes: T rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor

from dft_plugin.errors import PluginError
from dft_plugin.kernels.rows import block_rows
from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.kernels.types import Transform
from dft_plugin.objectives import BlockFunction, RowFunction, RowStatistic


def functions_in(needs: Collection[RowStatistic]) -> list[RowFunction]:
    """Return those that are functions, in the order of their names."""
    return sorted((need for need in needs if not isinstance(need, str)), key=lambda function: function.name)


def block_functions_in(needs: Collection[RowStatistic], kernel: str) -> list[BlockFunction]:
    """Return the functions, all of which must be made from blocks.

    Raises:
        PluginError: one wants whole rows.
    """
    functions = functions_in(needs)
    whole = [function.name for function in functions if not isinstance(function, BlockFunction)]
    if whole:
        raise PluginError(
            f"the statistic {', '.join(whole)} wants whole rows of logits, which {kernel} never holds. Give it a "
            "`combine` (see dft_plugin.objectives.BlockFunction), or choose another objective."
        )
    return cast("list[BlockFunction]", functions)


def named_in(needs: Collection[RowStatistic]) -> frozenset[RowStatistic]:
    """Return those that the kernels make themselves."""
    return frozenset(need for need in needs if isinstance(need, str))


def added_to_rows(
    needs: Collection[RowStatistic], logits_TV: Tensor, targets_T: Tensor, transform: Transform
) -> Mapping[str, Tensor]:
    """Compute what objectives add, a block of rows at a time.

    Args:
        needs: statistics, of which those with a name are left to others.
        logits_TV: raw logits of any float dtype; they stay as they are.
        targets_T: int64 targets in [0, V).
        transform: what the model does to raw logits.
    """
    functions = functions_in(needs)
    if not functions:
        return {}
    step = block_rows(logits_TV.device.type, logits_TV.shape[1])
    parts: dict[str, list[Tensor]] = {function.name: [] for function in functions}
    with torch.no_grad():
        for start in range(0, max(len(logits_TV), 1), step):
            rows = slice(start, start + step)
            block_TV = transform(logits_TV[rows].to(accumulation_dtype(logits_TV.dtype)))
            for function in functions:
                parts[function.name].append(function(block_TV, targets_T[rows]))
    return {name: torch.cat(blocks) for name, blocks in parts.items()}
