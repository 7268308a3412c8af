"""A function of ours on its way to Ray's workers, which say so where dft-plugin is missing. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dft_plugin import __version__
from dft_plugin.errors import ConflictError, DftError

_SAYS = "dft: "
"""How the text of an error begins that a worker raises without a class of ours."""


def sent(target: str, **given: Any) -> Callable[[Any], Any]:
    """Return a function of one argument that calls one of ours, in whatever process it is called.

    Ray sends a function that no module has under its name as code, with what it closes over. So this one runs on a
    worker without dft-plugin as well: a function that is sent by its name would not be found there, in the middle of
    Ray, and the host's own would train the host's own loss.

    Args:
        target: `module:function`, of ours.
        given: plain values, which the function gets by name, behind the argument.

    Returns:
        The function. It raises RuntimeError where dft-plugin cannot be imported, or is of another version than here.
    """
    wanted, says = __version__, _SAYS

    def call(argument: Any) -> Any:
        # Whatever is used must be imported in here.
        from importlib import import_module
        from socket import gethostname

        name = target.partition(":")
        try:
            found = import_module("dft_plugin").__version__
            function = getattr(import_module(name[0]), name[2]) if found == wanted else None
            problem = f"it has dft-plugin {found}, and the run was started with {wanted}"
        except Exception as error:
            function = None
            problem = f"dft-plugin cannot be imported there ({type(error).__name__}: {error})"
        if function is None:
            raise RuntimeError(
                f"{says}the worker on {gethostname()} would not train what stands after `loss:`: {problem}. Nothing "
                f"was trained. Run on each node: pip install dft-plugin=={wanted}. Or leave out `loss:`."
            )
        return function(argument, **given)

    return call


@contextmanager
def as_refused() -> Iterator[None]:
    """Raise what a worker has refused as that refusal, and not as the traceback of a worker."""
    try:
        yield
    except Exception as error:
        for one in _behind(error):
            # What Ray raises is of the class of its cause, too.
            if one is not error and isinstance(one, DftError) and not hasattr(one, "cause"):
                raise one from error
            if type(one) is RuntimeError and str(one).startswith(_SAYS):
                raise ConflictError([str(one).removeprefix(_SAYS)]) from error
        raise


def _behind(error: BaseException) -> Iterator[BaseException]:
    """Walk through what an error of Ray's was made of, the first cause first."""
    named = (getattr(error, name, None) for name in ("cause", "_base_exc", "__cause__"))
    failures = getattr(error, "worker_failures", None)
    for one in (*named, *(failures.values() if isinstance(failures, dict) else ())):
        if isinstance(one, BaseException):
            yield from _behind(one)
    yield error
