"""verl's SFT trainer with the loss: built with ours, told how far the run is, stopped where ours was not called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.utils.tracking import Tracking
from verl.workers.utils import losses

from dft_plugin.config.checks import refuse
from dft_plugin.config.handover import swapped
from dft_plugin.config.overrides import strays
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.settings import Settings
from dft_plugin.core.bands import BANDS
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.stats import LossStats, Tally
from dft_plugin.errors import ConflictError, NotActiveError
from dft_plugin.hf import first_log, in_loops, switch, tokens
from dft_plugin.hf.probabilities import Probabilities
from dft_plugin.objectives import Clock, wording
from dft_plugin.runs.probabilities import TRAINING
from dft_verl import conflicts
from dft_verl.host import VerlHost
from dft_verl.loss import CLOCK, FLAGS, SUMS, SftLoss
from dft_verl.recording import Recorder


def refuse_program(where: str) -> None:
    """Refuse `loss` in a program of verl's that trains something else.

    Raises:
        ConflictError: always.
    """
    raise ConflictError(
        [
            f"`loss` was given to {Path(where).stem}, which has losses of its own and would ignore it. Nothing was "
            "started. `loss` is for verl.trainer.sft_trainer and verl.trainer.sft_trainer_ray; take it away here."
        ]
    )


def prepare(trainer: Any, config: Any) -> Training:
    """Check a config, and put the loss on the trainer that is about to be made of it.

    Args:
        trainer: of verl's class `SFTTrainer`, before its `__init__`.
        config: as hydra composed it; has `loss`.

    Raises:
        ConflictError: the loss could not take effect; nothing was started.
    """
    # As verl reads it: a value may refer to another key, or to the environment.
    keys = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else dict(config)
    assert isinstance(keys, dict)
    # Hydra keeps keys with dots that stand in a YAML.
    problems = strays(keys)
    if problems:
        raise ConflictError(problems)
    loss = keys.pop("loss")
    refuse(VerlHost(), keys, loss, conflicts.find(keys, os.environ))
    return Training(trainer, build_catalogue().settings(loss))


class Training:
    """The loss around one trainer.

    Args:
        trainer: whose `_build_engine`, `_build_ckpt_handler` and `fit` are wrapped.
        settings: the loss.
    """

    def __init__(self, trainer: Any, settings: Settings) -> None:
        self.trainer, self.settings = trainer, settings
        self.loss: SftLoss | None = None
        self.steps, self.last_step = 0, 1
        self._evaluated = Tally()
        self._trained: LossStats | None = None
        self._probabilities = Probabilities(lambda: trainer.config.trainer.default_local_dir)
        self._told: Clock | None = None
        self._warned = False
        self._said: set[str] = set()
        self._build, self._fit = trainer._build_engine, trainer.fit
        self._build_saving = trainer._build_ckpt_handler
        trainer._build_engine, trainer.fit, trainer.dft_training = self.build_engine, self.fit, self
        trainer._build_ckpt_handler = self.build_ckpt_handler

    @property
    def plan(self) -> LossPlan:
        """What the loss became."""
        assert self.loss is not None
        return self.loss.plan

    def require_built(self) -> None:
        """Check that the trainer has built its engine with the loss.

        Raises:
            NotActiveError: it has not.
        """
        if self.loss is None or getattr(self.trainer.loss_fn, "func", None) is not self.loss:
            raise NotActiveError(
                f"dft: {type(self.trainer).__name__} has built an engine with a loss of its own. Nothing was trained. "
                "Leave out `loss`, or build the engine with verl.workers.utils.losses.sft_loss, as verl does."
            )

    def build_engine(self) -> None:
        """Build as verl does, with our loss where it looks for its own."""
        self.loss = self._made()
        with swapped(losses, "sft_loss", self.loss):
            self._build()
        self.require_built()
        client = self.trainer.training_client
        self._recorder = Recorder(self.trainer, self.plan)
        self._train, self._infer = client.train_batch, client.infer_batch
        client.train_batch, client.infer_batch = self.train_batch, self.infer_batch

    def build_ckpt_handler(self) -> None:
        """Build as verl does what saves and loads, and have it keep a record of the loss."""
        self._build_saving()
        self._recorder.follow(self.trainer.ckpt_handler)

    def _made(self) -> SftLoss:
        """Turn words for tokens into ids, and say what is on."""
        model = self.trainer.model_config
        plan = SftLoss(self.settings.as_written()).plan
        of_model: Any = SimpleNamespace(config=model.hf_config, generation_config=model.generation_config)
        read = tokens.read(plan, of_model, model.get_processor())
        if read.problems:
            raise ConflictError(list(read.problems))
        adjusted = read.plan.adjusted
        if getattr(self.trainer, "rank", 0) == 0:
            architecture = (model.hf_config.architectures or [type(model.hf_config).__name__])[0]
            self._say(
                "; ".join(
                    [
                        f"dft: loss {plan.describe()} is on for {architecture} (verl's {type(self.trainer).__name__}, "
                        f"engine {self.trainer.config.engine.strategy}): weighs the log p that verl makes",
                        *wording.besides(tokens=[read.said] if read.said else [], log=plan.extra),
                        "replaces verl's sft_loss",
                    ]
                )
            )
        return SftLoss(
            self.settings.as_written(),
            () if adjusted is None else adjusted.always,
            {} if adjusted is None else adjusted.factors,
            read.ends,
        )

    def fit(self) -> Any:
        """Train as verl does, with our statistics of the validation beside `val/loss`."""
        trainer, plain = self.trainer, Tracking.log
        self.steps = int(trainer.resume_global_step)
        in_epochs = trainer.steps_per_epoch * trainer.config.trainer.total_epochs
        self.last_step = max(min(int(trainer.total_training_steps), in_epochs), self.steps, 1)
        # What would never hold in so many steps is refused before the first.
        self.plan.holding(self.clock)

        def log(tracking: Any, data: Mapping[str, Any], step: int, backend: Any = None) -> None:
            # One process logs.
            if "val/loss" in data:
                stats = self._evaluated.take()
                self._probabilities.add("val", stats, step)
                data = {**data, **stats.as_logs("val/")}
            elif self._trained is not None:
                self._probabilities.add(TRAINING, self._trained, step)
            self._recorder.begin_log(tracking)
            plain(tracking, data, step, backend)

        self._probabilities.begin(resumed=self.steps > 0)
        with swapped(Tracking, "log", log):
            done = self._fit()
        self._probabilities.end()
        return done

    @property
    def clock(self) -> Clock:
        """How far the run is."""
        # A finished run that is started again makes one step more.
        return Clock.of_run(self.steps, self.last_step, self.steps / max(self.trainer.steps_per_epoch, 1))

    def train_batch(self, data: TensorDict) -> Any:
        """Train on a batch, and have its statistics in the log."""
        clock = self._tell(data)
        if getattr(self.trainer, "rank", 0) == 0:
            switch.say(self.plan, self._told, clock)
        self._told = clock
        output = self._train(data)
        self.steps += 1
        self._recorder.note(self.steps, self.last_step)
        return _once_there(output, lambda there: self._log(there, clock))

    def infer_batch(self, data: TensorDict) -> Any:
        """Evaluate a batch, and keep its statistics until the validation is logged."""
        self._tell(data)
        return _once_there(self._infer(data), lambda there: self._evaluated.add(self._taken(there)))

    def _tell(self, data: TensorDict) -> Clock:
        """Say in a batch how far the run is, and what its engine is to make beside log p."""
        assert self.loss is not None
        clock = self.clock
        told = {CLOCK: (clock.step, clock.last_step, clock.epoch), **{FLAGS[name]: True for name in self.loss.needs}}
        tensordict_utils.assign_non_tensor(data, **told)
        return clock

    def _log(self, output: TensorDict, clock: Clock) -> None:
        self._trained = self._taken(output)
        logs = self._trained.as_logs()
        in_loops.say(logs, self._said, f"in step {clock.step + 1}")
        if not self._warned:
            self._warned = first_log.warn(logs, self.plan, clock)
        metrics = tensordict_utils.get(output, "metrics")
        tensordict_utils.assign_non_tensor(output, metrics={**metrics, **logs, **self.plan.logs(clock)})

    def _taken(self, output: TensorDict) -> LossStats:
        """Take our sums out of what the ranks have returned.

        Raises:
            NotActiveError: there are none, so that something else was trained.
        """
        metrics = tensordict_utils.get(output, "metrics")
        sums = [torch.tensor(one, dtype=torch.float64) for one in _every(metrics.pop(SUMS, ()))]
        if not sums:
            raise NotActiveError(
                "dft: a batch went by without one call of the loss, so that something else was trained on it. The run "
                "is stopped; nothing of it was saved. Leave out `loss`, or report the configuration."
            )
        total = torch.stack(sums).sum(0)
        return LossStats(total[:-BANDS], self.plan.statistics, total[-BANDS:])

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - as the trainers of other hosts say it


def _every(gathered: Any) -> Iterator[tuple[float, ...]]:
    """Yield the sums of each micro-batch: a list of them, of each rank a list where there are several."""
    for one in gathered:
        if isinstance(one, tuple):
            yield one
        else:
            yield from _every(one)


class _Later:
    """What a worker elsewhere has promised, looked at when it is asked for."""

    def __init__(self, promised: Any, look: Callable[[TensorDict], None]) -> None:
        self._promised, self._look = promised, look

    def get(self) -> Any:
        """Wait for it."""
        output = self._promised.get()
        self._look(output)
        return output


def _once_there(output: Any, look: Callable[[TensorDict], None]) -> Any:
    """Look at the output of a batch: now, or when Ray has it. Ranks that have none return None."""
    if output is None:
        return None
    if not isinstance(output, TensorDict):
        return _Later(output, look)
    look(output)
    return output
