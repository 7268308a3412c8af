"""LLaMA-Factory's SFT trainer: its own losses are refused, its `plot_loss` draws ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import Trainer

from dft_llamafactory import conflicts
from dft_llamafactory.columns import HINT
from dft_plugin.hf.trainer import TrainerHook

PLOTTED = ("dft/nll", "dft/mean_prob", "eval_dft/nll", "eval_dft/mean_prob")
"""What `plot_loss` draws beside the loss, where it was logged."""


class LlamaFactoryHook(TrainerHook):
    """Reads LLaMA-Factory's parsed arguments; the rest is the plain Trainer's."""

    columns_hint: ClassVar[str] = HINT

    @classmethod
    def conflicts(cls, trainer: Trainer) -> list[str]:
        """Check LLaMA-Factory's arguments as they were parsed, whoever made the trainer."""
        parsed: Any = trainer
        found = conflicts.find(vars(parsed.finetuning_args), os.environ)
        return [*map(str, found), *super().conflicts(trainer)]

    @classmethod
    def without_boundaries(cls, trainer: Trainer) -> list[str]:
        """The collator gives models whose positions have several axes new ones, for each row that is not neat."""
        made: Any = trainer
        columns = getattr(made.train_dataset, "column_names", None) or ()
        packed = "position_ids" in columns and "packing_params" not in columns
        return [conflicts.NO_BOUNDARIES] if packed and getattr(made.data_collator, "get_rope_func", None) else []

    @classmethod
    def ends(cls, trainer: Trainer) -> Sequence[int]:
        """Return what LLaMA-Factory's own template ends an answer with; the tokenizer's may be another one."""
        parsed: Any = trainer
        template = getattr(parsed.data_collator, "template", None)
        if template is None:
            return ()
        ids: list[int | None] = template.get_stop_token_ids(parsed.processing_class)
        return [number for number in ids if number is not None]

    def install(self) -> None:
        """Say whether Liger's loss is superseded; wrap what writes `trainer_state.json`, of which plots are drawn."""
        super().install()
        trainer: Any = self.trainer
        # The forward tells, not the switch: LLaMA-Factory only warns where Liger does not know the model.
        if self.attachment.original.__module__.startswith("liger_kernel."):
            self.replaced.append("Liger's fused loss (enable_liger_kernel)")
        if trainer.finetuning_args.plot_loss:
            self._save_state = trainer.save_state
            trainer.save_state = self.save_state

    def save_state(self) -> None:
        """Save, then plot our statistics; LLaMA-Factory plots its own keys after it."""
        self._save_state()
        if not self.trainer.is_world_process_zero():
            return
        from llamafactory.extras.ploting import plot_loss

        logged = {key for entry in self.trainer.state.log_history for key in entry}
        plot_loss(self.trainer.args.output_dir, keys=[key for key in PLOTTED if key in logged])
