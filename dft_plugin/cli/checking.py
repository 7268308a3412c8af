"""What a config would do, found out without training: the host, the loss, every problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dft_plugin.cli import foreseeing
from dft_plugin.config.checks import choice_of_best, lost_columns, unsuited
from dft_plugin.config.hosts import Conflict, Host
from dft_plugin.config.installed import version_problem
from dft_plugin.config.keys import unknown_keys, unknown_overrides
from dft_plugin.config.plugins import Catalogue, Entry, build_catalogue
from dft_plugin.config.reading import LOSS, RunConfig, load
from dft_plugin.config.schedules import made
from dft_plugin.config.settings import REFERENCES, Settings
from dft_plugin.config.spelling import closest, did_you_mean
from dft_plugin.errors import SettingsError, UnknownNameError
from dft_plugin.objectives import Objective

OURS = "dft_plugin"
"""The owner of what is shipped."""


@dataclass(frozen=True)
class Report:
    """What `dft check` says, and what `dft train` acts on.

    Attributes:
        config: the file and its overrides.
        host: the host that the config is written for.
        settings: the loss, or None if what stands after `loss:` cannot be used.
        problems: what is wrong with `loss:`, or with the choice of the best checkpoint.
        conflicts: what in the host's keys is in the way.
        replaces: which of the host's settings the loss supersedes.
        hints: what works otherwise than one would expect.
        version_problem: the host is missing, too old, or newer than what was tested.
        kernel: which one `auto` will be, as far as that is known; None where one is named, or no loss is.
        commands: for which commands it holds, in words; None where the host names none.
    """

    config: RunConfig
    host: Host
    settings: Settings | None
    problems: Sequence[str]
    conflicts: Sequence[Conflict]
    replaces: Sequence[str]
    hints: Sequence[str]
    version_problem: str | None
    kernel: str | None = None
    commands: str | None = None

    @property
    def ok(self) -> bool:
        """Whether a run would start with the loss active. A version newer than those tested is no obstacle."""
        return not self.obstacles()

    def obstacles(self) -> list[str]:
        """Everything that has to be changed first."""
        unusable = self.host.installed_version() is None or self.host.is_too_old()
        version = [self.version_problem] if self.version_problem and unusable else []
        return [*version, *self.problems, *map(str, self.conflicts)]

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {
            "config": str(self.config.path),
            "ok": self.ok,
            "host": self.host.name,
            "host_version": self.host.installed_version(),
            "version_problem": self.version_problem,
            "loss": self.settings.model_dump(mode="json") if self.settings else None,
            "kernel": self.kernel,
            "commands": self.commands,
            "replaces": list(self.replaces),
            "hints": list(self.hints),
            "problems": list(self.problems),
            "conflicts": [asdict(conflict) for conflict in self.conflicts],
        }


def check(path: Path, overrides: Sequence[str] = (), host_name: str | None = None) -> Report:
    """Check a config. Reads only.

    Raises:
        SettingsError: the file or an override cannot be read.
        UnknownNameError: no host, or more than one, recognises the config.
        PluginError: two plugins claim one name.
    """
    catalogue = build_catalogue()
    config = load(path, overrides)
    host = find_host(config, catalogue, host_name)
    config = config.resolved(host.resolved)
    settings, problems = settings_of(config, catalogue)
    wrong, meaning = choice_of_best(host, config.host, settings.name if settings else None)
    return Report(
        config=config,
        host=host,
        settings=settings,
        problems=[
            *unknown_overrides(host, config.overrides, catalogue),
            *problems,
            *(unsuited(host, config.host, settings, catalogue) if settings else []),
            *wrong,
        ],
        conflicts=[
            *host.conflicts(config.host),
            *(lost_columns(host, config.host, settings, catalogue) if settings else []),
        ],
        replaces=host.replaces(config.host, settings) if settings else [],
        hints=[
            *unknown_keys(host, config.host),
            *host.cautions(config.host),
            *meaning,
            *(foreseeing.without_effect(settings, catalogue) if settings else []),
            *(left_to_the_run(settings, catalogue) if settings else []),
        ],
        version_problem=version_problem(host, [entry.item for entry in catalogue.hosts.values()]),
        kernel=foreseeing.kernel(host, config.host, settings, catalogue) if settings else None,
        commands=foreseeing.reach(host, config.host, autoloads=foreseeing.autoloads(catalogue)) if settings else None,
    )


def settings_of(config: RunConfig, catalogue: Catalogue) -> tuple[Settings | None, Sequence[str]]:
    """Return what stands after `loss:`, None where that cannot be used, and what is wrong with it."""
    if config.loss is None and not config.names_loss:
        close = closest(LOSS, config.host)
        meant = f" Is `{close}` meant to be `{LOSS}`?" if close else ""
        return None, [f"{config.path} has no `loss:`.{meant} Add the line `loss: dft`."]
    try:
        settings = catalogue.settings(config.loss)
    except SettingsError as error:
        return None, error.problems
    return settings, foreign_objective_problems(settings, catalogue)


def left_to_the_run(settings: Settings, catalogue: Catalogue) -> list[str]:
    """List, in words, what only the run can look for: it loads data, tokenizer and models, and a check does not."""
    left = [f"the column `{name}` of the data" for name in sorted(catalogue.columns(settings))]
    words = (*settings.always_learn, *(settings.weights.tokens if settings.weights else ()))
    left += [f"the token `{word}`" for word in words if isinstance(word, str)]
    hint = ""
    if settings.reference not in (None, *REFERENCES):
        left.append(f"the reference `{settings.reference}`, a path or a name of a model")
        hint = did_you_mean(settings.reference, REFERENCES)
    return [f"not looked for yet: {', '.join(left)}. The run does, and stops without it.{hint}"] if left else []


def foreign_objective_problems(settings: Settings, catalogue: Catalogue) -> list[str]:
    """List what a third party's objective does not keep, with the options that it would run with."""
    named: dict[str, list[tuple[Mapping[str, Any], str]]] = {
        settings.name: [(settings.options, end) for end in ("from", "to")]
    }
    if settings.first is not None:
        named.setdefault(settings.first.name, []).append((settings.first.options, "to"))
    return [
        problem
        for name, every in named.items()
        if catalogue.objectives[name].owner != OURS
        for problem in dict.fromkeys(_conformance(catalogue.objectives[name], *options) for options in every)
        if problem
    ]


def _conformance(entry: Entry[type[Objective]], options: Mapping[str, Any], end: str) -> str:
    """Return what is wrong with an objective at one end of its ramps, or nothing."""
    # It imports torch, which takes seconds: not for what is tested already.
    from dft_plugin.testing import check_objective

    try:
        check_objective(made(entry.item, options, end))
    except Exception as error:
        said = error if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        return (
            f"the objective `{entry.item.name}` of the plugin {entry.owner} is not sound: {said}. "
            "Tell its author (dft_plugin.testing.check_objective says the same), or choose another loss: `dft losses`."
        )
    return ""


def find_host(config: RunConfig, catalogue: Catalogue, name: str | None) -> Host:
    """Return the host that a config is written for.

    Raises:
        UnknownNameError: no host, or more than one, recognises it.
    """
    known = ", ".join(catalogue.hosts)
    if name is not None:
        if name not in catalogue.hosts:
            hint = did_you_mean(name, catalogue.hosts)
            raise UnknownNameError([f"--host {name}: no such host.{hint} Known: {known}."])
        return catalogue.hosts[name].item
    found = [entry.item for entry in catalogue.hosts.values() if entry.item.recognise(config.host)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(host.name for host in found)
        raise UnknownNameError([f"{config.path} could be a config of {names}. Choose one with --host."])
    raise UnknownNameError(
        [
            f"{config.path} is not recognised as a config of any host (known: {known}). Its keys are "
            f"{', '.join(config.host) or 'none'}. Choose with --host, or see `dft hosts`."
        ]
    )
