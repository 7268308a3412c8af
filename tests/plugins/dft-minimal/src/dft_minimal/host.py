"""minimal as a host: which YAML is its own, and what is said of it. Loads without the host and without torch."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dft_minimal.conflicts import RULES
from dft_plugin.config.hosts import Host
from dft_plugin.config.rules import Rule
from dft_plugin.config.settings import Settings


class MinimalHost(Host):
    """`python -m minimal.train CONFIG`."""

    name: ClassVar[str] = "minimal"
    distribution: ClassVar[str] = "dft-minimal"
    tested: ClassVar[str] = ">=1.0,<2"
    install: ClassVar[str] = "pip install 'dft-minimal>=1.0,<2'"
    rules: ClassVar[Sequence[Rule]] = RULES
    trainer_class: ClassVar[str | None] = "minimal.train:TokenTrainer"
    hook_class: ClassVar[str | None] = "dft_plugin.hf.trainer:TrainerHook"
    launch_function: ClassVar[str] = "dft_minimal.launch:start"
    show_function: ClassVar[str] = "dft_minimal.run:show"
    autoload_targets: ClassVar[Mapping[str, str]] = {"minimal.train": "dft_minimal.autoload"}

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """No other host has these two keys."""
        return {"model_dir", "token_file"} <= config.keys()

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """What the loss takes the place of."""
        return ["the model's cross-entropy"]

    def trains_adapters(self, config: Mapping[str, Any]) -> bool:
        """It has no LoRA."""
        return False

    def reading(self, folder: str, splits: Sequence[str], config: Mapping[str, Any]) -> Mapping[str, Any]:
        """It takes the folder that `dft reference` has written as it is."""
        return {"token_file": folder}
