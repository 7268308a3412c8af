"""Attachment: a LossPlan on one model instance. The model's forward answers labels with our loss.

Shapes: B batch, S sequence, D hidden size, T scored tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dft_plugin.core import targets
from dft_plugin.core.loss import LossPlan, LossResult, NumItems, hidden_loss, logits_loss
from dft_plugin.core.stats import LossStats, Tally
from dft_plugin.errors import NotActiveError, UnsupportedModelError
from dft_plugin.hf import calibration
from dft_plugin.hf.head import ReadableHead, call_inside, read_head
from dft_plugin.hf.interception import (
    HeadCapture,
    LossRecorder,
    logits_are_spare,
    recording,
    standing_in,
    without_dropout,
)
from dft_plugin.hf.model import auxiliary_loss, eos_token_ids, require_causal_lm, unwrap
from dft_plugin.hf.own_loss import OwnLoss, check_own_loss
from dft_plugin.hf.untouched import copied, untouched
from dft_plugin.kernels import IDENTITY, OpaqueHead, Transform, score_logits, score_logits_

logger = logging.getLogger(__name__)

_OURS_TO_SAY = frozenset({"logits_to_keep", "return_dict", "num_items_in_batch"})
"""Arguments of a labelled call that the original forward does not get as they are."""


@dataclass(frozen=True)
class Route:
    """How this model's loss is computed, decided on the first batch.

    Attributes:
        path: `lean` (from hidden states) or `logits`.
        transform: what the model does to raw logits; used on the lean path.
        why_not_lean: the reason for the logits path, or for calling the head as a black box.
        vocab_size: number of logits per position.
    """

    path: str
    transform: Transform = IDENTITY
    why_not_lean: str | None = None
    vocab_size: int = 0


@dataclass(frozen=True)
class Seen:
    """What one run of the model's forward showed.

    Attributes:
        output: what the model returned.
        logits: what its loss would have been made from; the stand-in's, where one stood in.
        labels_BS: aligned labels.
        auxiliary: what the model adds to any loss (a router's), scaled by the model; or None.
    """

    output: Any
    logits: Tensor
    labels_BS: Tensor
    auxiliary: Tensor | None


@dataclass(frozen=True)
class Pass:
    """One labelled forward pass.

    Attributes:
        output: what the model returned, its `loss` not yet ours.
        result: what was scored.
        scored_BS: bool, which positions are scored.
        auxiliary: what the model adds to any loss (a router's), scaled by the model; or None.
    """

    output: Any
    result: LossResult
    scored_BS: Tensor
    auxiliary: Tensor | None


@dataclass
class Answering:
    """How the trainer's own calls for a loss are answered.

    Attributes:
        tally: gets the statistics of each answered call; None: the attachment keeps them by mode, see `drain`.
        want_logits: whether outputs must carry logits; None: in eval mode only.
        counted_B: bool, which rows of the batch the statistics count; None: all. The loss is of all rows.
        num_items: divisor for a call that carries no `num_items_in_batch`.
    """

    tally: Tally | None = None
    want_logits: bool | None = None
    counted_B: Tensor | None = None
    num_items: NumItems = None


class Attachment:
    """Stands in the instance's `forward`. Undo it with `detach()`.

    It is an object, not a closure: a deepcopy or an unpickled copy of the model carries a copy of it that
    runs the copy's weights. It has no `__wrapped__`, along which accelerate would walk past it.

    Attributes:
        model: the causal LM, without PEFT or compile wrappers.
        plan: objective, kernel, path.
        route: how the loss is computed; None before the first batch.
        calls: labelled forward passes answered so far.
        trainer_only: answer only inside `answering()`; other callers of `model(..., labels=...)` get the
            model's own loss, as Axolotl's perplexity metric expects.
    """

    def __init__(self, model: PreTrainedModel, plan: LossPlan) -> None:
        self.model = model
        self.plan = plan
        self.previous = model.__dict__.get("forward")
        self.__name__ = "forward"
        self.route: Route | None = Route("logits", why_not_lean="asked for") if plan.path == "logits" else None
        self.calls = 0
        self.trainer_only = False
        self._answering: Answering | None = None
        self._own_loss: OwnLoss | None = None
        self._unchecked: tuple[Tensor, Tensor] | None = None
        self._tallies = {True: Tally(), False: Tally()}
        # generate() validates its kwargs against the signature, and Trainer drops unused columns by it.
        self.__signature__ = inspect.signature(self.original)

    @property
    def original(self) -> Any:
        """The forward that we took over: an earlier one on the instance, or the class's."""
        return self.previous or type(self.model).forward.__get__(self.model)

    def __getstate__(self) -> dict[str, Any]:
        # Annotations in a signature need not be picklable; it is made anew.
        return {key: value for key, value in self.__dict__.items() if key != "__signature__"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        parameters = list(inspect.signature(type(self.model).forward).parameters.values())[1:]
        self.__signature__ = inspect.Signature(parameters)

    def detach(self) -> None:
        """Give the model its forward back. Statistics that were not drained are lost.

        Raises:
            NotActiveError: something else has taken over the forward since; undo that first.
        """
        current = self.model.__dict__.get("forward")
        if current is not self:
            if isinstance(current, Attachment) or current is self.previous:
                return
            raise NotActiveError(
                f"the model's forward is now {_name(current)}, put there after the loss was attached. Undo that "
                "first, then detach."
            )
        if self.previous is None:
            del self.model.__dict__["forward"]
        else:
            self.model.__dict__["forward"] = self.previous

    @contextmanager
    def answering(self, **how: Any) -> Iterator[None]:
        """Answer labelled calls inside this block, also where `trainer_only` is set.

        Args:
            how: fields of `Answering`; those that are not given are as in an enclosing block.
        """
        before = self._answering
        self._answering = replace(before or Answering(), **how)
        try:
            yield
        finally:
            self._answering = before

    def drain(self, *, training: bool) -> LossStats:
        """Return the statistics gathered in train or eval mode since the last drain, and forget them."""
        return self._tallies[training].take(self.model.device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; with `labels` or `shift_labels`, put our loss into its output."""
        inputs = {**dict(zip(self.__signature__.parameters, args, strict=False)), **kwargs}
        unlabelled = inputs.get("labels") is None and inputs.get("shift_labels") is None
        if unlabelled or (self.trainer_only and self._answering is None):
            return self.original(*args, **kwargs)
        how = self._answering or Answering()
        num_items: NumItems = inputs.pop("num_items_in_batch", None)
        num_items = how.num_items if num_items is None else num_items
        return_dict = inputs.pop("return_dict", None)
        if return_dict is None:
            return_dict = getattr(self.model.config, "return_dict", True)
        done = self.score(inputs, not self.model.training if how.want_logits is None else how.want_logits)
        loss = done.result.mean(num_items)
        if done.auxiliary is not None:
            # Token-weighted over micro-batches and ranks; the model alone would add it once for each.
            share = 1.0 if num_items is None else done.result.count / num_items
            loss = loss + (done.auxiliary * share).to(loss.device)
        done.output["loss"] = loss
        return done.output if return_dict else done.output.to_tuple()

    def score(self, inputs: dict[str, Any], want_logits: bool) -> Pass:
        """Run the model on labelled inputs and score them; nothing is divided.

        Args:
            inputs: keyword arguments of the model's forward, `labels` or `shift_labels` among them.
            want_logits: whether the output must carry logits.

        Raises:
            UnsupportedModelError: the plan insists on the lean path and the model does not allow it.
            LabelError: labels that do not fit the model.
        """
        lean = not want_logits and not (self.route and self.route.path == "logits")
        done = self._lean_pass(inputs) if lean else None
        if done is None:
            done = self._logits_pass(inputs, keep_logits=want_logits)
        self.calls += 1
        how = self._answering or Answering()
        counted_T = None
        if how.counted_B is not None:
            counted_T = how.counted_B.to(done.scored_BS.device)[:, None].expand_as(done.scored_BS)[done.scored_BS]
        tally = self._tallies[self.model.training] if how.tally is None else how.tally
        tally.add(done.result.stats(eos_token_ids(self.model), counted_T))
        return done

    def _lean_pass(self, inputs: dict[str, Any]) -> Pass | None:
        """Score from hidden states. Returns None where the first batch shows that this is not possible."""
        head = self.model.get_output_embeddings()
        if head is None:
            return self._leave_lean("the model has no output embeddings")
        if self.route is None and not self._probe(inputs, head):
            return None
        capture = HeadCapture(head)
        seen = self._run(inputs, capture)
        hidden_BSD = capture.hidden
        if capture.calls != 1 or hidden_BSD is None:
            return self._leave_lean(f"the model calls its head {capture.calls} times")
        labels_BS = seen.labels_BS.to(hidden_BSD.device)
        if hidden_BSD.shape[:-1] != labels_BS.shape:
            return self._leave_lean(
                f"its head gets hidden states {tuple(hidden_BSD.shape)} for labels {tuple(labels_BS.shape)}"
            )
        scored_BS = labels_BS != targets.IGNORE_INDEX
        result = self._score_hidden(head, hidden_BSD[scored_BS], labels_BS[scored_BS])
        if isinstance(result, str):
            return self._leave_lean(result)
        seen.output["logits"] = None
        return Pass(seen.output, result, scored_BS, seen.auxiliary)

    def _score_hidden(self, head: Any, hidden_TD: Tensor, labels_T: Tensor) -> LossResult | str:
        """Score inside the head's forward; returns why it cannot be trusted where it was checked in vain."""
        assert self.route is not None
        reading = read_head(head)
        if isinstance(reading, ReadableHead):
            # The sum is returned as a tensor of its own, for hooks that wrap the outputs of a module.
            loss_sum, result = call_inside(reading.owner, self._inside_head, hidden_TD, labels_T, reading)
            if result is not None:
                return result if isinstance(result, str) else replace(result, loss_sum=loss_sum)
        called = OpaqueHead(head, self.route.vocab_size, self.route.transform)
        return hidden_loss(self.plan, hidden_TD, called, labels_T)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _inside_head(
        self, hidden_TD: Tensor, labels_T: Tensor, reading: ReadableHead
    ) -> tuple[Tensor, LossResult | str | None]:
        assert self.route is not None
        head = reading.head(hidden_TD, self.route.transform)
        if head is None:
            return hidden_TD, None
        if self._unchecked is not None:
            hidden_KD, real_KV = self._unchecked
            with torch.no_grad(), without_dropout(reading.owner):
                read = reading.head(hidden_KD, self.route.transform)
                assert read is not None
                reason = calibration.check_head(self.plan, read, hidden_KD, real_KV)
            if reason:
                return hidden_TD, reason
            self._unchecked = None
        result = hidden_loss(self.plan, hidden_TD, head, labels_T)
        return result.loss_sum, result

    def _logits_pass(self, inputs: dict[str, Any], *, keep_logits: bool) -> Pass:
        """Score the logits that the model makes."""
        seen = self._run(inputs, None)
        labels_BS = seen.labels_BS.to(seen.logits.device)
        # Logits that nobody reads again make room for their gradient.
        spare = not keep_logits and seen.auxiliary is None and logits_are_spare(self.model, seen.logits)
        result = logits_loss(self.plan, seen.logits, labels_BS, kernel=score_logits_ if spare else score_logits)
        if not keep_logits:
            seen.output["logits"] = None
        return Pass(seen.output, result, labels_BS != targets.IGNORE_INDEX, seen.auxiliary)

    def _run(self, inputs: dict[str, Any], capture: HeadCapture | None) -> Seen:
        """Run the model's forward once, with `capture` in place of its head if one is given."""
        inputs = {key: value for key, value in inputs.items() if key not in _OURS_TO_SAY}
        shift_labels = inputs.pop("shift_labels", None)
        labels = inputs.pop("labels", None)
        labels = shift_labels if labels is None else labels
        if self.model.training and "use_cache" in self.__signature__.parameters:
            inputs.setdefault("use_cache", False)
        if self._own_loss is None:
            seen = self._run_with_labels(inputs, labels, shift_labels, capture)
            if seen is not None:
                return seen
            if capture is not None:
                capture.release()
        if self._own_loss is None or not self._own_loss.knows(inputs, labels):
            # A fused forward (Liger, Cut Cross-Entropy), or a class with a loss of its own.
            self._own_loss = check_own_loss(self.model, self.original, inputs, labels)
        with standing_in(self.model, capture):
            output = self.original(**inputs, return_dict=True)
        aligned = shift_labels
        if aligned is None:
            aligned = targets.shift(self._own_loss.scored(labels, inputs))
        return Seen(output, output["logits"], aligned, auxiliary_loss(self.model, output))

    def _run_with_labels(
        self, inputs: dict[str, Any], labels: Tensor, shift_labels: Tensor | None, capture: HeadCapture | None
    ) -> Seen | None:
        """Run the model and answer its call for a loss. Returns None if it makes none."""
        recorder = LossRecorder()
        extra = {} if shift_labels is None else {"shift_labels": shift_labels}
        output = None
        try:
            with standing_in(self.model, capture), recording(self.model, recorder):
                output = self.original(**inputs, labels=labels, **extra, return_dict=True)
        except Exception:
            # A class with a loss of its own may fail on what our stand-in gives it instead of logits.
            if recorder.calls or capture is None:
                raise
        if recorder.calls > 1:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} asks for {recorder.calls} losses in one forward pass; only one "
                "can be replaced. Train it without `loss:`."
            )
        if output is None or recorder.logits is None or recorder.labels is None:
            return None
        aligned = recorder.labels if shift_labels is None else shift_labels
        added = output["loss"]
        return Seen(output, recorder.logits, aligned, added if added.requires_grad or added != 0 else None)

    def _probe(self, inputs: dict[str, Any], head: Any) -> bool:
        """Decide the route from the first batch; returns whether it is the lean one.

        It is a pass of its own, so that the head is called once in each: FSDP2 loses count of a group of
        modules (norm and head, as transformers' plans have it) where one is called more often than the others.
        """
        capture = HeadCapture(head, probing=True)
        with untouched(self.model):
            seen = self._run(copied(inputs), capture)
        if capture.calls != 1 or capture.probe is None or capture.real_KV is None:
            self._leave_lean(f"the model calls its head {capture.calls} times")
            return False
        if seen.auxiliary is not None and not torch.is_grad_enabled():
            # Only a graph can tell where it comes from. The next batch decides.
            return False
        transform = calibration.find_transform(capture.probe, seen.logits)
        if isinstance(transform, str):
            self._leave_lean(transform)
            return False
        if seen.auxiliary is not None and capture.led_to(seen.auxiliary):
            self._leave_lean("the model adds to its loss what it makes of its logits (a z-loss, say)")
            return False
        reading = read_head(head)
        why_not_lean = reading if isinstance(reading, str) else None
        self.route = Route("lean", transform, why_not_lean, capture.real_KV.shape[-1])
        self._unchecked = capture.checked_positions(), capture.real_KV
        return True

    def _leave_lean(self, reason: str) -> Pass | None:
        """Take the logits path from now on, or refuse where the lean one was asked for by name."""
        if self.plan.path == "lean":
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: the lean kernel was asked for by name, but {reason}. Set "
                "`kernel: auto` to score the model's logits instead."
            )
        logger.warning("dft: %s: scoring the model's logits, since %s.", type(self.model).__name__, reason)
        self.route = Route("logits", why_not_lean=reason)
        return None


def attach_plan(model: torch.nn.Module, plan: LossPlan, attachment_class: type[Attachment] = Attachment) -> Attachment:
    """Attach a plan to a model; a plan attached before is replaced.

    Args:
        model: a causal `PreTrainedModel`, or a PEFT model or `torch.compile`d module around one.
        plan: what to compute.
        attachment_class: a host's own, where its trainer asks for a loss in a way of its own.

    Raises:
        UnsupportedModelError: not a causal LM, encoder-decoder, or already wrapped for several devices.
    """
    causal_lm = require_causal_lm(unwrap(model))
    attached = causal_lm.__dict__.get("forward")
    if isinstance(attached, Attachment):
        attached.detach()
    attachment = attachment_class(causal_lm, plan)
    causal_lm.__dict__["forward"] = attachment
    return attachment


def _name(function: Any) -> str:
    # The repr of a bound method prints its whole model.
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
