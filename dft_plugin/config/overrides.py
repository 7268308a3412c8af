"""Words of a command line that change a config: `key=value` and what else the hosts take, in any order. No host.

Ours are `loss=nll`, `loss.alpha=0.7`, `loss[alpha]=0.7`, `--loss.alpha 0.7`, `--loss.alpha=0.7`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dft_plugin.config.files import parse_yaml
from dft_plugin.errors import SettingsError
from dft_plugin.saying import shown

LOSS = "loss"
"""The one line."""

DEEPEST = 20
"""Keys of a path that reaches into the loss: far more than any option has."""

_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[^.\[\]]+\])*")
_NUMBER = re.compile(r"-\.?\d.*")
_LIKE_OURS = re.compile(rf"[-+~]*{LOSS}(?![a-z0-9_-])|[-+~]*{LOSS}__", re.IGNORECASE)

PAIR = "(for example learning_rate=1e-4 or loss.alpha=0.7)"


@dataclass(frozen=True)
class Override:
    """One change.

    Attributes:
        path: the key, and what leads into its mapping; empty where the words are no key at all.
        text: the value, in YAML; None: none was given.
        words: as they were typed.
    """

    path: tuple[str, ...]
    text: str | None
    words: tuple[str, ...]

    @property
    def key(self) -> str:
        """`loss.alpha`."""
        return ".".join(self.path)

    @property
    def typed(self) -> str:
        """As it was typed."""
        return " ".join(self.words)

    @property
    def is_ours(self) -> bool:
        """Whether it changes the loss."""
        return self.path[:1] == (LOSS,)

    @property
    def value(self) -> Any:
        """The value as YAML reads it."""
        return None if self.text is None else parse_yaml(self.text, f"override {self.typed!r}")


def split(words: Sequence[str]) -> list[Override]:
    """Group words into overrides: `key=value`, `--key=value`, `--key value`, `--switch`, `--no-switch`."""
    found: list[Override] = []
    left = list(words)
    while left:
        word = left.pop(0)
        key, has_value, text = _parted(word)
        if has_value:
            found.append(Override(_path(key), text, (word,)))
        elif not word.startswith("--"):
            found.append(Override(_path(word) if _LIKE_OURS.match(word) else (), None, (word,)))
        elif left and _is_value(left[0]):
            found.append(Override(_path(key), left[0], (word, left.pop(0))))
        else:
            found.append(_switch(word))
    return found


def parted(words: Sequence[str]) -> tuple[list[Override], list[Override]]:
    """Part ours from a host's, whose words stay as they are: what is no override is the host's own affair.

    Raises:
        SettingsError: some mean the loss in a spelling that is not taken, and that a host may drop.
    """
    given = split(words)
    problems = misspelt(given)
    if problems:
        raise SettingsError(problems)
    return [one for one in given if one.is_ours], [one for one in given if not one.is_ours]


def name_loss(words: Sequence[str]) -> bool:
    """Say whether some of the words mean the loss, in whichever spelling."""
    given = split(words)
    return any(one.is_ours for one in given) or bool(misspelt(given))


def changed(loss: Any, overrides: Sequence[Override]) -> Any:
    """Apply what is ours to what stands after `loss:`, whatever the order of the words.

    Raises:
        SettingsError: with every word that cannot be read, or that contradicts another.
    """
    problems = [problem for one in overrides for problem in _unreadable(one)]
    if not problems:
        problems = _contradictions(overrides)
    if problems:
        raise SettingsError(problems)
    # `loss=...` first, and what reaches into it behind.
    for one in sorted(overrides, key=lambda one: len(one.path)):
        loss = with_option(loss, one.path[1:], one.value)
    return loss


def with_option(loss: Any, path: Sequence[str], value: Any) -> Any:
    """Put a value into what stands after `loss:`.

    Args:
        loss: what stands there; None: nothing.
        path: `()`, `("alpha",)` or `("first", "for")`.
        value: what to put there.

    Raises:
        SettingsError: what stands there can have no option.
    """
    if not path:
        return value
    named = {"name": loss} if isinstance(loss, str) else {} if loss is None else loss
    option, *inner = path
    if not isinstance(named, Mapping):
        key = ".".join([LOSS, *path])
        raise SettingsError([f"`{key}` cannot be set, since `loss` is {shown(loss)}; write `loss: dft`."])
    if inner:
        # `loss.alpha.from`, `loss.weights.column`: a number that stands there makes room for a mapping.
        there = named.get(option)
        value = with_option(there if isinstance(there, (str, Mapping)) else None, inner, value)
    return {**named, option: value}


def strays(config: Mapping[str, Any]) -> list[str]:
    """List keys of a config that mean the loss and are none: `loss.alpha: 0.7`, which hosts drop in silence."""
    found = [key for key in map(str, config) if key != LOSS and _LIKE_OURS.match(key) and not key.isalpha()]
    return [f"`{key}` is a key that nobody reads. Write `loss: {{name: dft, {_option(key)}: ...}}`." for key in found]


def no_pairs(overrides: Sequence[Override]) -> list[str]:
    """List words that are no override at all."""
    problems = []
    before: Override | None = None
    for one in overrides:
        if not one.is_ours and not any(part.strip("-") for part in one.path):
            meant = before is not None and before.is_ours and before.text is None
            example = f"; write `{before.key}={one.typed}`" if before is not None and meant else f" {PAIR}"
            problems.append(f"override {one.typed!r} is not `key=value`{example}.")
        before = one
    return problems


def misspelt(overrides: Sequence[Override]) -> list[str]:
    """List words that mean the loss in a spelling that is not taken."""
    return [
        f"override {one.typed!r}: an option of the loss is written `loss.{_option(one.typed)}=VALUE`, and the loss "
        "itself `loss=NAME`."
        for one in overrides
        if not one.is_ours and any(one.path) and _LIKE_OURS.match(one.typed)
    ]


def _parted(word: str) -> tuple[str, bool, str]:
    """Split at the first `=` that is in no bracket."""
    key, sign, text = word.partition("=")
    return key, bool(sign), text


def _is_value(word: str) -> bool:
    """Say whether a word behind `--key` is its value: no other key, and no `key=value`."""
    if word.startswith("-") and not _NUMBER.fullmatch(word):
        return False
    return not re.match(r"[\w.\[\]-]+=", word)


def _path(key: str) -> tuple[str, ...]:
    bare = key.lstrip("-")
    if not _KEY.fullmatch(bare):
        return (bare,)
    first, *rest = (part.strip("'\"") for part in re.split(r"[.\[]", bare.replace("]", "")))
    parts = [first, *rest]
    # As command lines spell them: `--learning-rate`.
    return tuple(part.replace("-", "_") for part in parts) if key.startswith("--") else tuple(parts)


def _switch(word: str) -> Override:
    """Read a key without a value as a command line does: true, or false behind `no`."""
    path = _path(word)
    if path[:1] == (LOSS,) or _LIKE_OURS.match(word):
        return Override(path, None, (word,))
    denied = re.match(r"no[-_](?=.)", path[0])
    if denied:
        return Override((path[0][denied.end() :], *path[1:]), "false", (word,))
    return Override(path, "true", (word,))


def _option(key: str) -> str:
    return re.sub(rf"^[-+~]*{LOSS}[^\w]*_*|[^\w].*$", "", key.partition("=")[0], flags=re.IGNORECASE) or "alpha"


def _unreadable(one: Override) -> list[str]:
    # "None": what a host writes on a command line for a key of its YAML without a value.
    if one.text is None or not one.text.strip() or (one.path == (LOSS,) and (one.text == "None" or one.value is None)):
        return [f"override {one.typed!r} has no value. Write `{one.key}=VALUE`, or leave it out."]
    if len(one.path) > DEEPEST:
        return [f"override `{shown(one.typed, 60)}` reaches {len(one.path)} keys deep, and no option of a loss does."]
    if one.path[1:3] == ("weights", "tokens") and len(one.path) > 3:
        return [
            f"override {one.typed!r}: whether `{one.path[3]}` is an id or a text cannot be told. Write "
            f"`loss.weights.tokens={{{one.path[3]}: {one.text}}}`."
        ]
    return []


def _contradictions(overrides: Sequence[Override]) -> list[str]:
    """List words of which one would undo another."""
    problems = []
    values = [(one, one.value) for one in overrides]
    for place, (one, value) in enumerate(values):
        for other, another in values[place + 1 :]:
            short, long = sorted([(one, value), (other, another)], key=lambda pair: len(pair[0].path))
            if one.path == other.path:
                undone = value != another
            elif long[0].path[: len(short[0].path)] != short[0].path:
                undone = False
            elif long[0].path[len(short[0].path) :] == ("name",):
                undone = isinstance(short[1], str) and short[1] != long[1]
            else:
                undone = not isinstance(short[1], (str, Mapping))
            if undone:
                problems.append(f"overrides {one.typed!r} and {other.typed!r} contradict each other. Keep one.")
    return problems
