"""Axolotl's plugin for `loss: dft`: `plugins: [dft_axolotl.DFTPlugin]`.

Axolotl swallows an ImportError while it loads a plugin, and trains plain cross-entropy. So this module imports
nothing, and what fails later is turned into an error that stops the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dft_axolotl.plugin import DFTPlugin

__all__ = ["DFTPlugin"]


def __getattr__(name: str) -> Any:
    if name != "DFTPlugin":
        raise AttributeError(f"module 'dft_axolotl' has no attribute {name!r}. Write `dft_axolotl.DFTPlugin`.")
    try:
        from dft_axolotl.plugin import DFTPlugin
    except ImportError as error:
        # No DftError: dft_plugin may be the very package that is missing.
        raise RuntimeError(
            f"dft_axolotl.DFTPlugin cannot be loaded ({error}), so `loss:` would not take effect. Reinstall it beside "
            "Axolotl (pip install dft-plugin), or remove it from `plugins:`."
        ) from error
    return DFTPlugin
