"""No Triton kernel is trusted before its numbers were compared with the plain code's; then it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support import fused, problems
from support.fused import warnings_of

from dft_plugin.kernels import Transform, scoring, softmax

EVERYTHING = frozenset({"entropy", "sum_p_squared"})
pytestmark = fused.FILTER


@pytest.fixture
def triton_rows():
    return pytest.importorskip("dft_plugin.kernels.triton_rows", reason="needs triton", exc_type=ImportError)


def spoiled(what):
    """Return what spoils a kernel's statistics and gradient in one place, as a wrong compiler might."""

    def spoil(logits_TV, scored):
        if what == "gradient":
            logits_TV[-1, -1] += 0.1 * logits_TV[-1].abs().max()
        elif what == "factor":
            scored.inverse_norm_T[-1] *= 1.1
        elif what == "is_top1_T":
            scored.rows.is_top1_T.logical_not_()
        else:
            getattr(scored.rows, what)[-1] *= 1.01
            getattr(scored.rows, what)[-1] += 0.01

    return spoil


SPOILED = {
    "gradient": "gradient",
    "factor": "gradient",
    "logp_T": "log p",
    "one_minus_p_T": "1 - p",
    "is_top1_T": "top 1",
    "entropy_T": "entropy",
    "sum_p_squared_T": "sum of p squared",
}


@pytest.mark.parametrize("device", fused.DEVICES)
@pytest.mark.parametrize("what", SPOILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_wrong_kernel_is_found_out_before_it_is_trusted(monkeypatch, caplog, triton_rows, device, what, dtype):
    score_whole_, spoil = triton_rows.score_whole_, spoiled(what)

    def wrong(logits_TV, *arguments, **options):
        scored = score_whole_(logits_TV, *arguments, **options)
        spoil(logits_TV, scored)
        return scored

    monkeypatch.setattr(triton_rows, "score_whole_", wrong)
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=20, V=33)
    logits_TV, targets_T = logits_TV.to(dtype).to(device), targets_T.to(device)
    plain_TV = logits_TV.clone()
    ours = scorer(logits_TV, targets_T, Transform(), EVERYTHING)
    theirs = softmax.score_block_(plain_TV, targets_T, Transform(), EVERYTHING)
    assert torch.equal(logits_TV, plain_TV)
    assert torch.equal(ours.rows.logp_T, theirs.rows.logp_T)
    assert warnings_of(caplog) == [
        f"dft: the Triton kernel does not work on {device}, going on without it: its {SPOILED[what]} on 8 rows of "
        f"{dtype} are not those of the plain code"
    ]


@pytest.mark.parametrize("device", fused.DEVICES)
def test_each_device_dtype_transform_and_statistic_is_compared_once(monkeypatch, triton_rows, device):
    compared, compare = [], scoring.compare_on_sample

    def count(score_, logits_TV, targets_T, transform, needs):
        compared.append((logits_TV.dtype, transform.softcap, needs))
        compare(score_, logits_TV, targets_T, transform, needs)

    monkeypatch.setattr(scoring, "compare_on_sample", count)
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    for _ in range(2):
        for T in (3, 20):
            for dtype in (torch.float32, torch.bfloat16):
                for transform in (Transform(), Transform(1.0, 5.0)):
                    for needs in (frozenset(), EVERYTHING):
                        logits_TV, targets_T = problems.logits_with_probability(0.3, T=T, V=33)
                        scorer(logits_TV.to(device, dtype), targets_T.to(device), transform, needs)
    assert len(compared) == len(set(compared)) == 8


def placed(like_TV, *, stride, ahead):
    """The same numbers in rows that start `stride` apart, the first after `ahead` columns."""
    T, V = like_TV.shape
    return like_TV.new_empty(ahead + T * stride)[ahead:].view(T, stride)[:, :V].copy_(like_TV)


@pytest.mark.parametrize("device", fused.DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("stride", "ahead"), [(33, 0), (40, 0), (40, 1), (128, 0), (136, 8), (168, 0), (5000, 0)])
def test_what_is_compared_is_the_program_that_is_trusted(monkeypatch, triton_rows, device, dtype, stride, ahead):
    launched, score_whole_ = [], triton_rows.score_whole_

    def spied(logits_TV, targets_T, transform, needs, **options):
        launched.append(triton_rows.program_for(logits_TV, targets_T, transform, needs))
        return score_whole_(logits_TV, targets_T, transform, needs, **options)

    monkeypatch.setattr(triton_rows, "score_whole_", spied)
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=20, V=33)
    logits_TV = placed(logits_TV.to(device, dtype), stride=stride, ahead=ahead)
    # Not on 16 bytes.
    targets_T = torch.cat([targets_T[:1], targets_T]).to(device)[1:]
    scorer(logits_TV, targets_T, Transform())
    assert len(launched) == 2
    assert launched[0] == launched[1]


@pytest.mark.parametrize("device", fused.DEVICES)
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("vocabulary", lambda logits_TV: logits_TV[:, :17].contiguous()),
        ("unit", lambda logits_TV: placed(logits_TV, stride=36, ahead=0)),
        ("start", lambda logits_TV: placed(logits_TV, stride=33, ahead=1)),
    ],
)
def test_trust_in_one_program_is_no_trust_in_another(monkeypatch, caplog, triton_rows, device, name, other):
    score_whole_, trusted = triton_rows.score_whole_, []

    def wrong_elsewhere(logits_TV, targets_T, transform, needs, **options):
        program = triton_rows.program_for(logits_TV, targets_T, transform, needs)
        trusted.append(program)
        scored = score_whole_(logits_TV, targets_T, transform, needs, **options)
        if program != trusted[0]:
            logits_TV.mul_(3)
        return scored

    monkeypatch.setattr(triton_rows, "score_whole_", wrong_elsewhere)
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=20, V=33)
    logits_TV, targets_T = logits_TV.to(device), targets_T.clamp(max=16).to(device)
    scorer(logits_TV.clone(), targets_T, Transform())
    assert not warnings_of(caplog)
    ours_TV, theirs_TV = other(logits_TV), other(logits_TV).clone()
    scorer(ours_TV, targets_T, Transform())
    softmax.score_block_(theirs_TV, targets_T, Transform())
    torch.testing.assert_close(ours_TV, theirs_TV)
    assert "its gradient on 8 rows" in caplog.text


@pytest.mark.parametrize("device", fused.DEVICES)
def test_rows_that_hold_no_numbers_do_not_cost_the_kernel_its_trust(monkeypatch, caplog, triton_rows, device):
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=4, V=33)
    logits_TV[0, 3], logits_TV[1], logits_TV[2, targets_T[2]] = torch.nan, -torch.inf, -torch.inf
    scorer(logits_TV.to(device), targets_T.to(device), Transform(), EVERYTHING)
    assert scorer._trusted
    assert not warnings_of(caplog)


def test_a_kernel_that_takes_denormals_for_0_is_trusted():
    def flushing_(logits_TV, *args):
        scored = softmax.score_block_(logits_TV, *args)
        tiny = torch.finfo(torch.float32).tiny
        logits_TV.masked_fill_(logits_TV.abs() < tiny, 0)
        left_T = scored.rows.one_minus_p_T
        return dataclasses.replace(
            scored, rows=dataclasses.replace(scored.rows, one_minus_p_T=left_T.where(left_T > tiny, 0))
        )

    logits_TV = torch.randn(9, 19, generator=torch.Generator().manual_seed(0))
    logits_TV[:, 0] += torch.linspace(80, 104, 9)
    targets_T = torch.zeros(9, dtype=torch.int64)
    scoring.compare_on_sample(flushing_, logits_TV, targets_T, Transform(), frozenset())
