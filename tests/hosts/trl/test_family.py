"""Every shipped loss, by its name, in SFTTrainer: the first step's loss against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from support import by_hand, family, tiny, training
from support.referred import LOSSES
from trl import SFTConfig, SFTTrainer

from dft_plugin import activate
from dft_plugin.objectives import FAMILY
from dft_trl.columns import carrying

pytestmark = pytest.mark.host

PLAIN = {
    type(objective).name: formula
    for objective, formula in reversed(family.FORMULAS)
    if objective == type(objective)() and type(objective).reference == "none" and type(objective).name != "psft"
}
PLAINLY = {"gradient_checkpointing": False, "bf16": False, "shuffle_dataset": False, "max_steps": 1}
REFERRED = {name: LOSSES[name] for name in ("prift", "iw_sft", "asft", "gift")}


def first_step(model, rows, formula, reads=lambda logits: {}):
    """The mean of a formula over the targets of some rows."""
    batch = training.collate(rows)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1].double()
    kept = labels != -100
    sequence = torch.arange(len(labels))[:, None].expand_as(labels)[kept]
    return formula(logits[kept], labels[kept], sequence=sequence, **reads(logits[kept]))


def test_every_shipped_loss_is_here():
    assert {*PLAIN, *REFERRED, "psft"} == {kind.name for kind in FAMILY}


@pytest.mark.parametrize("name", PLAIN)
def test_a_loss_by_its_name(name, tmp_path):
    trainer = training.sft_trainer(tmp_path, max_steps=1)
    rows = by_hand.watched(trainer)
    activate(trainer, name)
    trainer.train()
    losses = first_step(tiny.llama(), by_hand.in_steps(rows, 4, 1)[0], PLAIN[name])
    kept = (losses != 0).sum() if name == "thresholded" else torch.tensor(losses.numel())
    expected = (losses.sum() / kept.clamp(min=1)).item()
    assert training.losses(trainer) == pytest.approx([expected], rel=1e-5, abs=1e-9)
    assert training.train_logs(trainer)[0]["dft/loss"] == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", REFERRED)
def test_a_loss_that_compares_with_the_model_below_its_adapters(name, tmp_path):
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = training.sft_trainer(tmp_path, max_steps=1, peft_config=adapters)
    rows = by_hand.watched(trainer)
    given, formula = REFERRED[name]
    activate(trainer, given)
    trainer.train()
    losses = first_step(tiny.llama(), by_hand.in_steps(rows, 4, 1)[0], formula, lambda logits: {"ref_logits": logits})
    assert training.losses(trainer) == pytest.approx([losses.mean().item()], rel=1e-5)


def test_a_loss_that_reads_a_column(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [
        {**row, "old_logp": (-6 * torch.rand(len(row["labels"]), generator=generator)).tolist()}
        for row in training.rows(4)
    ]
    with carrying("psft"):
        trainer = SFTTrainer(
            model=tiny.llama(),
            args=SFTConfig(
                **training.arguments(
                    tmp_path, gradient_checkpointing=False, bf16=False, shuffle_dataset=False, max_steps=1
                )
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=training.tokenizer(),
        )
    activate(trainer, "psft")
    trainer.train()
    old = torch.cat([torch.tensor(row["old_logp"])[1:][torch.tensor(row["labels"])[1:] != -100] for row in rows])
    losses = first_step(tiny.llama(), rows, family.psft, lambda logits: {"old_logp": old})
    assert training.losses(trainer) == pytest.approx([losses.mean().item()], rel=1e-5)
