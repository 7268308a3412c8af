"""Axolotl as a host: which YAML is Axolotl's, what in it is in the way, how it is started."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dft_axolotl import conflicts
from dft_plugin.config.hosts import Conflict, Host, Launch

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings
    from dft_plugin.hf.trainer import TrainerHook


class AxolotlHost(Host):
    """`axolotl train`: one flat YAML, validated by Axolotl's schema."""

    name: ClassVar[str] = "axolotl"
    distribution: ClassVar[str] = "axolotl"
    tested: ClassVar[str] = ">=0.19,<0.20"
    install: ClassVar[str] = "pip install 'axolotl>=0.19,<0.20'"
    autoload_targets: ClassVar[Mapping[str, str]] = {"axolotl.cli.config": "dft_axolotl.autoload"}

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """Axolotl names its model `base_model`."""
        return "base_model" in config and bool({"datasets", "pretraining_dataset"} & config.keys())

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what the plugin would refuse."""
        return conflicts.conflicts(config)

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """The loss of the model, or what was put in its place; and what to look out for."""
        found = conflicts.superseded(config) or ["the model's cross-entropy"]
        return [*found, *conflicts.cautions(config)]

    def launch(self, launch: Launch) -> int:
        """Start as `axolotl train` does, with the launcher that the overrides name."""
        from dft_axolotl.launch import start

        return start(launch)

    def trainer_hook(self, trainer: object) -> type[TrainerHook] | None:
        """Return AxolotlHook for an AxolotlTrainer."""
        if "axolotl.core.trainers.base" not in sys.modules:
            return None
        from axolotl.core.trainers.base import AxolotlTrainer

        if not isinstance(trainer, AxolotlTrainer):
            return None
        from dft_axolotl.trainer import AxolotlHook

        return AxolotlHook
