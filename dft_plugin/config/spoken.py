"""What people write after `loss:` in the place of what is read there. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dft_plugin.config.spelling import closest
from dft_plugin.saying import MOST_SHOWN, shown

OTHER_NAMES = {
    "sft": "nll",
    "ce": "nll",
    "crossentropy": "nll",
    "likelihood": "nll",
    "dynamicfinetuning": "dft",
    "anchoredsft": "asft",
    "ppo": "psft",
}
"""Names that losses have elsewhere, in small letters alone."""

_NAMING = ("type", "loss", "objective", "kind", "loss_type", "method")
"""Keys that people take for `name`."""


def meant(name: str, objectives: Iterable[str]) -> str | None:
    """Return the objective that a name probably means; None where it is like none."""
    known = list(objectives)
    # `dft(alpha=0.7)`, `dft alpha=0.7`
    begins = re.match(r"\w*", name.strip())
    word = OTHER_NAMES.get(re.sub(r"[^a-z]", "", name.lower()))
    if word in known:
        return word
    return closest(name, known) or closest(begins.group() if begins else "", known)


def no_loss(value: Any, where: str, objectives: Iterable[str]) -> str:
    """Say what to write in the place of what is neither a name nor a mapping."""
    if value is None:
        return f"`{where}:` has no value. Write `{where}: dft`, or leave it out to train the host's own loss."
    said = f"`{where}: {shown(value)}` is a {type(value).__name__}"
    if value is False:
        return f"{said}. Leave the line out to train the host's own loss, or write `{where}: nll` for plain SFT."
    one = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else None
    known = meant(one, objectives) if isinstance(one, str) else None
    return f"{said}; write `{where}: {known or 'dft'}`, or a mapping with `name`."


def name_as_key(value: Mapping[Any, Any], where: str, objectives: Iterable[str]) -> tuple[str, dict[Any, Any]] | None:
    """Say what to write where the objective is a key (`{dft: {alpha: 0.7}}`), or stands behind another than `name`.

    Returns:
        The problem, and the mapping that was probably meant; None where there is no such problem.
    """
    if "name" in value:
        return None
    known = list(objectives)
    for key, inner in value.items():
        others = {other: entry for other, entry in value.items() if other != key}
        if str(key) in _NAMING and isinstance(inner, str) and meant(inner, known):
            right = {"name": inner, **others}
            return f"`{where}.{key}: {inner}`: the key is called `name`. Write `{where}: {_flow(right)}`.", right
        if str(key) in known and (inner is None or isinstance(inner, Mapping)):
            right = {"name": str(key), **(inner or {}), **others}
            said = _flow(right) if len(right) > 1 else str(key)
            return f"`{where}: {{{key}: ...}}`: the loss's name is no key. Write `{where}: {said}`.", right
    return None


def _flow(mapping: Mapping[Any, Any]) -> str:
    return f"{{{', '.join(f'{key}: {_plain(entry)}' for key, entry in mapping.items())}}}"


def _plain(entry: Any) -> str:
    """Return a word or a number as YAML has it."""
    return entry if isinstance(entry, str) and len(entry) <= MOST_SHOWN else shown(entry)
