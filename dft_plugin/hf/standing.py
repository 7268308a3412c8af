"""How an attachment stands in a model's forward, and how it is noticed that it no longer does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dft_plugin.errors import NotActiveError, UnsupportedModelError, name_of

if TYPE_CHECKING:
    from dft_plugin.hf.attachment import Attachment

_LAYERS = "_dft_attachments"
"""In the model's `__dict__`: the attachments, those that were replaced too. A wrapper of the forward may still call
them, and a copy of the model has copies of them here."""


def method(level: int, signature: inspect.Signature) -> Callable[..., Any]:
    """Return the function behind the forward: it takes the module, and finds the attachment in it.

    Args:
        level: which attachment of the module.
        signature: of the model's own bound forward.
    """

    def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        attachment: Attachment = module.__dict__[_LAYERS][level]
        return attachment.answer(module, args, kwargs)

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    positional = [p for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
    vars(forward)["__signature__"] = signature.replace(parameters=[itself, *positional])
    return forward


def put(model: nn.Module, attachment: Attachment) -> int:
    """Put an attachment in the place of the model's forward; returns its level."""
    layers: list[Attachment] = model.__dict__.setdefault(_LAYERS, [])
    layers.append(attachment)
    # Behind them: `deepcopy` goes in this order, and copies of them know what becomes of the forward.
    model.__dict__.pop("forward", None)
    model.__dict__["forward"] = attachment
    if _notice_start not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_notice_start, with_kwargs=True)
        model.register_forward_hook(_notice_end, with_kwargs=True)
    return len(layers) - 1


def take_away(model: nn.Module, attachment: Attachment) -> None:
    """Leave nothing of an attachment behind, unless something that wraps it may still call it."""
    layers: list[Attachment] = model.__dict__[_LAYERS]
    if model.__dict__.get("forward") is attachment:
        del model.__dict__["forward"]
        if attachment.previous is not None:
            model.__dict__["forward"] = attachment.previous
        if layers[-1] is attachment:
            layers.pop()
    if not layers:
        del model.__dict__[_LAYERS]
    if active(model) is None:
        _remove(model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs, _notice_start)
        _remove(model._forward_hooks, model._forward_hooks_with_kwargs, _notice_end)


def _remove(hooks: dict[int, Any], with_kwargs: dict[int, bool], hook: Any) -> None:
    for key in [key for key, value in hooks.items() if value is hook]:
        del hooks[key]
        with_kwargs.pop(key, None)


def layers_of(model: nn.Module) -> list[Attachment]:
    """Return the attachments of a model, the oldest first."""
    layers: list[Attachment] = model.__dict__.get(_LAYERS, [])
    return layers


def active(model: nn.Module) -> Attachment | None:
    """Return the attachment that is on, if there is one."""
    return next((layer for layer in reversed(layers_of(model)) if layer.active), None)


# Not compiled: dynamo warns that it cannot trace `get_ident`, and breaks the graph here in any case.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def _notice_start(module: nn.Module, args: Any, kwargs: Any) -> None:
    attachment = active(module)
    if attachment is not None:
        # Threads may be inside at the same time.
        vars(attachment).setdefault("calls_before", {})[get_ident()] = attachment.calls


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _notice_end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    """Stop where labels were given and the forward, whoever's it is by now, did not come to us."""
    attachment = active(module)
    # On a trainer its own guard speaks, which knows more.
    if attachment is None or attachment.trainer_only or not attachment.answers(attachment.named(args, kwargs)):
        return
    if attachment.calls == vars(attachment).get("calls_before", {}).get(get_ident()):
        raise NotActiveError(
            f"the model answered labels without the loss that was attached: its forward is now "
            f"{name_of(module.forward)}, put there afterwards. Attach the loss after that (`dft_plugin.attach`), or "
            "put it on the trainer (`dft_plugin.activate(trainer)`), or detach it."
        )


def require_reachable(model: nn.Module, causal_lm: nn.Module) -> None:
    """Refuse a model whose wrapper keeps the forward of the model inside, and would never call ours.

    Args:
        model: as it was given.
        causal_lm: the model inside.

    Raises:
        UnsupportedModelError: names the wrapper.
    """
    wrapper: Any = model
    while wrapper is not None and wrapper is not causal_lm:
        kept = wrapper.__dict__.get("forward")
        if getattr(kept, "__self__", None) is causal_lm:
            raise UnsupportedModelError(
                f"{type(wrapper).__name__} keeps the forward that {type(causal_lm).__name__} had when it was wrapped, "
                "and would never call the loss. In a loop of your own, attach the loss to the model before you wrap "
                "it; in a trainer, use another PEFT method, or leave out `loss:`."
            )
        wrapper = wrapper._modules.get("base_model") or wrapper._modules.get("_orig_mod")
