"""`dft probe`: what a model says of the very targets that a trainer would train it on, before it does.

Shapes: B batch, S sequence, T target tokens of a batch, K bands of probability.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dft_plugin.core.bands import EDGES, Bands
from dft_plugin.errors import ConflictError
from dft_plugin.hf.attachment import attach_plan
from dft_plugin.hf.model import require_causal_lm, unwrap
from dft_plugin.hf.tokens import kinds_of_tokens
from dft_plugin.objectives import Clock, Objective, Rows, RowStatistic, Targets, Weighed
from dft_plugin.plans import plan_for

if TYPE_CHECKING:
    from dft_plugin.core.loss import LossResult
    from dft_plugin.core.plan import LossPlan
    from dft_plugin.hf.attachment import Attachment

UNLIKELY, SURE = 0.01, 1.0
"""A target below this probability contradicts what the model is sure of if its entropy is below so many nats, and is
unknown to it otherwise."""

BEGINNING = 8
"""Targets of a row that count as its beginning."""

TAUGHT_APART = ("eos", "added")
"""Kinds of tokens that `always_learn` can exempt: they are no part of whether the model gives an answer itself."""


class Compared(Objective):
    """Weighs as plain likelihood does, and says how others would."""

    name: ClassVar[str] = "compared"
    summary: ClassVar[str] = "w = 1"
    source: ClassVar[str] = "dft-plugin"

    others: tuple[Objective, ...] = Field((), description="Whose weights are asked for.")

    @property
    def statistics(self) -> tuple[str, ...]:  # type: ignore[override]  # an option decides
        """The entropy, and a weight of each."""
        return ("entropy", *map(_column, range(len(self.others))))

    @property
    def needs(self) -> frozenset[RowStatistic]:  # type: ignore[override]  # an option decides
        """What the others read, and the entropy."""
        return frozenset[RowStatistic]({"entropy"}).union(*(one.needs for one in self.others))

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Return 1 [T], and the others' weights as statistics."""
        assert rows.entropy_T is not None
        found = {"entropy": rows.entropy_T}
        for number, one in enumerate(self.others):
            made = one.weigh(rows, targets, clock)
            found[_column(number)] = made.weight_T if isinstance(made, Weighed) else made
        return Weighed(torch.ones_like(rows.logp_T), statistics=found)


def _column(number: int) -> str:
    return f"weight_{number}"


@dataclass
class Kind:
    """Sums over the targets of one kind.

    Attributes:
        tokens: how many.
        prob: sum of their probabilities.
    """

    tokens: int = 0
    prob: float = 0.0

    def add(self, p_T: Tensor) -> None:
        """Add some."""
        self.tokens += p_T.numel()
        self.prob += float(p_T.double().sum())

    def as_json(self) -> dict[str, float]:
        """Return plain data."""
        return {"tokens": self.tokens, "mean_prob": self.prob / self.tokens if self.tokens else 0.0}


@dataclass
class Probe:
    """What was found; its size does not grow with the data, but for 16 bytes a row.

    Attributes:
        objectives: that are looked at, by what they are called.
        kinds: ids of tokens, by kind.
    """

    objectives: Mapping[str, Objective]
    kinds: Mapping[str, tuple[int, ...]]
    bands: Bands = field(default_factory=Bands)
    of_kind: dict[str, Kind] = field(default_factory=dict)
    entropy: float = 0.0
    top1: int = 0
    conflicts: int = 0
    unknown: int = 0
    rows: int = 0
    answers: int = 0
    own: float = 0.0
    seen: Counter[bytes] = field(default_factory=Counter)

    def add(self, result: LossResult) -> None:
        """Add the targets of a batch."""
        rows, ids_T = result.scored.rows, result.selection.ids_T
        if not ids_T.numel():
            return
        made = result.scored.statistics
        p_T, entropy_T = rows.logp_T.exp().cpu(), made["entropy"].cpu()
        weights = {name: made[_column(number)] for number, name in enumerate(self.objectives)}
        self.bands.add(rows.logp_T, rows.one_minus_p_T, weights)
        self.entropy += float(entropy_T.double().sum())
        self.top1 += int(rows.is_top1_T.sum())
        self.conflicts += int(((p_T < UNLIKELY) & (entropy_T < SURE)).sum())
        self.unknown += int(((p_T < UNLIKELY) & (entropy_T >= SURE)).sum())
        known_T = torch.zeros_like(ids_T, dtype=torch.bool)
        for kind, ids in self.kinds.items():
            of_kind_T = torch.isin(ids_T, torch.tensor(ids)) & ~known_T
            known_T |= of_kind_T
            self._kind(kind).add(p_T[of_kind_T])
        self._kind("text").add(p_T[~known_T])
        self._answers(result, rows.logp_T.cpu(), ids_T)
        row_T = result.selection.positions_T // result.selection.shape[-1]
        lengths = torch.unique_consecutive(row_T, return_counts=True)[1].tolist()
        for row_ids, row_p in zip(torch.split(ids_T, lengths), torch.split(p_T, lengths), strict=True):
            self._kind("beginnings").add(row_p[:BEGINNING])
            self.seen[hashlib.blake2b(row_ids.numpy().tobytes(), digest_size=16).digest()] += 1
        self.rows += len(lengths)

    def _answers(self, result: LossResult, logp_T: Tensor, ids_T: Tensor) -> None:
        """Count answers, targets that follow one another, and sum up how likely the model is to give each as it is."""
        place_T = result.selection.positions_T.cpu()
        begins_T = torch.ones_like(place_T, dtype=torch.bool)
        begins_T[1:] = place_T.diff() != 1
        begins_T |= place_T % result.selection.shape[-1] == 0
        apart = [token for kind in TAUGHT_APART for token in self.kinds.get(kind, ())]
        counted_T = logp_T.double().masked_fill(torch.isin(ids_T, torch.tensor(apart, dtype=ids_T.dtype)), 0.0)
        answers = int(begins_T.sum())
        self.own += float(torch.zeros(answers).double().index_add_(0, begins_T.cumsum(0) - 1, counted_T).exp().sum())
        self.answers += answers

    def _kind(self, name: str) -> Kind:
        return self.of_kind.setdefault(name, Kind())

    def finding(self) -> dict[str, float]:
        """Return the numbers that advice turns on."""
        tokens = self.bands.tokens
        nll = float(self.bands.nll_K.sum()) / tokens
        found = {
            "tokens": tokens,
            "rows": self.rows,
            "mean_prob": float(self.bands.prob_K.sum()) / tokens,
            "nll": nll,
            "entropy": self.entropy / tokens,
            "surprise": nll - self.entropy / tokens,
            "top1": self.top1 / tokens,
            "conflict_share": self.conflicts / tokens,
            "unknown_share": self.unknown / tokens,
            "answer_tokens": tokens / self.answers,
            "own_answers": self.own / self.answers,
            "repeated_share": 1 - len(self.seen) / self.rows,
        }
        for kind, sums in self.of_kind.items():
            if sums.tokens:
                found |= {f"{kind}_tokens": sums.tokens, f"{kind}_prob": sums.prob / sums.tokens}
        return found

    def by_band(self) -> list[dict[str, Any]]:
        """Return, for each band, the share of tokens and the share of each objective's gradient."""
        total = {name: float(one.sum()) or 1.0 for name, one in self.bands.gradient_K.items()}
        return [
            {
                "from": low,
                "to": high,
                "tokens": int(self.bands.tokens_K[band]),
                "share": float(self.bands.tokens_K[band]) / self.bands.tokens,
                "gradient": {name: float(one[band]) / total[name] for name, one in self.bands.gradient_K.items()},
            }
            for band, (low, high) in enumerate(pairwise(EDGES))
        ]

    def by_objective(self) -> dict[str, dict[str, float]]:
        """Return effective tokens, mean weight, and mean |w| (1 - p), the size of the gradient, of each objective."""
        tokens = self.bands.tokens
        return {
            name: {
                "effective_tokens": self.bands.effective_tokens(name),
                "mean_weight": float(weight_K.sum()) / tokens,
                "gradient": float(self.bands.gradient_K[name].sum()) / tokens,
            }
            for name, weight_K in self.bands.weight_K.items()
        }


def can_be_probed(objective: Objective) -> bool:
    """Say whether an objective's weights are known from the model alone, token by token."""
    return objective.scope == "token" and objective.reference == "none" and not objective.columns


def probe(trainer: Any, objectives: Mapping[str, Objective], tokens: int, advance: Callable[[int], None]) -> Probe:
    """Run a trainer's model over its training data, in the trainer's own batches and order, without training.

    Args:
        trainer: a `transformers.Trainer` as it is when training begins.
        objectives: to compare, by what they are called; each such that `can_be_probed`.
        tokens: targets to look at; fewer where the data has no more.
        advance: is told how many targets were looked at.

    Raises:
        ConflictError: several processes, a sharded model, or data without a target.
    """
    require_whole(trainer, "dft probe")
    model = require_causal_lm(unwrap(trainer.model))
    found = Probe(objectives, kinds_of_tokens(model, getattr(trainer, "processing_class", None)))
    with (
        looking(model, plan_for(Compared(others=tuple(objectives.values())))) as attached,
        torch.no_grad(),
        trainer.accelerator.autocast(),
    ):
        for batch in trainer.get_train_dataloader():
            inputs = taken(model, trainer._prepare_inputs(batch))
            before = found.bands.tokens
            found.add(attached.score(model, inputs, want_logits=False).result)
            advance(found.bands.tokens - before)
            if found.bands.tokens >= tokens:
                break
    if not found.bands.tokens:
        raise no_target()
    return found


def require_whole(trainer: Any, command: str) -> None:
    """Refuse several processes and sharded models.

    Raises:
        ConflictError: names the command.
    """
    if trainer.args.world_size > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConflictError(
            [f"`{command}` runs in one process, with the whole model. Leave FSDP, DeepSpeed and launchers out for it."]
        )


def no_target() -> ConflictError:
    """Return what is to be said of data in which nothing is to be learned."""
    return ConflictError(
        [
            "the training data has no target: every label is -100. Look at the chat template, at what is masked, "
            "and at the length at which rows are cut."
        ]
    )


@contextmanager
def looking(model: Any, plan: LossPlan) -> Iterator[Attachment]:
    """Have a loss on a model in eval mode for a while; then model and mode are as they were."""
    training = model.training
    attached = attach_plan(model, plan)
    try:
        model.eval()
        yield attached
    finally:
        model.train(training)
        attached.detach()


def taken(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without what a trainer hands over for itself."""
    parameters = inspect.signature(model.forward).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        known = {key for key in inputs if not key.startswith(("num_items", "num_input"))}
    else:
        known = {*parameters}
    return {key: value for key, value in inputs.items() if key in known or key == "labels"}
