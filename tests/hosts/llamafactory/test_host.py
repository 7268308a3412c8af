"""The host without a run: which config is its own, how arguments are read, what torchrun is started with."""

from __future__ import annotations

import json
import sys

import pytest

from dft_llamafactory import arguments, launch
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin import testing
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

    def test_without_our_line_there_is_no_loss(self):
        assert arguments.read(CONFIG).loss is None
        assert arguments.read(["--stage", "sft", "--loss_scale", "2"]).loss is None
        assert arguments.read(["-h"]).args == ["-h"]

    def test_a_missing_file_is_one_clear_error(self):
        with pytest.raises(SettingsError, match=r"no\.yaml cannot be read \(No such file or directory\)"):
            arguments.read(["no.yaml"])


class TestTorchrun:
    WORDS = ("a folder/cfg.yaml", "output_dir=an out")

    def test_ranks_are_started_when_the_host_would(self):
        assert launch.wants_torchrun({"FORCE_TORCHRUN": "1"}, 0)
        assert launch.wants_torchrun({}, 2)
        assert not launch.wants_torchrun({}, 1)
        assert not launch.wants_torchrun({"FORCE_TORCHRUN": "1", "LOCAL_RANK": "0"}, 2), "this is a rank already"

    def test_a_static_start(self):
        environ = {"NNODES": "2", "NODE_RANK": "1", "NPROC_PER_NODE": "4", "MASTER_ADDR": "10.0.0.1"}
        command = launch.torchrun(environ, 8, "29500", self.WORDS)
        assert command == [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", "--nnodes", "2"),
            *("--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "29500"),
            *("-m", "dft_llamafactory.run", *self.WORDS),
        ]

    def test_an_elastic_start(self):
        environ = {"RDZV_ID": "7", "MIN_NNODES": "1", "MAX_NNODES": "3", "MAX_RESTARTS": "2", "NNODES": "2"}
        command = launch.torchrun(environ, 8, "29500", self.WORDS)
        assert command == [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "8", "--nnodes", "1:3"),
            *("--rdzv-id", "7", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29500", "--max-restarts", "2"),
            *("-m", "dft_llamafactory.run", *self.WORDS),
        ]

    def test_the_host_settings_for_ddp_are_kept_and_can_be_turned_off(self):
        assert launch.child_environment({})["TORCH_NCCL_AVOID_RECORD_STREAMS"] == "1"
        assert launch.child_environment({"OPTIM_TORCH": "0"}) == {"OPTIM_TORCH": "0"}
