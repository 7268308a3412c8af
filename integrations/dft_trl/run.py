"""TRL's own `sft` script with the loss active; what `dft train` lets accelerate start on each rank.

accelerate launch run.py --dft-settings '{"name": "dft"}' --config sft.yaml [--key=value ...]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import trl
from trl.scripts import sft

from dft_plugin import activate


def main(argv: list[str]) -> None:
    """Parse as `trl sft` does, and train with an SFTTrainer that activates the loss on itself."""
    at = argv.index("--dft-settings")
    settings = json.loads(argv[at + 1])

    class ActiveSFTTrainer(trl.SFTTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            activate(self, settings)

    # TRL names the trainer's class in the model card and in its tags.
    ActiveSFTTrainer.__name__ = ActiveSFTTrainer.__qualname__ = "SFTTrainer"
    parser = sft.make_parser()
    parsed = parser.parse_args_and_config(argv[:at] + argv[at + 2 :], fail_with_unknown_args=False)
    # The script imports the class from `trl` when it runs.
    vars(trl)["SFTTrainer"] = ActiveSFTTrainer
    sft.main(*parsed)


if __name__ == "__main__":
    main(sys.argv[1:])
