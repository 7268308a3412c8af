"""The progress bar of `dft sample`."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A progress bar on stderr: rows of the data."""

    def __init__(self, count: int | None, limit: int | None, done: int) -> None:
        total = limit if count is None else min(count, limit or count)
        self._done = done
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("questions", total=total, completed=done)

    def __enter__(self) -> Bar:
        if self._done:
            typer.echo(f"dft: {self._done} rows are done already", err=True)
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, rows: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, rows)
