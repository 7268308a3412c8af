"""Dynamic Fine-Tuning (arXiv 2508.05629) for the trainers that people already use.

Public names are loaded on first use; `import dft_plugin` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dft_plugin.config.hookspecs import hookimpl
    from dft_plugin.core.targets import Facts
    from dft_plugin.functional import linear_token_loss, token_loss, vocab_parallel_token_loss
    from dft_plugin.hf.activation import activate, attach
    from dft_plugin.hf.attachment import Attachment
    from dft_plugin.objectives import Clock, Number, Objective, Rows

__version__ = "0.1.0"

_HOME = {
    "Attachment": "hf.attachment",
    "Clock": "objectives",
    "Facts": "core.targets",
    "Number": "objectives",
    "Objective": "objectives",
    "Rows": "objectives",
    "activate": "hf.activation",
    "attach": "hf.activation",
    "hookimpl": "config.hookspecs",
    "linear_token_loss": "functional",
    "token_loss": "functional",
    "vocab_parallel_token_loss": "functional",
}

__all__ = [
    "Attachment",
    "Clock",
    "Facts",
    "Number",
    "Objective",
    "Rows",
    "__version__",
    "activate",
    "attach",
    "hookimpl",
    "linear_token_loss",
    "token_loss",
    "vocab_parallel_token_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dft_plugin' has no attribute {name!r}")
    return getattr(import_module(f"dft_plugin.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
