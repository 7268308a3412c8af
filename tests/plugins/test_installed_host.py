"""The host of the guide, installed by pip: recognised, checked, refused, and trained by every door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import oracle, tiny, training
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.host

SAMPLE = Path(__file__).parent / "dft-minimal"

AS_DFT_TRAIN = ("-m", "dft_plugin.cli", "train", "config.yaml")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the host installed; offline, so without build isolation."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(SAMPLE)], check=True)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and eight rows."""
    made = tmp_path_factory.mktemp("run")
    tiny.llama().save_pretrained(made / "model")
    for name, more in (("rows", {}), ("weighed", {"ratio": 0.25})):
        lines = [json.dumps({**row, **more}) for row in training.rows(8)]
        (made / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return made


def write(folder, **config):
    plain = {"model_dir": "model", "token_file": "rows.jsonl", "output_dir": "out"}
    (folder / "config.yaml").write_text(yaml.safe_dump({**plain, **config}), encoding="utf-8")


def python(site, folder, *words):
    given = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": given, "COLUMNS": "200"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def parameters(path):
    return dict(AutoModelForCausalLM.from_pretrained(path).double().named_parameters())


def by_hand(folder, weight):
    """Loss and weights after a step on all rows, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model").double()
    loss = oracle.causal_loss(model, training.collate(training.rows(8)), weight)
    loss.backward()
    return loss.item(), {name: (p - p.grad).detach() for name, p in model.named_parameters()}


def trained(folder):
    state = json.loads((folder / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    return state["log_history"][0], parameters(folder / "out")


def assert_is(folder, weight):
    expected, after = by_hand(folder, weight)
    logged, found = trained(folder)
    assert logged["loss"] == pytest.approx(expected, rel=1e-4 if training.ROUNDS_LOSS else 1e-6)
    assert oracle.gap([found[name] for name in after], list(after.values())) < 1e-6
    return logged


def test_dft_train_takes_the_step_of_float64_in_parts_with_a_column_of_the_data(site, folder):
    loss = {"name": "dft", "weights": {"column": "ratio"}}
    write(folder, loss=loss, token_file="weighed.jsonl", batch_size=2, accumulate=4)
    done = python(site, folder, *AS_DFT_TRAIN)
    assert done.returncode == 0, done.stderr
    assert "dft: loss dft" in done.stderr
    assert "dft/mean_prob" in assert_is(folder, lambda p: 0.25 * p)


def test_its_own_command_trains_the_loss_with_autoload_and_is_as_it_was_where_there_is_none(site, folder):
    on = "from dft_plugin.autoload import pth_text; from pathlib import Path; import runpy, sys; "
    on += "exec(pth_text({'minimal.train': 'dft_minimal.autoload'}, Path('x'))); sys.argv[1:] = ['config.yaml']; "
    on += "runpy.run_module('minimal.train', run_name='__main__')"
    for loss, weight in (({"loss": "dft"}, oracle.dft), ({}, oracle.nll)):
        write(folder, **loss, batch_size=8)
        done = python(site, folder, "-c", on)
        assert done.returncode == 0, done.stderr
        assert any(key.startswith("dft/") for key in assert_is(folder, weight)) == bool(loss)


def test_what_is_in_the_way_is_refused_by_name_before_anything_is_loaded(site, folder):
    write(folder, loss="dft", label_smoothing=0.1, model_dir="no such model")
    done = python(site, folder, *AS_DFT_TRAIN)
    assert done.returncode == 2
    assert "`label_smoothing`: the trainer would take the labels away from the model" in done.stderr
    assert "Remove it, or set it to 0." in done.stderr


def test_a_reference_is_run_over_its_rows_and_the_lines_that_are_printed_train(site, folder):
    write(folder, loss="prift")
    done = python(site, folder, "-m", "dft_plugin.cli", "reference", "config.yaml")
    assert done.returncode == 0, done.stderr
    lines = yaml.safe_load(done.stdout.split("\n\n")[1])
    assert lines["token_file"] == "./config-reference"
    write(folder, **lines)
    done = python(site, folder, *AS_DFT_TRAIN)
    assert done.returncode == 0, done.stderr
    assert "dft: loss prift" in done.stderr


def test_it_is_listed_and_conforms_and_is_not_loaded_for_that(site, folder):
    code = "from dft_plugin.config.plugins import build_catalogue; from dft_plugin.testing.host import check_host\n"
    code += "import sys; host = build_catalogue().hosts['minimal']; print(host.owner)\n"
    code += "check_host(host.item, {'model_dir': 'm', 'token_file': 't'}, {'model_dir': 'm'})\n"
    code += "print('transformers' in sys.modules, 'minimal' in sys.modules)"
    done = python(site, folder, "-c", code)
    assert done.stdout.split("\n")[:2] == ["dft-minimal:minimal", "False False"], done.stderr
