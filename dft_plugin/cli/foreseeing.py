"""What a run will do that its config does not name, as far as it is known before the run. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dft_plugin import autoload
from dft_plugin.cli.autoload import targets
from dft_plugin.config import rules
from dft_plugin.config.hosts import Host
from dft_plugin.config.plugins import Catalogue
from dft_plugin.config.schedules import is_ramp, made
from dft_plugin.config.settings import Settings
from dft_plugin.objectives import Objective
from dft_plugin.objectives.rows import BlockFunction

_WEIGHT_ONE: Mapping[str, Mapping[str, float]] = {
    "nll": {},
    "dft": {"alpha": 0, "floor": 1},
    "eaft": {"alpha": 0},
    "focal": {"gamma": 0},
}
"""Objectives whose weights are all 1, with any one of these options; without options, always."""

_LEAVES = "The run says which at its start: it may call the head, or score the model's logits, where these ask for it"


def kernel(host: Host, config: Mapping[str, Any], settings: Settings, catalogue: Catalogue) -> str | None:
    """Say which kernel `auto` will be, or what decides; None where one is named, or the host runs none of ours.

    Args:
        host: whose keys `config` has.
        config: the host's part of a config.
        settings: the loss.
        catalogue: what is named in it.
    """
    if settings.kernel != "auto" or not host.runs_kernels:
        return None
    whole = next(filter(None, map(_wants_rows, _every(settings, catalogue))), None)
    if whole is not None:
        return f"auto: chunked ({whole}). {_LEAVES}."
    if not host.trains_adapters(config):
        return f"auto: chunked (the head is trained). {_LEAVES}."
    if _on_cpu(config):
        return f"auto: blocked (adapters, on a CPU) where the head is frozen, chunked where it is trained. {_LEAVES}."
    return (
        "auto: chunked on an accelerator, and where the head is trained; blocked where it is frozen, on a CPU. "
        f"Only the run knows its device. {_LEAVES}."
    )


def reach(host: Host, config: Mapping[str, Any], *, autoloads: bool) -> str | None:
    """Say for which commands a verdict holds; None where the host names no command of its own.

    Args:
        host: whose keys `config` has.
        config: the host's part of a config.
        autoloads: whether autoload is on in this environment.
    """
    own = host.own_command
    if own is None:
        return None
    if host.honours(config):
        return f"on with `dft train` and `{own.words}`"
    if host.autoload_targets and autoloads:
        return f"on with `dft train` and, by autoload, `{own.words}`"
    doors = [own.door] if own.door else []
    doors += ["run `dft autoload enable` once"] if host.autoload_targets else []
    said = f"on with `dft train`; `{own.words}` alone {own.otherwise}"
    return f"{said}. For that one {', or '.join(doors)}" if doors else said


def autoloads(catalogue: Catalogue) -> bool:
    """Say whether autoload is on for what starts in this environment."""
    return autoload.state(targets(catalogue)).current and not autoload.is_switched_off()


def without_effect(settings: Settings, catalogue: Catalogue) -> list[str]:
    """List, in words, what of tokens changes no weight, and is no mistake all the same."""
    said = []
    if settings.always_learn and all(map(_weighs_one, _every(settings, catalogue))):
        fixed = not any(map(is_ramp, settings.options.values()))
        said += [
            "`always_learn` changes nothing here: all weights are 1 already. It logs `dft/always_learn_share` and "
            "`dft/always_learn_prob` of these tokens."
        ] * fixed
    factors = settings.weights.tokens if settings.weights else {}
    ones = [f"`{token}`" for token, factor in factors.items() if factor == 1]
    return said + ([f"`weights.tokens` changes nothing for {', '.join(ones)}: the factor is 1."] if ones else [])


def _every(settings: Settings, catalogue: Catalogue) -> list[Objective]:
    every = [made(catalogue.objectives[settings.name].item, settings.options, "to")]
    if settings.first is not None:
        every.append(catalogue.objectives[settings.first.name].item(**settings.first.options))
    return every


def _weighs_one(objective: Objective) -> bool:
    options = _WEIGHT_ONE.get(objective.name)
    if options is None:
        return False
    return not options or any(getattr(objective, name) == value for name, value in options.items())


def _wants_rows(objective: Objective) -> str | None:
    if objective.reference == "distribution":
        return f"{objective.name} compares whole rows of logits"
    whole = [need for need in objective.needs if not isinstance(need, (str, BlockFunction))]
    return f"{objective.name} reads whole rows of logits" if whole else None


def _on_cpu(config: Mapping[str, Any]) -> bool:
    """Whether a run on this machine is known to be on a CPU: it says so, or torch is built for nothing else."""
    if rules.is_on(config.get("use_cpu")):
        return True
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
