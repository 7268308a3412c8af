"""The record of what a verl run trained: beside its checkpoints and its log, read when one of them is gone on from."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from verl.utils.checkpoint.checkpoint_handler import extract_step
from verl.utils.tracking import Tracking

from dft_plugin.config.record import Record
from dft_plugin.core.plan import LossPlan
from dft_plugin.hf import resuming
from dft_plugin.hf.record import further, keep, record_of_plan

_COMPUTED = {"path": "log p"}
"""verl makes log p, by whatever engine."""


class Recorder:
    """Keeps the record of one run.

    Args:
        trainer: verl's.
        plan: what it trains, its words for tokens turned into ids.
    """

    def __init__(self, trainer: Any, plan: LossPlan) -> None:
        host = {"name": "verl", "version": metadata.version("verl"), "trainer": type(trainer).__name__}
        self._plan = plan
        # Under Ray the one process that has a trainer.
        self._is_first = getattr(trainer, "rank", 0) == 0
        self._log: list[Path] = []
        self.record: Record = record_of_plan(plan, host)

    def follow(self, handler: Any) -> None:
        """Have verl's checkpoint handler ask us before it loads a checkpoint, and write beside each that it saves."""
        choose, engine = handler._determine_resume_path, handler.engine
        # Not the handler's own method: what that has saved is then copied, to HDFS say.
        save = engine.save_checkpoint

        def determine_resume_path() -> str | None:
            chosen: str | None = choose()
            step = None if chosen is None else extract_step(chosen)
            # verl begins anew where a folder says no step.
            if chosen is not None and step is not None:
                self.record = resuming.go_on(self.record, self._plan, chosen, step, speaks=self._is_first)
            return chosen

        def save_checkpoint(local_path: str, *args: Any, **named: Any) -> Any:
            saved = save(local_path, *args, **named)
            # The second holds tokenizer and config, and the model where verl is told to save one.
            folders = [Path(local_path), Path(local_path, "huggingface")] if self._is_first else []
            keep(self.record, [*folders, *self._log])
            return saved

        handler._determine_resume_path, engine.save_checkpoint = determine_resume_path, save_checkpoint

    def note(self, step: int, last_step: int) -> None:
        """Note how far the run is: `step` of `last_step` steps were done."""
        self.record = further(self.record, _COMPUTED, step, last_step)

    def begin_log(self, tracking: Tracking) -> None:
        """Write the record beside TensorBoard's files, by which runs are compared. The process that logs calls it."""
        board = tracking.logger.get("tensorboard")
        if board is not None and not self._log:
            self._log = [Path(board.writer.log_dir)]
            keep(self.record, self._log)
