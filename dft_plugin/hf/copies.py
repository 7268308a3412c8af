"""A forward that was replaced by a function which holds the model: in a copy of the model it holds the copy.

TRL puts a function around the forward, with the model's own bound method in its closure. `copy.deepcopy` takes
functions as they are, so that the copy would run the weights of the model that it was made from.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from torch import nn


def deep_copy(model: Any) -> Any:
    """Copy a model as `copy.deepcopy` does, its forward included, where that is a function that holds the model."""
    memo: dict[int, Any] = {}
    made = copy.deepcopy(model, memo)
    if "forward" in vars(model):
        vars(made)["forward"] = of_deep_copy(vars(model)["forward"], model, memo)
    return made


def of_deep_copy(forward: Any, model: nn.Module, memo: dict[int, Any], besides: Iterable[Any] = ()) -> Any:
    """Return what stands for a forward in a copy of its model.

    Args:
        forward: what was put into the model's `forward`.
        model: what is copied.
        memo: of `copy.deepcopy`, which has begun with the model.
        besides: what else is to be copied where the forward holds it.
    """
    parts = chain(model.modules(), model.parameters(), model.buffers(), besides)
    return _Moved({id(part) for part in parts}, lambda part: copy.deepcopy(part, memo)).of(forward)


def of_shallow_copy(forward: Any, model: nn.Module, module: nn.Module) -> Any:
    """Return what stands for a forward in a copy of its model that has the same weights.

    Args:
        forward: what was put into the model's `forward`.
        model: what was copied.
        module: the copy.
    """
    return _Moved({id(model)}, lambda _: module).of(forward)


class _Moved:
    """Makes functions and callable objects again that hold parts of a model: by closures, defaults, attributes.

    What holds none stays what it is, and so do variables that functions share.

    Args:
        parts: the identities of these.
        copied: gives what stands for a part.
    """

    def __init__(self, parts: set[int], copied: Callable[[Any], Any]) -> None:
        self._parts, self._copied = parts, copied
        self._done: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """Return what stands for a value."""
        if id(value) in self._done:
            return self._done[id(value)]
        if id(value) in self._parts:
            return self._copied(value)
        if not self._holds_part(value):
            return value
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, functools.partial):
            keywords = {name: self.of(part) for name, part in value.keywords.items()}
            return functools.partial(self.of(value.func), *map(self.of, value.args), **keywords)
        if type(value) is dict:
            return {name: self.of(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(map(self.of, value))
        # Past what it says of copies: accelerate's wrapper refuses to be pickled.
        made = self._done[id(value)] = object.__new__(type(value))
        vars(made).update({name: self.of(part) for name, part in vars(value).items()})
        return made

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, self.of(function.__defaults__), cells
        )
        self._done[id(function)] = made
        for cell, new in zip(function.__closure__ or (), cells, strict=True):
            if new is not cell:
                new.cell_contents = self.of(cell.cell_contents)
        made.__kwdefaults__ = self.of(function.__kwdefaults__)
        made.__qualname__, made.__module__, made.__doc__ = (
            function.__qualname__,
            function.__module__,
            function.__doc__,
        )
        made.__annotations__ = function.__annotations__
        vars(made).update({name: self.of(value) for name, value in vars(function).items()})
        return made

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) not in self._done:
            self._done[id(cell)] = types.CellType() if self._holds_part(cell) else cell
        made: types.CellType = self._done[id(cell)]
        return made

    def _holds_part(self, value: Any) -> bool:
        waiting, seen = [value], set[int]()
        while waiting:
            one = waiting.pop()
            if id(one) in self._parts:
                return True
            if id(one) not in seen:
                seen.add(id(one))
                waiting += _held(one)
        return False


def _held(value: Any) -> Iterable[Any]:
    """Return what a function, or a plain container of one, holds."""
    if isinstance(value, types.FunctionType):
        defaults = (value.__defaults__, value.__kwdefaults__)
        return (*(value.__closure__ or ()), *defaults, *vars(value).values())
    if isinstance(value, types.CellType):
        try:
            return (value.cell_contents,)
        except ValueError:
            # Nothing was put in yet.
            return ()
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if type(value) is dict:
        return tuple(value.values())
    if type(value) in (tuple, list):
        return tuple(value)
    # accelerate's `ConvertOutputsToFp32`, and whatever else is called as a forward without being a function.
    plain = callable(value) and not isinstance(value, type | nn.Module)
    made_plainly: object = type(value).__new__
    plain = plain and made_plainly is object.__new__ and hasattr(value, "__dict__")
    return tuple(vars(value).values()) if plain else ()
