"""The plain Trainer with a loss that compares with a reference: the step, the log, what is refused."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support import referred, tiny, training
from support.referred import LOSSES

from dft_plugin import activate
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host


def run(trainer, loss):
    before = training.trained(trainer.model)
    activate(trainer, loss)
    trainer.train()
    assert tiny.max_gap(before, training.trained(trainer.model)) > 1e-4, "nothing was trained"
    return training.trained(trainer.model)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_equals_float64(loss, tmp_path):
    written, formula = LOSSES[loss]
    trainer = training.trainer(tmp_path, training.lora(), max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model
    asked = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad(), model.disable_adapter():
        ref_logits = model.eval()(**asked).logits
    value, gradients = referred.truth(model.train(), batch, ref_logits, formula)
    model.zero_grad(set_to_none=True)
    expected = {name: p.detach() - gradients[name] for name, p in model.named_parameters() if p.requires_grad}
    trained = run(trainer, written)
    assert training.losses(trainer)[0] == pytest.approx(value, rel=1e-5)
    assert tiny.max_gap(trained, expected) < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_four_micro_batches_of_one_equal_one_batch_of_four(loss, tmp_path):
    written, _ = LOSSES[loss]
    whole = training.trainer(tmp_path, training.lora())
    split = training.trainer(tmp_path, training.lora(), per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert tiny.max_gap(run(whole, written), run(split, written)) < 1e-5
    assert training.losses(whole) == pytest.approx(training.losses(split), rel=1e-4)


@pytest.mark.parametrize("loss", ["prift", "asft"])
def test_full_training_against_a_copy(loss, tmp_path):
    """Against the model as it began: what LoRA on all layers would be compared with, too."""
    written, formula = LOSSES[loss]
    trainer = training.trainer(tmp_path, max_steps=2, learning_rate=0.1)
    trainer.args.train_sampling_strategy = "sequential"
    seen = []
    activate(trainer, {**written, "reference": "copy"})
    plain = trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        seen.append((state, {key: value.clone() for key, value in inputs.items()}))
        return plain(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    trainer.train()
    first, second = tiny.llama(), tiny.llama().train()
    state, batch = seen[1]
    second.load_state_dict(state)
    with torch.no_grad():
        ref_logits = first(**{key: value for key, value in batch.items() if key != "labels"}).logits
    value, _ = referred.truth(second, batch, ref_logits, formula)
    assert training.losses(trainer)[1] == pytest.approx(value, rel=1e-5)
    assert training.train_logs(trainer)[1].get("dft/kl", 1) > 0


def test_start_is_what_the_run_began_with_also_where_it_is_resumed(tmp_path):
    def trainer(steps):
        return training.trainer(tmp_path, training.lora(), max_steps=steps, save_strategy="steps", save_steps=1)

    loss = {"name": "asft", "strength": 0.5, "reference": "start"}
    whole = run(trainer(3), loss)
    names = set(whole)
    resumed = trainer(3)
    activate(resumed, loss)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert tiny.max_gap(whole, training.trained(resumed.model)) < 1e-6
    saved = sorted(path.name for path in (tmp_path / "checkpoint-3").iterdir() if path.is_dir())
    assert saved == [], "a second adapter was saved"
    assert names == set(training.trained(resumed.model))


@pytest.mark.parametrize("keep", [True, False])
def test_an_evaluation_compares_too(keep, tmp_path):
    trainer = training.trainer(tmp_path, training.lora(), **({} if keep else {"prediction_loss_only": True}))
    activate(trainer, {"name": "asft", "strength": 0.5})
    metrics = trainer.evaluate()
    value = 0.0
    count = 0
    for batch in trainer.get_eval_dataloader():
        asked = {key: x for key, x in batch.items() if key != "labels"}
        with torch.no_grad(), trainer.model.disable_adapter():
            ref_logits = trainer.model.eval()(**asked).logits
        items = int((batch["labels"][:, 1:] != -100).sum())
        _, formula = LOSSES["asft"]
        value += items * referred.truth(trainer.model, batch, ref_logits, formula)[0]
        count += items
    assert metrics["eval_dft/loss"] == pytest.approx(value / count, rel=1e-5)
    assert metrics["eval_dft/kl"] > 0


def test_the_start_up_line_says_which_and_what_it_costs(tmp_path, capsys):
    activate(training.trainer(tmp_path, training.lora()), "asft")
    activate(training.trainer(tmp_path), {"name": "prift", "reference": "copy"})
    scored = training.trainer(tmp_path)
    for name in ("train_dataset", "eval_dataset"):
        rows = [{**row, "ref_logp": [-1.0] * len(row["labels"])} for row in getattr(scored, name)]
        setattr(scored, name, Dataset.from_list(rows))
    activate(scored, {"name": "prift", "reference": "columns"})
    lora, copied, columns = capsys.readouterr().err.splitlines()
    cost = "(one more forward pass, without gradient, for each batch)"
    assert lora.endswith(f"; reference: the base model, its adapters off {cost}")
    assert copied.endswith(f"; reference: a frozen copy of the model, as it began {cost}")
    assert columns.endswith("; reference: columns of the data")


@pytest.mark.parametrize("loss", ["prift", "iw_sft", "asft", "gift"])
def test_full_training_without_a_reference_is_refused_before_anything_is_touched(loss, tmp_path):
    trainer = training.trainer(tmp_path)
    with pytest.raises(ConflictError, match=f"the loss {loss} compares the model with a frozen reference, and Llama"):
        activate(trainer, loss)
    assert "forward" not in vars(trainer.model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant, tmp_path):
    plain = training.trainer(tmp_path, training.lora())
    checkpointed = training.trainer(
        tmp_path,
        training.lora(),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    # Transformers 4 leaves it to the user, where checkpoints are reentrant and only adapters are trained.
    checkpointed.model.enable_input_require_grads()
    written, _ = LOSSES["asft"]
    assert tiny.max_gap(run(plain, written), run(checkpointed, written)) < 1e-6
