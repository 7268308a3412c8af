"""The entry point: light, since it is imported whenever plugins are listed."""

from __future__ import annotations

from collections.abc import Iterable

from dft_plugin.config.hookspecs import hookimpl
from dft_plugin.config.hosts import Host


@hookimpl
def register_hosts() -> Iterable[Host]:
    """Register TRL."""
    from dft_trl.host import TrlHost

    return [TrlHost()]
