"""Rule: a setting of a host that cannot be on together with `loss:`, and the Conflict that it finds. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
"""Keys and values as YAML gives them, a host's parsed arguments, or an environment."""


@dataclass(frozen=True)
class Conflict:
    """Something in a config that would keep the loss from taking effect.

    Attributes:
        key: the key in the host's config.
        problem: what would happen.
        remedy: what to change.
    """

    key: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"`{self.key}`: {self.problem} {self.remedy}"


def _anywhere(config: Config) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """One refusal.

    Attributes:
        key: the key to change; dots lead into a mapping.
        applies: whether a value is in the way. A key that is missing has the value None.
        problem: what would happen; `{value}` is what stands after the key.
        remedy: what to change.
        beside: what else a config must have for the rule to hold.
    """

    key: str
    applies: Callable[[Any], bool]
    problem: str
    remedy: str
    beside: Callable[[Config], bool] = _anywhere

    def holds(self, config: Config) -> bool:
        """Say whether a config has what this rule refuses."""
        return self.applies(look_up(config, self.key)) and self.beside(config)

    def conflict(self, config: Config, label: str = "{key}") -> Conflict:
        """Return the conflict that this rule finds in a config; `label` may say `{key}` and `{value}`."""
        value = as_written(look_up(config, self.key))
        return Conflict(label.format(key=self.key, value=value), self.problem.format(value=value), self.remedy)


def find(rules: Iterable[Rule], config: Config, label: str = "{key}") -> list[Conflict]:
    """List every conflict in a config, in the order of the rules."""
    return [rule.conflict(config, label) for rule in rules if rule.holds(config)]


def look_up(config: Config, key: str) -> Any:
    """Return the value of a key, whose dots lead into mappings; None if it is not there."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def as_written(value: Any) -> str:
    """Return a value as its YAML has it: `true`, `null`, `[a, b]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def is_given(value: Any) -> bool:
    """Say whether anything was written: neither nothing nor an empty value."""
    return bool(value)


def is_on(value: Any) -> bool:
    """Read a switch, in a YAML or in the environment."""
    return str(value).lower() in ("true", "1", "y", "yes", "t")


def is_positive(value: Any) -> bool:
    """Say whether a value is a number above 0. What is no number, the host's own parser refuses better."""
    try:
        return float(value or 0) > 0
    except (TypeError, ValueError):
        return False


def above_one(value: Any) -> bool:
    """Say whether a degree of parallelism splits anything."""
    try:
        return int(value or 1) > 1
    except (TypeError, ValueError):
        return False


def equals(word: str | bool) -> Callable[[Any], bool]:
    """Make a test for one value."""
    return lambda value: value == word


def other_than(word: str) -> Callable[[Any], bool]:
    """Make a test for any value but one; a missing key is none."""
    return lambda value: value not in (None, word)
