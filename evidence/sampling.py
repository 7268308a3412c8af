"""Answers of a model, many at a time. Shapes: B rows, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from evidence.alphabet import END, PAD, decode, encode

LONGEST = 52
"""Tokens of an answer, at most: the longest right one is of 46, and its end."""


@torch.no_grad()
def answers(
    model: PreTrainedModel, prompts: Sequence[str], temperatures: Sequence[float], seed: int
) -> list[str | None]:
    """Return an answer to each prompt; None where the model did not end it.

    Args:
        model: in evaluation mode.
        prompts: B of them, of any lengths.
        temperatures: of each; 0 takes the likeliest token.
        seed: of the sampling.
    """
    encoded = [encode(prompt) for prompt in prompts]
    length = max(map(len, encoded))
    ids_BT = torch.tensor([[PAD] * (length - len(tokens)) + tokens for tokens in encoded])
    mask_BT = (ids_BT != PAD).long()
    position_B = mask_BT.sum(1)
    heat_B = torch.tensor(temperatures)
    rng = torch.Generator().manual_seed(seed)
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    row_B = torch.arange(len(prompts))
    cache = DynamicCache(config=model.config)
    # transformers 5.24 calls it `cache`, older releases `past_key_values`.
    kept = {"cache" if "cache" in signature(model.forward).parameters else "past_key_values": cache}
    inputs = {"input_ids": ids_BT, "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)}
    for _ in range(LONGEST):
        logits_BV = model(**inputs, attention_mask=mask_BT, logits_to_keep=1, **kept).logits[:, -1]
        token_B = _choose(logits_BV, heat_B, rng)
        for row, token in zip(row_B.tolist(), token_B.tolist(), strict=True):
            ended[row] = token == END
            written[row].append(token)
        going_B = (token_B != END).nonzero()[:, 0]
        if not len(going_B):
            break
        if len(going_B) < len(token_B):
            cache.batch_select_indices(going_B)
        token_B, mask_BT, position_B = token_B[going_B], mask_BT[going_B], position_B[going_B]
        row_B, heat_B = row_B[going_B], heat_B[going_B]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], 1)
        inputs = {"input_ids": token_B[:, None], "position_ids": position_B[:, None]}
        position_B = position_B + 1
    return [decode(tokens) if done else None for tokens, done in zip(written, ended, strict=True)]


def _choose(logits_BV: Tensor, heat_B: Tensor, rng: torch.Generator) -> Tensor:
    # A model that diverged says anything.
    logits_BV = logits_BV.nan_to_num()
    greedy_B = logits_BV.argmax(-1)
    probs_BV = (logits_BV / heat_B.clamp(min=1e-3)[:, None]).softmax(-1)
    sampled_B = torch.multinomial(probs_BV, 1, generator=rng)[:, 0]
    return torch.where(heat_B == 0, greedy_B, sampled_B)
