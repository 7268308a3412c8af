"""TRL's own `sft` script: with the loss active, or up to the trainer that it makes.

accelerate launch run.py --dft-settings '{"name": "dft"}' --config sft.yaml [--key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import yaml
from trl import SFTTrainer
from trl.scripts import sft

from dft_plugin.config import handover
from dft_plugin.config.hosts import Launch
from dft_plugin.config.rules import find
from dft_plugin.errors import ConflictError
from dft_plugin.hf.beforehand import ALONE
from dft_plugin.hf.run import first_trainer, saying, training
from dft_trl.columns import keeping
from dft_trl.conflicts import BEFOREHAND_RULES, NO_SPLIT


def main(argv: Sequence[str]) -> None:
    """Parse as `trl sft` does, and train with an SFTTrainer on which the loss is active: what runs on each rank.

    Raises:
        SettingsError: there is no loss to train with.
    """
    loss, words = handover.demand(argv)
    parsed = _parse(words)
    with training(SFTTrainer, loss, keeping):
        sft.main(*parsed)


def show(launch: Launch, columns: Sequence[str]) -> Any:
    """Return an SFTTrainer that is made as TRL's script does, but each row stays one, cut as a packed one would be.

    Raises:
        ConflictError: rows are cut where nobody knows beforehand, or the model is to be sharded.
    """
    parsed = _of_launch(launch)
    args = parsed[1]
    found = find(BEFOREHAND_RULES, vars(args), "{key}: {value}")
    if found:
        raise ConflictError(list(map(str, found)))
    if args.packing:
        args.truncation_mode = "keep_start"
    args.packing = args.eval_packing = args.padding_free = False
    return first_trainer(SFTTrainer, lambda: sft.main(*parsed), columns, keeping)


def evaluator(launch: Launch, columns: Sequence[str]) -> Any:
    """Return an SFTTrainer that is made as TRL's script does, with the split of the data to evaluate on.

    Raises:
        ConflictError: there is none of that name.
    """
    parsed = _of_launch(launch)
    split, args = parsed[0].dataset_test_split, parsed[1]
    if args.eval_strategy == "no":
        # TRL would not look for the split.
        args.eval_strategy = "steps"

    def run() -> None:
        try:
            sft.main(*parsed)
        except KeyError as error:
            if error.args != (split,):
                raise
            raise ConflictError([NO_SPLIT.format(config=launch.config_path, split=split)]) from error

    return first_trainer(SFTTrainer, run, columns, keeping)


def _of_launch(launch: Launch) -> Any:
    parsed = _parse(["--config", launch.config_path, *(f"--{key}={text}" for key, text in launch.overrides)])
    args = parsed[1]
    if args.deepspeed or args.fsdp:
        raise ConflictError([ALONE])
    args.push_to_hub = False
    return parsed


def _parse(words: Sequence[str]) -> Any:
    with handover.read_by_us(yaml):
        return sft.make_parser().parse_args_and_config(list(words), fail_with_unknown_args=False)


if __name__ == "__main__":
    saying(main, sys.argv[1:])
