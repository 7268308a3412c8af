"""What dft-plugin itself registers, through the same hooks as anyone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dft_plugin.config.hookspecs import hookimpl
from dft_plugin.objectives import FAMILY, Objective

if TYPE_CHECKING:
    from dft_plugin.kernels import Kernel


@hookimpl
def register_objectives() -> Iterable[type[Objective]]:
    """The paper's loss, plain likelihood to compare with, and what came after."""
    return FAMILY


@hookimpl
def register_kernels() -> Iterable[Kernel]:
    """The lean kernels, and the naive one to compare with."""
    from dft_plugin.kernels import blocked, chunked, reference

    return [chunked, blocked, reference]
