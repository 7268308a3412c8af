"""`use_ray`: Axolotl's own run on two of Ray's workers; a worker that cannot train the loss stops it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("axolotl")
pytest.importorskip("ray")

from support import ray_on_cpu
from support.axolotl_runs import FULL, PLUGIN, SAVED, assert_same, write_config

pytestmark = [pytest.mark.host, pytest.mark.full]

ON_RAY = {"use_ray": True, "ray_num_workers": ray_on_cpu.WORKERS, "micro_batch_size": 2}


def write(home):
    """Write a config whose places are those of this process: Ray's workers stand in a folder of their own."""
    rows = [{**one, "path": str(home / one["path"])} for one in FULL["datasets"]]
    places = {"base_model": str(home / FULL["base_model"]), "datasets": rows}
    places |= {"output_dir": str(home / "out" / "config.yml"), "dataset_prepared_path": str(home / "prepared")}
    write_config(home, **SAVED, **ON_RAY, **places, plugins=[PLUGIN, "cpu_ranks.CpuRanks"])


def on_ray(home, script, **environment):
    # The workers have this process's path, and find there what lets several share a CPU.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent / "plugins"), os.environ.get("PYTHONPATH")]))
    words = ("train", "config.yml", *(("--use-ray",) if script == "axolotl" else ("use_ray=true",)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        return ray_on_cpu.run(script, *words, cwd=home, RAY_ON_CPU_FOR="axolotl", **environment)


@pytest.mark.parametrize("script", ["axolotl", "dft"])
def test_two_workers_train_what_one_process_does(script, home, expected):
    write(home)
    done = on_ray(home, script)
    done.stderr += done.stdout
    assert_same(home, done, expected)


def test_a_worker_without_dft_plugin_stops_the_run(home, tmp_path):
    """Axolotl itself goes on without a plugin that cannot be imported, and would train cross-entropy there."""
    package = tmp_path / "of-worker" / "dft_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'dft_plugin'\")\n")
    write(home)
    done = on_ray(home, "axolotl", WORKERS_PYTHONPATH=str(package.parent))
    assert done.returncode != 0
    assert "dft: the worker on " in done.stderr
    assert "dft-plugin cannot be imported there (ModuleNotFoundError: No module named 'dft_plugin')" in done.stderr
    assert not (home / "out" / "config.yml" / "checkpoint-2").exists()
