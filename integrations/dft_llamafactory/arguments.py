"""What a run was started with: our line apart from LLaMA-Factory's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dft_plugin.config.reading import LOSS, is_ours, load, with_option

_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Request:
    """A run as it was asked for.

    Attributes:
        loss: what stands after `loss:`, or None if nobody asked for it.
        args: the rest, in a form that LLaMA-Factory's `run_exp` takes.
        config: the rest as a mapping.
    """

    loss: Any
    args: dict[str, Any] | list[str]
    config: Mapping[str, Any]


def read(given: Mapping[str, Any] | Sequence[str]) -> Request:
    """Read what `run_exp` got, or the words of a command line.

    Args:
        given: a mapping of keys; or a config file and `key=value` words; or `--key value` words.

    Raises:
        SettingsError: the file cannot be read, or an override of `loss` is no pair.
    """
    if isinstance(given, Mapping):
        rest = {key: value for key, value in given.items() if key != LOSS}
        return Request(given.get(LOSS), rest, rest)
    words = list(given)
    if words and words[0].endswith(_CONFIG_SUFFIXES):
        return _from_file(words[0], words[1:])
    return _from_flags(words)


def _from_file(path: str, words: list[str]) -> Request:
    """Merge file and overrides as LLaMA-Factory does, but for JSON, on which 0.9.5 fails."""
    from omegaconf import OmegaConf

    ours = [word for word in words if is_ours(word.partition("=")[0])]
    loss = load(Path(path), ours).loss
    theirs = OmegaConf.from_cli([word for word in words if word not in ours])
    merged: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(path), theirs))
    rest = {str(key): value for key, value in merged.items() if key != LOSS}
    return Request(loss, rest, rest)


def _from_flags(words: list[str]) -> Request:
    theirs: list[str] = []
    config: dict[str, Any] = {}
    loss: Any = None
    for flag, values in _flags(words):
        key, has_value, attached = flag.lstrip("-").partition("=")
        text = attached if has_value else " ".join(values)
        value = _parsed(text) if text else True
        if flag.startswith("--") and is_ours(key):
            loss = with_option(loss, key, value)
        else:
            theirs += [flag, *values]
            config[key] = value
    return Request(loss, theirs, config)


def _flags(words: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Group words into flags and what follows each."""
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("-") or not groups:
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
    return groups


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
