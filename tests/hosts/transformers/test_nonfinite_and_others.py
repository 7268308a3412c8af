"""Steps that are left out beside what trainers and users do around them: interrupts, second passes, logs, files."""

from __future__ import annotations

import json

import pytest
import torch
from support import spoiled, spoiled_runs, tiny, training
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from dft_plugin import activate
from dft_plugin.config.record import FILE
from dft_plugin.errors import ConflictError, NonFiniteError

pytestmark = pytest.mark.host
SKIP = {"name": "dft", "nonfinite": "skip"}


class Interrupt(TrainerCallback):
    """Raises once, behind the second step, of which the loss is NaN, or before its optimizer steps."""

    def __init__(self, where):
        self.where, self.done = where, False

    def _here(self, where, step):
        if not self.done and where == self.where and step == (2 if where == "on_step_end" else 1):
            self.done = True
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        self._here("on_step_end", state.global_step)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._here("on_pre_optimizer_step", state.global_step)


@pytest.mark.parametrize("where", ["on_step_end", "on_pre_optimizer_step"])
def test_a_run_that_is_interrupted_behind_such_a_step_leaves_the_next_one_its_schedule(where, tmp_path):
    changes = {"lr_scheduler_type": "linear", "learning_rate": 0.1, "max_steps": 6}
    trainer, history = spoiled_runs.trainer(training.trainer, tmp_path, 6, **changes)
    trainer.add_callback(Interrupt(where))
    activate(trainer, SKIP)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train_dataset = spoiled_runs.Dataset.from_list(spoiled_runs.rows())
    history.weights.clear()
    trainer.train()
    rates = [entry["learning_rate"] for entry in training.train_logs(trainer)][-6:]
    assert rates == pytest.approx([0.1 * (6 - step) / 6 for step in range(6)])
    assert all(tiny.max_gap(a, b) > 0 for a, b in zip(history.weights, history.weights[1:], strict=False))


class Twice(Trainer):
    """Goes backward twice in a step, the second time with other weights: adversarial training."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        embedding = model.get_input_embeddings().weight
        kept = embedding.data.clone()
        embedding.data.add_(float("nan") if self.state.global_step == 1 else 0.01)
        try:
            self.accelerator.backward(self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch))
        finally:
            embedding.data.copy_(kept)
        return loss.detach()


@pytest.mark.parametrize("how", ["skip", "error"])
def test_each_loss_that_goes_backward_is_looked_at(how, tmp_path):
    arguments = TrainingArguments(**training.arguments(tmp_path, max_steps=4, learning_rate=0.1))
    rows = spoiled_runs.Dataset.from_list(training.rows())
    trainer = Twice(model=tiny.llama(), args=arguments, data_collator=training.collate, train_dataset=rows)
    activate(trainer, {"name": "dft", "nonfinite": how})
    if how == "error":
        with pytest.raises(NonFiniteError, match="in step 2: not finite was first log p"):
            trainer.train()
    else:
        trainer.train()
        assert [entry["dft/skipped"] for entry in training.train_logs(trainer)] == [0, 1, 0, 0]
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


class Spoiling(Trainer):
    """Makes the loss of the second step NaN, behind the model."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = super().compute_loss(model, inputs, return_outputs=False, **kwargs)
        return loss * float("nan") if self.state.global_step == 1 else loss


def test_a_warning_names_the_step_in_which_something_else_was_not_finite(tmp_path, caplog):
    rows = spoiled_runs.Dataset.from_list(training.rows())
    arguments = TrainingArguments(**training.arguments(tmp_path, max_steps=4))
    trainer = Spoiling(model=tiny.llama(), args=arguments, data_collator=training.collate, train_dataset=rows)
    activate(trainer)
    trainer.train()
    assert "from step 2: not finite was first the whole loss, with what the model or the trainer adds" in caplog.text


class Epochs(IterableDataset):
    """Three batches of four rows in an epoch."""

    def __init__(self, *bad):
        self.rows, self.epoch = spoiled_runs.rows(*bad), 0

    def __iter__(self):
        self.epoch += 1
        yield from self.rows[:12] if self.epoch == 1 else self.rows[12:]


def test_what_was_logged_within_a_step_that_is_left_out_is_not_logged_again(tmp_path):
    arguments = training.arguments(tmp_path, logging_strategy="epoch", gradient_accumulation_steps=2)
    trainer = Trainer(
        model=tiny.llama(),
        args=TrainingArguments(**arguments),
        data_collator=training.collate,
        train_dataset=Epochs(12),
    )
    spoiled.poison(trainer.model)
    activate(trainer, SKIP)
    trainer.train()
    rows = spoiled_runs.rows()
    targets = [
        sum(label != -100 for row in rows[at : at + 4] for label in row["labels"][1:]) for at in range(0, 24, 4)
    ]
    logs = [entry["dft/tokens"] for entry in training.train_logs(trainer) if "dft/tokens" in entry]
    # The fourth batch is left out, with the third where that waits for it; no other is counted twice.
    assert logs[0] == sum(targets[:3])
    assert sum(logs) <= sum(targets) - targets[3]


def test_a_hook_that_is_no_function_of_python_s_is_named(tmp_path):
    trainer, seen = training.trainer(tmp_path), []
    trainer.model.lm_head.weight.register_post_accumulate_grad_hook(seen.append)
    activate(trainer, SKIP)
    with pytest.raises(ConflictError, match=r"append takes that of lm_head\.weight inside the backward pass"):
        trainer.train()


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    trainer = training.trainer(tmp_path)
    activate(trainer, "dft")
    # Nothing can be put in the place of a folder, whoever the user is.
    (tmp_path / FILE / "x").mkdir(parents=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert f"{FILE} cannot be written" in caplog.text
    assert json.loads((tmp_path / "elsewhere" / FILE).read_text())["loss"]["name"] == "dft"
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
