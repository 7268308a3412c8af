"""What a host must keep."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from dft_plugin.config.hosts import Conflict, Host
from dft_plugin.config.settings import Settings


def check_host(host: Host, config: Mapping[str, Any], foreign: Mapping[str, Any]) -> None:
    """Check a host: described, tells its own configs, reads without changing them, names modules that are there.

    Args:
        host: the host.
        config: a config of its own, as parsed from YAML, without `loss`.
        foreign: a config of another host.

    Raises:
        AssertionError: says what does not hold.
    """
    for attribute in ("name", "distribution", "tested", "install"):
        assert getattr(host, attribute, None), f"{type(host).__name__} has no {attribute}"
    before = repr(config)
    assert host.recognise(config), "it does not recognise its own config"
    assert not host.recognise(foreign), "it recognises a foreign config"
    for conflict in (*host.conflicts(config), *host.loses_columns(config)):
        assert isinstance(conflict, Conflict)
        assert conflict.remedy, f"the conflict of {conflict.key} says no remedy"
    for rule in (*host.rules, *host.column_rules):
        assert rule.remedy, f"the rule of {rule.key} says no remedy"
    assert set(host.resolved(config)) == set(config), "`resolved` does not return the keys of the config"
    host.replaces(config, Settings(name="dft"))
    assert repr(config) == before, "it changed the config"
    assert host.version_problem() is None or host.install in str(host.version_problem())
    assert not host.evaluate_function or host.held_out, (
        "it makes a trainer for `dft evaluate`, and does not say (`held_out`) which lines name data to evaluate on"
    )
    _check_names(host)


def _check_names(host: Host) -> None:
    """Look for what a host names by words, without importing it: the host itself may not be installed."""
    functions = ("hook_class", "launch_function", "show_function", "evaluate_function")
    named = [(name, getattr(host, name)) for name in functions]
    for attribute, where in [(name, where) for name, where in named if where]:
        module, _, name = where.partition(":")
        assert name, f"{attribute} is {where!r}; write `module:name`"
        assert _is_there(module), f"{attribute}: there is no module {module}"
    for module in host.autoload_targets.values():
        assert _is_there(module), f"autoload_targets: there is no module {module}"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
