"""Stock training of each host in each environment, and what is left of it: losses, weights, files, words."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reliability.downstream import environments, names
from reliability.downstream.environments import CHECKOUT, Environment

ASKED = "asked for"
"""A control: `loss: dft` by `dft train`. If its weights were stock's, the comparison would see nothing."""

AGAIN = "stock, again"
CONTROLLED = ("axolotl", "axolotl021", "llamafactory", "swift", "trl")
"""Whose folder has a YAML that `dft train` takes."""

Start = tuple[list[str], dict[str, str]]
"""A command that trains, and variables of its environment."""

SHARDS = "model_world_size"
"""What the names of verl's files of weights begin with."""

_CLOCKS = re.compile(r"runtime|per_sec|time|memory|speed|flos|mfu|percentage", re.IGNORECASE)
"""In the name of what depends on the clock or the machine."""

_OURS = re.compile(r"\bdft: .*|.*\bdft[-_]plugin\b.*")


def versions(environment: Environment) -> dict[str, str]:
    """Return the versions of what trains."""
    names = ("axolotl", "llamafactory", "ms-swift", "unsloth", "verl", "trl", "transformers", "peft", "torch")
    asked = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed = json.loads(environment.run("python", "-c", asked).stdout)
    spelled = {name.replace("_", "-"): version for name, version in installed.items()}
    return {name: spelled[name] for name in names if name in spelled}


def rows(
    host: str, form: str, start: Start, made: Mapping[str, Environment], work: Path, again: bool = True
) -> Iterator[dict[str, Any]]:
    """Train in each environment, and yield what came out, one row for each.

    Args:
        host: of `folders.HOSTS`.
        form: `full` or `lora`.
        start: what trains the folder `home` in `work`.
        made: by kind.
        work: a folder.
        again: whether stock is trained twice, and the loss asked for once.
    """
    home = work / "home"
    words, variables = start
    variables = names.variables(host) | variables
    runs = [(kind, kind) for kind in made]
    if again:
        runs.insert(1, (AGAIN, "stock"))
        runs += [(ASKED, "installed")] if host in CONTROLLED else []
    shutil.copytree(home, work / "before")
    for name, kind in runs:
        # The same path each time: a path is in what hosts write.
        shutil.rmtree(home)
        shutil.copytree(work / "before", home)
        environment = made[kind]
        command = words
        if name == ASKED:
            path = home / words[-1]
            path.write_text(path.read_text() + "loss: dft\n")
            command = ["python", "-m", "dft_plugin", "train", words[-1]]
        began = time.monotonic()
        done = environment.run(*command, cwd=home, **variables)
        found = outcome(home, done.stdout + done.stderr, done.returncode)
        found["weights"] |= saved_by_torch(home, environment)
        found["seconds"] = round(time.monotonic() - began)
        yield {"part": "training", "host": host, "form": form, "run": name, **found}


def start_of(host: str, form: str, given: Path, work: Path) -> Start:
    """Write a user's folder, `home` in `work`, by an environment that has the host and dft-plugin."""
    home = work / "home"
    home.mkdir(parents=True)
    paths = [CHECKOUT, CHECKOUT / "integrations"]
    done = subprocess.run(
        [given / "bin" / "python", "-m", "reliability.downstream.folders", host, form, home],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, **names.variables(host), "PYTHONPATH": os.pathsep.join(map(str, paths))},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the folder of {host} could not be made:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    return said["words"], said["variables"]


def outcome(home: Path, said: str, code: int) -> dict[str, Any]:
    """Return what a training left behind.

    Args:
        home: the user's folder.
        said: what was printed.
        code: with which it ended.
    """
    log, weights = logged(home), hashed(home)
    return {
        "code": code,
        "log": log,
        "weights": weights,
        "files": sorted(
            str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and _kept(path.relative_to(home))
        ),
        "said": sorted({line.strip()[:200] for line in _OURS.findall(said)}),
        **({"failed": said[-1500:].replace(str(home), "home")} if code or not log or not weights else {}),
    }


def _kept(path: Path) -> bool:
    """Whether a file, by its place in the folder, is a run's own: caches are named by hashes of what is around."""
    left_out = ("prepared", "__pycache__", "runs", "multirun", "outputs")
    return not any(part in left_out or part.startswith(("cache", ".")) for part in path.parts)


def logged(home: Path) -> list[dict[str, Any]]:
    """Return what was logged, but for what depends on the clock, of the last state that was saved."""
    states = sorted(home.rglob("trainer_state.json"), key=lambda path: (path.stat().st_mtime, str(path)))
    if states:
        entries = json.loads(states[-1].read_text())["log_history"]
    else:
        lines = [line for path in home.glob("log.jsonl") for line in path.read_text().splitlines()]
        entries = [json.loads(line)["data"] for line in lines]
    return without_clock(entries)


def without_clock(log: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a log without what depends on the clock."""
    return [{key: value for key, value in entry.items() if not _CLOCKS.search(key)} for entry in log]


def hashed(home: Path) -> dict[str, str]:
    """Return a digest of each file of weights that a run has written; a safetensors file of its tensors alone."""
    found = {}
    for path in sorted(home.rglob("*")):
        within = path.relative_to(home)
        trained = within.parts[0] in ("out", "checkpoints")
        if trained and path.is_file() and path.suffix == ".safetensors":
            found[str(within)] = _digest(_tensors(path.read_bytes()))
        elif trained and path.name.startswith(SHARDS):
            found[str(within)] = "not read"
    return found


def saved_by_torch(home: Path, environment: Environment) -> dict[str, str]:
    """Return a digest of the tensors of each file that verl has saved, as its environment reads them."""
    files = [path for path in sorted(home.rglob(f"{SHARDS}*")) if path.is_file()]
    if not files:
        return {}
    program = Path(__file__).parent / "programs" / "digest.py"
    done = environment.run("python", program, *files, **names.OFFLINE)
    done.check_returncode()
    read: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return {str(Path(path).relative_to(home)): digest for path, digest in read.items()}


def _tensors(content: bytes) -> bytes:
    """Return the names, places and bytes of a safetensors file, without its free text."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return json.dumps(header, sort_keys=True).encode() + content[8 + size :]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def environments_of(given: Path, work: Path) -> dict[str, Environment]:
    """Make the three environments of a host."""
    return {kind: environments.make(given, kind, work / kind) for kind in environments.KINDS}
