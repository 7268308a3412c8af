"""A token whose embedding is NaN."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from support import tiny

BAD = tiny.VOCAB - 1
"""The token."""


def poison(model: Any) -> None:
    """Have the embedding of the token be NaN, whatever the weights are."""

    def spoil(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.masked_fill((args[0] == BAD)[..., None], float("nan"))

    model.get_input_embeddings().register_forward_hook(spoil)
