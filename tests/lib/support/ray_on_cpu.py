"""A host's own run on Ray where there is no GPU: what it asks Ray for is made smaller, and nothing else.

    python -m support.ray_on_cpu llamafactory-cli train sft.yaml

LLaMA-Factory 0.9.5 asks for ten CPUs for each CPU that Ray has; 0.9.4 and Axolotl ask for GPUs.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

WORKERS = 2

INIT = {"num_cpus": 20, "include_dashboard": False}
"""Arguments of `ray.init`: CPUs are a number to Ray, and its dashboard wants packages that nothing here needs."""

ENVIRONMENT = {
    # A token for its clusters would be written into the user's home.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A worker imports torch before it answers.
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def folder() -> Iterator[dict[str, str]]:
    """Yield the environment of a run whose Ray has a folder of its own: pytest's would be too long for its sockets."""
    place = tempfile.mkdtemp(prefix="dft-")
    try:
        yield {**ENVIRONMENT, "RAY_TMPDIR": place}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def run(script: str, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment so; its Ray ends with it."""
    binaries = Path(sys.executable).parent
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    with folder() as of_ray:
        variables = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path, "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-m", "support.ray_on_cpu", script, *words],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, **variables, **of_ray, **environment},
            check=False,
            timeout=1800,
        )


def start() -> None:
    """Start Ray in this process; a run of a host's takes the one that is there.

    Ray gives up after 30 seconds, which a busy machine may need for its processes alone.
    """
    ray = import_module("ray")
    for again in (True, True, True, False):
        try:
            ray.init(**INIT)
        except Exception as error:
            if not again or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
        else:
            return


def for_llamafactory(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have LLaMA-Factory ask for what there is."""
    tuner, utils = (import_module(f"llamafactory.train.{name}") for name in ("tuner", "trainer_utils"))
    if hasattr(tuner, "Worker"):
        plain = tuner.get_placement_group
        put(tuner, "get_placement_group", lambda devices: plain(WORKERS))
    else:
        put(utils, "ScalingConfig", without_gpu(utils.ScalingConfig))


def for_axolotl(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have Axolotl ask for what there is."""
    train = import_module("ray.train")
    put(train, "ScalingConfig", without_gpu(train.ScalingConfig))


def without_gpu(kind: Any) -> Any:
    """Return a class of Ray's as it is, but for what a worker asks for."""

    @functools.wraps(kind, updated=())
    def made(**given: Any) -> Any:
        return kind(**{**given, "use_gpu": False, "resources_per_worker": {"CPU": 1}})

    return made


def main() -> None:
    """Run the command that the words name."""
    del sys.argv[0]
    (script,) = entry_points(group="console_scripts", name=sys.argv[0])
    # What workers have in the place of this process's packages; they get its environment.
    if "WORKERS_PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join([os.environ["WORKERS_PYTHONPATH"], os.environ["PYTHONPATH"]])
    {"llamafactory": for_llamafactory, "axolotl": for_axolotl}[os.environ["RAY_ON_CPU_FOR"]]()
    start()
    sys.exit(script.load()())


if __name__ == "__main__":
    main()
