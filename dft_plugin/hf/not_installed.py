"""Our code on the path without its installation: no entry point leads to the adapter of a host."""

from __future__ import annotations

from collections.abc import Collection
from importlib import metadata

from dft_plugin.errors import UnsupportedModelError

_ITS_OWN = "transformers"
"""Whose trainers need no adapter."""


def require_adapters(trainer: object, hosts: Collection[str]) -> None:
    """Refuse a framework's trainer where there is no adapter at all; it would be taken for a plain Trainer.

    A trainer of the user's own, in a script or a folder, is left alone: it needs none.

    Args:
        trainer: a `transformers.Trainer`.
        hosts: names of the hosts that are registered.

    Raises:
        UnsupportedModelError: says how to install.
    """
    if hosts:
        return
    packages = {base.__module__.partition(".")[0] for base in type(trainer).__mro__} - {_ITS_OWN, "builtins"}
    foreign = sorted(packages & metadata.packages_distributions().keys())
    if foreign:
        raise UnsupportedModelError(
            f"{type(trainer).__name__} comes from {', '.join(foreign)}, and no adapter is registered: dft_plugin is "
            "on the path, but not installed in this environment, so that its entry points are missing. Run: pip "
            "install dft-plugin (in a checkout: pip install -e .), and start again."
        )
