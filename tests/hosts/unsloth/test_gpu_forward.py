"""What Unsloth's forward for GPUs does to the loss, by its own text; see `gpu_forward.py` for what stands in."""

from __future__ import annotations

import peft
import pytest
import torch
from support import attached, oracle, tiny, training

from dft_plugin import activate, attach
from dft_plugin.errors import ConflictError, UnsupportedModelError

from .gpu_forward import EMPTY, PEFT_FORWARD, Quantises, QuantisesInside, llama

pytestmark = pytest.mark.host

HEADS = {"plain": torch.nn.Linear, "quantised": Quantises, "quantised inside": QuantisesInside}
LENGTHS = torch.tensor([7, 9, 8])


def unpadded():
    batch = tiny.batch()
    return {key: batch[key] for key in ("input_ids", "labels")}


def test_labels_alone_make_no_logits_and_call_no_head():
    """What all of this is about: the loss is made of the head's weight."""
    model = llama()
    model.lm_head.register_forward_hook(lambda *args: pytest.fail("the head was called"))
    assert model(**unpadded()).logits is EMPTY


@pytest.mark.parametrize(
    "changes", [{}, {"logit_scale": 0.5, "final_logit_softcapping": 3.0}], ids=["plain", "capped"]
)
@pytest.mark.parametrize("head", HEADS)
def test_loss_and_gradients_are_those_of_float64_from_hidden_states(head, changes):
    model, batch = llama(HEADS[head], **changes), unpadded()
    expected = attached.truth(model, batch)
    attachment = attach(model)
    for _ in range(3):
        attached.assert_same(attached.backward(model, batch), expected)
    assert attachment.route.path == "lean"
    # A head that rounds what goes in and its weight is called, since its weight is not what it multiplies by.
    assert ("forward of its own" in str(attachment.route.why_not_lean)) == (head != "plain")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_that_it_rounds_are_not_made(dtype):
    """Its forward gives logits in the dtype of the model, ours included: found on a GPU, where they were all made."""
    model, batch = llama().to(dtype), unpadded()
    model.config.dtype = dtype
    expected = oracle.causal_loss(model, batch).item()
    attachment = attach(model)
    for _ in range(2):
        assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-2)
    assert attachment.route.path == "lean"


def test_adapters_are_trained_through_its_forward_of_peft_models(monkeypatch):
    monkeypatch.setattr(peft.PeftModelForCausalLM, "forward", PEFT_FORWARD)
    model, batch = training.lora(llama()), unpadded()
    expected = attached.truth(model, batch)
    attachment = attach(model)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), expected)
    assert attachment.route.path == "lean"


def test_logits_that_were_asked_for_by_its_switch_change_nothing(monkeypatch):
    model, batch = llama(), unpadded()
    expected = attached.truth(model, batch)
    monkeypatch.setenv("UNSLOTH_RETURN_LOGITS", "1")
    attach(model)
    attached.assert_same(attached.backward(model, batch), expected)


def test_one_token_by_itself_has_no_target_and_leaves_the_next_batch_lean(caplog):
    """Its logits are made without the head."""
    model, batch = llama(), unpadded()
    expected = attached.truth(model, batch)
    attachment = attach(model)
    attached.backward(model, batch)
    alone = {"input_ids": torch.tensor([[5]]), "labels": torch.tensor([[5]])}
    assert float(model(**alone).loss.detach()) == 0
    attached.assert_same(attached.backward(model, batch), expected)
    assert attachment.route.path == "lean"
    assert not caplog.records


def test_hidden_states_in_the_place_of_logits_are_refused_on_a_model(monkeypatch):
    model = llama()
    attach(model)
    monkeypatch.setenv("UNSLOTH_RETURN_HIDDEN_STATES", "1")
    with pytest.raises(UnsupportedModelError, match="returns no loss for labels"):
        model(**unpadded())


def packed(masked):
    """One row of three examples; nothing has masked the seams."""
    ids = torch.randint(3, tiny.VOCAB, (1, int(LENGTHS.sum())), generator=torch.Generator().manual_seed(5))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    batch = {"input_ids": ids, "labels": ids.clone(), "position_ids": positions, "packed_seq_lengths": LENGTHS}
    if masked:
        batch["labels"][0, LENGTHS.cumsum(0)[:-1]] = -100
    return batch


def trainer_of_packed(out, masked, monkeypatch):
    """An SFTTrainer whose collator packs as Unsloth's does."""
    trainer = training.sft_trainer(out, llama(), max_steps=2)
    # transformers drops what the model's forward does not name.
    monkeypatch.setattr(trainer, "data_collator", lambda rows: packed(masked))
    trainer.args.remove_unused_columns = False
    return trainer


def test_targets_across_seams_are_masked_as_its_labelled_branch_does(tmp_path, monkeypatch):
    trained = {}
    for masked in (True, False):
        trainer = trainer_of_packed(tmp_path, masked, monkeypatch)
        model = trainer.model.train()
        with torch.no_grad():
            stock = float(model(**packed(masked), use_cache=False).loss)
        attachment = activate(trainer, "nll")
        trainer.train()
        trained[masked] = training.trained(model)
        first = training.train_logs(trainer)[0]
        assert first["dft/tokens"] == int(LENGTHS.sum()) - len(LENGTHS)
        assert training.losses(trainer)[0] == pytest.approx(stock, rel=1e-6)
        assert trainer.evaluate()["eval_dft/tokens"] % (int(LENGTHS.sum()) - len(LENGTHS)) == 0
        assert attachment.route.path == "lean"
    assert tiny.max_gap(trained[True], trained[False]) == 0


def test_loss_of_packed_rows_is_that_of_float64(tmp_path, monkeypatch):
    trainer = trainer_of_packed(tmp_path, False, monkeypatch)
    expected = oracle.causal_loss(trainer.model.train(), {**packed(True), "use_cache": False}).item()
    activate(trainer)
    trainer.train()
    assert training.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)


def test_hidden_states_that_are_asked_for_during_a_run_stop_it(tmp_path, monkeypatch):
    trainer = training.sft_trainer(tmp_path, llama())
    activate(trainer)
    made = trainer.get_train_dataloader

    def late(*args):
        monkeypatch.setenv("UNSLOTH_RETURN_HIDDEN_STATES", "1")
        return made(*args)

    monkeypatch.setattr(trainer, "get_train_dataloader", late)
    before = training.trained(trainer.model)
    with pytest.raises(ConflictError, match="UNSLOTH_RETURN_HIDDEN_STATES=1: Unsloth's models return hidden states"):
        trainer.train()
    assert tiny.max_gap(before, training.trained(trainer.model)) == 0
