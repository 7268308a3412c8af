"""Sample sequences of a trainer's own data, with what its model and a loss make of each token. Nothing is trained.

Shapes: B batch, S sequence, T target tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dft_plugin.errors import ConflictError
from dft_plugin.hf import tokens
from dft_plugin.hf.model import require_causal_lm, unwrap
from dft_plugin.hf.probing import looking, no_target, require_whole, taken
from dft_plugin.runs.samples import Sample, Scored, Token

if TYPE_CHECKING:
    from dft_plugin.core.loss import LossResult
    from dft_plugin.core.plan import LossPlan

LENGTH = 400
"""Tokens of a row that are shown; what follows is counted."""

BATCHES = 100
"""So many are looked through at most, where rows have no target."""


def refusal(plan: LossPlan) -> str | None:
    """Say why the weights of a loss are not known from a model and tokens alone; None: they are."""
    if plan.refers or plan.objective.reference != "none":
        why = "compares with a frozen reference"
    elif plan.columns or plan.rules.column:
        why = "reads columns of the data"
    elif plan.objective.scope == "batch":
        why = "weighs a token by all others of an optimizer step"
    else:
        return None
    return f"{plan.objective.name} {why}, so that its weights cannot be shown. Name another: --loss dft"


def sample(trainer: Any, plan: LossPlan, rows: int) -> tuple[Sample, ...]:
    """Return rows of the training data, the first that the trainer takes and that have a target.

    Args:
        trainer: a `transformers.Trainer` as it is when training begins.
        plan: of a loss without a schedule and without `refusal`.
        rows: how many; fewer where the data has no more.

    Raises:
        ConflictError: several processes, a sharded model, data without a target, or tokens that cannot be told.
    """
    require_whole(trainer, "dft report")
    model = require_causal_lm(unwrap(trainer.model))
    processor = getattr(trainer, "processing_class", None)
    read = tokens.read(plan, model, processor)
    if read.problems:
        raise ConflictError(list(read.problems))
    found: list[Sample] = []
    with looking(model, read.plan) as attached, torch.no_grad(), trainer.accelerator.autocast():
        for number, batch in enumerate(trainer.get_train_dataloader()):
            inputs = taken(model, trainer._prepare_inputs(batch))
            result = attached.score(model, inputs, want_logits=False).result
            found += _rows(inputs, result, getattr(processor, "tokenizer", processor), rows - len(found))
            if len(found) >= rows or number + 1 == BATCHES:
                break
    if not found:
        raise no_target()
    return tuple(found)


def _rows(inputs: dict[str, Any], result: LossResult, tokenizer: Any, wanted: int) -> Iterator[Sample]:
    """Yield the rows of a batch that have a target."""
    ids_BS = inputs.get("input_ids")
    if not isinstance(ids_BS, Tensor) or ids_BS.shape != result.selection.shape:
        raise ConflictError(
            [
                "the model makes other positions of its tokens (images, say), so that these cannot be shown one by "
                "one. Leave out --model, --data and --config: the curves need none of them."
            ]
        )
    mask_BS = inputs.get("attention_mask")
    mask_BS = torch.ones_like(ids_BS) if mask_BS is None or mask_BS.shape != ids_BS.shape else mask_BS
    length, scored = ids_BS.shape[-1], _scored(result)
    for row, (ids_S, there_S) in enumerate(zip(ids_BS.tolist(), mask_BS.bool().tolist(), strict=True)):
        # A position predicts the next.
        own = {at - row * length + 1: one for at, one in scored.items() if at // length == row}
        if not own or wanted <= 0:
            continue
        wanted -= 1
        kept = [at for at in range(length) if there_S[at]]
        shown = kept[:LENGTH]
        written = texts(tokenizer, [ids_S[at] for at in shown])
        pieces = tuple(Token(text, own.get(at)) for at, text in zip(shown, written, strict=True))
        yield Sample(pieces, len(kept) - len(shown))


def _scored(result: LossResult) -> dict[int, Scored]:
    """Return the numbers of each target by its flattened position."""
    logp_T = result.scored.rows.logp_T.double()
    columns = (logp_T.exp(), result.weights.double(), -logp_T, result.scored.loss_T.double())
    numbers = torch.stack(columns, 1).tolist()
    return {at: Scored(*row) for at, row in zip(result.selection.positions_T.tolist(), numbers, strict=True)}


def texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return what each token adds to the text; a letter of several tokens stands at the last of them."""
    if tokenizer is None:
        return [f"{number} " for number in ids]
    found, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # Half a letter reads as this sign until its other half is there.
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        # Some decoders take back a letter, too, until the half one behind it is whole.
        if len(whole) < len(done):
            found.append("")
            continue
        found.append(whole[len(done) :])
        done = whole
    return found
