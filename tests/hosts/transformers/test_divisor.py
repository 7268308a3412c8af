"""Objectives that divide by a sum of weights: a step against float64, however it is split; what is refused."""

from __future__ import annotations

import pytest
import torch
from support import by_hand, tiny, training
from support.weighers import Divided
from transformers import Trainer

from dft_plugin import activate, attach
from dft_plugin.errors import ConflictError, LabelError

pytestmark = pytest.mark.host

KEPT = {"name": "thresholded", "threshold": 0.02}
CASES = {"weights": (Divided(), by_hand.dft), "kept": (KEPT, by_hand.above(0.02))}
SPLITS = {"whole": (4, 1), "halves": (2, 2), "rows": (1, 4)}


def run(out, loss, split, model=None, **changes):
    size, steps = SPLITS[split]
    trainer = training.trainer(
        out,
        model,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        learning_rate=by_hand.RATE,
        **changes,
    )
    rows = by_hand.watched(trainer)
    activate(trainer, loss)
    trainer.train()
    return trainer, rows


def close(trainer, expected):
    ours = training.trained(trainer.model)
    assert tiny.max_gap({name: value.double() for name, value in ours.items()}, expected.weights) < expected.tolerance
    assert training.losses(trainer) == pytest.approx(expected.losses, rel=1e-5)
    logged = [entry["dft/loss"] for entry in training.train_logs(trainer)]
    assert logged == pytest.approx(expected.losses, rel=1e-5)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_divided_by_the_sum_of_all_its_parts(case, split, tmp_path):
    loss, formula = CASES[case]
    trainer, rows = run(tmp_path, loss, split)
    close(trainer, by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 3), formula))


def test_gradients_are_multiplied_before_they_are_clipped(tmp_path):
    trainer, rows = run(tmp_path, Divided(), "rows", max_grad_norm=0.5)
    steps = by_hand.in_steps(rows, 4, 3)
    expected = by_hand.trained(tiny.llama(), steps, by_hand.dft, clip=0.5)
    close(trainer, expected)
    free = by_hand.trained(tiny.llama(), steps, by_hand.dft)
    assert tiny.max_gap(expected.weights, free.weights) > 1e-3, "nothing was clipped"
    assert training.train_logs(trainer)[0]["grad_norm"] > 0.5


def test_the_last_step_of_an_epoch_may_be_shorter(tmp_path):
    trainer = training.trainer(
        tmp_path,
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=5,
        learning_rate=by_hand.RATE,
    )
    rows = by_hand.watched(trainer)
    activate(trainer, Divided())
    trainer.train()
    steps = [rows[:10], rows[10:20], rows[20:]]
    assert len(steps[-1]) == 4
    close(trainer, by_hand.trained(tiny.llama(), steps, by_hand.dft))


def test_logs_between_steps_divide_all_of_their_steps(tmp_path):
    trainer, rows = run(tmp_path, Divided(), "halves", logging_steps=3)
    model = tiny.llama()
    expected = by_hand.trained(model, by_hand.in_steps(rows, 4, 3), by_hand.dft)
    (logged,) = training.train_logs(trainer)
    rounding = 1e-4 if training.ROUNDS_LOSS else 1e-5
    assert logged["loss"] == pytest.approx(sum(expected.losses) / 3, rel=rounding)
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(sum(expected.losses) / 3, rel=1e-5)


def test_a_step_that_keeps_no_token_moves_nothing(tmp_path):
    loss = {"name": "thresholded", "threshold": 0.9999}
    trainer, _ = run(tmp_path, loss, "rows")
    assert tiny.max_gap(training.trained(trainer.model), tiny.weights(tiny.llama())) == 0
    for entry in training.train_logs(trainer):
        assert entry["loss"] == entry["dft/loss"] == entry.get("grad_norm", 0) == 0


def test_an_evaluation_divides_each_batch_and_the_whole_pass(tmp_path):
    trainer = training.trainer(tmp_path)
    activate(trainer, Divided())
    found = trainer.evaluate()
    model, rows = tiny.llama().double().eval(), training.rows(10, seed=1)
    with torch.no_grad():
        parts = [by_hand.scored(model, batch, by_hand.dft) for batch in (rows[:4], rows[4:8], rows[8:])]
    means = [float(loss.sum() / share.sum()) for loss, share in parts]
    assert found["eval_loss"] == pytest.approx((4 * means[0] + 4 * means[1] + 2 * means[2]) / 10, rel=1e-5)
    whole = sum(float(loss.sum()) for loss, _ in parts) / sum(float(share.sum()) for _, share in parts)
    assert found["eval_dft/loss"] == pytest.approx(whole, rel=1e-5)


def test_gradients_of_lora_are_multiplied_too(tmp_path):
    whole, rows = run(tmp_path / "a", Divided(), "whole", training.lora())
    split, _ = run(tmp_path / "b", Divided(), "rows", training.lora())
    tokens, _ = run(tmp_path / "c", "dft", "whole", training.lora())
    assert tiny.max_gap(training.trained(whole.model), training.trained(split.model)) < 1e-5
    assert tiny.max_gap(training.trained(whole.model), training.trained(tokens.model)) > 1e-2
    assert rows


class TestWhatIsAddedToTheLoss:
    def trainer(self, out, **methods):
        made = training.trainer(
            out, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=by_hand.RATE
        )
        made.__class__ = type("Own", (Trainer,), methods)
        return made

    def test_a_penalty_is_refused_before_the_first_step(self, tmp_path):
        def compute_loss(self, model, *args, **kwargs):
            return Trainer.compute_loss(self, model, *args, **kwargs) + 0.1 * model.lm_head.weight.square().mean()

        trainer = self.trainer(tmp_path, compute_loss=compute_loss)
        activate(trainer, KEPT)
        with pytest.raises(ConflictError, match=r"Own\.compute_loss makes its loss of more, or of less"):
            trainer.train()
        assert tiny.max_gap(training.trained(trainer.model), tiny.weights(tiny.llama())) == 0

    def test_a_loss_that_was_dropped_is_refused(self, tmp_path):
        def compute_loss(self, model, inputs, *args, **kwargs):
            Trainer.compute_loss(self, model, dict(inputs), *args, **kwargs)
            return Trainer.compute_loss(self, model, inputs, *args, **kwargs)

        trainer = self.trainer(tmp_path, compute_loss=compute_loss)
        activate(trainer, KEPT)
        with pytest.raises(ConflictError, match="more, or of less"):
            trainer.train()

    def test_a_loss_that_is_passed_on_is_trained(self, tmp_path):
        def compute_loss(self, *args, **kwargs):
            return 1.0 * Trainer.compute_loss(self, *args, **kwargs)

        trainer = self.trainer(tmp_path, compute_loss=compute_loss)
        rows = by_hand.watched(trainer)
        activate(trainer, KEPT)
        trainer.train()
        close(trainer, by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 3), by_hand.above(0.02)))


class TestRefusals:
    def refused(self, trainer, words, loss=KEPT):
        with pytest.raises(ConflictError, match=words):
            activate(trainer, loss)

    @pytest.mark.parametrize("optim", ["galore_adamw_layerwise", "apollo_adamw_layerwise", "lomo", "adalomo"])
    def test_an_optimizer_that_steps_inside_the_backward_pass(self, optim, tmp_path):
        trainer = training.trainer(tmp_path, optim=optim, optim_target_modules=["q_proj"])
        self.refused(trainer, f"thresholded divides by the number of tokens that it keeps.*the optimizer {optim} has")

    def test_a_hook_that_steps_inside_the_backward_pass(self, tmp_path):
        trainer = training.trainer(tmp_path)
        trainer.model.lm_head.weight.register_post_accumulate_grad_hook(lambda parameter: None)
        activate(trainer, KEPT)
        with pytest.raises(ConflictError, match=r"<lambda> takes that of lm_head.weight inside the backward pass"):
            trainer.train()

    def test_deepspeed(self, tmp_path, monkeypatch):
        trainer = training.trainer(tmp_path)
        kind = type(trainer.accelerator.distributed_type).DEEPSPEED
        monkeypatch.setattr(trainer.accelerator.state, "distributed_type", kind)
        self.refused(trainer, "and DeepSpeed has taken them by then")

    def test_a_router_that_says_so(self, tmp_path):
        self.refused(training.trainer(tmp_path, tiny.mixtral()), "adds an auxiliary loss")

    def test_a_router_that_is_switched_on_later(self, tmp_path):
        trainer = training.trainer(tmp_path, tiny.mixtral(output_router_logits=False))
        activate(trainer, KEPT)
        trainer.model.config.output_router_logits = True
        with pytest.raises(ConflictError, match="adds an auxiliary loss"):
            trainer.train()

    def test_a_router_without_a_loss_is_trained(self, tmp_path):
        found = []
        for split in ("whole", "rows"):
            trainer, _ = run(tmp_path, Divided(), split, tiny.mixtral(output_router_logits=False), max_steps=1)
            found.append(training.trained(trainer.model))
        assert tiny.max_gap(*found) < 1e-5

    @pytest.mark.parametrize("loss", ["dft", {"name": "dft", "first": {"name": "nll", "for": 0.5}}])
    def test_nothing_of_an_objective_that_divides_by_tokens(self, loss, tmp_path):
        activate(training.trainer(tmp_path, tiny.mixtral(), optim="lomo"), loss)

    def test_one_that_comes_first(self, tmp_path):
        trainer = training.trainer(tmp_path, optim="lomo")
        self.refused(trainer, "thresholded divides", {"name": "dft", "first": {"name": "thresholded", "for": 0.5}})

    def test_arguments_that_were_changed_since(self, tmp_path):
        trainer = training.trainer(tmp_path)
        activate(trainer, KEPT)
        trainer.args.optim = "lomo"
        with pytest.raises(ConflictError, match="the optimizer lomo has stepped"):
            trainer.train()

    @pytest.mark.parametrize("steps", [1, 2])
    def test_steps_whose_targets_cannot_be_counted(self, steps, tmp_path):
        trainer = training.trainer(
            tmp_path, gradient_accumulation_steps=steps, remove_unused_columns=False, learning_rate=by_hand.RATE
        )

        def compute_loss(model, inputs, *args, **kwargs):
            return model(**{("labels" if key == "answers" else key): value for key, value in inputs.items()}).loss

        def collate(features):
            return {("answers" if k == "labels" else k): v for k, v in training.collate(features).items()}

        trainer.compute_loss, trainer.data_collator = compute_loss, collate
        rows = by_hand.watched(trainer)
        activate(trainer, KEPT)
        if steps > 1:
            with pytest.raises(ConflictError, match="carry no `labels` from which the size of a step could be told"):
                trainer.train()
        else:
            trainer.train()
            close(trainer, by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 3), by_hand.above(0.02)))


class TestOwnLoops:
    def test_a_call_is_a_step(self):
        model, batch = tiny.llama().train(), tiny.batch()
        attach(model, KEPT)
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.double()[:, :-1]
        nll = -logits.log_softmax(-1).gather(-1, batch["labels"][:, 1:, None].clamp(min=0))[..., 0]
        kept = (batch["labels"][:, 1:] != -100) & (nll <= -torch.tensor(0.02).log())
        assert 0 < int(kept.sum()) < int((batch["labels"][:, 1:] != -100).sum())
        assert model(**batch).loss.item() == pytest.approx(nll[kept].mean().item(), rel=1e-6)

    def test_a_number_of_tokens_is_refused(self):
        model = tiny.llama().train()
        attach(model, KEPT)
        with pytest.raises(LabelError, match=r"thresholded divides by the number of the tokens that it keeps"):
            model(**tiny.batch(), num_items_in_batch=40)
