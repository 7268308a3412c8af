"""`dft train`, and after `dft autoload enable` the unmodified `llamafactory-cli train`, in one process and in two."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from safetensors.torch import load_file
from support import tiny

from dft_plugin import autoload

pytest.importorskip("llamafactory")

from support import factory

pytestmark = pytest.mark.host

ON = "dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (CustomSeq2SeqTrainer)"
HALVED = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
TWO_RANKS = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
KINDS = {"full": {}, "lora": factory.LORA if factory.OLD else {**factory.LORA, "neat_packing": True}}


@pytest.fixture
def folder(home, tmp_path):
    """Write a config into an empty folder whose name has a space; returns the folder."""

    def make(name="sft.yaml", **changes):
        place = tmp_path / "a run"
        place.mkdir(exist_ok=True)
        config = {**factory.arguments(home, place / "out"), **changes}
        if name.endswith(".json"):
            (place / name).write_text(json.dumps(config))
        else:
            factory.write_config(place / name, **config)
        return place

    return make


@pytest.fixture(scope="module")
def expected(home, tmp_path_factory):
    """The same run in this process: float64 loss of the first step, and the weights after two."""
    return {
        kind: factory.train(factory.arguments(home, tmp_path_factory.mktemp("here"), **changes), "dft")
        for kind, changes in KINDS.items()
    }


def assert_trained(done, folder, expected, kind="full"):
    """It trained our loss, on all ranks, to the weights that one process in this process gets."""
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(ON) == 1, "one start-up line, not one for each rank"
    logs = factory.history(folder / "out")
    assert logs[0]["loss"] == pytest.approx(expected[kind].expected, rel=1e-6, abs=factory.ROUNDED)
    assert [entry["dft/tokens"] for entry in logs] == [entry["dft/tokens"] for entry in expected[kind].logs]
    name = "adapter_model.safetensors" if "lora" in kind else "model.safetensors"
    saved = {key.replace(".weight", ""): value for key, value in load_file(folder / "out" / name).items()}
    after = {key.replace(".default", "").replace(".weight", ""): v for key, v in expected[kind].after.items()}
    assert tiny.max_gap(saved, after) < 1e-6


def test_dft_train_trains_the_loss_of_the_yaml(folder, expected):
    place = folder(loss="dft")
    before = (place / "sft.yaml").read_text()
    assert_trained(factory.command("train", "sft.yaml", cwd=place, script="dft"), place, expected)
    assert (place / "sft.yaml").read_text() == before


def test_dft_train_takes_json_and_overrides(folder):
    """LLaMA-Factory 0.9.5 itself fails on any JSON file."""
    place = folder("sft.json", loss={"name": "dft", "floor": 0.0})
    words = ("loss.alpha=0", "output_dir=another out", "learning_rate=0.0")
    done = factory.command("train", "sft.json", *words, cwd=place, script="dft")
    assert done.returncode == 0, done.stderr
    assert "loss dft(alpha=0, floor=0.0)" in done.stderr.replace("alpha=0.0", "alpha=0")
    (first, _) = factory.history(place / "another out")
    assert first["dft/loss"] == pytest.approx(first["dft/nll"], rel=1e-6)
    assert first["learning_rate"] == 0


# All of the model: the unmodified command, below.
@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.full), "lora"])
def test_dft_train_starts_two_ranks_that_train_what_one_does(kind, folder, expected):
    place = folder("my sft.yaml", loss="dft", **KINDS[kind], **HALVED)
    done = factory.command("train", "my sft.yaml", cwd=place, environment=TWO_RANKS, script="dft")
    assert_trained(done, place, expected, kind)


def test_the_unmodified_command_trains_the_loss_even_if_it_may_drop_keys(autoloaded, folder, expected):
    """ALLOW_EXTRA_ARGS=1 makes LLaMA-Factory's parser drop what it does not know. An override wins."""
    place = folder(loss="nll")
    done = factory.command("train", "sft.yaml", "loss=dft", cwd=place, environment={"ALLOW_EXTRA_ARGS": "1"})
    assert_trained(done, place, expected)


def test_the_unmodified_command_starts_two_ranks_that_train_what_one_does(autoloaded, folder, expected):
    place = folder(loss="dft", **HALVED)
    assert_trained(factory.command("train", "sft.yaml", cwd=place, environment=TWO_RANKS), place, expected)


def test_without_our_line_the_unmodified_command_trains_as_ever(autoloaded, folder):
    place = folder()
    done = factory.command("train", "sft.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "dft: loss" not in done.stderr
    assert not any(key.startswith("dft/") for entry in factory.history(place / "out") for key in entry)


def test_the_unmodified_command_refuses_what_is_in_the_way(autoloaded, folder):
    place = folder(loss="dft", use_dft_loss=True)
    done = factory.command("train", "sft.yaml", cwd=place)
    assert done.returncode != 0
    assert "dft: `use_dft_loss`: LLaMA-Factory's own DFT would take the place of ours." in done.stderr
    assert not (place / "out").exists()


def test_without_autoload_the_unmodified_command_stops_at_the_unknown_key(folder):
    place = folder(loss="dft")
    environment = {autoload.SWITCH: "0"}
    done = factory.command("train", "sft.yaml", cwd=place, environment=environment)
    assert done.returncode != 0
    assert "not used by the HfArgumentParser: ['loss']" in done.stderr


# An interpreter takes minutes for it.
@pytest.mark.parametrize("kind", ["full", pytest.param("lora", marks=pytest.mark.full)])
def test_ligers_fused_loss_is_superseded_and_its_layers_stay(kind, folder, expected):
    """The real Liger, loss and layers; of Triton's interpreter, one function is ours (`support.liger_on_cpu`)."""
    place = folder(loss="dft", enable_liger_kernel=True, **KINDS[kind])
    done = factory.on_liger("dft", "train", "sft.yaml", cwd=place)
    # Liger's layers round in another order: half of them differ in the last bit of a float32.
    assert_trained(done, place, expected, kind)
    assert "; replaces Liger's fused loss (enable_liger_kernel)" in done.stderr
    calls = factory.liger_calls(done)
    assert all(calls[f"{layer}_backward"] for layer in factory.LIGER_LAYERS), calls
    assert calls["fused_linear_cross_entropy_forward"], "Liger's forward is not in the model"
    assert not calls["fused_linear_cross_entropy_backward"], "Liger's loss was trained"


def test_without_our_line_ligers_fused_loss_is_trained(folder):
    """What the test before would see if ours did not supersede it."""
    place = folder(enable_liger_kernel=True, max_steps=1)
    done = factory.on_liger("llamafactory-cli", "train", "sft.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert factory.liger_calls(done)["fused_linear_cross_entropy_backward"] == 1


def test_check_tells_a_user_of_use_dft_loss_what_moving_gains(folder):
    place = folder(use_dft_loss=True)
    done = factory.command("check", "sft.yaml", cwd=place, script="dft")
    assert done.returncode == 1
    assert "host      llamafactory (0.9." in done.stdout
    assert "Add the line `loss: dft`." in done.stdout
    assert "Replace it by the line `loss: dft`. The weights after a step are the same, and you gain:" in done.stdout


def test_a_trl_that_is_too_old_is_refused_by_name(tmp_path):
    """LLaMA-Factory brings one."""
    factory.write_config(tmp_path / "sft.yaml", model_name_or_path="m", dataset_name="d", loss="dft")
    its_own = f"In an environment of its own, since this one has llamafactory {version('llamafactory')}: pip install"
    too_old = f"trl {version('trl')} is too old (>=1.15,<1.17 was tested). {its_own}"
    checked = factory.command("check", "sft.yaml", cwd=tmp_path, script="dft")
    assert (checked.returncode, f"version   {too_old}" in checked.stdout) == (1, True)
    trained = factory.command("train", "sft.yaml", cwd=tmp_path, script="dft")
    assert (trained.returncode, f"dft: {too_old}" in trained.stderr) == (2, True)


@pytest.mark.parametrize("key", ["load_best_model_at_end", "early_stopping_steps"])
def test_check_says_what_a_choice_by_the_weighted_loss_means(key, folder):
    place = folder(loss="dft", **{key: 3})
    done = factory.command("check", "sft.yaml", cwd=place, script="dft")
    assert (done.returncode, "hint      the best checkpoint" in done.stdout) == (0, True)
    done = factory.command("check", "sft.yaml", "metric_for_best_model=eval_dft/nll", cwd=place, script="dft")
    assert (done.returncode, "hint      the best checkpoint" in done.stdout) == (0, False)
