"""One run of LLaMA-Factory with the loss active in its SFT trainer."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from dft_llamafactory import conflicts
from dft_llamafactory.arguments import Request
from dft_plugin import activate
from dft_plugin.config.hosts import Conflict
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import ConflictError, NotActiveError, SettingsError


class Guard(TrainerCallback):
    """Rides along a run, and stops it where training starts without the loss.

    Attributes:
        activated: trainers of this run on which the loss is active.
    """

    def __init__(self) -> None:
        self.activated = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Stop a run whose trainer is none that we know."""
        if not self.activated:
            raise NotActiveError(
                "training starts without the loss that `loss:` asks for: LLaMA-Factory made a trainer that is not its "
                "CustomSeq2SeqTrainer. Nothing was updated. Leave out `loss:`, or report the configuration."
            )


def refuse(loss: Any, found: Iterable[Conflict]) -> None:
    """Raise with everything that is in the way of the loss, in `loss:` itself and in the host's keys.

    Args:
        loss: what stands after `loss:`.
        found: what is in the way in the host's keys.

    Raises:
        ConflictError: lists all of it.
    """
    problems: list[str] = []
    try:
        build_catalogue().settings(loss)
    except SettingsError as error:
        problems += error.problems
    problems += map(str, found)
    if problems:
        raise ConflictError(problems)


def run_with_loss(
    run_exp: Callable[..., Any], request: Request, callbacks: Iterable[TrainerCallback] | None = None
) -> None:
    """Run LLaMA-Factory's `run_exp` with the loss that was asked for.

    Args:
        run_exp: of `llamafactory.train.tuner`.
        request: what to run; its `loss` is set.
        callbacks: of the caller, passed on.

    Raises:
        ConflictError: the loss could not take effect; nothing was started.
        NotActiveError: the run would train, or has trained, without it.
    """
    refuse(request.loss, conflicts.find(request.config, os.environ))
    with activating(request.loss) as guard:
        run_exp(request.args, [*(callbacks or ()), guard])


@contextmanager
def activating(loss: Any) -> Iterator[Guard]:
    """Activate `loss` on every SFT trainer that is made inside this block.

    The class is changed in place, since LLaMA-Factory has bound its name in other modules by now. Ours comes after
    its own `__init__`, which may set a loss function and forget the token count.
    """
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    plain = CustomSeq2SeqTrainer.__init__
    guard = Guard()

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        activate(self, loss)
        guard.activated += 1

    if isinstance(getattr(plain, "guard", None), Guard):
        raise ConflictError(["a run with `loss:` is going on in this process already. Start one after the other."])
    vars(init)["guard"] = guard
    CustomSeq2SeqTrainer.__init__ = init
    try:
        yield guard
    finally:
        CustomSeq2SeqTrainer.__init__ = plain
