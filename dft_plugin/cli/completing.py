"""What a shell offers behind a word that is begun. It loads neither torch nor a host."""

from __future__ import annotations

from dft_plugin.config.overrides import LOSS
from dft_plugin.config.plugins import build_manager, registered_names
from dft_plugin.config.settings import OWN_KEYS
from dft_plugin.objectives import FAMILY


def losses(incomplete: str) -> list[str]:
    """Complete the name of a loss."""
    return _beginning(incomplete, registered_names(build_manager(), "register_objectives"))


def hosts(incomplete: str) -> list[str]:
    """Complete the name of a host."""
    return _beginning(incomplete, registered_names(build_manager(), "register_hosts"))


def overrides(incomplete: str) -> list[str]:
    """Complete what changes the loss: `loss=NAME`, `loss.OPTION=`; other keys are the host's."""
    if incomplete.startswith(f"{LOSS}="):
        return [f"{LOSS}={name}" for name in losses(incomplete.partition("=")[2])]
    options = dict.fromkeys([*OWN_KEYS, *(name for kind in FAMILY for name in kind.model_fields)])
    return _beginning(incomplete, [f"{LOSS}=", *(f"{LOSS}.{name}=" for name in options)])


def _beginning(incomplete: str, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
