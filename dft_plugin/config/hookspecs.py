"""What a plugin may add. Each hook takes nothing and returns an iterable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable

    from dft_plugin.config.hosts import Host
    from dft_plugin.kernels import Kernel
    from dft_plugin.objectives import Objective

    F = TypeVar("F", bound=Callable[..., object])

PROJECT = "dft_plugin"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
_marker = pluggy.HookimplMarker(PROJECT)


def hookimpl(function: F) -> F:
    """Mark a function as the implementation of a hook."""
    return _marker(function)


def registering(*hosts: str) -> Callable[[], Iterable[Host]]:
    """Make the `register_hosts` of an entry point, which is imported whenever plugins are listed, and so is light.

    Args:
        hosts: classes, each as `module:Class`; imported when hosts are asked for.
    """

    def register_hosts() -> Iterable[Host]:
        from dft_plugin.config.hosts import named

        return [named(host)() for host in hosts]

    return hookimpl(register_hosts)


@hookspec
def register_objectives() -> Iterable[type[Objective]]:
    """Return objective classes; their `name` is what a user writes after `loss:`."""
    raise NotImplementedError


@hookspec
def register_kernels() -> Iterable[Kernel]:
    """Return kernels (functions); their `__name__` is what a user writes after `kernel:`."""
    raise NotImplementedError


@hookspec
def register_hosts() -> Iterable[Host]:
    """Return hosts: training frameworks whose YAML `dft train` and `dft check` understand."""
    raise NotImplementedError
