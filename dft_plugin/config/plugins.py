"""The plugin manager, the catalogue of names, and the way from Settings to a LossPlan.

Used once per run; pluggy never stands between a batch and its loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from dft_plugin.config import builtin, hookspecs
from dft_plugin.config.parsing import parse_settings
from dft_plugin.config.schedules import made, ramps
from dft_plugin.config.settings import RESERVED_KERNELS, Settings
from dft_plugin.errors import PluginError, SettingsError
from dft_plugin.objectives import Objective
from dft_plugin.objectives.declared import require_declared
from dft_plugin.objectives.reference import REFERENCE_COLUMNS
from dft_plugin.objectives.schedule import Schedule, Until
from dft_plugin.saying import shown

if TYPE_CHECKING:
    from dft_plugin.config.hosts import Host
    from dft_plugin.core.plan import LossPlan
    from dft_plugin.kernels import Kernel

Item = TypeVar("Item")


@dataclass(frozen=True)
class Entry(Generic[Item]):
    """A registered object and the plugin that it came from."""

    item: Item
    owner: str


@dataclass(frozen=True)
class Catalogue:
    """Everything that can be named, with its owner.

    Attributes:
        objectives: by the name that stands after `loss:`.
        kernels: by the name that stands after `kernel:`.
        hosts: by the name that `--host` takes.
    """

    objectives: Mapping[str, Entry[type[Objective]]]
    kernels: Mapping[str, Entry[Kernel]]
    hosts: Mapping[str, Entry[Host]]

    def settings(self, value: Any, where: str = "loss") -> Settings:
        """Parse what stands after `loss:`; raises `SettingsError` with every problem."""
        return parse_settings(
            value,
            objectives={name: entry.item for name, entry in self.objectives.items()},
            kernels=list(self.kernels),
            where=where,
        )

    def problems(self, loss: Any) -> Sequence[str]:
        """List what is wrong with what stands after `loss:`."""
        try:
            self.settings(loss)
        except SettingsError as error:
            return error.problems
        return []

    def every(self, settings: Settings) -> list[Objective]:
        """Return all objectives that hold at some time of a run, with their options where they arrive."""
        first = settings.first
        begins = [] if first is None else [self.objectives[first.name].item(**first.options)]
        return [*begins, self._objective(settings)]

    def columns(self, settings: Settings) -> frozenset[str]:
        """Return the columns that the data must hold for these settings."""
        # Of objects: options may say which.
        read = frozenset().union(*(one.columns for one in self.every(settings)))
        factor = settings.weights.column if settings.weights else None
        filled = frozenset() if settings.reference == "columns" else frozenset(REFERENCE_COLUMNS)
        return (read - filled) | ({factor} if factor else set())

    def plan(self, settings: Settings) -> LossPlan:
        """Resolve Settings to the objects that do the work."""
        from dft_plugin.core.plan import LossPlan, TokenRules
        from dft_plugin.kernels import auto

        named = self.kernels.get(settings.kernel)
        for one in self.every(settings):
            require_declared(one)
        objective = self._objective(settings)
        weights = settings.weights
        rules = TokenRules(
            settings.always_learn, weights.column if weights else None, weights.tokens if weights else {}
        )
        plan = LossPlan(
            objective=objective,
            schedule=self._schedule(objective, settings),
            reference=settings.reference,
            extra=settings.log,
            resume=settings.resume,
            nonfinite=settings.nonfinite,
            rules=rules,
            kernel=named.item if named else auto,
            path="lean" if named else settings.kernel,
            scratch_bytes=None if settings.scratch_mb is None else settings.scratch_mb << 20,
        )
        # Words wait for a tokenizer.
        return plan if rules.words else plan.with_ids(rules.ids, rules.factors_by_id)

    def never_reached(self, settings: Settings, last_step: int) -> list[str]:
        """List what of a loss would never hold in a run of so many steps, with what to do."""
        schedule = self._schedule(self._objective(settings), settings)
        return [] if schedule is None else schedule.never_reached(last_step)

    def _objective(self, settings: Settings) -> Objective:
        return made(self.objectives[settings.name].item, settings.options, "to")

    def _schedule(self, objective: Objective, settings: Settings) -> Schedule | None:
        if settings.first is None:
            schedule = Schedule(objective, ramps(settings.options))
        else:
            first = self.objectives[settings.first.name].item(**settings.first.options)
            schedule = Schedule(objective, ramps(settings.options), first, Until(settings.first.until))
        return schedule if schedule.changes else None


def build_manager(*, third_party: bool = True) -> pluggy.PluginManager:
    """Make a manager with our plugin and every one that is installed.

    A plugin that cannot be imported or registered is named in a warning and left out; the others work.

    Args:
        third_party: whether to load the entry points of the group `dft_plugin`.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, name="dft_plugin")
    for entry_point in entry_points(group=hookspecs.PROJECT) if third_party else ():
        owner = f"{entry_point.dist.name if entry_point.dist else '?'}:{entry_point.name}"
        try:
            plugin = entry_point.load()
            if not any(manager.parse_hookimpl_opts(plugin, name) for name in dir(plugin)):
                raise TypeError(f"{entry_point.value!r} has no function marked with dft_plugin.hookimpl")
            manager.register(plugin, name=owner)
            manager.check_pending()
        # A module that ends the program when it is imported is broken, too.
        except (Exception, SystemExit) as error:
            _leave_out(manager, owner, error)
    return manager


def build_catalogue(manager: pluggy.PluginManager | None = None) -> Catalogue:
    """Ask every plugin what it registers.

    Raises:
        PluginError: two plugins claim one name; names both.
    """
    manager = manager or build_manager()
    # A plugin that fails in one hook is left out of all, so every hook is asked before anything is kept.
    registered = {hook: _ask(manager, hook) for hook in _NAMES}
    kept = {owner for owner, _ in manager.list_name_plugin()}
    objectives, kernels, hosts = (
        _by_name(hook, {owner: items for owner, items in registered[hook].items() if owner in kept}) for hook in _NAMES
    )
    return Catalogue(objectives, kernels, hosts)


def registered_names(manager: pluggy.PluginManager, hook: str) -> list[str]:
    """Return the names that one hook registers, without asking the others: those of kernels load torch.

    Args:
        manager: of `build_manager`.
        hook: `register_objectives`, `register_kernels` or `register_hosts`.
    """
    return [_NAMES[hook](item) for items in _ask(manager, hook).values() for item in items]


def _objective_name(item: Any) -> Any:
    if not (isinstance(item, type) and issubclass(item, Objective)):
        raise TypeError(f"register_objectives returned {shown(item)}, which is no subclass of dft_plugin.Objective")
    return item.name


def _kernel_name(item: Any) -> Any:
    if not callable(item):
        raise TypeError(f"register_kernels returned {shown(item)}, which is no function")
    return item.__name__


def _host_name(item: Any) -> Any:
    if isinstance(item, type):
        raise TypeError(f"register_hosts returned the class {item.__name__}; return an object of it")
    return item.name


def _word(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"what it registers is called {shown(name)}; a name is a text")
    return name


_NAMES: Mapping[str, Callable[[Any], str]] = {
    "register_objectives": lambda item: _word(_objective_name(item)),
    "register_kernels": lambda item: _word(_kernel_name(item)),
    "register_hosts": lambda item: _word(_host_name(item)),
}
"""The hooks, and what a registered object is called by."""


def _ask(manager: pluggy.PluginManager, hook: str) -> dict[str, list[Any]]:
    """Return what each plugin registers through `hook`, by owner; leave out plugins that fail."""
    answers: dict[str, list[Any]] = {}
    for owner, plugin in manager.list_name_plugin():
        # One plugin at a time, so that its name is known when it fails.
        others = [other for other in manager.get_plugins() if other is not plugin]
        try:
            results: list[Iterable[Any]] = manager.subset_hook_caller(hook, others)()
            answers[owner] = [item for result in results for item in result]
            for item in answers[owner]:
                _NAMES[hook](item)
        except Exception as error:
            _leave_out(manager, owner, error)
    return answers


def _by_name(hook: str, answers: Mapping[str, list[Any]]) -> dict[str, Entry[Any]]:
    found: dict[str, Entry[Any]] = {}
    reserved = RESERVED_KERNELS if hook == "register_kernels" else ()
    for owner, items in answers.items():
        for item in items:
            name = _NAMES[hook](item)
            if name in found or name in reserved:
                first = found[name].owner if name in found else "dft_plugin itself"
                raise PluginError(
                    f"`{name}` is registered by {first} and by {owner} ({hook}). Uninstall one of them, or rename it."
                )
            found[name] = Entry(item, owner)
    return found


def _leave_out(manager: pluggy.PluginManager, owner: str, error: BaseException) -> None:
    if manager.has_plugin(owner):
        manager.unregister(name=owner)
    warnings.warn(
        f"dft-plugin: the plugin {owner} is broken and left out ({type(error).__name__}: {error}).",
        RuntimeWarning,
        stacklevel=3,
    )
