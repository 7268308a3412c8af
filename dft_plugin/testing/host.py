"""What a host must keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dft_plugin.config.hosts import Conflict, Host
from dft_plugin.config.settings import Settings


def check_host(host: Host, config: Mapping[str, Any], foreign: Mapping[str, Any]) -> None:
    """Check a host: described, tells its own configs, reads without changing them.

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
    for conflict in host.conflicts(config):
        assert isinstance(conflict, Conflict)
        assert conflict.remedy, f"the conflict of {conflict.key} says no remedy"
    host.replaces(config, Settings(name="dft"))
    assert repr(config) == before, "it changed the config"
    assert host.version_problem() is None or host.install in str(host.version_problem())
