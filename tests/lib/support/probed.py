"""What `dft probe --json` printed, beside the same numbers by hand in float64."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch

from dft_plugin.core.bands import EDGES


def assert_right(found: dict[str, Any], model: Any, rows: Iterable[tuple[list[int], list[int]]]) -> None:
    """Compare with a model's own logits.

    Args:
        found: the JSON.
        model: that was probed.
        rows: token ids and labels of each row, unshifted.
    """
    logp, entropy, top1, answers = [], [], [], 0
    for ids, labels in rows:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        target = torch.tensor(labels[1:])
        answers += sum(now != -100 and before == -100 for before, now in pairwise([-100, *labels[1:]]))
        of_all = logits.log_softmax(-1)[target != -100]
        own = of_all.gather(1, target[target != -100][:, None])[:, 0]
        logp.append(own)
        entropy.append(-(of_all.exp() * of_all).sum(-1))
        top1.append(own >= of_all.amax(-1))
    logp, entropy, top1 = torch.cat(logp), torch.cat(entropy), torch.cat(top1)
    p, numbers = logp.exp(), found["found"]
    assert numbers["tokens"] == p.numel()
    assert numbers["answer_tokens"] == pytest.approx(p.numel() / answers)
    assert numbers["mean_prob"] == pytest.approx(p.mean().item(), rel=1e-5)
    assert numbers["nll"] == pytest.approx(-logp.mean().item(), rel=1e-5)
    assert numbers["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-5)
    assert numbers["top1"] == pytest.approx(top1.double().mean().item())
    assert found["objectives"]["dft"]["mean_weight"] == pytest.approx(p.mean().item(), rel=1e-5)
    gradients = {"nll": 1 - p, "dft": p * (1 - p)}
    for band, low, high in zip(found["bands"], EDGES[:-1], EDGES[1:], strict=True):
        # Numbers in float32 may stand on the other side of an end.
        inside = (p >= low) & ((p < high) | (high == 1.0))
        assert band["tokens"] == pytest.approx(int(inside.sum()), abs=1)
        for name, size in gradients.items():
            assert band["gradient"][name] == pytest.approx((size[inside].sum() / size.sum()).item(), abs=0.02)
