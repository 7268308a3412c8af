"""`use_ray`: workers that cannot train the loss stop the run.

Axolotl sends them its config, in which our plugin stands, and the name of a function of its own. Up to 0.20 that goes
on where a plugin cannot be imported, and its schema, without the plugin, drops `loss`: cross-entropy would be trained.
"""

from __future__ import annotations

import sys
from typing import Any

from dft_plugin.config.sending import sent

_FUNCTION = "ray_train_func"
"""What Axolotl has Ray call on each worker."""

_BEFORE = "ray_train_func_before_dft"


def require_loss_on_workers() -> None:
    """Have the run that goes on in this process send a function of ours to its workers, which calls Axolotl's."""
    # `python -m axolotl.cli.train` has a copy of it.
    for name in ("axolotl.cli.train", "__main__"):
        module = vars(sys.modules[name]) if name in sys.modules else {}
        if _FUNCTION in module and _BEFORE not in module:
            module[_BEFORE] = module[_FUNCTION]
            module[_FUNCTION] = sent("dft_axolotl.workers:train")


def train(config: dict[str, Any]) -> None:
    """Train on a worker what Axolotl has sent. The config's plugin puts the loss on its trainer."""
    from axolotl.cli import train as module

    # This process may have started a run by itself.
    vars(module).get(_BEFORE, module.ray_train_func)(config)
