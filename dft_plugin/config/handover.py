"""From `dft train` to the processes that train: the loss in their arguments, a host's function that honours it."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from dft_plugin.config import files
from dft_plugin.config.reading import Request
from dft_plugin.config.refusals import without_traceback
from dft_plugin.errors import SettingsError

if TYPE_CHECKING:
    # A quarter of a second, which a run with autoload that asks for no loss would wait for.
    from dft_plugin.config.settings import Settings

OPTION = "--dft-settings"
"""Arguments reach every process on every node, unlike an environment variable or a file in a temporary folder."""


def words(settings: Settings) -> list[str]:
    """Return the arguments that carry a loss."""
    return [OPTION, json.dumps(settings.as_written())]


def take(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """Split arguments into the loss (None if they carry none) and the host's.

    Raises:
        SettingsError: what stands behind our argument is no loss.
    """
    if OPTION not in argv:
        return None, list(argv)
    at = list(argv).index(OPTION)
    try:
        return json.loads(argv[at + 1]), [*argv[:at], *argv[at + 2 :]]
    except (IndexError, ValueError) as error:
        raise SettingsError(
            [f'`{OPTION}` wants a loss as JSON behind it, for example \'{{"name": "dft"}}\'. Start with `dft train`.']
        ) from error


def demand(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """Split arguments that must carry a loss.

    Raises:
        SettingsError: they do not.
    """
    loss, rest = take(argv)
    if loss is None:
        raise SettingsError([f"no `{OPTION}` was given, so there is no loss to train with. Start with `dft train`."])
    return loss, rest


def requested(argv: Sequence[str], read: Callable[[Sequence[str]], Request]) -> Request:
    """Read the arguments of a process that trains, for launchers of one's own, too.

    Args:
        argv: they may carry a loss; else the config's own `loss:` holds.
        read: takes our key out of the host's arguments.

    Raises:
        SettingsError: there is no loss to train with.
    """
    loss, words = take(argv)
    found = read(words)
    found = found if loss is None else replace(found, loss=loss)
    if found.loss is None:
        raise SettingsError(["no `loss:` was given. Add the line `loss: dft` to the config."])
    return found


def hand_over(module: ModuleType, name: str, read: Callable[[Any], Request], with_loss: Callable[..., Any]) -> None:
    """Have a host's function that takes a run's arguments hand over to ours where they have `loss:`.

    Without that line it gets what it was given. With it, the host's own parser never sees the key, and cannot drop it
    in silence.

    Args:
        module: the host's.
        name: of the function; its first argument is None where the command line holds the arguments.
        read: takes our key out of what was given.
        with_loss: called with the function, what was read, and the function's other arguments.
    """
    plain = getattr(module, name)

    @functools.wraps(plain)
    def wrapped(args: Any = None, *rest: Any, **named: Any) -> Any:
        without_traceback(module.__name__.partition(".")[0])
        request = read(sys.argv[1:] if args is None else args)
        return plain(args, *rest, **named) if request.loss is None else with_loss(plain, request, *rest, **named)

    vars(module)[name] = wrapped


@contextmanager
def read_by_us(module: Any) -> Iterator[None]:
    """Have a module of a host read its config with our reader, inside this block.

    Args:
        module: which calls `yaml.safe_load`: it is PyYAML itself, or has it under the name `yaml`.
    """
    if module is yaml:
        with swapped(yaml, "safe_load", files.instead_of_safe_load):
            yield
        return
    ours = ModuleType("yaml")
    vars(ours).update({**vars(yaml), "safe_load": files.instead_of_safe_load})
    with swapped(module, "yaml", ours):
        yield


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
