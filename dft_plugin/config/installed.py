"""What is installed beside what: with which releases the tests run, and whose pins a pip line could move. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from platform import python_version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dft_plugin.config.hosts import Host

TESTED = {
    "python": ">=3.11,<3.14",
    "torch": ">=2.8,<2.15",
    "transformers": ">=4.56,<5.25",
    "accelerate": ">=1.11,<1.16",
    "peft": ">=0.18.1,<0.22",
}
"""What the tests are run with, besides hosts: both ends of each, and some between."""


@dataclass(frozen=True)
class Library:
    """Something that every host stands on.

    Attributes:
        name: as pip calls it.
        installed: its version, or None.
        tested: version specifier of what the tests run.
    """

    name: str
    installed: str | None
    tested: str

    @property
    def problem(self) -> str | None:
        """Say that it is a release that the tests do not run with. It may work as well."""
        if self.installed is None or Version(self.installed) in SpecifierSet(self.tested, prereleases=True):
            return None
        return f"{self.name} {self.installed} was not tested ({self.tested} was)."


def libraries() -> list[Library]:
    """Return Python, and the libraries that are tested in a range of releases."""
    found = {name: python_version() if name == "python" else _version(name) for name in TESTED}
    return [Library(name, version, TESTED[name]) for name, version in found.items()]


def version_problem(host: Host, hosts: Iterable[Host]) -> str | None:
    """Say what is wrong with a host's installation, and what to do that leaves the other hosts as they are."""
    return host.version_problem(beside=beside(host, hosts))


def beside(host: Host, hosts: Iterable[Host]) -> list[str]:
    """Name the installed hosts that a pip line of this one could break, since each pins what it needs.

    Args:
        host: to be installed, or moved to another version.
        hosts: all.
    """
    needed = _needs(host.distribution)
    others = (other for other in hosts if other.distribution != host.distribution)
    installed = {other.distribution: other.installed_version() for other in others}
    return [f"{name} {version}" for name, version in installed.items() if version and _plain(name) not in needed]


def pinned_by(host: Host, hosts: Iterable[Host]) -> list[str]:
    """Name the installed hosts that ask for this one's distribution, whose version is then their affair."""
    others = [other for other in hosts if other.distribution != host.distribution]
    return [other.name for other in others if _plain(host.distribution) in _needs(other.distribution)]


def _needs(distribution: str) -> set[str]:
    """Return what a distribution asks for itself, if it is installed."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return set()
    asked = map(Requirement, lines)
    # What an extra asks for is not there for that.
    return {_plain(one.name) for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
