"""`token_loss` and `linear_token_loss` against the oracle, and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracle, problems

from dft_plugin import Facts, linear_token_loss, token_loss
from dft_plugin.errors import InputError, LabelError, SettingsError
from dft_plugin.objectives import DFT, NLL, Objective

IGNORED = -100

every_objective = pytest.mark.parametrize(
    ("objective", "weight"),
    [
        pytest.param("dft", oracle.dft, id="dft"),
        pytest.param("nll", oracle.nll, id="nll"),
        pytest.param({"name": "dft", "alpha": 0.5}, oracle.family(alpha=0.5), id="alpha"),
        pytest.param({"floor": 0.1}, oracle.family(floor=0.1), id="floor"),
        pytest.param({"alpha": "2", "floor": 0.01}, oracle.family(2, 0.01), id="alpha-and-floor"),
        pytest.param(DFT(alpha=0.7), oracle.family(alpha=0.7), id="object"),
    ],
)

EXTREMES = [1e-30, 1e-9, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9]


def through_identity(logits, labels, **options):
    """`linear_token_loss` with a head that returns its input, so that no GEMM rounds."""
    weight = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return linear_token_loss(logits, weight, labels, **options)


def through_trained_identity(logits, labels, **options):
    """The same with a head that is trained, for which another kernel is chosen."""
    weight = torch.eye(logits.shape[-1], dtype=logits.dtype, requires_grad=True)
    return linear_token_loss(logits, weight, labels, **options)


every_way = pytest.mark.parametrize("loss", [token_loss, through_identity, through_trained_identity])


def assert_exact(value, gradients, truth, true_gradients, rounded=0.0):
    """`rounded`: the size of the largest logit, where a kernel rounds it: `blocked` does, which takes it in bits."""
    rounding = rounded * torch.finfo(torch.float32).eps / 2
    assert value.item() == pytest.approx(truth.item(), rel=1e-6 + rounding, abs=0)
    assert oracle.gap(gradients, true_gradients) < 1e-5


@pytest.mark.parametrize("shape", problems.ODD_SHAPES)
@every_objective
def test_token_loss_is_exact(shape, objective, weight):
    made = problems.problem(shape)
    logits = made.logits().detach().float().requires_grad_()
    value = token_loss(logits, made.targets_T, objective=objective)
    value.backward()
    truth = oracle.loss(logits.detach(), made.targets_T, weight)
    gradient = oracle.logits_gradient(logits.detach(), made.targets_T, weight)
    assert_exact(value, logits.grad, truth, gradient)


@pytest.mark.parametrize("shape", problems.ODD_SHAPES)
@every_objective
def test_linear_token_loss_is_exact(shape, objective, weight):
    made = problems.problem(shape, bias=True, scale=0.5, softcap=10.0)
    value = linear_token_loss(
        made.hidden_TD,
        made.weight_VD,
        made.targets_T,
        bias=made.bias_V,
        objective=objective,
        logit_scale=0.5,
        softcap=10.0,
    )
    truth, *true_gradients = made.truth(weight)
    assert_exact(value, torch.autograd.grad(value, made.inputs), truth, true_gradients)


@pytest.mark.parametrize("p", EXTREMES)
@every_way
def test_a_probability_near_0_or_1_keeps_its_digits(loss, p):
    logits, labels = problems.logits_with_probability(p)
    logits.requires_grad_()
    value = loss(logits, labels)
    value.backward()
    gradient = oracle.logits_gradient(logits.detach(), labels)
    rounded = logits.detach().abs().max().item() if loss is through_identity else 0.0
    assert_exact(value, logits.grad, oracle.loss(logits.detach(), labels), gradient, rounded)


@pytest.mark.parametrize("p", EXTREMES)
def test_the_extremes_are_what_they_claim_to_be(p):
    logp = oracle.log_probabilities(*problems.logits_with_probability(p))
    assert logp.exp().numpy() == pytest.approx(p, rel=1e-4)
    assert (-logp.expm1()).numpy() == pytest.approx(1 - p, rel=1e-4)


@pytest.mark.parametrize("p", [1 - 1e-6, 1 - 1e-9])
def test_the_naive_formula_has_no_digits_where_ours_are_checked(p):
    logits, labels = problems.logits_with_probability(p)
    nll_T = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    naive = float((torch.exp(-nll_T) * nll_T).mean())
    assert naive != pytest.approx(float(oracle.loss(logits, labels)), rel=1e-2)


@every_way
def test_alpha_0_is_nll_to_the_bit(loss):
    logits, labels = problems.logits_with_probability(0.3, T=20, V=11)
    of_alpha, of_nll = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = loss(of_alpha, labels, objective={"alpha": 0})
    expected = loss(of_nll, labels, objective="nll")
    assert value == expected
    value.backward()
    expected.backward()
    assert torch.equal(of_alpha.grad, of_nll.grad)


@every_way
def test_float64_stays_float64(loss):
    logits, labels = problems.logits_with_probability(0.3, T=20, V=11)
    value = loss(logits.double(), labels)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(float(oracle.loss(logits, labels)), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_way
def test_the_loss_of_half_precision_inputs_is_float32_and_their_gradient_is_not(loss, dtype):
    logits, labels = problems.logits_with_probability(0.3, T=20, V=11)
    logits = logits.to(dtype).requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert (value.dtype, logits.grad.dtype) == (torch.float32, dtype)


@every_way
def test_any_leading_dimensions_will_do(loss):
    logits, labels = problems.logits_with_probability(0.3, T=12, V=11)
    expected = loss(logits, labels)
    assert loss(logits.view(2, 3, 2, 11), labels.view(2, 3, 2)) == expected
    assert loss(logits[0], labels[0]) == loss(logits[:1], labels[:1])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
@every_way
def test_labels_may_have_any_integer_dtype(loss, dtype):
    logits, labels = problems.logits_with_probability(0.3, T=12, V=11)
    labels[::3] = IGNORED
    assert loss(logits, labels.to(dtype)) == loss(logits, labels)


def test_inputs_need_not_be_contiguous():
    made = problems.problem((12, 7, 11))
    truth = made.truth()
    hidden = made.hidden_TD.detach().t().contiguous().t().requires_grad_()
    weight = made.weight_VD.detach().t().contiguous().t().requires_grad_()
    labels = torch.stack([made.targets_T, made.targets_T], 1)[:, 0]
    assert not any(tensor.is_contiguous() for tensor in (hidden, weight, labels))
    value = linear_token_loss(hidden, weight, labels)
    assert_exact(value, torch.autograd.grad(value, [hidden, weight]), truth[0], truth[1:])

    logits = made.logits().detach().float()
    logits_VT = logits.t().contiguous().requires_grad_()
    value = token_loss(logits_VT.t(), labels)
    value.backward()
    assert_exact(value, logits_VT.grad.t(), truth[0], oracle.logits_gradient(logits, labels))


def test_a_masked_vocabulary_has_no_probability_and_no_gradient():
    bias = torch.tensor([0.0, 1.0, -math.inf])
    hidden = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 0, 2])  # the last target is masked: p = 0
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    logits = (hidden.detach() @ weight.t() + bias).requires_grad_()
    of_logits = token_loss(logits, labels)
    of_hidden = linear_token_loss(hidden, weight, labels, bias=bias)
    truth = oracle.token_losses(logits.detach()[:3, :2], labels[:3]).sum() / 4
    assert of_logits.item() == pytest.approx(truth.item(), rel=1e-6)
    assert of_hidden.item() == pytest.approx(truth.item(), rel=1e-6)
    of_logits.backward()
    of_hidden.backward()
    assert logits.grad[:, 2].tolist() == [0, 0, 0, 0]
    assert logits.grad[3].tolist() == [0, 0, 0]
    assert oracle.gap(hidden.grad, logits.grad @ weight) < 1e-6
    assert token_loss(logits, labels, objective="nll") == math.inf


@every_way
def test_logits_of_100000_neither_overflow_nor_teach(loss):
    logits = torch.tensor([[1e5, 0.0, -1e5], [1e5, 0.0, -1e5]]).requires_grad_()
    value = loss(logits, torch.tensor([0, 2]))  # certain, and impossible
    value.backward()
    assert value == 0
    assert logits.grad.abs().max() == 0
    nll = loss(logits.detach(), torch.tensor([0, 2]), objective="nll")
    assert nll == 1e5


@every_way
def test_a_scored_nan_is_not_hidden(loss):
    logits = torch.zeros(2, 3)
    logits[1, 1] = math.nan
    assert torch.isnan(loss(logits, torch.tensor([0, 0])))


@pytest.mark.parametrize("objective", ["nll", NLL(), {"name": "nll", "kernel": "auto"}])
@every_way
def test_an_objective_is_a_name_a_mapping_or_an_object(loss, objective):
    value = loss(torch.zeros(1, 4), torch.tensor([2]), objective=objective)
    assert value.item() == pytest.approx(math.log(4))


def test_the_kernel_of_a_mapping_is_heeded():
    # The naive kernel shows itself by the digits that it loses.
    logits, labels = problems.logits_with_probability(1 - 1e-9)
    truth = oracle.loss(logits, labels).item()
    value = through_identity(logits, labels, objective={"kernel": "chunked"})
    naive = through_identity(logits, labels, objective={"kernel": "reference"})
    assert value.item() == pytest.approx(truth, rel=1e-6)
    assert naive.item() != pytest.approx(truth, rel=1e-2)


@every_way
def test_an_objective_of_ones_own_needs_no_plugin(loss):
    class Doubled(Objective):
        """w = 2."""

        def weight(self, rows):
            return rows.logp_T.new_full(rows.logp_T.shape, 2.0)

    value = loss(torch.zeros(1, 4), torch.tensor([2]), objective=Doubled())
    assert value.item() == pytest.approx(2 * math.log(4))


@every_way
def test_an_unknown_objective_and_a_foreign_label_are_refused(loss):
    with pytest.raises(SettingsError, match=r"`dtf` is not a known name\. Did you mean `dft`\?"):
        loss(torch.zeros(1, 4), torch.tensor([2]), objective="dtf")
    with pytest.raises(LabelError, match="labels hold 4, but the model has 4 logits"):
        loss(torch.zeros(1, 4), torch.tensor([4]))


@pytest.mark.parametrize(
    ("shape", "next_step"),
    [((8, 30), "Give its transpose."), ((30, 7), "Give the weight of"), ((8,), "Give the weight of")],
)
def test_a_weight_that_does_not_fit_is_refused_with_what_to_give(shape, next_step):
    with pytest.raises(InputError, match=r"\[V, H\] is needed, with H = 8\. " + next_step):
        linear_token_loss(torch.zeros(4, 8), torch.zeros(shape), torch.zeros(4, dtype=torch.long))


def test_ids_are_always_learned_and_weighed():
    made = problems.problem(problems.ODD_SHAPES[-1])
    logits = made.logits().detach().double()
    number = int(made.targets_T[0])
    objective = {"always_learn": [number], "weights": {"tokens": {number: 3.0}}}
    nll_T = -oracle.log_probabilities(logits, made.targets_T)
    expected_T = torch.where(made.targets_T == number, 3 * nll_T, (-nll_T).exp() * nll_T)
    assert token_loss(logits, made.targets_T, objective=objective).item() == pytest.approx(expected_T.mean().item())


def test_words_for_tokens_and_columns_are_refused_by_what_to_give():
    objective = {"always_learn": "eos", "weights": {"column": "ratio", "tokens": {"</think>": 2.0}}}
    with pytest.raises(SettingsError) as raised:
        token_loss(torch.zeros(2, 5), torch.tensor([1, 2]), objective=objective)
    eos, text, column = raised.value.problems
    assert "('eos'), and this function has no tokenizer" in eos
    assert "Give ids in its place: `always_learn: [tokenizer.eos_token_id]`" in text
    assert "reads `ratio`, which this function was not given" in column
    assert "`facts=dft_plugin.Facts(columns={'ratio': tensor})`" in column


def test_a_layer_is_no_weight():
    with pytest.raises(InputError, match=r"weight is a Linear; a tensor .* of a layer, give its `.weight`"):
        linear_token_loss(torch.zeros(4, 8), torch.nn.Linear(8, 30), torch.zeros(4, dtype=torch.long))


def test_columns_of_the_facts_reach_the_objective():
    logits, labels = torch.randn(5, 9), torch.tensor([1, 2, 3, 4, 5])
    ref_logp = torch.tensor([-0.1, -1.0, -2.0, -0.5, -3.0])
    for reads in ({"name": "prift", "reference": "columns"}, "prift"):
        loss = token_loss(logits, labels, objective=reads, facts=Facts(columns={"ref_logp": ref_logp}))
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert loss.item() == pytest.approx((ref_logp.exp() * nll).mean().item(), rel=1e-5)


@pytest.mark.parametrize("reads", ["prift", "iw_sft", "psft", {"name": "dft", "weights": {"column": "ratio"}}])
def test_a_column_that_is_not_given_is_named(reads):
    with pytest.raises(SettingsError, match=r"`objective` reads `.*`, which this function was not given"):
        token_loss(torch.randn(5, 9), torch.tensor([1, 2, 3, 4, 5]), objective=reads)


@pytest.mark.parametrize("on_meta", [{"hidden"}, {"weight"}, {"labels"}, {"hidden", "weight", "labels"}])
def test_tensors_on_meta_are_refused_by_name(on_meta):
    given = {"hidden": torch.randn(7, 8), "weight": torch.randn(33, 8), "labels": torch.randint(33, (7,))}
    given = {name: tensor.to("meta") if name in on_meta else tensor for name, tensor in given.items()}
    named = " and ".join(f"`{name}`" for name in given if name in on_meta)
    with pytest.raises(InputError, match=f"^{named}: on `meta`, where tensors have shapes and no numbers"):
        linear_token_loss(**given)
    with pytest.raises(InputError, match=r"^`labels`: on `meta`"):
        token_loss(torch.randn(7, 33), given["labels"].to("meta"))
