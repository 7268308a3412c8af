"""What was not a finite number first, by name; and a loop of one's own, in which nobody else looks."""

from __future__ import annotations

import logging

import pytest
import torch
from support import spoiled, tiny

from dft_plugin import Clock, attach, token_loss
from dft_plugin.errors import ConflictError, NonFiniteError, SettingsError
from dft_plugin.hf.facts import COLUMN
from dft_plugin.hf.nonfinite import ROWS, Found, Watch, in_words


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING, logger="dft_plugin")


def looked_at(loss, batch, model=None, add=0.0):
    """What a watch finds in one labelled pass, and its words."""
    model = tiny.llama() if model is None else model
    attachment = attach(model, loss)
    attachment.clock = Clock(0, 10, 0.0)
    watch = Watch(attachment.plan)
    with attachment.answering(watch=watch):
        output = model(**batch)
    watch.end(output.loss + add, 1)
    return watch.read(), watch.words


def named(*given):
    found, words = looked_at(*given)
    return words[found.statistic], found.rows


def column(name, *bad, value=float("nan")):
    batch = tiny.batch()
    numbers = -torch.rand(batch["labels"].shape)
    numbers[list(bad), -6] = value
    return {**batch, f"{COLUMN}{name}": numbers}


def test_nothing_is_found_where_all_is_finite():
    assert looked_at("dft", tiny.batch())[0] is None
    assert looked_at("psft", column("old_logp"))[0] is None


def test_log_p_and_the_rows_whose_it_is():
    model, batch = tiny.llama(), tiny.batch()
    spoiled.poison(model)
    batch["input_ids"][batch["input_ids"] == spoiled.BAD] = 5
    batch["input_ids"][[0, 2], 0] = spoiled.BAD
    assert named("dft", batch, model) == ("log p of a target (dft/nll)", (0, 2))


def test_a_column_of_the_data():
    assert named("psft", column("old_logp", 1)) == ("the column `old_logp`", (1,))


def test_a_reference_that_is_told_apart_from_a_column():
    loss = {"name": "prift", "by": "prob", "reference": "columns"}
    assert named(loss, column("ref_logp", 1))[0] == "the column `ref_logp`"
    words = looked_at({"name": "prift", "by": "prob", "reference": "copy"}, tiny.batch())[1]
    assert words[0] == "`ref_logp` of the reference"


def test_a_weight_of_an_objective():
    from dft_plugin import Objective

    class Endless(Objective):
        name = "endless"

        def weight(self, rows):
            weight_T = torch.ones_like(rows.logp_T)
            weight_T[3] = float("inf")
            return weight_T

    statistic, rows = named(Endless(), tiny.batch())
    assert (statistic, rows) == ("a weight (dft/mean_weight)", (0,))


def test_what_is_added_to_the_loss():
    statistic, rows = named("dft", tiny.batch(), None, float("inf"))
    assert statistic == "the whole loss, with what the model or the trainer adds to ours"
    assert rows == ()


def test_a_batch_of_more_rows_than_are_told_apart():
    model, batch = tiny.llama(), tiny.batch(rows=ROWS + 6, length=12)
    spoiled.poison(model)
    batch["input_ids"][batch["input_ids"] == spoiled.BAD] = 5
    batch["input_ids"][[1, ROWS + 2], 0] = spoiled.BAD
    found, words = looked_at("dft", batch, model)
    assert found.rows == (1, ROWS - 1)
    assert f"in rows 1, {ROWS - 1} (and perhaps later ones than {ROWS - 1})" in in_words([found], words, 1, 1)


def test_ranks_that_found_it_in_the_same_step_are_named():
    every = [Found(3, 0, 0, (1,), rank) for rank in (0, 2)] + [Found(4, 0, 0, (), 1)]
    said = in_words(every, ["log p"], 4, 1)
    assert said == (
        "step 3, rank 0 of 4: not finite was first log p, in row 1 of that batch (counted from 0); in the same step "
        "on rank 2, too"
    )


def test_numbers_of_what_was_found_come_back():
    found = Found(12, 3, 2, (0, 5), 7)
    assert Found.of(found.numbers(), 7) == found
    assert Found.of([0.0] * (ROWS + 3), 1) is None


class TestALoopOfOnesOwn:
    def spoiled(self):
        model, batch = tiny.llama(), tiny.batch()
        batch["input_ids"][batch["input_ids"] == spoiled.BAD] = 5
        spoiled.poison(model)
        bad = {key: value.clone() for key, value in batch.items()}
        bad["input_ids"][1, 0] = spoiled.BAD
        return model, batch, bad

    def test_statistics_that_are_drained_warn_once(self, caplog):
        model, batch, bad = self.spoiled()
        attachment = attach(model)
        model(**batch)
        attachment.drain(training=True).as_logs()
        assert caplog.text == ""
        for _ in range(2):
            model(**bad)
            stats = attachment.drain(training=True)
            # Also where ranks have summed them up.
            assert stats.reduce(lambda sums: sums).read().as_logs()["dft/nll"] != 0
        assert caplog.text.count("not finite, since they were taken last") == 1
        assert "dft/loss, dft/nll" in caplog.text

    def test_an_evaluation_warns_of_nothing(self, caplog):
        model, _, bad = self.spoiled()
        attachment = attach(model)
        model.eval()
        model(**bad)
        attachment.drain(training=False).as_logs()
        assert caplog.text == ""

    def test_an_error_names_the_step_that_the_loop_has_told(self):
        model, batch, bad = self.spoiled()
        attachment = attach(model, {"name": "dft", "nonfinite": "error"})
        model(**batch).loss.backward()
        attachment.clock = Clock(4, 10, 0.5)
        with pytest.raises(NonFiniteError, match=r"in step 5 \(`nonfinite: error`\), in labelled pass 2"):
            model(**bad)
        with torch.no_grad():
            assert not model(**bad).loss.isfinite(), "nothing is trained"

    def test_an_error_finds_what_a_weight_of_zero_hides_from_the_loss(self):
        model, batch, bad = self.spoiled()
        attach(model, {"name": "thresholded", "threshold": 0.001, "nonfinite": "error"})
        assert model(**batch).loss.isfinite()
        with pytest.raises(NonFiniteError, match="in labelled pass 2"):
            model(**bad)

    def test_to_leave_a_step_out_is_the_loops_own_business(self):
        with pytest.raises(
            ConflictError, match=r"attach knows neither your optimizer.* `loss\.isfinite\(\)` is false"
        ):
            attach(tiny.llama(), {"name": "dft", "nonfinite": "skip"})

    def test_a_function_knows_no_step(self):
        logits, labels = torch.randn(2, 4, 9), torch.randint(9, (2, 4))
        with pytest.raises(SettingsError, match=r"sets `nonfinite`, .* it knows no step\. Look at `loss\.isfinite"):
            token_loss(logits, labels, objective={"name": "dft", "nonfinite": "error"})
