"""ms-swift's documented door: `external_plugins: [this file]` and `callbacks: [dft]`.

The loss is what stands in the environment variable DFT_LOSS (`ENV: {DFT_LOSS: "{name: dft, alpha: 0.7}"}` in the
YAML), or `dft`. A file of one's own can say it in Python: `from dft_swift.plugin import register`, `register("nll")`.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from swift.callbacks import TrainerCallback, callbacks_map
from swift.trainers.mixin import SwiftMixin

from dft_plugin.config.refusals import without_traceback
from dft_plugin.errors import NotActiveError
from dft_plugin.hf.activation import activate
from dft_plugin.hf.callbacks import is_active
from dft_swift import arguments

VARIABLE = "DFT_LOSS"


def register(loss: Any, name: str = "dft") -> None:
    """Make a callback of ms-swift that puts a loss on the trainer it belongs to.

    Args:
        loss: what stands after `loss:`.
        name: what `callbacks:` calls it.
    """

    class Activate(TrainerCallback):  # type: ignore[misc]  # of a package without types
        def on_init_end(self, *args: Any, **kwargs: Any) -> None:
            activate(self.trainer, loss)

    callbacks_map[name] = Activate


def _guard() -> None:
    """Stop a run that names this file, and no callback of it: nothing else would say that its loss is off."""
    plain = SwiftMixin.train

    @functools.wraps(plain)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_active(self):
            raise NotActiveError(
                "`external_plugins` names dft_swift's plugin.py, and no callback has put its loss on the trainer: "
                "training would be without it. Add `callbacks: [dft]`, or leave the file out."
            )
        return plain(self, *args, **kwargs)

    SwiftMixin.train = train


without_traceback("swift")
_guard()
register(arguments.parsed(os.environ.get(VARIABLE, "dft")))
