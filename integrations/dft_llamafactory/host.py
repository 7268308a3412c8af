"""LLaMA-Factory as a host: which YAML is its own, what in it is in the way, how it is started."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dft_llamafactory import conflicts
from dft_plugin.config.hosts import Conflict, Host, Launch

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings
    from dft_plugin.hf.trainer import TrainerHook

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
        "llamafactory.v1.trainers.sft_trainer": "dft_llamafactory.autoload_v1",
        "llamafactory.v1.config.arg_parser": "dft_llamafactory.autoload_v1_args",
    }

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """LLaMA-Factory has a model, and a stage, a template or a data set that `dataset_info.json` names.

        Its v1 trainer names neither so; it has a `train_dataset`.
        """
        keys = config.keys()
        own = bool(_ITS_OWN & keys) if "model_name_or_path" in keys else "train_dataset" in keys
        return own and not _OTHER_HOSTS & keys

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """Look into the config and into the environment, where LLaMA-Factory has its larger switches."""
        if conflicts.uses_v1(os.environ):
            return conflicts.find_v1(config, self.installed_version())
        return conflicts.find(config, os.environ)

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """Its cross-entropy, in whichever form."""
        replaced = ["LLaMA-Factory's cross-entropy"]
        if conflicts.is_on(config.get("enable_liger_kernel", False)):
            replaced.append("Liger's fused loss (`enable_liger_kernel`); its layer kernels stay")
        kernels = config.get("kernel_config")
        if isinstance(kernels, Mapping) and kernels.get("name") == "liger_kernel" and kernels.get("include_kernels"):
            replaced.append("Liger's cross-entropy (`kernel_config`); its layer kernels stay")
        return replaced

    def launch(self, launch: Launch) -> int:
        """Start as `llamafactory-cli train` does: in this process, or through torchrun."""
        from dft_llamafactory import launcher

        settings = launch.settings.as_written()
        overrides = [f"{key}={text}" for key, text in launch.overrides]
        return launcher.start(["--dft-settings", json.dumps(settings), launch.config_path, *overrides])

    def trainer_hook(self, trainer: object) -> type[TrainerHook] | None:
        """Return LlamaFactoryHook for its SFT trainer."""
        module = sys.modules.get("llamafactory.train.sft.trainer")
        if module is None or not isinstance(trainer, module.CustomSeq2SeqTrainer):
            return None
        from dft_llamafactory.trainer import LlamaFactoryHook

        return LlamaFactoryHook
