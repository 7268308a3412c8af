"""`always_learn` and factors by token in LLaMA-Factory, whose template decides what ends an answer."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("llamafactory")

from support import factory

from dft_plugin.errors import ConflictError
from dft_plugin.hf.wrapping import wrapper_of

pytestmark = [pytest.mark.host]


def targets_of(run):
    return torch.cat([batch["labels"][:, 1:][batch["labels"][:, 1:] != -100] for batch in run.batches])


def test_what_ends_an_answer_is_what_the_template_adds(home, tmp_path, capsys):
    """`template: qwen` adds <|im_end|> to a tokenizer that has it not, and it ends each answer."""
    loss = {"name": "dft", "always_learn": ["eos", "added"], "weights": {"tokens": {"w7": 3.0, 9: 0.5}}}
    config = factory.arguments(home, tmp_path, template="qwen", resize_vocab=True, max_steps=1)
    run = factory.train(config, loss)
    tokenizer = run.trainer.processing_class
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    adjusted = wrapper_of(run.trainer).attachment.plan.adjusted
    assert end in adjusted.always
    assert adjusted.factors == {7: 3.0, 9: 0.5}
    assert "always learned: " in capsys.readouterr().err
    ids = targets_of(run)
    assert (ids == end).any()
    exempt = torch.isin(ids, torch.tensor(adjusted.always)).double().mean().item()
    assert run.logs[0]["dft/always_learn_share"] == pytest.approx(exempt)
    factors = 1 + 2 * (ids == 7).double() - 0.5 * (ids == 9).double()
    assert run.logs[0]["dft/data_weight"] == pytest.approx(factors.mean().item())
    assert run.logs[0]["dft/eos_prob"] > 0


def test_a_token_that_is_none_stops_the_run_before_it_begins(home, tmp_path):
    loss = {"name": "dft", "always_learn": "added", "weights": {"tokens": {"w1 w2": 2.0}}}
    with pytest.raises(ConflictError) as raised:
        factory.train(factory.arguments(home, tmp_path, max_steps=1), loss)
    assert len(raised.value.problems) == 2
