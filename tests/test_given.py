"""What a loop of one's own gives by mistake: an error of ours, which says what was found and what to give."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import oracle, problems

from dft_plugin import Facts, attach, linear_token_loss, token_loss, token_loss_from_logp
from dft_plugin.errors import DftError, UnsupportedModelError
from dft_plugin.objectives import DFT

HIDDEN = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([[1, 2, 3], [4, 5, -100]])
LOGITS = HIDDEN @ WEIGHT.t()
OUTPUT = SimpleNamespace(last_hidden_state=HIDDEN, logits=LOGITS)

OF_HIDDEN = [
    ({"hidden": HIDDEN.numpy()}, "hidden is a ndarray; a tensor [..., H] is needed: `torch.as_tensor(...)`."),
    ({"hidden": [HIDDEN, HIDDEN]}, "hidden is a list; a tensor [..., H] is needed: of several, give one: `hidden_st"),
    ({"hidden": OUTPUT}, "of what a model returns, give its `.last_hidden_state`."),
    ({"hidden": torch.nn.Linear(8, 8)}, "hidden is a Linear; a tensor [..., H] is needed: call it, and give what it"),
    ({"hidden": None}, "hidden is None; a tensor [..., H] is needed"),
    (
        {"hidden": LABELS},
        "hidden has dtype torch.int64; a tensor [..., H] of floats is needed, of 16 bits or more: what",
    ),
    ({"hidden": torch.tensor(1.0)}, "hidden has shape (); [..., H] is needed"),
    (
        {"weight": WEIGHT.t()},
        "weight has shape (8, 30), and hidden (2, 3, 8): [V, H] is needed, with H = 8. Give its t",
    ),
    ({"weight": WEIGHT.flatten()}, "Give the weight of the head that follows these hidden states."),
    ({"weight": torch.nn.Linear(8, 30)}, "weight is a Linear; a tensor [V, H] is needed: of a layer, give its `.weig"),
    ({"weight": WEIGHT.numpy()}, "weight is a ndarray; a tensor [V, H] is needed: `torch.as_tensor(...)`."),
    ({"weight": WEIGHT.to(torch.uint8)}, "weight has dtype torch.uint8; floats are needed. Of a head in 4 or 8 bit"),
    (
        {"bias": torch.zeros(8)},
        "bias has shape (8,) and dtype torch.float32; floats [V] are needed, with V = 30. Give",
    ),
    ({"bias": [0.0] * 30}, "bias is a list; a tensor [V] or None is needed: `torch.as_tensor(...)`."),
    ({"bias": torch.zeros(30, dtype=torch.long)}, "and dtype torch.int64; floats [V] are needed"),
    (
        {"softcap": 0},
        "softcap is 0; a number above 0 that float32 can hold is needed, or None where the model does not",
    ),
    ({"softcap": -3.0}, "softcap is -3.0; a number above 0 that float32 can hold is needed"),
    ({"softcap": float("nan")}, "softcap is nan; a number above 0 that float32 can hold is needed"),
    ({"softcap": "30"}, "softcap is '30'; a number above 0 that float32 can hold is needed"),
    (
        {"softcap": torch.tensor(3.0)},
        "softcap is a Tensor; a number above 0 that float32 can hold is needed, or None where",
    ),
    ({"logit_scale": 0}, "logit_scale is 0; a number other than 0 that float32 can hold is needed. Leave it"),
    ({"logit_scale": torch.tensor(2.0)}, "of a tensor give `.item()`: no gradient goes through it."),
    ({"logit_scale": float("inf")}, "logit_scale is inf; a number other than 0 that float32 can hold is needed."),
    ({"logit_scale": 1e308}, "logit_scale is 1e+308; a number other than 0 that float32 can hold is needed."),
    ({"softcap": 1e-320}, "softcap is 1e-320; a number above 0 that float32 can hold is needed"),
    ({"logit_scale": None}, "logit_scale is None; a number other than 0 that float32 can hold is needed."),
]

OF_LOGITS = [
    ({"logits": LOGITS.numpy()}, "logits is a ndarray; a tensor [..., V] is needed: `torch.as_tensor(...)`."),
    ({"logits": OUTPUT}, "of what a model returns, give its `.logits`."),
    (
        {"logits": LABELS},
        "logits has dtype torch.int64; a tensor [..., V] of floats is needed, of 16 bits or more: what",
    ),
    (
        {"logits": torch.zeros(2, 3, 0)},
        "logits has shape (2, 3, 0); [..., V] is needed, with at least one number each.",
    ),
]

OF_BOTH = [
    (
        {"labels": LABELS.tolist()},
        "labels is a list; a tensor of integers, of shape (2, 3), is needed: `torch.as_tensor",
    ),
    ({"labels": LABELS.numpy()}, "labels is a ndarray; a tensor of integers, of shape (2, 3), is needed: `torch.as_t"),
    ({"labels": None}, "labels is None; a tensor of integers, of shape (2, 3), is needed"),
    ({"labels": {"labels": LABELS}}, "labels is a dict; a tensor of integers"),
    ({"labels": LABELS.float()}, "labels have dtype torch.float32; an integer dtype is needed (labels.long())."),
    (
        {"labels": LABELS[0]},
        "labels have shape (3,), and (2, 3) positions are to be scored. Give one label per position.",
    ),
    ({"labels": torch.zeros(2, 3, 30).long()}, "Labels are indices: `labels.argmax(-1)` of what is one-hot."),
    ({"labels": LABELS[:, 1:]}, "One of the two was cut. Give both whole, with `shift=True`"),
    ({"labels": LABELS[:, 1:], "shift": True}, "Give both whole: `shift` moves the labels"),
    (
        {"labels": LABELS + 100},
        "labels hold 105, but the model has 30 logits (allowed: 0 to 29, or -100 for positions to",
    ),
    (
        {"num_items": "3"},
        "num_items is '3'; a number or a tensor of one is needed, the target tokens of the whole opt",
    ),
    ({"num_items": True}, "num_items is True; a number or a tensor of one is needed"),
    ({"num_items": LABELS[0, 0] != -100}, "num_items is a tensor of torch.bool; a number or a tensor of one is"),
    ({"num_items": [3]}, "num_items is a list; a number or a tensor of one is needed"),
    ({"num_items": -1}, "num_items is -1; it counts target tokens, so 0 or more is allowed."),
    ({"num_items": float("nan")}, "num_items is nan; it counts target tokens, so 0 or more is allowed."),
    ({"num_items": 0}, "num_items is 0, and this call scores"),
    ({"num_items": torch.tensor(0.0)}, "num_items is 0, and this call scores"),
    ({"shift": "no"}, "shift is 'no'; True or False is allowed."),
    ({"num_items": torch.tensor([1, 2])}, "num_items has shape (2,); one number is allowed."),
    ({"ignore_index": "-100"}, "ignore_index is '-100'; an integer is needed. Leave it out for -100."),
    ({"ignore_index": None}, "ignore_index is None; an integer is needed."),
    (
        {"facts": {"ratio": LABELS}},
        "facts is a dict; a `dft_plugin.Facts` is needed: `facts=dft_plugin.Facts(columns=",
    ),
    (
        {"facts": Facts(columns={"a": LABELS[0]})},
        "facts: columns['a'] has shape (3,); a tensor of the labels' shape, (2",
    ),
    ({"facts": Facts(columns={"a": [1, 2]})}, "facts: columns['a'] is a list; a tensor of the labels' shape"),
    ({"facts": Facts(sequence_BS=LABELS[0])}, "facts: sequence_BS has shape (3,); a tensor of the labels' shape"),
    ({"objective": DFT}, "`objective` is DFT, which is no objective. Give `objective=DFT()`, or a name"),
    ({"objective": torch.nn.CrossEntropyLoss()}, "Give a subclass of `dft_plugin.Objective`, made: `MyObjective()`"),
    ({"objective": 3}, "`objective: 3` is a int; write `objective: dft`, or a mapping with `name`."),
    ({"objective": None}, "`objective:` has no value. Write `objective: dft`"),
    ({"objective": "DFT"}, "`objective`: `DFT` is not a known name. Did you mean `dft`?"),
    ({"objective": {"alpha": -1}}, "`objective.alpha: -1`: Input should be greater than or equal to 0. Leave it out"),
    (
        {"objective": {"kernel": "triton"}},
        "`objective.kernel`: `triton` is not a known name. Allowed: auto, logits, chunked",
    ),
]


def of_hidden(**given):
    return linear_token_loss(**{"hidden": HIDDEN, "weight": WEIGHT, "labels": LABELS, **given})


def of_logits(**given):
    return token_loss(**{"logits": LOGITS, "labels": LABELS, **given})


def of_logp(**given):
    return token_loss_from_logp(**{"logp": LOGITS.log_softmax(-1)[..., 0], "targets": LABELS, **given})


CASES = [
    *((of_hidden, *case) for case in [*OF_HIDDEN, *OF_BOTH]),
    *((of_logits, *case) for case in [*OF_LOGITS, *OF_BOTH]),
]


@pytest.mark.parametrize(("loss", "given", "says"), CASES)
def test_a_wrong_argument_is_an_error_of_ours_with_what_to_give(loss, given, says):
    with pytest.raises(DftError) as refused:
        loss(**given)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("loss", "name", "dense"),
    [
        (of_hidden, "hidden", HIDDEN),
        (of_hidden, "weight", WEIGHT),
        (of_hidden, "labels", LABELS),
        (of_hidden, "bias", torch.ones(30)),
        (of_logits, "logits", LOGITS),
        (of_logits, "labels", LABELS),
        (of_logits, "num_items", torch.tensor([5])),
        (of_logp, "logp", LOGITS[..., 0]),
        (of_logp, "entropy", LOGITS[..., 0]),
        (of_logp, "targets", LABELS),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("made", [torch.Tensor.to_sparse, lambda dense: torch.nested.nested_tensor([dense])])
def test_a_tensor_that_is_not_dense_is_refused(loss, name, dense, made):
    with pytest.raises(
        DftError, match=rf"^{name} is a tensor (nested|of layout torch.sparse_coo); a dense one is need"
    ):
        loss(**{name: made(dense)})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_facts_that_are_not_dense_are_refused():
    for sparse in (LABELS.to_sparse(), torch.nested.nested_tensor([LABELS])):
        with pytest.raises(DftError, match=r"^facts: columns\['a'\] is a tensor"):
            of_logits(facts=Facts(columns={"a": sparse}))


@pytest.mark.parametrize("num_items", [5, 5.0, np.int64(5), np.float32(5), torch.tensor(5), torch.tensor([5.0])])
def test_any_number_counts(num_items):
    assert of_hidden(num_items=num_items).item() == pytest.approx(of_hidden().item())


def test_a_trainer_is_no_model():
    class Trainer:
        def get_train_dataloader(self):
            return None

    with pytest.raises(
        UnsupportedModelError, match=r"Trainer is a trainer, and a model is needed\. Use dft_plugin\.a"
    ):
        attach(Trainer())


@pytest.mark.parametrize("loss", [of_hidden, of_logits])
@pytest.mark.parametrize("ignore_index", [-100, 5])
def test_labels_of_a_batch_are_shifted_where_that_is_said(loss, ignore_index):
    """The oracle cuts by hand: position s predicts the token at s + 1, and the last predicts nothing."""
    labels = torch.where(LABELS == -100, ignore_index, LABELS)
    value = loss(labels=labels, shift=True, ignore_index=ignore_index)
    targets = labels[:, 1:].reshape(-1)
    kept = targets != ignore_index
    logits = LOGITS[:, :-1].reshape(-1, 30).double()[kept]
    assert value.item() == pytest.approx(oracle.token_losses(logits, targets[kept]).mean().item(), rel=1e-6)


def test_facts_of_a_batch_are_shifted_with_its_labels():
    factor = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]])
    objective = {"name": "nll", "weights": {"column": "factor"}}
    value = of_logits(shift=True, objective=objective, facts=Facts(columns={"factor": factor}))
    targets = LABELS[:, 1:]
    cut = of_logits(
        logits=LOGITS[:, :-1], labels=targets, objective=objective, facts=Facts(columns={"factor": factor[:, 1:]})
    )
    assert value.item() == pytest.approx(cut.item(), rel=1e-6)


def test_where_sequences_begin_is_shifted_too():
    places = Facts(sequence_BS=torch.tensor([[0, 0, 1]]), position_BS=torch.tensor([[0, 1, 0]]))
    shifted = places.shifted()
    assert shifted.sequence_BS.tolist() == [[0, 1, 0]]
    assert shifted.position_BS.tolist() == [[1, 0, 0]]
    assert Facts().shifted() == Facts()


def test_the_gradient_of_shifted_labels_is_that_of_the_next_token():
    made = problems.problem(problems.ODD_SHAPES[-1])
    hidden = made.hidden_TD.detach()[None].requires_grad_()
    labels = made.targets_T[None]
    linear_token_loss(hidden, made.weight_VD.detach(), labels, shift=True).backward()
    whole = hidden.grad.clone()
    hidden.grad = None
    linear_token_loss(hidden[:, :-1], made.weight_VD.detach(), labels[:, 1:]).backward()
    assert oracle.gap(hidden.grad, whole) < 1e-6
    assert not whole[:, -1].any()
