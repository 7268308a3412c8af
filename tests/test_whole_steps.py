"""What a sum of losses is divided by, and when: sums, means and clocks, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.scored import tokens
from support.weighers import Divided, OfBatch

from dft_plugin import linear_token_loss, token_loss
from dft_plugin.core.stats import LossStats, Sum
from dft_plugin.errors import ClockError, LabelError
from dft_plugin.objectives import DFT, NLL, Clock, Thresholded
from dft_plugin.objectives.schedule import Ramp, Schedule, Until

T, D, V = 40, 8, 23


def problem():
    torch.manual_seed(0)
    labels = torch.randint(0, V, (T,))
    labels[::7] = -100
    return torch.randn(T, D), torch.randn(V, D), labels


def by_hand(objective):
    """The loss and the gradient of the hidden states, in float64."""
    hidden, weight, labels = problem()
    hidden = hidden.double().requires_grad_()
    kept = labels != -100
    logp = oracle.log_probabilities(hidden[kept] @ weight.double().T, labels[kept])
    p = logp.detach().exp()
    w = p if isinstance(objective, Divided) else (p >= objective.threshold).double()
    assert 0 < int((w > 0).sum()) < T
    loss = -(w * logp).sum() / w.sum()
    loss.backward()
    return loss.item(), hidden.grad


@pytest.mark.parametrize("objective", [Divided(), Thresholded(threshold=0.05)], ids=["weights", "kept"])
@pytest.mark.parametrize("way", ["hidden", "logits"])
def test_one_call_is_divided_by_its_own_weights(objective, way):
    hidden, weight, labels = problem()
    hidden.requires_grad_()
    if way == "hidden":
        loss = linear_token_loss(hidden, weight, labels, objective=objective)
    else:
        loss = token_loss(hidden @ weight.T, labels, objective=objective)
    loss.backward()
    expected, gradient = by_hand(objective)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert oracle.gap(hidden.grad, gradient) < 1e-5


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (Divided(), "divided divides by the sum of its weights"),
        (Thresholded(), "thresholded divides by the number of the tokens that it keeps"),
        (OfBatch(), "of_batch weighs a token by all others"),
    ],
)
def test_a_number_of_tokens_is_refused_where_it_is_not_what_divides(objective, words):
    hidden, weight, labels = problem()
    with pytest.raises(LabelError, match=words):
        linear_token_loss(hidden, weight, labels, objective=objective, num_items=40)


def test_where_nothing_is_kept_the_loss_is_a_zero_with_a_graph():
    hidden, weight, labels = problem()
    hidden.requires_grad_()
    loss = linear_token_loss(hidden, weight, labels, objective=Thresholded(threshold=0.9999))
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()


class TestTheLog:
    logp_T = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64).log()
    weight_T = torch.tensor([0.5, 0.0, 0.125], dtype=torch.float64)

    def stats(self, divisor):
        return LossStats.of_tokens(tokens(self.logp_T, self.weight_T), torch.tensor([4, 5, 6]), divisor=divisor)

    @pytest.mark.parametrize(("divisor", "total"), [("tokens", 3), ("weights", 0.625), ("kept", 2)])
    def test_divides_as_the_objective_does(self, divisor, total):
        stats = self.stats(divisor)
        summed = -(self.weight_T * self.logp_T).sum().item()
        assert stats.sums_K[Sum.DIVISOR].item() == total
        assert stats.as_logs()["dft/loss"] == pytest.approx(summed / total)
        assert (stats + stats).as_logs()["dft/loss"] == pytest.approx(summed / total)
        assert stats.as_logs()["dft/mean_weight"] == pytest.approx(0.625 / 3), "over the tokens, whatever divides"

    def test_of_nothing_that_is_kept_is_zero(self):
        scored = tokens(self.logp_T, torch.zeros(3, dtype=torch.float64))
        stats = LossStats.of_tokens(scored, torch.tensor([4, 5, 6]), divisor="weights")
        assert stats.as_logs()["dft/loss"] == 0


class TestClocks:
    @pytest.mark.parametrize(
        ("point", "step", "share"),
        [(4, 0, 0), (4, 1, 0.25), (4, 4, 1), (4, 9, 1), (0.5, 0, 0), (0.5, 1, 0.2), (0.5, 5, 1), (1.0, 9, 0.9)],
    )
    def test_integers_are_steps_and_fractions_shares(self, point, step, share):
        assert Until(point).share_of(Clock(step, 10, 0.0)) == pytest.approx(share)

    def test_before_a_run_of_unknown_length_nothing_is_done(self):
        assert Until(0.5).share_of(Clock(0, None, 0.0)) == 0
        assert Until(3).share_of(Clock(0, None, 0.0)) == 0

    def test_of_a_run_of_unknown_length_steps_are_known_and_shares_are_not(self):
        assert Until(4).share_of(Clock(1, None, 0.0)) == 0.25
        with pytest.raises(ClockError, match=r"until 50 % of the run, of which step 1 is done, .* Give `last_step`"):
            Until(0.5).share_of(Clock(1, None, 0.0))

    def test_a_schedule_says_what_holds(self):
        ramp = Ramp(0.5, 1.0, Until(4))
        schedule = Schedule(DFT(alpha=1.0), {"alpha": ramp}, NLL(), Until(2))
        assert [schedule.at(Clock(step, 10, 0.0)) for step in (0, 1, 2, 3, 4)] == [
            NLL(),
            NLL(),
            DFT(alpha=0.75),
            DFT(alpha=0.875),
            DFT(alpha=1.0),
        ]
        assert [schedule.logs(Clock(step, 10, 0.0)) for step in (1, 2)] == [{}, {"dft/alpha": 0.75}]
        assert str(schedule) == "dft(alpha=0.5->1 until step 4, floor=0.0) after nll until step 2"
