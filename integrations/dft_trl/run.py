"""TRL's own `sft` script with the loss active; what `dft train` lets accelerate start on each rank.

accelerate launch run.py --dft-settings '{"name": "dft"}' --config sft.yaml [--key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trl import SFTTrainer
from trl.scripts import sft

from dft_plugin.config import handover
from dft_plugin.hf.run import activating, saying
from dft_trl.columns import carrying


def main(argv: Sequence[str]) -> None:
    """Parse as `trl sft` does, and train with an SFTTrainer on which the loss is active.

    Raises:
        SettingsError: there is no loss to train with.
    """
    loss, words = handover.demand(argv)
    parsed = sft.make_parser().parse_args_and_config(words, fail_with_unknown_args=False)
    with carrying(loss), activating(SFTTrainer, loss):
        sft.main(*parsed)


if __name__ == "__main__":
    saying(main, sys.argv[1:])
