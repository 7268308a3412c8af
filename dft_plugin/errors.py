"""Every error that dft-plugin raises on purpose.

None of them is an `ImportError`: Axolotl swallows those while it loads plugins, and would go on
to train plain cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class DftError(Exception):
    """Base of all errors of dft-plugin."""


class SettingsError(DftError, ValueError):
    """What the user wrote cannot be used. Carries every problem that was found, not the first.

    Attributes:
        problems: one sentence each: what was given, what is allowed, what to do next.
    """

    def __init__(self, problems: Iterable[str] | str) -> None:
        # A text is one problem: so torch hands on what a data loader's worker raised.
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        listed = "\n".join(f"  - {problem}" for problem in self.problems)
        return f"{len(self.problems)} problems:\n{listed}"


class ConflictError(SettingsError):
    """The host's own settings would keep the loss from taking effect, or apply it twice."""


class UnknownNameError(SettingsError):
    """A host could not be told from the config, or a name is not registered."""


class InputError(DftError, ValueError):
    """A function was given something else than it takes. Says what was found, and what to give."""


class LabelError(InputError):
    """A label is neither the ignore index nor an index of the vocabulary, or the labels do not fit."""


class ClockError(DftError, RuntimeError):
    """A loss changes during the run, and nobody says how far it is, or what is said cannot be."""


class ShardError(DftError, ValueError):
    """The ranks that share a vocabulary do not fit together. Says what each was given."""


class PluginError(DftError):
    """A plugin is broken, or two plugins claim one name. Names the owners."""


class UnsupportedModelError(DftError, TypeError):
    """The model cannot be attached to. Says what was found and what would work."""


class NonFiniteError(DftError, FloatingPointError):
    """The loss of a step is not a finite number, and `nonfinite: error` asks to stop. The step changed no weight."""


class NotActiveError(DftError, RuntimeError):
    """A step ended, or would end, without the loss that was asked for."""


def name_of(function: Any) -> str:
    """Name a function in a message, as `module.Class.method`; the repr of a bound method prints its whole model."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}.{name}"
