"""What a model says of target tokens, recorded and not trained: the columns of a frozen reference, made beforehand.

Shapes: B batch, S sequence, N positions (flattened), T scored tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dft_plugin.config.beforehand import OLD
from dft_plugin.core.plan import COLUMNS
from dft_plugin.errors import ConflictError
from dft_plugin.hf.adapters import adapter_parameters, has_adapters, why_not_base
from dft_plugin.hf.another_model import AnotherModel, load
from dft_plugin.hf.attachment import attach_plan
from dft_plugin.hf.model import require_causal_lm, unwrap
from dft_plugin.hf.reference import BaseModel
from dft_plugin.objectives import REFERENCE_COLUMNS, Clock, Objective, ReferenceColumns, Rows, RowStatistic, Targets
from dft_plugin.plans import plan_for

if TYPE_CHECKING:
    from dft_plugin.hf.attachment import Attachment
    from dft_plugin.objectives import Weighed

_NOT_COMPUTED = ("_name_or_path", "_commit_hash", "transformers_version", "architectures", "use_cache")
"""What a config holds beside that."""

_SAMPLED = 64
"""Numbers of each parameter that tell two models apart."""


class Recorded(Objective):
    """Weighs nothing, and says what the columns of a reference are."""

    name: ClassVar[str] = "recorded"
    summary: ClassVar[str] = "w = 0"
    source: ClassVar[str] = "dft-plugin"

    mass: bool = Field(False, description="Whether `ref_mass` is made beside `ref_logp`.")

    @property
    def statistics(self) -> tuple[str, ...]:  # type: ignore[override]  # an option decides
        """What is recorded."""
        return REFERENCE_COLUMNS if self.mass else REFERENCE_COLUMNS[:1]

    @property
    def needs(self) -> frozenset[RowStatistic]:  # type: ignore[override]  # an option decides
        """The mass, where it is asked for."""
        return ReferenceColumns(self.statistics).needs

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Return the columns as statistics."""
        return ReferenceColumns(self.statistics).weigh(rows, targets, clock)


def config_digest(config: Any) -> str:
    """Tell what a model computes by its config from another; not where it is, nor who wrote it."""
    said = {key: value for key, value in config.to_dict().items() if key not in _NOT_COMPUTED}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Standing:
    """A frozen model that is asked for columns: the one of a trainer as it is, its base, or another one.

    Args:
        model: the one that would be trained.
        word: what stands after `reference:`. Adapters are switched off, unless it is `start` or `copy`, the model as
            the run begins; or it is the path of a model.
        names: the columns that are asked for.

    Raises:
        ConflictError: there is no such reference.
    """

    def __init__(self, model: Any, word: str | None, names: tuple[str, ...]) -> None:
        self.names = names
        self.model: Any = require_causal_lm(unwrap(model))
        self._off, self.another = False, None
        if word in (None, COLUMNS, "base"):
            self._off = has_adapters(self.model)
            problem = why_not_base(self.model) if self._off else None
            if problem is not None:
                raise ConflictError([problem])
        elif word not in ("start", "copy"):
            self.another = load(word, self.model)

    @property
    def asked(self) -> Any:
        """The module that is run."""
        return self.model if self.another is None else self.another.model

    def says(self) -> dict[str, str]:
        """Return what it is, in words and numbers that differ where its columns would."""
        model = self.asked
        parts = {"model": str(model.config._name_or_path)}
        revision = getattr(model.config, "_commit_hash", None)
        if revision:
            parts["revision of the model"] = revision
        what = "off" if self._off else "as the run begins with them"
        if self.another is None and has_adapters(model):
            parts["adapters"] = what
        parts["config of the model"] = config_digest(model.config)
        return {**parts, "weights": weights_digest(model, adapters=not self._off)}

    @contextmanager
    def recording(self) -> Iterator[Attachment]:
        """Have what records in its forward for a while, and the model in eval mode."""
        found = plan_for(Recorded(mass="ref_mass" in self.names))
        model, training = self.asked, self.asked.training
        standing: AbstractContextManager[Any] = nullcontext()
        if self._off:
            standing = BaseModel().standing(model, model)
        elif isinstance(self.another, AnotherModel):
            standing = self.another.standing(self.model, self.model)
        with standing:
            attached = attach_plan(model, found)
            try:
                model.eval()
                yield attached
            finally:
                model.train(training)
                attached.detach()

    def ask(self, attached: Attachment, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run it on a batch.

        Args:
            attached: what `recording` gave.
            inputs: arguments of its forward, on its device, `labels` among them [B, S].

        Returns:
            For each of its columns float32 [B, S] on the CPU: position s holds the number of the token at s; NaN for
            what is no target, and for the first token, which nothing predicts.
        """
        with torch.no_grad():
            result = attached.score(attached.model, dict(inputs), want_logits=False).result
        found = {}
        for name in self.names:
            made_T = result.scored.statistics["ref_mass" if name == "ref_mass" else "ref_logp"]
            column_N = torch.full((result.selection.shape.numel(),), float("nan"))
            column_N[result.selection.positions_T] = made_T.float().cpu()
            # The shift of labels, undone.
            column_BS = column_N.view(result.selection.shape).roll(1, dims=-1)
            column_BS[..., 0] = float("nan")
            found[name] = column_BS
        return found


def standings(model: Any, word: str | None, columns: tuple[str, ...]) -> list[Standing]:
    """Return who is to be asked for columns: a reference, and the model itself for what it says before its updates."""
    of_reference = tuple(name for name in columns if name != OLD)
    found = [Standing(model, word, of_reference)] if of_reference else []
    if OLD not in columns:
        return found
    same = bool(found) and found[0].another is None and not has_adapters(found[0].model)
    return [Standing(model, "start", columns)] if same else [*found, Standing(model, "start", (OLD,))]


def weights_digest(model: Any, *, adapters: bool) -> str:
    """Tell weights from others, by a sample of each parameter.

    Args:
        model: a causal LM.
        adapters: whether its adapters count; those that are new and say nothing yet never do, since they are drawn.
    """
    own = adapter_parameters(model)
    named = [(_plain(name), p.detach(), id(p) in own) for name, p in model.named_parameters(remove_duplicate=False)]
    ups = [p for name, p, of_adapter in named if of_adapter and "lora_B" in name]
    new = bool(ups) and not any(bool(p.any()) for p in ups)
    found = hashlib.sha256()
    for name, parameter, of_adapter in sorted(named, key=lambda entry: entry[0]):
        if of_adapter and (new or not adapters):
            continue
        flat = parameter.reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().contiguous()
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        found.update(sample.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _plain(name: str) -> str:
    """Return what a parameter is called without PEFT's wrappers around it."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "original_module"))
