"""What a caller of the functions gave, looked at before anything is computed: an error of ours says what to give.

Shapes: V vocabulary, H hidden size; `...` stands for any leading dimensions.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.core.dense import require_dense
from dft_plugin.core.targets import Facts, require_index
from dft_plugin.errors import InputError, LabelError
from dft_plugin.kernels import Transform
from dft_plugin.saying import shown

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What torch computes with on every device; in floats of 8 bits it only keeps numbers."""


def require_scored(name: str, given: Any, *, of_model: str) -> None:
    """Require logits or hidden states.

    Args:
        name: of the argument.
        given: what stands there.
        of_model: the field of a model's output that holds such a tensor.

    Raises:
        InputError: it is no tensor of floats.
    """
    shape = "[..., V]" if name == "logits" else "[..., H]"
    if not isinstance(given, Tensor):
        raise InputError(f"{name} is {_a(given)}; a tensor {shape} is needed: {_how(given, of_model)}.")
    require_dense(InputError, **{name: given})
    if given.dtype not in FLOATS:
        raise InputError(
            f"{name} has dtype {given.dtype}; a tensor {shape} of floats is needed, of 16 bits or more: what the "
            "model computes, not the tokens that it reads."
        )
    if given.dim() == 0 or given.shape[-1] == 0:
        raise InputError(f"{name} has shape {tuple(given.shape)}; {shape} is needed, with at least one number each.")


def require_labels(given: Any, scored: Tensor, *, shifted: bool) -> None:
    """Require a label for each position that is scored.

    Raises:
        LabelError: there is none, or it is none.
    """
    positions = tuple(scored.shape[:-1])
    if not isinstance(given, Tensor):
        raise LabelError(
            f"labels is {_a(given)}; a tensor of integers, of shape {positions}, is needed: {_how(given, 'labels')}."
        )
    require_dense(LabelError, labels=given)
    require_index(given)
    if tuple(given.shape) == positions:
        if shifted and not positions:
            raise LabelError(
                "labels have no dimension of positions, along which `shift` could move them. Drop `shift`."
            )
        return
    hint = "Give one label per position."
    if given.shape[:-1] == scored.shape[:-1] and given.dim() > 0:
        hint = "Labels are indices: `labels.argmax(-1)` of what is one-hot."
    elif positions and given.dim() == len(positions) and given.shape[-1] in (positions[-1] - 1, positions[-1] + 1):
        hint = (
            "One of the two was cut. Give both whole, with `shift=True`, where the labels are the tokens themselves."
            if not shifted
            else "Give both whole: `shift` moves the labels, and the last position predicts nothing."
        )
    raise LabelError(f"labels have shape {tuple(given.shape)}, and {positions} positions are to be scored. {hint}")


def require_logp(given: Any, targets: Any, **others: Any) -> None:
    """Require log p and its targets, and what else is known of a row.

    Args:
        given: log p.
        targets: token ids; their dtype is looked at where they are selected.
        others: by the names of the arguments; None: not given.

    Raises:
        InputError: one is no tensor, or none of floats.
        LabelError: the targets are no tensor.
    """
    for name, one in {"logp": given, **others}.items():
        if one is None and name != "logp":
            continue
        if not isinstance(one, Tensor):
            raise InputError(f"{name} is {_a(one)}; a tensor [...] is needed, one number for each target.")
        require_dense(InputError, **{name: one})
        if one.dtype not in FLOATS:
            raise InputError(f"{name} has dtype {one.dtype}; a tensor [...] of floats is needed.")
    if not isinstance(targets, Tensor):
        raise LabelError(f"targets is {_a(targets)}; a tensor of integers is needed: {_how(targets, 'labels')}.")
    require_dense(LabelError, targets=targets)


def require_weight(name: str, given: Any, hidden: Tensor) -> None:
    """Require the weight of a head.

    Raises:
        InputError: it is no tensor [V, H] of floats, or of another width.
    """
    if not isinstance(given, Tensor):
        # Of a layer: its weight; of a model: that of its head.
        how = "of a layer, give its `.weight`" if isinstance(given, nn.Module) else _how(given, "weight")
        raise InputError(f"{name} is {_a(given)}; a tensor [V, H] is needed: {how}.")
    require_dense(InputError, **{name: given})
    if given.dtype not in FLOATS:
        raise InputError(
            f"{name} has dtype {given.dtype}; floats are needed. Of a head in 4 or 8 bit give the dequantised weight, "
            "or use `dft_plugin.attach(model)`, which calls the head as it is."
        )
    width = hidden.shape[-1]
    if given.dim() != 2 or given.shape[1] != width:
        transposed = given.dim() == 2 and given.shape[0] == width
        give = "its transpose" if transposed else "the weight of the head that follows these hidden states"
        raise InputError(
            f"{name} has shape {tuple(given.shape)}, and hidden {tuple(hidden.shape)}: [V, H] is needed, with H = "
            f"{width}. Give {give}."
        )
    _require_together(hidden, **{name: given})


def require_bias(name: str, given: Any, weight: Tensor) -> None:
    """Require a bias of a head, or None.

    Raises:
        InputError: it is no tensor [V] of floats.
    """
    if given is None:
        return
    if not isinstance(given, Tensor):
        raise InputError(f"{name} is {_a(given)}; a tensor [V] or None is needed: {_how(given, 'bias')}.")
    require_dense(InputError, **{name: given})
    if tuple(given.shape) != (weight.shape[0],) or given.dtype not in FLOATS:
        raise InputError(
            f"{name} has shape {tuple(given.shape)} and dtype {given.dtype}; floats [V] are needed, with V = "
            f"{weight.shape[0]}. Give the bias of the same layer, or leave it out."
        )
    _require_together(weight, **{name: given})


def as_transform(logit_scale: Any, softcap: Any) -> Transform:
    """Return what a model does to its logits: any kind of number, as a float.

    Raises:
        InputError: a number is none, or leaves nothing of the logits.
    """
    if not _is_in_float32(logit_scale):
        raise InputError(
            f"logit_scale is {_shown(logit_scale)}; a number other than 0 that float32 can hold is needed. Leave it "
            f"out where the model does not scale its logits{_item(logit_scale)}."
        )
    if softcap is not None and (not _is_in_float32(softcap) or softcap < 0):
        raise InputError(
            f"softcap is {_shown(softcap)}; a number above 0 that float32 can hold is needed, or None where the model "
            f"does not cap its logits{_item(softcap)}."
        )
    return Transform(float(logit_scale), None if softcap is None else float(softcap))


def require_ignore_index(given: Any) -> None:
    """Require the label of what is not scored.

    Raises:
        LabelError: it is no integer.
    """
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise LabelError(f"ignore_index is {_shown(given)}; an integer is needed. Leave it out for -100.")
    if not -(1 << 63) <= int(given) < 1 << 63:
        raise LabelError(f"ignore_index is {_shown(given)}, which no label can hold. Leave it out for -100.")


def require_num_items(given: Any) -> None:
    """Require a count of targets, or None.

    Raises:
        LabelError: it is neither a number nor a tensor.
    """
    if given is None or (type(given) is not bool and isinstance(given, Real) and _is_float(given)):
        return
    meta = isinstance(given, Tensor) and given.device.type == "meta"
    if isinstance(given, Tensor) and given.dtype != torch.bool and not given.is_complex() and not meta:
        require_dense(LabelError, num_items=given)
        return
    said = f"a tensor of {given.dtype}{' on `meta`' * meta}" if isinstance(given, Tensor) else _shown(given)
    raise LabelError(
        f"num_items is {said}; a number or a tensor of one is needed, the target tokens of the whole "
        "optimizer step: `(labels != -100).sum()` over its micro-batches. Leave it out where this call scores a whole "
        "step."
    )


def require_items(num_items: Any, targets: int) -> None:
    """Require that a step has targets where a part of it has; a count on an accelerator is not waited for.

    It may be less than those of the part: who averages over ranks gives the count of all by the number of ranks.

    Raises:
        LabelError: it has none.
    """
    known = num_items is not None and (not isinstance(num_items, Tensor) or _is_known(num_items))
    if targets and known and num_items == 0:
        raise LabelError(
            f"num_items is 0, and this call scores {targets:,} targets. Count those of the whole optimizer step: "
            "`(labels != -100).sum()` over its micro-batches, after the shift. Leave it out where this call scores a "
            "whole step."
        )


def _is_known(number: Tensor) -> bool:
    # A graph that is compiled would break over it.
    return number.device.type == "cpu" and number.numel() == 1 and not torch.compiler.is_compiling()


def require_shift(given: Any) -> None:
    """Require a yes or no.

    Raises:
        InputError: it is something else, which Python would take for a yes.
    """
    if not isinstance(given, bool):
        raise InputError(f"shift is {_shown(given)}; True or False is allowed.")


def require_facts(given: Any, labels: Tensor) -> None:
    """Require facts of the same positions, or None.

    Raises:
        InputError: they are none.
    """
    if given is None:
        return
    if not isinstance(given, Facts):
        raise InputError(
            f"facts is {_a(given)}; a `dft_plugin.Facts` is needed: `facts=dft_plugin.Facts(columns={{'ratio': "
            "tensor})`."
        )
    numbers = {"sequence_BS": given.sequence_BS, "position_BS": given.position_BS}
    named = {**{f"columns[{key!r}]": one for key, one in given.columns.items()}, **numbers}
    for name, one in named.items():
        if one is None and name in numbers:
            continue
        if isinstance(one, Tensor):
            require_dense(InputError, **{f"facts: {name}": one})
        if not isinstance(one, Tensor) or one.shape != labels.shape:
            said = f"has shape {tuple(one.shape)}" if isinstance(one, Tensor) else f"is {_a(one)}"
            raise InputError(
                f"facts: {name} {said}; a tensor of the labels' shape, {tuple(labels.shape)}, is needed, one number "
                "for each label."
            )


def require_numbers(**given: Tensor) -> None:
    """Refuse tensors on `meta`.

    Raises:
        InputError: names them.
    """
    found = [f"`{name}`" for name, tensor in given.items() if tensor.device.type == "meta"]
    if found:
        raise InputError(
            f"{' and '.join(found)}: on `meta`, where tensors have shapes and no numbers, so there is no loss to "
            "compute. Give tensors on a device that holds them."
        )


def _require_together(first: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.device != first.device and "meta" not in (other.device.type, first.device.type):
            raise InputError(
                f"{name} is on {other.device}, and what it is multiplied with on {first.device}. Give "
                f"`{name}.to({str(first.device)!r})`."
            )


def _is_number(given: Any) -> bool:
    return not isinstance(given, bool) and isinstance(given, Real) and _is_float(given) and math.isfinite(given)


def _is_in_float32(given: Any) -> bool:
    """Say whether a number is one that float32, in which logits are transformed, tells from 0 and from infinity."""
    limits = torch.finfo(torch.float32)
    return _is_number(given) and limits.tiny <= abs(given) <= limits.max


def _is_float(given: Real) -> bool:
    """Say whether a number is one that a float can hold: no integer of hundreds of digits."""
    try:
        float(given)
    except OverflowError:
        return False
    return True


def _item(given: Any) -> str:
    return "; of a tensor give `.item()`: no gradient goes through it" if isinstance(given, Tensor) else ""


def _shown(given: Any) -> str:
    return shown(given) if isinstance(given, (str, int, float, bool, type(None))) else _a(given)


def _a(given: Any) -> str:
    kind = "None" if given is None else type(given).__name__
    return kind if given is None else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _how(given: Any, of_model: str) -> str:
    """Say how to make a tensor of what was given."""
    if isinstance(getattr(given, of_model, None), Tensor):
        return f"of what a model returns, give its `.{of_model}`"
    if isinstance(given, nn.Module):
        return "call it, and give what it returns"
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, Tensor) for one in given):
        return "of several, give one: `hidden_states[-1]`, or `torch.stack(...)`"
    if isinstance(given, (list, tuple)) or type(given).__module__.partition(".")[0] == "numpy":
        return "`torch.as_tensor(...)`"
    return "what the model returns, or its tokenizer"
