"""A kernel's result: made from rows, joined from parts, carried through an autograd.Function.

Shapes: T rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from dft_plugin.errors import DftError, PluginError
from dft_plugin.kernels.compiled import out_of_memory
from dft_plugin.kernels.rows import concatenate
from dft_plugin.kernels.types import KernelResult
from dft_plugin.objectives import Rows, Targets, Weighed, Weigher


def weigh(objective: Weigher, rows: Rows, targets: Targets) -> KernelResult:
    """Weigh scored rows, and sum their losses; everything is detached.

    A weight of zero takes a token out even where log p is -inf.

    Args:
        objective: gives each row its weight.
        rows: statistics of T rows.
        targets: what they are to predict.

    Raises:
        PluginError: the objective does not return one number for each row, or reads a column that is not there.
    """
    missing = sorted(objective.columns - targets.columns.keys())
    if missing:
        raise PluginError(
            f"the objective {_called(objective)} reads the column {missing[0]} of the tokens, and nobody has "
            "given it: one number for each token is needed. Use dft_plugin.attach(model, ...) or activate(trainer, "
            "...), which take columns from the batch, and those of a reference from a model."
        )
    made = _asked(objective, rows, targets)
    weighed = made if isinstance(made, Weighed) else Weighed(made)
    weight_T = _one_each(weighed.weight_T, "weights", objective, rows)
    zero = torch.zeros((), dtype=weight_T.dtype, device=weight_T.device)
    loss_T = torch.where(weight_T == 0, zero, -weight_T * rows.logp_T)
    if weighed.value_T is not None:
        loss_T = _one_each(weighed.value_T, "values", objective, rows)
    # An objective of somebody else's may say anything.
    given: Any = weighed.statistics
    said = given if isinstance(given, Mapping) else {}
    statistics = {name: _one_each(said.get(name), name, objective, rows) for name in objective.statistics}
    if weighed.soft_T is not None and objective.reference != "distribution":
        raise PluginError(
            f"the objective {_called(objective)} returned strengths of soft targets, and declares `reference` as "
            f"{objective.reference!r}; with `reference = 'distribution'` they would take effect."
        )
    soft_T = None if weighed.soft_T is None else _one_each(weighed.soft_T, "strengths", objective, rows)
    return KernelResult(loss_T.sum(), rows, weight_T, loss_T, statistics, soft_T)


def _asked(objective: Weigher, rows: Rows, targets: Targets) -> Any:
    """Ask an objective, and name it where it fails: the traceback above is its own."""
    try:
        return objective.weigh(rows, targets, targets.clock)
    except DftError:
        raise
    except Exception as error:
        # Who makes batches smaller looks for the words of the device, or of the CPU's allocator.
        if out_of_memory(error) or "can't allocate memory" in str(error):
            raise
        raise PluginError(
            f"the objective {_called(objective)} failed while it weighed {rows.logp_T.numel()} tokens: "
            f"{type(error).__name__}: {error}. `dft_plugin.testing.check_objective` tries an objective by itself."
        ) from error


def _called(objective: Weigher) -> str:
    """Return an objective's name; one that is no plugin's needs none."""
    return getattr(objective, "name", type(objective).__name__)


def _one_each(given_T: Any, what: str, objective: Weigher, rows: Rows) -> Tensor:
    count, logp_T = rows.logp_T.numel(), rows.logp_T
    if not isinstance(given_T, Tensor):
        found = f"{what} that are a {type(given_T).__name__}"
    elif given_T.shape != logp_T.shape:
        found = f"{what} of shape {tuple(given_T.shape)}"
    elif given_T.is_complex() or given_T.layout != torch.strided:
        found = f"{what} of dtype {given_T.dtype} and layout {given_T.layout}"
    elif given_T.device != logp_T.device:
        found = f"{what} on {given_T.device}, and log p is on {logp_T.device},"
    else:
        return given_T.detach().to(logp_T.dtype)
    raise PluginError(
        f"the objective {_called(objective)} returned {found} for {count} tokens; return one number for each token, "
        f"[{count}]."
    )


def join(parts: Sequence[KernelResult]) -> KernelResult:
    """Join the results of consecutive rows: one part at least."""
    loss_sum = parts[0].loss_sum
    for part in parts[1:]:
        loss_sum = loss_sum + part.loss_sum
    return KernelResult(
        loss_sum,
        concatenate([part.rows for part in parts]),
        torch.cat([part.weight_T for part in parts]),
        torch.cat([part.loss_T for part in parts]),
        {name: torch.cat([part.statistics[name] for part in parts]) for name in parts[0].statistics},
        None if parts[0].soft_T is None else torch.cat([part.soft_T for part in parts if part.soft_T is not None]),
    )


def pick(result: KernelResult, index_C: Tensor) -> KernelResult:
    """Return some of the tokens of a result, with the sum of their losses, without a graph.

    Args:
        result: of T tokens.
        index_C: int64, which of them.
    """
    every: dict[str, Any] = {name: getattr(result.rows, name) for name in _ROWS}
    rows: dict[str, Any] = {name: None if row_T is None else row_T[index_C] for name, row_T in every.items()}
    loss_C = result.loss_T[index_C]
    return KernelResult(
        loss_C.sum(),
        Rows(**rows),
        result.weight_T[index_C],
        loss_C,
        {name: value_T[index_C] for name, value_T in result.statistics.items()},
    )


def with_extra(result: KernelResult, names: Sequence[str]) -> KernelResult:
    """Return a result that has statistics of rows among its per-token values, too.

    Args:
        result: of T tokens.
        names: `top1` (1 where no token is likelier than the target), `entropy` (in nats; it must have been asked for).
    """
    rows, added = result.rows, dict[str, Tensor]()
    # Not read where nobody asks: of a row of which log p alone is known, nobody knows it.
    if "top1" in names:
        added["top1"] = rows.is_top1_T.to(rows.logp_T.dtype)
    if "entropy" in names and rows.entropy_T is not None:
        added["entropy"] = rows.entropy_T
    return replace(result, statistics={**result.statistics, **added}) if added else result


_ROWS = tuple(field.name for field in fields(Rows) if field.name != "added")
"""What is returned of the rows. What objectives add to them has served once they were weighed."""


def as_outputs(ctx: Any, result: KernelResult) -> tuple[Tensor | None, ...]:
    """Return what `forward` of a kernel's Function returns: the sum, and statistics without a gradient."""
    rows = [getattr(result.rows, name) for name in _ROWS]
    detached = [result.weight_T, result.loss_T, result.soft_T, *rows, *result.statistics.values()]
    ctx.mark_non_differentiable(*[tensor for tensor in detached if tensor is not None])
    return result.loss_sum, *detached


def from_outputs(outputs: Sequence[Any], objective: Weigher) -> KernelResult:
    """Return the result that `as_outputs` took apart."""
    loss_sum, weight_T, loss_T, soft_T, *others = outputs
    rows, statistics = others[: len(_ROWS)], others[len(_ROWS) :]
    return KernelResult(
        loss_sum, Rows(*rows), weight_T, loss_T, dict(zip(objective.statistics, statistics, strict=True)), soft_T
    )
