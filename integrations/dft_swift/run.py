"""ms-swift's training: with the loss active, as `dft train` starts it on each rank, or up to its trainer.

python -m dft_swift.run [--dft-settings '{"name": "dft"}'] [cfg.yaml] [--key value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from dft_plugin.config import handover
from dft_plugin.config.checks import refuse
from dft_plugin.config.hosts import Launch
from dft_plugin.config.rules import find
from dft_plugin.errors import ConflictError, NotActiveError, SettingsError
from dft_swift import arguments, conflicts
from dft_swift.host import SwiftHost

_WHY = (
    "training would begin without the loss that `loss:` asks for: ms-swift made a {made}, which is not its "
    "Seq2SeqTrainer. Nothing was updated. Leave out `loss:`, or report the configuration."
)


def run_with_loss(main: Callable[..., Any], argv: Sequence[str], loss: Any) -> Any:
    """Run one of ms-swift's main functions with the loss that was asked for.

    Args:
        main: `sft_main` or `pretrain_main`.
        argv: ms-swift's words.
        loss: what stands after `loss:`.

    Returns:
        What `main` returns.

    Raises:
        ConflictError: the loss could not take effect; nothing was started.
        NotActiveError: the run would train, or has trained, without it.
    """
    config = arguments.config_of(argv)
    refuse(SwiftHost(), config, loss, find(conflicts.RULES, config))
    from swift.trainers.seq2seq_trainer import Seq2SeqTrainer

    from dft_plugin.hf.run import activating

    with activating(Seq2SeqTrainer, loss) as made, _only(made):
        return main(list(argv))


@contextmanager
def _only(made: Sequence[Any]) -> Iterator[None]:
    """Let ms-swift train no trainer but those that have the loss."""
    from swift.pipelines.train.sft import SwiftSft

    plain = SwiftSft.train

    def train(self: Any, trainer: Any) -> Any:
        if not any(trainer is one for one in made):
            raise NotActiveError(_WHY.format(made=type(trainer).__name__))
        return plain(self, trainer)

    with handover.swapped(SwiftSft, "train", train):
        yield


def show(launch: Launch, columns: Sequence[str]) -> Any:
    """Return a trainer that is made as ms-swift's command does, each row one; it writes into no folder of a run.

    Raises:
        ConflictError: the rows are to carry columns, which ms-swift's templates do not.
    """
    with TemporaryDirectory() as folder:
        # It writes its arguments before it makes a trainer.
        elsewhere = {"output_dir": folder, "add_version": "false"}
        return _first_trainer(launch, columns, {**elsewhere, "packing": "false", "padding_free": "false"})


def evaluator(launch: Launch, columns: Sequence[str]) -> Any:
    """Return a trainer that is made as ms-swift's command does, to evaluate a loss and not to generate.

    Raises:
        ConflictError: the rows are to carry columns, which ms-swift's templates do not.
    """
    return _first_trainer(launch, columns, {"predict_with_generate": "false"})


def _first_trainer(launch: Launch, columns: Sequence[str], changed: Mapping[str, str]) -> Any:
    if columns:
        raise ConflictError([str(conflicts.COLUMNS)])
    from swift.cli.main import parse_yaml_args
    from swift.pipelines.train.sft import sft_main
    from swift.trainers.seq2seq_trainer import Seq2SeqTrainer

    from dft_plugin.hf.run import first_trainer

    words = [launch.config_path]
    parse_yaml_args(words)
    _, words = arguments.take(words)
    for key, text in {**dict(launch.overrides), **changed, "push_to_hub": "false"}.items():
        words += arguments.words_of(key, text)
    alone = arguments.without(words, ("deepspeed", "fsdp", "fsdp_config"))
    return first_trainer(Seq2SeqTrainer, lambda: sft_main(alone), ())


def main(argv: Sequence[str]) -> None:
    """Train as `swift sft` does in one process.

    Args:
        argv: of the command line; where it carries no loss, the YAML's own `loss:` holds, or `--loss`, for launchers
            of one's own (`accelerate launch -m dft_swift.run sft.yaml`).

    Raises:
        SettingsError: there is no loss to train with.
    """
    from swift.cli.main import parse_yaml_args
    from swift.cli.utils import try_use_single_device_mode

    given, words = handover.take(argv)
    parse_yaml_args(words)
    written, words = arguments.take(words)
    loss = written if given is None else given
    if loss is None:
        raise SettingsError(["no `loss:` was given. Add the line `loss: dft` to the config."])
    # As ms-swift's own command: before torch looks for devices.
    try_use_single_device_mode()
    from swift.pipelines.train.sft import sft_main

    run_with_loss(sft_main, words, loss)


if __name__ == "__main__":
    from dft_plugin.hf.run import saying

    saying(main, sys.argv[1:])
