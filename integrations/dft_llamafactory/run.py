"""LLaMA-Factory's training with the loss active; what `dft train` starts on each rank.

python -m dft_llamafactory.run --dft-settings '{"name": "dft"}' cfg.yaml [key=value ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from dft_llamafactory import arguments
from dft_llamafactory.install import run_with_loss


def main(words: Sequence[str]) -> None:
    """Train as `llamafactory-cli train` does in one process."""
    from llamafactory.train.tuner import run_exp

    words = list(words)
    at = words.index("--dft-settings")
    settings = json.loads(words[at + 1])
    request = arguments.read(words[:at] + words[at + 2 :])
    run_with_loss(run_exp, replace(request, loss=settings))


if __name__ == "__main__":
    main(sys.argv[1:])
