"""`always_learn: eos` in TRL with chats: the token that ends a turn, not the tokenizer's EOS."""

from __future__ import annotations

import random

import pytest
import torch
from datasets import Dataset
from support import oracle, training, wording
from trl import SFTConfig, SFTTrainer

from dft_plugin import activate

pytestmark = pytest.mark.host


def chats(count=24, seed=0):
    pick = random.Random(seed)

    def words():
        return " ".join(pick.choice(["the", "11", "a", "then"]) for _ in range(pick.randint(1, 6)))

    return Dataset.from_list(
        [
            {"messages": [{"role": role, "content": words()} for role in ("user", "assistant", "user", "assistant")]}
            for _ in range(count)
        ]
    )


def made(folder, **changes):
    tokenizer = wording.bytewise()
    defaults = {"gradient_checkpointing": False, "max_length": 64, "bf16": False, "shuffle_dataset": False}
    return SFTTrainer(
        model=wording.model_for(tokenizer),
        args=SFTConfig(**training.arguments(folder, **{**defaults, **changes})),
        train_dataset=chats(),
        eval_dataset=chats(10, seed=1),
        processing_class=tokenizer,
    )


def test_the_end_of_a_turn_is_learned_as_in_sft(tmp_path, capsys):
    trainer = made(tmp_path, max_steps=1, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1)
    end = trainer.processing_class.convert_tokens_to_ids("<|im_end|>")
    loader = iter(trainer.get_train_dataloader())
    found = []
    for batch in (next(loader), next(loader)):
        logits = trainer.model(**{**batch, "labels": None}).logits[:, :-1].detach()
        labels = batch["labels"][:, 1:]
        ids = labels[labels != -100]
        logp = oracle.log_probabilities(logits[labels != -100].double(), ids)
        found += [(value, number == end) for value, number in zip(logp.tolist(), ids.tolist(), strict=True)]
    ended = [torch.tensor(value).exp().item() for value, ends in found if ends]
    expected = sum(-value * (1.0 if ends else torch.tensor(value).exp().item()) for value, ends in found) / len(found)
    activate(trainer, {"name": "dft", "always_learn": "eos"})
    assert "; always learned: 2 tokens (eos `<|endoftext|>` `<|im_end|>`)" in capsys.readouterr().err
    trainer.train()
    (logged,) = training.train_logs(trainer)
    assert len(ended) > 8
    assert training.losses(trainer) == [pytest.approx(expected, rel=1e-5)]
    assert logged["dft/always_learn_prob"] == pytest.approx(sum(ended) / len(ended), rel=1e-4)
    assert logged["dft/eos_prob"] == pytest.approx(logged["dft/always_learn_prob"], rel=1e-6)
    assert logged["dft/always_learn_share"] == pytest.approx(len(ended) / len(found))
    (evaluated,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert {"eval_dft/always_learn_share", "eval_dft/always_learn_prob"} <= evaluated.keys()


def test_four_micro_batches_of_one_equal_one_batch_of_four(tmp_path):
    weights = []
    for split in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
        trainer = made(tmp_path, **split)
        activate(trainer, {"name": "dft", "always_learn": "eos", "weights": {"tokens": {"the": 3.0}}})
        trainer.train()
        weights.append(training.trained(trainer.model))
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-6
