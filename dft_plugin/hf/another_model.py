"""A frozen reference that is a model of its own: a copy of the one that is trained, or another of its class.

Another may be a folder of adapters: transformers loads the base that their config names, and puts them on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons
from dft_plugin.config.settings import REFERENCES
from dft_plugin.config.spelling import did_you_mean
from dft_plugin.errors import ConflictError
from dft_plugin.hf.adapters import has_adapters
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


ADAPTER = "adapter_config.json"
"""What a folder of adapters has in the place of a model's config."""


def load(path: str, model: Any) -> AnotherModel:
    """Load a model of the same class.

    Raises:
        ConflictError: there is none, or it has another vocabulary.
    """
    kind = next(cls for cls in type(model).__mro__ if hasattr(cls, "from_pretrained"))
    try:
        made = kind.from_pretrained(path, attn_implementation=model.config._attn_implementation)
    except (OSError, ValueError) as error:
        if (Path(path) / ADAPTER).is_file():
            return _on_the_same_base(path, model, error)
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


def _on_the_same_base(path: str, model: Any, why: Exception) -> AnotherModel:
    """Put adapters, whose base cannot be loaded, on a copy of a model that began as that base.

    Args:
        path: a folder of adapters.
        model: the one that is trained.
        why: what transformers said of their base.

    Raises:
        ConflictError: nobody knows that it is the base of these adapters.
    """
    said = jsons.read(Path(path) / ADAPTER)
    base = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    began = getattr(model.config, "_name_or_path", "")
    if not base or base != began or has_adapters(model):
        given = (
            f"their base `{base}` cannot be loaded ({str(why).splitlines()[0]})" if base else "no base is named there"
        )
        raise ConflictError(
            [
                f"`reference: {path}` holds adapters, and {given}. Write the path of the base into "
                f"`base_model_name_or_path` of {path}/{ADAPTER}, or give the path of a whole model."
            ]
        ) from why
    made = deep_copy(model)
    made.zero_grad(set_to_none=True)
    made.load_adapter(path)
    return AnotherModel(made, path, f"the model as it began, with the adapters {path}")
