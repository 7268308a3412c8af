"""Never silently off: before the backward pass, in evaluation too, and with a text that is true."""

from __future__ import annotations

import re
import types

import pytest
import torch
from datasets import Dataset
from support import passes, tiny, training
from transformers import Trainer

from dft_plugin import activate, attach
from dft_plugin.errors import NotActiveError, UnsupportedModelError

pytestmark = pytest.mark.host


class Weights:
    """An optimizer that steps inside the backward pass, as DeepSpeed's and layer-wise ones do."""

    def __init__(self, model):
        self.moved = 0
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self.move)

    def move(self, parameter):
        self.moved += 1


def own(trainer, **methods):
    trainer.__class__ = type("Own", (Trainer,), methods)
    return trainer


def message(run):
    with pytest.raises(NotActiveError) as caught:
        run()
    assert "is now dft_plugin" not in str(caught.value), "we are not the culprit"
    return str(caught.value)


def takes_labels(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels = inputs.pop("labels")
    outputs = model(**inputs)
    loss = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return (loss, outputs) if return_outputs else loss


def test_a_training_step_that_is_not_ours_stops_before_the_backward_pass(tmp_path):
    trainer = own(training.trainer(tmp_path), compute_loss=takes_labels)
    weights = Weights(trainer.model)
    activate(trainer)
    text = message(trainer.train)
    assert text.startswith("a training step computed its loss without the one that `loss:` asks for. No gradient was ")
    assert "the model was not asked for it: a `compute_loss`, a `training_step` or a `prediction_step`" in text
    assert weights.moved == 0


class Holder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = model


class HandsOn(Holder):
    def forward(self, **inputs):
        return self.base_model(**inputs)


class HasItsOwnLoss(Holder):
    def forward(self, input_ids, attention_mask, labels):
        logits = self.base_model(input_ids, attention_mask).logits
        return {"loss": torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


def test_a_wrapper_that_hands_on_is_trained_and_one_with_a_loss_of_its_own_stops(tmp_path):
    plain, held = (
        training.trainer(tmp_path),
        training.trainer(tmp_path, HandsOn(tiny.llama()), remove_unused_columns=False),
    )
    for trainer in (plain, held):
        activate(trainer)
        trainer.train()
    assert held.state.log_history[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-6)
    trainer = training.trainer(tmp_path, HasItsOwnLoss(tiny.llama()))
    weights = Weights(trainer.model)
    activate(trainer)
    assert "the model was not asked for it" in message(trainer.train)
    assert weights.moved == 0


def test_a_loss_that_is_not_ours_stops_before_a_backward_pass_of_ones_own(tmp_path):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        loss.backward()
        return loss.detach()

    trainer = own(training.trainer(tmp_path), compute_loss=takes_labels, training_step=training_step)
    weights = Weights(trainer.model)
    activate(trainer)
    assert "No gradient was made of it" in message(trainer.train)
    assert weights.moved == 0


def test_an_evaluation_and_a_prediction_that_are_not_ours_stop(tmp_path):
    trainer = own(training.trainer(tmp_path), compute_loss=takes_labels)
    activate(trainer)
    for run in (trainer.evaluate, lambda: trainer.predict(Dataset.from_list(training.rows(3)))):
        assert message(run).startswith(
            "an evaluation or prediction computed its loss without the one that `loss:` asks"
        )


def test_a_prediction_without_labels_has_no_loss_to_guard(tmp_path):
    trainer = training.trainer(tmp_path)
    activate(trainer)
    plain = trainer.data_collator
    trainer.data_collator = lambda features: {k: v for k, v in plain(features).items() if k != "labels"}
    output = trainer.predict(Dataset.from_list(training.rows(6)))
    assert len(output.predictions) == 6
    assert not [key for key in output.metrics if "dft/" in key]


def test_a_training_step_that_never_calls_compute_loss_stops_before_accelerates_backward(tmp_path):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()

    trainer = own(training.trainer(tmp_path), training_step=training_step)
    weights = Weights(trainer.model)
    activate(trainer)
    assert "called the model outside `compute_loss`" in message(trainer.train)
    assert weights.moved == 0
    assert "backward" not in vars(trainer.accelerator)


def test_where_nothing_can_stand_before_the_backward_pass_the_text_says_so(tmp_path):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss
        loss.backward()
        return loss.detach()

    trainer = own(training.trainer(tmp_path), training_step=training_step)
    before = tiny.weights(trainer.model)
    activate(trainer)
    assert "optimizer did not step on it (one that steps inside the backward pass has)" in message(trainer.train)
    assert tiny.max_gap(before, tiny.weights(trainer.model)) == 0


def test_a_model_that_was_replaced_is_named(tmp_path):
    trainer = training.trainer(tmp_path)
    activate(trainer)
    trainer.model = trainer.model_wrapped = tiny.llama(seed=5)
    for run in (trainer.evaluate, trainer.train):
        assert "`trainer.model` was replaced since. Call `activate(trainer)` again" in message(run)
    activate(trainer)
    evaluated = trainer.evaluate()
    assert passes.of(evaluated, "eval_") == pytest.approx(
        passes.statistics(trainer.model, training.rows(10, seed=1), "eval_"), rel=1e-5
    )


def test_a_forward_that_was_taken_over_is_named(tmp_path):
    trainer = training.trainer(tmp_path, remove_unused_columns=False)
    activate(trainer)
    model = trainer.model

    def liger_forward(self, *args, **kwargs):
        return type(self).forward(self, *args, **kwargs)

    model.forward = types.MethodType(liger_forward, model)
    for run in (trainer.evaluate, trainer.train):
        # Said by the model's own guard; where a wrapper passes it by, by the trainer's.
        assert re.search(r"forward.* is now .*liger_forward", message(run))
    for module_hooks in (model._forward_pre_hooks, model._forward_hooks):
        module_hooks.clear()
    for run in (trainer.evaluate, trainer.train):
        assert re.search(r"something took over the model's forward, which is now .*liger_forward", message(run))


def test_a_trainer_whose_model_was_activated_for_another_trainer_says_so(tmp_path):
    first = training.trainer(tmp_path)
    activate(first)
    second = training.trainer(tmp_path, first.model)
    activate(second, "nll")
    for run in (first.evaluate, first.train):
        assert "the loss was taken off this trainer's model since" in message(run)
    second.train()
    activate(first)
    first.train()
    assert "the loss was taken off this trainer's model since" in message(second.evaluate)


def test_activate_on_top_of_attach_trains_the_loss(tmp_path):
    plain = training.trainer(tmp_path)
    activate(plain)
    plain.train()
    model = tiny.llama()
    attach(model, "nll")
    trainer = training.trainer(tmp_path, model)
    activate(trainer)
    trainer.train()
    assert tiny.max_gap(training.trained(plain.model), training.trained(model)) == 0


def test_attach_to_a_trainer_says_what_to_call(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"^Trainer is a trainer; attach takes a model\. Use activate\(tr"):
        attach(training.trainer(tmp_path))


def test_attach_alone_trains_the_loss_in_a_plain_trainer(tmp_path):
    model = tiny.llama()
    attach(model)
    trainer = training.trainer(tmp_path, model)
    trainer.train()
    plain = training.trainer(tmp_path)
    activate(plain)
    plain.train()
    assert tiny.max_gap(training.trained(plain.model), training.trained(model)) < 1e-6


@pytest.mark.parametrize("calls_super", [True, False], ids=["super", "inherits"])
def test_a_users_own_subclass_trains(calls_super, tmp_path):
    def compute_loss(self, *args, **kwargs):
        return Trainer.compute_loss(self, *args, **kwargs)

    plain, trainer = training.trainer(tmp_path), training.trainer(tmp_path)
    own(trainer, **({"compute_loss": compute_loss} if calls_super else {}))
    for made in (plain, trainer):
        activate(made)
        made.train()
    assert tiny.max_gap(training.trained(plain.model), training.trained(trainer.model)) == 0
