"""Axolotl as a host: which YAML is Axolotl's, what in it is in the way, how it is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dft_axolotl import conflicts
from dft_plugin.config.checks import obstacles
from dft_plugin.config.hosts import Choice, Conflict, Host, OwnCommand

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings


class AxolotlHost(Host):
    """`axolotl train`: one flat YAML, validated by Axolotl's schema."""

    name: ClassVar[str] = "axolotl"
    distribution: ClassVar[str] = "axolotl"
    tested: ClassVar[str] = ">=0.19,<0.22"
    install: ClassVar[str] = "pip install 'dft-plugin[axolotl]' 'axolotl>=0.19,<0.22'"
    autoload_targets: ClassVar[Mapping[str, str]] = {"axolotl.cli.config": "dft_axolotl.autoload"}
    own_command: ClassVar[OwnCommand | None] = OwnCommand(
        "axolotl train", "drops the line and trains plain SFT", f"list `plugins: [{conflicts.PLUGIN}]`"
    )
    keys_in: ClassVar[Sequence[str]] = (
        "axolotl/utils/schemas",
        "axolotl/integrations",
        "axolotl/cli",
        "accelerate/commands/launch.py",
    )
    trainer_class: ClassVar[str | None] = "axolotl.core.trainers.base:AxolotlTrainer"
    hook_class: ClassVar[str | None] = "dft_axolotl.trainer:AxolotlHook"
    launch_function: ClassVar[str] = "dft_axolotl.launch:start"
    show_function: ClassVar[str] = "dft_axolotl.run:show"
    # Its trainer packs by itself, in training and in evaluation, so that it is the same one.
    evaluate_function: ClassVar[str] = "dft_axolotl.run:show"
    held_out: ClassVar[str] = "`val_set_size: 0.05`, or `test_datasets:`"

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """Axolotl names its model `base_model`."""
        return "base_model" in config and bool({"datasets", "pretraining_dataset"} & config.keys())

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what the plugin would refuse."""
        return conflicts.find(config, self.installed_version())

    def loses_columns(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what makes batches in a way of its own."""
        return conflicts.losing_columns(config)

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """The loss of the model, or what was put in its place."""
        return conflicts.superseded(config) or ["the model's cross-entropy"]

    def cautions(self, config: Mapping[str, Any]) -> list[str]:
        """What other plugins do to an evaluation."""
        return conflicts.cautions(config)

    def chooses_by(self, config: Mapping[str, Any]) -> Choice | None:
        """Axolotl has a key of its own for early stopping, and drops `load_best_model_at_end` in places."""
        return conflicts.choice_of_best(config)

    def trains_adapters(self, config: Mapping[str, Any]) -> bool:
        """Axolotl names the method, or an adapter to continue."""
        return bool(config.get("adapter") or config.get("lora_model_dir"))

    def moves_base(self, config: Mapping[str, Any]) -> list[Conflict]:
        """Some methods merge the adapters into it."""
        return conflicts.moving_base(config)

    def honours(self, config: Mapping[str, Any]) -> bool:
        """Where the plugin is listed; 0.21 and newer find it by themselves."""
        return conflicts.lists_plugin(config) or conflicts.finds_plugin(self.installed_version())

    def takes_any_key(self, config: Mapping[str, Any]) -> bool:
        """Plugins that are not Axolotl's own bring keys."""
        return conflicts.lists_foreign_plugin(config)

    def known_keys(self) -> frozenset[str] | None:
        """Those of Axolotl's command line, and of its launchers'."""
        from dft_axolotl.launch import known_keys

        return known_keys()

    def reading(self, folder: str, splits: Sequence[str], config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Axolotl takes rows that are tokenised where no `type` is given; what it prepares of them goes with them."""
        named = {split: [{"path": folder, "split": split, "type": None}] for split in splits}
        test = {"test_datasets": named["test"], "val_set_size": 0} if "test" in splits else {}
        # They are shuffled by now, as the run would have them.
        shuffled = {"shuffle_merged_datasets": False}
        return {"datasets": named["train"], **test, "dataset_prepared_path": f"{folder}/prepared", **shuffled}


def problems_of(config: Mapping[str, Any]) -> list[str]:
    """List what is wrong with `loss:` in a config, and what in the config is in its way."""
    loss = config.get("loss")
    if loss is not None:
        host = AxolotlHost()
        return obstacles(host, config, loss, host.conflicts(config))
    if conflicts.lists_plugin(config):
        return [
            f"`plugins` lists {conflicts.PLUGIN}, but there is no `loss:`. Add the line `loss: dft`, or remove the "
            "plugin."
        ]
    return []
