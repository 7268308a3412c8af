"""A copy of a model that TRL has wrapped runs the copy's weights; TRL's wrapper alone would run the first one's."""

from __future__ import annotations

import copy

import pytest
import torch
from support import attached, oracle, tiny, training

from dft_plugin import activate, attach
from dft_plugin.hf import standing
from dft_plugin.hf.model import unwrap

pytestmark = pytest.mark.host


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_a_copy_of_an_sft_trainers_model(lora, trained, tmp_path):
    trainer = training.sft_trainer(tmp_path, peft_config=training.lora_config() if lora else None, max_steps=1)
    attachment = activate(trainer)
    if trained:
        trainer.train()
    batch, calls = training.collate(training.rows(3)), attachment.calls
    twin = attached.noisy(copy.deepcopy(trainer.model), 0.2).eval()
    plain = tiny.llama().eval()
    if lora:
        from peft import get_peft_model

        plain = get_peft_model(plain, training.lora_config()).eval()
    plain.load_state_dict(twin.state_dict())
    logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    nll, dft = (oracle.loss(logits[:, :-1], batch["labels"][:, 1:], w).item() for w in (oracle.nll, oracle.dft))
    assert torch.equal(twin(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, logits)
    assert twin(**batch).loss.item() == pytest.approx(nll, rel=1e-5), "a copy is no trainer's"
    with standing.active(unwrap(twin)).answering():
        assert twin(**batch).loss.item() == pytest.approx(dft, rel=1e-5)
    assert attachment.calls == calls


def test_a_copy_of_a_model_that_was_attached_to_before_trl_wrapped_it(tmp_path):
    model = tiny.llama()
    attachment = attach(model)
    trainer = training.sft_trainer(tmp_path, model)
    twin = attached.noisy(copy.deepcopy(trainer.model), 0.2).train()
    batch, plain = training.collate(training.rows(3)), tiny.llama().train()
    plain.load_state_dict(twin.state_dict())
    attached.assert_same(attached.backward(twin, batch), attached.truth(plain, batch))
    assert attachment.calls == 0
