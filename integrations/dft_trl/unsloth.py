"""Unsloth: it trains with TRL's SFTTrainer, which it rewrites in place. No TRL, no torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dft_plugin.config.hosts import Conflict, Host, Launch
from dft_plugin.errors import ConflictError

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings
    from dft_plugin.hf.trainer import TrainerHook

IN_PYTHON = (
    "Train in Python: `import unsloth`, `FastLanguageModel`, `SFTTrainer`, and then `dft_plugin.activate(trainer)`."
)

_SECTIONS = {"model", "data", "training", "lora", "logging"}
"""All keys that `unsloth train` knows at the top of its YAML; what stands below them is read as strictly."""


class UnslothHost(Host):
    """`unsloth train -c`: recognised, to say that the loss has no place in it. `activate` takes its trainers."""

    name: ClassVar[str] = "unsloth"
    distribution: ClassVar[str] = "unsloth"
    tested: ClassVar[str] = ">=2026.10.9,<2026.11"
    install: ClassVar[str] = "pip install 'unsloth>=2026.10.9,<2026.11' 'dft-plugin[trl]'"
    in_python: ClassVar[str] = IN_PYTHON
    trainer_class: ClassVar[str | None] = "trl.trainer.sft_trainer:SFTTrainer"
    hook_class: ClassVar[str | None] = "dft_trl.unsloth_trainer:UnslothHook"

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """Unsloth's YAML has sections; the name of the model stands beside them."""
        keys = config.keys()
        sections = any(isinstance(config.get(key), Mapping) for key in ("data", "training", "lora"))
        return sections and isinstance(config.get("model"), str) and keys <= _SECTIONS

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """There is no way of putting the loss on the trainer of `unsloth train`."""
        return [Conflict("loss", "`unsloth train` refuses keys that are not its own.", IN_PYTHON)]

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """Nothing, since it does not run."""
        return []

    def trainer_hook(self, trainer: object) -> type[TrainerHook] | None:
        """Return UnslothHook for an SFTTrainer once Unsloth has rewritten TRL."""
        return super().trainer_hook(trainer) if is_loaded() else None

    def launch(self, launch: Launch) -> int:
        """Refuse, as `conflicts` does."""
        raise ConflictError(list(map(str, self.conflicts({}))))


def is_loaded() -> bool:
    """Whether Unsloth has rewritten TRL in this process: it does so when it is imported."""
    return "unsloth" in sys.modules
