"""What would bypass the loss is refused, with the text that helps; what bypasses it later stops the run."""

from __future__ import annotations

import types

import pytest
from support import tiny, training
from transformers import Trainer, TrainingArguments

from dft_plugin import activate
from dft_plugin.errors import ConflictError, NotActiveError, SettingsError, UnsupportedModelError

pytestmark = pytest.mark.host


def refusal(trainer):
    with pytest.raises(ConflictError) as caught:
        activate(trainer)
    assert "forward" not in trainer.model.__dict__, "a refused trainer's model must stay as it was"
    return str(caught.value)


def test_label_smoothing_is_refused(tmp_path):
    assert refusal(training.trainer(tmp_path, label_smoothing_factor=0.1)) == (
        "label_smoothing_factor is 0.1: the Trainer takes the labels from the model and trains smoothed "
        "cross-entropy. Set it to 0."
    )


def test_a_foreign_compute_loss_func_is_refused(tmp_path):
    trainer = training.trainer(tmp_path, compute_loss_func=lambda outputs, labels, **_: outputs.logits.sum())
    assert refusal(trainer) == (
        "compute_loss_func is set, and it would replace our loss. Drop it, or leave out `loss:`."
    )


def test_data_parallel_is_refused(tmp_path):
    trainer = training.trainer(tmp_path)
    trainer.args._n_gpu = 2
    assert refusal(trainer) == (
        "nn.DataParallel over 2 GPUs runs replicas that do not carry the loss. Start one process per GPU "
        "(accelerate launch, torchrun), or set CUDA_VISIBLE_DEVICES to one GPU."
    )


def test_liger_that_takes_the_forward_is_refused_and_its_layer_kernels_are_not(tmp_path):
    trainer = training.trainer(tmp_path)
    trainer.args.use_liger_kernel = True
    assert refusal(trainer) == (
        "use_liger_kernel replaces the model's forward when training starts. Keep its layer kernels with "
        "liger_kernel_config: {fused_linear_cross_entropy: false}."
    )
    trainer.args.liger_kernel_config = {"fused_linear_cross_entropy": False}
    activate(trainer)


def test_model_init_is_refused(tmp_path):
    trainer = Trainer(model_init=lambda: tiny.llama(), args=TrainingArguments(**training.arguments(tmp_path)))
    assert refusal(trainer) == "model_init makes a new model when training starts. Pass `model` instead."


def test_sequence_parallelism_is_refused(tmp_path):
    trainer = training.trainer(tmp_path)
    trainer.accelerator.state.parallelism_config = types.SimpleNamespace(sp_enabled=True)
    try:
        assert refusal(trainer).startswith("sequence parallelism (Ulysses/ALST)")
    finally:
        trainer.accelerator.state.parallelism_config = None


def test_all_refusals_are_reported_at_once(tmp_path):
    trainer = training.trainer(tmp_path, label_smoothing_factor=0.1)
    trainer.args._n_gpu = 2
    assert refusal(trainer).startswith("2 problems:\n  - label_smoothing_factor")


def test_a_bad_loss_is_refused_before_anything_is_touched(tmp_path):
    trainer = training.trainer(tmp_path)
    with pytest.raises(SettingsError, match=r"Did you mean `dft`\?"):
        activate(trainer, "dfft")
    assert "forward" not in trainer.model.__dict__


def test_what_is_no_trainer_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"use dft_plugin.attach\(model\)"):
        activate(object())


def test_an_overwritten_forward_stops_the_run_before_the_optimizer_steps(tmp_path):
    """Liger does this when training starts, Unsloth when it patches."""
    trainer = training.trainer(tmp_path)
    activate(trainer)
    model = trainer.model
    model.forward = types.MethodType(type(model).forward, model)
    before = tiny.weights(model)
    with pytest.raises(NotActiveError, match=r"forward.* is now .*LlamaForCausalLM\.forward"):
        trainer.train()
    assert tiny.max_gap(before, tiny.weights(model)) == 0


def test_a_compute_loss_that_ignores_the_model_loss_stops_the_run(tmp_path):
    class OwnLoss(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            inputs.pop("labels")
            return model(**inputs).logits.square().mean()

    trainer = training.trainer(tmp_path)
    trainer.__class__ = OwnLoss
    activate(trainer)
    with pytest.raises(NotActiveError):
        trainer.train()
