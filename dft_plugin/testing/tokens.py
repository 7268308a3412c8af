"""Tokens to weigh, with everything that could be known of them: impossible to certain, in sequences of any length.

Shapes: T tokens, C of them, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dft_plugin.kernels.added import functions_in
from dft_plugin.objectives import SOFT_ENTROPY, SOFT_KL, Clock, Objective, Rows, Targets

VOCAB = 301
_LENGTHS = (1, 9, 2, 8, 3, 17, 4, 6, 5, 5, 1, 11)
_SURE = 60.0
"""Above the other logits by this much, a token is certain in float32; below by as much, as good as impossible."""

DECLARED_BY = {
    "rows.entropy_T": '`needs` names "entropy"',
    "rows.sum_p_squared_T": '`needs` names "sum_p_squared"',
    "targets.position_T": "`places` is True",
    "targets.sequence_T": "`places` is True, or `scope` is `sequence` or `batch`",
}
"""What is None unless an objective declares that it reads it, and how it does."""


class UndeclaredError(KeyError):
    """A column, or a function of rows, was read that the objective does not declare."""


class _Declared(dict[str, Tensor]):
    """What was declared, by name; the name of what was not is said."""

    def __init__(self, found: dict[str, Tensor], what: str, declare: str) -> None:
        super().__init__(found)
        self._what, self._declare = what, declare

    def __missing__(self, name: str) -> Tensor:
        raise UndeclaredError(f"it reads {self._what}[{name!r}], but `{self._declare}` does not name it")


@dataclass(frozen=True)
class Tokens:
    """What `weigh` gets.

    Attributes:
        rows: statistics of T tokens.
        targets: the same tokens.
    """

    rows: Rows
    targets: Targets

    def pick(self, index_C: Tensor) -> Tokens:
        """Return some of them, in the order of the index, as a kernel does that goes over chunks."""
        values: dict[str, Any] = {name: value for name, value in vars(self.rows).items() if name != "added"}
        rows: dict[str, Any] = {
            name: None if value_T is None else value_T[index_C] for name, value_T in values.items()
        }
        added = {name: value_T[index_C] for name, value_T in self.rows.added.items()}
        columns = {name: column_T[index_C] for name, column_T in self.targets.columns.items()}
        sequence_T, position_T = self.targets.sequence_T, self.targets.position_T
        targets = replace(
            self.targets,
            ids_T=self.targets.ids_T[index_C],
            position_T=None if position_T is None else position_T[index_C],
            # Those that are left are numbered again, as a batch of them would be.
            sequence_T=None if sequence_T is None else torch.unique(sequence_T[index_C], return_inverse=True)[1],
            columns=_columns(columns),
        )
        return Tokens(Rows(**rows, added=_added(added)), targets)

    def without(self, fact: str) -> Tokens:
        """Return them with one thing less known: a key of `DECLARED_BY`."""
        whose, name = fact.split(".")
        nothing: dict[str, Any] = {name: None}
        if whose == "rows":
            return replace(self, rows=replace(self.rows, **nothing))
        return replace(self, targets=replace(self.targets, **nothing))

    def tensors(self) -> list[Tensor]:
        """Return all that is known, to see whether it is still the same later."""
        known = [*vars(self.rows).values(), *vars(self.targets).values()]
        found = [value for value in known if isinstance(value, Tensor)]
        return [*found, *self.rows.added.values(), *self.targets.columns.values()]


def undeclared(objective: Objective) -> list[str]:
    """Return what the objective says that it does not read: keys of `DECLARED_BY`."""
    places = objective.places or objective.scope != "token"
    declared = {
        "rows.entropy_T": "entropy" in objective.needs,
        "rows.sum_p_squared_T": "sum_p_squared" in objective.needs,
        "targets.position_T": places,
        "targets.sequence_T": places,
    }
    return [fact for fact, is_declared in declared.items() if not is_declared]


def tokens_for(objective: Objective, dtype: torch.dtype, clock: Clock | None) -> Tokens:
    """Make tokens of which everything is known, but of columns and functions only those that are declared.

    Args:
        objective: says which columns and functions.
        dtype: float32 or float64, of the rows.
        clock: how far the run is.
    """
    logits_TV, ids_T = logits()
    logp_TV = logits_TV.log_softmax(-1)
    logp_T = logp_TV.gather(1, ids_T[:, None])[:, 0]
    p_TV = logp_TV.exp()
    rows = Rows(
        logp_T.to(dtype),
        -logp_T.expm1().to(dtype),
        logits_TV.argmax(-1) == ids_T,
        entropy_T=-(p_TV * logp_TV).nan_to_num().sum(-1).to(dtype),
        sum_p_squared_T=p_TV.square().sum(-1).to(dtype),
        added=_added(
            {one.name: one(logits_TV.to(dtype), ids_T) for one in functions_in(objective.needs)}
            | {name: value_T.to(dtype) for name, value_T in _beside_soft_targets(objective, logp_TV, ids_T).items()}
        ),
    )
    lengths = torch.tensor(_LENGTHS)
    position_T = torch.cat([torch.arange(length) for length in _LENGTHS])
    sequence_T = torch.arange(len(lengths)).repeat_interleave(lengths)
    columns = {name: _column(name, number, len(ids_T)) for number, name in enumerate(sorted(objective.columns))}
    return Tokens(rows, Targets(ids_T, position_T, sequence_T, _columns(columns), clock))


def logits() -> tuple[Tensor, Tensor]:
    """Return rows of float64 logits [T, V] and targets [T]: near impossible to certain, a flat row, a masked token."""
    generator = torch.Generator().manual_seed(0)
    count = sum(_LENGTHS)
    logits_TV = 2 * torch.randn(count, VOCAB, generator=generator, dtype=torch.float64)
    ids_T = torch.randint(0, VOCAB, (count,), generator=generator)
    logits_TV[torch.arange(count), ids_T] = torch.linspace(-_SURE, _SURE, count, dtype=torch.float64)
    logits_TV[5] = 0
    # The model is sure of another token; and one has been masked out.
    logits_TV[11, (ids_T[11] + 1) % VOCAB] = _SURE
    logits_TV[13, ids_T[13]] = -torch.inf
    return logits_TV, ids_T


def reference_logits() -> Tensor:
    """Return what a frozen reference might say of the same tokens, float64 [T, V]."""
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(sum(_LENGTHS), VOCAB, generator=generator, dtype=torch.float64)


def _beside_soft_targets(objective: Objective, logp_TV: Tensor, ids_T: Tensor) -> dict[str, Tensor]:
    """Return what kernels add to the rows of an objective with soft targets."""
    if objective.reference != "distribution":
        return {}
    log_q_TV = objective.soft_targets(reference_logits(), ids_T).log_softmax(-1)
    q_TV = log_q_TV.exp()
    entropy_T = -(q_TV * log_q_TV).nan_to_num().sum(-1)
    return {SOFT_KL: -(q_TV * logp_TV).sum(-1) - entropy_T, SOFT_ENTROPY: entropy_T}


def _column(name: str, number: int, count: int) -> Tensor:
    """Make numbers in (0, 1], or log-probabilities where the name says so."""
    column_T = 1 - torch.rand(count, generator=torch.Generator().manual_seed(number))
    return 10 * column_T.log() if name.endswith("logp") else column_T


def _added(found: dict[str, Tensor]) -> _Declared:
    return _Declared(found, "rows.added", "needs")


def _columns(found: dict[str, Tensor]) -> _Declared:
    return _Declared(found, "targets.columns", "columns")
