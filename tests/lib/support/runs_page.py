"""A page of what was run: each test of a folder is a line, written by the tests themselves."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

HEAD = """\
# {title}: what was run

Written by the tests: `DFT_WRITE_DOCS=1 nox -s {session}`. Each line is a test in `{folder}`, on the
real {title} and tiny models; what a name claims is what the test measures.

Python {python}, {packages}; {system}, no GPU.
"""


class RunsPage:
    """Collects outcomes, and writes the page at the end.

    Attributes:
        title: of the host.
        session: of nox.
        folder: of the tests.
        page: what is written.
        packages: whose versions are named.
    """

    def __init__(self, title: str, session: str, folder: str, page: Path, packages: Sequence[str]) -> None:
        self.title, self.session, self.folder, self.page, self.packages = title, session, folder, page, packages
        self.cases: dict[str, dict[str, list[tuple[str, str]]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path, _, name = report.nodeid.partition("::")
        decides = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
        if decides and f"{self.folder}/" in path:
            function, _, case = name.partition("[")
            claims = self.cases.setdefault(Path(path).stem.removeprefix("test_"), {})
            claims.setdefault(function.rpartition("::")[2].removeprefix("test_"), []).append(
                (case.rstrip("]"), report.outcome)
            )

    def pytest_sessionfinish(self) -> None:
        self.page.write_text("\n".join([self._head(), *map(self._part, self.cases)]), encoding="utf-8")

    def _head(self) -> str:
        return HEAD.format(
            title=self.title,
            session=self.session,
            folder=self.folder,
            python=platform.python_version(),
            packages=", ".join(f"{name} {version(name)}" for name in self.packages),
            system=platform.system(),
        )

    def _part(self, module: str) -> str:
        lines = [f"## {module.replace('_', ' ')}\n", "| claim | cases | outcome |", "| --- | --- | --- |"]
        for function, cases in self.cases[module].items():
            outcomes = ", ".join(sorted({outcome for _, outcome in cases}))
            named = ", ".join(case for case, _ in cases if case)
            lines.append(f"| {function.replace('_', ' ')} | {named} | {outcomes} |")
        return "\n".join(lines) + "\n"
