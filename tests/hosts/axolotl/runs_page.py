"""docs/hosts/axolotl-runs.md, written by the tests that it lists."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "hosts" / "axolotl-runs.md"
PACKAGES = ("axolotl", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
HEAD = """\
# Axolotl: what was run

Written by the tests: `DFT_WRITE_DOCS=1 nox -s axolotl`. Each line is a test in `tests/hosts/axolotl`, on the
real Axolotl and tiny models; what a name claims is what the test measures.

Python {python}, {packages}; {system}, no GPU.
"""


class RunsPage:
    """Collects outcomes, and writes the page at the end if every test of the folder ran."""

    def __init__(self) -> None:
        self.cases: dict[tuple[str, str], list[tuple[str, str]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path, _, name = report.nodeid.partition("::")
        decides = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
        if decides and "tests/hosts/axolotl/" in path:
            function, _, case = name.partition("[")
            key = Path(path).stem.removeprefix("test_"), function.removeprefix("test_")
            self.cases.setdefault(key, []).append((case.rstrip("]"), report.outcome))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        lines = [HEAD.format(python=platform.python_version(), packages=packages, system=platform.system())]
        part = None
        for (module, function), cases in self.cases.items():
            if module != part:
                part = module
                lines += [f"## {module.replace('_', ' ')}\n", "| claim | cases | outcome |", "| --- | --- | --- |"]
            outcomes = sorted({outcome for _, outcome in cases})
            named = ", ".join(case for case, _ in cases if case)
            lines.append(f"| {function.replace('_', ' ')} | {named} | {', '.join(outcomes)} |")
            if (module, function) == [key for key in self.cases if key[0] == module][-1]:
                lines.append("")
        PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
