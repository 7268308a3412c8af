"""TRL as a host: which YAML is TRL's, what in it is in the way, how it is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dft_plugin.config import rules
from dft_plugin.config.hosts import Conflict, Host, Launch
from dft_trl import conflicts, which

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings
    from dft_plugin.hf.trainer import TrainerHook

_OTHER_HOSTS = frozenset({"base_model", "stage", "finetuning_type", "template", "dataset_dir"})
"""Keys that Axolotl or LLaMA-Factory need and TRL does not have."""


class TrlHost(Host):
    """`trl sft --config`: script arguments, SFTConfig and ModelConfig in one flat YAML."""

    name: ClassVar[str] = "trl"
    distribution: ClassVar[str] = "trl"
    tested: ClassVar[str] = ">=1.16,<1.17"
    install: ClassVar[str] = "pip install 'dft-plugin[trl]' 'trl>=1.16,<1.17'"
    trainer_class: ClassVar[str | None] = "trl.trainer.sft_trainer:SFTTrainer"
    hook_class: ClassVar[str | None] = "dft_trl.trainer:TrlHook"

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """TRL names its model `model_name_or_path` and its data `dataset_name` or `datasets`."""
        has_data = "dataset_name" in config or "datasets" in config
        return "model_name_or_path" in config and has_data and not _OTHER_HOSTS & config.keys()

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what TrlHook would refuse, as far as the YAML shows it."""
        return rules.find(conflicts.RULES, config)

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """TRL's own loss, in whichever form."""
        return conflicts.superseded(config, settings.describe())

    def trains_adapters(self, config: Mapping[str, Any]) -> bool:
        """TRL has a switch for it."""
        return rules.is_on(config.get("use_peft"))

    def launch(self, launch: Launch) -> int:
        """Start as `trl sft` does."""
        from dft_trl.launch import start

        return start(launch)

    def show_trainer(self, launch: Launch, columns: Sequence[str], take: Callable[[Any], None]) -> None:
        """Run TRL's own script up to its trainer."""
        from dft_trl.showing import show

        show(launch, columns, take)

    def reading(self, folder: str, splits: Sequence[str], config: Mapping[str, Any]) -> Mapping[str, Any]:
        """TRL takes rows that are tokenised as they are, their labels too."""
        data = {"dataset_name": folder, "dataset_train_split": "train"}
        test = {"dataset_test_split": "test"} if "test" in splits else {}
        gone = {key: None for key in ("datasets", "dataset_config", "dataset_streaming") if key in config}
        # The labels say it by now, and TRL would look for chats.
        only = {"assistant_only_loss": False} if rules.is_on(config.get("assistant_only_loss")) else {}
        # They are shuffled by now, as the run would have them.
        shuffled = {"shuffle_dataset": False} if rules.is_on(config.get("shuffle_dataset")) else {}
        return {**data, **test, **only, **shuffled, **gone}

    def trainer_hook(self, trainer: object) -> type[TrainerHook] | None:
        """Return TrlHook for an SFTTrainer; refuse TRL's trainers of other kinds.

        Raises:
            ConflictError: the trainer has a loss of its own, or TRL is too old.
        """
        which.refuse_other_losses(trainer)
        return super().trainer_hook(trainer)

    def attach_problem(self, model: object) -> str | None:
        """SFTTrainer has given its model a forward that scores log-probabilities by itself, and sums those up."""
        return which.attach_problem(model)
