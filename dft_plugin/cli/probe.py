"""`dft probe`: what a model knows of its data before it is trained, and which loss fits."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dft_plugin.cli import rows_given
from dft_plugin.cli.checking import find_host
from dft_plugin.config.advice import Advice, advise, as_json
from dft_plugin.config.hosts import Host, Launch
from dft_plugin.config.plugins import Catalogue, build_catalogue
from dft_plugin.config.reading import load
from dft_plugin.config.schedules import ends
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError, SettingsError

if TYPE_CHECKING:
    from dft_plugin.hf.probing import Probe
    from dft_plugin.objectives import Objective

SHOWN = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
"""Ends of the bands of the table; a file (`--json`) has finer ones."""

ALWAYS = ("nll", "dft", "{name: dft, alpha: 0.5}", "eaft")
"""What is compared where nothing is named."""

_DATA_SUFFIXES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Asked:
    """What stands on the command line.

    Attributes:
        path: the config; None: `model` and `data` are given.
        overrides: `key=value`.
        host: which host it is for; None: its keys say it.
        model: a folder or a name on the hub.
        data: a file, a folder or a name on the hub.
        losses: to compare, each as after `loss:`; none: a few telling ones.
        tokens: target tokens to look at.
        as_json: whether JSON is printed.
    """

    path: Path | None
    overrides: Sequence[str]
    host: str | None
    model: str | None
    data: str | None
    losses: Sequence[str]
    tokens: int
    as_json: bool


def run(asked: Asked) -> int:
    """Look, and print. Returns the exit code.

    Raises:
        DftError: it cannot be done; says what to do instead.
    """
    if (asked.path is None) == (asked.model is None or asked.data is None):
        raise ConflictError(["give the config that you train with (dft probe sft.yaml), or --model and --data."])
    catalogue = build_catalogue()
    with tempfile.TemporaryDirectory() as folder:
        path = asked.path or written(Path(folder), str(asked.model), str(asked.data))
        return _run(asked, path, catalogue)


def _run(asked: Asked, path: Path, catalogue: Catalogue) -> int:
    config = load(path, asked.overrides)
    host = find_host(config, catalogue, asked.host)
    if host.installed_version() is None or host.is_too_old():
        raise ConflictError([str(host.version_problem())])
    own = config.loss if config.loss is not None else None
    objectives, left_out = _objectives(catalogue, own, asked.losses)
    # It loads torch: not before what can be said without.
    from dft_plugin.hf.probing import probe

    with as_it_was(Path(str(config.host.get("output_dir", "")))):
        trainer = host.show_trainer(Launch(str(path), config.overrides, catalogue.settings("nll")), ())
        with _Bar(asked.tokens) as bar:
            found = probe(trainer, objectives, asked.tokens, bar.advance)
    advice = advise(found.finding())
    if asked.as_json:
        typer.echo(json.dumps(_as_json(host, found, advice), indent=2))
    else:
        _print(found, advice, left_out)
    return 0


@contextmanager
def as_it_was(folder: Path) -> Iterator[None]:
    """Leave no empty folder behind that a trainer makes for its checkpoints."""
    there = folder.exists()
    try:
        yield
    finally:
        if not there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def written(folder: Path, model: str, data: str) -> Path:
    """Write TRL's config of a model and data."""
    there = Path(data)
    if there.suffix in _DATA_SUFFIXES and not there.exists():
        raise SettingsError([f"--data {data} is not there. Give a file, or a folder or name of a dataset."])
    if there.exists() and not (there.is_file() or there.is_dir()):
        raise SettingsError([f"--data {data} is no file and no folder. Give one, or the name of a dataset."])
    wrong = rows_given.problem(there) if there.is_file() and there.suffix in _DATA_SUFFIXES else None
    if wrong is not None:
        raise SettingsError([f"--data {wrong}"])
    if there.suffix in _DATA_SUFFIXES:
        named: dict[str, Any] = {"datasets": [{"path": _DATA_SUFFIXES[there.suffix], "data_files": data}]}
    elif there.is_file():
        raise SettingsError(
            [f"--data {data}: a file of {', '.join(_DATA_SUFFIXES)} is read, or a folder or name of a dataset."]
        )
    else:
        named = {"dataset_name": data}
    import torch

    # TRL wants to be told of both.
    device = {} if torch.accelerator.is_available() else {"use_cpu": True, "bf16": False}
    config = {"model_name_or_path": model, **named, "output_dir": str(folder / "run"), "report_to": "none", **device}
    path = folder / "probe.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _objectives(catalogue: Catalogue, own: Any, named: Sequence[str]) -> tuple[dict[str, Objective], list[str]]:
    """Return what is compared, by what is written after `loss:`, and what cannot be."""
    every: dict[str, Settings] = {}
    if own is not None:
        settings = catalogue.settings(own)
        every[_line(settings)] = settings
    for text in named or ALWAYS:
        settings = catalogue.settings(yaml.safe_load(text))
        every.setdefault(_line(settings), settings)
    made = {line: catalogue.objectives[one.name].item(**ends(one.options, "to")) for line, one in every.items()}
    from dft_plugin.hf.probing import can_be_probed

    left_out = [line for line, objective in made.items() if not can_be_probed(objective)]
    # The two that everyone knows come first.
    order = sorted(made.keys() - left_out, key=lambda line: ({"nll": 0, "dft": 1}.get(line, 2), [*made].index(line)))
    return {line: made[line] for line in order}, left_out


def _line(settings: Settings) -> str:
    written = settings.as_written()
    if written.keys() == {"name"}:
        return settings.name
    return yaml.safe_dump(written, default_flow_style=True, sort_keys=False, width=10_000).strip()


class _Bar:
    """A progress bar on stderr."""

    def __init__(self, total: int) -> None:
        words = TextColumn("{task.description}")
        console = Console(stderr=True)
        self._bar = Progress(words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
        self._task = self._bar.add_task("target tokens", total=total)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, tokens: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, tokens)


def _as_json(host: Host, found: Probe, advice: Sequence[Advice]) -> dict[str, Any]:
    return {
        "host": host.name,
        "found": found.finding(),
        "kinds": {kind: sums.as_json() for kind, sums in found.of_kind.items()},
        "objectives": found.by_objective(),
        "bands": found.by_band(),
        "advice": as_json(advice),
    }


def _print(found: Probe, advice: Sequence[Advice], left_out: Sequence[str]) -> None:
    console, numbers = Console(), found.finding()
    console.print(
        f"{numbers['tokens']:,.0f} target tokens of {numbers['rows']:,.0f} rows: mean probability "
        f"{numbers['mean_prob']:.3f}, nll {numbers['nll']:.3f} nats (the model expects {numbers['entropy']:.3f}), "
        f"likeliest token {numbers['top1']:.0%}",
        highlight=False,
    )
    console.print(_by_probability(found))
    console.print(_by_kind(found.of_kind))
    console.print("Gradient: |w| (1 - p), its size on the target's logit.", highlight=False)
    for line in left_out:
        typer.echo(f"not compared: {line}, whose weights are not known from the model alone")
    for one in advice:
        typer.echo("")
        typer.echo(f"    loss: {one.what}" if one.is_loss else f"    {one.what}")
        typer.echo("")
        console.print(f"{one.why}.", f"({one.source})", highlight=False, markup=False)


def _by_probability(found: Probe) -> Table:
    names = [*found.objectives]
    table = Table("probability", "tokens", *names, title="How much of each loss's gradient comes from which targets")
    bands = found.by_band()
    for low, high in pairwise(SHOWN):
        inside = [band for band in bands if low <= band["from"] and band["to"] <= high]
        shares = [sum(band["gradient"][name] for band in inside) for name in names]
        tokens = sum(band["share"] for band in inside)
        table.add_row(f"{low:g} to {high:g}", f"{tokens:.1%}", *(f"{share:.1%}" for share in shares))
    every = found.by_objective()
    table.add_section()
    effective = [every[name]["effective_tokens"] / found.bands.tokens for name in names]
    table.add_row("effective tokens", "", *(f"{share:.1%}" for share in effective))
    sft = every.get("nll", {}).get("gradient")
    if sft:
        table.add_row("gradient / SFT's", "", *(f"{every[name]['gradient'] / sft:.2f}" for name in names))
    return table


_KINDS = {
    "text": "text",
    "eos": "ends of answers",
    "added": "added tokens",
    "special": "other special tokens",
    "beginnings": "the first targets of a row",
}


def _by_kind(kinds: Mapping[str, Any]) -> Table:
    table = Table("targets", "tokens", "mean probability")
    for kind, words in _KINDS.items():
        if kind in kinds and kinds[kind].tokens:
            table.add_row(words, f"{kinds[kind].tokens:,}", f"{kinds[kind].prob / kinds[kind].tokens:.3f}")
    return table
