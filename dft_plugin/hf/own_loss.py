"""What a model scores that computes its loss by itself, found out on the caller's first batch.

Shapes: B batch, S sequence, K checked positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.interception import LossRecorder, recording, standing_in, without_dropout
from dft_plugin.hf.model import auxiliary_loss
from dft_plugin.hf.untouched import copied, untouched

_ROWS = (3, 5)
"""Positions that are checked in the first rows: unequal, so that a mean over rows shows."""

_CHECKED = 2 * sum(_ROWS)
"""Rows that the head gets, for scored and for padded positions. A multiple of 16, as fp8 heads ask for."""


@dataclass(frozen=True)
class OwnLoss:
    """Which labels a class scores that computes its loss by itself.

    Attributes:
        leaves_out_padding: whether labels where the attention mask is 0 are left out; None: no mask was seen.
    """

    leaves_out_padding: bool | None

    def knows(self, inputs: Mapping[str, Any], labels_BS: Tensor) -> bool:
        """Whether the check saw what these inputs ask about."""
        return self.leaves_out_padding is not None or _padded(inputs, labels_BS) is None

    def scored(self, labels_BS: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return the labels with those ignored that the class leaves out."""
        padded_BS = _padded(inputs, labels_BS) if self.leaves_out_padding else None
        return labels_BS if padded_BS is None else labels_BS.masked_fill(padded_BS, IGNORE_INDEX)


def check_own_loss(model: Any, forward: Callable[..., Any], inputs: Mapping[str, Any], labels_BS: Tensor) -> OwnLoss:
    """Check that a forward which computes its loss by itself computes the likelihood of the next token.

    A fused forward does. But some classes do not shift the labels that they are given, and others score
    something else; our loss in its place would be another training altogether. It takes two passes, whatever the
    batch holds, so that the ranks of a sharded model stay together; they leave nothing behind.

    Args:
        model: the model in question.
        forward: its forward, which does not ask for `loss_function`.
        inputs: keyword arguments of the caller's first labelled call, without the labels.
        labels_BS: its labels.

    Raises:
        UnsupportedModelError: its loss is a different one, or it is not known which.
    """
    if labels_BS.dim() != 2 or labels_BS.shape[1] < 2:
        raise _not_known(model, f"labels of shape {tuple(labels_BS.shape)} are no rows of tokens")
    sample = _sample(inputs, labels_BS)
    seen = _ask_for_logits(model, forward, sample)
    labels_K = sample.labels_BS[sample.at_BS].to(seen.logits_KV.device).long()
    # Where the caller scores nothing, the unlikeliest token: the loss tells whether the class does.
    labels_K = torch.where(labels_K == IGNORE_INDEX, seen.logits_KV.argmin(-1), labels_K)
    theirs = _ask_for_loss(model, forward, sample, labels_K)

    losses_K = nn.functional.cross_entropy(seen.logits_KV.float(), labels_K, reduction="none")
    padded_K = sample.padded_BS[sample.at_BS].to(losses_K.device)
    ours = {False: float(losses_K.mean()) + seen.auxiliary, True: float(losses_K[~padded_K].mean()) + seen.auxiliary}
    leaves_out = abs(theirs - ours[True]) < abs(theirs - ours[False])
    nearest = ours[leaves_out]
    # Written so that a loss which is no number is refused.
    if not abs(theirs - nearest) <= seen.tolerance * abs(nearest):
        raise UnsupportedModelError(
            f"{type(model).__name__} computes a loss of its own that is not the likelihood of the next token (it "
            f"gives {theirs:.6g} where that is {nearest:.6g}; some classes do not shift their labels). "
            "Train it without `loss:`."
        )
    return OwnLoss(leaves_out if bool(padded_K.any()) else None)


@dataclass(frozen=True)
class _Sample:
    """The labels that the check asks about.

    Attributes:
        inputs: the caller's; one position is padded where a mask pads none.
        labels_BS: the caller's, none at padded positions.
        padded_BS: bool, positions that the mask leaves out.
        at_BS: bool, the positions that are asked about, some padded ones among them.
    """

    inputs: dict[str, Any]
    labels_BS: Tensor
    padded_BS: Tensor
    at_BS: Tensor


def _sample(inputs: Mapping[str, Any], labels_BS: Tensor) -> _Sample:
    inputs = dict(inputs)
    padded_BS = _padded(inputs, labels_BS)
    if padded_BS is None:
        padded_BS = torch.zeros_like(labels_BS, dtype=torch.bool)
    elif not padded_BS[:, 1:].any() and labels_BS.shape[1] > 2:
        inputs["attention_mask"] = inputs["attention_mask"].clone()
        inputs["attention_mask"][:, -1] = 0
        padded_BS[:, -1] = True
    labels_BS = labels_BS.masked_fill(padded_BS, IGNORE_INDEX)
    scored_BS = labels_BS != IGNORE_INDEX
    scored_BS = _few(scored_BS if scored_BS[:, 1:].any() else ~padded_BS)
    return _Sample(inputs, labels_BS, padded_BS, scored_BS | _few(padded_BS))


def _few(where_BS: Tensor) -> Tensor:
    """Keep the last few positions of the first rows that have any; the first position predicts nothing."""
    where_BS = where_BS.clone()
    where_BS[:, 0] = False
    from_the_end_BS = where_BS.flip(1).cumsum(1).flip(1)
    row_B = where_BS.any(1).cumsum(0)
    limit_B = row_B.new_tensor([0, *_ROWS, 0])[row_B.clamp(max=len(_ROWS) + 1)]
    return where_BS & (from_the_end_BS <= limit_B[:, None])


def _padded(inputs: Mapping[str, Any], labels_BS: Tensor) -> Tensor | None:
    """Which labels [B, S] stand where the attention mask is 0; None without a mask of tokens."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < labels_BS.shape[1]:
        return None
    # It is longer where a prefix stands before the tokens (prefix tuning).
    return (mask[:, -labels_BS.shape[1] :] == 0).to(labels_BS.device)


class _HeadAt(nn.Module):
    """Stands where the head stands, and gives the logits of a few positions: those of all may not fit."""

    def __init__(self, head: nn.Module, at_BS: Tensor) -> None:
        super().__init__()
        self.head = head
        self.training = head.training
        self.at_BS = at_BS
        self.asked = False
        self.itemsize = 8

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [1, `_CHECKED`, V] of the positions, or of all if `hidden` is not [B, S, D]."""
        self.itemsize = hidden.dtype.itemsize
        if hidden.shape[:-1] == self.at_BS.shape:
            self.asked = True
            hidden_KD = hidden[self.at_BS.to(hidden.device)]
            # As many rows on every rank.
            hidden = torch.cat([hidden_KD, hidden_KD[-1:].expand(_CHECKED - len(hidden_KD), -1)])[None]
        logits: Tensor = self.head(hidden)
        return logits

    def __getattr__(self, name: str) -> Any:
        # Some forwards read `lm_head.weight.dtype`.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("head"), name)


@dataclass(frozen=True)
class _Seen:
    """What the model gives without labels.

    Attributes:
        logits_KV: at the positions before those that were asked about.
        auxiliary: what it adds to any loss.
        tolerance: relative, of a loss in the precision that the model computes in.
    """

    logits_KV: Tensor
    auxiliary: float
    tolerance: float


def _ask_for_logits(model: Any, forward: Callable[..., Any], sample: _Sample) -> _Seen:
    predicting_BS = sample.at_BS.roll(-1, 1)
    head = model.get_output_embeddings()
    stand_in: Any = None if head is None else _HeadAt(head, predicting_BS)
    with _looking(model, head), standing_in(model, stand_in):
        output = forward(**copied(sample.inputs), return_dict=True)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise _not_known(model, "it returns no logits")
    count = int(predicting_BS.sum())
    if stand_in is not None and stand_in.asked and logits.shape[:-1] == (1, _CHECKED):
        logits_KV = logits[0, :count]
    elif logits.shape[:-1] == predicting_BS.shape:
        logits_KV = logits[predicting_BS.to(logits.device)]
    else:
        labels = tuple(predicting_BS.shape)
        raise _not_known(model, f"it returns logits of shape {tuple(logits.shape)} for labels of shape {labels}")
    auxiliary = auxiliary_loss(model, output)
    half = min(logits.dtype.itemsize, 8 if stand_in is None else stand_in.itemsize) < 4
    return _Seen(logits_KV, 0.0 if auxiliary is None else float(auxiliary), 2e-2 if half else 1e-4)


def _ask_for_loss(model: Any, forward: Callable[..., Any], sample: _Sample, labels_K: Tensor) -> float:
    labels_BS = torch.full_like(sample.labels_BS, IGNORE_INDEX)
    labels_BS[sample.at_BS] = labels_K.to(labels_BS)
    with _looking(model, model.get_output_embeddings()):
        output = forward(**copied(sample.inputs), labels=labels_BS, return_dict=True)
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise _not_known(model, "it returns no loss for labels" if loss is None else "its loss is not one number")
    return float(loss)


@contextmanager
def _looking(model: nn.Module, head: nn.Module | None) -> Iterator[None]:
    # Both passes begin with the same random state, but the head's dropout would draw for other shapes.
    with torch.no_grad(), untouched(model), nullcontext() if head is None else without_dropout(head):
        yield


def _not_known(model: nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"it is not known what {type(model).__name__} is trained on: it computes its loss by itself, and {reason}. "
        "Train it without `loss:`, or score its logits in a loop of your own with dft_plugin.token_loss."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, whatever its class."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in text or "alloc" in text


def asks_for_loss(model: nn.Module, forward: Callable[..., Any], inputs: dict[str, Any]) -> bool:
    """Whether a labelled forward, with the model's own head, calls `model.loss_function`; False if it fails.

    Args:
        model: the module whose forward it is.
        forward: its forward.
        inputs: a batch with labels.
    """
    recorder = LossRecorder()
    try:
        with torch.no_grad(), recording(model, recorder):
            forward(**inputs, return_dict=True)
    except Exception:
        # It fails without the stand-in, too: the error is the model's.
        return True
    return bool(recorder.calls)
