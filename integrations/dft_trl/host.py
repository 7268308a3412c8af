"""TRL as a host: which YAML is TRL's, what in it is in the way, how it is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dft_plugin.config.hosts import Host, OwnCommand
from dft_plugin.config.rules import Rule, is_on
from dft_trl import conflicts, unsloth

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings
    from dft_plugin.hf.trainer import TrainerHook

_OTHER_HOSTS = frozenset({"base_model", "stage", "finetuning_type", "template", "dataset_dir"})
"""Keys that Axolotl or LLaMA-Factory need and TRL does not have."""


class TrlHost(Host):
    """`trl sft --config`: script arguments, SFTConfig and ModelConfig in one flat YAML."""

    name: ClassVar[str] = "trl"
    distribution: ClassVar[str] = "trl"
    tested: ClassVar[str] = ">=1.15,<1.17"
    install: ClassVar[str] = "pip install 'dft-plugin[trl]' 'trl>=1.15,<1.17'"
    own_command: ClassVar[OwnCommand | None] = OwnCommand("trl sft", "refuses the line")
    keys_in: ClassVar[Sequence[str]] = (
        "trl/trainer/sft_config.py",
        "trl/trainer/base_config.py",
        "trl/trainer/model_config.py",
        "trl/scripts/utils.py",
        "transformers/training_args.py",
        "accelerate/commands/launch.py",
    )
    trainer_class: ClassVar[str | None] = "trl.trainer.sft_trainer:SFTTrainer"
    hook_class: ClassVar[str | None] = "dft_trl.trainer:TrlHook"
    launch_function: ClassVar[str] = "dft_trl.launch:start"
    show_function: ClassVar[str] = "dft_trl.run:show"
    evaluate_function: ClassVar[str] = "dft_trl.run:evaluator"
    held_out: ClassVar[str] = "`dataset_test_split: test`, a split of the data"
    # Of messages it trains the questions, too, where `assistant_only_loss` is off.
    form_of_chats: ClassVar[Literal["messages", "prompt-completion"]] = "prompt-completion"
    rules: ClassVar[Sequence[Rule]] = conflicts.RULES

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """TRL names its model `model_name_or_path` and its data `dataset_name` or `datasets`."""
        has_data = "dataset_name" in config or "datasets" in config
        return "model_name_or_path" in config and has_data and not _OTHER_HOSTS & config.keys()

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """TRL's own loss, in whichever form."""
        return conflicts.superseded(config, settings.describe())

    def trains_adapters(self, config: Mapping[str, Any]) -> bool:
        """TRL has a switch for it."""
        return is_on(config.get("use_peft"))

    def known_keys(self) -> frozenset[str] | None:
        """Those of TRL's parser, and of accelerate's."""
        from dft_trl.launch import known_keys

        return known_keys()

    def reading(self, folder: str, splits: Sequence[str], config: Mapping[str, Any]) -> Mapping[str, Any]:
        """TRL takes rows that are tokenised as they are, their labels too."""
        data = {"dataset_name": folder, "dataset_train_split": "train"}
        test = {"dataset_test_split": "test"} if "test" in splits else {}
        gone = {key: None for key in ("datasets", "dataset_config", "dataset_streaming") if key in config}
        # The labels say it by now, and TRL would look for chats.
        only = {"assistant_only_loss": False} if is_on(config.get("assistant_only_loss")) else {}
        # They are shuffled by now, as the run would have them.
        shuffled = {"shuffle_dataset": False} if is_on(config.get("shuffle_dataset")) else {}
        return {**data, **test, **only, **shuffled, **gone}

    def trainer_hook(self, trainer: object) -> type[TrainerHook] | None:
        """Return TrlHook for an SFTTrainer, but for one that Unsloth has made; refuse trainers of other kinds.

        Raises:
            ConflictError: the trainer has a loss of its own, or TRL is too old.
        """
        conflicts.refuse_other_losses(trainer)
        hook = super().trainer_hook(trainer)
        return None if unsloth.is_loaded() else hook

    def attach_problem(self, model: object) -> str | None:
        """SFTTrainer has given its model a forward that scores log-probabilities by itself, and sums those up."""
        return conflicts.attach_problem(model)
