"""What an objective declares of itself, looked at before it is used: a kernel would fail on it in the first batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from dft_plugin.errors import PluginError
from dft_plugin.objectives.base import Divisor, Objective, ReferenceNeed, Scope
from dft_plugin.objectives.rows import Named, RowFunction
from dft_plugin.saying import shown


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _set_of(each: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (set, frozenset)) and all(map(each, value))


def _one_of(kind: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in get_args(kind)


def _words(kind: Any) -> str:
    return ", ".join(get_args(kind))


_DECLARED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "needs": (
        _set_of(lambda one: one in get_args(Named) if isinstance(one, str) else isinstance(one, RowFunction)),
        f"a frozenset of {_words(Named)} or functions of rows",
    ),
    "columns": (_set_of(_is_name), "a frozenset of names"),
    "places": (lambda value: isinstance(value, bool), "True or False"),
    "scope": (_one_of(Scope), _words(Scope)),
    "divisor": (_one_of(Divisor), _words(Divisor)),
    "statistics": (lambda value: isinstance(value, (tuple, list)) and all(map(_is_name, value)), "a tuple of names"),
    "reference": (_one_of(ReferenceNeed), _words(ReferenceNeed)),
    "replaces_target": (lambda value: isinstance(value, bool), "True or False"),
}
"""Whether what is declared can be used, and what is allowed."""


def require_declared(objective: Objective) -> None:
    """Require what an objective declares to be what a kernel can use.

    Raises:
        PluginError: with the class, what it declares, and what is allowed.
    """
    for attribute, (is_right, allowed) in _DECLARED.items():
        try:
            value = getattr(objective, attribute)
        except Exception as error:
            raise PluginError(
                f"the objective {type(objective).__name__} does not say its `{attribute}` ({type(error).__name__}: "
                f"{error}); {allowed} is needed."
            ) from error
        if not is_right(value):
            raise PluginError(
                f"the objective {type(objective).__name__} declares `{attribute}` as {shown(value)}; {allowed} is "
                "needed."
            )
