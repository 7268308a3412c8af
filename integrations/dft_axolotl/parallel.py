"""Context parallelism of Axolotl from 0.20 on (package ringmaster): each sequence is split over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from dft_plugin.errors import ConflictError


def splits_sequences(cfg: Mapping[str, Any]) -> bool:
    """Say whether a config, as Axolotl has validated it, splits sequences over ranks."""
    return int(cfg.get("context_parallel_size") or 1) > 1


def leave_batches_whole(cfg: Any) -> None:
    """Have Axolotl split a batch where the model is called, and not where it is collated.

    The targets of a step are counted, and a statistic's rows told apart, in the batches that a trainer is given.
    """
    if not splits_sequences(cfg):
        return
    from axolotl.integrations.context_parallel.args import ContextParallelConfig

    # Axolotl 0.20 knows the former alone.
    if "shard_in_collator" in ContextParallelConfig.model_fields:
        cfg.context_parallel["shard_in_collator"] = False


class MustBeSplit(TrainerCallback):
    """Stops `axolotl evaluate`, which sets up no context parallelism: each rank would score the whole."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Look for what the plugin of Axolotl's has put on the trainer."""
        if "_prepare_context_parallel_inputs" not in vars(self._trainer):
            raise ConflictError(
                [
                    "`context_parallel_size`: `axolotl evaluate` does not split sequences over ranks, so that each "
                    "token would be counted several times. Evaluate on one rank, without it."
                ]
            )
