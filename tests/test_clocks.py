"""What a clock may say, and what of a schedule a run would never come to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dft_plugin import Clock, Facts, token_loss
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import ClockError, ConflictError, SettingsError
from dft_plugin.plans import plan_for

STEP = "an integer, 0 or more"
LAST = "an integer, 1 or more (None: nobody knows it)"
EPOCH = "a number, 0 or more"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((-1, 10, 0.0), f"step is -1: optimizer steps that are done are needed, {STEP}"),
        (("3", 10, 0.0), f"step is '3': optimizer steps that are done are needed, {STEP}"),
        ((True, 10, 0.0), f"step is True: optimizer steps that are done are needed, {STEP}"),
        ((1.5, 10, 0.0), f"step is 1.5: optimizer steps that are done are needed, {STEP}"),
        ((math.nan, 10, 0.0), f"step is nan: optimizer steps that are done are needed, {STEP}"),
        ((None, 10, 0.0), f"step is None: optimizer steps that are done are needed, {STEP}"),
        ((0, 0, 0.0), f"last_step is 0: the number of optimizer steps of the run is needed, {LAST}"),
        ((0, -1, 0.0), f"last_step is -1: the number of optimizer steps of the run is needed, {LAST}"),
        ((0, "10", 0.0), f"last_step is '10': the number of optimizer steps of the run is needed, {LAST}"),
        ((0, 2.5, 0.0), f"last_step is 2.5: the number of optimizer steps of the run is needed, {LAST}"),
        ((11, 10, 0.0), "step is 11, and last_step is 10: the run is over. Give all steps of the run"),
        ((1, 10, math.nan), f"epoch is nan: passes over the data are needed, {EPOCH}"),
        ((1, 10, math.inf), f"epoch is inf: passes over the data are needed, {EPOCH}"),
        ((1, 10, -0.5), f"epoch is -0.5: passes over the data are needed, {EPOCH}"),
        ((1, 10, "1"), f"epoch is '1': passes over the data are needed, {EPOCH}"),
        ((1, 10, None), f"epoch is None: passes over the data are needed, {EPOCH}"),
    ],
)
def test_a_clock_of_no_run_is_refused(given, says):
    with pytest.raises(ClockError) as raised:
        Clock(*given)
    assert str(raised.value) == f"Clock(step, last_step, epoch): {says}."


def test_everything_that_is_wrong_with_a_clock_is_said_at_once():
    with pytest.raises(ClockError) as raised:
        Clock(-1, 0, math.nan)
    assert all(word in str(raised.value) for word in ("step is -1", "last_step is 0", "epoch is nan"))


@pytest.mark.parametrize(
    ("clock", "share"),
    [
        (Clock(0, 10, 0), 0),
        (Clock(10, 10, 1.0), 1),
        (Clock(np.int64(5), np.int64(10), np.float32(0.5)), 0.5),
        (Clock(0, None, 0.0), 0),
        (Clock(7, None, 0.5), 0),
        (Clock.of_run(7, None, 0.5), 0),
        (Clock.of_run(5, 10, 0.5), 0.5),
        (Clock.of_run(11, 10, 1.1), 1),
    ],
)
def test_a_clock_of_a_run_says_how_much_is_done(clock, share):
    assert clock.share == share


@pytest.mark.parametrize("clock", [(1, 10, 0.0), 3, "now", {"step": 1}])
def test_what_is_no_clock_is_refused(clock):
    with pytest.raises(ClockError, match=r"a dft_plugin\.Clock\(step, last_step, epoch\) is needed"):
        token_loss(torch.randn(3, 5), torch.tensor([0, 1, 2]), facts=Facts(clock=clock))


def ramp(until):
    return {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": until}}


def first(until, **more):
    return {"name": "dft", "first": {"name": "nll", "for": until}, **more}


LATE = {"alpha": {"from": 0.0, "to": 1.0, "until": 3}}


@pytest.mark.parametrize(
    ("loss", "last", "says"),
    [
        (
            ramp(11),
            10,
            "`alpha` goes from 0 to 1 until step 11 and the run has 10 steps, so that it would never get to 1. Give "
            "a share of the run (`until: 0.3`), or fewer steps.",
        ),
        (
            first(10),
            10,
            "`first` holds until step 10 and the run has 10 steps, so that dft would never be trained. Give a smaller "
            "share of the run (`for: 0.2`), or fewer steps.",
        ),
        (
            first(3),
            1,
            "`first` holds until step 3 and the run has 1 step, so that dft would never be trained. Give a smaller "
            "share of the run (`for: 0.2`), or fewer steps.",
        ),
        (
            first(0.95),
            10,
            "`first` holds until 95 % of the run and the run has 10 steps, so that dft would never be trained. Give a "
            "smaller share of the run (`for: 0.2`), or fewer steps.",
        ),
        (
            first(0.3, **LATE),
            10,
            "`alpha` goes from 0 to 1 until step 3, and `first` holds until 30 % of the run, so that nothing of it "
            "would be trained. Give a later `until`, or write `alpha: 1`.",
        ),
    ],
)
def test_what_a_run_never_comes_to_is_refused_at_its_first_step(loss, last, says):
    with pytest.raises(ConflictError) as raised:
        plan_for(loss).weigher(Clock(0, last, 0.0))
    assert raised.value.problems == (says,)


@pytest.mark.parametrize(
    ("loss", "last"),
    [
        (ramp(10), 10),
        (ramp(1.0), 10),
        (ramp(9), 10),
        (first(9), 10),
        (first(0.9), 10),
        (first(0.75), 4),
        (first(0.2, **LATE), 10),
        (first(0.2), 1),
        (ramp(11), None),
        (first(10), None),
    ],
)
def test_what_it_comes_to_is_not(loss, last):
    plan = plan_for(loss)
    assert plan.weigher(Clock(0, last, 0.0)) in (plan.schedule.first, plan.schedule.at(Clock(0, last, 0.0)))


@pytest.mark.parametrize("points", [(3, 3), (2, 3), (0.2, 0.2), (0.1, 0.2)])
def test_a_ramp_that_is_over_before_its_loss_begins_is_refused_with_the_settings(points):
    until, switch = points
    loss = {**ramp(until), "first": {"name": "nll", "for": switch}}
    with pytest.raises(SettingsError, match=r"`loss`: `alpha` goes from 0 to 1 until .* nothing of it would be"):
        build_catalogue().settings(loss)


@pytest.mark.parametrize(
    ("written", "point"), [("1", 1), (" 20 ", 20), ("1.0", 1.0), ("1e-1", 0.1), (1, 1), (1.0, 1.0)]
)
def test_a_step_in_quotes_is_a_step(written, point):
    until = plan_for(ramp(written)).schedule.ramps["alpha"].until.point
    assert (until, type(until)) == (point, type(point))


@pytest.mark.parametrize("points", [(4, 3), (0.3, 0.2), (3, 0.2), (0.2, 3)])
def test_one_that_is_not_or_may_not_be_is_no_matter_of_the_settings(points):
    until, switch = points
    assert build_catalogue().settings({**ramp(until), "first": {"name": "nll", "for": switch}})


@pytest.mark.parametrize(("share", "last", "steps"), [(0.28, 25, 7), (0.14, 50, 7), (0.56, 100, 56), (0.3, 5, 2)])
def test_a_share_that_is_a_whole_number_of_steps_ends_with_the_last_of_them(share, last, steps):
    plan = plan_for({"name": "dft", "first": {"name": "nll", "for": share}})
    names = [plan.holding(Clock(step, last, 0.0)).name for step in range(last)]
    assert names == ["nll"] * steps + ["dft"] * (last - steps)
