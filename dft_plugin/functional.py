"""The loss as plain functions, for a training loop of one's own.

Labels are aligned: `labels[s]` is the token that position s predicts, the one at s + 1. Those of a batch are not, and
to give them as they are trains a model to repeat its input; say `shift=True`.

Shapes: V vocabulary, H hidden size; `...` stands for any leading dimensions, the same in all inputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from dft_plugin.core import given
from dft_plugin.core import targets as labels_
from dft_plugin.core.logp import logp_loss
from dft_plugin.core.loss import LossResult, NumItems, hidden_loss, logits_loss
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.targets import IGNORE_INDEX, Facts
from dft_plugin.errors import SettingsError
from dft_plugin.kernels import Head, ShardedHead, VocabShard
from dft_plugin.objectives import Clock
from dft_plugin.objectives.from_logp import unknown
from dft_plugin.plans import LossLike, plan_without_tokenizer, require_ids

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def token_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    objective: LossLike = "dft",
    num_items: NumItems = None,
    shift: bool = False,
    ignore_index: int = IGNORE_INDEX,
    facts: Facts | None = None,
) -> Tensor:
    """Token loss on logits: `sum(-w * log p) / num_items`, with w = sg(p) for `dft`.

    p and all sums are float32 (float64 for float64 logits). Memory beyond the logits: their gradient and
    16 MB. arXiv 2508.05629, eq. 9.

    Args:
        logits: [..., V], any float dtype.
        labels: [...], any integer dtype, aligned: `labels[i]` is what `logits[i]` predicts; or see `shift`.
        objective: a name, a mapping as in YAML, or an Objective.
        num_items: target tokens of the whole optimizer step; None: `labels` are the whole step. Refused where the
            objective divides by more than tokens, or weighs a token by all others of the step.
        shift: whether `labels` (and `facts`) are those of a batch, as a model takes them: position s holds the token
            at s. They are moved along the last dimension; what the last position predicts is not known, and ignored.
        ignore_index: the label of positions that are not scored.
        facts: columns and places of the tokens, and how far the run is, for an objective that asks for them.

    Returns:
        The loss, a scalar in nats per token; a zero connected to the graph if nothing is scored.

    Raises:
        SettingsError: the objective is unknown, or an option of it is wrong.
        LabelError: a label is outside the vocabulary, labels or num_items are impossible, or num_items is refused.
        InputError: another argument is none that can be computed with.
        ClockError: the objective changes during a run, and `facts` has no clock.
    """
    given.require_scored("logits", logits, of_model="logits")
    labels, facts = _aligned(logits, labels, facts, shift, ignore_index, num_items)
    given.require_numbers(logits=logits, labels=labels)
    plan = plan_without_tokenizer(objective, facts, logits.shape[-1])
    return _mean(logits_loss(plan, logits, labels, ignore_index=ignore_index, facts=facts), num_items)


def linear_token_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    objective: LossLike = "dft",
    num_items: NumItems = None,
    shift: bool = False,
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
        labels: [...], any integer dtype, aligned: `labels[i]` is what `hidden[i]` predicts; or see `shift`.
        bias: [V] or None.
        objective: a name, a mapping as in YAML (`kernel` and `scratch_mb` are heeded), or an Objective.
        num_items: target tokens of the whole optimizer step; None: `labels` are the whole step. Refused where the
            objective divides by more than tokens, or weighs a token by all others of the step.
        shift: whether `labels` (and `facts`) are those of a batch, as a model takes them: position s holds the token
            at s. They are moved along the last dimension; what the last position predicts is not known, and ignored.
        ignore_index: the label of positions that are not scored; they never reach a GEMM.
        logit_scale: factor on the raw logits.
        softcap: bound of the scaled logits, applied as `softcap * tanh(logits / softcap)`.
        facts: columns and places of the tokens, and how far the run is, for an objective that asks for them.

    Returns:
        The loss, a scalar in nats per token; a zero connected to the graph if nothing is scored.

    Raises:
        SettingsError: the objective is unknown, or an option of it is wrong.
        LabelError: a label is outside the vocabulary, labels or num_items are impossible, or num_items is refused.
        InputError: another argument is none that can be computed with.
        ClockError: the objective changes during a run, and `facts` has no clock.
    """
    given.require_scored("hidden", hidden, of_model="last_hidden_state")
    given.require_weight("weight", weight, hidden)
    given.require_bias("bias", bias, weight)
    transform = given.as_transform(logit_scale, softcap)
    labels, facts = _aligned(hidden, labels, facts, shift, ignore_index, num_items)
    given.require_numbers(hidden=hidden, weight=weight, labels=labels)
    head = Head(weight, bias, transform)
    plan = plan_without_tokenizer(objective, facts, head.vocab_size, heeds=("kernel", "scratch_mb"))
    return _mean(hidden_loss(plan, hidden, head, labels, ignore_index=ignore_index, facts=facts), num_items)


def vocab_parallel_token_loss(
    hidden: Tensor,
    local_weight: Tensor,
    labels: Tensor,
    *,
    group: ProcessGroup | None = None,
    local_bias: Tensor | None = None,
    objective: LossLike = "dft",
    num_items: NumItems = None,
    shift: bool = False,
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
        labels: [...], any integer dtype, aligned or see `shift`, indices of the whole vocabulary.
        group: the ranks that share the vocabulary; None is the default group.
        local_bias: [L], or None on all ranks.
        objective: a name, a mapping as in YAML (`scratch_mb` is heeded, `kernel` refused), or an Objective.
        num_items: target tokens of the whole optimizer step; None: `labels` are the whole step. Refused where the
            objective divides by more than tokens, or weighs a token by all others of the step.
        shift: whether `labels` (and `facts`) are those of a batch, as a model takes them: position s holds the token
            at s. They are moved along the last dimension; what the last position predicts is not known, and ignored.
        ignore_index: the label of positions that are not scored; they never reach a GEMM.
        logit_scale: factor on the raw logits.
        softcap: bound of the scaled logits, applied as `softcap * tanh(logits / softcap)`.
        facts: columns and places of the tokens, and how far the run is, for an objective that asks for them.

    Returns:
        The loss, a scalar in nats per token; a zero connected to the graph if nothing is scored.

    Raises:
        ShardError: the ranks were given different labels or hidden sizes (raised on every rank), or another rank
            raises one of the errors below.
        SettingsError: the objective is unknown, or an option of it is wrong.
        LabelError: a label is outside the vocabulary, labels or num_items are impossible, or num_items is refused.
        InputError: another argument is none that can be computed with.
        ClockError: the objective changes during a run, and `facts` has no clock.
    """
    try:
        given.require_scored("hidden", hidden, of_model="last_hidden_state")
        given.require_weight("local_weight", local_weight, hidden)
        given.require_bias("local_bias", local_bias, local_weight)
        transform = given.as_transform(logit_scale, softcap)
        labels, facts = _aligned(hidden, labels, facts, shift, ignore_index, num_items)
        given.require_numbers(hidden=hidden, local_weight=local_weight, labels=labels)
        plan = plan_without_tokenizer(objective, facts, heeds=("scratch_mb",))
    except Exception:
        VocabShard.withdraw(group, near=(local_weight, hidden, labels))
        raise
    shard = VocabShard.gather(local_weight, labels, group)
    head = ShardedHead(local_weight, shard, local_bias, transform)
    require_ids(plan, head.vocab_size)
    return _mean(hidden_loss(plan, hidden, head, labels, ignore_index=ignore_index, facts=facts), num_items)


def token_loss_from_logp(
    logp: Tensor,
    targets: Tensor,
    *,
    objective: LossLike = "dft",
    clock: Clock | None = None,
    num_items: NumItems = None,
    ignore_index: int = IGNORE_INDEX,
    entropy: Tensor | None = None,
    sum_p_squared: Tensor | None = None,
    facts: Facts | None = None,
) -> Tensor:
    """Token loss where another program has made log p of its logits: `sum(-w * logp) / num_items`.

    For frameworks that give their loss log-probabilities and keep the logits (verl, slime, OpenRLHF; Megatron's
    vocabulary-parallel cross-entropy is -logp), and for objectives that look at no more of a row than that. Everything
    is float32 (float64 for float64 inputs); what `logp` was rounded to before (bfloat16) is not mended. Memory: some
    numbers for each token. arXiv 2508.05629, eq. 9.

    Args:
        logp: [...], log-probability of each target in nats, any float dtype, with the graph to its logits.
        targets: [...], token ids of any integer dtype, already aligned: `logp[i]` is that of `targets[i]`.
        objective: a name, a mapping as in YAML, or an Objective.
        clock: how far the run is, for an objective that changes during it; `facts` may hold it as well.
        num_items: target tokens of the whole optimizer step; None: `targets` are the whole step. Refused where the
            objective divides by more than tokens, or weighs a token by all others of the step.
        ignore_index: the target of positions that are not scored.
        entropy: [...], entropy of the distribution at each position in nats, for objectives that read it; no gradient
            reaches it.
        sum_p_squared: [...], the sum of squares of the distribution, likewise.
        facts: columns and places of the tokens, for an objective that asks for them.

    Returns:
        The loss, a scalar in nats per token; a zero connected to the graph if nothing is scored.

    Raises:
        SettingsError: the objective is unknown, an option of it is wrong, or it reads more of a row of logits than it
            is given here; says what.
        LabelError: shapes do not match, a target is negative, logp is above 0 (not checked on an accelerator, which
            would have to be waited for), num_items is impossible or refused, or tensors are on `meta`.
        ClockError: the objective changes during a run, and there is no clock.
    """
    given.require_logp(logp, targets, entropy=entropy, sum_p_squared=sum_p_squared)
    given.require_numbers(logp=logp, targets=targets)
    given.require_ignore_index(ignore_index)
    given.require_num_items(num_items)
    given.require_facts(facts, targets)
    plan = plan_without_tokenizer(objective, facts)
    known = {"entropy": entropy, "sum_p_squared": sum_p_squared}
    _require_logp_suffices(plan, {name for name, tensor in known.items() if tensor is not None})
    if clock is not None:
        facts = replace(facts or Facts(), clock=clock)
    result = logp_loss(plan, logp, targets, ignore_index=ignore_index, facts=facts, **known)
    return _mean(result, num_items)


def _require_logp_suffices(plan: LossPlan, known: Collection[str]) -> None:
    problems = [
        f"`objective: {one.name}` {said}, which log p does not tell. Score the logits (`dft_plugin.token_loss`) or "
        "the hidden states (`dft_plugin.linear_token_loss`), give `entropy=` or `sum_p_squared=` where it asks for "
        "those, or take another objective."
        for one in plan.every
        for said in unknown(one, known)
    ]
    if problems:
        raise SettingsError(problems)


def _mean(result: LossResult, num_items: NumItems) -> Tensor:
    given.require_items(num_items, result.count)
    return result.mean(num_items)


def _aligned(
    scored: Tensor, labels: Tensor, facts: Facts | None, shift: bool, ignore_index: int, num_items: NumItems
) -> tuple[Tensor, Facts | None]:
    """Return labels and facts that are aligned with what is scored."""
    given.require_shift(shift)
    given.require_labels(labels, scored, shifted=shift)
    given.require_ignore_index(ignore_index)
    given.require_num_items(num_items)
    given.require_facts(facts, labels)
    if not shift:
        return labels, facts
    return labels_.shift(labels, ignore_index), None if facts is None else facts.shifted()
