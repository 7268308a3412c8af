"""Weights changed by token id and by the data, in every kernel: loss, statistics and gradients in float64 by hand."""

from __future__ import annotations

import pytest
import torch
from support import family, oracle

from dft_plugin.kernels import Head, OpaqueHead, Transform, blocked, chunked, opaque, reference, score_logits
from dft_plugin.objectives import DEFT, DFT, EAFT, IWSFT, NLL, Targets, Thresholded
from dft_plugin.objectives.adjusted import DATA_WEIGHT, EXEMPT_PROB, EXEMPT_SHARE, Adjusted

T, D, V = 150, 24, 301
TRANSFORM = Transform(0.8, 12.0)
CHUNKS_OF_64 = {"needs": frozenset(), "scratch_bytes": 1}
ALWAYS, FACTORS = (0, 1, 3, 4, 7, 300), {3: 0.0, 5: 2.5, 6: 0.5}
"""Runs of neighbours, and tokens alone; one that is exempt and has a factor."""

OBJECTIVES = [
    (DFT(), family.dft),
    (DEFT(), family.deft),
    (EAFT(), family.eaft),
    (Thresholded(keep="below", of="p"), family.thresholded_p_below),
    (IWSFT(), family.iw_sft),
]
"""A plain weight, a value of its own, a statistic of its own, a weight of 0, a whole sequence."""

KINDS = {
    "always": {"always": ALWAYS},
    "factors": {"factors": FACTORS},
    "column": {"column": "ratio"},
    "all": {"always": ALWAYS, "factors": FACTORS, "column": "ratio"},
}


def trained(kernel):
    return lambda hidden, weight, *asked: kernel(hidden, Head(weight, transform=TRANSFORM), *asked, **CHUNKS_OF_64)


def frozen(kernel):
    def score(hidden, weight, *asked):
        return kernel(hidden, Head(weight.detach(), transform=TRANSFORM), *asked, **CHUNKS_OF_64)

    return score


def called(hidden, weight, *asked):
    head = OpaqueHead(lambda chunk: chunk @ weight.T, V, TRANSFORM, (weight,))
    return opaque(hidden, head, *asked, **CHUNKS_OF_64)


def of_logits(hidden, weight, *asked):
    return score_logits(TRANSFORM(hidden @ weight.T), torch.arange(T), *asked, needs=frozenset())


WAYS = {
    "reference": trained(reference),
    "chunked": trained(chunked),
    "blocked": frozen(blocked),
    "opaque": called,
    "logits": of_logits,
}


def problem():
    """Targets from near impossible to near certain; the tokens that are treated apart among all of these."""
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(V, D, generator=generator, dtype=torch.float64)
    ids_T = torch.randint(0, V, (T,), generator=generator)
    ids_T[::5] = torch.tensor([0, 2, 3, 4, 5, 6, 7, 8, 299, 300]).repeat(3)
    hidden_TD = weight_VD[ids_T] * torch.linspace(-0.3, 0.6, T, dtype=torch.float64)[:, None]
    logp_T = oracle.log_probabilities(TRANSFORM(hidden_TD @ weight_VD.T), ids_T)
    columns = {
        "ref_logp": (logp_T + torch.randn(T, generator=generator)).clamp(max=0).float(),
        "ratio": 2 * torch.rand(T, generator=generator),
    }
    targets = Targets(ids_T, sequence_T=torch.arange(T) // 47, columns=columns)
    return hidden_TD.float().requires_grad_(), weight_VD.float().requires_grad_(), targets


def by_hand(formula, logits, targets, always=(), factors=None, column=None):
    """The loss of each token [T], and its factor: written out one token at a time."""
    loss_T = formula(logits, targets.ids_T, sequence=targets.sequence_T, **targets.columns)
    nll_T = family.nll(logits, targets.ids_T)
    losses, used = [], []
    for at, number in enumerate(targets.ids_T.tolist()):
        factor = (factors or {}).get(number, 1.0)
        if column is not None:
            factor *= targets.columns[column][at].double().item()
        losses.append(factor * (nll_T[at] if number in always else loss_T[at]))
        used.append(factor)
    return torch.stack(losses), used


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("objective", "formula"), OBJECTIVES, ids=[one.name for one, _ in OBJECTIVES])
def test_loss_and_gradients_are_those_written_out_by_hand(objective, formula, kind, way):
    hidden, weight, targets = problem()
    result = WAYS[way](hidden, weight, targets, Adjusted(objective, **KINDS[kind]))
    result.loss_sum.backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    loss_T, factors = by_hand(formula, TRANSFORM(exact[0] @ exact[1].T), targets, **KINDS[kind])
    loss_T.sum().backward()
    assert result.loss_sum.item() == pytest.approx(loss_T.sum().item(), rel=1e-5)
    assert oracle.gap(result.loss_T, loss_T.detach()) < 1e-5
    assert oracle.gap(hidden.grad, exact[0].grad) < 1e-5
    if weight.grad is not None:
        assert oracle.gap(weight.grad, exact[1].grad) < 1e-5
    if kind != "always":
        assert result.statistics[DATA_WEIGHT].tolist() == pytest.approx(factors, rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_share_and_probability_are_those_of_the_exempt_tokens(way):
    hidden, weight, targets = problem()
    result = WAYS[way](hidden, weight, targets, Adjusted(DFT(), ALWAYS))
    logp_T = oracle.log_probabilities(TRANSFORM(hidden.detach().double() @ weight.detach().double().T), targets.ids_T)
    exempt = [number in ALWAYS for number in targets.ids_T.tolist()]
    assert result.statistics[EXEMPT_SHARE].tolist() == exempt
    expected = [p if yes else float("nan") for p, yes in zip(logp_T.exp().tolist(), exempt, strict=True)]
    assert result.statistics[EXEMPT_PROB].tolist() == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_what_is_changed_declares_what_the_objective_does():
    changed = Adjusted(IWSFT(), ALWAYS, "ratio", FACTORS)
    assert changed.columns == {"ref_logp", "ratio"}
    for name in ("name", "needs", "places", "scope", "divisor"):
        assert getattr(changed, name) == getattr(IWSFT(), name)
    assert Adjusted(EAFT()).needs == EAFT.needs
    assert Adjusted(Thresholded()).divisor == "kept"
    assert Adjusted(DFT()).statistics == ()
    assert changed.statistics == (EXEMPT_SHARE, EXEMPT_PROB, DATA_WEIGHT)


def test_likelihood_of_exempt_tokens_is_likelihood():
    hidden, weight, targets = problem()
    plain = reference(hidden, Head(weight), targets, NLL())
    exempt = reference(hidden, Head(weight), targets, Adjusted(NLL(), ALWAYS))
    assert torch.equal(plain.loss_T, exempt.loss_T)
