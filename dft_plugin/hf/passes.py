"""One labelled forward pass: from hidden states (lean), or from the logits that the model makes.

Shapes: B batch, S sequence, T scored tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dft_plugin.core import targets
from dft_plugin.core.loss import LossResult, logits_loss, score_hidden
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.targets import Facts, Selection
from dft_plugin.core.transfer import version_of
from dft_plugin.errors import DftError
from dft_plugin.hf import calibration, routing
from dft_plugin.hf.calibration import Reading
from dft_plugin.hf.called import CalledHead, MixedHeadError
from dft_plugin.hf.entry import enter
from dft_plugin.hf.facts import facts_of
from dft_plugin.hf.head import ReadableHead, find_door, read_head, vocab_size_of
from dft_plugin.hf.interception import (
    HeadStandIn,
    Seen,
    own_arguments,
    require_mapping,
    run_asking,
    standing_in,
)
from dft_plugin.hf.known_head import KnownHead
from dft_plugin.hf.model import auxiliary_loss
from dft_plugin.hf.own_loss import OwnLoss, asks_for_loss, check_own_loss, is_out_of_memory, labels_of
from dft_plugin.hf.reference import Reference, demand_reference, refer, wanted_of, with_head
from dft_plugin.hf.routing import NotLean, Route, agree, all_or_none, called_often, judge, require_free, verdict_of
from dft_plugin.hf.spare import logits_are_spare
from dft_plugin.hf.untouched import Undisturbed
from dft_plugin.kernels import Head, OpaqueHead, score_logits, score_logits_
from dft_plugin.objectives import Clock
from dft_plugin.saying import warn

logger = logging.getLogger(__name__)

_STAND_IN_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)
"""What a loss of a class's own may raise when it gets our stand-in for logits."""

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Pass:
    """One labelled forward pass.

    Attributes:
        output: what the model returned, its `loss` not yet ours.
        result: what was scored.
        auxiliary: what the model adds to any loss (a router's), scaled by the model; or None. Without a graph it may
            be zero.
    """

    output: Any
    result: LossResult
    auxiliary: Tensor | None


class Passes:
    """Scores labelled calls of a model, and keeps what the first of them showed.

    Attributes:
        plan: objective, kernel, path.
        route: how the loss is computed; None before the first batch.
        reference: what the plan compares the model with; None: nothing, or it is not known yet.
    """

    def __init__(self, plan: LossPlan) -> None:
        self.plan = plan
        self.reference: Reference | None = None
        self.route: Route | None = Route("logits", why_not_lean="asked for") if plan.path == "logits" else None
        self._head = KnownHead()
        self._probe: Tensor | None = None
        # By mode: a fused forward (Liger, Cut Cross-Entropy) asks for a loss in evaluation only.
        self._asks: dict[bool, bool] = {}
        self._own_loss: OwnLoss | None = None

    def __getstate__(self) -> dict[str, Any]:
        # It is made anew, and as large as a few rows of logits.
        return {**self.__dict__, "_probe": None}

    def score(
        self, model: nn.Module, forward: Forward, inputs: dict[str, Any], want_logits: bool, clock: Clock | None
    ) -> Pass:
        """Run the model on labelled inputs and score them; nothing is divided.

        Args:
            model: the module that was called.
            forward: its own forward.
            inputs: keyword arguments of it, `labels` or `shift_labels` among them.
            want_logits: whether the output must carry logits.
            clock: how far the run is; None where nobody knows.

        Raises:
            UnsupportedModelError: the plan insists on the lean path and the model does not allow it.
            LabelError: labels that do not fit the model.
            ConflictError: the plan reads a column, or a reference, that is not there.
        """
        inputs = own_arguments(model, forward, inputs)
        facts = facts_of(self.plan, inputs, clock)
        if want_logits or (self.route is not None and self.route.path == "logits"):
            return self._logits_pass(model, forward, inputs, facts, keep_logits=want_logits)
        first = self.route is None
        kept = Undisturbed(model, inputs) if first else None
        done = self._lean_pass(model, forward, inputs, facts)
        if isinstance(done, Pass):
            return done
        require_free(model, done, insists=self.plan.path == "lean", first=first)
        inputs = inputs if kept is None else kept.again()
        passed = self._logits_pass(model, forward, inputs, facts, keep_logits=False)
        # Not before: a batch that no path can score says nothing of the model.
        self._leave_lean(model, done)
        return passed

    def _referring(
        self, model: nn.Module, forward: Forward, inputs: dict[str, Any], facts: Facts, vocab_size: int | None
    ) -> Facts | NotLean:
        """Run the reference, where the plan reads one now: before the model, which then has the memory."""
        wanted = wanted_of(self.plan, facts)
        if not wanted:
            return facts
        if self.reference is None:
            self.reference = demand_reference(self.plan, model)
        referred = refer(self.reference, wanted, model, forward, inputs, vocab_size)
        return referred if isinstance(referred, NotLean) else replace(facts, reference=referred)

    def _lean_pass(self, model: Any, forward: Forward, inputs: dict[str, Any], facts: Facts) -> Pass | NotLean:
        """Score from hidden states, or say why that is not possible."""
        head = model.get_output_embeddings()
        if head is None:
            return NotLean("the model has no output embeddings")
        door = find_door(head)
        if door.hears_gradients:
            return NotLean("a backward hook on its head changes gradients")
        vocab_size = vocab_size_of(model, door)
        referring = self._referring(model, forward, inputs, facts, vocab_size)
        if isinstance(referring, NotLean):
            return referring
        known = self.route if self.route is not None and self.route.still_fits(model, door) else None
        stand_in = HeadStandIn(head, self._probe_of(vocab_size))
        seen = self._run(model, forward, inputs, stand_in)
        # It is on the device of the hidden states by now.
        if not stand_in.probe.is_inference():
            self._probe = stand_in.probe.detach()
        if isinstance(seen, NotLean):
            return seen
        asked = judge(model, stand_in, seen, known)
        if known is None:
            verdict = agree(model, verdict_of(asked))
            self._head = KnownHead()
        else:
            verdict = routing.expected(asked, known)
        if isinstance(verdict, NotLean):
            return verdict
        if isinstance(asked, NotLean):
            return asked
        with_graph = torch.is_grad_enabled() or (known is not None and known.with_graph)
        reason = None if known is None else known.why_not_lean
        steady = known is None or known.transform == verdict
        told = None if known is None else known.told
        self.route = Route("lean", verdict, reason, vocab_size, id(door.owner), with_graph, steady, told)
        hidden_BSD = stand_in.hidden
        if stand_in.calls != 1 or hidden_BSD is None:
            return called_often(stand_in)
        labels_BS = seen.labels.read()
        # Some classes flatten one of the two, as transformers' losses do.
        if hidden_BSD.shape[:-1].numel() != labels_BS.numel():
            return NotLean(
                f"its head gets hidden states {tuple(hidden_BSD.shape)} for labels {tuple(labels_BS.shape)}"
            )
        chosen, reading = targets.select(labels_BS, facts=referring), read_head(door)

        def score(hidden_TD: Tensor, project: CalledHead) -> LossResult:
            with_reference = with_head(self.reference, chosen, model, project)
            return self._score_inside(reading, hidden_TD, with_reference, project, asked)

        try:
            with parametrize.cached():
                result = enter(door, score, chosen.rows(hidden_BSD))
        except MixedHeadError as mixed:
            return NotLean(str(mixed))
        late = verdict_of(asked)
        if isinstance(late, NotLean):
            return late
        if asked.steps is not None:
            self.route = replace(self.route, told=(asked.steps, late))
        seen.output["logits"] = None
        return Pass(seen.output, result, seen.auxiliary)

    def _score_inside(
        self, reading: ReadableHead | str, hidden_TD: Tensor, chosen: Selection, project: CalledHead, asked: Reading
    ) -> LossResult:
        """Score inside the head's forward, once more if the model did not do what it did to the logits before."""
        head = self._head_inside(reading, hidden_TD, project)
        if isinstance(head, Head) and head.weight_VD.device != hidden_TD.device:
            # A tied head is where the embeddings are.
            hidden_TD = hidden_TD.to(head.weight_VD.device)
        result = score_hidden(self.plan, hidden_TD, head, chosen)
        found = asked.read()
        assert self.route is not None
        if isinstance(found, str) or found == self.route.transform:
            return result
        # Its gradients would stay beside those of the next.
        del result
        self.route = replace(self.route, transform=found, steady=False)
        return self._score_inside(reading, hidden_TD, chosen, project, asked)

    def _head_inside(self, reading: ReadableHead | str, hidden_TD: Tensor, project: CalledHead) -> Head | OpaqueHead:
        assert self.route is not None
        head = reading.head(hidden_TD, self.route.transform) if isinstance(reading, ReadableHead) else reading
        if isinstance(reading, ReadableHead) and isinstance(head, Head):
            head = self._head.distrust(self.plan, reading, hidden_TD, project, self.route.transform) or head
        self.route = replace(self.route, why_not_lean=head if isinstance(head, str) else None)
        if isinstance(head, str):
            project.gather()
            parameters = (*project.owner.parameters(), *self._head.trained_elsewhere(project, hidden_TD))
            return OpaqueHead(project, self.route.vocab_size, self.route.transform, parameters, project.row_multiple)
        return head

    def _probe_of(self, vocab_size: int) -> Tensor:
        if self._probe is None or self._probe.shape[-1] != vocab_size:
            self._probe = calibration.probe_logits(vocab_size)
        return self._probe

    def _logits_pass(
        self, model: Any, forward: Forward, inputs: dict[str, Any], facts: Facts, *, keep_logits: bool
    ) -> Pass:
        """Score the logits that the model makes."""
        referring = self._referring(model, forward, inputs, facts, None)
        assert isinstance(referring, Facts)
        seen = self._run(model, forward, inputs)
        assert isinstance(seen, Seen)
        if not keep_logits:
            seen.output["logits"] = None
        # Logits that nobody reads again make room for their gradient.
        kernel = score_logits_ if not keep_logits and logits_are_spare(model, seen) else score_logits
        labels_BS, logits = seen.labels.read(), seen.logits
        if logits.shape[:-1] != labels_BS.shape and logits[..., 0].numel() == labels_BS.numel():
            # Some classes flatten them, as transformers' losses do.
            logits = logits.view(*labels_BS.shape, logits.shape[-1])
        result = logits_loss(self.plan, logits, labels_BS, facts=referring, kernel=kernel)
        return Pass(seen.output, result, seen.auxiliary)

    def _run(
        self, model: Any, forward: Forward, inputs: dict[str, Any], stand_in: HeadStandIn | None = None
    ) -> Seen | NotLean:
        """Run the model's forward once, with `stand_in` in place of its head if one is given."""
        asks, given = self._asks.get(model.training), inputs
        if asks is not False:
            kept = Undisturbed(model, inputs) if asks is None else None
            seen = self._run_asking(model, forward, inputs, stand_in, kept)
            if isinstance(seen, NotLean):
                return seen
            if seen is not None:
                self._asks[model.training] = True
                return seen
            inputs = inputs if kept is None else kept.again()
            if stand_in is not None:
                stand_in.release()
        labels = inputs["labels"]
        unlabelled = {key: value for key, value in inputs.items() if key not in ("labels", "shift_labels")}
        if asks is not False or self._own_loss is None or not self._own_loss.knows(unlabelled, labels):
            # A fused forward (Liger, Cut Cross-Entropy), or a class with a loss of its own.
            self._own_loss = check_own_loss(model, forward, unlabelled, labels, self._own_loss)
            self._asks[model.training] = False
        source = given.get("shift_labels", given["labels"])
        ahead, version = labels_of(self._own_loss, given), version_of(source)
        with standing_in(model, stand_in):
            output = require_mapping(model, forward(**unlabelled, return_dict=True))
        if version_of(source) != version:
            # Somebody wrote into them on the way to the class's loss.
            ahead = labels_of(self._own_loss, given)
        return Seen(output, output.logits, ahead, auxiliary_loss(model, output))

    def _run_asking(
        self,
        model: Any,
        forward: Forward,
        inputs: dict[str, Any],
        stand_in: HeadStandIn | None,
        kept: Undisturbed | None,
    ) -> Seen | NotLean | None:
        """Run the forward with labels. Returns None if the class makes a loss of its own.

        A loss of its own may fail on what the stand-in gives it instead of logits. Whether it is one, the forward with
        its own head tells; every other error is the model's, and so is any on a later batch (`kept` is None). A class
        that asks for a loss and fails on the stand-in each time works on its logits by their shape.
        """
        if stand_in is None or kept is None:
            return run_asking(model, forward, inputs, stand_in)
        seen, error = None, None
        try:
            seen = run_asking(model, forward, inputs, stand_in)
        except _STAND_IN_ERRORS as caught:
            if isinstance(caught, DftError) or not stand_in.calls or is_out_of_memory(caught):
                raise
            error = caught
        if all_or_none(model, error) is None or error is None:
            return seen
        if not asks_for_loss(model, forward, kept.again()):
            return None
        try:
            run_asking(model, forward, kept.again(), HeadStandIn(stand_in.head, stand_in.probe))
        except type(error) as again:
            if str(again) == str(error):
                return NotLean("its forward works on its logits by their shape")
        raise error

    def _leave_lean(self, model: nn.Module, found: NotLean) -> None:
        """Take the logits path from now on."""
        if found.final:
            warn(logger, "dft: %s: scoring the model's logits, since %s.", type(model).__name__, found.reason)
            self.route = Route("logits", why_not_lean=found.reason)
