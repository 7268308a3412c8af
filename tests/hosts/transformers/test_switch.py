"""The step at which another loss takes over from `first` is told of, once."""

from __future__ import annotations

import logging
import re

import pytest
from support import by_hand, training

from dft_plugin import Clock, activate
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.hf import switch

pytestmark = pytest.mark.host

FIRST = {"name": "dft", "first": {"name": "nll", "for": 2}}
SAID = "dft: loss: nll until step 2, dft(alpha=1.0, floor=0.0) from here on\n"


def trainer(out, **changes):
    return training.trainer(out, **{"max_steps": 4, "learning_rate": by_hand.RATE, **changes})


def said(made, capsys, loss=FIRST, **how):
    """Train, and return what is said after the start-up line."""
    activate(made, loss)
    capsys.readouterr()
    made.train(**how)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "loss", [FIRST, {"name": "dft", "first": {"name": "nll", "for": 0.4}}], ids=["steps", "share"]
)
def test_once_whatever_the_micro_batches_and_evaluations(loss, tmp_path, capsys):
    more = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    assert said(trainer(tmp_path, **more), capsys, loss).count(SAID) == 1


def test_when_it_happens_and_not_before(tmp_path, capsys):
    made, steps = trainer(tmp_path), []

    class Seen(training.transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            steps.append(SAID in capsys.readouterr().err)

    made.add_callback(Seen())
    said(made, capsys)
    assert steps == [False, False, True, False]


def test_on_one_rank_alone(tmp_path, capsys):
    made = trainer(tmp_path)
    activate(made, FIRST)
    capsys.readouterr()
    made.state.is_world_process_zero = False
    made.is_world_process_zero = lambda: False
    made.train()
    assert SAID not in capsys.readouterr().err


def test_a_run_that_is_resumed_beyond_it_does_not_say_it_again(tmp_path, capsys):
    assert SAID in said(trainer(tmp_path, save_strategy="steps", save_steps=1), capsys)
    for checkpoint, again in ((1, True), (2, True), (3, False)):
        path = str(tmp_path / f"checkpoint-{checkpoint}")
        assert (SAID in said(trainer(tmp_path), capsys, resume_from_checkpoint=path)) == again, checkpoint


def test_a_run_that_is_resumed_inside_it_says_until_when(tmp_path, capsys):
    said(trainer(tmp_path, save_strategy="steps", save_steps=1), capsys)
    # Twice as long now, so that a share is another step.
    loss = {"name": "dft", "first": {"name": "nll", "for": 0.75}, "resume": "allow"}
    heard = said(trainer(tmp_path, max_steps=8), capsys, loss, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "loss: nll at step 3, where the run goes on, and until step 6" in heard


@pytest.mark.parametrize("loss", ["dft", {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 2}}])
def test_a_loss_that_nothing_comes_before_says_nothing(loss, tmp_path, capsys):
    assert "from here on" not in said(trainer(tmp_path), capsys, loss)


@pytest.mark.parametrize(
    ("before", "now", "switches"),
    [(None, 0, False), (0, 1, False), (1, 2, True), (2, 2, False), (2, 3, False), (None, 2, True), (None, 3, False)],
)
def test_of_two_clocks(before, now, switches):
    catalogue = build_catalogue()
    plan = catalogue.plan(catalogue.settings(FIRST))
    clocks = [None if step is None else Clock(step, 4, 0.0) for step in (before, now)]
    assert bool(switch.line(plan, *clocks)) == switches


@pytest.mark.parametrize(
    ("loss", "advice"),
    [
        (FIRST, "in the steps up to 3. Below 0.1 .*: let `first: {name: nll}` hold for longer, or take `loss: nll`."),
        ("dft", "in the steps up to 1. Below 0.1 .*: take `loss: nll`, or begin with it"),
    ],
)
def test_a_weak_prior_is_told_of_by_the_steps_in_which_it_was_seen(loss, advice, tmp_path, caplog):
    made = trainer(tmp_path)
    activate(made, loss)
    with caplog.at_level(logging.WARNING, logger="dft_plugin.hf.first_log"):
        made.train()
    (record,) = caplog.records
    assert re.search(advice, record.message)
