"""The table that transformers shows in a notebook while it trains, with our statistics in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_CALLBACK = "NotebookProgressCallback"
"""By its name: the module that has it imports IPython."""

SHOWN = ("nll", "mean_prob", "effective_tokens", "eos_prob", "top1", "entropy")
"""Statistics that get a column, where they are logged: a table of all would not fit a screen."""


def show_statistics(trainer: Any, change: Callable[[Any, str, Any], None]) -> None:
    """Have the table of a notebook show `dft/*`, and `eval_dft/*` where the run evaluates.

    transformers takes no metric but the loss of a training; its tracker takes any column (`write_line`), and puts what
    is written for a step that is there already into the same line.

    Args:
        trainer: a `transformers.Trainer`.
        change: sets an attribute until the loss is taken off.
    """
    for callback in trainer.callback_handler.callbacks:
        if any(kind.__name__ == _CALLBACK for kind in type(callback).__mro__):
            change(callback, "on_log", _after_log(callback, callback.on_log))
            change(callback, "on_evaluate", _after_evaluate(callback, callback.on_evaluate))


def _after_log(callback: Any, inner: Callable[..., Any]) -> Callable[..., Any]:
    def on_log(args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
        done = inner(args, state, control, logs=logs, **kwargs)
        # With an evaluation, lines are written by that.
        if logs is not None and "loss" in logs and args.eval_strategy == "no":
            _add(callback, _chosen(logs, "dft/"))
        return done

    return on_log


def _after_evaluate(callback: Any, inner: Callable[..., Any]) -> Callable[..., Any]:
    def on_evaluate(args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> Any:
        if metrics is None or callback.training_tracker is None:
            return inner(args, state, control, metrics=metrics, **kwargs)
        # Their names would come out as `Dft/nll`, as if they were of the training.
        own = {key: metrics.pop(key) for key in [*metrics] if "dft/" in key}
        try:
            done = inner(args, state, control, metrics=metrics, **kwargs)
        finally:
            metrics.update(own)
        trained: dict[str, Any] = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
        _add(callback, {**_chosen(trained, "dft/"), **_chosen(own, "")})
        return done

    return on_evaluate


def _chosen(logs: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return what gets a column, in the order of the columns."""
    found = {}
    for name in SHOWN:
        found.update({k: v for k, v in logs.items() if k.endswith(f"dft/{name}") and k.startswith(prefix)})
    return found


def _add(callback: Any, values: dict[str, Any]) -> None:
    tracker = callback.training_tracker
    table = None if tracker is None else tracker.inner_table
    if values and table is not None and len(table) > 1:
        # Its first column says which line it is.
        tracker.write_line({table[0][0]: table[-1][0], **values})
