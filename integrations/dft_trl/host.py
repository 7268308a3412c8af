"""TRL as a host: which YAML is TRL's, what in it is in the way, how it is started."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dft_plugin.config.hosts import Conflict, Host, Launch
from dft_trl.which import refuse_other_losses

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

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """TRL names its model `model_name_or_path` and its data `dataset_name` or `datasets`."""
        has_data = "dataset_name" in config or "datasets" in config
        return "model_name_or_path" in config and has_data and not _OTHER_HOSTS & config.keys()

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what TrlHook would refuse, as far as the YAML shows it."""
        found = []
        if float(config.get("label_smoothing_factor") or 0):
            found.append(
                Conflict(
                    "label_smoothing_factor",
                    "TRL would train smoothed cross-entropy.",
                    "Remove it, or set it to 0.",
                )
            )
        liger = config.get("liger_kernel_config") or {}
        if config.get("use_liger_kernel") and liger.get("fused_linear_cross_entropy"):
            found.append(
                Conflict(
                    "liger_kernel_config.fused_linear_cross_entropy",
                    "It replaces the model's forward when training starts.",
                    "Set it to false; Liger's layer kernels stay on.",
                )
            )
        return found

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """TRL's own loss, in whichever form."""
        loss_type = config.get("loss_type", "nll")
        wins = f"`loss: {settings.describe()}` wins over `loss_type: {loss_type}`"
        return [wins] if "loss_type" in config else ["TRL's fused LM head (loss_type: nll)"]

    def launch(self, launch: Launch) -> int:
        """Start as `trl sft` does: through accelerate, with what TRL does not know as its arguments."""
        from accelerate.commands.launch import launch_command, launch_command_parser
        from trl.cli.accelerate_config import resolve_accelerate_config_argument
        from trl.scripts.sft import make_parser

        script_args = ["--config", launch.config_path]
        words = {f"--{key}={text}": (key, text) for key, text in launch.overrides}
        *_, from_config, from_overrides = make_parser(prog="trl sft").parse_args_and_config(
            [*script_args, *words], return_remaining_strings=True, separate_remaining_strings=True
        )
        launch_args = _without_loss(from_config)
        for word, (key, text) in words.items():
            if word in from_overrides:
                launch_args += [f"--{key}", text]
            else:
                script_args.append(word)
        launch_args = resolve_accelerate_config_argument(launch_args)
        script = Path(__file__).with_name("run.py")
        settings = json.dumps(launch.settings.as_written())
        arguments = [*launch_args, str(script), "--dft-settings", settings, *script_args]
        sys.stdout.flush()
        try:
            launch_command(launch_command_parser().parse_args(arguments))
        except subprocess.CalledProcessError as error:
            # The run has said why; a traceback of its launcher would bury it.
            return error.returncode
        return 0

    def trainer_hook(self, trainer: object) -> type[TrainerHook] | None:
        """Return TrlHook for an SFTTrainer; refuse TRL's trainers of other kinds.

        Raises:
            ConflictError: the trainer has a loss of its own.
        """
        refuse_other_losses(trainer)
        if "trl" not in sys.modules:
            return None
        from trl import SFTTrainer

        if not isinstance(trainer, SFTTrainer):
            return None
        from dft_trl.trainer import TrlHook

        return TrlHook


def _without_loss(words: list[str]) -> list[str]:
    """Drop `--loss VALUE`, which TRL's parser did not know and accelerate would not either."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == "--loss":
            skip = True
        else:
            kept.append(word)
    return kept
