"""Our words apart from ms-swift's, on a command line that it made of a YAML, or that a user typed."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dft_plugin.config import files, jsons
from dft_plugin.config.overrides import LOSS, Override, changed, name_loss, parted

_CONFIG_FILE = "SWIFT_CONFIG_FILE"
"""Where ms-swift notes the path of its YAML."""


def take(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """Split a command line into the loss (None if there is none) and ms-swift's words.

    Args:
        argv: `--loss dft`, `--loss.alpha 0.7`, `--loss '{"name": "dft"}'` (as ms-swift writes a mapping) and others.

    Raises:
        SettingsError: ours cannot be read, contradict each other, or are in a spelling that is not taken.
    """
    ours: list[Override] = []
    theirs: list[str] = []
    for flag, values in _flags(argv):
        # What follows one of its own options may look like anything.
        mine, rest = parted([flag, *values]) if name_loss([flag]) else ([], [])
        ours += mine
        theirs += [word for one in rest for word in one.words] if mine else [flag, *values]
    loss, written = changed(None, ours), _in_yaml()
    as_json = json.dumps(written, ensure_ascii=False)
    if isinstance(written, Mapping) and any(one.text == as_json for one in ours):
        # ms-swift writes it as JSON, whose keys are texts: ids of tokens, too.
        loss = changed(written, [one for one in ours if one.text != as_json])
    return loss, theirs


def _in_yaml() -> Any:
    path = Path(os.environ.get(_CONFIG_FILE, ""))
    return files.read(path).get(LOSS) if path.is_file() else None


def config_of(argv: Sequence[str]) -> dict[str, Any]:
    """Read options as a YAML would have them: one value, a list of several, or True for none."""
    config: dict[str, Any] = {}
    for flag, values in _flags(argv):
        key, attached, text = flag[2:].partition("=")
        given = [parsed(value) for value in ([text] if attached else values)]
        if flag.startswith("--"):
            config[key] = given if len(given) > 1 else given[0] if given else True
    return config


def words_of(key: str, text: str) -> list[str]:
    """Write an override `key=text` as ms-swift writes a key of a YAML: lists as words, mappings as JSON."""
    value = parsed(text)
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else text]


def parsed(text: str) -> Any:
    """Read a value: JSON, which knows 1e-05 for a number; else YAML; the word that ms-swift makes of nothing."""
    if text in ("", "None"):
        return None
    try:
        return jsons.parsed(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def without(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """Return a command line without some options and what follows them."""
    kept = [(flag, values) for flag, values in _flags(words) if flag[2:].partition("=")[0] not in keys]
    return [word for flag, values in kept for word in (flag, *values)]


def _flags(words: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Group words into options and what follows each; what begins with one dash may be a number."""
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
    return groups
