"""`dft reference`: columns of a frozen model, computed before training, and the lines of YAML that read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dft_plugin.cli.checking import find_host, settings_of
from dft_plugin.config.beforehand import carried, computed, trained_with
from dft_plugin.config.hosts import Host, Launch
from dft_plugin.config.installed import version_problem
from dft_plugin.config.keys import unknown_overrides
from dft_plugin.config.plugins import Catalogue, build_catalogue
from dft_plugin.config.reading import LOSS, RunConfig, load
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError

INTERRUPTED = 130
"""The exit code of what was stopped by Ctrl-C."""

_UNREAD = (
    "`dft reference` cannot prepare the data of {host}. Put the columns into tokenised rows by yourself, a number for "
    "each token, or let the reference run beside the training: `dft train`."
)


@dataclass(frozen=True)
class Asked:
    """What stands on the command line.

    Attributes:
        path: the config.
        overrides: `key=value`.
        host: which host it is for; None: its keys say it.
        out: the folder to write.
        columns: those that are named; none: what the loss reads.
        batch_size: rows of a forward pass.
    """

    path: Path
    overrides: Sequence[str]
    host: str | None
    out: Path
    columns: Sequence[str]
    batch_size: int


class Shown:
    """A progress bar on stderr, and a line of what is computed.

    Args:
        columns: what is computed.
        out: where to.
    """

    def __init__(self, columns: Sequence[str], out: Path) -> None:
        self.columns, self.out, self.done, self.total = columns, out, 0, 0
        words = TextColumn("{task.description}")
        self._bar = Progress(
            words,
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("rows", start=False, total=None, visible=False)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Have the bar on the screen, from the first row on."""
        try:
            yield
        finally:
            self._bar.stop()

    def begin(self, total: int, done: int, made_of: Mapping[str, str]) -> None:
        """Say what is done, and where it goes on."""
        self.total, self.done = total, done
        by = ", ".join(f"{key}: {made_of[key]}" for key in made_of if key.startswith(("model", "adapters")))
        typer.echo(f"dft: {', '.join(self.columns)} of {total} rows ({by}), into {self.out}", err=True)
        if done:
            typer.echo(f"dft: {done} rows are there already", err=True)
        if done < total:
            self._bar.start_task(self._task)
            self._bar.update(self._task, total=total, completed=done, visible=True)
            self._bar.start()

    def advance(self, rows: int) -> None:
        """Move the bar."""
        self.done += rows
        self._bar.update(self._task, completed=self.done)


def run(asked: Asked) -> int:
    """Compute, write, and say how to train with it. Returns the exit code.

    Raises:
        DftError: it cannot be done; says what to do instead.
    """
    catalogue = build_catalogue()
    config = load(asked.path, asked.overrides)
    host = find_host(config, catalogue, asked.host)
    if not host.reads_rows:
        raise ConflictError([_UNREAD.format(host=host.name)])
    unknown = unknown_overrides(host, config.overrides, catalogue)
    if unknown:
        raise ConflictError(unknown)
    settings = _settings(config, catalogue, asked)
    columns = computed(settings, catalogue, asked.columns)
    if host.installed_version() is None or host.is_too_old():
        every = [entry.item for entry in catalogue.hosts.values()]
        raise ConflictError([str(version_problem(host, every))])
    # It loads torch: not before what can be said without.
    from dft_plugin.hf.beforehand import Request, compute

    request = Request(columns, carried(settings, catalogue), settings.reference, asked.out, asked.batch_size)
    shown = Shown(columns, asked.out)

    try:
        trainer = host.show_trainer(Launch(str(asked.path), config.overrides, settings), request.carried)
        with shown.shown():
            counts = compute(trainer, request, shown)
    except KeyboardInterrupt:
        typer.echo("dft: stopped. The same command goes on from the last rows that were written.", err=True)
        return INTERRUPTED
    loss = trained_with(settings, columns, catalogue)
    lines = _lines(host, config, asked.out, counts, loss if config.loss is not None else None)
    typer.echo("\n".join([_summary(counts, asked.out), *lines]))
    return 0


def _settings(config: RunConfig, catalogue: Catalogue, asked: Asked) -> Settings:
    if not config.names_loss and asked.columns:
        return catalogue.settings("nll")
    settings, problems = settings_of(config, catalogue)
    if settings is None or problems:
        raise ConflictError(list(problems))
    return settings


def _summary(counts: Mapping[str, int], out: Path) -> str:
    of = ", ".join(f"{split} {count}" for split, count in counts.items())
    return f"{out} is complete: rows of {of}. Each holds tokens, labels and a number for each token. Train with"


def _lines(
    host: Host, config: RunConfig, out: Path, counts: Mapping[str, int], loss: Settings | None
) -> Iterator[str]:
    """Yield lines to copy."""
    # A bare word would be the name of a dataset on a hub, or of a builder: `json`.
    folder = str(out) if len(out.parts) > 1 else f"./{out}"
    reading = host.reading(folder, list(counts), config.host)
    written = {key: value for key, value in reading.items() if value is not None}
    yield ""
    yield yaml.safe_dump(written, sort_keys=False, default_flow_style=False).rstrip()
    if loss is not None:
        flow = yaml.safe_dump(loss.as_written(), sort_keys=False, default_flow_style=True, width=10_000).strip()
        yield f"{LOSS}: {flow}"
    yield ""
    gone = [f"`{key}`" for key, value in reading.items() if value is None]
    if gone:
        yield f"in {config.path}, without {', '.join(gone)}; all else may stay as it is."
    else:
        yield f"in {config.path}; all else may stay as it is."
