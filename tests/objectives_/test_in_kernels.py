"""Every objective in every kernel: loss, statistics and gradients against its formula in float64."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from support import oracle
from support.family import FORMULAS, NAMES

from dft_plugin.errors import PluginError
from dft_plugin.kernels import (
    Head,
    OpaqueHead,
    ShardedHead,
    Transform,
    VocabShard,
    blocked,
    chunked,
    opaque,
    reference,
    score_logits,
    score_logits_,
    vocab_parallel,
)
from dft_plugin.objectives import EAFT, Objective, Rank, Targets

T, D, V = 150, 24, 301
TRANSFORM = Transform(0.8, 12.0)
CHUNKS_OF_64 = {"needs": frozenset(), "scratch_bytes": 1}


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def problem():
    """Targets from near impossible to near certain, in sequences that chunks of 64 tokens cut."""
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(V, D, generator=generator, dtype=torch.float64)
    ids_T = torch.randint(0, V, (T,), generator=generator)
    hidden_TD = weight_VD[ids_T] * torch.linspace(-0.3, 0.6, T, dtype=torch.float64)[:, None]
    logp_T = oracle.log_probabilities(TRANSFORM(hidden_TD @ weight_VD.T), ids_T)
    columns = {
        "ref_logp": (logp_T + torch.randn(T, generator=generator)).clamp(max=0).float(),
        "old_logp": (logp_T + 0.3 * torch.randn(T, generator=generator)).clamp(max=0).float(),
        "ref_mass": torch.rand(T, generator=generator),
    }
    sequence_T = torch.arange(T) // 47
    targets = Targets(ids_T, sequence_T=sequence_T, columns=columns)
    return hidden_TD.float().requires_grad_(), weight_VD.float().requires_grad_(), targets


def trained(kernel):
    return lambda hidden, weight, *asked: kernel(hidden, Head(weight, transform=TRANSFORM), *asked, **CHUNKS_OF_64)


def frozen(kernel):
    def score(hidden, weight, *asked):
        return kernel(hidden, Head(weight.detach(), transform=TRANSFORM), *asked, **CHUNKS_OF_64)

    return score


def called(hidden, weight, *asked):
    head = OpaqueHead(lambda chunk: chunk @ weight.T, V, TRANSFORM, (weight,))
    return opaque(hidden, head, *asked, **CHUNKS_OF_64)


def called_frozen(hidden, weight, *asked):
    head = OpaqueHead(lambda chunk: chunk @ weight.detach().T, V, TRANSFORM)
    return opaque(hidden, head, *asked, **CHUNKS_OF_64)


def split(hidden, weight, *asked):
    head = ShardedHead(weight, VocabShard.even(V), None, TRANSFORM)
    return vocab_parallel(hidden, head, *asked, **CHUNKS_OF_64)


def of_logits(kernel):
    def score(hidden, weight, *asked):
        kept = torch.ones(T, dtype=torch.bool)
        return kernel(TRANSFORM(hidden @ weight.T), kept, *asked, needs=frozenset())

    return score


WAYS = {
    "reference": trained(reference),
    "chunked": trained(chunked),
    "chunked, frozen": frozen(chunked),
    "blocked": frozen(blocked),
    "opaque": called,
    "opaque, frozen": called_frozen,
    "split": split,
    "logits": of_logits(score_logits),
    "logits, in place": of_logits(score_logits_),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("objective", "formula"), FORMULAS, ids=NAMES)
def test_an_objective_is_its_formula(objective, formula, way):
    hidden, weight, targets = problem()
    result = WAYS[way](hidden, weight, targets, objective)
    result.loss_sum.backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    logits = TRANSFORM(exact[0] @ exact[1].T)
    loss_T = formula(logits, targets.ids_T, sequence=targets.sequence_T, **targets.columns)
    loss_T.sum().backward()
    assert result.loss_sum.item() == pytest.approx(loss_T.sum().item(), rel=1e-5)
    assert oracle.gap(result.loss_T, loss_T.detach()) < 1e-5
    assert oracle.gap(hidden.grad, exact[0].grad) < 1e-5
    if weight.grad is not None:
        assert oracle.gap(weight.grad, exact[1].grad) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_no_tokens_are_a_zero_whatever_the_scope(way):
    for objective, _ in FORMULAS:
        hidden, weight, targets = problem()
        if way.startswith("logits"):
            return
        result = WAYS[way](hidden[:0], weight, targets[:0], objective)
        assert result.loss_sum.item() == 0
        result.loss_sum.backward()


class Ranked(EAFT):
    """Weighs by a statistic that wants whole rows."""

    needs = frozenset({Rank()})

    def weight(self, rows):
        return 1 / (1 + rows.added["rank"].to(rows.logp_T.dtype))


def by_rank(logits, ids):
    logp = oracle.log_probabilities(logits, ids)
    rank = (logits > logits.gather(1, ids[:, None])).sum(1)
    return -logp / (1 + rank)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "split"])
def test_a_statistic_of_whole_rows_is_made_before_they_are_overwritten(way):
    hidden, weight, targets = problem()
    result = WAYS[way](hidden, weight, targets, Ranked())
    logits = TRANSFORM(hidden.detach().double() @ weight.detach().double().T)
    assert oracle.gap(result.loss_T, by_rank(logits, targets.ids_T)) < 1e-5


def test_a_statistic_of_whole_rows_is_refused_where_no_rank_holds_them():
    hidden, weight, targets = problem()
    with pytest.raises(PluginError, match="the statistic rank wants whole rows of logits, which a head that is split"):
        split(hidden, weight, targets, Ranked())


class Short(Objective):
    """Forgets some tokens."""

    name = "short"
    summary = "w = 1"
    source = "nowhere"

    def weight(self, rows):
        return rows.logp_T[:3]


@pytest.mark.parametrize("way", ["chunked", "logits", "opaque"])
def test_an_objective_that_returns_too_few_weights_is_named(way):
    with pytest.raises(PluginError, match=r"the objective short returned weights of shape \(3,\) for"):
        WAYS[way](*problem(), Short())
