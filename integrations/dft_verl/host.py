"""verl as a host: which YAML is its own, what in it is in the way, how it is started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dft_plugin.config.hosts import Choice, Conflict, Host, OwnCommand
from dft_verl import conflicts, resolving

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings
    from dft_plugin.objectives import Objective

SFT_CONFIG = "sft_trainer_engine"
"""verl's own config, which a user's one builds on."""

_GROUPS = frozenset({"data", "model", "engine", "optim", "trainer", "checkpoint", "actor_rollout_ref"})
"""Keys of verl's configs that hold mappings."""


class VerlHost(Host):
    """`python -m verl.trainer.sft_trainer`: a config of hydra's, and overrides of it."""

    name: ClassVar[str] = "verl"
    distribution: ClassVar[str] = "verl"
    tested: ClassVar[str] = ">=0.9.1,<0.10"
    install: ClassVar[str] = "pip install 'dft-plugin[verl]' 'verl>=0.9.1,<0.10'"
    own_command: ClassVar[OwnCommand | None] = OwnCommand("python -m verl.trainer.sft_trainer", "refuses the line")
    runs_kernels: ClassVar[bool] = False
    launch_function: ClassVar[str] = "dft_verl.launch:start"

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """A config that builds on verl's own, or has two of its groups."""
        groups = [key for key in _GROUPS if isinstance(config.get(key), Mapping)]
        return builds_on(config, SFT_CONFIG) or len(groups) > 1

    def resolved(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Look up references as omegaconf does it, within this file and in the environment."""
        return resolving.resolved(config)

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """Look into the config, and into the environment for verl's switch of plugins."""
        found = conflicts.find(config, os.environ)
        if not found and not builds_on(config, SFT_CONFIG) and "optim" not in config:
            found.append(
                Conflict(
                    "defaults",
                    "without verl's own config below it this one is not whole.",
                    f"Begin it with `defaults: [{SFT_CONFIG}, _self_]`.",
                )
            )
        return found

    def unsupported(self, settings: Settings, objectives: Sequence[Objective]) -> list[str]:
        """What needs more than log p, or more than one part of a step."""
        return conflicts.unsupported(settings, objectives)

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """The likelihood of verl's SFT trainers."""
        return ["verl's sft_loss"]

    def cautions(self, config: Mapping[str, Any]) -> list[str]:
        """What may be in the way, and is not known before the run."""
        return [
            f"`{key}: {value}` is looked up in the run, which stops before anything is built if it is in the way."
            for key, value in conflicts.unknown_yet(config).items()
        ]

    def honours(self, config: Mapping[str, Any]) -> bool:
        """`import verl` loads us; where that is switched off, it is a conflict."""
        return True

    def chooses_by(self, config: Mapping[str, Any]) -> Choice | None:
        """Return nothing: it keeps the last checkpoints, not the best."""
        return None

    def trains_adapters(self, config: Mapping[str, Any]) -> bool:
        """LoRA has a rank, or is read from a folder."""
        model = config.get("model")
        return isinstance(model, Mapping) and bool(model.get("lora_rank") or model.get("lora_adapter_path"))


def builds_on(config: Mapping[str, Any], name: str) -> bool:
    """Say whether a config's list of defaults names another config."""
    defaults = config.get("defaults")
    return isinstance(defaults, Sequence) and name in defaults
