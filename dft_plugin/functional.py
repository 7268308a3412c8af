"""The loss as plain functions, for a training loop of one's own.

Shapes: V vocabulary, H hidden size; `...` stands for any leading dimensions, the same in all inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dft_plugin.config.plugins import Catalogue, build_catalogue
from dft_plugin.core.loss import NumItems, hidden_loss, logits_loss
from dft_plugin.core.plan import COLUMNS, LossPlan
from dft_plugin.core.targets import IGNORE_INDEX, Facts
from dft_plugin.errors import LabelError, SettingsError
from dft_plugin.kernels import Head, ShardedHead, Transform, VocabShard
from dft_plugin.objectives import Objective

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LossLike = str | Mapping[str, Any] | Objective
"""A name (`"dft"`), a mapping as in YAML (`{"name": "dft", "alpha": 0.7}`), or an Objective."""


def token_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    objective: LossLike = "dft",
    num_items: NumItems = None,
    ignore_index: int = IGNORE_INDEX,
    facts: Facts | None = None,
) -> Tensor:
    """Token loss on logits: `sum(-w * log p) / num_items`, with w = sg(p) for `dft`.

    p and all sums are float32 (float64 for float64 logits). Memory beyond the logits: their gradient and
    16 MB. arXiv 2508.05629, eq. 9.

    Args:
        logits: [..., V], any float dtype.
        labels: [...], any integer dtype, already aligned: `labels[i]` is what `logits[i]` predicts.
        objective: a name, a mapping as in YAML, or an Objective.
        num_items: target tokens of the whole optimizer step; None: `labels` are the whole step. Refused where the
            objective divides by more than tokens, or weighs a token by all others of the step.
        ignore_index: the label of positions that are not scored.
        facts: columns and places of the tokens, and how far the run is, for an objective that asks for them.

    Returns:
        The loss, a scalar in nats per token; a zero connected to the graph if nothing is scored.

    Raises:
        SettingsError: the objective is unknown, or an option of it is wrong.
        LabelError: a label is outside the vocabulary, shapes do not match, num_items is impossible or refused, or
            tensors are on `meta`.
        ClockError: the objective changes during a run, and `facts` has no clock.
    """
    _require_numbers(labels=labels)
    plan = _plan_without_tokenizer(objective, facts, logits.shape[-1])
    return logits_loss(plan, logits, labels, ignore_index=ignore_index, facts=facts).mean(num_items)


def linear_token_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    objective: LossLike = "dft",
    num_items: NumItems = None,
    ignore_index: int = IGNORE_INDEX,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    facts: Facts | None = None,
) -> Tensor:
    """Linear layer and token loss in one; never holds more than a chunk of logits.

    Equal to `token_loss(softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap), labels)`. The
    gradients are computed in the forward pass. Memory beyond inputs and gradients, unless `scratch_mb` says otherwise:
    40 MiB where `weight` is frozen and on a CPU, else 300 MiB, or 64 rows of logits.

    Args:
        hidden: [..., H], any float dtype.
        weight: [V, H].
        labels: [...], any integer dtype, already aligned: `labels[i]` is what `hidden[i]` predicts.
        bias: [V] or None.
        objective: a name, a mapping as in YAML (`kernel` and `scratch_mb` are heeded), or an Objective.
        num_items: target tokens of the whole optimizer step; None: `labels` are the whole step. Refused where the
            objective divides by more than tokens, or weighs a token by all others of the step.
        ignore_index: the label of positions that are not scored; they never reach a GEMM.
        logit_scale: factor on the raw logits.
        softcap: bound of the scaled logits, applied as `softcap * tanh(logits / softcap)`.
        facts: columns and places of the tokens, and how far the run is, for an objective that asks for them.

    Returns:
        The loss, a scalar in nats per token; a zero connected to the graph if nothing is scored.

    Raises:
        SettingsError: the objective is unknown, or an option of it is wrong.
        LabelError: a label is outside the vocabulary, shapes do not match, num_items is impossible or refused, or
            tensors are on `meta`.
        ClockError: the objective changes during a run, and `facts` has no clock.
    """
    _require_width(hidden, weight)
    _require_numbers(hidden=hidden, weight=weight, labels=labels)
    head = Head(weight, bias, Transform(logit_scale, softcap))
    plan = _plan_without_tokenizer(objective, facts, head.vocab_size, heeds=("kernel", "scratch_mb"))
    return hidden_loss(plan, hidden, head, labels, ignore_index=ignore_index, facts=facts).mean(num_items)


def vocab_parallel_token_loss(
    hidden: Tensor,
    local_weight: Tensor,
    labels: Tensor,
    *,
    group: ProcessGroup | None = None,
    local_bias: Tensor | None = None,
    objective: LossLike = "dft",
    num_items: NumItems = None,
    ignore_index: int = IGNORE_INDEX,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    facts: Facts | None = None,
) -> Tensor:
    """`linear_token_loss` where each rank of `group` holds some rows of the head; a collective of the group.

    The rows of the ranks, one after the other, are the head; no rank needs as many as another. Everything but
    `local_weight` and `local_bias` is the same on all ranks, and so is the loss. The gradient that `hidden` gets is
    whole, summed over the ranks: what stands before the head must not sum it again, as the input side of
    Megatron's column-parallel layers does. arXiv 1909.08053, section 3.

    Args:
        hidden: [..., H], any float dtype.
        local_weight: [L, H], this rank's rows of the head.
        labels: [...], any integer dtype, already aligned, indices of the whole vocabulary.
        group: the ranks that share the vocabulary; None is the default group.
        local_bias: [L], or None on all ranks.
        objective: a name, a mapping as in YAML (`scratch_mb` is heeded, `kernel` refused), or an Objective.
        num_items: target tokens of the whole optimizer step; None: `labels` are the whole step. Refused where the
            objective divides by more than tokens, or weighs a token by all others of the step.
        ignore_index: the label of positions that are not scored; they never reach a GEMM.
        logit_scale: factor on the raw logits.
        softcap: bound of the scaled logits, applied as `softcap * tanh(logits / softcap)`.
        facts: columns and places of the tokens, and how far the run is, for an objective that asks for them.

    Returns:
        The loss, a scalar in nats per token; a zero connected to the graph if nothing is scored.

    Raises:
        ShardError: the ranks were given different labels or hidden sizes (raised on every rank).
        SettingsError: the objective is unknown, or an option of it is wrong.
        LabelError: a label is outside the vocabulary, shapes do not match, num_items is impossible or refused, or
            tensors are on `meta`.
        ClockError: the objective changes during a run, and `facts` has no clock.
    """
    _require_numbers(hidden=hidden, local_weight=local_weight, labels=labels)
    shard = VocabShard.gather(local_weight, labels, group)
    head = ShardedHead(local_weight, shard, local_bias, Transform(logit_scale, softcap))
    plan = _plan_without_tokenizer(objective, facts, head.vocab_size, heeds=("scratch_mb",))
    return hidden_loss(plan, hidden, head, labels, ignore_index=ignore_index, facts=facts).mean(num_items)


def _require_numbers(**given: Tensor) -> None:
    found = [f"`{name}`" for name, tensor in given.items() if tensor.device.type == "meta"]
    if found:
        raise LabelError(
            f"{' and '.join(found)}: on `meta`, where tensors have shapes and no numbers, so there is no loss to "
            "compute. Give tensors on a device that holds them."
        )


def _require_width(hidden: Tensor, weight: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise LabelError(
            f"weight is a {type(weight).__name__}; a tensor [V, H] is needed: of a layer, give its `.weight`."
        )
    width = hidden.shape[-1]
    if weight.dim() == 2 and weight.shape[1] == width:
        return
    transposed = weight.dim() == 2 and weight.shape[0] == width
    give = "its transpose" if transposed else "the weight of the head that follows these hidden states"
    raise LabelError(
        f"weight has shape {tuple(weight.shape)}, and hidden {tuple(hidden.shape)}: [V, H] is needed, with H = "
        f"{width}. Give {give}."
    )


@cache
def _installed() -> Catalogue:
    """Read the catalogue once per process: a training loop asks in every step."""
    return build_catalogue()


def _plan_without_tokenizer(
    objective: LossLike, facts: Facts | None, vocab_size: int, heeds: Collection[str] = ()
) -> LossPlan:
    """Resolve an objective for a function, which gets no tokenizer.

    Args:
        objective: as a caller passed it.
        facts: columns of the data that the caller passed.
        vocab_size: logits of a position.
        heeds: which of the settings besides the objective's own take effect in the function.

    Raises:
        SettingsError: it names tokens by words or beyond the vocabulary, reads a column that is not there, or sets
            what has no effect in the function.
    """
    plan = plan_for(objective, _installed())
    problems = [
        f"`objective` names tokens by a word ({word!r}), and this function has no tokenizer to turn it into ids. Give "
        "ids in its place: `always_learn: [tokenizer.eos_token_id]`, or `weights: {tokens: {ID: 2.0}}`."
        for word in plan.rules.words
    ]
    problems += [
        f"`objective` sets `{key}`, which has no effect in this function{why}. Drop it."
        for key, why in _without_effect(plan, heeds).items()
    ]
    problems += [
        f"`objective` names the token {number}, and there are {vocab_size} logits (allowed: 0 to {vocab_size - 1})."
        for number in sorted({*plan.rules.ids, *plan.rules.factors_by_id})
        if number >= vocab_size
    ]
    # Nobody runs a reference here.
    columns = plan.columns | plan.filled | ({plan.rules.column} if plan.rules.column else set())
    given = set() if facts is None else facts.columns.keys()
    problems += [
        f"`objective` reads `{name}`, which this function was not given. Give it one number for each label: "
        f"`facts=dft_plugin.Facts(columns={{{name!r}: tensor}})`."
        for name in sorted(columns - given)
    ]
    if problems:
        raise SettingsError(problems)
    return plan


def _without_effect(plan: LossPlan, heeds: Collection[str]) -> dict[str, str]:
    """Return which settings were given that a function cannot heed, and why."""
    given = {
        "kernel": plan.path == "logits" or (plan.path != "auto" and "kernel" not in heeds),
        "scratch_mb": plan.scratch_bytes is not None and "scratch_mb" not in heeds,
        "reference": plan.reference not in (None, COLUMNS),
        "log": bool(plan.extra),
    }
    reasons = {
        "reference": ": it takes what a reference says in columns (`facts=`)",
        "log": ": it writes none",
    }
    return {key: reasons.get(key, "") for key, is_given in given.items() if is_given}


def plan_for(loss: LossLike, catalogue: Catalogue | None = None) -> LossPlan:
    """Resolve what a caller of the library passed as `objective` or `loss`."""
    catalogue = catalogue or build_catalogue()
    if isinstance(loss, Objective):
        default = catalogue.plan(catalogue.settings("nll"))
        return replace(default, objective=loss)
    return catalogue.plan(catalogue.settings(loss))
