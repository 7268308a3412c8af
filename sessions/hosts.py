"""The hosts, each in an environment of its own."""

from pathlib import Path

import nox

from sessions.pins import (
    AXOLOTL,
    AXOLOTL_0_21,
    BITSANDBYTES,
    CUT_CROSS_ENTROPY,
    LIGER,
    OFFLINE,
    PYPROJECT,
    RAY,
    RERUN,
    TORCH,
    TRACKERS,
    TRL,
    UNSLOTH,
    install,
)
from sessions.pythons import interpreter, without_cuda


@nox.session(tags=["ci"])
def trl(session: nox.Session) -> None:
    """Train tiny models in TRL and the plain Trainer; install a sample plugin; run the CLI."""
    in_trl(session, "not gpu and not full and (host or not slow)")


@nox.session(tags=["full"])
def trl_full(session: nox.Session) -> None:
    """Run what `trl` leaves out."""
    in_trl(session, "full and not gpu")


def in_trl(session: nox.Session, marks: str) -> None:
    """Install TRL and run its tests with some marks, and those of what needs a host."""
    install(session, *TRL, *TRACKERS, groups=("test",))
    places = ["tests/hosts/trl", "tests/hosts/transformers", "tests/plugins", "tests/cli"]
    places += [f"tests/hosts/test_{name}.py" for name in ("ranks", "ranks_nonfinite", "faults")]
    chosen = session.posargs or places
    session.run("pytest", *RERUN, "-m", marks, *chosen, env=OFFLINE)


@nox.session(tags=["ci"])
def unsloth(session: nox.Session) -> None:
    """Train tiny models in Unsloth, on its CPU backend, and with the text of its forward for GPUs."""
    place = Path("tests", "hosts", "unsloth")
    install(session, "-r", str(place / "requirements.txt"), BITSANDBYTES, groups=("test",))
    # It asks for triton, xformers, torchvision and diffusers, which its CPU backend does not import.
    session.install("--no-deps", *UNSLOTH)
    session.run("pytest", *RERUN, "-m", "host", *(session.posargs or [str(place)]), env=OFFLINE)


@nox.session(tags=["ci"])
def llamafactory(session: nox.Session) -> None:
    """Train tiny models in LLaMA-Factory, by its own command as well."""
    in_llamafactory(session, "host and not full")


@nox.session(tags=["full"])
def llamafactory_full(session: nox.Session) -> None:
    """Run what `llamafactory` leaves out: the whole product of losses and of ways to put a step together."""
    in_llamafactory(session, "full")


def in_llamafactory(session: nox.Session, marks: str) -> None:
    """Install LLaMA-Factory and run its tests with some marks."""
    install_llamafactory(session, LIGER, group="test")
    session.run("pytest", *RERUN, "-m", marks, *(session.posargs or ["tests/hosts/llamafactory"]), env=OFFLINE)


def install_llamafactory(session: nox.Session, *packages: str, group: str) -> None:
    """Install LLaMA-Factory, a dependency group, and packages without what they ask for."""
    install(session, "-r", "tests/hosts/llamafactory/requirements.txt", RAY, groups=(group,))
    session.install("--no-deps", "llamafactory==0.9.5", *packages)
    # See requirements.txt.
    stand_in = "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'torchaudio.py').touch()"
    session.run_install("python", "-c", stand_in)


@nox.session(tags=["ci"])
def axolotl(session: nox.Session) -> None:
    """Train tiny models in Axolotl, which pins nearly everything that it imports."""
    in_axolotl(session, "host and not full")


@nox.session(tags=["full"])
def axolotl_full(session: nox.Session) -> None:
    """Run what `axolotl` leaves out: the whole product of losses and of ways to put a step together, and Ray."""
    in_axolotl(session, "full", RAY)


def in_axolotl(session: nox.Session, marks: str, *packages: str) -> None:
    """Install Axolotl, and packages beside it, and run its tests with some marks."""
    session.install(TORCH)
    tools = nox.project.dependency_groups(PYPROJECT, "test")
    session.install("-r", "tests/hosts/axolotl/requirements.txt", *tools, *packages)
    # Without dependencies, so that pip leaves the pins as they are.
    session.install("--no-deps", *AXOLOTL, LIGER, CUT_CROSS_ENTROPY)
    session.install("--no-deps", "-e", ".")
    session.run("pytest", *RERUN, "-m", marks, *(session.posargs or ["tests/hosts/axolotl"]), env=OFFLINE)


# Axolotl wants at least 3.12 from 0.20 on.
NEWER_PYTHON = next((found for version in ("3.12", "3.13") if (found := interpreter(version)) != version), None)
BACKEND = None if NEWER_PYTHON else "none"


@nox.session(tags=["ci"], python=NEWER_PYTHON, venv_backend=BACKEND)
def axolotl021(session: nox.Session) -> None:
    """Train tiny models in Axolotl 0.21: each claim once, and what is new in it."""
    in_axolotl021(session, "newest")


@nox.session(tags=["full"], python=NEWER_PYTHON, venv_backend=BACKEND)
def axolotl021_full(session: nox.Session) -> None:
    """Run every test of Axolotl's on 0.21."""
    in_axolotl021(session, "host or full")


def in_axolotl021(session: nox.Session, marks: str) -> None:
    """Install Axolotl 0.21 and run its tests with some marks."""
    if NEWER_PYTHON is None:
        session.skip("Axolotl 0.21 needs Python 3.12 or 3.13, and neither PATH nor pyenv has one.")
    place = Path("tests", "hosts", "axolotl")
    without_cuda(session, TORCH)
    tools = nox.project.dependency_groups(PYPROJECT, "test")
    session.install("-r", str(place / "requirements-0.21.txt"), *tools)
    session.install("--no-deps", *AXOLOTL_0_21, "liger-kernel==0.8.4", CUT_CROSS_ENTROPY)
    session.install("--no-deps", "-e", ".")
    session.run("pytest", *RERUN, "-m", marks, *(session.posargs or [str(place)]), env=OFFLINE)


@nox.session(tags=["ci"])
def swift(session: nox.Session) -> None:
    """Train tiny models in ms-swift, by its own commands as well."""
    with_requirements(session, "swift", "host and not full")


@nox.session(tags=["full"])
def swift_full(session: nox.Session) -> None:
    """Run what `swift` leaves out: the whole product of losses and of ways to put a step together."""
    with_requirements(session, "swift", "full")


def with_requirements(session: nox.Session, host: str, marks: str) -> None:
    """Install what a host's tests list, and run those with some marks; one thread, since its runs are of several."""
    place = Path("tests", "hosts", host)
    install(session, "-r", str(place / "requirements.txt"), groups=("test",))
    one_thread = {**OFFLINE, "OMP_NUM_THREADS": "1"}
    session.run("pytest", *RERUN, "-m", marks, *(session.posargs or [str(place)]), env=one_thread)


@nox.session(tags=["ci"])
def verl(session: nox.Session) -> None:
    """Train tiny models in verl, by its own programs as well, on a platform of its that is a CPU."""
    with_requirements(session, "verl", "host and not full")


@nox.session(tags=["full"])
def verl_full(session: nox.Session) -> None:
    """Run what `verl` leaves out."""
    with_requirements(session, "verl", "full")
