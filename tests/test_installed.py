"""What is installed beside what: whose pins a pip line could move, and that what is said to be tested is run."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pytest
from packaging.specifiers import SpecifierSet

from dft_plugin.cli.hosts import print_host, print_hosts
from dft_plugin.config.hosts import Host
from dft_plugin.config.installed import TESTED, Library, beside, pinned_by, version_problem
from dft_plugin.config.plugins import Entry

ROOT = Path(__file__).parents[1]


class Pytest(Host):
    """It asks for pluggy, and both are installed wherever we are."""

    name: ClassVar[str] = "pytest"
    distribution: ClassVar[str] = "pytest"
    tested: ClassVar[str] = ">=0,<1"
    install: ClassVar[str] = "pip install 'pytest<1'"


class Pluggy(Pytest):
    name: ClassVar[str] = "pluggy"
    distribution: ClassVar[str] = "pluggy"
    install: ClassVar[str] = "pip install 'pluggy<1'"


class Gone(Pytest):
    name: ClassVar[str] = "gone"
    distribution: ClassVar[str] = "no-such-distribution-of-ours"
    install: ClassVar[str] = "pip install gone"


EVERY = [Pytest(), Pluggy(), Gone()]
PYTEST = f"pytest {metadata.version('pytest')}"


def test_a_host_that_another_stands_on_is_not_moved_under_it():
    assert beside(Pluggy(), EVERY) == [PYTEST]
    assert version_problem(Pluggy(), EVERY) == (
        f"pluggy {metadata.version('pluggy')} was not tested (>=0,<1 was). In an environment of its own, since this "
        f"one has {PYTEST}: pip install 'pluggy<1'"
    )


def test_a_host_that_another_asks_for_is_pinned_by_that_one():
    assert pinned_by(Pluggy(), EVERY) == ["pytest"]
    assert pinned_by(Pytest(), EVERY) == pinned_by(Gone(), EVERY) == []


def test_hosts_prints_one_line_for_what_is_not_here_and_none_for_what_another_pins(capsys):
    print_hosts({host.name: Entry(host, "here") for host in EVERY}, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["pytest", metadata.version("pytest"), ">=0,<1", "here"]
    assert lines[2].split()[:4] == ["pluggy", metadata.version("pluggy"), "(of", "pytest)"]
    said = lines[lines.index("") + 1 :]
    assert [line for line in said if line and not line.startswith("with")] == [
        f"pytest {metadata.version('pytest')} was not tested (>=0,<1 was). Run: pip install 'pytest<1'",
        "Not installed: gone. How to install one: dft hosts NAME",
    ]


def test_hosts_says_of_one_how_to_install_it(capsys):
    print_host(Gone(), EVERY)
    assert capsys.readouterr().out == f"{version_problem(Gone(), EVERY)}\n"
    print_host(Pluggy(), EVERY)
    assert capsys.readouterr().out.startswith(f"pluggy {metadata.version('pluggy')} was not tested")


def test_a_host_may_move_what_it_asks_for_itself():
    assert beside(Pytest(), EVERY) == []
    assert version_problem(Pytest(), EVERY).endswith("Run: pip install 'pytest<1'")


def test_what_is_not_installed_wants_an_environment_of_its_own():
    assert beside(Gone(), EVERY) == [PYTEST, f"pluggy {metadata.version('pluggy')}"]
    assert version_problem(Gone(), [Gone()]) == "no-such-distribution-of-ours is not installed. Run: pip install gone"


@pytest.mark.parametrize(
    ("installed", "problem"),
    [
        ("2.15.0", "torch 2.15.0 was not tested (>=2.8,<2.15 was)."),
        ("2.7.1", "torch 2.7.1 was not tested (>=2.8,<2.15 was)."),
        ("2.13.0+cpu", None),
        (None, None),
    ],
)
def test_a_library_out_of_its_range_is_said_to_be_untested(installed, problem):
    assert Library("torch", installed, ">=2.8,<2.15").problem == problem


def pins(name: str) -> list[str]:
    """Releases that the project's sessions install."""
    places = [ROOT / "sessions" / "pins.py", *(ROOT / "tests" / "hosts").glob("*/requirements*.txt")]
    return re.findall(rf"\b{name}==([\d.]+)", "\n".join(path.read_text(encoding="utf-8") for path in places))


@pytest.mark.parametrize("name", [name for name in TESTED if name != "python"])
def test_what_is_said_to_be_tested_is_what_sessions_install_from_end_to_end(name):
    tested, found = SpecifierSet(TESTED[name]), pins(name)
    assert all(version in tested for version in found)
    for bound in tested:
        series = [*map(int, bound.version.split(".")[:2])]
        if bound.operator == "<":
            series[1] -= 1
        assert any([*map(int, version.split(".")[:2])] == series for version in found), f"{bound} of {found}"


def test_the_pythons_that_are_named_are_those_that_are_run():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", text)
    assert named == ["3.11", "3.12", "3.13"]
    assert TESTED["python"] == ">=3.11,<3.14"
    assert 'requires-python = ">=3.11"' in text
    core = (ROOT / "sessions" / "core.py").read_text(encoding="utf-8")
    assert list(dict.fromkeys(re.findall(r'python=interpreter\("(.*?)"\)', core))) == named[1:]
