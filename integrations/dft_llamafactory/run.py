"""LLaMA-Factory's training with the loss active; what `dft train` starts on each rank.

python -m dft_llamafactory.run [--dft-settings '{"name": "dft"}'] cfg.yaml [key=value ...]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from dft_llamafactory import arguments, conflicts
from dft_plugin.errors import SettingsError


def main(words: Sequence[str]) -> None:
    """Train as `llamafactory-cli train` does in one process.

    Args:
        words: of the command line; without `--dft-settings` the config's own `loss:` holds, for launchers of one's
            own (`accelerate launch -m dft_llamafactory.run sft.yaml`).

    Raises:
        SettingsError: there is no loss to train with.
    """
    words = list(words)
    settings = None
    if _SETTINGS in words:
        at = words.index(_SETTINGS)
        settings = json.loads(words[at + 1])
        del words[at : at + 2]
    request = arguments.read(words)
    if settings is not None:
        request = replace(request, loss=settings)
    if request.loss is None:
        raise SettingsError(["no `loss:` was given. Add the line `loss: dft` to the config."])
    if conflicts.uses_v1(os.environ):
        from llamafactory.v1.trainers.sft_trainer import run_sft

        from dft_llamafactory import install_v1

        install_v1.run_with_loss(run_sft, request)
    else:
        from llamafactory.train.tuner import run_exp

        from dft_llamafactory import install

        install.run_with_loss(run_exp, request)


_SETTINGS = "--dft-settings"


if __name__ == "__main__":
    main(sys.argv[1:])
