"""Attachment: a LossPlan on one model instance. The model's forward answers labels with our loss.

Shapes: B batch, S sequence, T scored tokens.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dft_plugin.core import given
from dft_plugin.core.loss import LossResult, NumItems, normalise
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.stats import LossStats, Tally
from dft_plugin.hf import standing
from dft_plugin.hf.alone import Alone
from dft_plugin.hf.capturing import require_plain
from dft_plugin.hf.copies import of_deep_copy, of_shallow_copy
from dft_plugin.hf.counted import of_tokens
from dft_plugin.hf.cut_layers import Adapted, require_all_logits
from dft_plugin.hf.facts import without_columns
from dft_plugin.hf.in_loops import Drained, require_in_loop
from dft_plugin.hf.labels import require_tensors
from dft_plugin.hf.model import eos_token_ids, require_causal_lm, unwrap
from dft_plugin.hf.nonfinite import Watch
from dft_plugin.hf.on_meta import require_numbers
from dft_plugin.hf.passes import Pass, Passes
from dft_plugin.hf.reference import Reference, find_reference, refuse_prompts
from dft_plugin.hf.rescaling import Rescaling
from dft_plugin.hf.routing import Route
from dft_plugin.objectives import Clock


@dataclass(frozen=True)
class Answering:
    """How the trainer's own calls for a loss are answered.

    Attributes:
        tally: gets the statistics of each answered call; None: the attachment keeps them by mode, see `drain`.
        want_logits: whether outputs must carry logits; None: in eval mode only.
        counted_B: bool, on the CPU, which rows [B] or positions [B, S] the statistics count; None: all. The loss is
            of all rows.
        num_items: divisor for a call that carries no `num_items_in_batch`.
        mean_of_nothing: the loss of a batch without targets: NaN in an evaluation, as that of cross-entropy is, and
            `eval_loss` does with it what the installed Trainer does.
        watch: gets what was computed of each answered call, to find what of it was not finite; None: nobody looks.
        rescaling: divides by more than tokens when the step is over, where the objective asks for that; None: what is
            answered is divided at once.
    """

    tally: Tally | None = None
    want_logits: bool | None = None
    counted_B: Tensor | None = None
    num_items: NumItems = None
    mean_of_nothing: float = 0.0
    watch: Watch | None = None
    rescaling: Rescaling | None = None


class Attachment:
    """Stands in the instance's `forward`, like a bound method. Undo it with `detach()`.

    Its `__func__` takes the module that is called, as that of any method does: a copy of the model, whether made by
    `deepcopy`, from a pickle or by accelerate's regional compilation, runs the copy's weights, in the copy's mode. It
    has no `__wrapped__`, along which accelerate would walk past it.

    Attributes:
        model: the causal LM, without PEFT or compile wrappers.
        plan: objective, kernel, path.
        calls: labelled forward passes answered so far.
        trainer_only: answer only inside `answering()`; other callers of `model(..., labels=...)` get the
            model's own loss, as Axolotl's perplexity metric expects.
        clock: how far the run is, for a loss that changes during it. A trainer's hook sets it; in your own loop,
            `attachment.clock = Clock(step, last_step, epoch)` before each optimizer step, the same for all of its
            micro-batches (`dft_plugin.Clock`).
        ends: ids that end an answer, as the tokenizer says, beside those of the model's configs; for `dft/eos_prob`.
        active: False once it is detached; then it hands every call on.
        undo: what `detach()` is to put back besides, the last first.
    """

    def __init__(self, model: PreTrainedModel, plan: LossPlan) -> None:
        self.model = model
        self.previous = model.__dict__.get("forward")
        self.__name__ = "forward"
        self.calls = 0
        self.trainer_only = False
        self.clock: Clock | None = None
        self.ends: tuple[int, ...] = ()
        self.active = True
        self.undo: list[Callable[[], None]] = []
        self._passes = Passes(plan)
        self._adapted = Adapted(model)
        self._alone = Alone()
        self._answering: Answering | None = None
        self._said: set[str] = set()
        self._tallies = {mode: Tally(plan.statistics) for mode in (True, False)}
        # generate() validates its kwargs against the signature, and Trainer drops unused columns by it.
        self.__signature__ = inspect.signature(self.original)
        self.level = standing.put(model, self)

    @property
    def plan(self) -> LossPlan:
        """What is computed."""
        return self._passes.plan

    @plan.setter
    def plan(self, plan: LossPlan) -> None:
        self._passes.plan = plan

    @property
    def reference(self) -> Reference | None:
        """What the loss compares the model with; None: nothing, or it is not known before the first batch."""
        return self._passes.reference

    @reference.setter
    def reference(self, reference: Reference | None) -> None:
        self._passes.reference = reference

    @property
    def route(self) -> Route | None:
        """How the loss is computed; None before the first batch."""
        return self._passes.route

    @property
    def original(self) -> Any:
        """The forward that we took over: an earlier one on the instance, or the class's."""
        return self.previous or type(self.model).forward.__get__(self.model)

    def original_of(self, module: Any) -> Any:
        """The forward that we took over, for a copy of the model."""
        if self.previous is None:
            # No bound method: dynamo makes one again from its name, which leads back here.
            return functools.partial(type(module).forward, module)
        return self.previous if module is self.model else of_shallow_copy(self.previous, self.model, module)

    @property
    def __self__(self) -> PreTrainedModel:
        return self.model

    @property
    def __func__(self) -> Callable[..., Any]:
        return standing.method(self.level, self.__signature__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        if id(self.model) not in memo:
            copy.deepcopy(self.model, memo)
            if id(self) in memo:
                return memo[id(self)]  # type: ignore[no-any-return]
        twin: Attachment = type(self).__new__(type(self))
        memo[id(self)] = twin
        layers = standing.layers_of(self.model)
        above = vars(self.model).get("forward")
        if above is not None and all(above is not layer for layer in layers):
            # `forward` is copied after the attachments, see `standing.put`.
            memo[id(above)] = of_deep_copy(above, self.model, memo, layers)
        state = {key: value for key, value in self.__getstate__().items() if key != "previous"}
        twin.__setstate__(copy.deepcopy(state, memo))
        twin.previous = of_deep_copy(self.previous, self.model, memo, layers)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # Annotations in a signature need not be picklable; it is made anew. What is to be undone belongs to a trainer,
        # and a copy of the model is no trainer's.
        made_anew = "__signature__", "_alone"
        return {key: value for key, value in self.__dict__.items() if key not in made_anew} | {"undo": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._alone = Alone()
        parameters = list(inspect.signature(type(self.model).forward).parameters.values())[1:]
        self.__signature__ = inspect.Signature(parameters)

    def __repr__(self) -> str:
        state = self._how() if self.active else "detached"
        return f"<Attachment of {self.plan.describe()} to {type(self.model).__name__}: {state}>"

    def _how(self) -> str:
        route = self.route
        if route is None:
            return "before the first training batch"
        if route.path == "logits":
            return f"scores the model's logits ({route.why_not_lean})"
        return "from hidden states" + (f", calls the head ({route.why_not_lean})" if route.why_not_lean else "")

    def detach(self) -> None:
        """Give the model its forward back, and undo what was changed for the loss elsewhere.

        Statistics that were not drained are lost. Where something has wrapped the forward since (accelerate does, for
        bf16 and fp16), its wrapper stays, and finds the model's own forward below. Detaching twice does nothing.
        """
        if not self.active:
            return
        self.active = False
        while self.undo:
            self.undo.pop()()
        standing.take_away(self.model, self)

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
        return Drained.of(self._tallies[training].take(self.model.device), self._said if training else None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; with `labels` or `shift_labels`, put our loss into its output."""
        return self.answer(self.model, args, kwargs)

    def answers(self, inputs: dict[str, Any]) -> bool:
        """Whether a call with these arguments gets our loss."""
        unlabelled = inputs.get("labels") is None and inputs.get("shift_labels") is None
        return self.active and not unlabelled and not (self.trainer_only and self._answering is None)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of a call that have names, by these."""
        names = [name for name, p in self.__signature__.parameters.items() if p.kind is not p.VAR_POSITIONAL]
        given = () if self._takes_any else args
        # No zip(strict=False): torch.compile of 2.8 fails on it.
        return {**{name: given[index] for index, name in enumerate(names[: len(given)])}, **kwargs}

    @property
    def _takes_any(self) -> bool:
        """Whether the forward takes any number of positional arguments, none of which has a name."""
        return any(p.kind is p.VAR_POSITIONAL for p in self.__signature__.parameters.values())

    def answer(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call of `module`, which is the model or a copy of it."""
        inputs = self.named(args, kwargs)
        if not self.answers(inputs):
            return self.original_of(module)(*args, **without_columns(kwargs))
        how = self._answering or Answering()
        num_items: NumItems = inputs.pop("num_items_in_batch", None)
        num_items = how.num_items if num_items is None else num_items
        given.require_num_items(num_items)
        require_tensors(inputs)
        return_dict = inputs.pop("return_dict", None)
        if return_dict is None:
            return_dict = getattr(module.config, "return_dict", True)
        want_logits = not module.training if how.want_logits is None else how.want_logits
        done = self.score(module, inputs, want_logits, args if self._takes_any else ())
        loss = self.mean(done.result, num_items)
        if not done.result.count and how.mean_of_nothing and not num_items:
            loss = loss + how.mean_of_nothing
        if done.auxiliary is not None:
            # Token-weighted over micro-batches and ranks; the model alone would add it once for each.
            share = 1.0 if num_items is None else normalise(loss.new_full((), float(done.result.count)), num_items)
            loss = loss + (done.auxiliary.to(loss.device) * share)
        require_in_loop(self, loss, done.result.scored.rows.logp_T)
        done.output["loss"] = loss
        return done.output if return_dict else done.output.to_tuple()

    def mean(self, result: LossResult, num_items: NumItems) -> Tensor:
        """Divide what one call scored; `num_items` as the call carries it."""
        return result.mean(num_items)

    def score(self, module: Any, inputs: dict[str, Any], want_logits: bool, unnamed: tuple[Any, ...] = ()) -> Pass:
        """Run `module` on labelled inputs, score them and count them; nothing is divided.

        Args:
            module: the model, or a copy of it.
            inputs: keyword arguments of its forward, `labels` or `shift_labels` among them.
            want_logits: whether the output must carry logits.
            unnamed: positional arguments of a forward that gives them no names.

        Raises:
            UnsupportedModelError: the plan insists on a kernel and the model does not allow it; a CUDA graph is
                captured, or a function transformed; the call comes from inside another; model or batch are on
                `meta`; or an engine has left a rank a part of the logits, or the model no adapters.
            LabelError: labels that do not fit the model.
        """
        require_plain(module)
        require_numbers(module, inputs)
        require_all_logits(module)
        if not self.calls:
            self._adapted.require(module)
        forward = functools.partial(self.original_of(module), *unnamed)
        with self._alone.passing(module):
            done = self._passes.score(module, forward, inputs, want_logits, self.clock)
        self.calls += 1
        how = self._answering or Answering()
        counted_T = None
        if how.counted_B is not None:
            counted_T = of_tokens(how.counted_B, done.result.selection)
        tally = self._tallies[module.training] if how.tally is None else how.tally
        ends = tuple(dict.fromkeys((*eos_token_ids(module), *self.ends)))
        stats = done.result.stats(ends, counted_T)
        tally.add(stats)
        if how.watch is not None:
            how.watch.add(done.result, stats)
        if how.rescaling is not None:
            how.rescaling.add(done.result, done.auxiliary)
        return done


def attach_plan(model: torch.nn.Module, plan: LossPlan, attachment_class: type[Attachment] = Attachment) -> Attachment:
    """Attach a plan to a model; a plan attached before is replaced.

    Args:
        model: a causal `PreTrainedModel`, or a PEFT model or `torch.compile`d module around one.
        plan: what to compute.
        attachment_class: a host's own, where its trainer asks for a loss in a way of its own.

    Raises:
        UnsupportedModelError: not a causal LM, encoder-decoder, wrapped for several devices already, or inside a
            wrapper that would never call what is put on it.
        ConflictError: there is no reference of the kind that the plan reads.
    """
    causal_lm = require_causal_lm(unwrap(model))
    standing.require_reachable(model, causal_lm)
    refuse_prompts(model, plan)
    earlier = standing.active(causal_lm)
    if earlier is not None:
        earlier.detach()
    reference = find_reference(plan, causal_lm)
    attached = attachment_class(causal_lm, plan)
    attached.reference = reference
    return attached
