"""The core tests, and what looks at the code alone."""

import nox

from sessions.pins import (
    BITSANDBYTES,
    DEEPSPEED,
    FLOOR,
    NEWEST,
    OFFLINE,
    PYPROJECT,
    TORCH,
    TORCH_FLOOR,
    TORCH_NEWEST,
    TRITON,
    TRL,
    install,
)
from sessions.pythons import interpreter, without_cuda


@nox.session(tags=["ci"])
def lint(session: nox.Session) -> None:
    """Style, formatting, and the floors: imports go down only. Needs neither torch nor a host."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "integrations"})


@nox.session(tags=["ci"])
def site(session: nox.Session) -> None:
    """Build the documentation site, a warning is a failure, and follow its links. Needs neither torch nor a host."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "site"))
    # The group `site` says what that warning says.
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("python", "docs/links.py", "build/site")


@nox.session(tags=["ci"])
def types(session: nox.Session) -> None:
    """Run mypy, strict, against the real torch, transformers and TRL."""
    install(session, *TRL, groups=("types",))
    session.run("mypy", *session.posargs)


@nox.session(tags=["ci"])
def tests(session: nox.Session) -> None:
    """Run the tests on the newest releases, slow ones too (the sweep, FSDP2, ZeRO-3, compile); no host installed."""
    on_newest(session, "not gpu and not host and not full")


@nox.session(tags=["full"])
def tests_full(session: nox.Session) -> None:
    """Run what `tests` leaves out."""
    on_newest(session, "full and not gpu and not host")


def on_newest(session: nox.Session, marks: str) -> None:
    """Install the newest releases, and run the tests with some marks."""
    install(session, *NEWEST, BITSANDBYTES, "wheel", "plotly==7.1.0", groups=("test",))
    # It is built here, and asks for torch while it is.
    session.install("--no-build-isolation", DEEPSPEED)
    session.run("pytest", "-m", marks, *session.posargs, env=OFFLINE)


# What looks at the repository, its studies and its pages is tested once, on the newest releases.
NOT_THE_PACKAGE = [
    f"--ignore=tests/{name}"
    for name in ("evidence", "recipes", "reliability", "test_benchmarks.py", "test_docs.py", "test_first_hour.py")
]


@nox.session(tags=["full", "pythons"], python=interpreter("3.12"))
def python312(session: nox.Session) -> None:
    """Run the default tests on Python 3.12."""
    on_another_python(session, TORCH)


@nox.session(tags=["ci"], python=interpreter("3.13"))
def python313(session: nox.Session) -> None:
    """Run what meets a model, a trainer or the command line on Python 3.13, and the newest torch."""
    places = ("attachment", "cli", "columns_", "trainer", "kernels_/test_kernels.py", "test_functional.py")
    on_another_python(session, TORCH_NEWEST, *(f"tests/{one}" for one in places))


@nox.session(tags=["full", "pythons"], python=interpreter("3.13"))
def python313_full(session: nox.Session) -> None:
    """Run the default tests on Python 3.13, and the newest torch."""
    on_another_python(session, TORCH_NEWEST)


def on_another_python(session: nox.Session, torch: str, *places: str) -> None:
    """Install torch without a GPU's libraries, and run the default tests of the package, or of some places."""
    without_cuda(session, torch)
    tools = nox.project.dependency_groups(PYPROJECT, "test")
    session.install(*NEWEST, BITSANDBYTES, *tools, "-e", ".")
    session.run("pytest", *NOT_THE_PACKAGE, *(session.posargs or places), env=OFFLINE)


@nox.session(tags=["ci"])
def floor(session: nox.Session) -> None:
    """Run the default tests, and the plain Trainer, on the oldest releases that are supported."""
    # The newest datasets wants a huggingface_hub that transformers 4 does not take.
    install(session, *FLOOR, BITSANDBYTES, "datasets==4.0.0", groups=("test",), torch=TORCH_FLOOR)
    # With the torch of `tests`, what needs no more than torch is what it was there.
    alike = ["--ignore=tests/kernels_", "--ignore=tests/objectives_"] if TORCH_FLOOR == TORCH else []
    session.run("pytest", *NOT_THE_PACKAGE, *alike, *session.posargs, env=OFFLINE)
    session.run("pytest", "-m", "host and not full", "tests/hosts/transformers", env=OFFLINE)


@nox.session(tags=["ci"])
def aot(session: nox.Session) -> None:
    """Prove the Triton kernel without a GPU: run it in Triton's interpreter, and compile it ahead of time."""
    install(session, TRITON, "numpy", groups=("test",))
    places = [f"tests/kernels_/test_triton_{part}.py" for part in ("rows", "kernels", "fallback", "trust")]
    session.run("pytest", *places, env={**OFFLINE, "TRITON_INTERPRET": "1"})
    session.run("pytest", "tests/test_aot.py", env=OFFLINE)
    session.run("python", "-m", "benchmarks.aot", *session.posargs)
