"""Which keys of a config its host does not have: looked for in the host's text, then in the host. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dft_plugin.config.hosts import Host
from dft_plugin.config.plugins import Catalogue
from dft_plugin.config.settings import OWN_KEYS
from dft_plugin.config.spelling import did_you_mean

_NAMED = 20
"""Unknown keys that are named, each with what it may have meant; the others are counted."""


def unknown_keys(host: Host, config: Mapping[str, Any]) -> list[str]:
    """List keys of a file that its host does not have, in words: some hosts drop them and say nothing.

    The host is imported, which takes seconds, only where a key is not to be found in its text.

    Args:
        host: whose file it is.
        config: its keys, ours left out.
    """
    if host.installed_version() is None or host.takes_any_key(config):
        return []
    strange = _undefined(map(str, config), host.keys_in)
    try:
        known = _known(host) if strange else None
    except Exception:
        # A host that cannot be imported says so when it is started; what it has read is not worth a traceback.
        return []
    if known is None:
        return []
    strange = [key for key in strange if key not in known]
    found = [f"`{key}`: {host.name} has no such key.{did_you_mean(key, known)}" for key in strange[:_NAMED]]
    more = len(strange) - len(found)
    return [*found, f"{more:,} more keys that {host.name} has not. Is it another host's file?"] if more else found


def unknown_overrides(host: Host, overrides: Iterable[tuple[str, str]], catalogue: Catalogue) -> list[str]:
    """List words of a command line that change a key which the host does not have.

    Some hosts hand them to their launcher, others drop them.

    Args:
        host: whose command line it is.
        overrides: `(key, text)`, ours left out.
        catalogue: whose options are told from the host's.
    """
    given = list(overrides)
    if not given or host.installed_version() is None:
        return []
    known = _known(host)
    if known is None:
        return []
    options = {*OWN_KEYS, *(name for entry in catalogue.objectives.values() for name in entry.item.model_fields)}
    problems = []
    for key, text in given:
        first = key.partition(".")[0]
        if first in known:
            continue
        ours = next((word for word in (first, first.removeprefix("loss_")) if word in options), None)
        hint = f" An option of the loss is written `loss.{ours}={text}`." if ours else did_you_mean(first, known)
        hint = hint or f" `{host.name}` lists them in its documentation, and with `--help`."
        problems.append(f"override `{key}={text}`: {host.name} has no key `{first}`.{hint}")
    return problems


def _known(host: Host) -> frozenset[str] | None:
    # What a host says while it is imported is none of a report's lines.
    with redirect_stdout(sys.stderr):
        return host.known_keys()


def _undefined(keys: Iterable[str], places: Iterable[str]) -> list[str]:
    """Return the keys that no text at these places defines; none of them where there is no such text."""
    text = "\n".join(_texts(places))
    if not text:
        return []
    # A field of a dataclass, an argument of a parser.
    defined = {name for found in re.finditer(r"(?m)^\s+([\w-]+)\s*:|--([\w-]+)", text) for name in found.groups()}
    return [key for key in keys if key not in defined]


def _texts(places: Iterable[str]) -> Iterator[str]:
    for place in places:
        package, _, inside = place.partition("/")
        spec = find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            path = Path(folder, inside)
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []:
                yield file.read_text(encoding="utf-8", errors="replace")
