"""References in a config (`${key}`, `${oc.env:NAME}`), looked up as the run does it. Loads without omegaconf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dft_plugin.config.overrides import LOSS
from dft_plugin.config.rules import as_written
from dft_plugin.errors import SettingsError


class Open(str):
    """A reference as it was written, that leads to nothing here: to verl's own config, say.

    Attributes:
        why: what omegaconf says.
    """

    __slots__ = ("why",)
    why: str


def is_open(value: Any) -> bool:
    """Say whether a value refers to another."""
    return isinstance(value, str) and "${" in value


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with what its references stand for; one that leads to nothing here stays as it is.

    Raises:
        SettingsError: `loss` has such a one.
    """
    found: dict[str, Any] = _values(_nodes(config), config)
    problems = [_refusal(path, value) for path, value in _leaves(found.get(LOSS), LOSS) if isinstance(value, Open)]
    if problems:
        raise SettingsError(problems)
    return found


def _nodes(config: Mapping[str, Any]) -> Any:
    """Return the config as omegaconf has it; in words why it has none."""
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError:
        return "omegaconf is not installed"
    try:
        return OmegaConf.create(dict(config))
    except (OmegaConfBaseException, ValueError) as error:
        return _first_line(error)


def _values(nodes: Any, given: Any) -> Any:
    """Return what stands in a mapping or a list, given its nodes."""
    if isinstance(given, Mapping):
        return {key: _value(nodes, key, value) for key, value in given.items()}
    return [_value(nodes, number, value) for number, value in enumerate(given)]


def _value(nodes: Any, key: Any, given: Any) -> Any:
    if isinstance(given, (Mapping, list)):
        return _values(nodes if isinstance(nodes, str) else nodes[key], given)
    if not is_open(given):
        return given
    if isinstance(nodes, str):
        return _open(given, nodes)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = nodes[key]
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except OmegaConfBaseException as error:
        return _open(given, _first_line(error))


def _open(given: str, why: str) -> Open:
    value = Open(given)
    value.why = why
    return value


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}")
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry, path)
    else:
        yield path, value


def _refusal(path: str, value: Open) -> str:
    return (
        f"`{path}: {as_written(value)}` cannot be looked up outside of the run ({value.why}). Set what it names, or "
        "write the value itself. `torchrun ... -m verl.trainer.sft_trainer` with this config looks it up by itself."
    )
