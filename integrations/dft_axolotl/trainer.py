"""AxolotlTrainer: its perplexities are made from the loss, which is no longer the likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from axolotl.core.trainers.base import AxolotlTrainer
from transformers import Trainer, TrainerCallback

from dft_axolotl.columns import HINT
from dft_axolotl.conflicts import superseded, without_boundaries
from dft_plugin.hf.trainer import TrainerHook

_LOW_IS_GOOD = ("ppl",)


class AxolotlHook(TrainerHook):
    """The plain Trainer's hook, with true perplexities."""

    columns_hint: ClassVar[str] = HINT

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

    @classmethod
    def without_boundaries(cls, trainer: Trainer) -> list[str]:
        """Streamed texts may be laid end to end, with one row of positions or none."""
        made: Any = trainer
        return [str(one) for one in without_boundaries(made.axolotl_cfg or {})]

    @classmethod
    def ends(cls, trainer: Trainer) -> Sequence[int]:
        """Return the `eot_tokens` of the config, which may be others than the chat template's last."""
        made: Any = trainer
        named = (made.axolotl_cfg or {}).get("eot_tokens") or []
        vocab = made.processing_class.get_vocab() if named else {}
        return [vocab[token] for token in named if token in vocab]

    def install(self) -> None:
        """Wrap the trainer, mend `ppl` and `eval_ppl` before any logger sees them, and the choice of the best."""
        super().install()
        trainer: Any = self.trainer
        cfg = trainer.axolotl_cfg or {}
        self.replaced += superseded(cfg)
        trainer.callback_handler.callbacks.insert(0, _TruePerplexity())
        self._prefer_low(bool(cfg.get("greater_is_better")))

    def _prefer_low(self, asked_for_high: bool) -> None:
        """Choose the lowest `ppl` as best: Axolotl drops `greater_is_better: false`, and transformers assumes true."""
        args = self.trainer.args
        metric = args.metric_for_best_model or ""
        if metric.endswith(_LOW_IS_GOOD) and args.greater_is_better and not asked_for_high:
            args.greater_is_better = False
            self.replaced.append(f"greater_is_better (the lowest {metric} is the best)")


class _TruePerplexity(TrainerCallback):
    """Axolotl writes exp(loss) into a log, after our wrapper of `log` has run; callbacks come after that."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        for prefix in ("", "eval_"):
            key, true = f"{prefix}ppl", f"{prefix}dft/perplexity"
            if logs and key in logs and true in logs:
                logs[key] = logs[true]
                # The history holds a copy, made just before callbacks are called.
                state.log_history[-1][key] = logs[true]
