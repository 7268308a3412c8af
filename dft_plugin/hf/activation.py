"""The calls that put the loss to work: `attach` for a model, `activate` for a trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn

from dft_plugin.config.plugins import Catalogue, build_catalogue
from dft_plugin.errors import ConflictError, UnsupportedModelError
from dft_plugin.hf import best, carrying, in_loops, splits, standing, tokens
from dft_plugin.hf.attachment import Attachment, attach_plan
from dft_plugin.hf.loss_calls import TrainerAttachment
from dft_plugin.hf.model import is_in_another_wrapper, unwrap
from dft_plugin.hf.not_installed import require_adapters
from dft_plugin.hf.reference import missing
from dft_plugin.hf.startup import startup_line
from dft_plugin.hf.trainer import TrainerHook, is_trainer
from dft_plugin.hf.wrapping import wrapper_of
from dft_plugin.plans import LossLike, plan_for


def attach(model: nn.Module, loss: LossLike = "dft", tokenizer: Any = None) -> Attachment:
    """Make `model(..., labels=...)` return our loss.

    Args:
        model: a causal `PreTrainedModel`, or a PEFT model around one.
        loss: a name, a mapping as in YAML, or an Objective.
        tokenizer: of the model, or a processor around it: for a loss that names tokens by words, and for
            `dft/eos_prob` to know which token ends a turn.

    Returns:
        The attachment: `.detach()` undoes it, `.drain(training=True).as_logs()` gives its statistics. Where the loss
        changes during the run, set its `.clock = Clock(step, last_step, epoch)` before each optimizer step.

    Raises:
        SettingsError: `loss` cannot be used, with this model and tokenizer at least.
        UnsupportedModelError: the model cannot be attached to, or belongs to a trainer that would not ask for a loss.
    """
    if is_trainer(model):
        name = type(model).__name__
        raise UnsupportedModelError(f"{name} is a trainer; attach takes a model. Use activate(trainer).")
    if is_in_another_wrapper(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} holds a model, and may compute a loss by itself, of which nobody would hear. Use "
            "attach(model.base_model), and compute the loss with that; in a trainer, activate(trainer)."
        )
    catalogue = build_catalogue()
    plan = plan_for(loss, catalogue)
    for entry in catalogue.hosts.values():
        reason = entry.item.attach_problem(unwrap(model))
        if reason is not None:
            raise UnsupportedModelError(reason)
    read = tokens.read(plan, unwrap(model), tokenizer)
    problems = [*read.problems, *in_loops.problems(plan)]
    if problems:
        raise ConflictError(problems)
    attachment = attach_plan(model, read.plan)
    attachment.ends = read.ends
    return attachment


def activate(trainer: Any, loss: LossLike = "dft") -> Attachment:
    """Train with our loss. Call it after the trainer is made and before `trainer.train()`.

    Called again with the same loss it changes nothing; another loss replaces the first.

    Args:
        trainer: a `transformers.Trainer` or a trainer of an installed host (TRL's SFTTrainer ...).
        loss: a name, a mapping as in YAML, or an Objective.

    Returns:
        The attachment on the trainer's model. Its `detach()` puts model and trainer back as they were.

    Raises:
        SettingsError: `loss` cannot be used.
        UnsupportedModelError: the trainer or its model cannot be used.
        ConflictError: the trainer's settings would keep the loss from taking effect.
    """
    catalogue = build_catalogue()
    plan = plan_for(loss, catalogue)
    hook_class = _hook_class(trainer, catalogue)
    model = unwrap(trainer.model)
    read = tokens.read(plan, model, getattr(trainer, "processing_class", None), hook_class.ends(trainer))
    plan = read.plan
    before = wrapper_of(trainer)
    if before is not None and before.plan == plan and before.attachment.active and before.attachment.model is model:
        with _choice_as_given(before):
            problems = best.problems(trainer)
        if problems:
            raise ConflictError(problems)
        attachment: Attachment = before.attachment
        return attachment
    with _choice_as_given(before):
        problems = hook_class.conflicts(trainer)
        problems += [*splits.problems(trainer, plan), *read.problems, *missing(plan, model)]
    if any(one.places or one.scope != "token" for one in plan.every):
        problems += hook_class.without_boundaries(trainer)
    problems += carrying.problems(trainer, carrying.columns_of(plan), hook_class.columns_hint)
    if problems:
        raise ConflictError(problems)
    if before is not None:
        before.remove()
    with _left_guarded(model):
        attached = attach_plan(trainer.model, plan, hook_class.attachment_class)
    assert isinstance(attached, TrainerAttachment)
    attached.ends = read.ends
    hook = hook_class(trainer, attached)
    hook.install()
    hook.keep_record(_host_of(hook_class, catalogue, trainer))
    if trainer.is_world_process_zero():
        line = startup_line(attached, type(trainer).__name__, hook.replaced, read.said)
        said = [line, *(f"dft: {hint}" for hint in best.hints(trainer, plan))]
        sys.stderr.write("".join(f"{text}\n" for text in said))
    return attached


@contextmanager
def _choice_as_given(hook: TrainerHook | None) -> Iterator[None]:
    """Put back meanwhile what we set for the choice of the best model: nobody asked for it, and metrics change."""
    if hook is None:
        yield
        return
    hook.choice.put_back()
    try:
        yield
    finally:
        best.prefer(hook.trainer, hook.choice.change)


@contextmanager
def _left_guarded(model: nn.Module) -> Iterator[None]:
    """Have another trainer that loses this model to us say so when it trains, until its own attachment is detached."""
    attached = standing.active(model)
    if not isinstance(attached, TrainerAttachment):
        yield
        return
    undo, attached.undo = attached.undo, []
    try:
        yield
    finally:
        attached.undo = undo


def _host_of(hook_class: type[TrainerHook], catalogue: Catalogue, trainer: Any) -> dict[str, str | None]:
    """Say in which framework a trainer trains, for the record of it."""
    named = f"{hook_class.__module__}:{hook_class.__name__}"
    host = next((entry.item for entry in catalogue.hosts.values() if entry.item.hook_class == named), None)
    name, version = ("transformers", transformers.__version__)
    if host is not None:
        name, version = host.name, host.installed_version() or "unknown"
    return {"name": name, "version": version, "trainer": type(trainer).__name__}


def _hook_class(trainer: Any, catalogue: Catalogue) -> type[TrainerHook]:
    for entry in catalogue.hosts.values():
        hook_class = entry.item.trainer_hook(trainer)
        if hook_class is not None:
            return hook_class
    if not is_trainer(trainer):
        raise UnsupportedModelError(
            f"{type(trainer).__name__} is not a transformers Trainer. In a loop of your own, "
            "use dft_plugin.attach(model)."
        )
    require_adapters(trainer, catalogue.hosts)
    return TrainerHook
