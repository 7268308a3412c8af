"""What a batch says of its tokens beside their labels: columns of numbers, and which sequence each is in.

Shapes: B batch, S sequence length of a row, P packed sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dft_plugin.core.dense import require_dense
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.targets import Facts, shift
from dft_plugin.core.transfer import bring
from dft_plugin.errors import ConflictError, InputError
from dft_plugin.objectives import Clock
from dft_plugin.saying import shown

COLUMN = "dft_column_"
"""What stands before the name of a column in a batch: float [B, S], aligned with the tokens as `labels` are."""

BITS = "dft_bits_"
"""The same, its float32 seen as int32: DeepSpeed, FSDP and hosts' collators cast what is a float to bfloat16."""


def as_bits(column_BS: Tensor) -> Tensor:
    """Return a float32 column as it travels in a batch, int32."""
    return column_BS.float().contiguous().view(torch.int32)


def without_columns(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward without the columns, which no model takes."""
    return {key: value for key, value in inputs.items() if not key.startswith((COLUMN, BITS))}


def _taken(inputs: dict[str, Any]) -> dict[str, Tensor]:
    for key, column in inputs.items():
        if not key.startswith((COLUMN, BITS)):
            continue
        if not isinstance(column, Tensor):
            raise ConflictError(
                [
                    f"the column `{key}` has come as {shown(column)}, a {type(column).__name__}; a tensor is needed, "
                    "one number for each token. Put it into the batch as the labels are."
                ]
            )
        require_dense(InputError, **{f"the column `{key}`": column})
    found = {key.removeprefix(COLUMN): inputs.pop(key) for key in list(inputs) if key.startswith(COLUMN)}
    for name, column in found.items():
        if column.dtype in (torch.float16, torch.bfloat16):
            raise ConflictError(
                [
                    f"the column `{name}` has come as {column.dtype}: a step of its way here has cast it, and its "
                    f"numbers have lost digits. Put it into the batch as `{BITS}{name}`, made by "
                    "dft_plugin.hf.facts.as_bits."
                ]
            )
    bits = [key for key in inputs if key.startswith(BITS)]
    return found | {key.removeprefix(BITS): inputs.pop(key).view(torch.float32) for key in bits}


# Torch 2.8's compiler fails over guards on what an objective declares.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def facts_of(plan: LossPlan, inputs: dict[str, Any], clock: Clock | None) -> Facts:
    """Take the columns out of the arguments of a labelled call, and find what the plan wants to know besides.

    Args:
        plan: says what is wanted.
        inputs: keyword arguments of the model's forward; the columns are taken out of them.
        clock: how far the run is; None where nobody knows.

    Raises:
        ConflictError: a column is missing, or does not fit the labels.
    """
    given = _taken(inputs)
    missing = sorted(plan.columns - given.keys())
    if missing:
        raise ConflictError(
            [
                f"the loss reads the column `{name}`, which is not in this batch. The dataset, or a step of its way "
                f"here, has dropped it: a batch must hold `{COLUMN}{name}`, one number for each token."
                for name in missing
            ]
        )
    aligned = inputs.get("labels") is None or inputs.get("shift_labels") is not None
    labels: Tensor = inputs["shift_labels"] if aligned else inputs["labels"]
    # What a reference would fill in may have come with the data.
    optional = plan.filled & given.keys() if plan.reference is None else frozenset()
    columns = {name: given[name] for name in sorted(plan.columns | optional)}
    for name, column in columns.items():
        if column.shape != labels.shape:
            raise ConflictError(
                [
                    f"the column `{name}` has shape {tuple(column.shape)} and the labels {tuple(labels.shape)}: one "
                    "number for each token is needed. A step of their way here has changed one and not the other."
                ]
            )
    align = (lambda tensor: tensor) if aligned else (lambda tensor: shift(tensor, 0))
    columns = {name: align(column) for name, column in columns.items()}
    if not any(one.places or one.scope != "token" for one in plan.every):
        return Facts(columns=columns, clock=clock)
    # Of the tokens that go in, whatever was done to their labels.
    sequence_BS = sequences(inputs, labels)
    return Facts(shift(sequence_BS, 0), shift(positions(sequence_BS), 0), columns, clock)


def sequences(inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Return which sequence of the batch each token is in, int64 [B, S], ascending along the tokens.

    A row is a sequence, unless the batch says that several are packed into it: by `seq_idx`, by an attention mask of
    numbers above 1, by `cu_seqlens` (or `cu_seq_lens_q`), or by position ids that begin again. It is found out where
    the labels are: on a device, without waiting for it.

    Args:
        inputs: keyword arguments of the model's forward.
        labels: of any dtype, [B, S].
    """
    begins_BS = _begins(inputs, labels)
    begins_BS[:, 0] = True
    return begins_BS.flatten().cumsum(0).view(labels.shape) - 1


def positions(sequence_BS: Tensor) -> Tensor:
    """Return the position of each token in its sequence, int64 [B, S], given which sequence it is in."""
    sequence_N = sequence_BS.reshape(-1)
    at_N = torch.arange(sequence_N.numel(), device=sequence_N.device)
    first_N = torch.zeros_like(at_N)
    first_N[1:] = at_N[1:].where(sequence_N[1:] != sequence_N[:-1], 0).cummax(0).values
    return (at_N - first_N).view(sequence_BS.shape)


def _begins(inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Return where a new sequence begins inside a row, bool [B, S]."""
    index_BS = _like(labels, inputs.get("seq_idx"))
    if index_BS is not None:
        return _changes(index_BS)
    begins_BS = _begins_by_places(inputs, labels)
    mask_BS = _like(labels, inputs.get("attention_mask"))
    if mask_BS is not None and mask_BS.numel():
        begins_BS = torch.where(mask_BS.amax() > 1, _changes(mask_BS), begins_BS)
    return begins_BS


def _begins_by_places(inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    begins_BS = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for name in ("cu_seqlens", "cu_seq_lens_q"):
        ends_P = inputs.get(name)
        if isinstance(ends_P, Tensor):
            # What ends the batch begins nothing in it.
            at_P = bring(ends_P.flatten(), labels.device).long().clamp(max=labels.numel())
            return begins_BS.new_zeros(labels.numel() + 1).index_fill_(0, at_P, True)[:-1].view(labels.shape)
    positions = inputs.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() == 3:
        # Of a multimodal model, one for each of three axes.
        positions = positions[0]
    position_BS = _like(labels, positions)
    if position_BS is not None:
        begins_BS[:, 1:] = position_BS[:, 1:] < position_BS[:, :-1]
        begins_BS |= position_BS == 0
    return begins_BS


def _changes(index_BS: Tensor) -> Tensor:
    changes_BS = torch.zeros(index_BS.shape, dtype=torch.bool, device=index_BS.device)
    changes_BS[:, 1:] = index_BS[:, 1:] != index_BS[:, :-1]
    return changes_BS


def _like(labels: Tensor, tensor: Any) -> Tensor | None:
    # Positions of one row may stand for all.
    if not isinstance(tensor, Tensor) or tensor.shape not in (labels.shape, torch.Size((1, labels.shape[-1]))):
        return None
    return bring(tensor, labels.device).expand(labels.shape)
