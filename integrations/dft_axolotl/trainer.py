"""AxolotlTrainer: its perplexities are made from the loss, which is no longer the likelihood."""

from __future__ import annotations

from typing import Any

from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.integrations.base import PluginManager
from transformers import Trainer, TrainerCallback

from dft_axolotl.conflicts import superseded
from dft_plugin.trainer import TrainerHook


class AxolotlHook(TrainerHook):
    """The plain Trainer's hook, with true perplexities."""

    @classmethod
    def conflicts(cls, trainer: Trainer) -> list[str]:
        """Refuse trainers with a loss of their own (distillation, diffusion, a user's)."""
        problems = super().conflicts(trainer)
        if type(trainer).compute_loss is not AxolotlTrainer.compute_loss:
            problems.append(
                f"{type(trainer).__name__} overrides compute_loss. Let it inherit AxolotlTrainer's, or leave out "
                "`trainer_cls:` or the plugin that chose this trainer."
            )
        return problems

    def install(self) -> None:
        """Wrap the trainer, and mend `ppl` and `eval_ppl` before any logger sees them."""
        super().install()
        self.replaced += superseded(PluginManager.get_instance().cfg or {})
        self.trainer.callback_handler.callbacks.insert(0, _TruePerplexity())


class _TruePerplexity(TrainerCallback):
    """Axolotl writes exp(loss) into a log, after our wrapper of `log` has run; callbacks come after that."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        for prefix in ("", "eval_"):
            key, true = f"{prefix}ppl", f"{prefix}dft/perplexity"
            if logs and key in logs and true in logs:
                logs[key] = logs[true]
                # The history holds a copy, made just before callbacks are called.
                state.log_history[-1][key] = logs[true]
