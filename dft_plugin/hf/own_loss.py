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

from dft_plugin.core.targets import IGNORE_INDEX, shift
from dft_plugin.core.transfer import Fetched
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.interception import LossRecorder, recording, standing_in, without_dropout
from dft_plugin.hf.labels import Labels
from dft_plugin.hf.model import auxiliary_loss
from dft_plugin.hf.routing import is_sharded
from dft_plugin.hf.untouched import copied, untouched

_ROWS = (3, 5)
"""Positions that are checked in the first rows: unequal, so that a mean over rows shows."""

_CHECKED = 2 * sum(_ROWS)
"""Rows that the head gets, for scored and for padded positions. A multiple of 16, as fp8 heads ask for."""

_CHUNK = 1024
"""Positions whose logits are read in float32 at once."""

_SAME_LOGITS = 2e-3
"""Relative tolerance of a float32 loss of logits in half precision, against ours of the same logits."""


@dataclass(frozen=True)
class OwnLoss:
    """Which labels a class scores that computes its loss by itself.

    Attributes:
        leaves_out_padding: whether labels where the attention mask is 0 are left out; None: no mask was seen.
        names: the inputs that the check saw; a mask or weights may be among others.
    """

    leaves_out_padding: bool | None
    names: frozenset[str] = frozenset()

    def knows(self, inputs: Mapping[str, Any], labels_BS: Tensor) -> bool:
        """Whether the check saw what these inputs ask about."""
        if not self.names.issuperset(_given(inputs)):
            return False
        return self.leaves_out_padding is not None or _padded(inputs, labels_BS) is None

    def unknown(self, model: nn.Module, inputs: Mapping[str, Any]) -> UnsupportedModelError:
        """Return the error for a batch that one rank alone would have to ask about, while the others go on."""
        new = ", ".join(sorted(_given(inputs) - self.names)) or "a padded attention_mask"
        return _not_known(model, f"{new} came first on a later batch, where ranks cannot ask")

    def scored(self, labels_BS: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return the labels with those ignored that the class leaves out."""
        padded_BS = _padded(inputs, labels_BS) if self.leaves_out_padding else None
        return labels_BS if padded_BS is None else labels_BS.masked_fill(padded_BS, IGNORE_INDEX)


def labels_of(known: OwnLoss, inputs: Mapping[str, Any]) -> Labels:
    """Return what a class scores of a labelled call, on its way to the CPU; `shift_labels` as they are."""
    shift_labels_BS = inputs.get("shift_labels")
    scored_BS = known.scored(inputs["labels"], inputs) if shift_labels_BS is None else shift_labels_BS
    return Labels(Fetched(scored_BS), aligned=shift_labels_BS is not None)


def check_own_loss(
    model: Any,
    forward: Callable[..., Any],
    inputs: Mapping[str, Any],
    labels_BS: Tensor,
    before: OwnLoss | None = None,
) -> OwnLoss:
    """Check that a forward which computes its loss by itself computes the likelihood of the next token.

    A fused forward does. But some classes do not shift the labels that they are given, and others score
    something else; our loss in its place would be another training altogether. It takes three passes, whatever the
    batch holds, so that the ranks of a sharded model stay together; they leave nothing behind. The first two ask about
    a few positions, padded ones too; the third gets the caller's own labels, since a mask or weights among the inputs
    may tell other positions apart.

    Args:
        model: the model in question.
        forward: its forward, which does not ask for `loss_function`.
        inputs: keyword arguments of the caller's first labelled call, without the labels.
        labels_BS: its labels.
        before: what an earlier check found, which knows too little of these inputs.

    Raises:
        UnsupportedModelError: its loss is a different one, or it is not known which.
        Exception: what its forward raises for the caller's labels.
    """
    if before is not None and is_sharded(model):
        raise before.unknown(model, inputs)
    if labels_BS.dim() != 2 or labels_BS.shape[1] < 2:
        raise _not_known(model, f"labels of shape {tuple(labels_BS.shape)} are not rows of tokens")
    sample = _sample(inputs, labels_BS)
    seen = _ask_for_logits(model, forward, sample)
    labels_K = sample.labels_BS[sample.at_BS].to(seen.logits_KV.device).long()
    # Where the caller scores nothing, the unlikeliest token: the loss tells whether the class does.
    labels_K = torch.where(labels_K == IGNORE_INDEX, seen.logits_KV.argmin(-1), labels_K)
    asked_BS = torch.full_like(labels_BS, IGNORE_INDEX)
    asked_BS[sample.at_BS] = labels_K.to(asked_BS)
    refused, theirs = None, 0.0
    try:
        theirs = float(_ask_for_loss(model, forward, sample.inputs, asked_BS).loss)
    except Exception as error:
        if isinstance(error, UnsupportedModelError) or is_out_of_memory(error):
            raise
        refused = error
    # What fails for the caller's labels, too, is the model's own error.
    whole = _ask_for_loss(model, forward, inputs, labels_BS)
    if refused is not None:
        reason = f"it takes your labels, but not other ones, with {IGNORE_INDEX} for what is not scored ({refused})"
        raise _not_known(model, reason) from refused

    losses_K = nn.functional.cross_entropy(seen.logits_KV.float(), labels_K, reduction="none")
    padded_K = sample.padded_BS[sample.at_BS].to(losses_K.device)
    ours = {False: float(losses_K.mean()) + seen.auxiliary, True: float(losses_K[~padded_K].mean()) + seen.auxiliary}
    leaves_out = abs(theirs - ours[True]) < abs(theirs - ours[False])
    _must_agree(model, theirs, ours[leaves_out], seen.tolerance)
    found = OwnLoss(leaves_out if bool(padded_K.any()) else None, _given(inputs))
    _compare_whole(model, whole, found.scored(labels_BS, inputs), seen)
    return found


def _given(inputs: Mapping[str, Any]) -> frozenset[str]:
    """Name the inputs that are there."""
    return frozenset(name for name, value in inputs.items() if value is not None)


def _must_agree(model: nn.Module, theirs: float, ours: float, tolerance: float) -> None:
    # Written so that a loss which is no number is refused.
    if not abs(theirs - ours) <= tolerance * abs(ours):
        raise UnsupportedModelError(
            f"{type(model).__name__} computes a loss of its own that is not the likelihood of the next token (it "
            f"gives {theirs:.6g} where that is {ours:.6g}; some classes do not shift their labels, others mask or "
            "weigh them by another input). Train it without `loss:`."
        )


def _compare_whole(model: Any, output: Any, scored_BS: Tensor, seen: _Seen) -> None:
    """Compare the loss of all labels with our own, where the class returns the logits that it was made from."""
    logits_BSV = getattr(output, "logits", None)
    targets_BS = shift(scored_BS)
    count = int((targets_BS != IGNORE_INDEX).sum())
    if not count or not isinstance(logits_BSV, Tensor) or logits_BSV.shape[:-1] != targets_BS.shape:
        # A fused forward makes no logits, and takes no mask or weights that the sample would miss.
        return
    targets_BS = targets_BS.to(logits_BSV.device).long()
    total = 0.0
    for logits_SV, targets_S in zip(logits_BSV, targets_BS, strict=True):
        # In float32 even the logits of one long row may not fit once more.
        for logits_KV, targets_K in zip(logits_SV.split(_CHUNK), targets_S.split(_CHUNK), strict=True):
            losses = nn.functional.cross_entropy(
                logits_KV.float(), targets_K, ignore_index=IGNORE_INDEX, reduction="sum"
            )
            total += float(losses)
    auxiliary = auxiliary_loss(model, output)
    ours = total / count + (seen.auxiliary if auxiliary is None else float(auxiliary))
    # Both are made from the same logits: only a sum in half precision differs by more.
    tolerance = seen.tolerance if output.loss.dtype.itemsize < 4 else min(seen.tolerance, _SAME_LOGITS)
    _must_agree(model, float(output.loss), ours, tolerance)


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
    """Keep a few positions of the first rows that have any, spread evenly from the first to the last.

    A mask or weights of the class's own tend to change at the beginning of a row or beside the padding. Position 0
    is left out: it predicts nothing.
    """
    where_BS = where_BS.clone()
    where_BS[:, 0] = False
    row_B = where_BS.any(1).cumsum(0)
    limit_B = row_B.new_tensor([0, *_ROWS, 0])[row_B.clamp(max=len(_ROWS) + 1)]
    index_BS = where_BS.cumsum(1) - 1
    last_B = index_BS[:, -1].clamp(min=1)

    def share(index_BS: Tensor) -> Tensor:
        return (index_BS * (limit_B - 1)[:, None]).div(last_B[:, None], rounding_mode="floor")

    chosen_BS = (index_BS == 0) | (share(index_BS) != share(index_BS - 1))
    return where_BS & chosen_BS & (limit_B > 0)[:, None]


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


def _ask_for_loss(model: Any, forward: Callable[..., Any], inputs: Mapping[str, Any], labels_BS: Tensor) -> Any:
    """Return the output of a labelled pass, its loss one number."""
    with _looking(model, model.get_output_embeddings()):
        output = forward(**copied(inputs), labels=labels_BS.clone(), return_dict=True)
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise _not_known(model, "it returns no loss for labels" if loss is None else "its loss is not one number")
    return output


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
