"""A user's config file and the overrides of a command line, our key apart from the host's. Files are only read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dft_plugin.config import files, overrides
from dft_plugin.config.overrides import LOSS, Override
from dft_plugin.config.spoken import no_loss
from dft_plugin.errors import SettingsError

__all__ = ["LOSS", "Request", "RunConfig", "load", "loss_of", "may_name_loss", "of_flags", "of_mapping"]


@dataclass(frozen=True)
class RunConfig:
    """A config file with overrides applied, our key apart from the host's.

    Attributes:
        path: the file.
        loss: what stands after `loss:`, or None if nothing does.
        host: everything else.
        overrides: `(key, text)` from the command line that are the host's.
        names_loss: whether there is a key `loss`, with a value or without.
    """

    path: Path
    loss: Any
    host: Mapping[str, Any]
    overrides: Sequence[tuple[str, str]]
    names_loss: bool

    def resolved(self, resolve: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> RunConfig:
        """Return the config with what references in it stand for, given how its host looks them up."""
        found = dict(resolve({**self.host, **({LOSS: self.loss} if self.names_loss else {})}))
        return replace(self, loss=found.pop(LOSS, None), host=found)

    def request(self) -> Request:
        """Return the run as it was asked for.

        Raises:
            SettingsError: there is a key `loss`, and nothing stands there.
        """
        if self.names_loss and self.loss is None:
            raise SettingsError([no_loss(None, LOSS, ())])
        return Request(self.loss, dict(self.host), self.host)


@dataclass(frozen=True)
class Request:
    """A run as somebody asked a host for it, our key apart.

    Attributes:
        loss: what stands after `loss:`, or None if nobody asked for it.
        args: the rest, in the form in which it was given: a mapping, or words of a command line.
        config: the rest as a mapping.
    """

    loss: Any
    args: dict[str, Any] | list[str]
    config: Mapping[str, Any]


def load(path: Path, words: Sequence[str] = ()) -> RunConfig:
    """Read a YAML or JSON config and apply overrides.

    Args:
        path: the file.
        words: `key=value`, `--key value` and so on, the value in YAML; `loss=nll` and `loss.alpha=0.7` are ours.

    Raises:
        SettingsError: the file cannot be read, is not a mapping, or a word is no override.
    """
    given = overrides.split(words)
    problems = [*_misplaced(path, words), *overrides.no_pairs(given), *overrides.misspelt(given)]
    if problems:
        raise SettingsError(problems)
    config = files.read(path)
    problems = overrides.strays(config)
    if problems:
        raise SettingsError([f"{path}: {problem}" for problem in problems])
    theirs = [one for one in given if not one.is_ours]
    for one in theirs:
        _put(config, one.path, one.value)
    ours = [one for one in given if one.is_ours]
    names_loss = LOSS in config or bool(ours)
    loss = overrides.changed(config.pop(LOSS, None), ours)
    return RunConfig(path, loss, config, [_pair(one) for one in theirs], names_loss)


def loss_of(config: Mapping[str, Any]) -> Any:
    """Return what stands after `loss:` in a config that somebody else has read; None: there is no such key.

    Raises:
        SettingsError: nothing stands there, or the config has keys that mean the loss and are none.
    """
    problems = overrides.strays(config)
    if LOSS in config and config[LOSS] is None:
        problems.append(no_loss(None, LOSS, ()))
    if problems:
        raise SettingsError(problems)
    return config.get(LOSS)


def of_mapping(given: Mapping[str, Any]) -> Request:
    """Take our key out of a mapping.

    Raises:
        SettingsError: as `loss_of`.
    """
    rest = {key: value for key, value in given.items() if key != LOSS}
    return Request(loss_of(given), rest, rest)


def of_flags(words: Sequence[str]) -> Request:
    """Take ours out of the words of a command line, whose other words stay as they are.

    Raises:
        SettingsError: ours cannot be read, or contradict each other.
    """
    ours, theirs = overrides.parted(words)
    config: dict[str, Any] = {}
    for one in theirs:
        if one.path:
            config[one.path[0]] = _tolerant(one)
        elif config:
            # `--dataset one two`
            last = next(reversed(config))
            config[last] = f"{config[last]} {one.typed}"
    return Request(overrides.changed(None, ours), [word for one in theirs for word in one.words], config)


def may_name_loss(given: Mapping[str, Any] | Sequence[str]) -> bool:
    """Say whether anything of ours can stand in what a host was given: where not, its files are its own affair.

    Args:
        given: a mapping; or words, of which the first may be a config.
    """
    if isinstance(given, Mapping):
        return any(LOSS in str(key) for key in given)
    path = Path(given[0]) if given else Path()
    if overrides.name_loss(given):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return re.search(rb"(?<!\w)loss(?![\w-])", file.read(files.LIMIT)) is not None


def _tolerant(one: Override) -> Any:
    try:
        return one.value
    except SettingsError:
        return one.text


def _misplaced(path: Path, words: Sequence[str]) -> list[str]:
    """Say so where the config does not come first."""
    if str(path) == "-" or path.exists() or not (str(path).startswith("-") or "=" in str(path)):
        return []
    named = next((word for word in words if Path(word).suffix in (".yaml", ".yml", ".json")), "CONFIG")
    return [f"{str(path)!r} stands where the config is expected, which comes first: `{named} {path} ...`."]


def _put(config: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value where its path leads, making room for it."""
    for part in path[:-1]:
        there = config.get(part)
        config[part] = dict(there) if isinstance(there, Mapping) else {}
        config = config[part]
    config[path[-1]] = value


def _pair(one: Override) -> tuple[str, str]:
    return one.key, one.text or ""
