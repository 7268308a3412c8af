"""The Triton kernel for rows of logits: on a GPU (`-m gpu`), or in Triton's interpreter (`nox -s aot`)."""

from __future__ import annotations

import math

import pytest
import torch
from support import fused, oracle, problems

from dft_plugin.kernels import Transform, scoring, softmax

triton_rows = pytest.importorskip("dft_plugin.kernels.triton_rows", reason="needs triton", exc_type=ImportError)

pytestmark = [fused.FILTER, pytest.mark.parametrize("device", fused.DEVICES)]
EVERYTHING = frozenset({"entropy", "sum_p_squared"})
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TRANSFORMS = [Transform(), Transform(0.7), Transform(-0.5), Transform(0.5, 5.0), Transform(-2.0, 30.0)]
STATISTICS = ("logp_T", "one_minus_p_T", "entropy_T", "sum_p_squared_T")


def rows_of(T, V, dtype, device, scale=1.0):
    """Random logits; the first target is nearly certain, the second nearly impossible, then every other likely."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = 4 * torch.randn(T, V, generator=generator)
    targets_T = torch.randint(V, (T,), generator=generator)
    targets_T[2::2] = (scale * logits_TV).argmax(1)[2::2]
    logits_TV[0, targets_T[0]] = math.copysign(26.0, scale)
    logits_TV[1, targets_T[1]] = -math.copysign(60.0, scale)
    return logits_TV.to(dtype).to(device), targets_T.to(device)


def gradient(logits_TV, scored):
    return logits_TV.double() * scored.inverse_norm_T[:, None]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("V", [1, 2, 3, 129, 1003, 4096, 6011])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_and_gradient_are_those_of_float64(device, dtype, V, transform):
    logits_TV, targets_T = rows_of(6, V, dtype, device, transform.scale)
    raw_TV = logits_TV.double().requires_grad_()
    x_TV = transform(raw_TV)
    logp_T, p_TV = oracle.log_probabilities(x_TV, targets_T).detach(), x_TV.detach().softmax(1)
    (truth_TV,) = torch.autograd.grad(x_TV, raw_TV, 6 * oracle.logits_gradient(x_TV.detach(), targets_T, oracle.nll))

    scored = triton_rows.score_whole_(logits_TV, targets_T, transform, EVERYTHING)
    near = {"rtol": 5e-6, "atol": 1e-30, "check_dtype": False}
    torch.testing.assert_close(scored.rows.logp_T, logp_T, **near)
    torch.testing.assert_close(scored.rows.one_minus_p_T, -logp_T.expm1(), **near)
    torch.testing.assert_close(scored.rows.sum_p_squared_T, p_TV.square().sum(1), **near)
    entropy_T = torch.special.entr(p_TV).sum(1)
    torch.testing.assert_close(scored.rows.entropy_T, entropy_T, rtol=5e-6, atol=1e-6, check_dtype=False)
    assert scored.rows.logp_T.dtype == scored.inverse_norm_T.dtype == torch.float32
    assert torch.equal(scored.rows.is_top1_T, logp_T >= x_TV.log_softmax(1).amax(1) - 1e-12)
    # In every single row: one whose p is near 1 has a small gradient. (The interpreter rounds bfloat16 down.)
    error_T = (gradient(logits_TV, scored) - truth_TV).norm(dim=1)
    assert (error_T <= (torch.finfo(dtype).eps + 5e-6) * truth_TV.norm(dim=1)).all()


@pytest.mark.parametrize("V", [37, 50_257])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_stores_what_the_plain_code_stores(device, dtype, V):
    logits_TV, targets_T = rows_of(4, V, dtype, device)
    plain_TV = logits_TV.clone()
    ours = triton_rows.score_whole_(logits_TV, targets_T, Transform(0.5, 30.0), peak=32.0)
    theirs = softmax.score_block_(plain_TV, targets_T, Transform(0.5, 30.0), peak=32.0)
    torch.testing.assert_close(ours.inverse_norm_T, theirs.inverse_norm_T, rtol=2e-6, atol=0)
    tiny = 0.0 if dtype == torch.bfloat16 else torch.finfo(torch.float16).tiny / 512
    torch.testing.assert_close(logits_TV, plain_TV, rtol=1.01 * torch.finfo(dtype).eps + 1e-5, atol=tiny)
    assert ours.rows.entropy_T is ours.rows.sum_p_squared_T is None


def test_autograd_notices_that_saved_logits_were_overwritten(device):
    logits_TV, targets_T = rows_of(4, 37, torch.float32, device)
    saved_TV = logits_TV.requires_grad_().tanh()
    triton_rows.score_whole_(saved_TV.detach(), targets_T, Transform())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved_TV.sum().backward()


def test_logits_of_an_evaluation_in_inference_mode_are_scored(device):
    logits_TV, targets_T = rows_of(4, 37, torch.float32, device)
    expected = softmax.score_block_(logits_TV.clone(), targets_T, Transform())
    with torch.inference_mode():
        scored = triton_rows.score_whole_(logits_TV * 1, targets_T, Transform())
    torch.testing.assert_close(scored.rows.logp_T, expected.rows.logp_T)


@pytest.mark.parametrize("width", [1003, 1008, 2048])
def test_rows_may_stand_in_a_wider_buffer_and_leave_the_rest_of_it_alone(device, width):
    logits_TV, targets_T = rows_of(5, 1003, torch.bfloat16, device)
    buffer = torch.full((5, width + 8), 7.0, dtype=torch.bfloat16, device=device)
    view_TV = buffer[:, 5:1008]
    view_TV.copy_(logits_TV)
    ours = triton_rows.score_whole_(view_TV, targets_T, Transform())
    theirs = triton_rows.score_whole_(logits_TV, targets_T, Transform())
    assert torch.equal(view_TV, logits_TV)
    assert torch.equal(ours.rows.logp_T, theirs.rows.logp_T)
    assert (buffer[:, :5] == 7).all()
    assert (buffer[:, 1008:] == 7).all()


@pytest.mark.parametrize("launch", [(32, 1), (256, 4), (1024, 8), (4096, 16)])
def test_the_launch_changes_no_number(device, launch):
    logits_TV, targets_T = rows_of(5, 1003, torch.float32, device)
    other_TV = logits_TV.clone()
    ours = triton_rows.score_whole_(logits_TV, targets_T, Transform(), EVERYTHING, launch=triton_rows.Launch(*launch))
    theirs = softmax.score_block_(other_TV, targets_T, Transform(), EVERYTHING)
    for name in STATISTICS:
        torch.testing.assert_close(getattr(ours.rows, name), getattr(theirs.rows, name), rtol=5e-6, atol=1e-6)
    assert oracle.gap(gradient(logits_TV, ours), gradient(other_TV, theirs)) < 1e-6


INF, NAN, LOWEST = math.inf, math.nan, -3.3895e38
ROWS = {
    "masked": [[1.0, -INF, 2.0, -INF, 0.5], 0],
    "all masked but the target": [[-INF, -INF, 2.0, -INF, -INF], 2],
    "target masked": [[1.0, -INF, 2.0, 0.0, 0.5], 1],
    "all masked": [[-INF] * 5, 1],
    "masked by the lowest number": [[LOWEST, LOWEST, 5.0, 1.0, LOWEST], 2],
    "all the lowest but the target": [[LOWEST, LOWEST, 5.0, LOWEST, LOWEST], 2],
    "all the lowest": [[LOWEST] * 5, 2],
    "certain": [[1e5, 0.0, 0.0, -1.0, 2.0], 0],
    "impossible": [[1e5, 0.0, 0.0, -1.0, 2.0], 1],
    "huge": [[1e30, -1e30, 1e30, 1e30, 0.0], 0],
    "equal": [[3.0] * 5, 4],
    "equal and large": [[60000.0] * 5, 4],
    "infinite": [[1.0, INF, 2.0, 0.0, 0.5], 0],
    "infinite target": [[1.0, INF, 2.0, 0.0, 0.5], 1],
    "NaN": [[1.0, NAN, 2.0, 0.0, 0.5], 2],
    "NaN target": [[1.0, NAN, 2.0, 0.0, 0.5], 1],
}


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_at_the_ends_of_numbers_it_says_what_the_plain_code_says(device, name, dtype, softcap):
    row, target = ROWS[name]
    # A row within a block, and one that comes before, or after, blocks of others.
    for before, after in ((0, 0), (300, 0), (0, 300)):
        logits_TV = torch.tensor([[row[0]] * before + row + [row[-1]] * after], device=device).to(dtype)
        targets_T, other_TV = torch.tensor([before + target], device=device), logits_TV.clone()
        transform, launch = Transform(1.0, softcap), triton_rows.Launch(64, 1)
        ours = triton_rows.score_whole_(logits_TV, targets_T, transform, EVERYTHING, launch=launch)
        theirs = softmax.score_block_(other_TV, targets_T, transform, EVERYTHING)
        for statistic in STATISTICS:
            found, expected = getattr(ours.rows, statistic), getattr(theirs.rows, statistic)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6, equal_nan=True)
        assert torch.equal(ours.rows.is_top1_T, theirs.rows.is_top1_T)
        torch.testing.assert_close(
            gradient(logits_TV, ours),
            gradient(other_TV, theirs),
            rtol=1.01 * torch.finfo(dtype).eps + 1e-5,
            atol=2e-7,
            equal_nan=True,
        )


@pytest.mark.parametrize("p", [1e-30, 1e-9, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9])
def test_log_p_and_1_minus_p_keep_their_digits_in_every_single_row(device, p):
    logits_TV, targets_T = problems.logits_with_probability(p, T=20)
    truth_T = oracle.log_probabilities(logits_TV, targets_T)
    rows = triton_rows.score_whole_(logits_TV.to(device), targets_T.to(device), Transform()).rows
    assert rows.logp_T.tolist() == pytest.approx(truth_T.tolist(), rel=5e-6, abs=0)
    assert rows.one_minus_p_T.tolist() == pytest.approx((-truth_T.expm1()).tolist(), rel=5e-6, abs=0)


@pytest.mark.parametrize("value", [1e-6, 7e-4, 1.3e-3, 3.1e-3, 0.624, 0.626, 3.0, 8.0, 40.0])
def test_a_softcap_and_its_slope_keep_their_digits(device, value):
    raw_TV = torch.tensor([[value, -value, 0.0]], device=device)
    truth_TV = raw_TV.double().requires_grad_()
    x_TV = 1e3 * truth_TV.tanh()
    (x_TV[0, 0] - x_TV[0, 2]).backward()
    scored = triton_rows.score_whole_(raw_TV, torch.tensor([2], device=device), Transform(1e3, 1e3))
    p_TV = x_TV.detach().softmax(1)
    logp = oracle.log_probabilities(x_TV.detach(), torch.tensor([2], device=device)).item()
    assert scored.rows.logp_T.item() == pytest.approx(logp, rel=2e-6)
    slope = 1 / math.cosh(value) ** 2
    expected = 1e3 * slope * p_TV[0, 0].item()
    # A capped logit near 1000 has steps of 6e-5, which the exponential makes relative.
    assert gradient(raw_TV, scored)[0, 0].item() == pytest.approx(expected, rel=1e-3 if value < 1 else 1e-4, abs=1e-36)


def test_a_sum_beyond_the_range_of_float16_does_not_overflow_its_buffer(device):
    logits_TV = torch.zeros(1, 100_000, dtype=torch.float16, device=device)
    scored = triton_rows.score_whole_(logits_TV, torch.tensor([0], device=device), Transform())
    assert gradient(logits_TV, scored)[0, 0].item() == pytest.approx(-0.99999, rel=1e-6)


@pytest.mark.parametrize("target", [-100, -1, 11, 1 << 40])
def test_a_target_that_is_none_reads_no_memory_and_makes_no_loss(device, target):
    logits_TV = torch.zeros(1, 11, device=device)
    rows = triton_rows.score_whole_(logits_TV, torch.tensor([target], device=device), Transform()).rows
    assert rows.logp_T.isnan().all()


def test_what_the_kernel_does_not_take(device):
    logits_TV = torch.zeros(4, 6, device=device)
    assert triton_rows.takes(logits_TV)
    assert triton_rows.takes(logits_TV[:, 1:])
    assert triton_rows.takes(logits_TV[:, ::6])
    assert not triton_rows.takes(logits_TV.double())
    assert not triton_rows.takes(logits_TV.t())
    assert not triton_rows.takes(logits_TV[:, ::2])
    assert not triton_rows.takes(logits_TV[:, :0])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device_once_it_is_trusted(monkeypatch, device):
    if device == "cpu":
        pytest.skip("a CPU has nothing to wait for")
    scorer = fused.scorer_for(device, monkeypatch)
    logits_TV, targets_T = rows_of(6, 1003, torch.bfloat16, device)
    scorer(logits_TV, targets_T, Transform(), EVERYTHING)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scorer(logits_TV, targets_T, Transform(), EVERYTHING)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_cuda_graph_holds_the_kernel_once_it_is_trusted(monkeypatch, caplog, device, trusted):
    if device == "cpu":
        pytest.skip("a CPU has no graphs of kernels")
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    logits_TV, targets_T = rows_of(6, 1003, torch.float32, device)
    expected = softmax.score_block_(logits_TV.clone(), targets_T, Transform())
    warm, side = scoring.RowScorer(device, softmax.score_block_, fused=trusted), torch.cuda.Stream()
    with torch.cuda.stream(side):
        (scorer if trusted else warm)(logits_TV.clone(), targets_T, Transform())
    torch.cuda.synchronize()
    graph, static_TV = torch.cuda.CUDAGraph(), logits_TV.clone()
    with torch.cuda.graph(graph):
        scored = scorer(static_TV, targets_T, Transform())
    static_TV.copy_(logits_TV)
    graph.replay()
    torch.testing.assert_close(scored.rows.logp_T, expected.rows.logp_T, rtol=5e-6, atol=0)
    assert bool(scorer._trusted) is trusted
    assert not caplog.records
