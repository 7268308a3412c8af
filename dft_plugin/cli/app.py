"""The commands: `dft init`, `check`, `train`, `evaluate`, `compare`, ..., the group `autoload`, `--version`."""

from __future__ import annotations

import errno
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dft_plugin import __version__
from dft_plugin.cli import autoload, beforehand, comparing, completing, evaluating, hosts, probe, sampling, starting
from dft_plugin.cli.checking import check
from dft_plugin.cli.explaining import explain, find
from dft_plugin.cli.options import TAKES_OVERRIDES, Config, HostName, Overrides
from dft_plugin.cli.printing import print_loss, print_losses, print_report
from dft_plugin.cli.sample import sample
from dft_plugin.config.hosts import Launch
from dft_plugin.config.installed import libraries
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.refusals import tracebacks_wanted
from dft_plugin.errors import ConflictError, DftError

_SHOWN = 200
"""Letters of a path in a message."""

app = typer.Typer(
    name="dft",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(autoload.app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dft-plugin {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One line, `loss: dft`, in the YAML that you already train with."""


@app.command(context_settings=TAKES_OVERRIDES)
def train(config: Config, overrides: Overrides = None, host: HostName = None) -> None:
    """Start the config's own host with the loss active."""
    report = check(config, overrides or [], host)
    if not report.ok or report.settings is None:
        raise ConflictError(report.obstacles())
    if report.version_problem:
        typer.echo(f"dft: {report.version_problem}", err=True)
    launch = Launch(str(config), report.config.overrides, report.settings)
    raise typer.Exit(report.host.launch(launch))


@app.command()
def init(
    host: Annotated[str, typer.Argument(help="As in `dft hosts`: trl, axolotl, llamafactory ...")],
    lora: Annotated[bool, typer.Option("--lora", help="LoRA; where nothing is said, it is this.")] = False,
    qlora: Annotated[bool, typer.Option("--qlora", help="LoRA on a model in 4 bits.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All weights.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; an existing one is never overwritten."),
    ] = None,
) -> None:
    """Write a commented config to start from."""
    asked = [kind for kind, is_on in (("lora", lora), ("qlora", qlora), ("full", full)) if is_on]
    if len(asked) > 1:
        raise typer.BadParameter(f"--{' and --'.join(asked)}: choose one")
    path = starting.write(host, asked[0] if asked else "lora", out)
    typed = shlex.quote(str(path))
    typer.echo(f"wrote {path}. Put in your model and data, then: dft check {typed} && dft train {typed}")


@app.command(name="check", context_settings=TAKES_OVERRIDES)
def check_command(
    config: Config,
    overrides: Overrides = None,
    host: HostName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what would be on, what it replaces, and every conflict. Never trains, never writes."""
    report = check(config, overrides or [], host)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        print_report(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command(context_settings=TAKES_OVERRIDES)
def reference(
    config: Config,
    overrides: Overrides = None,
    host: HostName = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write. CONFIG-reference, beside the config, where nothing is said."),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="ref_logp, ref_mass, old_logp, with commas between them; or what the loss reads.")
    ] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a forward pass.")] = 8,
) -> None:
    """Run the frozen reference of a loss over the data once, and write what the loss reads of it beside the tokens.

    Interrupted, the same command goes on where it was.
    """
    asked = beforehand.Asked(
        config,
        overrides or [],
        host,
        out or config.parent / f"{config.stem}-reference",
        [name for name in columns.replace(",", " ").split() if name],
        batch_size,
    )
    raise typer.Exit(beforehand.run(asked))


@app.command(name="probe")
def probe_command(
    config: Annotated[
        Path | None,
        typer.Argument(help="The YAML or JSON that you train with. It is only read."),
    ] = None,
    overrides: Overrides = None,
    host: HostName = None,
    model: Annotated[
        str | None,
        typer.Option(help="In place of a config: a folder or a name on the hub; with --data. TRL prepares the data."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A file of JSON lines, Parquet or CSV, or a dataset's folder or name."),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(help="Compare this one, as after `loss:`; may be repeated."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Target tokens to look at.")] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what the model knows of the data before it is trained, and which loss fits. It trains nothing."""
    raise typer.Exit(probe.run(probe.Asked(config, overrides or [], host, model, data, loss or [], tokens, as_json)))


@app.command(context_settings=TAKES_OVERRIDES)
def evaluate(
    config: Config,
    overrides: Overrides = None,
    host: HostName = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The folder of a checkpoint, model or adapter, in the place of the config's model."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the numbers there too, as JSON; an existing file is never overwritten.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate on the config's evaluation data, as a run of it would: loss, nll, mean probability, token accuracy.

    It trains nothing, and writes nothing into the folders of runs.
    """
    raise typer.Exit(evaluating.run(evaluating.Asked(config, overrides or [], host, checkpoint, out, as_json)))


app.command()(sample)


Runs = Annotated[list[Path], typer.Argument(help="Output folders of runs, or logs in them.")]


@app.command()
def compare(runs: Runs) -> None:
    """Print what runs ended with, side by side. Reads what their hosts logged, and nothing else."""
    comparing.show(comparing.load_all(runs))


@app.command()
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="The page; an existing file is never overwritten.")] = Path(
        "dft-report.html"
    ),
    model: Annotated[
        str | None, typer.Option(help="Show rows of the data as this model weighs them; with --data or --config.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A file of JSON lines, Parquet or CSV, or a dataset's folder or name.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="In place of --data: what you train with, for its data and template.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Whose weights are shown, as after `loss:`; else the config's or the run's.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=100, help="Rows of the data to show.")] = 6,
) -> None:
    """Write one HTML file with the curves of runs. It needs no network, and opens nothing."""
    # Before a model is run for minutes.
    comparing.require_plotly()
    found = comparing.load_all(runs)
    samples = sampling.find(sampling.Asked(config, model, data, loss, rows), found)
    comparing.show(found)
    typer.echo(f"wrote {comparing.write(found, out, samples)}")


@app.command()
def losses(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Explain this one: options, when it helps, what it costs.", autocompletion=completing.losses
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what may stand after `loss:`; with a name, explain that one."""
    catalogue = build_catalogue()
    found = [explain(entry) for entry in catalogue.objectives.values()] if name is None else [find(catalogue, name)]
    if as_json:
        every = [asdict(one) for one in found]
        typer.echo(json.dumps(every if name is None else every[0], indent=2))
    elif name is None:
        print_losses(found)
    else:
        print_loss(found[0])


@app.command(name="hosts")
def hosts_command(
    name: Annotated[
        str | None, typer.Argument(help="Say of this one how to install it.", autocompletion=completing.hosts)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List training frameworks and what they stand on: installed, tested; with a name, the pip line of that one."""
    found = build_catalogue().hosts
    if as_json:
        typer.echo(json.dumps(hosts.as_json(found, libraries()), indent=2))
    elif name is not None:
        hosts.print_host(hosts.find(found, name), [entry.item for entry in found.values()])
    else:
        hosts.print_hosts(found, libraries())


def main() -> None:
    """Run `dft`; an error of ours is a message and exit code 2, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # The name of a file, or a text of a config, may hold what no terminal shows.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="dft")
    except DftError as error:
        if tracebacks_wanted():
            raise
        typer.echo(f"dft: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        # A name that is too long, a folder that nobody may look into: whoever asks whether it is there is told so.
        looking = error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP, errno.ENOTDIR)
        if tracebacks_wanted() or not looking or not _is_given(error.filename, sys.argv[1:]):
            raise
        name = str(error.filename)
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        typer.echo(f"dft: {shown} cannot be looked at ({error.strerror}). Give another path.", err=True)
        sys.exit(2)


def _is_given(path: object, words: Sequence[str]) -> bool:
    """Say whether a path is one that stands on the command line, or lies below one."""
    given = [Path(found) for word in words if (found := word.rpartition("=")[2])]
    return any(one in (Path(str(path)), *Path(str(path)).parents) for one in given)
