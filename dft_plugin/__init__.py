"""Dynamic Fine-Tuning (arXiv 2508.05629) for the trainers that people already use.

Public names are loaded on first use; `import dft_plugin` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dft_plugin.config.hookspecs import hookimpl
    from dft_plugin.core.targets import Facts
    from dft_plugin.errors import (
        ClockError,
        ConflictError,
        DftError,
        InputError,
        LabelError,
        NonFiniteError,
        NotActiveError,
        PluginError,
        SettingsError,
        ShardError,
        UnknownNameError,
        UnsupportedModelError,
    )
    from dft_plugin.functional import (
        linear_token_loss,
        token_loss,
        token_loss_from_logp,
        vocab_parallel_token_loss,
    )
    from dft_plugin.hf.activation import activate, attach
    from dft_plugin.hf.attachment import Attachment
    from dft_plugin.objectives import Clock, Number, Objective, Rows

__version__ = "0.1.0"

_HOME = {
    "Attachment": "hf.attachment",
    "Clock": "objectives",
    "ClockError": "errors",
    "ConflictError": "errors",
    "DftError": "errors",
    "Facts": "core.targets",
    "InputError": "errors",
    "LabelError": "errors",
    "NonFiniteError": "errors",
    "NotActiveError": "errors",
    "Number": "objectives",
    "Objective": "objectives",
    "PluginError": "errors",
    "Rows": "objectives",
    "SettingsError": "errors",
    "ShardError": "errors",
    "UnknownNameError": "errors",
    "UnsupportedModelError": "errors",
    "activate": "hf.activation",
    "attach": "hf.activation",
    "hookimpl": "config.hookspecs",
    "linear_token_loss": "functional",
    "token_loss": "functional",
    "token_loss_from_logp": "functional",
    "vocab_parallel_token_loss": "functional",
}

__all__ = [
    "Attachment",
    "Clock",
    "ClockError",
    "ConflictError",
    "DftError",
    "Facts",
    "InputError",
    "LabelError",
    "NonFiniteError",
    "NotActiveError",
    "Number",
    "Objective",
    "PluginError",
    "Rows",
    "SettingsError",
    "ShardError",
    "UnknownNameError",
    "UnsupportedModelError",
    "__version__",
    "activate",
    "attach",
    "hookimpl",
    "linear_token_loss",
    "token_loss",
    "token_loss_from_logp",
    "vocab_parallel_token_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dft_plugin' has no attribute {name!r}")
    return getattr(import_module(f"dft_plugin.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
