"""The host without a run: which config is its own, how arguments are read, what torchrun is started with."""

from __future__ import annotations

import json

import pytest

from dft_llamafactory import arguments, launch
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin import testing
from dft_plugin.config.reading import may_name_loss
from dft_plugin.config.settings import Settings
from dft_plugin.errors import SettingsError
from dft_trl.host import TrlHost

pytest.importorskip("llamafactory")

pytestmark = pytest.mark.host

CONFIG = {"model_name_or_path": "m", "stage": "sft", "dataset": "d", "template": "qwen"}
TRL = {"model_name_or_path": "m", "dataset_name": "d"}
AXOLOTL = {"base_model": "m", "datasets": [{"path": "d"}]}


@pytest.mark.parametrize("foreign", [TRL, AXOLOTL], ids=["trl", "axolotl"])
def test_the_host_conforms(foreign):
    testing.check_host(LlamaFactoryHost(), CONFIG, foreign)


@pytest.mark.parametrize("config", [CONFIG, {"model_name_or_path": "m", "dataset": "d"}], ids=["usual", "shortest"])
def test_its_configs_are_not_taken_for_those_of_trl(config):
    assert LlamaFactoryHost().recognise(config)
    assert not TrlHost().recognise(config)


def test_liger_is_superseded():
    replaced = LlamaFactoryHost().replaces({**CONFIG, "enable_liger_kernel": True}, Settings(name="dft"))
    assert replaced == [
        "LLaMA-Factory's cross-entropy",
        "Liger's fused loss (`enable_liger_kernel`); its layer kernels stay",
    ]


class TestArguments:
    def test_a_mapping_loses_only_our_line(self):
        given = {**CONFIG, "loss": "dft"}
        request = arguments.read(given)
        assert (request.loss, request.args) == ("dft", CONFIG)
        assert "loss" in given, "the caller's mapping was changed"

    @pytest.mark.parametrize("name", ["cfg.yaml", "cfg.yml", "cfg.json"])
    def test_a_file_is_merged_with_overrides_as_the_host_does(self, name, tmp_path):
        path = tmp_path / name
        path.write_text(json.dumps({**CONFIG, "loss": {"name": "dft", "floor": 0.1}}))
        request = arguments.read([str(path), "learning_rate=1e-4", "loss.alpha=0.7", "stage=pt"])
        assert request.loss == {"name": "dft", "floor": 0.1, "alpha": 0.7}
        assert request.args == {**CONFIG, "learning_rate": 1e-4, "stage": "pt"}

    def test_an_option_keeps_the_name_that_the_file_gives(self, tmp_path):
        """A plain merge would drop `nll`, and train dft."""
        path = tmp_path / "cfg.yaml"
        path.write_text("loss: nll\n")
        assert arguments.read([str(path), "loss.kernel=logits"]).loss == {"name": "nll", "kernel": "logits"}

    def test_flags_lose_only_ours(self):
        request = arguments.read(["--stage", "sft", "--loss", "dft", "--loss.alpha=0.5", "--do_train", "--seed=3"])
        assert request.loss == {"name": "dft", "alpha": 0.5}
        assert request.args == ["--stage", "sft", "--do_train", "--seed=3"]
        assert request.config == {"stage": "sft", "do_train": True, "seed": 3}

    @pytest.mark.parametrize(
        "words", [["loss[alpha]=0.5"], ["--loss.alpha", "0.5"], ["--loss.alpha=0.5"]], ids=" ".join
    )
    def test_every_spelling_of_an_override_reaches_the_loss(self, words, tmp_path):
        """OmegaConf would put the first into a mapping that is thrown away, and the others into keys of their own."""
        path = tmp_path / "cfg.yaml"
        path.write_text("loss: eaft\nstage: sft\n")
        request = arguments.read([str(path), *words, "seed=3"])
        assert (request.loss, request.args) == ({"name": "eaft", "alpha": 0.5}, {"stage": "sft", "seed": 3})

    @pytest.mark.parametrize(
        ("text", "words"),
        [("loss:\n", []), ("loss: dft\n", ["loss="]), ("loss: dft\n", ["loss"]), ("loss: dft\n", ["loss=null"])],
    )
    def test_a_line_without_a_value_is_refused(self, text, words, tmp_path):
        path = tmp_path / "cfg.yaml"
        path.write_text(text)
        with pytest.raises(SettingsError, match="has no value"):
            arguments.read([str(path), *words])
        with pytest.raises(SettingsError, match=r"`loss:` has no value"):
            arguments.read({**CONFIG, "loss": None})

    def test_a_misspelt_override_is_refused(self, tmp_path):
        path = tmp_path / "cfg.yaml"
        path.write_text("loss: dft\n")
        with pytest.raises(SettingsError, match=r"an option of the loss is written `loss\.alpha=VALUE`"):
            arguments.read([str(path), "+loss.alpha=1"])

    def test_json_has_tabs_and_yaml_numbers_are_the_hosts(self, tmp_path):
        path = tmp_path / "cfg.json"
        path.write_text('{\n\t"loss": "dft",\n\t"learning_rate": 1e-5\n}')
        assert arguments.read([str(path)]).args == {"learning_rate": 1e-5}
        path = tmp_path / "cfg.yaml"
        path.write_text("loss: dft\nlearning_rate: 1e-5\n")
        assert arguments.read([str(path)]).args == {"learning_rate": 1e-5}

    def test_a_file_without_our_line_is_the_hosts_own_affair(self, tmp_path):
        path = tmp_path / "cfg.yaml"
        path.write_text("plot_loss: true\nstage: sft\nstage: pt\n")
        assert not may_name_loss([str(path), "plot_loss=true"])
        assert arguments.read_if_ours([str(path)]).loss is None
        assert may_name_loss([str(path), "loss=dft"])
        assert not may_name_loss(["no.yaml"])
        assert may_name_loss({"loss": None})
        path.write_text("loss: dft\n")
        assert may_name_loss([str(path)])

    def test_without_our_line_there_is_no_loss(self):
        assert arguments.read(CONFIG).loss is None
        assert arguments.read(["--stage", "sft", "--loss_scale", "2"]).loss is None
        assert arguments.read(["-h"]).args == ["-h"]

    def test_a_missing_file_is_one_clear_error(self):
        with pytest.raises(SettingsError, match=r"no\.yaml cannot be read \(No such file or directory\)"):
            arguments.read(["no.yaml"])


class TestTorchrun:
    def test_ranks_are_started_when_the_host_would(self):
        assert launch.wants_torchrun({"FORCE_TORCHRUN": "1"}, 0)
        assert launch.wants_torchrun({}, 2)
        assert not launch.wants_torchrun({}, 1)
        assert not launch.wants_torchrun({"USE_RAY": "1"}, 2), "Ray starts them"
        assert launch.wants_torchrun({"USE_RAY": "yes"}, 2), "LLaMA-Factory does not read that as on"
        assert not launch.wants_torchrun({"FORCE_TORCHRUN": "1", "LOCAL_RANK": "0"}, 2), "this is a rank already"

    def test_the_host_settings_for_ddp_are_kept_and_can_be_turned_off(self):
        assert launch.child_environment({})["TORCH_NCCL_AVOID_RECORD_STREAMS"] == "1"
        assert launch.child_environment({"OPTIM_TORCH": "0"}) == {"OPTIM_TORCH": "0"}
