"""What a model does to the logits of its head, found out by asking its own forward.

In each pass the head's stand-in returns known numbers, and the model's forward transforms them. Names in a
config do not tell every quirk; this does. Shapes: K checked positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dft_plugin.core.plan import LossPlan
from dft_plugin.core.transfer import Fetched
from dft_plugin.hf.graph import Steps
from dft_plugin.kernels import Head, Transform
from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.objectives import NLL, Targets

CHECKED_POSITIONS = 8
"""Positions for which a head as it was read is compared with the head as it is called."""

_PROBE = (2.0**-10, 1.0, -8.0, 2.0**15)
"""Raw logits of the probe row: nearly linear under any softcap, unit, negative, saturated.

All of a probe is exact in bfloat16, since a model may round its logits to that (Unsloth's, on a GPU).
"""

_ROUNDING = 1e-5
"""A scale this near to one is one, which the capped probe has rounded."""

_SPREADS = (0.1, 1.0, 10.0, 100.0)
"""Standard deviations of the rows that are compared, whatever a model takes for likely."""


def probe_logits(vocab_size: int) -> Tensor:
    """Make raw logits that tell scale and softcap: rows of random numbers, and the probe row.

    Returns:
        [1, K, V] in float32, as a head would return it.
    """
    generator = torch.Generator().manual_seed(0)
    # A later pass may want a graph, and the default device may be another.
    with torch.inference_mode(False), torch.device("cpu"):
        spread_K1 = torch.tensor(_SPREADS)[:, None]
        random_KV = (torch.randn(len(_SPREADS), vocab_size, generator=generator) * spread_K1).bfloat16().float()
        probe_V = torch.zeros(vocab_size)
        used = min(len(_PROBE), vocab_size)
        probe_V[:used] = torch.tensor(_PROBE[:used])
        return torch.cat([random_KV, probe_V[None]])[None]


class Reading:
    """What a pass says of the transform, as soon as the device has got that far.

    Args:
        found: the transform; a reason why there is none; or, of `_numbers`, what tells which of these it is.
        steps: what the graph shows of what the model did, if that is all.
    """

    def __init__(self, found: Transform | str | Fetched, steps: Steps | None = None) -> None:
        self._found = found
        self.steps = steps

    @property
    def waits(self) -> bool:
        """Whether `read` may have to wait."""
        return isinstance(self._found, Fetched)

    def read(self) -> Transform | str:
        """Return the transform, or a reason why the model does something else to its logits. May wait."""
        if isinstance(self._found, Fetched):
            self._found = _transform_of(self._found.read())
        return self._found


def ask(probed: Tensor, seen: Tensor, steps: Steps | None = None) -> Reading:
    """Compare what the stand-in returned with what the model made of it, without waiting for the device.

    Args:
        probed: what `probe_logits` gave, [1, K, V].
        seen: the same after the model's forward, whatever its shape.
        steps: handed on.
    """
    if seen.shape != probed.shape:
        return Reading(f"the model changes the shape of its logits ({probed.shape[-1]} to {seen.shape[-1]} columns)")
    if seen.shape[-1] < len(_PROBE):
        return Reading("the vocabulary is too small to probe")
    with torch.no_grad():
        numbers = _numbers(probed.detach().to(seen.device), seen.detach().to(probed.dtype))
        return Reading(Fetched(numbers), steps)


def _numbers(probed: Tensor, seen: Tensor) -> Tensor:
    """Return [5]: three logits of the probe row, and whether a scale alone, or scale and cap, explain all others."""
    small, one, _, huge = seen[0, -1, : len(_PROBE)].unbind()
    scale = _near_one(small / _PROBE[0])
    capped = (probed * scale / huge.abs()).tanh() * huge.abs()
    return torch.stack([small, one, huge, _agree(probed * one, seen), _agree(capped, seen)])


def _near_one(scale: Tensor) -> Tensor:
    return torch.where((scale - 1).abs() < _ROUNDING, torch.ones_like(scale), scale)


def _transform_of(numbers: Tensor) -> Transform | str:
    small, one, huge, is_scaled, is_capped = numbers.tolist()
    if is_scaled:
        return Transform(scale=one)
    scale = small / _PROBE[0]
    if huge and is_capped:
        return Transform(scale=1.0 if abs(scale - 1.0) < _ROUNDING else scale, softcap=abs(huge))
    return "the model does more to its logits than to scale and cap them"


def _agree(ours: Tensor, theirs: Tensor) -> Tensor:
    return torch.isclose(ours, theirs, rtol=1e-4, atol=1e-5).all().to(theirs.dtype)


def check_head(plan: LossPlan, head: Head, hidden_KD: Tensor, real_KV: Tensor) -> str | None:
    """Score a few positions with the kernel, and from the real head's logits; compare.

    Args:
        plan: the kernel to check.
        head: as it was read.
        hidden_KD: hidden states.
        real_KV: raw logits that the real head gave for them.

    Returns:
        None, or the reason to distrust the reading of the head.
    """
    if head.vocab_size != real_KV.shape[-1]:
        return f"the head has {head.vocab_size} rows but gives {real_KV.shape[-1]} logits"
    # The likeliest token and an arbitrary one: an error in either sign shows.
    targets_K = real_KV.argmax(-1)
    targets_K[1::2] = torch.arange(targets_K[1::2].numel(), device=targets_K.device) % head.vocab_size
    ours = plan.kernel(hidden_KD, head, Targets(targets_K), NLL(), needs=frozenset(), scratch_bytes=plan.scratch_bytes)
    logits_KV = head.transform(real_KV.to(accumulation_dtype(real_KV.dtype)))
    theirs_K = logits_KV.log_softmax(-1).gather(1, targets_K[:, None])[:, 0]
    half = real_KV.dtype.itemsize < 4 or ours.rows.logp_T.dtype.itemsize < 4
    tolerance = 5e-2 if half else 1e-4
    if torch.allclose(ours.rows.logp_T, theirs_K.to(ours.rows.logp_T.dtype), rtol=tolerance, atol=4 * tolerance):
        return None
    worst = float((ours.rows.logp_T - theirs_K).abs().max())
    return f"the head as read differs from the head as called (log p by up to {worst:.2g} nats)"
