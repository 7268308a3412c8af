"""A frozen reference that is a model of its own: a copy of the one that is trained, or another of its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dft_plugin.config.settings import REFERENCES
from dft_plugin.config.spelling import did_you_mean
from dft_plugin.errors import ConflictError
from dft_plugin.hf.copies import deep_copy
from dft_plugin.hf.graph import Steps
from dft_plugin.kernels import Transform


class AnotherModel:
    """A model of its own.

    Args:
        model: it; frozen from now on.
        word: what stands after `reference:`.
        says: what it is.

    Attributes:
        told: the steps that it took to transform its logits, and the transform that their values told then.
    """

    def __init__(self, model: Any, word: str, says: str) -> None:
        self.word, self.says = word, says
        self.told: tuple[Steps, Transform] | None = None
        self.model = model.requires_grad_(False).eval()

    def __deepcopy__(self, memo: Any) -> AnotherModel:
        # A copy of the model that is trained needs no other reference.
        return self

    @contextmanager
    def standing(self, model: Any, forward: Callable[..., Any]) -> Iterator[tuple[Any, Callable[..., Any]]]:
        """Have it where the model is by now."""
        del forward
        if self.model.device != model.device:
            self.model.to(model.device)
        yield self.model, self.model


def copy_of(model: Any) -> AnotherModel:
    """Copy a model as it is now."""
    made = deep_copy(model)
    made.zero_grad(set_to_none=True)
    return AnotherModel(made, "copy", "a frozen copy of the model, as it began")


def load(path: str, model: Any) -> AnotherModel:
    """Load a model of the same class.

    Raises:
        ConflictError: there is none, or it has another vocabulary.
    """
    kind = next(cls for cls in type(model).__mro__ if hasattr(cls, "from_pretrained"))
    try:
        made = kind.from_pretrained(path, attn_implementation=model.config._attn_implementation)
    except (OSError, ValueError) as error:
        raise ConflictError(
            [
                f"`reference: {path}` is none of base, start, copy and columns, and no {kind.__name__} can be loaded "
                f"from there ({str(error).splitlines()[0]}).{did_you_mean(path, REFERENCES)} Give the path of a model."
            ]
        ) from error
    ours, theirs = (one.get_output_embeddings().weight.shape[0] for one in (model, made))
    if ours != theirs:
        raise ConflictError(
            [
                f"`reference: {path}` has {theirs} tokens, and the model {ours}. They need the same vocabulary; for "
                "a model with new tokens write `reference: copy`."
            ]
        )
    return AnotherModel(made.to(model.dtype), path, f"the model {path}")
