"""Objectives made on the spot, that are wrong in one thing."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dft_plugin import Objective
from dft_plugin.config import builtin
from dft_plugin.config.hookspecs import hookimpl


class Plain(Objective):
    """One that conforms; what follows is wrong in one thing."""

    name: ClassVar[str] = "plain"
    summary: ClassVar[str] = "w = p"
    source: ClassVar[str] = "none"

    def weight(self, rows):
        return rows.logp_T.exp()


def objective(weigh: Any, **declared: Any) -> Objective:
    """Make one that weighs by a function of rows and targets."""
    body = {"weigh": lambda self, rows, targets, clock: weigh(rows, targets), "__module__": __name__}
    kinds = dict.fromkeys(declared, ClassVar)
    return type("Made", (Plain,), {**body, **declared, "__annotations__": kinds})()


def p(rows: Any) -> Tensor:
    return rows.logp_T.exp()


def register(monkeypatch: Any, *kinds: type[Objective]) -> None:
    """Let objectives be named in a config, as a plugin's are."""
    shipped = builtin.register_objectives

    def register_objectives() -> list[type[Objective]]:
        return [*shipped(), *kinds]

    monkeypatch.setattr(builtin, "register_objectives", hookimpl(register_objectives))
