"""What it costs a process to start: processor seconds of `python -c "import HOST"`, in turn, and what is imported."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from reliability.downstream import names
from reliability.downstream.environments import KINDS, Environment

IMPORTS = {
    "transformers": "transformers.trainer",
    "trl": "trl.trainer.sft_trainer",
    "axolotl": "axolotl.cli.config",
    "llamafactory": "llamafactory.train.tuner",
    "swift": "swift.pipelines.train.sft",
    "verl": "verl.trainer.sft_trainer",
    "unsloth": "unsloth",
    "axolotl021": "axolotl.cli.config",
}
"""What a host's command imports to train: where autoload patches, what is patched."""


def rows(host: str, made: Mapping[str, Environment], rounds: int) -> Iterator[dict[str, Any]]:
    """Yield, for no import and that of a host, a row for each environment.

    Its medians, what it imports beyond stock, and the processor seconds of these modules alone, after the host's.
    """
    variables = names.variables(host)
    for module in (None, IMPORTS[host]):
        statement = "pass" if module is None else f"import {module}"
        loaded = {kind: _loaded(made[kind], statement, variables) for kind in KINDS}
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        # A Python that imports nothing is started in a moment.
        for number in range(3 * rounds if module is None else rounds):
            # Who comes first is another one each time.
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                times[kind].append(seconds(made[kind], statement, variables))
        for kind in KINDS:
            beyond = [name for name in loaded[kind] if name not in loaded["stock"]]
            yield {
                "part": "start-up",
                "host": host,
                "import": module,
                "run": kind,
                "seconds": [round(value, 4) for value in times[kind]],
                "median": round(statistics.median(times[kind]), 4),
                "modules": len(loaded[kind]),
                "beyond": len(beyond),
                "foreign": [name for name in beyond if not name.startswith(("dft_plugin", "dft_"))],
                "own": alone(made["installed"], statement, variables, beyond) if beyond else 0.0,
            }


def seconds(environment: Environment, statement: str, variables: Mapping[str, str]) -> float:
    """Return the processor seconds of one process, its children's too."""
    process = subprocess.Popen(
        [environment.python, "-c", statement],
        env=environment.variables(variables),
        cwd=environment.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{environment.kind}: python -c {statement!r} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def _loaded(environment: Environment, statement: str, variables: Mapping[str, str]) -> list[str]:
    """Return the names of the modules that a process has imported, in their order."""
    asked = f"{statement}\nimport json, sys; print(); print(json.dumps(list(sys.modules)))"
    done = environment.run("python", "-c", asked, **variables)
    done.check_returncode()
    names_in_order: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names_in_order


def alone(environment: Environment, statement: str, variables: Mapping[str, str], modules: list[str]) -> float:
    """Return the processor seconds of importing some modules in a process that has imported the host.

    Args:
        environment: without autoload, so that they are not there yet.
        statement: that imports the host.
        variables: of the process.
        modules: in the order in which they were imported.
    """
    asked = (
        f"{statement}\nimport importlib, time\nbegan = time.process_time()\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\nprint(); print(time.process_time() - began)"
    )
    done = environment.run("python", "-c", asked, **variables)
    done.check_returncode()
    return round(float(done.stdout.splitlines()[-1]), 4)
