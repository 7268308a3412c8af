"""Cases of one target, drawn from a seed, counted. A batch is the unit that is written down and not made again."""

from __future__ import annotations

import resource
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from reliability.fuzz.targets import TARGETS, Target
from reliability.fuzz.verdict import FaultError

MOST_FAULTS = 20
"""Kept of a batch; all are counted."""

MEMORY = 6 << 30
"""Bytes that a run may hold: what asks for more gets a `MemoryError`, which is a fault."""


@dataclass
class Row:
    """A batch of cases.

    Attributes:
        target: by name.
        engine: `hypothesis` or `atheris`.
        seed: of the cases.
        cases: how many were made.
        answered: of these, how many got a right answer.
        refused: how many an error of ours.
        faults: how many broke the property.
        found: what, once each: the case, and what happened.
        seconds: it took.
        peak_mib: the largest memory that the process had by then.
    """

    target: str
    engine: str
    seed: int
    cases: int = 0
    answered: int = 0
    refused: int = 0
    faults: int = 0
    found: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    peak_mib: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it for a line of JSON."""
        return asdict(self)


class Counting:
    """Holds cases to the property of a target, and counts."""

    def __init__(self, name: str, engine: str, seed: int) -> None:
        self.target: Target = TARGETS[name]
        self.row = Row(name, engine, seed)
        self._known: Counter[str] = Counter()
        self._began = time.monotonic()

    def __call__(self, case: Any) -> None:
        """Take one."""
        self.row.cases += 1
        try:
            outcome = self.target.check(case)
        except Exception as error:
            self._keep(case, error)
            return
        if outcome == "answered":
            self.row.answered += 1
        else:
            self.row.refused += 1

    def _keep(self, case: Any, error: Exception) -> None:
        self.row.faults += 1
        if not isinstance(error, FaultError):
            error = FaultError(f"the check itself failed: {type(error).__name__}: {error}")
        cause = error.__cause__ or error
        where = traceback.extract_tb(cause.__traceback__)[-1:] or [traceback.FrameSummary("?", 0, "?")]
        kind = f"{type(cause).__name__} {where[0].filename.rpartition('/')[2]}:{where[0].lineno}"
        self._known[kind] += 1
        if self._known[kind] == 1 and len(self.row.found) < MOST_FAULTS:
            self.row.found.append({"kind": kind, "said": str(error)[:600], "case": _shown(case)})

    def done(self) -> Row:
        """Return what was counted."""
        self.row.seconds = round(time.monotonic() - self._began, 1)
        self.row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        return self.row


def _shown(case: Any) -> str:
    try:
        said = repr(case)
    except (RecursionError, ValueError):
        said = f"a {type(case).__name__}"
    return said[:1500].encode("utf-8", "backslashreplace").decode()


def drawn(target: Target, check: Any, cases: int, seed: int | None, *, shrink: bool) -> Any:
    """Return a function that makes cases and hands them to `check`: always the same where the same modules are loaded.

    hypothesis draws from the constants in them, too.

    Args:
        target: where they come from.
        check: raises where a case is not as it should be.
        cases: how many.
        seed: of them; None: hypothesis' own, which follows from the target.
        shrink: whether a case that fails is made smaller.
    """

    @hypothesis.settings(
        max_examples=cases,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(target.strategy)
    def one(case: Any) -> None:
        check(case)

    return one if seed is None else hypothesis.seed(seed)(one)


def batch(name: str, seed: int, cases: int) -> Row:
    """Make a batch with hypothesis; faults are counted, and do not end it."""
    counting = Counting(name, "hypothesis", seed)
    drawn(counting.target, counting, cases, seed, shrink=False)()
    return counting.done()


def again(name: str) -> dict[str, int]:
    """Make the cases of the tests, and return how many came out how. A fault is raised, in its smallest form."""
    target, outcomes = TARGETS[name], Counter[str]()
    drawn(target, lambda case: outcomes.update([target.check(case)]), target.in_tests, None, shrink=True)()
    return dict(outcomes)


def limit_memory() -> None:
    """Bound what this process may hold, from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, hard))
