"""Statistics belong to a pass with a name: to a training, an evaluation, a prediction, and to nothing else.

The same for the plain Trainer and, where TRL is installed, SFTTrainer.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from datasets import Dataset
from support import oracle, passes, tiny, training
from transformers import Trainer, TrainerCallback

from dft_plugin import activate

pytestmark = pytest.mark.host

TRAIN, EVAL, OTHER = training.rows(), training.rows(10, seed=1), training.rows(7, seed=2)

MAKE = {"transformers": training.trainer, "trl": training.sft_trainer}


@pytest.fixture(params=MAKE)
def make(request, tmp_path):
    """Make a trainer that stays where it is, so that statistics can be worked out afterwards."""
    if request.param == "trl" and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")

    def made(**changes):
        return MAKE[request.param](tmp_path, **{"learning_rate": 0.0, **changes})

    return made


def close(expected):
    return pytest.approx(expected, rel=1e-5)


def evaluations(trainer, prefix="eval"):
    return [entry for entry in trainer.state.log_history if f"{prefix}_loss" in entry]


def first_rows(trainer, count):
    """The first rows that a training takes, in its order."""
    loader = trainer.get_train_dataloader()
    rows = []
    for batch in loader:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            real = int(mask.sum())
            rows.append({"input_ids": ids[:real].tolist(), "labels": labels[:real].tolist()})
        if len(rows) >= count:
            return rows[:count]
    raise AssertionError("too few rows")


def test_evaluate_is_exact_over_tokens_and_eval_loss_is_stocks(make):
    trainer = make()
    activate(trainer)
    metrics = trainer.evaluate()
    assert passes.of(metrics, "eval_") == close(passes.statistics(trainer.model, EVAL, "eval_"))
    assert metrics["eval_loss"] == close(passes.stock_eval_loss(trainer.model, passes.in_batches(EVAL, 4)))
    assert metrics["eval_loss"] != pytest.approx(metrics["eval_dft/loss"], rel=1e-3), "the rule does not show"
    (logged,) = evaluations(trainer)
    assert passes.of(logged, "eval_") == passes.of(metrics, "eval_"), "in the log, once"


def test_with_the_likelihood_eval_loss_is_the_stock_trainers_own_number(make):
    stock, ours = make(), make()
    activate(ours, "nll")
    assert ours.evaluate()["eval_loss"] == close(stock.evaluate()["eval_loss"])


def test_several_evaluation_sets_have_statistics_of_their_own(make):
    sets = {"a": Dataset.from_list(EVAL), "b": Dataset.from_list(OTHER)}
    trainer = make(eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.eval_dataset = sets
    activate(trainer)
    trainer.train()
    metrics = trainer.evaluate()
    for name, rows in (("a", EVAL), ("b", OTHER)):
        expected = passes.statistics(trainer.model, rows, f"eval_{name}_")
        assert passes.of(metrics, f"eval_{name}_") == close(expected)
        assert [passes.of(entry, f"eval_{name}_") for entry in evaluations(trainer, f"eval_{name}")] == [
            close(expected)
        ] * 2


def test_predict_gives_its_own_and_leaves_nothing_behind(make):
    trainer = make(prediction_loss_only=True)
    activate(trainer)
    before = trainer.evaluate()
    predicted = trainer.predict(Dataset.from_list(OTHER)).metrics
    assert passes.of(predicted, "test_") == close(passes.statistics(trainer.model, OTHER, "test_"))
    assert predicted["test_loss"] == close(passes.stock_eval_loss(trainer.model, passes.in_batches(OTHER, 4)))
    assert passes.of(trainer.evaluate(), "eval_") == passes.of(before, "eval_")


def test_a_log_speaks_of_the_steps_since_the_last_one(make):
    trainer = make(max_steps=3, logging_steps=2)
    rows = first_rows(trainer, 8)
    activate(trainer)
    for _ in range(2):
        # Its third step is in no log, also not in the next training's.
        trainer.train()
        (logged,) = training.train_logs(trainer)
        assert passes.of(logged) == close(passes.statistics(trainer.model, rows))


def test_an_evaluation_inside_a_training_does_not_disturb_it(make):
    trainer = make(max_steps=4, logging_steps=4, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    rows = first_rows(trainer, 16)
    activate(trainer)
    trainer.train()
    (logged,) = training.train_logs(trainer)
    assert passes.of(logged) == close(passes.statistics(trainer.model, rows))
    expected = close(passes.statistics(trainer.model, EVAL, "eval_"))
    assert [passes.of(entry, "eval_") for entry in evaluations(trainer)] == [expected] * 5


def test_train_evaluate_train_with_weights_that_move(make):
    """What is evaluated is the model of that moment."""
    trainer = make(max_steps=1, learning_rate=0.5)
    activate(trainer)
    trainer.train()
    first = passes.of(trainer.evaluate(), "eval_")
    assert first == close(passes.statistics(trainer.model, EVAL, "eval_"))
    trainer.train()
    second = passes.of(trainer.evaluate(), "eval_")
    assert second == close(passes.statistics(trainer.model, EVAL, "eval_"))
    assert second["eval_dft/nll"] != pytest.approx(first["eval_dft/nll"], rel=1e-4)


def test_an_attempt_that_failed_is_forgotten(make):
    trainer = make(max_steps=1, gradient_accumulation_steps=3, auto_find_batch_size=True)
    plain, calls = trainer.model.model.forward, []

    def forward(*args, **kwargs):
        calls.append(kwargs["input_ids"].shape[0])
        if calls[-1] == 4 and len(calls) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return plain(*args, **kwargs)

    trainer.model.model.forward = forward
    activate(trainer)
    trainer.train()
    size = trainer._train_batch_size
    assert size < 4
    del trainer.model.model.forward
    (logged,) = training.train_logs(trainer)
    assert passes.of(logged) == close(passes.statistics(trainer.model, first_rows(trainer, 3 * size)))


class Metric(TrainerCallback):
    """Somebody else's labelled passes in the middle of everything."""

    def __init__(self, trainer, batch):
        self.trainer, self.batch, self.losses = trainer, batch, []

    def on_step_end(self, *args, **kwargs):
        with torch.no_grad():
            self.losses.append(self.trainer.model(**self.batch).loss.item())

    on_prediction_step = on_step_end


def test_a_metric_gets_cross_entropy_and_is_not_counted(make):
    trainer = make(max_steps=2, logging_steps=2, eval_strategy="steps", eval_steps=2)
    rows = first_rows(trainer, 8)
    metric = Metric(trainer, training.collate(OTHER))
    trainer.add_callback(metric)
    activate(trainer)
    trainer.train()
    (logged,), (evaluated,) = training.train_logs(trainer), evaluations(trainer)
    assert passes.of(logged) == close(passes.statistics(trainer.model, rows))
    assert passes.of(evaluated, "eval_") == close(passes.statistics(trainer.model, EVAL, "eval_"))
    expected = passes.statistics(trainer.model, OTHER)["dft/nll"]
    assert metric.losses == [close(expected)] * 5


def test_a_second_pass_inside_compute_loss_is_neither_answered_nor_counted(make):
    """A reference of one's own, with and without gradients switched off by the trainer already."""
    trainer = make(max_steps=2, logging_steps=2, eval_strategy="steps", eval_steps=2)
    rows, seen, kind = first_rows(trainer, 8), [], type(trainer)

    class WithReference(kind):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
            with torch.no_grad():
                seen.append((dict(inputs), model(**{k: v for k, v in inputs.items() if k != "use_cache"}).loss.item()))
            return result

    trainer.__class__ = WithReference
    activate(trainer)
    trainer.train()
    (logged,), (evaluated,) = training.train_logs(trainer), evaluations(trainer)
    assert passes.of(logged) == close(passes.statistics(trainer.model, rows))
    assert passes.of(evaluated, "eval_") == close(passes.statistics(trainer.model, EVAL, "eval_"))
    assert len(seen) == 2 + 3
    for inputs, loss in seen:
        assert loss == pytest.approx(oracle.causal_loss(trainer.model, inputs, oracle.nll).item(), rel=1e-5)


def test_another_trainer_on_the_same_model_trains_what_it_always_did(make, tmp_path):
    trainer, control = make(max_steps=1), training.trainer(tmp_path, max_steps=1)
    activate(trainer)
    other = training.trainer(tmp_path, trainer.model, max_steps=1)
    other.train()
    control.train()
    assert tiny.max_gap(training.trained(other.model), training.trained(control.model)) < 1e-6


def test_a_log_of_ones_own_is_left_alone(make):
    trainer = make(max_steps=1)
    activate(trainer)

    class Talks(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            trainer.log({"x_loss": 1.0})
            trainer.log({"loss": 2.0})

    trainer.add_callback(Talks())
    trainer.train()
    with_statistics = [entry for entry in trainer.state.log_history if "dft/nll" in entry]
    assert len(with_statistics) == 1
    assert with_statistics[0]["loss"] != 2.0


def test_a_loss_that_somebody_asks_the_trainer_for_is_answered_and_in_no_log(make):
    trainer = make(max_steps=2, logging_steps=2, eval_strategy="steps", eval_steps=2)
    rows, losses = first_rows(trainer, 8), []

    class Asks(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            with torch.no_grad():
                losses.append(trainer.compute_loss(trainer.model, training.collate(OTHER)).item())

        on_prediction_step = on_step_end

    trainer.add_callback(Asks())
    activate(trainer)
    trainer.train()
    assert losses == [close(passes.statistics(trainer.model, OTHER)["dft/loss"])] * 5
    (logged,), (evaluated,) = training.train_logs(trainer), evaluations(trainer)
    assert passes.of(logged) == close(passes.statistics(trainer.model, rows))
    assert passes.of(evaluated, "eval_") == close(passes.statistics(trainer.model, EVAL, "eval_"))


def test_labels_and_batches_stay_as_the_collator_made_them(make):
    trainer = make(max_steps=2, eval_strategy="steps", eval_steps=2, prediction_loss_only=True)
    plain, made = trainer.data_collator, []

    def collate(features):
        batch = plain(features)
        made.append((batch, {key: value.clone() for key, value in batch.items()}))
        return batch

    trainer.data_collator = collate
    activate(trainer)
    assert trainer.data_collator is collate
    trainer.train()
    trainer.predict(Dataset.from_list(OTHER))
    assert len(made) >= 2 + 3 + 2
    for batch, before in made:
        for key, value in before.items():
            assert torch.equal(batch[key], value), key


def test_compute_metrics_sees_the_labels_of_the_data(tmp_path):
    seen = []
    trainer = training.trainer(tmp_path, compute_metrics=lambda p: seen.append(p.label_ids) or {"m": 1.0})
    activate(trainer)
    trainer.evaluate()
    assert sorted(x for x in seen[0].reshape(-1).tolist() if x != -100) == sorted(
        label for row in EVAL for label in row["labels"] if label != -100
    )


def test_a_loader_of_ones_own_and_batches_of_any_size(tmp_path):
    """One process never has repeats, whatever the loader that accelerate saw last was like."""
    groups = [EVAL[:2], EVAL[2:5], EVAL[5:9], EVAL[9:]]

    class OwnLoader(Trainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return [training.collate(group) for group in groups]

    trainer = training.trainer(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1, learning_rate=0.0)
    trainer.train_dataset = Dataset.from_list(TRAIN[:6])
    trainer.__class__ = OwnLoader
    activate(trainer)
    trainer.train()
    (evaluated,) = evaluations(trainer)
    assert passes.of(evaluated, "eval_") == close(passes.statistics(trainer.model, EVAL, "eval_"))


@pytest.mark.parametrize("all_of_them", [False, True], ids=["one batch", "every batch"])
def test_an_evaluation_batch_without_targets_enters_eval_loss_as_stocks_does(make, all_of_them):
    empty = [{**row, "labels": [-100] * len(row["input_ids"])} for row in training.rows(4)]
    data = Dataset.from_list(empty if all_of_them else empty + training.rows(6, seed=2))
    losses = []
    for ours in (False, True):
        trainer = make()
        if ours:
            activate(trainer, "nll")
        trainer.eval_dataset = data
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, nan_ok=True)
