"""Target `plugins`: objectives that return the wrong thing, hooks that raise, entry points that are no module."""

from __future__ import annotations

import importlib
import itertools
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from dft_plugin import Objective, linear_token_loss, token_loss
from dft_plugin.config.hookspecs import hookimpl
from dft_plugin.config.plugins import build_catalogue, build_manager
from dft_plugin.objectives import DFT, Rows, Targets, Weighed
from reliability.fuzz.values import ANYTHING
from reliability.fuzz.verdict import Answered, FaultError, judged, require

Make = Callable[[Tensor], Any]

WEIGHTS: dict[str, Make] = {
    "right": lambda logp_T: logp_T.exp(),
    "float64": lambda logp_T: logp_T.double().exp(),
    "half": lambda logp_T: torch.ones_like(logp_T, dtype=torch.float16),
    "with a graph": lambda logp_T: logp_T.exp().requires_grad_(),
    "integers": lambda logp_T: torch.ones_like(logp_T, dtype=torch.int64),
    "truth values": lambda logp_T: torch.ones_like(logp_T, dtype=torch.bool),
    "expanded": lambda logp_T: logp_T.new_ones(()).expand(logp_T.shape),
    "nan": lambda logp_T: torch.full_like(logp_T, torch.nan),
    "inf": lambda logp_T: torch.full_like(logp_T, torch.inf),
    "scalar": lambda logp_T: logp_T.sum(),
    "column": lambda logp_T: logp_T[:, None],
    "square": lambda logp_T: logp_T[:, None] * logp_T,
    "one short": lambda logp_T: logp_T[:-1],
    "complex": lambda logp_T: torch.complex(logp_T, logp_T),
    "on meta": lambda logp_T: logp_T.to("meta"),
    "sparse": lambda logp_T: logp_T.to_sparse(),
    "none": lambda logp_T: None,
    "number": lambda logp_T: 1.0,
    "list": lambda logp_T: logp_T.tolist(),
    "array": lambda logp_T: logp_T.numpy(),
    "itself": lambda logp_T: Weighed(logp_T.exp(), value_T=logp_T[:-1]),
    "value none": lambda logp_T: Weighed(logp_T.exp(), value_T="x"),  # type: ignore[arg-type]
    "weight none": lambda logp_T: Weighed(None),  # type: ignore[arg-type]
    "statistics": lambda logp_T: Weighed(logp_T.exp(), statistics={"other": logp_T}),
    "statistics none": lambda logp_T: Weighed(logp_T.exp(), statistics=None),  # type: ignore[arg-type]
    "soft": lambda logp_T: Weighed(logp_T.exp(), soft_T=logp_T.exp()),
}
ERRORS: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError, NotImplementedError),
    *(StopIteration, AssertionError, OSError, ImportError, RecursionError),
)
DECLARED: dict[str, st.SearchStrategy[Any]] = {
    "needs": st.sampled_from([frozenset(), {"entropy"}, frozenset({"entropie"}), None, "entropy", frozenset({3})]),
    "columns": st.sampled_from([frozenset(), frozenset({"ratio"}), None, "ratio", frozenset({1})]),
    "scope": st.sampled_from(["token", "sequence", "batch", "tokens", None]),
    "divisor": st.sampled_from(["tokens", "weights", "kept", "words", None]),
    "statistics": st.sampled_from([(), ("mine",), "mine", None, (3,)]),
    "reference": st.sampled_from(["none", "columns", "distribution", "all", None]),
    "places": st.sampled_from([True, False, None]),
}


@dataclass(frozen=True)
class Broken:
    """An objective.

    Attributes:
        weight: a key of `WEIGHTS`, or an error to raise.
        declared: class attributes.
        linear: whether hidden states are scored.
    """

    weight: str | type[Exception]
    declared: tuple[tuple[str, Any], ...]
    linear: bool


@dataclass(frozen=True)
class Installed:
    """A plugin.

    Attributes:
        hook: of `hookspecs`.
        answer: what it returns; an error: what it raises.
        entry: what its entry point names; None: a module that is there, with that hook.
        source: of the module.
    """

    hook: str
    answer: Any
    entry: str | None = None
    source: str = ""


OBJECTIVES = st.builds(
    Broken,
    st.one_of(st.sampled_from(sorted(WEIGHTS)), st.sampled_from(ERRORS)),
    st.lists(st.sampled_from(sorted(DECLARED)), max_size=1).flatmap(
        lambda names: st.tuples(*(DECLARED[name].map(lambda value, name=name: (name, value)) for name in names))
    ),
    st.booleans(),
)


class Mine(Objective):
    """A right one."""

    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "w = p"
    source: ClassVar[str] = "here"

    def weight(self, rows: Rows) -> Tensor:
        """Return p."""
        return rows.logp_T.exp()


class Nameless(Objective):
    """Without a name."""


class Unnamed(Mine):
    """Of which the name is none."""

    name: ClassVar[Any] = 3


HOOKS = st.builds(
    Installed,
    st.sampled_from(["register_objectives", "register_kernels", "register_hosts", "register_nothing"]),
    st.one_of(
        ANYTHING,
        st.sampled_from(ERRORS),
        st.lists(
            st.one_of(st.sampled_from([Mine, Nameless, Unnamed, Mine(), DFT, print, int, len]), ANYTHING), max_size=3
        ),
    ),
)
ENTRIES = st.builds(
    Installed,
    st.just(""),
    st.none(),
    st.sampled_from(
        ["mod", "mod:x", "mod:hooks", "no_such_module", "mod:no.such", "", ":", "mod:", "1", "mod x", "os", "sys:path"]
    ),
    st.sampled_from(
        [
            *("", "x = 3", "raise SystemExit(3)", "raise KeyboardInterrupt", "import no_such_thing", "def f(:"),
            *("def register_objectives(): return 3", "x = None", "hooks = object()", "raise ImportError", "1 / 0"),
            "from dft_plugin import hookimpl\n@hookimpl\ndef register_objectives(wrong): return []",
            "from dft_plugin import hookimpl\n@hookimpl\ndef register_objectives(): return [int]",
            "from dft_plugin import hookimpl\n@hookimpl\ndef no_such_hook(): return []",
            "from dft_plugin import hookimpl\n@hookimpl\ndef register_objectives(): raise ValueError",
        ]
    ),
)
PLUGINS = st.one_of(OBJECTIVES, HOOKS, ENTRIES)
"""What somebody else may have written."""


def check(plugin: Broken | Installed) -> str:
    """Hold a plugin to the property; returns `answered` or `refused`."""
    if isinstance(plugin, Broken):
        return _check_objective(plugin)
    return _check_hook(plugin) if plugin.entry is None else _check_entry(plugin)


def _objective(broken: Broken) -> Callable[[], Objective]:
    def weigh(self: Objective, rows: Rows, targets: Targets, clock: Any) -> Any:
        del self, targets, clock
        if isinstance(broken.weight, str):
            return WEIGHTS[broken.weight](rows.logp_T)
        raise broken.weight("of the plugin")

    members = {"name": "broken", "summary": "", "source": "", "weigh": weigh, **dict(broken.declared)}
    hints = dict.fromkeys(("name", "summary", "source", *dict(broken.declared)), ClassVar[Any])
    return type("BrokenObjective", (Objective,), {"__module__": __name__, "__annotations__": hints, **members})


def _check_objective(broken: Broken) -> str:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 3, generator=generator, requires_grad=True)
    weight = torch.randn(6, 3, generator=generator)
    labels = torch.tensor([1, 5, -100, 0])

    def run() -> float:
        if broken.linear:
            loss = linear_token_loss(hidden, weight, labels, objective=_objective(broken)())
        else:
            loss = token_loss(hidden @ weight.T, labels, objective=_objective(broken)())
        loss.backward()
        return float(loss.detach())

    outcome = judged(run, ["broken", "Broken", "ratio"])
    if not isinstance(outcome, Answered):
        require(bool(broken.declared) or broken.weight not in SOUND, f"refused: {outcome.problems[0]}"[:300])
        return "refused"
    require(isinstance(broken.weight, str), "an error of the objective was lost")
    if not broken.declared and broken.weight in SOUND:
        logp = (hidden.detach() @ weight.T).double().log_softmax(1)[[0, 1, 3], [1, 5, 0]]
        w = 1.0 if broken.weight in ("half", "integers", "truth values", "expanded") else logp.exp()
        right = float(-(w * logp).mean())
        require(abs(outcome.value - right) < 1e-5, f"the loss is {outcome.value!r}, and {right!r} is right")
    elif not broken.declared:
        require(broken.weight in ("nan", "inf"), f"weights that are {broken.weight} were taken: {outcome.value!r}")
        require(not abs(outcome.value) < float("inf"), f"weights that are {broken.weight} make {outcome.value!r}")
    return "answered"


SOUND = (
    "right",
    "float64",
    "half",
    "with a graph",
    "integers",
    "truth values",
    "expanded",
    "statistics",
    "statistics none",
)
"""Weights that have one meaning; statistics that nobody declared are not read."""


def _check_hook(plugin: Installed) -> str:
    """A broken plugin is named in a warning and left out, or refused by name; what is shipped is there."""

    def hook() -> Any:
        if isinstance(plugin.answer, type) and issubclass(plugin.answer, Exception):
            raise plugin.answer("of the plugin")
        return plugin.answer

    module = types.ModuleType("fuzzed")
    hook.__name__ = plugin.hook
    setattr(module, plugin.hook, hookimpl(hook))

    def run() -> Any:
        manager = build_manager(third_party=False)
        manager.register(module, name="fuzzed")
        catalogue = build_catalogue(manager)
        for entry in catalogue.objectives.values():
            if entry.owner == "fuzzed":
                _use(catalogue, entry.item)
        require({"dft", "nll"} <= set(catalogue.objectives), "what is shipped is gone")
        return catalogue

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outcome = judged(run, ["fuzzed", "`"])
    ours = [str(one.message) for one in said if issubclass(one.category, RuntimeWarning)]
    if not isinstance(outcome, Answered):
        return "refused"
    require(all("fuzzed" in one for one in ours), f"a warning that names no plugin: {ours}"[:300])
    return "refused" if ours else "answered"


def _use(catalogue: Any, item: Any) -> None:
    """Do with a registered objective what every command does with all of them."""
    catalogue.settings({"name": "dtf"} if not isinstance(item.name, str) else {"name": item.name})


_NUMBERS = itertools.count()


@contextmanager
def _installed(plugin: Installed) -> Iterator[None]:
    """Install it as pip would: a module, and metadata beside it."""
    folder = Path(tempfile.mkdtemp(prefix="dft-fuzz-"))
    module = f"fuzzed_module_{next(_NUMBERS)}"
    (folder / f"{module}.py").write_text(plugin.source, encoding="utf-8")
    info = folder / "fuzzed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fuzzed\nVersion: 1.0\n", encoding="utf-8")
    entry = (plugin.entry or "").replace("mod", module, 1) if (plugin.entry or "").startswith("mod") else plugin.entry
    (info / "entry_points.txt").write_text(f"[dft_plugin]\nfuzzed = {entry}\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module, None)
        shutil.rmtree(folder)


def _check_entry(plugin: Installed) -> str:
    with _installed(plugin), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            outcome = judged(lambda: build_catalogue(build_manager()), ["fuzzed"])
        except (SystemExit, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and "KeyboardInterrupt" in plugin.source:
                # What stops a program is not held up.
                return "refused"
            raise FaultError(f"a plugin ended the program: {error!r}") from error
    ours = [str(one.message) for one in said if issubclass(one.category, RuntimeWarning)]
    if not isinstance(outcome, Answered):
        return "refused"
    require("dft" in outcome.value.objectives, "what is shipped is gone")
    require(all("fuzzed" in one for one in ours), f"a warning that names no plugin: {ours}"[:300])
    return "refused" if ours else "answered"
