"""A user's config file and the overrides of a command line. Files are only read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dft_plugin.errors import SettingsError

LOSS = "loss"
"""The one line."""


@dataclass(frozen=True)
class RunConfig:
    """A config file with overrides applied, our key apart from the host's.

    Attributes:
        path: the file.
        loss: what stands after `loss:`, or None if there is no such key.
        host: everything else.
        overrides: `(key, text)` from the command line that are the host's.
    """

    path: Path
    loss: Any
    host: Mapping[str, Any]
    overrides: Sequence[tuple[str, str]]


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML or JSON config and apply `key=value` overrides.

    Args:
        path: the file.
        overrides: `key=value`, the value in YAML; `loss=nll` and `loss.alpha=0.7` are ours.

    Raises:
        SettingsError: the file cannot be read, is not a mapping, or an override is not `key=value`.
    """
    config = _read(path)
    host_overrides = []
    for key, text in _split(overrides):
        value = _parse(f"{key}=", text)
        if is_ours(key):
            config[LOSS] = with_option(config.get(LOSS), key, value)
        else:
            config[key] = value
            host_overrides.append((key, text))
    loss = config.pop(LOSS, None)
    return RunConfig(path, loss, config, host_overrides)


def is_ours(key: str) -> bool:
    """Say whether a key of a config or a command line is `loss` or an option of it."""
    return key == LOSS or key.startswith(f"{LOSS}.")


def with_option(loss: Any, key: str, value: Any) -> Any:
    """Apply `loss=...`, `loss.option=...` or `loss.option.key=...` to what stands after `loss:`.

    Raises:
        SettingsError: what stands there can have no option.
    """
    option = key.removeprefix(LOSS).removeprefix(".")
    if not option:
        return value
    named = {"name": loss} if isinstance(loss, str) else {} if loss is None else loss
    if not isinstance(named, Mapping):
        raise SettingsError([f"`{key}` cannot be set, since `loss` is {loss!r}; write `loss: dft`."])
    option, _, inner = option.partition(".")
    if inner:
        # `loss.alpha.from`, `loss.weights.column`: a number that stands there makes room for a mapping.
        there = named.get(option)
        value = with_option(there if isinstance(there, (str, Mapping)) else None, f"{LOSS}.{inner}", value)
    return {**named, option: value}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            [f"{path} cannot be read ({error.strerror}). Give the path of the config that you train with."]
        ) from error
    config = _parse(str(path), text)
    if config is None:
        raise SettingsError([f"{path} is empty. Give the path of the config that you train with."])
    if not isinstance(config, dict):
        raise SettingsError([f"{path} holds a {type(config).__name__}; a config is a mapping of keys to values."])
    return {str(key): value for key, value in config.items()}


def _parse(where: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError([f"{where} is not valid YAML: {error}"]) from error


def _split(overrides: Sequence[str]) -> list[tuple[str, str]]:
    problems = [
        f"override {word!r} is not `key=value` (for example learning_rate=1e-4 or loss.alpha=0.7)."
        for word in overrides
        if not word.partition("=")[0].strip("-") or "=" not in word
    ]
    if problems:
        raise SettingsError(problems)
    pairs = [word.partition("=") for word in overrides]
    return [(key.lstrip("-"), text) for key, _, text in pairs]
