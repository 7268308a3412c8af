"""What `dft autoload` and `dft train` do to Axolotl: register our plugin where a config has `loss:`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from dft_axolotl.conflicts import PLUGIN, dotted
from dft_axolotl.reading import require_read
from dft_plugin.config.reading import loss_of
from dft_plugin.config.refusals import without_traceback
from dft_plugin.errors import PluginError


def patch(module: ModuleType) -> None:
    """Replace `prepare_plugins` of `axolotl.cli.config`, which sees every config before it is validated."""
    vars(module)["prepare_plugins"] = with_plugin(module)


def with_plugin(module: ModuleType, loss: Any = None) -> Callable[[Any], None]:
    """Wrap `prepare_plugins` such that it registers our plugin.

    Args:
        module: axolotl.cli.config.
        loss: what stands after `loss:`, instead of what the config says.

    Raises:
        PluginError: this version of Axolotl has no such function.
        SettingsError: when it is called, of a config whose `loss:` has no value, or of a loss on Axolotl's command
            line that it has not read.
    """
    if not hasattr(module, "prepare_plugins"):
        raise PluginError(
            f"{module.__name__} has no `prepare_plugins`: this version of Axolotl was not tested. Add `plugins: "
            f"[{PLUGIN}]` to the config, or see `dft hosts`."
        )
    plain = module.prepare_plugins

    def prepare_plugins(cfg: Any) -> None:
        without_traceback("axolotl")
        chosen = loss_of(cfg) if loss is None else loss
        if chosen is None:
            require_read(cfg, sys.argv)
            plain(cfg)
            return
        cfg["loss"] = chosen
        # Under one name, and once: up to 0.20 Axolotl takes no colon.
        listed = (PLUGIN if dotted(name) == PLUGIN else name for name in cfg.get("plugins") or [])
        cfg["plugins"] = list(dict.fromkeys([*listed, PLUGIN]))
        plain(cfg)
        from axolotl.integrations.base import PluginManager

        if PLUGIN not in PluginManager.get_instance().plugins:
            raise PluginError(
                f"Axolotl did not load {PLUGIN}, so `loss: {chosen}` would not take effect. The reason stands above."
            )

    return prepare_plugins
