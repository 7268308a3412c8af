"""Unsloth's forward for GPUs, taken out of its installed source and run here on plain torch.

Its modules cannot be imported on a CPU: they need Triton kernels and a device. The forward is one function, whose text
decides when logits are made, when labels are masked and when the head is called. So that text is run as it stands
on transformers' own Llama; what stands in is what computes: the backbone is transformers', and Unsloth's fused
cross-entropy is `_fused_loss` below, with its arguments as they are.
"""

from __future__ import annotations

import ast
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from support import tiny
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

LLAMA = (
    "CausalLM_fast_forward",
    "_run_backbone",
    "fake_quantize_lm_head_inputs",
    "lm_head_needs_forward",
    "resolve_logit_transforms",
    "resolve_logit_scaling",
    "apply_logit_transforms",
    "PeftModel_fast_forward",
)
EMPTY = object()
"""Stands for logits that were not made."""

PACKING = ("_normalize_packed_lengths", "mask_packed_sequence_boundaries", "mask_packed_boundary_labels")


def source(*parts: str) -> str:
    """Return the text of a module of Unsloth's, which is not imported."""
    found = find_spec("unsloth")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], *parts).read_text(encoding="utf-8")


def functions(text: str, names: tuple[str, ...], scope: dict[str, Any]) -> None:
    """Run the definitions of some functions of a module, and of its simple constants that go before them."""
    wanted = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in wanted} == set(names), f"Unsloth's source has moved: {names}"
    for node in wanted:
        node.decorator_list = []
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, *wanted], []), "unsloth", "exec"), scope)


def _fused_loss(
    hidden_states: Any, lm_head_weight: Any, labels: Any, n_items: Any, shift_labels: bool, **given: Any
) -> Any:
    """Compute what `unsloth_fused_ce_loss` does: the sum over targets, by their number or by `n_items`."""
    logits, scale = hidden_states @ lm_head_weight.T, given["logit_scale_multiply"]
    if shift_labels:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return _loss(logits, labels, given["logit_softcapping"], scale, n_items)


def _loss(logits: Any, labels: Any, logit_softcapping: float, logit_scaling: float, n_items: Any) -> Any:
    """Compute what `fast_cross_entropy_loss` does with labels that are shifted."""
    if logit_scaling:
        logits = logits * logit_scaling
    if logit_softcapping:
        logits = logit_softcapping * torch.tanh(logits / logit_softcapping)
    total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / ((labels != -100).sum() if n_items is None else n_items)


def forwards() -> tuple[Any, Any]:
    """Return the forward of Unsloth's causal LMs, and the one that it gives PEFT's models."""
    scope: dict[str, Any] = {
        "torch": torch,
        "os": os,
        "CausalLMOutputWithPast": CausalLMOutputWithPast,
        "EMPTY_LOGITS": EMPTY,
        "HAS_XFORMERS": False,
        "_cache_as_legacy_tuple": lambda cache: cache,
        "_fast_lora": SimpleNamespace(_forward_fake_quant_linears=lambda: (QuantisesInside,)),
        "_get_dtype": lambda dtype: dtype,
        "detect_logit_transforms": _transforms,
        "dtype_from_config": lambda config: config.dtype or torch.float32,
        "config_return_dict": lambda config: True,
        "unsloth_fsdp_unshard": lambda module: None,
        "unsloth_fused_ce_loss": _fused_loss,
        "fast_cross_entropy_loss": _loss,
    }
    functions(source("utils", "packing.py"), PACKING, scope)
    functions(source("models", "llama.py"), LLAMA, scope)
    return scope["CausalLM_fast_forward"](None), scope["PeftModel_fast_forward"]


def _transforms(config: Any) -> dict[str, float]:
    scale, cap = getattr(config, "logit_scale", 0.0), getattr(config, "final_logit_softcapping", 0.0)
    return {"logit_softcapping": cap, "logit_scale_multiply": scale, "logit_scale_divide": 0.0}


class QuantisesInside(nn.Linear):
    """As torchao's linear for NVFP4 and MX: what it computes is seen by calling it alone."""

    def forward(self, input: Any) -> Any:
        return nn.functional.linear(rounded(input), rounded(self.weight))


class Quantises(nn.Linear):
    """As torchao's FakeQuantizedLinear."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation_fake_quantizer = _Rounds()
        self.weight_fake_quantizer = _Rounds()

    def forward(self, input: Any) -> Any:
        return nn.functional.linear(self.activation_fake_quantizer(input), self.weight_fake_quantizer(self.weight))


class _Rounds(nn.Module):
    def forward(self, values: Any) -> Any:
        return rounded(values)


def rounded(values: Any) -> Any:
    """Round coarsely, with the gradient of values that were not."""
    return values + ((values * 8).round() / 8 - values).detach()


FORWARD, PEFT_FORWARD = forwards()


class FastLlama(LlamaForCausalLM):
    """transformers' Llama with Unsloth's forward."""

    forward = FORWARD


def llama(head: type[nn.Linear] = nn.Linear, **changes: Any) -> FastLlama:
    """Make a tiny one, its head of a given class."""
    torch.manual_seed(0)
    model = FastLlama(LlamaConfig(**{**tiny.SHAPE, **changes}))
    if head is not nn.Linear:
        made = head(model.lm_head.in_features, model.lm_head.out_features, bias=False)
        made.weight = model.lm_head.weight
        model.lm_head = made
    return model.train()
