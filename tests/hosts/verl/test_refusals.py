"""What verl cannot do with a loss is refused by name before anything is built; what goes by without us is stopped."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from support.verl_runs import DFT, compose, train, words

from dft_plugin.errors import ConflictError, NotActiveError, UnsupportedModelError

pytestmark = pytest.mark.host

CASES = {
    "a name that is none": ({"+loss": "dtf"}, "`loss`: `dtf` is not a known name. Did you mean `dft`?"),
    "an option that is none": ({"+loss.alfa": 0.7}, "`loss.alfa`: `alfa` is not an option of `dft`."),
    "eaft": ({"+loss": "eaft"}, "`loss: eaft` reads `top20` of each row of logits, and verl hands over log p."),
    "eaft at first": ({"+loss.first": "{name:eaft,for:2}"}, "`loss: eaft` reads `top20`"),
    "a reference": ({"+loss": "prift"}, "`loss: prift` reads `ref_logp` of each token, which verl's datasets"),
    "a reference's rows": ({"+loss": "asft"}, "`loss: asft` compares whole rows of logits with those of a reference"),
    "old probabilities": ({"+loss": "psft"}, "`loss: psft` reads `old_logp` of each token"),
    "a divisor": ({"+loss": "thresholded"}, "`loss: thresholded` divides by the number of tokens that it keeps"),
    "a kernel": ({"+loss.kernel": "chunked"}, "`loss.kernel: chunked`: verl makes log p itself"),
    "scratch": ({"+loss.scratch_mb": 40}, "`loss.scratch_mb`: verl makes the logits"),
    "top1": ({"+loss.log": "[top1]"}, "`loss.log: top1`: log p does not tell whether another token is likelier."),
    "a column": ({"+loss.weights": "{column:ratio}"}, "`loss.weights.column: ratio`: verl's datasets hand over no"),
    "padding": ({**DFT, "data.pad_mode": "right"}, "`data.pad_mode`: verl's engines train sequences without padding"),
    "mtp by reference": (
        {**DFT, "+heads": True, "model.mtp.enable": "${heads}"},
        "`model.mtp.enable`: the extra heads for further tokens train a",
    ),
    "nothing": ({"+loss": "null"}, "`loss:` has no value. Write `loss: dft`"),
    "nothing yet": ({"+loss": "???"}, "`loss`: `???` is not a known name."),
    "mtp": ({**DFT, "model.mtp.enable": True}, "`model.mtp.enable`: the extra heads for further tokens train a"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_name_before_anything_is_built(case, home):
    from verl.trainer.sft_trainer import SFTTrainer

    changes, says = CASES[case]
    with pytest.raises(ConflictError) as raised:
        SFTTrainer(config=compose(*words(**changes)))
    assert says in str(raised.value)


def test_a_key_that_only_looks_like_an_option_is_refused(home):
    from verl.trainer.sft_trainer import SFTTrainer

    (home / "mine.yaml").write_text(
        "defaults: [sft_trainer_engine, _self_]\n"
        "hydra: {searchpath: ['pkg://verl.trainer.config']}\n"
        "loss: dft\nloss.alpha: 0.7\n"
    )
    config = compose(*words(), name="mine", folder=home)
    with pytest.raises(ConflictError, match=r"`loss.alpha` is a key that nobody reads\. Write `loss: {name: dft,"):
        SFTTrainer(config=config)


def test_everything_is_said_at_once(home):
    from verl.trainer.sft_trainer import SFTTrainer

    with pytest.raises(ConflictError) as raised:
        SFTTrainer(config=compose(*words(**{"+loss": "eaft", "data.pad_mode": "right"})))
    assert len(raised.value.problems) == 2


def test_words_for_tokens_that_are_none_are_refused(home):
    with pytest.raises(ConflictError, match=r"`loss.weights.tokens`: 'w4 w5' is 2 tokens"):
        train(*words(**{"+loss.weights": "{tokens:{w4 w5:2.0}}"}))


def test_without_loss_nothing_of_ours_is_there(home, capfd):
    run = train(*words(**{"trainer.total_training_steps": 1}))
    (entry,) = run.training_logs
    assert not [key for key in entry if "dft" in key]
    assert "dft" not in capfd.readouterr().err
    assert not hasattr(run.trainer, "dft_training")


def test_a_run_whose_engine_calls_another_loss_is_stopped(home):
    from verl.workers.utils.losses import sft_loss

    def swap(trainer):
        trainer.training_client.set_loss_fn(lambda **given: sft_loss(None, **given))

    with pytest.raises(NotActiveError, match=r"went by without one call of the loss, .* nothing of it was saved"):
        train(*words(**DFT), prepare=swap)
    assert not (home / "checkpoints").exists()


def test_a_trainer_that_builds_with_a_loss_of_its_own_is_refused(home, monkeypatch):
    from verl.trainer import sft_trainer

    class Own(sft_trainer.SFTTrainer):
        def _build_engine(self):
            super()._build_engine()
            self.loss_fn = lambda **given: None

    monkeypatch.setattr(sft_trainer, "SFTTrainer", Own)
    with pytest.raises(NotActiveError, match=r"Own has built an engine with a loss of its own\. Nothing was trained"):
        train(*words(**DFT))


def test_a_model_that_hands_over_no_log_p_is_refused_by_name(home):
    def values(trainer):
        plain = trainer.engine.prepare_model_outputs
        trainer.engine.prepare_model_outputs = lambda *args, **named: {"values": plain(*args, **named)["log_probs"]}

    with pytest.raises(UnsupportedModelError, match=r"no `log_probs` \(but values\), .* Leave out `loss` for value"):
        train(*words(**DFT), prepare=values)


def test_a_statistic_that_an_engine_does_not_make_is_named(home):
    def without(trainer):
        plain = trainer.engine.prepare_model_outputs

        def log_probs(*args, **named):
            return {"log_probs": plain(*args, **named)["log_probs"]}

        trainer.engine.prepare_model_outputs = log_probs

    with pytest.raises(NotActiveError, match="reads `sum_pi_squared` of each row of logits, and this engine does not"):
        train(*words(**{"+loss": "deft"}), prepare=without)


def test_a_mask_of_weights_is_refused(home):
    def weigh(trainer):
        rows = trainer.train_dataset
        plain = type(rows).__getitem__

        class Weighed(type(rows)):
            def __getitem__(self, item):
                row = plain(self, item)
                return {**row, "loss_mask": row["loss_mask"] * 0.5}

        rows.__class__ = Weighed

    with pytest.raises(UnsupportedModelError, match="`loss_mask` holds other numbers than 0 and 1"):
        train(*words(**DFT), prepare=weigh)
