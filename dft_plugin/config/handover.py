"""From `dft train` to the processes that train: the loss in their arguments, a host's function that honours it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dft_plugin.config.settings import Settings
from dft_plugin.errors import SettingsError

OPTION = "--dft-settings"
"""Arguments reach every process on every node, unlike an environment variable or a file in a temporary folder."""


def words(settings: Settings) -> list[str]:
    """Return the arguments that carry a loss."""
    return [OPTION, json.dumps(settings.as_written())]


def take(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """Split arguments into the loss (None if they carry none) and the host's."""
    if OPTION not in argv:
        return None, list(argv)
    at = list(argv).index(OPTION)
    return json.loads(argv[at + 1]), [*argv[:at], *argv[at + 2 :]]


def demand(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """Split arguments that must carry a loss.

    Raises:
        SettingsError: they do not.
    """
    loss, rest = take(argv)
    if loss is None:
        raise SettingsError([f"no `{OPTION}` was given, so there is no loss to train with. Start with `dft train`."])
    return loss, rest


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put `value` in the place of an attribute of a module or a class, inside this block."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
