"""What is measured of a model. Shapes: B rows, T tokens, V vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dft_plugin.core.bands import count_by_band
from evidence.intervals import pass_at
from evidence.model import IGNORED, batch
from evidence.sampling import answers
from evidence.tasks import Example, said

TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
BINS = 15
"""Of the expected calibration error (arXiv 1706.04599)."""


def accuracies(model: PreTrainedModel, tests: Mapping[str, Sequence[Example]], seed: int) -> dict[str, float]:
    """Return shares of right answers: `taught@0.3`, and `form@0.3` for those that are what was demonstrated, too.

    Args:
        model: in evaluation mode.
        tests: problems by what they show. Other tasks are asked at temperature 0 alone.
        seed: of the sampling.
    """
    heats = {"taught": TEMPERATURES, "new": (0.0, 1.0), "longer": (0.0, 1.0)}
    asked = [
        (f"{name}@{heat:g}", heat, one)
        for name, problems in tests.items()
        for heat in heats.get(name, (0.0,))
        for one in problems
    ]
    given = answers(model, [one.prompt for _, _, one in asked], [heat for _, heat, _ in asked], seed)
    found: dict[str, list[bool]] = {}
    for (name, _, one), answer in zip(asked, given, strict=True):
        found.setdefault(name, []).append(answer is not None and said(answer) == one.truth)
        if name.startswith("taught"):
            found.setdefault(name.replace("taught", "form"), []).append(answer == one.answer)
    return {name: round(sum(right) / len(right), 4) for name, right in found.items()}


def passes(model: PreTrainedModel, problems: Sequence[Example], samples: int, seed: int) -> dict[str, float]:
    """Return pass@k at temperature 1 for k = 1, 2, 4 ... `samples`, the mean over problems."""
    prompts = [one.prompt for one in problems for _ in range(samples)]
    given = answers(model, prompts, [1.0] * len(prompts), seed)
    right = [
        sum(answer is not None and said(answer) == one.truth for answer in given[at : at + samples])
        for at, one in zip(range(0, len(prompts), samples), problems, strict=True)
    ]
    ks = [2**power for power in range(samples.bit_length())]
    return {f"pass@{k}": round(sum(pass_at(k, samples, count) for count in right) / len(right), 4) for k in ks}


@torch.no_grad()
def likelihood(model: PreTrainedModel, examples: Sequence[Example]) -> dict[str, Any]:
    """Return what a model makes of given answers: means over their tokens, and how many tokens are in each band of p.

    `ece` is the expected calibration error of the likeliest token, `end_prob` the mean probability of the end.
    """
    inputs = batch(examples)
    # A model that diverged finds everything as likely.
    logits_BTV = model(input_ids=inputs["input_ids"]).logits[:, :-1].float().nan_to_num()
    logp_BTV = logits_BTV.log_softmax(-1)
    target_BT = inputs["labels"][:, 1:]
    kept_BT = target_BT != IGNORED
    logp_TV, target_T = logp_BTV[kept_BT], target_BT[kept_BT]
    logp_T = logp_TV.gather(1, target_T[:, None])[:, 0]
    sure_T, likeliest_T = logp_TV.exp().max(-1)
    right_T = (likeliest_T == target_T).float()
    last_B = kept_BT.long().cumsum(1).argmax(1)
    end_B = logp_BTV[torch.arange(len(examples)), last_B].gather(1, target_BT.gather(1, last_B[:, None]))
    return {
        "mean_prob": round(float(logp_T.exp().mean()), 5),
        "nll": round(float(-logp_T.mean()), 5),
        "entropy": round(float(-(logp_TV.exp() * logp_TV).sum(-1).mean()), 5),
        "top1": round(float(right_T.mean()), 5),
        "ece": round(calibration_error(sure_T, right_T), 5),
        "end_prob": round(float(end_B.exp().mean()), 5),
        "bands": [int(count) for count in count_by_band(logp_T.exp()).tolist()],
    }


def calibration_error(sure_T: Tensor, right_T: Tensor) -> float:
    """Return the expected calibration error: the mean of |share right - mean confidence| over bins of confidence."""
    bin_T = (sure_T * BINS).long().clamp(max=BINS - 1)
    gap_K = torch.zeros(BINS).index_add_(0, bin_T, right_T - sure_T)
    return float(gap_K.abs().sum() / len(sure_T))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return a name of weights, which other weights do not have."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def distance(model: PreTrainedModel, base: Mapping[str, Tensor]) -> float:
    """Return how far the weights are from those of the base, by the norm of the latter."""
    pairs = [(now, base[name]) for name, now in model.state_dict().items()]
    moved = sum(float((now - before).double().square().sum()) for now, before in pairs)
    whole = sum(float(before.double().square().sum()) for _, before in pairs)
    return round((moved / whole) ** 0.5, 5)
