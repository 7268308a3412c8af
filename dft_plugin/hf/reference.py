"""The frozen reference of a run: the base model with its adapters off, the model as it began, or another one.

Shapes: B batch, S sequence, T scored tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dft_plugin.core.plan import COLUMNS, LossPlan
from dft_plugin.core.reference import Referred, Wanted
from dft_plugin.core.targets import Facts, Selection
from dft_plugin.errors import ConflictError, UnsupportedModelError
from dft_plugin.hf import calibration
from dft_plugin.hf.adapters import adapter_parameters, adapters_off, has_adapters, why_not_base
from dft_plugin.hf.another_model import AnotherModel, copy_of, load
from dft_plugin.hf.called import CalledHead
from dft_plugin.hf.head import find_door, read_head
from dft_plugin.hf.interception import HeadStandIn, require_mapping, resting, standing_in
from dft_plugin.hf.routing import NotLean, called_often, is_fsdp2, is_sharded
from dft_plugin.hf.untouched import copied, uncached, untouched
from dft_plugin.kernels import Head, Transform

Forward = Callable[..., Any]


class Reference(Protocol):
    """A frozen model that a trained one is compared with.

    Attributes:
        word: what stands after `reference:`.
        says: what it is, for the start-up line.
    """

    word: str
    says: str

    def standing(self, model: Any, forward: Forward) -> Any:
        """Return a context in which it stands, given the model that is trained; enters as its module and forward."""
        ...


class BaseModel:
    """The model with its adapters off."""

    word = "base"
    says = "the base model, its adapters off"

    @contextmanager
    def standing(self, model: Any, forward: Forward) -> Iterator[tuple[Any, Forward]]:
        """Switch the adapters off for a while."""
        with adapters_off(model):
            yield model, forward


class AsItBegan:
    """The model with its adapters as they were; they are small enough to be kept twice.

    No second adapter of PEFT's, which would be saved with every checkpoint.

    Args:
        model: with the adapters that the run begins with.
    """

    word = "start"
    says = "the adapters that the run began with"

    def __init__(self, model: nn.Module) -> None:
        wanted = adapter_parameters(model)
        named = model.named_parameters()
        self._began = {name: parameter.detach().clone() for name, parameter in named if id(parameter) in wanted}

    @contextmanager
    def standing(self, model: Any, forward: Forward) -> Iterator[tuple[Any, Forward]]:
        """Put the first weights in the place of today's for a while."""
        named = dict(model.named_parameters())
        now = [(named[name], began, named[name].data) for name, began in self._began.items() if name in named]
        try:
            for parameter, began, _ in now:
                parameter.data = began.to(parameter)
            yield model, forward
        finally:
            for parameter, _, data in now:
                parameter.data = data


def find_reference(plan: LossPlan, model: Any) -> Reference | None:
    """Make what a plan compares with; None where it does not, or nobody can say before the adapters are there.

    Args:
        plan: says which.
        model: the causal LM, as the run begins with it.

    Raises:
        ConflictError: there is none of that kind.
        UnsupportedModelError: ranks share the weights of which there should be a copy.
    """
    word = plan.reference
    if not plan.refers or word == COLUMNS or (word is None and not has_adapters(model)):
        return None
    if word == "copy":
        # Before it is made: weights that ranks share may not let themselves be copied.
        _require_whole(word, model)
        return copy_of(model)
    if word in (None, "base", "start"):
        problem = _without_adapters(plan, model) or (None if word == "start" else why_not_base(model))
        if problem is not None:
            raise ConflictError([problem])
        return AsItBegan(model) if word == "start" else BaseModel()
    assert word is not None
    return load(word, model)


def demand_reference(plan: LossPlan, model: Any) -> Reference:
    """Do as `find_reference`, once the first batch is here, which has none of its own.

    Raises:
        ConflictError: there is none.
    """
    found = find_reference(plan, model)
    if found is None:
        raise ConflictError(missing(plan, model))
    return found


def missing(plan: LossPlan, model: Any) -> list[str]:
    """List why a trainer cannot have the reference that its loss needs, if nobody has said which."""
    problem = _without_adapters(plan, model) if plan.refers and plan.reference is None else None
    return [] if problem is None else [problem]


def _without_adapters(plan: LossPlan, model: Any) -> str | None:
    if has_adapters(model):
        return None
    name = plan.objective.name if plan.objective.reference != "none" else plan.every[0].name
    columns = ", ".join(f"`{column}`" for column in sorted(plan.filled))
    beside = f", or `reference: columns` where your data has {columns} (`dft reference CONFIG`)" if columns else ""
    given = "" if plan.reference is None else f"`reference: {plan.reference}` is the model without what is trained; "
    return (
        f"{given}the loss {name} compares the model with a frozen reference, and {type(model).__name__} has no "
        "adapters to switch off. Write beside its name `reference: copy` (a second copy of the weights), "
        f"`reference: PATH` of a model{beside}; or train adapters (LoRA)."
    )


def refuse_prompts(model: Any, plan: LossPlan) -> None:
    """Refuse methods of PEFT that put a prompt before the tokens: the reference would be given it, too.

    Args:
        model: as it was given, maybe a PEFT model.
        plan: what is computed.

    Raises:
        ConflictError: names the method.
    """
    config = getattr(model, "active_peft_config", None) if hasattr(model, "peft_config") else None
    if plan.refers and getattr(config, "is_prompt_learning", False):
        raise ConflictError(
            [
                f"{type(config).__name__} trains a prompt that stands before the tokens, and the reference would be "
                f"given it as well, so the loss {plan.objective.name} cannot compare with it. Train LoRA, or choose "
                "a loss without a reference, `dft` for one."
            ]
        )


# As `facts.facts_of`.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def wanted_of(plan: LossPlan, facts: Facts) -> Wanted:
    """Say what is read of a reference now, and is not in the batch."""
    if not plan.refers:
        return Wanted()
    now = plan.weigher(facts.clock)
    columns = sorted((now.columns & plan.filled) - facts.columns.keys())
    return Wanted(tuple(columns), now.reference == "distribution")


def refer(
    reference: Reference,
    wanted: Wanted,
    model: Any,
    forward: Forward,
    inputs: Mapping[str, Any],
    vocab_size: int | None,
) -> Referred | NotLean:
    """Run a reference over a batch, without a graph, and leave nothing behind.

    Args:
        reference: what is run.
        wanted: what will be read of it.
        model: the one that is trained.
        forward: its own forward.
        inputs: keyword arguments of it.
        vocab_size: V, to keep hidden states; None: the logits are made.

    Returns:
        What it made, or why its hidden states do not do.

    Raises:
        UnsupportedModelError: the model is sharded, or what stands before its tokens is trained.
    """
    given = {key: value for key, value in inputs.items() if key not in ("labels", "shift_labels")}
    _require_plain(reference, model, given)
    given = copied(given)
    with (
        torch.no_grad(),
        untouched(model),
        reference.standing(model, forward) as (module, run),
        resting(module),
    ):
        if vocab_size is None:
            logits = require_mapping(module, run(**given, return_dict=True)).logits
            return Referred(wanted, logits, logits.shape[-1])
        another = isinstance(reference, AnotherModel)
        probe = calibration.probe_logits(vocab_size) if another else torch.zeros(1, 1, vocab_size)
        stand_in = (_GraphOfProbe if another else HeadStandIn)(module.get_output_embeddings(), probe)
        with standing_in(module, stand_in):
            output = require_mapping(module, run(**given, return_dict=True))
    if isinstance(reference, AnotherModel) and not stand_in.calls:
        raise UnsupportedModelError(
            f"`reference: {reference.word}`: the forward of {type(module).__name__} does not call the head that is "
            "registered in it, so it may run another model's. Write `reference: PATH` of the same model."
        )
    if stand_in.calls != 1 or stand_in.hidden is None:
        return called_often(stand_in, output.logits)
    if not isinstance(reference, AnotherModel):
        return Referred(wanted, stand_in.hidden, vocab_size)
    transform = _transform_of(reference, stand_in, output.logits)
    if isinstance(transform, str):
        return NotLean(f"of the reference, {transform}", final=False)
    return Referred(wanted, stand_in.hidden, vocab_size, transform=transform)


class _GraphOfProbe(HeadStandIn):
    """Stands where the head stands in a pass without a graph, and begins one there, of what is done to the probe.

    It ends with the pass, whose `no_grad` puts back what was before.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Keep `hidden` [B, S, D], and return the probe."""
        if not torch.is_inference_mode_enabled():
            torch.set_grad_enabled(True)
            self.probe.requires_grad_()
        return super().forward(hidden.detach())


def _transform_of(reference: AnotherModel, stand_in: HeadStandIn, logits: Tensor) -> Transform | str:
    """Ask what another model does to its logits: of the same class, it may scale or cap them in another way.

    The values are asked, for which the device is waited for, unless the graph shows the steps of the pass before.
    """
    steps = stand_in.steps_to(logits)
    if reference.told is not None and steps == reference.told[0]:
        return reference.told[1]
    found = calibration.ask(stand_in.probe, logits).read()
    if steps is not None and not isinstance(found, str):
        reference.told = steps, found
    return found


def _require_whole(word: str, model: Any) -> None:
    if is_sharded(model):
        raise UnsupportedModelError(
            f"`reference: {word}` was never run with a model whose weights are sharded like this one's over "
            "ranks (FSDP, ZeRO-3, tensor parallelism). What works: adapters under FSDP2 with `reference: base`; any "
            "reference beside whole weights (DDP, ZeRO-1 and 2); or `reference: columns`, computed beforehand."
        )


def _require_plain(reference: Reference, model: Any, inputs: Mapping[str, Any]) -> None:
    if not (isinstance(reference, BaseModel) and is_fsdp2(model)):
        _require_whole(reference.word, model)
    embeds = inputs.get("inputs_embeds")
    # transformers 5.24 calls it `cache`, and takes both names.
    cached = any(inputs.get(name) is not None for name in ("past_key_values", "cache"))
    if cached or (isinstance(embeds, Tensor) and embeds.requires_grad):
        raise UnsupportedModelError(
            "what stands before the tokens of this batch is trained (a prompt or a prefix), and a reference would be "
            "given it as well. Train LoRA, or choose a loss without a reference, `dft` for one."
        )


def with_head(reference: Reference | None, chosen: Selection, model: Any, project: CalledHead) -> Selection:
    """Let what a reference made be projected by its own head; called inside the head of the model.

    Args:
        reference: whose head is meant.
        chosen: what is scored; its facts may hold what the reference made.
        model: the one that is trained.
        project: its head, entered.
    """
    referred = chosen.facts.reference
    if reference is None or referred is None:
        return chosen

    def of_reference(hidden_TD: Tensor) -> Tensor:
        with uncached(), reference.standing(model, model) as (module, _):
            door = find_door(module.get_output_embeddings())
            called = project if door.owner is project.owner else CalledHead(door)
            with resting(door.owner):
                return called(hidden_TD)

    @contextmanager
    def read(hidden_TD: Tensor, transform: Transform) -> Iterator[Head | None]:
        with uncached(), reference.standing(model, model) as (module, _), resting(module.get_output_embeddings()):
            reading = read_head(find_door(module.get_output_embeddings()))
            head = reading if isinstance(reading, str) else reading.head(hidden_TD, transform)
            yield head if isinstance(head, Head) and head.weight_VD.device == hidden_TD.device else None

    referred = replace(referred, project=of_reference, read=read)
    return replace(chosen, facts=replace(chosen.facts, reference=referred))
