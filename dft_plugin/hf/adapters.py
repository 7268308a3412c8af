"""PEFT's adapters in a model: which tensors are theirs, how they are switched off, whether that leaves the base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA that take out of the base weights what they put into the adapter."""


def can_be_switched_off(module: nn.Module) -> bool:
    """Whether a layer has adapters, or is the wrapper of a module that is trained whole."""
    return hasattr(module, "_disable_adapters")


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if can_be_switched_off(module)]


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put layers into a model that can be switched off."""
    return any(can_be_switched_off(module) for module in model.modules())


def adapter_parameters(model: nn.Module) -> set[int]:
    """Return the identities of the parameters that belong to adapters, and not to what they are put on."""
    own: set[int] = set()
    base: set[int] = set()
    for layer in _layers(model):
        inside = getattr(layer, "base_layer", None)
        inside = getattr(layer, "original_module", None) if inside is None else inside
        own |= {id(parameter) for parameter in layer.parameters()}
        base |= set() if inside is None else {id(parameter) for parameter in inside.parameters()}
    # The base of an adapter may hold another.
    return own - base


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch all adapters off for a while.

    Not by PEFT's `disable_adapter`, which freezes them, and trains all that are active afterwards, whoever had frozen
    them before.
    """
    layers = [(layer, layer._disable_adapters) for layer in _layers(model)]
    try:
        for layer, _ in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, before in layers:
            layer._disable_adapters = before


def why_not_base(model: Any) -> str | None:
    """Say why a model with its adapters off is not the one that was trained before, and what to do; None: it is."""
    if any(getattr(layer, "merged", False) for layer in _layers(model)):
        return (
            "an adapter is merged into the base model, so that switching it off leaves it there. Unmerge it, or write "
            "`reference: PATH` of the base model."
        )
    adapters = adapter_parameters(model)
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in adapters]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return (
            f"{others[0]}{more} are trained beside the adapters, so that the model with these off is no frozen "
            "reference. Write `reference: copy`, or `reference: PATH` of the base model."
        )
    configs = getattr(model, "peft_config", None)
    for config in configs.values() if isinstance(configs, dict) else ():
        how = getattr(config, "init_lora_weights", None)
        if isinstance(how, str) and how.startswith(_CHANGE_THE_BASE):
            return (
                f"init_lora_weights: {how} has taken a part out of the base weights, so that they are no model "
                "without the adapter. Write `reference: start`, or `reference: PATH` of the base model."
            )
    return None
