"""What the log says of weights where the loss has soft targets: the strength where these are what is learned."""

from __future__ import annotations

import pytest
import torch
from support import tiny
from support.referred import adapted, own_logits

from dft_plugin import attach
from dft_plugin.hf import best, first_log
from dft_plugin.objectives import ASFT, DFT, GIFT, NLL
from dft_plugin.plans import plan_for

pytest.importorskip("peft")


def logged(loss, counted=None, kernel="auto"):
    model, batch = adapted().eval(), tiny.batch()
    attachment = attach(model, {**loss, "kernel": kernel})
    with torch.no_grad(), attachment.answering(counted_B=counted):
        model(**batch)
    kept = batch["labels"][:, 1:] != -100
    if counted is not None:
        kept &= counted[:, None]
    ids = batch["labels"][:, 1:][kept]
    model.get_base_model().forward.detach()
    p = own_logits(model, batch)[:, :-1][kept].softmax(1).gather(1, ids[:, None])[:, 0].double()
    return attachment.drain(training=False).as_logs(), p, ids


@pytest.mark.parametrize("kernel", ["auto", "chunked", "reference", "logits"])
@pytest.mark.parametrize("some", [False, True])
def test_each_token_of_gift_has_the_weight_of_its_soft_targets(kernel, some):
    counted = torch.arange(len(tiny.batch()["labels"])) > 0 if some else None
    logs, p, _ = logged({"name": "gift"}, counted, kernel)
    assert logs["dft/mean_weight"] == 1
    assert logs["dft/low_weight_share"] == 0
    assert logs["dft/effective_tokens"] == pytest.approx(len(p)) == pytest.approx(logs["dft/tokens"])


def test_a_factor_and_an_exemption_count_as_for_any_other():
    _, _, ids = logged({"name": "gift"})
    twice, always = int(ids[0]), int(ids[-1])
    assert twice != always
    logs, _, _ = logged({"name": "gift", "always_learn": always, "weights": {"tokens": {twice: 0.5}}})
    share = float((ids == twice).double().mean())
    assert logs["dft/mean_weight"] == pytest.approx(1 - 0.5 * share) == pytest.approx(logs["dft/data_weight"])


def test_the_weight_of_asft_is_that_of_the_target():
    logs, p, _ = logged({"name": "asft", "strength": 0.5})
    assert logs["dft/mean_weight"] == pytest.approx(p.mean().item(), rel=1e-5)
    assert logs["dft/effective_tokens"] == pytest.approx((p.sum() ** 2 / p.square().sum()).item(), rel=1e-5)
    assert logs["dft/low_weight_share"] == pytest.approx((p < 0.01).double().mean().item())


def test_soft_targets_do_not_ask_how_likely_the_target_is():
    assert [best.weighs(one) for one in (GIFT(), ASFT(), DFT(), NLL())] == [False, True, True, False]


@pytest.mark.parametrize(("objective", "warns"), [(GIFT(), True), (ASFT(), False), (DFT(), True)])
def test_no_weight_at_all_is_told_of_where_nothing_else_is_trained(objective, warns, caplog):
    first_log.warn({"dft/mean_weight": 0.0, "dft/mean_prob": 0.5}, plan_for(objective), None)
    assert (f"nothing is trained by {objective.name}" in caplog.text) == warns


def test_a_weak_prior_is_not_told_of_where_the_reference_decides(caplog):
    first_log.warn({"dft/mean_weight": 1.0, "dft/mean_prob": 0.001}, plan_for(GIFT()), None)
    assert caplog.text == ""
