"""A run that a host starts: the loss is put on the trainer that the host makes by itself."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from dft_plugin.config.handover import swapped
from dft_plugin.errors import ConflictError, NotActiveError, SettingsError
from dft_plugin.hf.activation import activate
from dft_plugin.hf.columns import Column, columns_of
from dft_plugin.plans import LossLike, plan_for

Carrying = Callable[[Sequence[Column]], AbstractContextManager[object]]
"""A host's: inside the block that it returns, what the host prepares keeps these columns, a number for each token."""


@contextmanager
def training(trainer_class: type, loss: LossLike, carrying: Carrying = nullcontext) -> Iterator[list[Any]]:
    """Have a host's own training, started inside this block, train a loss, and keep the columns that it reads.

    Args:
        trainer_class: the host's trainer.
        loss: what stands after `loss:`.
        carrying: lets columns through what the host prepares; nothing: rows keep them by themselves.

    Yields:
        The trainers that were made, the loss on each.

    Raises:
        ConflictError: blocks inside one another.
        NotActiveError: the block ended, and no trainer was made.
    """
    columns = columns_of(plan_for(loss))
    with carrying(columns) if columns else nullcontext(), activating(trainer_class, loss) as made:
        yield made


@contextmanager
def activating(trainer_class: type, loss: LossLike) -> Iterator[list[Any]]:
    """Activate `loss` on every trainer of a class that is made inside this block.

    The class is changed in place, since a host may have bound its name in other modules by now. Ours comes after its
    own `__init__`, which may set a loss function and forget the token count.

    Args:
        trainer_class: the host's trainer.
        loss: what stands after `loss:`.

    Yields:
        The trainers that were made, the loss on each.

    Raises:
        ConflictError: blocks inside one another.
        NotActiveError: the block ended, and no trainer was made.
    """
    plain: Any = trainer_class.__init__  # type: ignore[misc]  # of this very class, not of a subclass
    if hasattr(plain, _MARK):
        raise ConflictError(["a run with `loss:` is going on in this process already. Start one after the other."])
    made: list[Any] = []

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        activate(self, loss)
        made.append(self)

    setattr(init, _MARK, True)
    with swapped(trainer_class, "__init__", init):
        yield made
    if not made:
        raise none_made(trainer_class.__name__)


class _Made(BaseException):
    """Leaves a host's run from inside; none of its handlers of errors is meant."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.trainer = trainer


def first_trainer(
    trainer_class: type, run: Callable[[], object], columns: Sequence[str], carrying: Carrying = nullcontext
) -> Any:
    """Start a host's run, and return the trainer that it makes, as it is before anything is trained or written.

    Args:
        trainer_class: the host's trainer.
        run: starts it.
        columns: of the user's data, to keep in the trainer's.
        carrying: lets them through what the host prepares; nothing: rows keep them by themselves.

    Raises:
        NotActiveError: it ended, and made none.
    """
    plain: Any = trainer_class.__init__  # type: ignore[misc]  # of this very class, not of a subclass

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        raise _Made(self)

    try:
        keeping = carrying(tuple(map(Column, columns))) if columns else nullcontext()
        with keeping, swapped(trainer_class, "__init__", init):
            run()
    except _Made as made:
        return made.trainer
    raise NotActiveError(f"the run ended, and has made no {trainer_class.__name__}: it is none that trains tokens.")


def saying(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    """Run a host's training; what is wrong with the configuration is a message and exit code 2, not a traceback."""
    try:
        main(argv)
    except (SettingsError, ConflictError) as error:
        sys.stderr.write(f"dft: {error}\n")
        sys.exit(2)


def none_made(trainer: str) -> NotActiveError:
    """Return the error for a run that ended without a trainer of ours."""
    return NotActiveError(
        f"the run ended without the loss that `loss:` asks for: it made no {trainer}. Do not use what it saved. "
        "Leave out `loss:`, or report the configuration."
    )


_MARK = "dft_activates"
