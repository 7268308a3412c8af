"""ms-swift as a host: which YAML is its own, what in it is in the way, how it is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dft_plugin.config import rules
from dft_plugin.config.hosts import Choice, Conflict, Host, OwnCommand
from dft_swift import conflicts

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings

_MODEL, _DATA = frozenset({"model", "adapters"}), frozenset({"dataset", "cached_dataset"})
"""Of which ms-swift has one each."""

_OTHER_HOSTS = frozenset({"base_model", "model_name_or_path", "train_dataset", "datasets", "dataset_name"})
"""Keys of Axolotl, LLaMA-Factory or TRL that ms-swift does not have."""

_EVALUATES = ("val_dataset", "cached_val_dataset")
"""Keys that name a held-out set."""


class SwiftHost(Host):
    """`swift sft cfg.yaml`: each key of the YAML is an option of the command line."""

    name: ClassVar[str] = "swift"
    distribution: ClassVar[str] = "ms-swift"
    tested: ClassVar[str] = ">=4.6,<4.7"
    install: ClassVar[str] = "pip install 'dft-plugin[swift]' 'ms-swift>=4.6,<4.7'"
    autoload_targets: ClassVar[Mapping[str, str]] = {
        "swift.pipelines.base": "dft_swift.autoload",
        "swift.pipelines.train.sft": "dft_swift.autoload",
        "swift.pipelines.train.pretrain": "dft_swift.autoload",
    }
    own_command: ClassVar[OwnCommand | None] = OwnCommand("swift sft", "refuses the line")
    trainer_class: ClassVar[str | None] = "swift.trainers.seq2seq_trainer:Seq2SeqTrainer"
    hook_class: ClassVar[str | None] = "dft_swift.trainer:SwiftHook"
    launch_function: ClassVar[str] = "dft_swift.launch:start"
    show_function: ClassVar[str] = "dft_swift.run:show"
    evaluate_function: ClassVar[str] = "dft_swift.run:evaluator"
    held_out: ClassVar[str] = "`val_dataset: PATH`, or `split_dataset_ratio: 0.05`"

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """Ms-swift names its model `model` (or adapters alone), and its data `dataset` or `cached_dataset`."""
        keys = set(config)
        has_model, has_data = bool(_MODEL & keys), bool(_DATA & keys)
        return has_model and has_data and not _OTHER_HOSTS & keys

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what SwiftHook would refuse, as far as the YAML shows it."""
        return rules.find(conflicts.RULES, config)

    def loses_columns(self, config: Mapping[str, Any]) -> list[Conflict]:
        """Its templates encode rows by themselves, and keep no numbers beside the tokens."""
        return [conflicts.COLUMNS]

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """Its cross-entropy, and what spares it the logits of a prompt."""
        return ["ms-swift's cross-entropy", "use_logits_to_keep, which a loss without logits does not need"]

    def chooses_by(self, config: Mapping[str, Any]) -> Choice | None:
        """Where it evaluates, ms-swift always looks for the best checkpoint, by the loss if nothing is said."""
        evaluates = any(config.get(key) for key in _EVALUATES) or rules.is_positive(config.get("split_dataset_ratio"))
        if not evaluates or config.get("eval_strategy") in ("no", False):
            return None
        return Choice(config.get("metric_for_best_model"), config.get("greater_is_better"))

    def trains_adapters(self, config: Mapping[str, Any]) -> bool:
        """LoRA is what it does where nothing is said."""
        return str(config.get("tuner_type", "lora")) != "full"
