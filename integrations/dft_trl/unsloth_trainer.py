"""Unsloth's SFTTrainer: what of its forwards, and of its ways to share a model, would bypass the loss.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import ConflictError
from dft_plugin.hf.model import unwrap
from dft_plugin.hf.wrapping import wrapped
from dft_trl.trainer import TrlHook

_HIDDEN = "UNSLOTH_RETURN_HIDDEN_STATES"
_LENGTHS = "packed_seq_lengths"


class UnslothHook(TrlHook):
    """Its trainer asks the model for a loss, as transformers' does, or for TRL's fused head; both are answered.

    Its forwards return no logits for labels, and are asked without labels from the second batch on. What
    they do only where there are labels is done here: targets across the seams of packed rows are masked.
    """

    @classmethod
    def conflicts(cls, trainer: Any) -> list[str]:
        """List what would bypass the loss, Unsloth's own settings too."""
        return [*super().conflicts(trainer), *_hidden_states(), *_split_up(trainer)]

    def install(self) -> None:
        """Mask the seams of packed rows before targets are counted or scored."""
        super().install()
        fetch, predict = self.inner["get_batch_samples"], self.inner["prediction_step"]

        def fetch_masked(*args: Any, **kwargs: Any) -> Any:
            samples, number = fetch(*args, **kwargs)
            return [without_seams(sample) for sample in samples], number

        def predict_masked(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return predict(model, without_seams(inputs), *args, **kwargs)

        self.inner["get_batch_samples"], self.inner["prediction_step"] = fetch_masked, predict_masked

    @wrapped
    def compute_loss(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stop where the model would return hidden states for logits: whoever asks for them may forget to unset it."""
        del inner
        problems = _hidden_states()
        if problems:
            raise ConflictError(problems)
        return super().compute_loss(*args, **kwargs)


def without_seams(batch: Any) -> Any:
    """Return a batch with the first token of each packed example masked, which nothing of that example predicts.

    Args:
        batch: with `packed_seq_lengths`, int [examples], of all rows laid end to end, and `labels` [B, S]; any other
            is returned as it is.
    """
    lengths = batch.get(_LENGTHS) if isinstance(batch, Mapping) else None
    labels_BS = batch.get("labels") if lengths is not None else None
    if not isinstance(labels_BS, Tensor):
        return batch
    starts = torch.as_tensor(lengths).reshape(-1).cumsum(0)
    labels_BS = labels_BS.clone()
    labels_BS.view(-1)[starts[starts < labels_BS.numel()].to(labels_BS.device)] = IGNORE_INDEX
    return {**batch, "labels": labels_BS}


def _hidden_states() -> list[str]:
    if os.environ.get(_HIDDEN, "0") != "1":
        return []
    return [
        f"{_HIDDEN}=1: Unsloth's models return hidden states in the place of logits, and no loss. An RL trainer may "
        f"have left it behind: os.environ['{_HIDDEN}'] = '0'."
    ]


def _split_up(trainer: Any) -> list[str]:
    """List ways of Unsloth's own to share one model between ranks."""
    found = []
    size = getattr(trainer.args, "context_parallel_size", 1) or 1
    if size > 1:
        found.append(
            f"context_parallel_size is {size}: Unsloth splits sequences over ranks and counts their targets by "
            "itself, which was never run with this loss. Set it to 1."
        )
    if _marked(trainer.model, "_unsloth_tp"):
        found.append(
            "the model is tensor-parallel in Unsloth's own way (apply_tensor_parallel, UNSLOTH_TP_SIZE), which was "
            "never run with this loss. Load it whole."
        )
    return found


def _marked(model: nn.Module, flag: str) -> bool:
    return any(vars(module).get(flag) for module in (model, *unwrap(model).modules()))
