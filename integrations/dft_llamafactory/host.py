"""LLaMA-Factory as a host: which YAML is its own, what in it is in the way, how it is started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dft_llamafactory import arguments, conflicts, conflicts_v1
from dft_plugin import __version__
from dft_plugin.config.hosts import Conflict, Host, OwnCommand

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings
    from dft_plugin.objectives import Objective

_ITS_OWN = frozenset({"stage", "finetuning_type", "template", "dataset", "dataset_dir"})
"""Keys that LLaMA-Factory has; no other host has one of them beside `model_name_or_path`."""

_OTHER_HOSTS = frozenset({"base_model", "dataset_name", "datasets"})
"""Keys of Axolotl or TRL that LLaMA-Factory does not have."""


class LlamaFactoryHost(Host):
    """`llamafactory-cli train cfg.yaml`: five groups of arguments in one flat YAML."""

    name: ClassVar[str] = "llamafactory"
    distribution: ClassVar[str] = "llamafactory"
    tested: ClassVar[str] = ">=0.9.4,<0.9.6"
    install: ClassVar[str] = "pip install 'dft-plugin[llamafactory]' 'llamafactory>=0.9.4,<0.9.6'"
    autoload_targets: ClassVar[Mapping[str, str]] = {
        "llamafactory.train.tuner": "dft_llamafactory.autoload",
        "llamafactory.v1.trainers.sft_trainer": "dft_llamafactory.autoload",
        "llamafactory.v1.config.arg_parser": "dft_llamafactory.autoload",
    }
    own_command: ClassVar[OwnCommand | None] = OwnCommand(
        "llamafactory-cli train", "refuses the line (with ALLOW_EXTRA_ARGS=1 it drops it)"
    )
    keys_in: ClassVar[Sequence[str]] = (
        "llamafactory/hparams",
        "llamafactory/v1/config",
        "transformers/training_args.py",
        "transformers/training_args_seq2seq.py",
    )
    trainer_class: ClassVar[str | None] = "llamafactory.train.sft.trainer:CustomSeq2SeqTrainer"
    hook_class: ClassVar[str | None] = "dft_llamafactory.trainer:LlamaFactoryHook"
    launch_function: ClassVar[str] = "dft_llamafactory.launch:start"
    show_function: ClassVar[str] = "dft_llamafactory.run:show"
    evaluate_function: ClassVar[str] = "dft_llamafactory.run:evaluator"
    held_out: ClassVar[str] = "`eval_dataset: NAME`, or `val_size: 0.05`"
    early_stopping: ClassVar[Sequence[str]] = ("early_stopping_steps",)

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """LLaMA-Factory has a model, and a stage, a template or a data set that `dataset_info.json` names.

        Its v1 trainer names neither so; it has a `train_dataset`.
        """
        keys = config.keys()
        own = bool(_ITS_OWN & keys) if "model_name_or_path" in keys else "train_dataset" in keys
        return own and not _OTHER_HOSTS & keys

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """Look into the config and into the environment, where LLaMA-Factory has its larger switches."""
        if conflicts_v1.uses_v1(os.environ):
            return conflicts_v1.find(config, self.installed_version())
        return conflicts.find(config, os.environ)

    def unsupported(self, settings: Settings, objectives: Sequence[Objective]) -> list[str]:
        """The v1 trainer's ranks cannot agree before its optimizer steps."""
        if not conflicts_v1.uses_v1(os.environ) or settings.nonfinite == "warn":
            return []
        return [conflicts_v1.nonfinite(settings.nonfinite)]

    def loses_columns(self, config: Mapping[str, Any]) -> list[Conflict]:
        """The v1 trainer has a data pipeline of its own; generating needs no loss, and no column."""
        if conflicts_v1.uses_v1(os.environ):
            return [conflicts_v1.COLUMNS]
        return conflicts.losing_columns(config)

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """Its cross-entropy, in whichever form."""
        return conflicts.superseded(config)

    def cautions(self, config: Mapping[str, Any]) -> list[str]:
        """What Ray's workers need."""
        if not conflicts.uses_ray(os.environ) or conflicts_v1.uses_v1(os.environ):
            return []
        return [f"`USE_RAY=1`: each worker needs dft-plugin {__version__} as well; one with another stops the run."]

    def trains_adapters(self, config: Mapping[str, Any]) -> bool:
        """LoRA is what it does where nothing is said; the v1 trainer names a method in a mapping."""
        if conflicts_v1.uses_v1(os.environ):
            return bool(config.get("peft_config"))
        return config.get("finetuning_type", "lora") not in ("full", "freeze")

    def known_keys(self) -> frozenset[str] | None:
        """The fields of its groups of arguments."""
        return arguments.known_keys(v1=conflicts_v1.uses_v1(os.environ))

    def reading(self, folder: str, splits: Sequence[str], config: Mapping[str, Any]) -> Mapping[str, Any]:
        """LLaMA-Factory takes rows that are tokenised from a folder of another form, which is written, too."""
        from dft_plugin.hf.shards import saved_to_disk

        # Its word for what is evaluated.
        return {"tokenized_path": str(saved_to_disk(Path(folder), splits, {"test": "validation"}))}
