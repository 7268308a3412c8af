"""What is not finite beside our loss: what is added to it, and gradients behind a loss that is."""

from __future__ import annotations

import pytest
import torch
from support import spoiled_runs, tiny, training

from dft_plugin import activate
from dft_plugin.errors import NonFiniteError

pytestmark = pytest.mark.host

LAST, MIDDLE = 2, 1
"""Steps done when it happens, of the three."""

SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def said(caplog):
    return [record.getMessage() for record in caplog.records if "finite" in record.getMessage()]


def adding(trainer, after, what):
    """Have something be added to the loss of a step, as a router's loss is, or a user's own."""
    inner = trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        loss = inner(model, inputs, *args, **kwargs)
        return loss + what(model) if model.training and trainer.state.global_step == after else loss

    trainer.compute_loss = compute_loss
    return trainer


def nan(model):
    return float("nan") * next(model.parameters()).sum()


def nan_in_the_gradient(model):
    """Return 0, whose gradient is 0 divided by 0."""
    x = next(model.parameters()).reshape(-1)[0]
    return 0 * torch.sqrt((x - x.detach()) ** 2)


@pytest.mark.parametrize("after", [MIDDLE, LAST])
@pytest.mark.parametrize("changes", [{}, SPLIT, {"logging_steps": 2}, {"logging_strategy": "no"}], ids=str)
def test_what_is_added_to_the_loss_is_named_by_default(after, changes, tmp_path, caplog):
    trainer = adding(training.trainer(tmp_path, **changes), after, nan)
    activate(trainer)
    trainer.train()
    (warning,) = said(caplog)
    assert f"from step {after + 1}" in warning
    assert "the whole loss, with what the model or the trainer adds to ours" in warning


def test_it_is_named_with_the_log_of_its_step(tmp_path, caplog):
    """And not with the next one, when a checkpoint may have been written."""
    trainer = adding(training.trainer(tmp_path), MIDDLE, nan)
    heard = []
    trainer.add_callback(OnSave(lambda: heard.append(len(said(caplog)))))
    trainer.args.save_strategy, trainer.args.save_steps = "steps", 1
    activate(trainer)
    trainer.train()
    assert heard == [0, 1, 1]


class OnSave(spoiled_runs.TrainerCallback):
    def __init__(self, call):
        self.call = call

    def on_save(self, args, state, control, **kwargs):
        self.call()


@pytest.mark.parametrize("how", ["error", "skip"])
def test_rows_are_not_blamed_for_weights_that_an_earlier_step_has_spoiled(how, tmp_path):
    trainer = adding(training.trainer(tmp_path, max_grad_norm=0), MIDDLE, nan_in_the_gradient)
    activate(trainer, {"name": "dft", "nonfinite": how})
    with pytest.raises(NonFiniteError, match=r"step 3.* neither are the weights.*not to blame.*checkpoint of before"):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("how", ["warn", "error", "skip"])
def test_a_training_that_ends_with_weights_that_are_not_finite_says_so(how, tmp_path, caplog):
    trainer = adding(training.trainer(tmp_path, max_grad_norm=0), LAST, nan_in_the_gradient)
    activate(trainer, {"name": "dft", "nonfinite": how})
    trainer.train()
    assert not all(bool(weight.isfinite().all()) for weight in training.trained(trainer.model).values())
    assert ["has ended with weights that are not finite" in one for one in said(caplog)] == [True]


@pytest.mark.parametrize("model", [tiny.llama, training.lora], ids=["full", "lora"])
def test_nothing_is_said_of_a_training_that_is_finite(model, tmp_path, caplog):
    trainer = training.trainer(tmp_path, model())
    activate(trainer)
    trainer.train()
    assert said(caplog) == []


class OnStepEnd(spoiled_runs.TrainerCallback):
    def __init__(self, parameter):
        self.parameter = parameter

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.register_parameter("odd", torch.nn.Parameter(self.parameter))


@pytest.mark.parametrize(
    "parameter",
    [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta"), torch.zeros(0)],
    ids=["complex", "meta", "empty"],
)
def test_weights_that_have_no_extremes_end_no_run(parameter, tmp_path, caplog):
    trainer = training.trainer(tmp_path)
    trainer.add_callback(OnStepEnd(parameter))
    activate(trainer)
    trainer.train()
    assert trainer.state.global_step == 3
    assert said(caplog) == []
