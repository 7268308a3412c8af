"""The loss in the place of verl's `sft_loss`: an object that carries its settings to whatever process it is sent.

Shapes: N tokens of a micro-batch, its sequences one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dft_plugin.config.plugins import build_catalogue
from dft_plugin.core.logp import logp_loss
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.targets import IGNORE_INDEX, Facts, shift_joined
from dft_plugin.errors import NotActiveError, UnsupportedModelError
from dft_plugin.objectives import Clock

SUMS = "dft/sums"
"""Under which a micro-batch hands over its raw sums, then its tokens by bands; verl gathers them from all ranks."""

CLOCK = "dft_clock"
"""Under which a batch says how far the run is."""

FLAGS = {"entropy": "calculate_entropy", "sum_p_squared": "calculate_sum_pi_squared"}
"""What a batch must say so that an engine makes a statistic of rows, by our name for it."""

_MADE = {"entropy": "entropy", "sum_p_squared": "sum_pi_squared"}
"""Under which verl returns it."""


@dataclass(frozen=True)
class SftLoss:
    """A loss as verl's engines call it. Pickled, it is its fields: any process with dft-plugin makes the rest of them.

    Attributes:
        settings: as `parse_settings` reads them.
        always: ids of tokens that always have weight 1, as far as words stood for them.
        factors: factors by id, likewise.
        ends: ids that end an answer, whose probability is logged.
    """

    settings: Mapping[str, Any]
    always: tuple[int, ...] = ()
    factors: Mapping[int, float] = field(default_factory=dict)
    ends: tuple[int, ...] = ()

    @cached_property
    def plan(self) -> LossPlan:
        """The objects that do the work."""
        catalogue = build_catalogue()
        return catalogue.plan(catalogue.settings(self.settings)).with_ids(self.always, self.factors)

    @property
    def needs(self) -> list[str]:
        """Statistics of rows that the engine has to make; keys of `FLAGS`."""
        named = self.plan.wanted.union(*(one.needs for one in self.plan.every))
        return sorted(one for one in named if isinstance(one, str))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the objects that were made."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def __call__(
        self, config: Any = None, model_output: Any = None, data: Any = None, dp_group: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Score a micro-batch.

        Args:
            config: None; verl's losses have one.
            model_output: `log_probs` (nested, one row for each sequence), and what else `needs` names.
            data: `input_ids` and `loss_mask` (nested likewise), `batch_num_tokens`, `dp_size`.
            dp_group: of the ranks that share a step; verl itself gathers over it.

        Returns:
            The loss, so that the mean over ranks and the sum over micro-batches is the loss of the step; and raw sums.

        Raises:
            UnsupportedModelError: there is no log p, or `loss_mask` holds other numbers than 0 and 1.
        """
        del config, dp_group
        logp_N = _values(model_output, "log_probs")
        offsets = data["input_ids"].offsets()
        labels_N = shift_joined(_labels(data), offsets)
        facts = self._facts(offsets, labels_N, _clock(data))
        made = {name: _values(model_output, _MADE[name]) for name in self.needs}
        result = logp_loss(
            self.plan,
            logp_N,
            labels_N,
            facts=facts,
            entropy=made.get("entropy"),
            sum_p_squared=made.get("sum_p_squared"),
        )
        # verl counts the targets of all micro-batches and ranks, and averages over the ranks.
        loss = result.mean(data["batch_num_tokens"]) * data["dp_size"]
        stats = result.stats(self.ends)
        assert stats.counts_K is not None
        return loss, {SUMS: (*stats.sums_K.tolist(), *stats.counts_K.tolist())}

    def _facts(self, offsets: Tensor, labels_N: Tensor, clock: Clock | None) -> Facts:
        if not any(one.places or one.scope == "sequence" for one in self.plan.every):
            return Facts(clock=clock)
        lengths = offsets.diff()
        numbers = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        places_N = torch.arange(labels_N.numel(), device=lengths.device) - offsets[:-1].repeat_interleave(lengths) + 1
        return Facts(sequence_BS=numbers, position_BS=places_N, clock=clock)


def _labels(data: Any) -> Tensor:
    mask_N = data["loss_mask"].values()
    kept_N = mask_N != 0
    # A mask of weights would be a loss of its own.
    if not bool((kept_N == mask_N).all()):
        raise UnsupportedModelError(
            "`loss_mask` holds other numbers than 0 and 1: verl would weigh tokens by them, and this loss weighs them "
            "by itself. Have the dataset mark targets by 1 and all else by 0; factors by token can be written after "
            "`loss` (`+loss.weights.tokens={...}`)."
        )
    ids_N: Tensor = data["input_ids"].values()
    return ids_N.masked_fill(~kept_N, IGNORE_INDEX)


def _clock(data: Any) -> Clock | None:
    told = data.get(CLOCK, None)
    # As it was assigned, or in the box of what is no tensor.
    told = getattr(told, "data", told)
    return None if told is None else Clock(*told)


def _values(model_output: Mapping[str, Any], key: str) -> Tensor:
    nested = model_output.get(key)
    if nested is None:
        held = ", ".join(model_output) or "nothing"
        if key == "log_probs":
            raise UnsupportedModelError(
                f"dft: the engine hands over no `log_probs` (but {held}), so that there is nothing to weigh: this "
                "loss trains language models. Leave out `loss` for value models and distillation."
            )
        raise NotActiveError(
            f"dft: the objective reads `{key}` of each row of logits, and this engine does not make it (it made "
            f"{held}). Take one that looks at log p alone (dft, nll, profit, chord_phi, focal), or `engine=fsdp`."
        )
    if not nested.is_nested:
        raise UnsupportedModelError(
            f"dft: `{key}` is padded, shape {tuple(nested.shape)}; sequences without padding are needed. Set "
            "`data.pad_mode=no_padding`."
        )
    values: Tensor = nested.values()
    return values
