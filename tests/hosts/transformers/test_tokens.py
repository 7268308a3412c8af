"""`always_learn` and factors by token in a plain Trainer: what is trained, said and logged."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support import oracle, tiny, training, wording
from transformers import AutoTokenizer, LlamaForCausalLM

from dft_plugin import activate
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

RULES = {"always_learn": ["eos", 5, 9], "weights": {"tokens": {"w7": 3.0, 9: 0.5}}}
EXEMPT, FACTORS = {2, 5, 9}, {7: 3.0, 9: 0.5}
"""`</s>` is 2 in `training.tokenizer`."""


def made(folder, tokenizer=None, **changes):
    trainer = training.trainer(folder, **changes)
    trainer.processing_class = training.tokenizer() if tokenizer is None else tokenizer
    trainer.train_dataset, trainer.eval_dataset = map(with_ends, (trainer.train_dataset, trainer.eval_dataset))
    return trainer


def with_ends(data):
    """Rows that end in the tokens that are treated apart."""
    end = [7, 9, 5, 2]
    return Dataset.from_list([{"input_ids": row["input_ids"] + end, "labels": row["labels"] + end} for row in data])


def losses(model, batch):
    """Loss, log p and ids of each target, in float64, one token at a time."""
    logits = model(**{**batch, "labels": None}).logits[:, :-1].detach()
    labels = batch["labels"][:, 1:]
    ids = labels[labels != -100]
    logp = oracle.log_probabilities(logits[labels != -100].double(), ids)
    loss = []
    for number, value in zip(ids.tolist(), logp.tolist(), strict=True):
        weight = 1.0 if number in EXEMPT else torch.tensor(value).double().exp().item()
        loss.append(-FACTORS.get(number, 1.0) * weight * value)
    return torch.tensor(loss, dtype=torch.float64), logp, ids


def test_training_and_evaluation_log_what_float64_says(tmp_path, capsys):
    trainer = made(tmp_path, max_steps=1, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1)
    loader = iter(trainer.get_train_dataloader())
    parts = [losses(trainer.model, next(loader)) for _ in range(2)]
    loss, logp, ids = (torch.cat(part) for part in zip(*parts, strict=True))
    activate(trainer, {"name": "dft", **RULES})
    assert (
        "kernel chunked; always learned: 3 tokens (eos `</s>`, ids `w5` `w9`); weights: `w7` x 3, `w9` x 0.5\n"
        in capsys.readouterr().err
    )
    trainer.train()
    (logged,) = training.train_logs(trainer)
    exempt = torch.tensor([number in EXEMPT for number in ids.tolist()])
    assert logged["dft/loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert training.losses(trainer) == [pytest.approx(loss.mean().item(), rel=1e-5)]
    assert logged["dft/always_learn_share"] == pytest.approx(exempt.double().mean().item())
    assert logged["dft/always_learn_prob"] == pytest.approx(logp.exp()[exempt].mean().item(), rel=1e-4)
    factors = [FACTORS.get(number, 1.0) for number in ids.tolist()]
    assert logged["dft/data_weight"] == pytest.approx(sum(factors) / len(factors))
    (evaluated,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    parts = [losses(trainer.model, batch) for batch in trainer.get_eval_dataloader()]
    loss, logp, ids = (torch.cat(part) for part in zip(*parts, strict=True))
    exempt = torch.tensor([number in EXEMPT for number in ids.tolist()])
    assert evaluated["eval_dft/loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert evaluated["eval_dft/always_learn_share"] == pytest.approx(exempt.double().mean().item())
    assert evaluated["eval_dft/always_learn_prob"] == pytest.approx(logp.exp()[exempt].mean().item(), rel=1e-4)


def test_the_same_words_again_change_nothing(tmp_path):
    trainer = made(tmp_path)
    first = activate(trainer, {"name": "dft", **RULES})
    assert activate(trainer, {"name": "dft", **RULES}) is first
    assert activate(trainer, {"name": "dft", "always_learn": "eos"}) is not first


def test_everything_that_is_in_the_way_is_said_at_once(tmp_path):
    trainer = made(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ConflictError) as raised:
        activate(trainer, {"always_learn": 500, "weights": {"tokens": {"w5 w6": 2.0}}})
    smoothing, number, text = raised.value.problems
    assert "label_smoothing_factor" in smoothing
    assert number.startswith("`loss.always_learn`: 500 is no token of this model, which has 128")
    assert text.startswith("`loss.weights.tokens`: 'w5 w6' is 2 tokens (`w5`, `w6`)")
    assert "forward" not in vars(trainer.model)


def test_a_trainer_without_a_tokenizer_takes_ids_and_refuses_words(tmp_path):
    trainer = training.trainer(tmp_path)
    with pytest.raises(ConflictError, match=r"Give the trainer `processing_class=tokenizer`"):
        activate(trainer, {"always_learn": "eos"})
    activate(trainer, {"always_learn": 5})
    trainer.train()
    assert "dft/always_learn_share" in training.train_logs(trainer)[0]


def test_the_best_checkpoint_may_be_that_which_learned_them_best(tmp_path, capsys):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_dft/always_learn_prob"}
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = made(tmp_path, greater_is_better=True, **best, **every)
    activate(trainer, {"always_learn": "eos"})
    assert trainer.args.greater_is_better
    activate(trainer, {"name": "dft", "always_learn": [5]})
    trainer.train()
    seen = [e["eval_dft/always_learn_prob"] for e in trainer.state.log_history if "eval_loss" in e]
    assert trainer.state.best_metric == max(seen)


def test_new_tokens_are_learned_by_their_kind(tmp_path):
    """The whole of it: a base from a folder, tokens added, its embedding resized."""
    wording.saved(training.tokenizer(), tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    (new,) = wording.add(tokenizer, "<tool>")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(len(tokenizer))
    trainer = training.trainer(tmp_path, training.lora(model))
    trainer.processing_class = tokenizer
    attachment = activate(trainer, {"always_learn": "added"})
    assert attachment.plan.adjusted.always == (new,)
    assert new == tiny.VOCAB
