"""Holds a call of target `tensors` to the property: float64 says what is right.

Shapes: N positions, T scored ones, V vocabulary, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dft_plugin import linear_token_loss, token_loss, token_loss_from_logp
from reliability.fuzz import oracles
from reliability.fuzz.tensors import ARGUMENTS, Case
from reliability.fuzz.verdict import Answered, judged, require


def check(case: Case) -> str:
    """Hold a call to the property; returns `answered` or `refused`."""
    leaves = {name: _leaf(getattr(case, name)) for name in ("scored", "weight")}
    before = [one.detach().clone() for one in (*leaves.values(), case.labels) if _is_plain(one)]
    outcome = judged(lambda: _scored(_call(case, leaves), leaves), ARGUMENTS)
    after = [one.detach() for one in (*leaves.values(), case.labels) if _is_plain(one)]
    same = all(torch.equal(_bits(a), _bits(b)) for a, b in zip(before, after, strict=True))
    require(same, "what was given has changed")
    if not isinstance(outcome, Answered):
        require(bool(case.wrong), f"refused, and nothing is wrong with it: {outcome.problems[0][:300]}")
        return "refused"
    _require_right(case, leaves, outcome.value)
    return "answered"


def _is_plain(tensor: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )


def _bits(tensor: Tensor) -> Tensor:
    """Return numbers that compare, NaN with NaN as well."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    whole = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    # Of one number, any stride counts as contiguous.
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8) if tensor.numel() else tensor


def _fits(products: Tensor, *dtypes: torch.dtype) -> bool:
    """Say whether a head of these dtypes has finite logits; in float16 what is above 65,504 is none of its numbers."""
    most = min(torch.finfo(dtype).max for dtype in dtypes)
    return bool((products[products.isfinite()].abs() < most).all())


def _leaf(given: Any) -> Any:
    """Return a leaf of the same memory that wants a gradient, where there can be such."""
    return given.detach().requires_grad_() if isinstance(given, Tensor) and given.is_floating_point() else given


def _call(case: Case, leaves: dict[str, Any]) -> Callable[[], Tensor]:
    objective = case.more.get("objective", oracles.LOSSES[case.loss][0])
    more = {key: value for key, value in case.more.items() if key != "objective"}
    if case.function == "linear":
        return lambda: linear_token_loss(leaves["scored"], leaves["weight"], case.labels, objective=objective, **more)
    if case.function == "logits":
        return lambda: token_loss(leaves["scored"], case.labels, objective=objective, **more)
    return lambda: token_loss_from_logp(_logp(leaves["scored"], case.labels), case.labels, objective=objective, **more)


def _logp(logits: Any, labels: Any) -> Any:
    """Return log p as another program makes it of logits; what cannot be made is handed on."""
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor) or not logits.dtype.is_floating_point:
        return logits
    if not logits.dim() or logits.layout != torch.strided or labels.layout != torch.strided:
        return logits
    if (
        logits.device.type == "meta"
        or labels.device.type == "meta"
        or labels.is_quantized
        or logits.shape[:-1] != labels.shape
    ):
        return logits[..., 0] if logits.shape[-1] else logits
    if logits.element_size() == 1 or not logits.shape[-1] or labels.dtype.is_floating_point or labels.dtype.is_complex:
        return logits.sum(-1) if logits.element_size() > 1 else logits
    ids = labels.long().clamp(0, logits.shape[-1] - 1)
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def _scored(call: Callable[[], Tensor], leaves: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and its gradients."""
    loss = call()
    require(isinstance(loss, Tensor) and loss.dim() == 0, f"no scalar: {loss!r}"[:300])
    wanted = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.requires_grad}
    if not loss.requires_grad:
        return float(loss), {}
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return float(loss.detach()), {name: grad for name, grad in zip(wanted, grads, strict=True) if grad is not None}


def _require_right(case: Case, leaves: dict[str, Any], found: tuple[float, dict[str, Tensor]]) -> None:
    """Compare with float64 what has a right answer."""
    if (
        set(case.wrong) - {"num_items", "ignore_index", "logit_scale", "softcap", "label", "dtype"}
        or "objective" in case.more
    ):
        return
    scored, labels = leaves["scored"].detach(), case.labels
    if scored.element_size() == 1 or scored.dtype not in oracles.TOLERANCE:
        return
    logits = scored.double()
    if case.function == "linear":
        cap = case.more.get("softcap")
        weight = case.weight.double()
        if not _fits(logits @ weight.T, scored.dtype, case.weight.dtype):
            return
        scale, cap = float(case.more.get("logit_scale", 1.0)), None if cap is None else float(cap)
        logits = oracles.oracle.head_logits(scored, weight, case.more.get("bias"), None, scale, cap)
    ignore = case.more["ignore_index"]
    ids = labels.to(torch.int64).reshape(labels.shape)
    if case.more.get("shift"):
        ids = torch.cat([ids[..., 1:], torch.full_like(ids[..., :1], -12345)], -1)
        ignored = (ids == ignore) | (ids == -12345)
    else:
        ignored = ids == ignore
    kept_N = ~ignored.reshape(-1)
    logits_TV, ids_T = logits.reshape(-1, logits.shape[-1])[kept_N], ids.reshape(-1)[kept_N]
    if case.function == "logp":
        # Nobody can tell from log p how large the vocabulary is; `_logp` made it of the last one.
        ids_T = ids_T.clamp(max=logits.shape[-1] - 1)
    require(
        not ids_T.numel() or (int(ids_T.min()) >= 0 and int(ids_T.max()) < logits.shape[-1]),
        "a label outside was scored",
    )
    count = case.more.get("num_items")
    divisor = float(ids_T.numel() if count is None else count)
    if case.loss not in oracles.SIMPLE and not bool(torch.isfinite(logits_TV).all()):
        return
    right = oracles.truth(case.loss, logits_TV, ids_T, divisor)
    # A head of another dtype computes in the coarser of both.
    coarse = max(oracles.TOLERANCE[one.dtype] for one in (scored, case.weight) if one is not None)
    tolerance = coarse * max(1.0, float(logits_TV.abs().nan_to_num(0, 0, 0).max()) if logits_TV.numel() else 1.0)
    # In half precision, too, the loss is a float32.
    most = torch.finfo(torch.promote_types(scored.dtype, torch.float32)).max
    if abs(right.loss) > most:
        require(not math.isfinite(found[0]), f"the loss is {found[0]!r}, and {right.loss!r} is right")
        return
    require(oracles.agree(found[0], right.loss, tolerance), f"the loss is {found[0]!r}, and {right.loss!r} is right")
    if case.function == "logits" and right.gradient is not None and "scored" in found[1]:
        gradient = found[1]["scored"].double().reshape(-1, logits.shape[-1])
        require(not bool(gradient[~kept_N].any()), "a position that is ignored has a gradient")
        gap = float((gradient[kept_N] - right.gradient).abs().max()) if ids_T.numel() else 0.0
        most = float(right.gradient.abs().max()) if ids_T.numel() else 0.0
        require(gap <= tolerance * max(most, 1e-3), f"a gradient is wrong by {gap:g} of {most:g}")
