"""The property that every case is held to: a right answer, or an error of ours that says what was given."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from dft_plugin.errors import DftError, SettingsError

CPU_SECONDS = 20.0
"""Of this process, within which a case is over. Cases take milliseconds; a machine that is shared does not count."""

LETTERS = 50_000
"""Of the longest message. What was given is a few hundred letters long, or a number of a few thousand digits."""


class FaultError(AssertionError):
    """A case that broke the property."""


class StoppedError(BaseException):
    """Raised in what hangs; no `except Exception` and no validator of pydantic's takes it for an error of its own."""


@dataclass(frozen=True)
class Answered:
    """The call returned."""

    value: Any


@dataclass(frozen=True)
class Refused:
    """The call raised an error of ours."""

    error: DftError

    @property
    def problems(self) -> Sequence[str]:
        """What it says, a sentence each."""
        return self.error.problems if isinstance(self.error, SettingsError) else (str(self.error),)


def judged(call: Callable[[], Any], mentions: Sequence[str] = ()) -> Answered | Refused:
    """Make a call, and sort what comes of it.

    Args:
        call: what is tried.
        mentions: words of which each problem has to name one: keys, arguments.

    Raises:
        FaultError: it raised what is no error of ours, or said nothing, or took longer than `CPU_SECONDS`.
    """
    try:
        with bounded():
            return Answered(call())
    except DftError as error:
        refused = Refused(error)
    except FaultError:
        raise
    except Exception as error:
        raise FaultError(f"a traceback that is not ours: {type(error).__name__}: {str(error)[:300]}") from error
    for problem in refused.problems:
        if not problem.strip():
            raise FaultError(f"an empty {type(refused.error).__name__}")
        if len(problem) > LETTERS:
            raise FaultError(f"a message of {len(problem)} letters: {problem[:100]}")
        if mentions and not any(word in problem for word in mentions):
            raise FaultError(f"the message names none of {', '.join(mentions)}: {problem[:300]}")
    return refused


def require(holds: bool, said: str) -> None:
    """Raise a `FaultError` where something does not hold."""
    if not holds:
        raise FaultError(said)


@contextmanager
def bounded() -> Iterator[None]:
    """Stop what hangs, by the time that this process has computed."""
    seconds = CPU_SECONDS

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise StoppedError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except StoppedError:
        raise FaultError(f"not over after {seconds:g} s of computing") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
