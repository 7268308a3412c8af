"""Host: a training framework whose YAML we read and whose trainer we hook into. No torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dft_plugin.config import refusals
from dft_plugin.config.rules import Conflict, Rule, find
from dft_plugin.errors import ConflictError

if TYPE_CHECKING:
    from dft_plugin.config.settings import Settings
    from dft_plugin.hf.trainer import TrainerHook
    from dft_plugin.objectives import Objective


@dataclass(frozen=True)
class Choice:
    """By what a run chooses its best checkpoint, its end or its learning rate.

    Attributes:
        metric: what stands after `metric_for_best_model`; None: the evaluation's loss.
        greater_is_better: what the config says; None: nothing.
    """

    metric: str | None
    greater_is_better: bool | None


@dataclass(frozen=True)
class Launch:
    """What a host needs to start.

    Attributes:
        config_path: the user's file, which is only read.
        overrides: `(key, YAML text)` pairs from the command line that are not ours.
        settings: the loss.
    """

    config_path: str
    overrides: Sequence[tuple[str, str]]
    settings: Settings


@dataclass(frozen=True)
class OwnCommand:
    """The host's own command that trains a config.

    Attributes:
        words: as it is typed.
        otherwise: what it does with `loss:` where nothing makes it honour the line, as a verb.
        door: what makes it honour the line, beside autoload, as an imperative; nothing: nothing does.
    """

    words: str
    otherwise: str
    door: str = ""


PLATEAU_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")
"""Learning-rate schedulers of transformers that go by evaluations."""


class Host:
    """Base of all hosts. A host reads keys and starts its framework; it holds no numerics."""

    name: ClassVar[str]
    """What `--host` takes."""

    distribution: ClassVar[str]
    """Name on PyPI."""

    tested: ClassVar[str]
    """Version specifier of what the tests run, e.g. `>=1.16,<1.17`."""

    install: ClassVar[str]
    """The pip line that mends a missing or untested installation."""

    autoload_targets: ClassVar[Mapping[str, str]] = {}
    """What `dft autoload enable` makes work: {module of the host: our module with `patch(module)`}.

    Each time a Python process has executed the host's module, our module is imported and its `patch` is
    called with the host's module, before anybody else sees it. `patch` makes the host's unmodified command
    honour the line `loss:`. It costs nothing in a process that never imports the host's module.

    Rules for `patch`: it is called in every process (launcher, ranks, data workers) and must be harmless
    where no config with `loss:` is read; it imports our heavy modules only once such a config shows up; it
    raises a DftError, never an ImportError, where the loss cannot take effect. Choose a host's module that
    is imported before the YAML is acted on, and one name in it to wrap. See dft_plugin/autoload.py.
    """

    in_python: ClassVar[str] = ""
    """How a run with the loss begins, where no YAML starts one; nothing: one does."""

    own_command: ClassVar[OwnCommand | None] = None
    """The host's own command; None: it has none that trains a config."""

    keys_in: ClassVar[Sequence[str]] = ()
    """Where the keys of its YAML are defined: folders and files of installed packages, as `trl/trainer`.

    A key that is defined there is known, without an import of the host. Nothing: the keys of a file are not looked at.
    """

    runs_kernels: ClassVar[bool] = True
    """Whether the loss is computed by our kernels, from hidden states or logits."""

    trainer_class: ClassVar[str | None] = None
    """The trainer that takes the loss, as `module:Class`. It is not imported to see whether a trainer is one."""

    early_stopping: ClassVar[Sequence[str]] = ()
    """The host's own keys that stop a run by its evaluations."""

    hook_class: ClassVar[str | None] = None
    """The TrainerHook for it, as `module:Class`; imported where it is needed."""

    launch_function: ClassVar[str] = ""
    """What `launch` calls, as `module:function`; imported where it is needed."""

    show_function: ClassVar[str] = ""
    """What `show_trainer` calls, as `module:function`; imported where it is needed. Nothing: there is none."""

    evaluate_function: ClassVar[str] = ""
    """What `evaluator` calls, as `module:function`; imported where it is needed. Nothing: there is none."""

    held_out: ClassVar[str] = ""
    """With which lines a config names data to evaluate on, in words; for messages."""

    form_of_chats: ClassVar[Literal["messages", "prompt-completion"]] = "messages"
    """As what it takes questions and answers of which it trains the answers alone."""

    rules: ClassVar[Sequence[Rule]] = ()
    """What in a config would keep the loss from taking effect."""

    column_rules: ClassVar[Sequence[Rule]] = ()
    """What in a config would keep columns of the data from reaching it."""

    def recognise(self, config: Mapping[str, Any]) -> bool:
        """Say whether a config, as parsed from YAML, is written for this host."""
        raise NotImplementedError

    def resolved(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a config, with `loss`, as a run of the host has it: with what references stand for. Reads only.

        What only the run can know stays as it is.

        Raises:
            SettingsError: the loss is of that kind.
        """
        return config

    def conflicts(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what would keep the loss from taking effect. Reads only."""
        return find(self.rules, config)

    def loses_columns(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what would keep columns of the data from reaching the loss, where it reads any. Reads only."""
        return find(self.column_rules, config)

    def unsupported(self, settings: Settings, objectives: Sequence[Objective]) -> list[str]:
        """List what of a loss the host cannot do, whatever its config. Reads only.

        Args:
            settings: the loss.
            objectives: all that hold at some time of the run, with their options.
        """
        return []

    def replaces(self, config: Mapping[str, Any], settings: Settings) -> list[str]:
        """List, in words, which of the host's settings the loss supersedes. Reads only."""
        raise NotImplementedError

    def cautions(self, config: Mapping[str, Any]) -> list[str]:
        """List, in words, what works otherwise than one would expect. Reads only."""
        return []

    def chooses_by(self, config: Mapping[str, Any]) -> Choice | None:
        """Say by what a run chooses its best checkpoint, its end or its learning rate; None: by nothing.

        The keys are those of transformers' TrainingArguments.
        """
        goes_by = "metric_for_best_model", "load_best_model_at_end", *self.early_stopping
        follows = config.get("lr_scheduler_type") in PLATEAU_SCHEDULERS
        if not follows and not any(config.get(key) for key in goes_by):
            return None
        return Choice(config.get("metric_for_best_model"), config.get("greater_is_better"))

    def trains_adapters(self, config: Mapping[str, Any]) -> bool:
        """Say whether a run trains adapters (LoRA and the like), beside a base model that stays as it is. Reads only.

        Where a host does not know, it says yes; what is missing is then found when the trainer is there.
        """
        return True

    def moves_base(self, config: Mapping[str, Any]) -> list[Conflict]:
        """List what changes the base model of adapters during a run, so that it is no frozen reference. Reads only."""
        return []

    def honours(self, config: Mapping[str, Any]) -> bool:
        """Say whether the host's own command trains a config with its `loss:`, autoload or not. Reads only."""
        return False

    def takes_any_key(self, config: Mapping[str, Any]) -> bool:
        """Say whether a config may have keys that `known_keys` and `keys_in` do not know. Reads only."""
        return False

    def known_keys(self) -> frozenset[str] | None:
        """List the keys that a command line may change: the host's own, and its launcher's; None where nobody can.

        It may import the host, so it is asked only where there are overrides, or keys that `keys_in` does not define,
        and the host is installed.
        """
        return None

    def launch(self, launch: Launch) -> int:
        """Start the host's own launcher with the loss active. Returns its exit code."""
        code: int = named(self.launch_function)(launch)
        return code

    def show_trainer(self, launch: Launch, columns: Sequence[str]) -> Any:
        """Return the trainer that a run would begin with, made in this process, its rows not packed; train nothing.

        Args:
            launch: the config; its loss is not put on the trainer.
            columns: what the rows are to carry of the user's data, a number for each token, as `dft_column_NAME`.

        Raises:
            ConflictError: the config, or the host, does not allow it, or the host stopped.
        """
        if self.show_function:
            try:
                return named(self.show_function)(launch, columns)
            except Exception as error:
                said = refusals.of_host(self.name, error)
                if said is None:
                    raise
                raise said from error
        raise ConflictError(
            [
                f"{self.name} makes no trainer that dft-plugin could take, so that its data cannot be looked at as a "
                "run would see it. `dft probe` and `dft report` take --model and --data in place of a config."
            ]
        )

    def evaluator(self, launch: Launch, columns: Sequence[str]) -> Any:
        """Return the trainer with which a run would evaluate, made in this process, its data as the run has it.

        It is to hold the evaluation data wherever the config names any, also where the run would not look at it.

        Args:
            launch: the config, with an output folder of no run; its loss is not put on the trainer.
            columns: what the rows are to carry of the user's data, a number for each token, as `dft_column_NAME`.

        Raises:
            ConflictError: the config, or the host, does not allow it.
        """
        if self.evaluate_function:
            return named(self.evaluate_function)(launch, columns)
        raise ConflictError(
            [
                f"`dft evaluate` cannot make the trainer of {self.name}. Have the run itself evaluate; its log has "
                "`dft/*` of the evaluation, too."
            ]
        )

    @property
    def reads_rows(self) -> bool:
        """Whether it can train on rows that `dft reference` has written."""
        return type(self).reading is not Host.reading

    def reading(self, folder: str, splits: Sequence[str], config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say with which keys of its config the host reads tokenised rows, written by `dft reference`.

        Args:
            folder: what was written; a host may need it in another form, and may write that into it.
            splits: `train`, and others to evaluate.
            config: the keys as they are.

        Returns:
            Keys to write, with their values; None: a key to remove.
        """
        raise NotImplementedError

    def trainer_hook(self, trainer: object) -> type[TrainerHook] | None:
        """Return the hook class for a trainer of this host, or None for someone else's trainer.

        Raises:
            ConflictError: the host is older than any that was tested.
        """
        if self.trainer_class is None or self.hook_class is None:
            return None
        module, _, name = self.trainer_class.partition(":")
        known = getattr(sys.modules.get(module), name, None)
        if known is None or not isinstance(trainer, known):
            return None
        if self.is_too_old():
            raise ConflictError([str(self.version_problem())])
        hook: type[TrainerHook] = named(self.hook_class)
        return hook

    def attach_problem(self, model: object) -> str | None:
        """Say why `attach` would train no loss in a model that belongs to a trainer of this host, and what to do."""
        return None

    def installed_version(self) -> str | None:
        """Version of the installed distribution, or None."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None

    def is_too_old(self) -> bool:
        """Say whether the installed version is below those that were tested. What is above them may work."""
        version = self.installed_version()
        lowest = [Version(part.version) for part in SpecifierSet(self.tested) if part.operator in _FROM]
        return version is not None and any(Version(version) < floor for floor in lowest)

    def version_problem(self, beside: Sequence[str] = ()) -> str | None:
        """Say what is wrong with the installation: missing, too old, or newer than what was tested.

        Args:
            beside: other hosts with their versions, whose environment this is.
        """
        version = self.installed_version()
        here = f"In an environment of its own, since this one has {', '.join(beside)}" if beside else "Run"
        if version is None:
            return f"{self.distribution} is not installed. {here}: {self.install}"
        if self.is_too_old():
            return f"{self.distribution} {version} is too old ({self.tested} was tested). {here}: {self.install}"
        if Version(version) not in SpecifierSet(self.tested, prereleases=True):
            return f"{self.distribution} {version} was not tested ({self.tested} was). {here}: {self.install}"
        return None


def named(where: str) -> Any:
    """Return what stands at `module:name`."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


__all__ = ["PLATEAU_SCHEDULERS", "Choice", "Conflict", "Host", "Launch", "OwnCommand", "named"]

_FROM = (">=", ">", "==", "~=")
"""What bounds a version from below."""
