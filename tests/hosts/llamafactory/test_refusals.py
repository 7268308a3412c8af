"""What would keep the loss from taking effect is refused before anything starts, with the text that helps."""

from __future__ import annotations

import contextlib

import pytest

from dft_llamafactory import conflicts, run
from dft_llamafactory.arguments import read
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin import activate
from dft_plugin.errors import ConflictError, NotActiveError
from dft_plugin.hf.run import activating

pytest.importorskip("llamafactory")

from support import factory

pytestmark = pytest.mark.host

OTHER_STAGE = (
    "`stage`: `loss:` weighs the tokens of supervised fine-tuning, and stage {0} has a loss of its own. "
    "Set `stage: sft`, or leave out `loss:`."
)
KT = "KTransformers trains with a trainer and a forward pass of its own."
SEQUENCE = "sequence parallelism reduces the loss of each shard by itself, which was never run with ours."

IN_CONFIG = [
    *[({"stage": stage}, OTHER_STAGE.format(stage)) for stage in ("pt", "rm", "ppo", "dpo", "kto")],
    (
        {"use_dft_loss": True},
        "`use_dft_loss`: LLaMA-Factory's own DFT would take the place of ours. Replace it by the line `loss: dft`. "
        "The weights after a step are the same, and you gain: the router's auxiliary loss of a MoE model "
        "(LLaMA-Factory's DFT drops it), steps with a micro-batch that has no target (LLaMA-Factory's DFT crashes "
        "there), the `dft/*` statistics, options such as `alpha`, and most of the memory of the logits.",
    ),
    (
        {"use_asft_loss": True},
        "`use_asft_loss`: ASFT would take the place of `loss:`. Remove it, or leave out `loss:`.",
    ),
    (
        {"use_eaft_loss": "true"},
        "`use_eaft_loss`: EAFT would take the place of `loss:`. Remove it, or leave out `loss:`.",
    ),
    (
        {"label_smoothing_factor": 0.1},
        "`label_smoothing_factor`: the Trainer takes the labels from the model and trains smoothed cross-entropy. "
        "Remove it, or set it to 0.",
    ),
    ({"use_kt": True}, f"`use_kt`: {KT} Set `use_kt: false`, or leave out `loss:`."),
    (
        {"use_hyper_parallel": True},
        "`use_hyper_parallel`: HyperParallel trains with a trainer of its own. Set `use_hyper_parallel: false`, or "
        "leave out `loss:`.",
    ),
    (
        {"sequence_parallel_size": 2},
        f"`sequence_parallel_size`: {SEQUENCE} Set it to 1, or leave out `loss:`.",
    ),
    (
        {"parallelism_config": {"sp_size": 2}},
        f"`parallelism_config.sp_size`: {SEQUENCE} Set it to 1, or leave out `loss:`.",
    ),
]
IN_CONFIG_IDS = [f"{key}={value}" for config, _ in IN_CONFIG for key, value in config.items()]
MEGATRON = "the loss is computed inside Megatron. Unset it, or leave out `loss:`."
IN_ENVIRONMENT = [
    ("USE_MCA", f"`USE_MCA=1`: {MEGATRON}"),
    ("USE_MEGATRON_BRIDGE", f"`USE_MEGATRON_BRIDGE=1`: {MEGATRON}"),
    ("USE_KT", f"`USE_KT=1`: {KT} Unset it, or leave out `loss:`."),
]


def refusal(config):
    """What a run with this config says, before LLaMA-Factory is called."""

    def run_exp(args, callbacks):
        pytest.fail("LLaMA-Factory was started")

    with pytest.raises(ConflictError) as caught:
        run.run_with_loss(run_exp, read({"loss": "dft", **config}))
    return str(caught.value)


@pytest.mark.parametrize(("config", "text"), IN_CONFIG, ids=IN_CONFIG_IDS)
def test_a_key_in_the_way_is_refused_by_the_run_and_by_the_check(config, text):
    assert refusal(config) == text
    (found,) = LlamaFactoryHost().conflicts(config)
    assert str(found) == text


@pytest.mark.parametrize(("variable", "text"), IN_ENVIRONMENT, ids=[name for name, _ in IN_ENVIRONMENT])
def test_a_variable_in_the_way_is_refused_by_the_run_and_by_the_check(variable, text, monkeypatch):
    monkeypatch.setenv(variable, "1")
    assert refusal({}) == text
    (found,) = LlamaFactoryHost().conflicts({})
    assert str(found) == text


def test_sequence_parallelism_of_accelerate_is_refused(monkeypatch):
    monkeypatch.setenv("PARALLELISM_CONFIG_SP_SIZE", "2")
    assert refusal({}) == f"`PARALLELISM_CONFIG_SP_SIZE=2`: {SEQUENCE} Unset it, or leave out `loss:`."


def test_what_is_off_is_not_refused(monkeypatch):
    monkeypatch.setenv("USE_KT", "0")
    off = {"stage": "sft", "use_dft_loss": False, "use_kt": "false", "label_smoothing_factor": 0.0}
    assert LlamaFactoryHost().conflicts({**off, "parallelism_config": {"dp_shard_size": 2}}) == []


def test_every_problem_is_reported_at_once():
    text = refusal({"loss": {"name": "dft", "alhpa": 1}, "stage": "dpo", "use_kt": True})
    assert text.startswith("3 problems:\n  - `loss.alhpa`")
    assert "\n  - `stage`: " in text
    assert "\n  - `use_kt`: " in text


def trainer_of(config, home, tmp_path):
    """The trainer of a run that is stopped before its first step."""
    made = []

    class StopHereError(Exception):
        pass

    def stop(trainer):
        made.append(trainer)
        raise StopHereError

    with pytest.raises(StopHereError):
        factory.train(factory.arguments(home, tmp_path, **config), None, stop)
    return made[0]


@pytest.mark.parametrize("flag", ["use_dft_loss"] if factory.OLD else ["use_dft_loss", "use_eaft_loss"])
def test_a_trainer_with_a_loss_of_its_own_is_refused_whoever_made_it(flag, home, tmp_path):
    trainer = trainer_of({flag: True}, home, tmp_path)
    with pytest.raises(ConflictError, match=f"`{flag}`: "):
        activate(trainer)
    assert "forward" not in trainer.model.__dict__, "a refused trainer's model must stay as it was"


def test_a_stage_that_slips_through_is_stopped_before_its_first_step(home, tmp_path, monkeypatch):
    """Without the table: LLaMA-Factory makes a trainer that we do not know."""
    monkeypatch.setattr(conflicts, "CONFIG_RULES", ())
    with pytest.raises(NotActiveError, match="training begins without the loss") as caught:
        factory.train(factory.arguments(home, tmp_path, stage="pt"), "dft")
    assert "Nothing was updated" in str(caught.value)


def test_the_trainer_class_is_as_it_was_after_a_run():
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    plain = CustomSeq2SeqTrainer.__init__
    with contextlib.suppress(NotActiveError), activating(CustomSeq2SeqTrainer, "dft"):
        assert CustomSeq2SeqTrainer.__init__ is not plain
    assert CustomSeq2SeqTrainer.__init__ is plain


def test_one_run_inside_another_is_refused():
    config = {"loss": "dft"}

    def run_exp(args, callbacks):
        run.run_with_loss(pytest.fail, read(config))

    with pytest.raises(ConflictError, match="going on in this process already"):
        run.run_with_loss(run_exp, read(config))


def test_a_run_that_made_no_trainer_of_ours_is_an_error():
    with pytest.raises(NotActiveError, match=r"it made no CustomSeq2SeqTrainer\. Do not use what it saved\."):
        run.run_with_loss(lambda args, callbacks: None, read({"loss": "dft"}))
