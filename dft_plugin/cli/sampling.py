"""Samples for `dft report`: rows of the data as a model and a loss see them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

from dft_plugin.cli.checking import find_host
from dft_plugin.cli.probe import as_it_was, written
from dft_plugin.config.hosts import Launch
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.reading import load
from dft_plugin.config.schedules import ends
from dft_plugin.config.settings import Settings
from dft_plugin.config.trained import adapter_in
from dft_plugin.errors import ConflictError
from dft_plugin.runs.logs import Run
from dft_plugin.runs.samples import Samples


@dataclass(frozen=True)
class Asked:
    """What stands on the command line.

    Attributes:
        config: what a host trains with; None: `model` and `data` are given.
        model: a folder or a name on the hub; beside a config, in the place of its model, or an adapter on it.
        data: a file, a folder or a name on the hub.
        loss: whose weights are shown, as after `loss:`; None: the config's, or that of the first run.
        rows: how many.
    """

    config: Path | None
    model: str | None
    data: str | None
    loss: str | None
    rows: int

    @property
    def anything(self) -> bool:
        """Whether samples are asked for."""
        return any(one is not None for one in (self.config, self.model, self.data, self.loss))


MODEL_KEYS = ("model_name_or_path", "base_model", "model")
"""What hosts call the model; the one that the config has is replaced."""


def find(asked: Asked, runs: Sequence[Run]) -> Samples | None:
    """Run the model over some rows; None where nobody asks for it.

    Raises:
        DftError: it cannot be done; says what to do instead.
    """
    if not asked.anything:
        return None
    beside = asked.config is None and asked.model is not None and asked.data is not None
    if not beside and (asked.config is None or asked.data is not None):
        raise ConflictError(
            [
                "samples of the data take a model and data: give --model and --data, or --config with what you train "
                "with (and --model, to look at a trained model)."
            ]
        )
    with tempfile.TemporaryDirectory() as folder:
        path = asked.config or written(Path(folder), str(asked.model), str(asked.data))
        return _find(asked, path, runs)


def _find(asked: Asked, path: Path, runs: Sequence[Run]) -> Samples:
    catalogue, config = build_catalogue(), load(path, [])
    adapter = None if asked.config is None or asked.model is None else adapter_in(Path(asked.model))
    if asked.config is not None and asked.model is not None and adapter is None:
        config = load(path, [f"{model_key(path, config.host, '--model')}={asked.model}"])
    host = find_host(config, catalogue, None)
    if host.installed_version() is None or host.is_too_old():
        raise ConflictError([str(host.version_problem())])
    settings = _at_its_end(catalogue.settings(_loss(asked, config.loss, runs)))
    plan = catalogue.plan(settings)
    # It loads torch: not before what can be said without.
    from dft_plugin.hf.sampling import refusal, sample
    from dft_plugin.hf.trained_adapter import put_adapter

    problem = refusal(plan)
    if problem is not None:
        raise ConflictError([problem])
    with as_it_was(Path(str(config.host.get("output_dir", "")))):
        trainer = host.show_trainer(Launch(str(path), config.overrides, catalogue.settings("nll")), ())
        for note in () if adapter is None else put_adapter(trainer.model, adapter):
            typer.echo(f"note: {note}", err=True)
        rows = sample(trainer, plan, asked.rows)
    model = asked.model or str(next((config.host[key] for key in MODEL_KEYS if key in config.host), "the model"))
    return Samples(model, asked.data or f"the data of {path.name}", plan.describe(), rows)


def model_key(path: Path, config: Mapping[str, Any], option: str) -> str:
    """Return the key by which a config names its model.

    Raises:
        ConflictError: it names none that an option could replace.
    """
    named = [key for key in MODEL_KEYS if key in config]
    if not named:
        raise ConflictError([f"{path} names no model, so that {option} has nothing to replace. Leave it out."])
    return named[0]


def _loss(asked: Asked, own: Any, runs: Sequence[Run]) -> Any:
    if asked.loss is not None:
        return yaml.safe_load(asked.loss)
    if own is not None:
        return own
    # Plain likelihood weighs all alike, which is nothing to look at.
    recorded = [run.written for run in runs if run.written is not None and run.written.get("name") != "nll"]
    return recorded[0] if recorded else "dft"


def _at_its_end(settings: Settings) -> Settings:
    """Return a loss as it is when its schedule is over."""
    return settings.model_copy(update={"options": ends(settings.options, "to"), "first": None})
