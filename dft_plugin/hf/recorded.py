"""What was trained, kept beside what is saved: the methods of a trainer that save, and the events of its run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerCallback

from dft_plugin.config import record as records
from dft_plugin.config.handover import swapped
from dft_plugin.core.stats import LossStats
from dft_plugin.hf import card, resuming, trackers
from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.probabilities import Probabilities
from dft_plugin.hf.record import flat, grown, record_of
from dft_plugin.hf.wrapping import Wrapper, wrapped, wrapper_of
from dft_plugin.runs.probabilities import TRAINING
from dft_plugin.saying import spared

logger = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "adapter_config.json")
"""What tells that a folder holds a model already."""


class Recorder(TrainerCallback):
    """The record of one trainer's run, which grows with it.

    Attributes:
        record: see `dft_plugin.config.record`.
        probabilities: how many targets were how likely.
    """

    def __init__(self, trainer: Any, attachment: Attachment, host: Mapping[str, Any]) -> None:
        self._trainer = trainer
        self._attachment = attachment
        self._host = host
        self._told: dict[str, Any] | None = None
        self.record = record_of(attachment, host)
        self.probabilities = Probabilities(lambda: trainer.args.output_dir if trainer.args.should_save else None)

    def begin(self, checkpoint: str | os.PathLike[str] | None) -> None:
        """Begin a run anew, or go on from a checkpoint.

        Raises:
            ConflictError: it was trained with another loss.
        """
        self.record, self._told = record_of(self._attachment, self._host), None
        if checkpoint is not None:
            speaks = self._trainer.is_world_process_zero()
            step = _step_of(checkpoint)
            self.record = resuming.go_on(self.record, self._attachment.plan, checkpoint, step, speaks=speaks)
        self.probabilities.begin(resumed=checkpoint is not None)

    def note(self) -> None:
        """Note how the loss is computed, and how far the run is."""
        state = self._trainer.state
        self.record = grown(self.record, self._attachment, state.global_step, state.max_steps or None)
        state.stateful_callbacks = {
            **(state.stateful_callbacks or {}),
            records.STATE_KEY: records.as_state(self.record),
        }

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the record beside what was saved in a folder, and complete the card there."""
        if not self._trainer.args.should_save:
            return
        self.note()
        for place in (Path(folder), *self._adapters_in(Path(folder))):
            with spared(logger, place / records.FILE):
                records.write_beside_weights(place, self.record)
        self.complete(folder)

    def complete(self, folder: str | os.PathLike[str]) -> None:
        """Complete the card of a folder, if it has one."""
        if self._trainer.args.should_save:
            card.complete(Path(folder), self.record)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell trackers how the loss is computed, as soon as that is known, and when it changes."""
        self.note()
        passes = self.record["computed"]
        if not passes or passes[-1] == self._told:
            return
        found = self._told = passes[-1]
        if state.is_world_process_zero:
            told = {f"dft_loss_computed_{key}": str(found.get(key, "")) for key in ("path", "kernel", "rows", "why")}
            trackers.update(self._trainer.callback_handler.callbacks, told, state.global_step)
        # A host may save a model by itself when it is interrupted.
        if args.should_save and not _holds_model(Path(args.output_dir)):
            with spared(logger, Path(args.output_dir) / records.FILE):
                records.write(args.output_dir, self.record)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write it where hosts save the model when training is over, whether by the trainer or by themselves."""
        self.write(args.output_dir)
        self.probabilities.end()

    def _adapters_in(self, folder: Path) -> list[Path]:
        """Return the folders of trained adapters that PEFT saves below this one: those with a name but `default`."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        if not hasattr(model, "peft_config"):
            return []
        names = model.active_adapters() if callable(model.active_adapters) else model.active_adapters
        return [folder / name for name in names if (folder / name / "adapter_config.json").is_file()]


def _step_of(checkpoint: str | os.PathLike[str]) -> int:
    from transformers import TrainerState

    path = Path(checkpoint) / records.STATE_FILE
    try:
        return int(TrainerState.load_from_json(str(path)).global_step) if path.is_file() else 0
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        # The trainer reads it, too, and complains.
        return 0


def _holds_model(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in _WEIGHTS)


class Recorded(Wrapper):
    """Has a trainer write what it was trained with, wherever it saves.

    Attributes:
        trainer: the trainer.
        attachment: on its model.
        recorder: keeps the record; None until `keep_record`.
    """

    names_loss: ClassVar[Sequence[str]] = ()
    """Arguments of the host's trainer that name a loss; what is saved and shown of them says ours."""

    trainer: Any
    attachment: Any
    recorder: Recorder | None = None

    def keep_record(self, host: Mapping[str, Any]) -> None:
        """Begin to keep a record; `host` says in which framework."""
        recorder = self.recorder = Recorder(self.trainer, self.attachment, host)
        handler = self.trainer.callback_handler
        handler.add_callback(recorder)

        def remove() -> None:
            if recorder in handler.callbacks:
                handler.remove_callback(recorder)

        self.undo.append(remove)
        # A tracker begins with the training, or with the first log of an evaluation that came before.
        for event in ("on_train_begin", "on_log"):
            self.change(handler, event, self._heard(recorder, getattr(handler, event)))

    def _heard(self, recorder: Recorder, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Return an event of the trainer's callbacks, in which its arguments say the loss."""

        def event(args: Any, *others: Any, **kwargs: Any) -> Any:
            recorder.note()
            with trackers.telling(args, {**flat(recorder.record), **self._named()}):
                return inner(args, *others, **kwargs)

        return event

    def go_on(self, checkpoint: str | os.PathLike[str] | None) -> None:
        """See `Recorder.begin`."""
        if self.recorder is not None:
            self.recorder.begin(checkpoint)

    def keep_probabilities(self, prefix: str, stats: LossStats) -> None:
        """Keep how many targets of a pass were how likely; `prefix` as in the log, `eval_` say."""
        if self.recorder is not None:
            of = prefix.removesuffix("_") or TRAINING
            self.recorder.probabilities.add(of, stats, self.trainer.state.global_step)

    @wrapped
    def save_model(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Save, and write the record beside it."""
        with self._telling():
            saved = inner(*args, **kwargs)
        folder = args[0] if args else kwargs.get("output_dir")
        self._write(folder or self.trainer.args.output_dir)
        return saved

    @wrapped
    def _save_checkpoint(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Save a checkpoint, its `trainer_state.json` with the record in it."""
        if self.recorder is not None:
            self.recorder.note()
        return inner(*args, **kwargs)

    @wrapped
    def _push_from_checkpoint(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Upload the output folder, into which weights of a checkpoint are copied, with the record in it."""
        if self.trainer.args.hub_strategy != "end" and self.trainer.is_world_process_zero():
            self._write(self.trainer.args.output_dir)
        with self._telling():
            return inner(*args, **kwargs)

    @wrapped
    def create_model_card(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Have the host write its card, and complete it, also where the host gave up half way (offline, say)."""
        try:
            return inner(*args, **kwargs)
        finally:
            self.complete_card()

    def complete_card(self) -> None:
        """Complete the card in the output folder, where the process that writes it is this one."""
        if self.recorder is not None and self.trainer.is_world_process_zero():
            self.recorder.complete(self.trainer.args.output_dir)

    @wrapped
    def _load_callback_state(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Restore the callbacks of a checkpoint; the record in it is no callback's that is missing."""
        state = self.trainer.state
        state.stateful_callbacks = {k: v for k, v in state.stateful_callbacks.items() if k != records.STATE_KEY}
        return inner(*args, **kwargs)

    def _write(self, folder: str | os.PathLike[str]) -> None:
        if self.recorder is not None:
            self.recorder.write(folder)

    def _named(self) -> dict[str, str]:
        assert self.recorder is not None
        return dict.fromkeys(self.names_loss, f"dft-plugin: {self.recorder.record['in_words']}")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Have the trainer's arguments say the loss while they are pickled: nothing is trained meanwhile."""
        if self.recorder is None:
            yield
            return
        args = self.trainer.args
        with ExitStack() as stack:
            for name, said in self._named().items():
                stack.enter_context(swapped(args, name, said))
            had = vars(args).get("dft_loss")
            args.dft_loss = self.recorder.record["loss"]
            try:
                yield
            finally:
                if had is None:
                    del args.dft_loss
                else:
                    args.dft_loss = had


def complete_card(trainer: Any) -> None:
    """Complete the card that a host has written past the trainer, if our loss is on that."""
    hook = wrapper_of(trainer)
    if isinstance(hook, Recorded):
        hook.complete_card()
