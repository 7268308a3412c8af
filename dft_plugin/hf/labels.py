"""The labels of a call on their way to the CPU, where it is found out what is scored.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dft_plugin.core import targets
from dft_plugin.core.dense import require_dense
from dft_plugin.core.transfer import Fetched, version_of
from dft_plugin.errors import LabelError
from dft_plugin.saying import shown


@dataclass(frozen=True)
class Labels:
    """What a loss was given as labels.

    Attributes:
        fetched: as they were given.
        aligned: whether they are shifted already.
        ignore_index: what marks no target in them.
    """

    fetched: Fetched
    aligned: bool
    ignore_index: int = targets.IGNORE_INDEX

    def read(self) -> Tensor:
        """Return them aligned, [B, S] on the CPU; `IGNORE_INDEX` marks what is no target."""
        labels_BS = self.fetched.read()
        aligned_BS = labels_BS if self.aligned else targets.shift(labels_BS, self.ignore_index)
        return targets.with_own_ignore_index(aligned_BS, self.ignore_index)


def of_all_tokens(inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Return labels of all tokens, where they were given for the last N with `logits_to_keep=N`.

    The first of unshifted ones predicts nothing then: its position has no logits.
    """
    tokens, kept = inputs.get("input_ids"), inputs.get("logits_to_keep")
    if not isinstance(kept, int) or not isinstance(tokens, Tensor) or labels.shape[-1] != kept:
        return labels
    missing = tokens.shape[-1] - kept
    if missing <= 0:
        return labels
    labels = labels.clone()
    if inputs.get("shift_labels") is None:
        labels[..., 0] = targets.IGNORE_INDEX
    return nn.functional.pad(labels, (missing, 0), value=targets.IGNORE_INDEX)


def require_tensors(inputs: Mapping[str, Any]) -> None:
    """Refuse labels that are no tensors.

    Raises:
        LabelError: says which, and what they are.
    """
    for name in ("labels", "shift_labels"):
        given = inputs.get(name)
        if given is None:
            continue
        if not isinstance(given, Tensor):
            raise LabelError(
                f"{name} is {shown(given)}, a {type(given).__name__}; a tensor of token ids is needed, one for each "
                "token, with -100 for those that are not trained."
            )
        require_dense(LabelError, **{name: given})
        if not given.dim():
            raise LabelError(f"{name} is a tensor of one number without a shape; one label for each token is needed.")


def require_unshifted(inputs: Mapping[str, Any]) -> None:
    """Refuse labels that the caller has shifted already, where the tokens beside them show it.

    Raises:
        LabelError: a row of labels is shorter by one than the row of tokens.
    """
    labels, tokens = inputs["labels"], inputs.get("input_ids")
    if inputs.get("shift_labels") is not None or not isinstance(tokens, Tensor) or labels.dim() != tokens.dim():
        return
    if labels.shape[-1] == tokens.shape[-1] - 1:
        raise LabelError(
            f"labels have shape {tuple(labels.shape)} and input_ids {tuple(tokens.shape)}: one label for each token "
            "is needed, unshifted, as the model itself takes them."
        )


class SentAhead:
    """The labels of a call, fetched before the model runs: by the time that it asks for a loss they are here.

    Args:
        labels_BS: as the model gets them.
    """

    def __init__(self, labels_BS: Tensor) -> None:
        self._given_BS = labels_BS
        self._version = version_of(labels_BS)
        self._fetched = Fetched(labels_BS)

    def fetch(self, labels_BS: Tensor) -> Fetched:
        """Return a copy of what a loss is given: the one that went ahead, if these are the labels and nobody wrote."""
        same = labels_BS is self._given_BS and self._version is not None
        return self._fetched if same and self._version == version_of(labels_BS) else Fetched(labels_BS)
