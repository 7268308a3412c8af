"""The trainer that `trl sft` would begin with, for `dft reference`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trl import SFTTrainer
from trl.scripts import sft

from dft_plugin.config.hosts import Launch
from dft_plugin.errors import ConflictError
from dft_plugin.hf.beforehand import ALONE
from dft_plugin.hf.recording import Carried
from dft_plugin.hf.run import first_trainer
from dft_trl.columns import carrying


def show(launch: Launch, columns: Sequence[str], take: Callable[[Any], None]) -> None:
    """Make an SFTTrainer as TRL's script does, and hand it over.

    Raises:
        ConflictError: rows are cut where nobody knows beforehand.
    """
    words = ["--config", launch.config_path, *(f"--{key}={text}" for key, text in launch.overrides)]
    parsed = sft.make_parser().parse_args_and_config(words, fail_with_unknown_args=False)
    _leave_unpacked(parsed[1])
    with carrying(Carried(names=tuple(columns))):
        trainer = first_trainer(SFTTrainer, lambda: sft.main(*parsed))
    take(trainer)


def _leave_unpacked(args: Any) -> None:
    """Change TRL's arguments such that each row stays one, cut as a packed one would be."""
    if args.deepspeed or args.fsdp:
        raise ConflictError([ALONE])
    if args.packing and args.packing_strategy != "bfd":
        raise ConflictError(
            [
                f"`packing_strategy: {args.packing_strategy}` cuts rows and goes on with the rest elsewhere, so that "
                "nobody knows beforehand what a token stands behind, and what a reference says of it. Set "
                "`packing_strategy: bfd`."
            ]
        )
    if args.packing:
        args.truncation_mode = "keep_start"
    args.packing = args.eval_packing = args.padding_free = False
    args.push_to_hub = False
