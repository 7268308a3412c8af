"""What verl trains with `+loss=dft` is what float64 says, in every way it puts a step together."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

import torch
from support import oracle, tiny, training
from support.family import deft, idft
from support.verl_runs import DFT, LORA, by_hand, train, words

pytestmark = pytest.mark.host

KINDS = {
    "one batch": {},
    "micro-batches of two": {"data.micro_batch_size_per_gpu": 2},
    "dynamic batch size": {"data.use_dynamic_bsz": True, "data.max_token_len_per_gpu": 48},
    "remove padding": {"model.use_remove_padding": True},
    "gradient checkpointing": {"model.enable_gradient_checkpointing": True, "data.micro_batch_size_per_gpu": 4},
}


def assert_exact(run, truth):
    assert [entry["train/loss"] for entry in run.training_logs] == pytest.approx(truth.losses, rel=1e-6)
    assert [entry["train/grad_norm"] for entry in run.training_logs] == pytest.approx(truth.norms, rel=1e-5)
    assert tiny.max_gap(run.before, run.after) > 1e-3, "it trains"
    assert tiny.max_gap({name: w.double() for name, w in run.after.items()}, truth.weights) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_losses_gradients_and_weights_equal_float64(kind, home):
    run = train(*words(**DFT, **KINDS[kind]))
    assert len(run.steps) == 2
    assert_exact(run, by_hand(tiny.llama(), run.steps))


def test_lora(home):
    run = train(*words(**DFT, **LORA))
    model = training.lora(tiny.llama())
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in run.before.items():
            own[name].copy_(value)
    assert run.before.keys() == {name for name, p in own.items() if p.requires_grad}
    assert_exact(run, by_hand(model, run.steps))


def test_options_follow_the_loss(home):
    run = train(*words(**{"+loss.alpha": 0.5, "+loss.floor": 0.1}))
    assert_exact(run, by_hand(tiny.llama(), run.steps, oracle.family(0.5, 0.1)))


def test_what_stands_after_loss_may_refer_to_other_keys_and_to_the_environment(home, monkeypatch):
    monkeypatch.setenv("OBJECTIVE", "dft")
    run = train(*words(**{"+power": 0.5, "+loss": "{name:${oc.env:OBJECTIVE},alpha:${power},floor:0.1}"}))
    assert_exact(run, by_hand(tiny.llama(), run.steps, oracle.family(0.5, 0.1)))


@pytest.mark.parametrize(("name", "formula"), [("idft", idft), ("deft", deft)])
def test_what_an_objective_reads_of_rows_is_made_by_verl(name, formula, home):
    run = train(*words(**{"+loss": name, "trainer.total_training_steps": 1, "data.micro_batch_size_per_gpu": 4}))
    assert_exact(run, by_hand(tiny.llama(), run.steps, formula=formula))


def test_log_p_in_bfloat16_is_weighed_in_float32(home):
    """Without flash-attention verl makes log p in the dtype of the logits, which is bfloat16 unless one says else."""
    from dft_verl.loss import SftLoss

    seen = []

    def note(trainer):
        plain = trainer.engine.prepare_model_outputs

        def prepare_model_outputs(*args, **named):
            made = plain(*args, **named)
            batch = named["micro_batch"]
            seen.append((made["log_probs"].values().detach(), batch["loss_mask"].values()))
            return made

        trainer.engine.prepare_model_outputs = prepare_model_outputs

    run = train(*words(**{**DFT, "+engine.mixed_precision": None, "trainer.total_training_steps": 1}), prepare=note)
    ((logp, mask),) = seen
    assert logp.dtype == torch.bfloat16
    assert isinstance(run.trainer.loss_fn.func, SftLoss)
    exact = logp.double()[mask.roll(-1).bool()]
    (entry,) = run.training_logs
    assert entry["train/loss"] == pytest.approx(-(exact.exp() * exact).mean().item(), rel=1e-6)
    # Summed in bfloat16, as verl's own loss is, it has two digits.
    assert entry["dft/nll"] == pytest.approx(-exact.mean().item(), rel=1e-6)
