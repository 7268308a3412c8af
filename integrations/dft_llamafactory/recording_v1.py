"""The record of what v1's trainer trained: beside its checkpoints and its model, read when one is gone on from."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from llamafactory.v1.accelerator.interface import DistributedInterface
from llamafactory.v1.core.utils import checkpoint as v1

from dft_plugin.hf import resuming
from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.probabilities import Probabilities
from dft_plugin.hf.record import grown, keep, record_of


class RecorderV1:
    """Keeps the record of one run.

    Attributes:
        probabilities: how many targets were how likely.

    Args:
        attachment: on the model, inside what v1 wraps around it.
        args: v1's training arguments.

    Raises:
        ConflictError: the run goes on from a checkpoint of another loss.
    """

    def __init__(self, attachment: Attachment, args: Any) -> None:
        self._attachment = attachment
        host = {"name": "llamafactory", "version": metadata.version("llamafactory"), "trainer": "v1 SFTTrainer"}
        self._record = record_of(attachment, host)
        self._is_first = DistributedInterface().get_rank() == 0
        asked = args.resume_from_checkpoint
        self.probabilities = Probabilities(lambda: args.output_dir if self._is_first else None)
        place = v1.resolve_resume_checkpoint_path(asked, args.output_dir) if asked else None
        if place is not None and Path(place).is_dir():
            step = int(v1.load_metadata(place)["global_step"])
            self._record = resuming.go_on(self._record, attachment.plan, place, step, speaks=self._is_first)
        self.probabilities.begin(resumed=place is not None)

    def follow(self, trainer: Any) -> None:
        """Write a record beside each checkpoint that a trainer saves."""
        keeper = trainer._checkpoint
        keeper.save = self._after(keeper.save, trainer)

    def _after(self, save: Callable[[int], None], trainer: Any) -> Callable[[int], None]:
        def save_and_record(epoch: int) -> None:
            save(epoch)
            folder = Path(trainer.args.output_dir, f"checkpoint-{trainer.global_step}")
            # The model, or the adapter, lies in folders of its own.
            self.write(trainer, folder, folder / "model", folder / "hf_model")

        return save_and_record

    def note(self, trainer: Any) -> None:
        """Note how far the run is, and how its loss is computed."""
        self._record = grown(self._record, self._attachment, trainer.global_step, trainer.num_training_steps)

    def write(self, trainer: Any, *folders: str | Path) -> None:
        """Write the record into those folders that are there, and complete their cards; the first rank does."""
        self.note(trainer)
        if self._is_first:
            keep(self._record, folders)
