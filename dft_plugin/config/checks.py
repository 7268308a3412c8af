"""Everything that is in the way of a loss, found before anything is started and reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dft_plugin.config import best, files
from dft_plugin.config.hosts import Conflict, Host
from dft_plugin.config.plugins import Catalogue, build_catalogue
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError, SettingsError


def choice_of_best(host: Host, config: Mapping[str, Any], loss_name: str | None) -> tuple[list[str], list[str]]:
    """Say what is wrong with a config's choice of the best checkpoint, and what it means under a loss.

    Args:
        host: whose config it is.
        config: its keys.
        loss_name: the objective; None where that is not known.

    Returns:
        Problems and hints, as `best.advice`.
    """
    choice = host.chooses_by(config)
    if choice is None:
        return [], []
    weighted = loss_name not in (None, "nll")
    return best.advice(choice.metric, choice.greater_is_better, weighted=weighted)


def without_reference(host: Host, config: Mapping[str, Any], settings: Settings, catalogue: Catalogue) -> list[str]:
    """List why a loss would find no reference to compare the model with.

    Args:
        host: whose config it is.
        config: its keys.
        settings: the loss.
        catalogue: its objectives.
    """
    names = [settings.name, *([settings.first.name] if settings.first else [])]
    reading = [name for name in names if catalogue.objectives[name].item.reference != "none"]
    if not reading or settings.reference not in (None, "base", "start"):
        return []
    if host.trains_adapters(config):
        return [str(one) for one in host.moves_base(config)]
    whole = any(catalogue.objectives[name].item.reference == "distribution" for name in reading)
    made = ", or `reference: columns` where the data has what was computed beforehand (`dft reference CONFIG`)"
    beside = "" if whole else made
    return [
        f"`loss: {reading[0]}` compares the model with a frozen reference, and this config trains all of it, so that "
        "there are no adapters to switch off. Write `loss: {name: "
        f"{reading[0]}, reference: copy}}` (a second copy of the weights), `reference: PATH` of a model{beside}."
    ]


def outlasting(config: Mapping[str, Any], settings: Settings, catalogue: Catalogue) -> list[str]:
    """List what of a loss would never hold, where a config says how many steps the run has.

    Args:
        config: its keys; every host calls them `max_steps`, and means with 0 or less that epochs decide.
        settings: the loss.
        catalogue: its objectives.
    """
    steps = config.get("max_steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps <= 0:
        return []
    return catalogue.never_reached(settings, steps)


def stepping_inside(config: Mapping[str, Any], settings: Settings) -> list[str]:
    """List why a step could not be left out where its loss is not finite, as far as a config shows it.

    Args:
        config: its keys; every host calls DeepSpeed's `deepspeed`, and accelerate's are those of its launcher.
        settings: the loss.
    """
    key = _starts_deepspeed(config) if settings.nonfinite == "skip" else None
    if key is None:
        return []
    return [
        f"`loss.nonfinite: skip`, and DeepSpeed (`{key}`) steps inside the backward pass, with gradients that "
        "nobody else finds. Use DDP or FSDP, or write `nonfinite: error`."
    ]


def _starts_deepspeed(config: Mapping[str, Any]) -> str | None:
    """Return the key by which a config starts DeepSpeed; None: none that is known."""
    for key in ("deepspeed", "use_deepspeed"):
        if config.get(key):
            return key
    for key in ("accelerate_config", "config_file"):
        named = config.get(key)
        # TRL has some under names: `zero3`.
        if isinstance(named, str) and (re.fullmatch(r"zero\d", named) or _names_deepspeed(Path(named))):
            return key
    return None


def _names_deepspeed(path: Path) -> bool:
    try:
        return str(files.read(path).get("distributed_type", "")).upper() == "DEEPSPEED"
    except SettingsError:
        # Its reader says what is wrong with it.
        return False


def lost_columns(host: Host, config: Mapping[str, Any], settings: Settings, catalogue: Catalogue) -> list[Conflict]:
    """List what keeps the columns that a loss reads from reaching it; each names them."""
    names = ", ".join(f"`{name}`" for name in sorted(catalogue.columns(settings)))
    found = host.loses_columns(config) if names else []
    return [replace(one, problem=f"`loss:` reads {names} from the data, and {one.problem}") for one in found]


def unsuited(host: Host, config: Mapping[str, Any], settings: Settings, catalogue: Catalogue) -> list[str]:
    """List what of a loss a host, or a run with this config, cannot do. `dft check` and a run's start ask the same."""
    return [
        *host.unsupported(settings, catalogue.every(settings)),
        *without_reference(host, config, settings, catalogue),
        *outlasting(config, settings, catalogue),
        *stepping_inside(config, settings),
    ]


def obstacles(host: Host, config: Mapping[str, Any], loss: Any, found: Iterable[Conflict]) -> list[str]:
    """List what is in the way: the host's age, `loss:` itself, the host's keys, the choice of the best checkpoint.

    Args:
        host: whose config it is.
        config: its keys.
        loss: what stands after `loss:`.
        found: the conflicts in the host's keys.
    """
    wrong, _ = choice_of_best(host, config, None)
    too_old = [str(host.version_problem())] if host.is_too_old() else []
    catalogue = build_catalogue()
    problems, lost = catalogue.problems(loss), []
    if not problems:
        settings = catalogue.settings(loss)
        problems = unsuited(host, config, settings, catalogue)
        lost = lost_columns(host, config, settings, catalogue)
    return [*too_old, *problems, *map(str, [*found, *lost]), *wrong]


def refuse(host: Host, config: Mapping[str, Any], loss: Any, found: Iterable[Conflict]) -> None:
    """Raise with everything that is in the way; see `obstacles`.

    Raises:
        ConflictError: lists all of it.
    """
    problems = obstacles(host, config, loss, found)
    if problems:
        raise ConflictError(problems)
