"""A training step whose loss is no finite number: named, stopped, or left out; in the plain Trainer and in TRL."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from support import by_hand, spoiled_runs, tiny, training, waits

from dft_plugin import activate
from dft_plugin.errors import ConflictError, NonFiniteError
from dft_plugin.hf import finite

pytestmark = pytest.mark.host


def sft_trainer(*args, **changes):
    pytest.importorskip("trl")
    return training.sft_trainer(*args, **changes)


MAKERS = {"transformers": training.trainer, "trl": sft_trainer}
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SPLITS = {"whole": ({}, "step 2: "), "split": (SPLIT, "step 2, micro-batch 2 of 2: ")}
every_step = pytest.mark.parametrize(
    ("host", "split"), [("transformers", "whole"), ("transformers", "split"), ("trl", "split")]
)
BAD = (6,)
"""The third row of the second step; where it is split the first of its second micro-batch."""


def dft(how, **more):
    return {"name": "dft", "nonfinite": how, **more}


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if "finite" in record.getMessage()]


def place(split):
    row = 2 if split == "whole" else 0
    return f"{SPLITS[split][1]}not finite was first log p of a target (dft/nll), in row {row} of that batch"


@every_step
def test_by_default_one_warning_names_step_statistic_and_rows(host, split, tmp_path, caplog):
    trainer, history = spoiled_runs.trainer(MAKERS[host], tmp_path, *BAD, **SPLITS[split][0])
    activate(trainer)
    trainer.train()
    (said,) = warnings(caplog)
    assert place(split) in said
    assert "`nonfinite: skip` leaves such steps out" in said
    finite_after = [all(bool(w.isfinite().all()) for w in weights.values()) for weights in history.weights]
    assert finite_after == [True, True, False, False], "the run has gone on"


def test_a_warning_that_comes_with_a_late_log_names_the_first_step(tmp_path, caplog):
    trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, *BAD, logging_steps=3)
    activate(trainer)
    trainer.train()
    (said,) = warnings(caplog)
    assert place("whole") in said


def test_the_first_is_found_in_any_number_of_micro_batches(tmp_path, caplog, monkeypatch):
    """More of them than are held at one time, before and after."""
    monkeypatch.setattr("dft_plugin.hf.nonfinite._HELD", 2)
    changes = {"per_device_train_batch_size": 1, "max_steps": 12, "logging_steps": 12}
    trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, *BAD, **changes)
    activate(trainer)
    trainer.train()
    (said,) = warnings(caplog)
    assert "from step 7: " in said


def test_what_was_logged_before_is_not_looked_at_again(tmp_path, caplog):
    changes = {"per_device_train_batch_size": 1, "max_steps": 8, "logging_steps": 1}
    trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, *BAD, **changes)
    activate(trainer)
    trainer.train()
    (said,) = warnings(caplog)
    assert "from step 7: " in said


@every_step
def test_an_error_stops_before_the_optimizer_moves(host, split, tmp_path):
    trainer, history = spoiled_runs.trainer(MAKERS[host], tmp_path, *BAD, **SPLITS[split][0])
    activate(trainer, dft("error"))
    with pytest.raises(NonFiniteError) as stopped:
        trainer.train()
    assert place(split) in str(stopped.value)
    assert trainer.state.global_step == 1
    assert tiny.max_gap(training.trained(trainer.model), history.weights[1]) == 0


@every_step
def test_a_step_that_is_left_out_moves_nothing_and_the_others_all(host, split, tmp_path, caplog):
    changes = {**SPLITS[split][0], "learning_rate": by_hand.RATE, "max_steps": 4}
    trainer, history = spoiled_runs.trainer(MAKERS[host], tmp_path, *BAD, **changes)
    activate(trainer, dft("skip"))
    trainer.train()
    (said,) = warnings(caplog)
    assert place(split) in said
    assert trainer.state.global_step == 4
    assert tiny.max_gap(history.weights[2], history.weights[1]) == 0
    steps = by_hand.in_steps(spoiled_runs.rows(*BAD), 4, 4)
    expected = by_hand.trained(tiny.llama(), [steps[0], *steps[2:]], of_tokens)
    ours = {name: value.double() for name, value in training.trained(trainer.model).items()}
    assert tiny.max_gap(ours, expected.weights) < expected.tolerance
    logs = training.train_logs(trainer)
    assert [entry["dft/skipped"] for entry in logs] == [0, 1, 0, 0]
    assert [entry.get("dft/loss") for entry in logs] == [
        pytest.approx(expected.losses[0], rel=1e-5),
        None,
        *(pytest.approx(loss, rel=1e-5) for loss in expected.losses[1:]),
    ]


@pytest.mark.parametrize("how", ["error", "skip"])
def test_one_micro_batch_is_enough_which_need_not_be_the_last(how, tmp_path):
    """The fifth row is in the first of the two micro-batches of the second step."""
    trainer, history = spoiled_runs.trainer(training.trainer, tmp_path, 4, **SPLIT)
    activate(trainer, dft(how))
    with pytest.raises(NonFiniteError, match=r"step 2, micro-batch 1 of 2") if how == "error" else nullcontext():
        trainer.train()
    later = training.trained(trainer.model) if how == "error" else history.weights[2]
    assert tiny.max_gap(later, history.weights[1]) == 0


def of_tokens(logp, sequence, step):
    return -logp.detach().exp() * logp, torch.ones_like(logp)


def test_statistics_of_a_longer_interval_leave_the_step_out(tmp_path):
    trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, *BAD, logging_steps=3)
    activate(trainer, dft("skip"))
    trainer.train()
    (entry,) = training.train_logs(trainer)
    rows = spoiled_runs.rows()
    kept = [*rows[:4], *rows[8:12]]
    assert entry["dft/tokens"] == sum(label != -100 for row in kept for label in row["labels"][1:])
    assert entry["dft/skipped"] == 1
    assert entry["dft/loss"] < 10


def test_the_schedule_of_the_rate_stays_where_it_is(tmp_path):
    changes = {"lr_scheduler_type": "linear", "max_steps": 4}
    logged = []
    for bad in ((), BAD):
        trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, *bad, **changes)
        activate(trainer, dft("skip"))
        trainer.train()
        logged.append([entry["learning_rate"] for entry in training.train_logs(trainer)])
    straight, skipped = logged
    assert skipped == [straight[0], straight[1], straight[1], straight[2]]


def test_the_state_of_an_optimizer_stays_as_it_was(tmp_path):
    trainer, _ = spoiled_runs.trainer(
        training.trainer, tmp_path, *BAD, optim="adamw_torch", learning_rate=1e-3, max_steps=3
    )
    activate(trainer, dft("skip"))
    trainer.train()
    assert {float(state["step"]) for state in trainer.optimizer.optimizer.state.values()} == {2.0}
    assert all(bool(w.isfinite().all()) for w in training.trained(trainer.model).values())


@pytest.mark.parametrize("host", MAKERS)
def test_adapters_are_left_as_they_were(host, tmp_path):
    trainer, history = spoiled_runs.trainer(MAKERS[host], tmp_path, *BAD, model=training.lora())
    activate(trainer, dft("skip"))
    trainer.train()
    assert tiny.max_gap(history.weights[2], history.weights[1]) == 0
    assert tiny.max_gap(history.weights[3], history.weights[2]) > 0


def test_a_run_whose_every_step_is_left_out_says_so_and_not_that_nothing_was_a_target(tmp_path, caplog):
    trainer, history = spoiled_runs.trainer(training.trainer, tmp_path, *range(24), max_steps=6)
    activate(trainer, dft("skip"))
    trainer.train()
    assert tiny.max_gap(history.weights[-1], history.weights[0]) == 0
    said = warnings(caplog)
    assert len(said) == 3, "each of the first, and then the log counts"
    assert said[-1].endswith("From here on the log counts (dft/skipped).")
    assert "no target token" not in caplog.text
    assert [entry["dft/skipped"] for entry in training.train_logs(trainer)] == [1] * 6


@pytest.mark.parametrize("split", SPLITS)
def test_a_nan_that_a_weight_of_zero_hides_from_the_loss_is_left_out_too(split, tmp_path):
    """A threshold compares, and so gives NaN the weight 0: the loss is finite, and the gradients are not."""
    trainer, history = spoiled_runs.trainer(training.trainer, tmp_path, *BAD, **SPLITS[split][0])
    activate(trainer, {"name": "thresholded", "threshold": 0.001, "nonfinite": "skip"})
    trainer.train()
    assert training.train_logs(trainer)[1]["dft/skipped"] == 1
    assert tiny.max_gap(history.weights[2], history.weights[1]) == 0
    assert all(bool(w.isfinite().all()) for w in history.weights[3].values())


def test_an_evaluation_in_between_stops_nothing(tmp_path):
    trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.eval_dataset = spoiled_runs.Dataset.from_list(spoiled_runs.rows(1, count=4))
    activate(trainer, dft("error"))
    trainer.train()
    assert trainer.state.global_step == 3


def waited(trainer, monkeypatch):
    """What the steps after the first wait for, each with its own number."""
    seen, ours = [], trainer.training_step

    def watching(*args, **kwargs):
        with waits.watching() as found:
            result = ours(*args, **kwargs)
        seen.append(found)
        return result

    monkeypatch.setattr(trainer, "training_step", watching)
    trainer.train()
    return [(found.seen.total(), found.fetched, found.read) for found in seen[1:]]


def test_to_look_costs_no_wait_and_to_agree_one(tmp_path, monkeypatch):
    def run(loss, **changes):
        trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, max_steps=4, logging_steps=4, **changes)
        activate(trainer, loss)
        return waited(trainer, monkeypatch)

    with monkeypatch.context() as patch:
        patch.setattr(finite.Watch, "add", lambda *_: None)
        patch.setattr(finite.Watch, "end", lambda *_: None)
        without = run("dft")
    assert run("dft") == without
    for how in ("error", "skip"):
        assert run(dft(how)) == [(seen + 1, *rest) for seen, *rest in without]


def test_where_nothing_is_wrong_nothing_changes(tmp_path):
    found = []
    for how in ("warn", "error", "skip"):
        trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, **SPLIT)
        activate(trainer, dft(how))
        trainer.train()
        found.append((training.trained(trainer.model), training.losses(trainer)))
    for weights, losses in found[1:]:
        assert losses == found[0][1]
        assert tiny.max_gap(weights, found[0][0]) == 0


class TestRefusals:
    def test_an_optimizer_that_steps_inside_the_backward_pass(self, tmp_path):
        for how, steps, says in (
            ("skip", 1, r"`nonfinite: skip`, and the optimizer galore_adamw_layerwise has stepped"),
            ("error", 2, r"`nonfinite: error`, and the optimizer galore_adamw_layerwise steps .* each of the 2 micro"),
        ):
            trainer = training.trainer(tmp_path)
            trainer.args.optim, trainer.args.gradient_accumulation_steps = "galore_adamw_layerwise", steps
            with pytest.raises(ConflictError, match=says):
                activate(trainer, dft(how))

    def test_gradients_that_somebody_takes_inside_the_backward_pass(self, tmp_path):
        trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path)
        hook = trainer.model.lm_head.weight.register_post_accumulate_grad_hook(lambda parameter: None)
        activate(trainer, dft("skip"))
        with pytest.raises(ConflictError, match=r"`nonfinite: skip` needs the gradients .* takes that of lm_head"):
            trainer.train()
        hook.remove()

    def test_a_trainer_that_steps_in_another_way(self, tmp_path):
        trainer, _ = spoiled_runs.trainer(training.trainer, tmp_path, *BAD)
        activate(trainer, dft("skip"))

        class Elsewhere(spoiled_runs.TrainerCallback):
            """As a host would that kept a method of the optimizer."""

            def on_step_begin(self, *args, **kwargs):
                self.kept = trainer.optimizer.step

            def on_pre_optimizer_step(self, *args, **kwargs):
                trainer.optimizer.step = self.kept

        trainer.add_callback(Elsewhere())
        with pytest.raises(ConflictError, match=r"does not step by `trainer\.optimizer\.step`"):
            trainer.train()


def test_of_float16_the_scaler_goes_on(tmp_path):
    """A step is left out between an unscaled gradient and the scaler's update, or before either."""
    weight = torch.nn.Parameter(torch.ones(3))
    for unscaled in (True, False):
        optimizer, scaler = torch.optim.SGD([weight], lr=1.0), torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale((weight * 2).sum()).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        left = finite.LeftOut(optimizer, scaler)
        optimizer.step()
        left.end(None)
        assert weight.tolist() == [1.0] * 3
        optimizer.zero_grad()
        scaler.scale((weight * 2).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert weight.tolist() == [-1.0] * 3
        with torch.no_grad():
            weight.fill_(1.0)
        optimizer.zero_grad()


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING, logger="dft_plugin")
