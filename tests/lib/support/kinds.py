"""Each kind of objective by a name that ships, as it is written after `loss:`, and its formula; for every host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from torch import Tensor, isin, tensor

from support import family, oracle
from support.family_soft import asft
from support.given import Formula
from support.referred import of_columns

STEPS = 3
"""Of the runs that these are for: schedules depend on it."""

ALWAYS, FACTORS = (2, 9), {7: 2.0, 11: 0.5}
"""Ids that the hosts' tokenizers all have: the end of a sequence, and words."""


def adjusted(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    """DFT; weight 1 for some tokens; factors for others."""
    nll, loss = family.nll(logits, ids), family.dft(logits, ids)
    loss = loss.where(~isin(ids, tensor(ALWAYS)), nll)
    for token, factor in FACTORS.items():
        loss = loss.where(ids != token, factor * loss)
    return loss


def then_asft(logits: Tensor, ids: Tensor, *, step: int, **read: Any) -> Tensor:
    """One step of cross-entropy; then ASFT whose strength grows by 0.5 in each step."""
    return family.nll(logits, ids) if step == 0 else asft(logits, ids, strength=0.5 * step, **read)


def of_batch(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    """p over the mean p of the step, as `support.weighers.OfBatch`."""
    logp = oracle.log_probabilities(logits, ids)
    p = logp.detach().exp()
    return -p / p.mean() * logp


KINDS: dict[str, tuple[dict[str, Any], Formula]] = {
    "reference": ({"name": "prift"}, of_columns(family.prift)),
    "distribution": ({"name": "asft", "strength": 0.5}, lambda *a, **k: asft(*a, strength=0.5, **k)),
    "sequence": ({"name": "iw_sft"}, of_columns(family.iw_sft)),
    "schedule": (
        {
            "name": "asft",
            "strength": {"from": 0.0, "to": 1.5, "until": 1.0},
            "first": {"name": "nll", "for": 1},
        },
        then_asft,
    ),
    "row": (
        {"name": "dft", "always_learn": list(ALWAYS), "weights": {"tokens": FACTORS}, "log": ["top1", "entropy"]},
        adjusted,
    ),
}

COLUMN = {"name": "psft"}, family.psft
"""One that reads `old_logp` of the data."""


def runs(splits: Iterable[str]) -> list[Any]:
    """Return models, kinds and ways in which a step is put together, as parameters of a test.

    `make test` runs each kind with LoRA and in full training, the ways in turn; `nox -t full` runs the rest.

    Args:
        splits: names of the ways.
    """
    ways = list(splits)
    product = [
        (model, kind, way, (number + shift - at) % len(ways) == 0)
        for shift, model in enumerate(("lora", "full"))
        for number, kind in enumerate(KINDS)
        for at, way in enumerate(ways)
    ]
    return [pytest.param(*names, marks=[] if chosen else pytest.mark.full) for *names, chosen in product]
