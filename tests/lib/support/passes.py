"""What a pass over data scored, by hand in float64: from a model's own logits, nothing of dft_plugin in it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from support import oracle, training

Row = dict[str, list[int]]


def losses(model: Any, rows: Sequence[Row], weight: oracle.Weight = oracle.dft) -> tuple[Tensor, Tensor]:
    """Return nll [T] and weight [T] of the targets of some rows, as one batch in eval mode."""
    double = copy.deepcopy(model).double().eval()
    batch = training.collate(list(rows))
    with torch.no_grad():
        logits = double(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    nll = oracle.token_losses(logits[:, :-1], batch["labels"][:, 1:], oracle.nll)
    return nll, weight((-nll).exp())


def statistics(
    model: Any, rows: Sequence[Row], prefix: str = "", weight: oracle.Weight = oracle.dft
) -> dict[str, Any]:
    """Return `dft/*` over exactly the tokens of some rows."""
    nll, w = losses(model, rows, weight)
    return {
        f"{prefix}dft/tokens": nll.numel(),
        f"{prefix}dft/nll": float(nll.mean()),
        f"{prefix}dft/perplexity": math.exp(float(nll.mean())),
        f"{prefix}dft/loss": float((w * nll).mean()),
        f"{prefix}dft/mean_prob": float((-nll).exp().mean()),
        f"{prefix}dft/mean_weight": float(w.mean()),
        f"{prefix}dft/effective_tokens": float(w.sum() ** 2 / w.square().sum()),
    }


def stock_eval_loss(model: Any, batches: Iterable[Sequence[Row]], weight: oracle.Weight = oracle.dft) -> float:
    """Return the mean over rows of the means of their batches, which is the Trainer's rule."""
    total, count = 0.0, 0
    for rows in batches:
        nll, w = losses(model, rows, weight)
        total, count = total + float((w * nll).mean()) * len(rows), count + len(rows)
    return total / count


def in_batches(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def of(logs: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The statistics in a log, but for those that `statistics` does not work out."""
    left_out = {f"{prefix}dft/low_weight_share", f"{prefix}dft/eos_prob"}
    return {key: value for key, value in logs.items() if key.startswith(f"{prefix}dft/") and key not in left_out}
