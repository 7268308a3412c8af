"""`USE_V1=1`: `dft train` and the unmodified command, in one process and in two; and what is refused."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from support import counted, tiny

from dft_llamafactory import conflicts_v1
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin import autoload
from dft_plugin.config.settings import Settings

pytest.importorskip("llamafactory")

from support import factory

if factory.OLD:
    pytest.skip("its v1 trainer is another one, and refused", allow_module_level=True)

from support import factory_v1

pytestmark = [pytest.mark.host, *factory_v1.WARNS]

V1 = {"USE_V1": "1"}
KINDS = {"ddp": {}, "fsdp2": {"dist_config": {"name": "fsdp2"}}, "ddp-lora": factory_v1.LORA}
HALVED = {"micro_batch_size": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return factory_v1.make_home(tmp_path_factory.mktemp("a user"))


@pytest.fixture
def folder(home, tmp_path):
    """Write a config into an empty folder whose name has a space; returns the folder."""

    def make(**changes):
        place = tmp_path / "a run"
        place.mkdir(exist_ok=True)
        config = factory_v1.command_arguments(home, place / "out", micro_batch_size=2)
        factory.write_config(place / "v1.yaml", **{**config, **changes})
        return place

    return make


@pytest.fixture(scope="module")
def expected(home, tmp_path_factory):
    """What one process trains, full and LoRA: its folder."""
    made = {}
    for kind, changes in {"full": {}, "lora": factory_v1.LORA}.items():
        place = tmp_path_factory.mktemp(kind)
        config = factory_v1.command_arguments(home, place / "out", micro_batch_size=2, **changes)
        factory.write_config(place / "v1.yaml", **config, loss="dft")
        done = factory.command("train", "v1.yaml", cwd=place, environment=V1, script="dft")
        assert_on(done)
        made[kind] = place / "out"
    return made


def assert_on(done):
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count(factory_v1.ON) == 1, "one start-up line, not one for each rank"


def assert_trained(done, folder, expected):
    """It trained our loss, on all ranks, to what one process gets."""
    assert_on(done)
    logs, theirs = factory_v1.history(folder / "out"), factory_v1.history(expected)
    assert len(logs) == 2
    for mine, other in zip(logs, theirs, strict=True):
        assert mine["dft/tokens"] == other["dft/tokens"]
        for key in ("loss", "grad_norm", "dft/loss", "dft/nll", "dft/mean_prob"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5), key
    counted.assert_agree(folder / "out", logs)
    name = "adapter_model.safetensors" if (expected / "adapter_model.safetensors").is_file() else "model.safetensors"
    # AdamW makes a large step of the smallest gradient, and of its rounding.
    assert tiny.max_gap(load_file(folder / "out" / name), load_file(expected / name)) < 2e-6


def test_dft_train_trains_the_loss_of_the_yaml(expected, home, tmp_path):
    """The oracle of these tests is exact: the float64 loss of the first step."""
    run = factory_v1.train(factory_v1.arguments(home, tmp_path, max_steps=1), "dft")
    (first, _) = factory_v1.history(expected["full"])
    assert first["loss"] == pytest.approx(run.expected, rel=1e-6)


def test_dft_train_takes_overrides(folder):
    place = folder(loss={"name": "dft", "floor": 0.0})
    words = ("loss.alpha=0", "output_dir=another out", "max_steps=1")
    done = factory.command("train", "v1.yaml", *words, cwd=place, environment=V1, script="dft")
    assert done.returncode == 0, done.stderr[-3000:]
    (first,) = factory_v1.history(place / "another out")
    assert first["loss"] == pytest.approx(first["dft/nll"], rel=1e-6)


# The unmodified command, below, starts two ranks of `ddp`.
@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=pytest.mark.full), "fsdp2", "ddp-lora"])
def test_dft_train_starts_two_ranks_that_train_what_one_does(kind, folder, expected):
    place = folder(loss="dft", **KINDS[kind], **HALVED)
    environment = {**V1, **factory_v1.two_ranks(place)}
    done = factory.command("train", "v1.yaml", cwd=place, environment=environment, script="dft")
    assert_trained(done, place, expected["lora" if "lora" in kind else "full"])


@pytest.mark.parametrize("command", [pytest.param("train", marks=pytest.mark.full), "sft"])
def test_the_unmodified_command_trains_the_loss_even_if_it_may_drop_keys(command, autoloaded, folder, expected):
    """ALLOW_EXTRA_KEYS=1 makes v1's parser drop what it does not know. An override wins."""
    place = folder(loss="nll")
    environment = {**V1, "ALLOW_EXTRA_KEYS": "1"}
    done = factory.command(command, "v1.yaml", "loss=dft", cwd=place, environment=environment)
    assert_trained(done, place, expected["full"])


@pytest.mark.parametrize("command", ["train", pytest.param("sft", marks=pytest.mark.full)])
def test_the_unmodified_command_starts_two_ranks_that_train_what_one_does(command, autoloaded, folder, expected):
    place = folder(loss="dft", **HALVED)
    environment = {**V1, **factory_v1.two_ranks(place), "ALLOW_EXTRA_KEYS": "1"}
    assert_trained(factory.command(command, "v1.yaml", cwd=place, environment=environment), place, expected["full"])


def test_without_our_line_the_unmodified_command_trains_as_ever(autoloaded, folder):
    place = folder()
    done = factory.command("train", "v1.yaml", cwd=place, environment=V1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "dft: loss" not in done.stderr
    assert not any(key.startswith("dft/") for entry in factory_v1.history(place / "out") for key in entry)


@pytest.mark.parametrize("command", ["rm", pytest.param("chat", marks=pytest.mark.full)])
def test_v1s_other_commands_refuse_the_loss_even_if_they_may_drop_keys(command, autoloaded, folder):
    place = folder(loss="dft")
    environment = {**V1, "ALLOW_EXTRA_KEYS": "1"}
    done = factory.command(command, "v1.yaml", cwd=place, environment=environment)
    assert done.returncode != 0
    assert (
        "dft: `loss`: of LLaMA-Factory's v1 commands only `train` and `sft` can train it; the others (`rm`, "
        "`dpo`, ...) have losses of their own. Start `USE_V1=1 llamafactory-cli sft`, or leave out `loss:`."
    ) in done.stderr
    assert not (place / "out").exists()


def test_v1_itself_has_no_dpo(autoloaded, folder):
    done = factory.command("dpo", "v1.yaml", cwd=folder(loss="dft"), environment={**V1, "ALLOW_EXTRA_KEYS": "1"})
    assert "NotImplementedError: DPO trainer is not implemented yet." in done.stderr


def test_the_unmodified_command_refuses_what_is_in_the_way(autoloaded, folder):
    place = folder(loss="dft", dist_config={"name": "fsdp2", "cp_size": 2})
    done = factory.command("train", "v1.yaml", cwd=place, environment=V1)
    assert done.returncode != 0
    assert "dft: `dist_config`: with cp_size above 1" in done.stderr
    assert not (place / "out").exists()


def test_without_autoload_the_unmodified_command_stops_at_the_unknown_key(folder):
    environment = {**V1, autoload.SWITCH: "0"}
    done = factory.command("train", "v1.yaml", cwd=folder(loss="dft"), environment=environment)
    assert done.returncode != 0
    assert "not used by the HfArgumentParser: ['loss']" in done.stderr


NO_V1 = (
    "`train_dataset`: only LLaMA-Factory's v1 trainer reads it, which runs with USE_V1=1. Start with USE_V1=1 in the "
    "environment, or write `model_name_or_path` and `dataset` for the usual trainer."
)
ONLY_V1 = (
    "`model_name_or_path`: LLaMA-Factory's v1 trainer, which USE_V1 starts, does not read it. Unset USE_V1, or write "
    "`model` and `train_dataset` for v1."
)


def test_a_yaml_of_v1_without_its_variable_is_refused_by_both_commands(autoloaded, folder):
    place = folder(loss="dft")
    off = {"USE_V1": "0"}
    ours = factory.command("train", "v1.yaml", cwd=place, environment=off, script="dft")
    theirs = factory.command("train", "v1.yaml", cwd=place, environment=off)
    assert (ours.returncode, ours.stderr.strip()) == (2, f"dft: {NO_V1}")
    assert f"dft: {NO_V1}" in theirs.stderr


def test_a_usual_yaml_with_the_variable_of_v1_is_refused_by_both_commands(autoloaded, home, tmp_path):
    factory.write_config(tmp_path / "sft.yaml", **factory.arguments(home, tmp_path / "out"), loss="dft")
    ours = factory.command("train", "sft.yaml", cwd=tmp_path, environment=V1, script="dft")
    theirs = factory.command("train", "sft.yaml", cwd=tmp_path, environment=V1)
    assert (ours.returncode, ours.stderr.strip()) == (2, f"dft: {ONLY_V1}")
    assert f"dft: {ONLY_V1}" in theirs.stderr


def test_check_says_that_the_loss_will_be_on(folder):
    done = factory.command("check", "v1.yaml", cwd=folder(loss="dft"), environment=V1, script="dft")
    assert done.returncode == 0
    assert "host      llamafactory (0.9.5)" in done.stdout
    assert "result    the loss will be on" in done.stdout


MIXED = (
    "`batching_strategy`: without `flash_attn: flash_attention_2`, the rows that dynamic_padding_free puts behind one "
    "another attend to each other, and tokens get the weights of another text. Set `flash_attn: flash_attention_2`, "
    "or `batching_strategy: dynamic_batching`."
)
CONTEXT = (
    "`dist_config`: with cp_size above 1, v1 computes cross-entropy in a function of its own. Set its `cp_size` to 1, "
    "or leave out `loss:`."
)
IN_THE_WAY = [
    ({"dist_config": {"name": "fsdp2", "cp_size": 2}}, CONTEXT),
    ({"dist_config": '{"name": "fsdp2", "cp_size": "2"}'}, CONTEXT),
    (
        {"model_class": "cls"},
        "`model_class`: a model of the class cls gives its tokens no probabilities. Set `model_class: llm`, or leave "
        "out `loss:`.",
    ),
    (
        {"stage": "dpo"},
        "`stage`: `loss:` weighs the tokens of supervised fine-tuning, and stage dpo has a loss of its own. Set "
        "`stage: sft`, or leave out `loss:`.",
    ),
    ({"batching_strategy": "dynamic_padding_free"}, MIXED),
    ({"batching_strategy": "dynamic_padding_free", "flash_attn": "eager"}, MIXED),
    ({"model_name_or_path": "m"}, ONLY_V1),
]
IN_THE_WAY_IDS = ["-".join(f"{key}={value}" for key, value in config.items()) for config, _ in IN_THE_WAY]


@pytest.mark.parametrize(("config", "text"), IN_THE_WAY, ids=IN_THE_WAY_IDS)
def test_a_key_in_the_way_is_refused(config, text, monkeypatch):
    monkeypatch.setenv("USE_V1", "1")
    (found,) = LlamaFactoryHost().conflicts(config)
    assert str(found) == text


def test_what_is_off_is_not_refused(monkeypatch):
    monkeypatch.setenv("USE_V1", "true")
    off = {"dist_config": {"name": "fsdp2", "cp_size": 1}, "model_class": "llm", "batching_strategy": "normal"}
    assert LlamaFactoryHost().conflicts(off) == []
    packed = {"batching_strategy": "dynamic_padding_free", "flash_attn": "flash_attention_2"}
    assert LlamaFactoryHost().conflicts(packed) == []


def test_the_v1_trainer_of_0_9_4_is_refused():
    (found,) = conflicts_v1.find({}, "0.9.4")
    assert str(found) == (
        "`USE_V1`: the v1 trainer of LLaMA-Factory 0.9.4 is another one, which was never run with ours. Run: "
        "pip install 'llamafactory>=0.9.5,<0.9.6'. Or unset it."
    )


def test_the_host_knows_a_yaml_of_v1():
    host = LlamaFactoryHost()
    assert host.recognise({"model": "m", "train_dataset": "d"})
    assert not host.recognise({"base_model": "m", "train_dataset": "d"})
    assert not host.recognise({"model": "m"})


def test_ligers_cross_entropy_is_superseded():
    config = {"train_dataset": "d", "kernel_config": {"name": "liger_kernel", "include_kernels": "auto"}}
    assert LlamaFactoryHost().replaces(config, Settings(name="dft")) == [
        "LLaMA-Factory's cross-entropy",
        "Liger's cross-entropy (`kernel_config`); its layer kernels stay",
    ]
