"""Every objective against its formula written out by hand in float64: the value, and the gradient on the logits."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.family import FORMULAS, NAMES
from support.family_soft import SOFT_FORMULAS

from dft_plugin.objectives import FAMILY, Objective, Rows, Targets, Weighed

T, V = 60, 97


def problem() -> tuple[torch.Tensor, Targets]:
    """Targets from near impossible to near certain, in sequences of 1 to 9 tokens."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = 2 * torch.randn(T, V, generator=generator, dtype=torch.float64)
    ids_T = torch.randint(0, V, (T,), generator=generator)
    logits_TV[torch.arange(T), ids_T] = torch.linspace(-9, 22, T, dtype=torch.float64)
    sequence_T = torch.arange(12).repeat_interleave(torch.tensor([1, 9, 2, 8, 3, 7, 4, 6, 5, 5, 5, 5]))
    logp_T = oracle.log_probabilities(logits_TV, ids_T)
    columns = {
        "ref_logp": (logp_T + torch.randn(T, generator=generator)).clamp(max=0).float(),
        "old_logp": (logp_T + 0.3 * torch.randn(T, generator=generator)).clamp(max=0).float(),
        "ref_mass": torch.rand(T, generator=generator),
    }
    return logits_TV, Targets(ids_T, sequence_T=sequence_T, columns=columns)


def rows_of(logits_TV: torch.Tensor, targets: Targets, objective: Objective) -> Rows:
    logp_TV = logits_TV.log_softmax(-1)
    logp_T = oracle.log_probabilities(logits_TV, targets.ids_T)
    named = {statistic for statistic in objective.needs if isinstance(statistic, str)}
    return Rows(
        logp_T,
        -logp_T.expm1(),
        logits_TV.argmax(-1) == targets.ids_T,
        entropy_T=-(logp_TV.exp() * logp_TV).sum(-1) if "entropy" in named else None,
        sum_p_squared_T=logp_TV.exp().square().sum(-1) if "sum_p_squared" in named else None,
        added={s.name: s(logits_TV, targets.ids_T) for s in objective.needs if not isinstance(s, str)},
    )


@pytest.mark.parametrize(("objective", "formula"), FORMULAS, ids=NAMES)
def test_an_objective_is_its_formula(objective, formula):
    logits_TV, targets = problem()
    rows = rows_of(logits_TV, targets, objective)
    made = objective.weigh(rows, targets, None)
    made = made if isinstance(made, Weighed) else Weighed(made)
    logits_TV.requires_grad_()
    loss_T = formula(logits_TV, targets.ids_T, sequence=targets.sequence_T, **targets.columns)
    value_T = made.value_T if made.value_T is not None else -made.weight_T * rows.logp_T
    assert torch.allclose(value_T, loss_T, rtol=1e-9, atol=1e-12)
    loss_T.sum().backward()
    onehot_TV = torch.nn.functional.one_hot(targets.ids_T, V)
    gradient_TV = made.weight_T[:, None] * (logits_TV.detach().softmax(-1) - onehot_TV)
    assert torch.allclose(gradient_TV, logits_TV.grad, rtol=1e-7, atol=1e-12)


def test_every_shipped_objective_is_here():
    assert {type(objective) for objective, _ in [*FORMULAS, *SOFT_FORMULAS]} == set(FAMILY)


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.name)
def test_an_objective_says_what_it_is(kind):
    assert "arXiv" in kind.source or "cross-entropy" in kind.source
    assert len(kind.summary) < 100
    assert kind.helps
    for option in kind.model_fields.values():
        assert option.description
        assert option.description.endswith(".")
