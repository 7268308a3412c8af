"""What cannot train with the loss is refused, with these words; what looks foreign but is not, trains."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl.cli.config import load_cfg, prepare_plugins
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.utils.dict import DictDefault
from pydantic import ValidationError
from support.axolotl_runs import FULL, PLUGIN, prepare, train, write_config

from dft_axolotl.args import DFTArgs
from dft_axolotl.conflicts import RULES, cautions, find, superseded
from dft_axolotl.plugin import DFTPlugin
from dft_plugin.errors import ConflictError
from dft_plugin.hf.callbacks import is_active

pytestmark = [pytest.mark.host, pytest.mark.newest]

KD = "axolotl.integrations.kd.KDPlugin"
DIFFUSION = "axolotl.integrations.diffusion.DiffusionPlugin"
HATCHERY = "axolotl.integrations.hatchery.HatcheryPlugin"
OWN = "trains on preferences, rewards or features with a loss of its own. Remove `rl:` to fine-tune on target tokens, "
REFUSED = {
    **{
        f"rl-{kind}": ({"rl": kind}, f"`rl`: `{kind}` {OWN}or remove `loss:`.")
        for kind in ("dpo", "ipo", "kto", "orpo", "simpo", "grpo", "gdpo", "ebft")
    },
    "reward_model": (
        {"reward_model": True},
        "`reward_model`: a reward model has no next-token likelihood. Remove it, or remove `loss:`.",
    ),
    "process_reward_model": (
        {"process_reward_model": True},
        "`process_reward_model`: a process reward model has no next-token likelihood. Remove it, or remove `loss:`.",
    ),
    "kd_trainer": (
        {"kd_trainer": True},
        "`kd_trainer`: the distillation trainer computes its own loss from the teacher's logits. Remove it, or remove "
        "`loss:`.",
    ),
    "kd plugin": (
        {"plugins": [PLUGIN, KD]},
        "`plugins`: the distillation trainer computes its own loss from the teacher's logits. Remove the KDPlugin, or "
        "remove `loss:`.",
    ),
    "kd plugin with a colon": (
        {"plugins": [PLUGIN, "axolotl.integrations.kd:KDPlugin"]},
        "`plugins`: the distillation trainer computes its own loss from the teacher's logits.",
    ),
    "use_eaft": (
        {"use_eaft": True},
        "`use_eaft`: EAFT weights each token by entropy in a loss of its own, which would replace ours. Remove it, or "
        "remove `loss:`.",
    ),
    "orpo_alpha": (
        {"orpo_alpha": 0.1},
        "`orpo_alpha`: ORPO computes its own loss from pairs of answers. Remove it, or remove `loss:`.",
    ),
    "diffusion": (
        {"plugins": [PLUGIN, DIFFUSION]},
        "`plugins`: the diffusion trainer predicts masked tokens with a loss of its own. Remove the DiffusionPlugin, "
        "or remove `loss:`.",
    ),
    "hatchery": (
        {"plugins": [PLUGIN, HATCHERY]},
        "`plugins`: Hatchery trains on a remote service, where our loss is not. Remove the HatcheryPlugin, or remove "
        "`loss:`.",
    ),
    "diffusion_lm": (
        {"diffusion_lm": {"from_causal_lm": True}},
        "`diffusion_lm`: the trainer of diffusion models predicts masked tokens with a loss of its own. Remove it, or "
        "remove `loss:`.",
    ),
    "diffusion_decision": (
        {"diffusion_decision": {"layout": "pairwise"}},
        "`diffusion_decision`: its trainer scores whole answers of a diffusion model with a loss of its own. Remove "
        "it, or remove `loss:`.",
    ),
    "mixlora": (
        {"adapter": "mixlora"},
        "`adapter`: MixLoRA's trainer adds its routers' loss to each micro-batch, however few of the step's tokens "
        "that has. Choose another adapter, or remove `loss:`.",
    ),
    "liger_use_token_scaling": (
        {"liger_use_token_scaling": True},
        "`liger_use_token_scaling`: it asks Liger for a DFT of its own; only one of the two can be on. Remove it: "
        "`loss: dft` is the same loss, counted over the whole step.",
    ),
    "use_dft": (
        {"use_dft": True},
        "`use_dft`: it asks Axolotl for a DFT of its own; only one of the two can be on. Remove it, or remove "
        "`loss:`.",
    ),
    "misspelt plugin": (
        {"plugins": [PLUGIN, "dft_plugin.DFTPlugin"]},
        "`plugins`: `dft_plugin.DFTPlugin` is not our plugin's name, and where a plugin cannot be imported Axolotl "
        f"up to 0.20 prints it and trains cross-entropy. Write `{PLUGIN}`.",
    ),
    "typo": ({"loss": "dff"}, "`loss`: `dff` is not a known name. Did you mean `dft`?"),
    "typo in an option": ({"loss": {"name": "dft", "alhpa": 1.0}}, "`loss.alhpa`: `alhpa` is not an option of `dft`."),
}


@pytest.fixture
def own_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("plugins")))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_while_the_config_is_read(name):
    change, text = REFUSED[name]
    with pytest.raises(ValidationError) as caught:
        DFTArgs.model_validate({**FULL, **change})
    assert text in str(caught.value)


def test_axolotl_asks_our_schema(home):
    with pytest.raises(ValidationError) as caught:
        load_cfg(str(write_config(home, use_eaft=True)))
    assert REFUSED["use_eaft"][1] in str(caught.value)


def test_every_rule_has_a_test():
    fired = {rule for change, _ in REFUSED.values() for rule in RULES if rule.holds({"loss": "dft", **change})}
    assert fired == set(RULES)


CUTS = (
    "cuts sequences after the tokens were counted and, in 0.19, replaces the count by an estimate, so the loss would "
    "be wrong."
)
ULYSSES = "is DeepSpeed's with `deepspeed:`, which is not told how many tokens a step has, so the loss would be wrong."
SAVE = "Set it to 1, and save memory with sample_packing, FSDP or DeepSpeed."
SPLITS = {
    "context_parallel_size": ({"context_parallel_size": 2}, "Axolotl's context parallelism (2)"),
    "sequence_parallel_degree": ({"sequence_parallel_degree": 2}, "the old name of context_parallel_size (2)"),
    "context_parallel.size": ({"context_parallel": {"size": 2}}, "Axolotl's context parallelism (2)"),
}
OLD, NEW = "0.19.0", "0.21.0"


@pytest.mark.parametrize("key", SPLITS)
def test_context_parallelism_is_refused_where_targets_are_not_counted(key):
    change, what = SPLITS[key]
    with_deepspeed = {**change, "deepspeed": "zero3.json"}
    assert [str(one) for one in find(change, OLD)] == [f"`{key}`: {what} {CUTS} {SAVE}"]
    assert [str(one) for one in find(with_deepspeed, NEW)] == [f"`{key}`: {what} {ULYSSES} {SAVE}"]
    assert find(change, NEW) == find(change, None) == []


def test_mamba_is_refused_where_its_trainer_computes_cross_entropy():
    mamba = {"model_config_type": "mamba"}
    assert [str(one) for one in find(mamba, OLD)] == [
        "`model_config_type`: the Mamba trainer of Axolotl 0.19 computes cross-entropy by itself and never asks the "
        "model for a loss. Install Axolotl 0.20 or newer, or remove `loss:` for this model."
    ]
    assert find(mamba, "0.20.0") == find(mamba, NEW) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"unsloth_cross_entropy_loss": True}, "`unsloth_cross_entropy_loss` has been removed"),
        ({"batch_flattening": True}, "batch_flattening requires a varlen-capable attention backend"),
    ],
    ids=["unsloth", "batch_flattening with sdpa"],
)
def test_what_axolotl_itself_refuses(change, text, home):
    with pytest.raises(ValidationError, match=text):
        load_cfg(str(write_config(home, **change)))


def test_everything_is_reported_at_once(home):
    with pytest.raises(ValidationError) as caught:
        load_cfg(str(write_config(home, loss={"alhpa": 1}, rl="dpo", use_eaft=True)))
    assert re.search(r"3 problems:.*loss\.alhpa.*`rl`.*`use_eaft`", str(caught.value), re.DOTALL)


def test_the_plugin_without_loss_is_refused(home):
    with pytest.raises(ValidationError, match=r"there is no `loss:`. Add the line `loss: dft`, or remove the plugin."):
        load_cfg(str(write_config(home, drop=["loss"])))


def test_a_plugin_that_cannot_be_imported_stops_the_run(home, monkeypatch):
    """Axolotl up to 0.20 prints an ImportError and goes on to train cross-entropy."""
    monkeypatch.setitem(sys.modules, "dft_axolotl.plugin", None)
    with pytest.raises(RuntimeError, match=r"DFTPlugin cannot be loaded .*, so `loss:` would not take effect"):
        prepare_plugins(DictDefault({"plugins": [PLUGIN]}))


def test_a_core_that_cannot_be_imported_stops_the_run(home, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("dft_axolotl.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dft_plugin.errors", None)
    with pytest.raises(RuntimeError, match="DFTPlugin cannot be loaded"):
        prepare_plugins(DictDefault({"plugins": [PLUGIN]}))


def test_a_misspelt_class_stops_the_run(home):
    with pytest.raises(AttributeError, match=r"Write `dft_axolotl\.DFTPlugin`\."):
        prepare_plugins(DictDefault({"plugins": ["dft_axolotl.DftPlugin"]}))


def test_what_axolotl_finds_out_about_the_model_is_checked_before_it_is_loaded(home):
    with pytest.raises(ConflictError, match="MixLoRA's trainer"):
        DFTPlugin().pre_model_load(DictDefault({"loss": "dft", "adapter": "mixlora"}))


def test_a_trainer_of_another_kind_is_refused(home):
    class DPOTrainer:
        pass

    with pytest.raises(ConflictError, match=r"DPOTrainer is not Axolotl's trainer for supervised fine-tuning"):
        DFTPlugin().post_trainer_create(DictDefault({"loss": "dft", "rl": "dpo"}), DPOTrainer())


def test_a_config_without_loss_is_left_alone(home):
    DFTPlugin().post_trainer_create(DictDefault({"rl": "dpo"}), object())
    DFTPlugin().pre_model_load(DictDefault({"rl": "dpo"}))
    assert DFTPlugin().add_callbacks_post_trainer(DictDefault({"rl": "dpo"}), object()) == []


def test_a_users_trainer_that_overrides_compute_loss_is_refused(home, own_modules):
    path = write_config(home, trainer_cls="own_trainers.OwnLoss")
    with pytest.raises(
        ConflictError,
        match=r"OwnLoss overrides compute_loss. Let it inherit AxolotlTrainer's, or leave out `trainer_cls:` or the "
        r"plugin that chose this trainer\.",
    ):
        prepare(path)


def test_a_users_trainer_that_does_not_override_it_trains(home, own_modules):
    run = train(write_config(home, trainer_cls="own_trainers.Plain", max_steps=1))
    assert type(run.trainer).__name__ == "Plain"
    assert run.logs[0]["loss"] == pytest.approx(run.expected[0], rel=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "core.trainers.mamba:AxolotlMambaTrainer",
        "integrations.diffusion.trainer:DiffusionTrainer",
        "core.trainers.diffusion_lm.trainer:AxolotlDiffusionTrainer",
        "integrations.mixlora.trainer:MixLoraTrainer",
    ],
)
def test_axolotls_own_trainers_with_a_loss_are_told_by_their_class_too(name):
    module, _, of = name.partition(":")
    try:
        trainer_class = getattr(import_module(f"axolotl.{module}"), of)
    except ImportError:
        pytest.skip("this version has none")
    assert trainer_class.compute_loss is not AxolotlTrainer.compute_loss


def test_label_smoothing_of_another_plugin_is_refused(home, monkeypatch):
    from axolotl.integrations.base import PluginManager

    monkeypatch.setattr(
        PluginManager, "get_training_args", lambda self, cfg: {"label_smoothing_factor": 0.1}, raising=True
    )
    with pytest.raises(ConflictError, match=r"label_smoothing_factor is 0\.1.*Set it to 0\."):
        prepare(write_config(home))


@pytest.mark.parametrize("call", ["add_callbacks_post_trainer", "post_trainer_create"])
def test_one_of_the_two_calls_for_a_trainer_is_enough(call, home, monkeypatch):
    """`axolotl evaluate` does not make the latter."""
    monkeypatch.setattr(DFTPlugin, call, lambda self, cfg, trainer: [])
    _, trainer = prepare(write_config(home))
    assert is_active(trainer)


def test_what_is_superseded_and_what_to_look_out_for_is_said():
    plugins = [
        "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
        "axolotl.integrations.llm_compressor.LLMCompressorPlugin",
    ]
    config = {"plugins": plugins, "liger_fused_linear_cross_entropy": True, "chunked_cross_entropy": False}
    assert superseded(config) == ["liger_fused_linear_cross_entropy", "cut_cross_entropy"]
    assert superseded({**config, "cut_cross_entropy": False}) == ["liger_fused_linear_cross_entropy"]
    (caution,) = cautions(config)
    assert caution == (
        "llm_compressor: when training ends it puts a loss function of its own on the trainer, so that an evaluation "
        "after that is not of this loss; evaluate while training (val_set_size, eval_strategy)."
    )
    assert cautions({}) == []
