"""USE_RAY=1: the workers that LLaMA-Factory starts train the loss, or stop the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

pytest.importorskip("llamafactory")
pytest.importorskip("ray")

import ray
from llamafactory.train import tuner
from ray import cloudpickle
from ray.exceptions import RayTaskError
from safetensors.torch import load_file
from support import factory, ray_on_cpu, tiny

from dft_llamafactory import run, workers
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin import __version__
from dft_plugin.config.hosts import Launch
from dft_plugin.config.sending import as_refused
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError, SettingsError

pytestmark = pytest.mark.host

ON = "dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (CustomSeq2SeqTrainer)"
ON_RAY = {
    "per_device_train_batch_size": 2,
    "ddp_backend": "gloo",
    "ray_num_workers": ray_on_cpu.WORKERS,
    # Else the address comes from Ray's dashboard, which is off.
    **({} if factory.OLD else {"master_addr": ray.util.get_node_ip_address()}),
}


@pytest.fixture
def folder(home, tmp_path):
    factory.write_config(tmp_path / "sft.yaml", **factory.arguments(home, tmp_path / "out", **ON_RAY, loss="dft"))
    return tmp_path


def on_ray(script, folder, **environment):
    return ray_on_cpu.run(
        script, "train", "sft.yaml", cwd=folder, USE_RAY="1", RAY_ON_CPU_FOR="llamafactory", **environment
    )


def assert_equals_one_process(done, folder, home):
    expected = factory.train(factory.arguments(home, folder / "here"), "dft")
    assert done.returncode == 0, done.stderr[-4000:]
    assert (done.stdout + done.stderr).count(ON) == 1, "one start-up line, not one for each worker"
    logs = factory.history(folder / "out")
    for mine, theirs in zip(logs, expected.logs, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6, abs=factory.ROUNDED)
        assert mine["dft/tokens"] == theirs["dft/tokens"]
        for key in ("dft/loss", "dft/nll", "dft/mean_prob", "dft/effective_tokens"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key
    lines = [json.loads(line) for line in (folder / "out" / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [entry["loss"] for entry in logs], "logged once"
    assert len((folder / "out" / "dft_probabilities.jsonl").read_text().splitlines()) == len(logs)
    assert expected.moved > 1e-3, "nothing was trained"
    assert tiny.max_gap(load_file(folder / "out" / "model.safetensors"), expected.after) < 1e-6
    assert json.loads((folder / "out" / "dft_loss.json").read_text())["in_words"] == "dft(alpha=1.0, floor=0.0)"


def test_the_unmodified_command_trains_on_two_workers_what_one_process_does(autoloaded, folder, home):
    assert_equals_one_process(on_ray("llamafactory-cli", folder), folder, home)


@pytest.mark.full
def test_dft_train_trains_on_two_workers_what_one_process_does(folder, home):
    assert_equals_one_process(on_ray("dft", folder), folder, home)


WORKER = {
    "no dft-plugin": (
        "raise ModuleNotFoundError(\"No module named 'dft_plugin'\")\n",
        "dft-plugin cannot be imported there (ModuleNotFoundError: No module named 'dft_plugin').",
    ),
    "another version": (
        "__version__ = '0.0.1'\n",
        f"it has dft-plugin 0.0.1, and the run was started with {__version__}.",
    ),
}


@pytest.fixture
def of_worker(tmp_path):
    """A folder that hides dft-plugin from whoever has it on its path."""

    def made(kind):
        package = tmp_path / "of-worker" / "dft_plugin"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(WORKER[kind][0])
        return str(package.parent), WORKER[kind][1]

    return made


@pytest.mark.full
@pytest.mark.parametrize("kind", WORKER)
def test_a_worker_that_cannot_train_the_loss_stops_the_run(kind, of_worker, folder):
    path, problem = of_worker(kind)
    done = on_ray("dft", folder, WORKERS_PYTHONPATH=path)
    assert done.returncode == 2, done.stderr[-4000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dft: ")]
    assert line.startswith("dft: the worker on ")
    assert f" would not train what stands after `loss:`: {problem} Nothing was trained. Run on each node: " in line
    assert line.endswith(f"pip install dft-plugin=={__version__}. Or leave out `loss:`.")
    assert not list((folder / "out").glob("*.safetensors"))


@pytest.mark.parametrize("kind", WORKER)
def test_what_is_sent_to_a_worker_says_by_itself_what_is_missing(kind, of_worker):
    """Without a cluster: what Ray's pickler makes of it, in a process like a worker's."""
    path, problem = of_worker(kind)
    with workers.carrying("dft"):
        sent = cloudpickle.dumps(tuner._training_function if factory.OLD else called_by_actor())
    # Behind it what the tests have, Ray's pickler is among it.
    behind = os.environ.get("PYTHONPATH", "")
    said = unpickled(sent, "call({'args': {}, 'callbacks': []})", PYTHONPATH=f"{path}{os.pathsep}{behind}")
    assert "\nRuntimeError: dft: the worker on " in said
    assert problem in said


def called_by_actor():
    """What the actors of 0.9.5 do, without the actor."""
    method = vars(tuner.Worker)["_training_function"]
    return lambda config: method(None, config)


def unpickled(sent, then, **environment):
    """What another process says that gets this; isolated from the folder that the tests run in."""
    command = [sys.executable, "-P", "-c", f"import pickle, sys; call = pickle.load(sys.stdin.buffer); {then}"]
    environment = {**os.environ, **environment}
    return subprocess.run(command, input=sent, capture_output=True, env=environment, check=False).stderr.decode()


def test_a_worker_that_nobody_of_ours_has_entered_stops_before_its_first_step():
    with workers.carrying("dft") as guard:
        sent = cloudpickle.dumps(guard)
    # One function at both moments, so that one call shows it.
    then = "assert call.on_train_begin == call.on_prediction_step; call.on_train_begin(None, None, None)"
    assert "\nRuntimeError: dft: a worker of Ray's was about to train without the loss" in unpickled(sent, then)


def of_task(cause):
    """What `ray.get` raises where a task has raised this."""
    return RayTaskError("train", "a traceback", cause).as_instanceof_cause()


def test_what_a_worker_refuses_is_a_refusal_of_the_run():
    refused = SettingsError(["`loss.x`: no."])
    with pytest.raises(SettingsError) as caught, as_refused():
        raise of_task(refused)
    assert caught.value is refused
    with pytest.raises(ConflictError, match=r"^the worker on there would not"), as_refused():
        raise of_task(RuntimeError("dft: the worker on there would not"))
    theirs = of_task(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError) as kept, as_refused():
        raise theirs
    assert kept.value is theirs


@pytest.mark.full
def test_a_run_whose_workers_are_not_ours_is_stopped_by_what_it_carries(home, tmp_path, monkeypatch):
    name = "_training_function" if factory.OLD else "Worker"
    plain = getattr(tuner, name)
    monkeypatch.setattr(workers, "_entrance", lambda tuner, loss: (name, plain))
    with in_this_process(monkeypatch), pytest.raises(ConflictError, match="about to train without the loss"):
        factory.train(factory.arguments(home, tmp_path / "out", **ON_RAY), "dft")
    assert not list((tmp_path / "out").glob("*.safetensors"))


@contextmanager
def in_this_process(monkeypatch):
    """Be the process that starts Ray."""
    with ray_on_cpu.folder() as environment, monkeypatch.context() as patch:
        for key, value in {**environment, "USE_RAY": "1"}.items():
            patch.setenv(key, value)
        ray_on_cpu.for_llamafactory(patch.setattr)
        try:
            ray_on_cpu.start()
            yield
        finally:
            ray.shutdown()


def test_a_command_that_only_looks_starts_no_ray(folder, monkeypatch):
    monkeypatch.setenv("USE_RAY", "1")
    shown = run.show(Launch(str(folder / "sft.yaml"), (), Settings(name="dft")), ())
    assert type(shown).__name__ == "CustomSeq2SeqTrainer"
    assert not ray.is_initialized()
    assert os.environ["USE_RAY"] == "1"


def test_check_says_what_workers_need(monkeypatch):
    monkeypatch.setenv("USE_RAY", "1")
    host = LlamaFactoryHost()
    assert host.conflicts({}) == []
    assert host.cautions({}) == [
        f"`USE_RAY=1`: each worker needs dft-plugin {__version__} as well; one with another stops the run."
    ]
    monkeypatch.setenv("USE_RAY", "0")
    assert host.cautions({}) == []
