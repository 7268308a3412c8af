"""Wrapping methods of one object, and taking that back; standing around an object that is not changed."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

_ABSENT = object()


def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method of a `Wrapper` that stands in for its owner's of the same name, which it gets as `inner`."""
    name = method.__name__

    @functools.wraps(method)
    def run(self: Wrapper, *args: Any, **kwargs: Any) -> Any:
        inner = self.inner[name]
        # Somebody may have wrapped us since, and call us after we were taken off.
        return method(self, inner, *args, **kwargs) if self.active else inner(*args, **kwargs)

    vars(run)["wraps"] = name
    return run


class Wrapper:
    """Changes an object and what it holds, until all of it is undone.

    The changed object holds it. Nobody else does, so that a model does not keep a trainer alive.

    Attributes:
        undo: what takes the changes back, to be run the last first.
        inner: the owner's own methods, by name.
        active: False once the changes were undone.
    """

    def __init__(self, undo: list[Callable[[], None]]) -> None:
        """Have the changes undone by what is put into `undo`, as long as the changed object is there."""
        self.undo: list[Callable[[], None]] = []
        put_back = weakref.WeakMethod(self.put_back)

        def undo_if_alive() -> None:
            alive = put_back()
            if alive is not None:
                alive()

        undo.append(undo_if_alive)
        self.inner: dict[str, Callable[..., Any]] = {}
        self.active = True

    def wrap(self, owner: Any) -> None:
        """Put each method that is marked `wrapped` in the place of the owner's, if it has one of that name."""
        self.undo.append(self._deactivate)
        for name in dir(type(self)):
            if hasattr(getattr(type(self), name), "wraps") and hasattr(owner, name):
                self.inner[name] = getattr(owner, name)
                self.change(owner, name, getattr(self, name))

    def change(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute until the changes are undone. What somebody else has put there by then stays."""
        before = vars(owner).get(name, _ABSENT)

        def undo() -> None:
            if vars(owner).get(name, _ABSENT) == value:
                _put(owner, name, before)

        setattr(owner, name, value)
        self.undo.append(undo)

    def put_back(self) -> None:
        """Undo all changes. Others can be made afterwards."""
        while self.undo:
            self.undo.pop()()

    def _deactivate(self) -> None:
        self.active = False


class Around:
    """Base of what stands in for an object of a host's: what it does not have, that has.

    Attributes:
        inner: the object.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        # Copied and unpickled, it is asked before it has any attribute.
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def wrapper_of(owner: Any) -> Any:
    """Return the `Wrapper` whose methods stand in an object, or None."""
    for value in vars(owner).values():
        wrapper = getattr(value, "__self__", None)
        if isinstance(wrapper, Wrapper):
            return wrapper
    return None


def _put(owner: Any, name: str, value: Any) -> None:
    if value is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
