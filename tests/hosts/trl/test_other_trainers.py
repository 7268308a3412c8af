"""SFTTrainer and what a user makes of it train the loss; TRL's trainers of other kinds are refused by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import trl
from datasets import Dataset
from support import tiny, training
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, SFTTrainer

from dft_plugin import activate, attach
from dft_plugin.errors import ConflictError, NotActiveError, UnsupportedModelError
from dft_trl.conflicts import own_losses
from dft_trl.host import TrlHost

pytestmark = pytest.mark.host


def trainers(monkeypatch):
    """Every trainer that the installed TRL has, experimental ones too."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    found = {}
    for module in pkgutil.walk_packages(trl.__path__, "trl."):
        if module.name.endswith("_trainer"):
            try:
                members = vars(importlib.import_module(module.name))
            except Exception:  # what it needs is not installed
                continue
            found |= {kind.__name__: kind for kind in members.values() if inspect.isclass(kind)}
    return {name: kind for name, kind in found.items() if issubclass(kind, Trainer) and kind.__module__[:4] == "trl."}


@pytest.mark.filterwarnings("ignore")
def test_every_trainer_of_trls_but_sft_is_known_to_have_a_loss_of_its_own(monkeypatch):
    kinds = trainers(monkeypatch)
    assert {"DPOTrainer", "KTOTrainer", "GRPOTrainer", "RLOOTrainer", "RewardTrainer", "SFTTrainer"} <= kinds.keys()
    assert {"GKDTrainer", "GOLDTrainer", "CPOTrainer", "ORPOTrainer", "OnlineDPOTrainer"} <= kinds.keys()
    without = {name for name, kind in kinds.items() if not own_losses(kind.__new__(kind))}
    assert without == {"SFTTrainer", "_BaseTrainer"}
    for name in kinds.keys() - without:
        users_own = type("Own", (kinds[name],), {"compute_loss": lambda self, *args, **kwargs: None})
        with pytest.raises(
            ConflictError, match=f"Own trains a loss of its own, that of TRL's .*{name.lstrip('_')[-8:]}"
        ):
            activate(users_own.__new__(users_own))


def test_a_trainer_that_was_really_made_is_refused_before_anything_is_touched(tmp_path):
    data = Dataset.from_list([{"prompt": "w3 w4", "chosen": " w5 w6", "rejected": " w7 w8 w9"}] * 4)
    config = DPOConfig(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
    trainer = DPOTrainer(
        model=tiny.llama(),
        ref_model=tiny.llama(),
        processing_class=training.tokenizer(),
        train_dataset=data,
        args=config,
    )
    before = dict(vars(trainer)), dict(vars(trainer.model))
    with pytest.raises(ConflictError) as caught:
        activate(trainer)
    assert str(caught.value) == (
        "DPOTrainer trains a loss of its own, that of TRL's DPOTrainer, and `loss:` replaces only what SFTTrainer "
        "trains. Leave out `loss:`, or use SFTTrainer."
    )
    assert (dict(vars(trainer)), dict(vars(trainer.model))) == before


def test_a_trl_that_is_too_old_is_refused_by_name(tmp_path, monkeypatch):
    trainer = training.sft_trainer(tmp_path)
    monkeypatch.setattr(TrlHost, "installed_version", lambda self: "1.9.0")
    with pytest.raises(ConflictError, match=r"trl 1\.9\.0 is too old"):
        activate(trainer)


class Inherits(SFTTrainer):
    pass


class CallsSuper(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class AsksTheModelItself(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


@pytest.mark.parametrize("kind", [Inherits, CallsSuper, AsksTheModelItself])
def test_a_users_own_sft_trainer_trains_the_loss(kind, tmp_path):
    plain, own = training.sft_trainer(tmp_path), training.sft_trainer(tmp_path)
    own.__class__ = kind
    for trainer in (plain, own):
        activate(trainer)
        trainer.train()
    assert tiny.max_gap(training.trained(plain.model), training.trained(own.model)) < 1e-6
    assert training.losses(own) == pytest.approx(training.losses(plain), rel=1e-6)


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_attach_under_an_sft_trainer_trains_with_activate_and_says_why_not_without(peft, tmp_path):
    changes = {"peft_config": training.lora_config()} if peft else {}

    def made(loss=None):
        model = tiny.llama()
        if loss is not None:
            attach(model, loss)
        return training.sft_trainer(tmp_path, model, **changes)

    plain, on_top, alone = made(), made("nll"), made("dft")
    for trainer in (plain, on_top):
        activate(trainer)
        trainer.train()
    assert tiny.max_gap(training.trained(plain.model), training.trained(on_top.model)) == 0
    assert training.train_logs(on_top)[0]["dft/tokens"] == training.train_logs(plain)[0]["dft/tokens"]
    before = training.trained(alone.model)
    with pytest.raises(NotActiveError, match=r"put it on the trainer \(`dft_plugin\.activate\(trainer\)`\)"):
        alone.train()
    assert tiny.max_gap(before, training.trained(alone.model)) == 0


def test_a_fused_call_of_somebody_elses_gets_trls_own_answer(tmp_path):
    trainer = training.sft_trainer(tmp_path)
    batch = training.collate(training.rows(3))
    expected = trainer.model(**batch, fused_lm_head=True)
    attachment = activate(trainer)
    got = trainer.model(**batch, fused_lm_head=True)
    assert (got.log_probs == expected.log_probs).all()
    assert attachment.calls == 0


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_attach_to_a_model_that_a_trainer_has_taken_says_what_to_do(peft, tmp_path):
    changes = {"peft_config": training.lora_config()} if peft else {}
    trainer = training.sft_trainer(tmp_path, tiny.llama(), **changes)
    with pytest.raises(
        UnsupportedModelError, match=r"belongs to one of TRL's trainers.*`dft_plugin.activate\(trainer"
    ):
        attach(trainer.model)
    activate(trainer)
    trainer.train()
    assert training.train_logs(trainer)[0]["dft/tokens"] > 0
