"""Axolotl's plugin for `loss: dft`: `plugins: [dft_axolotl.DFTPlugin]`; from Axolotl 0.21 it is found by itself.

Axolotl goes on without a plugin that cannot be loaded: up to 0.20 where an ImportError says so, since then whatever
was raised, if it is a plugin that an installed package has announced. `loss:` would be a key that nobody knows, and
cross-entropy would be trained. So this module imports nothing, and if the plugin is broken there is one in its place
that stops a run with `loss:`.
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
    except Exception as error:
        return _stopping(error)
    return DFTPlugin


def _stopping(reason: Exception) -> Any:
    """Make a plugin that stops each run that asks for a loss, or for this plugin."""
    # Who asks for a plugin has it.
    from axolotl.integrations.base import BasePlugin

    class Broken(BasePlugin):  # type: ignore[misc]
        def register(self, cfg: Any) -> None:
            if cfg.get("loss") is not None or "dft_axolotl" in str(cfg.get("plugins")):
                # No DftError: dft_plugin may be the very package that is missing.
                raise broken(reason) from reason

    return Broken


def broken(reason: Exception) -> RuntimeError:
    """Return the error for an installation with which `loss:` cannot be honoured."""
    return RuntimeError(
        f"dft_axolotl.DFTPlugin cannot be loaded ({reason}), so `loss:` would not take effect. Reinstall it beside "
        "Axolotl (pip install dft-plugin), or remove `loss:` and the plugin."
    )
