"""Target `tensors`: the functions, given shapes, dtypes, strides, labels and counts of every kind, right or not.

Shapes: N positions, T scored ones, V vocabulary, H hidden size.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dft_plugin import Facts
from reliability.fuzz import oracles
from reliability.fuzz.values import ANYTHING

ARGUMENTS = (
    *("logits", "hidden", "weight", "bias", "labels", "num_items", "ignore_index", "objective", "facts", "logp"),
    *("targets", "logit_scale", "softcap", "clock", "entropy", "sum_p_squared"),
)
FLOATS = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTS = (torch.int64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
ODD = (
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool, torch.int64, torch.quint8, torch.float64),
    *(torch.float16, torch.bfloat16, torch.uint16, torch.complex128),
)
SHAPES = ((), (0,), (1,), (3,), (4,), (2, 3), (2, 0), (1, 1, 2), (2, 1))
LAYOUTS = ("plain", "plain", "transposed", "strided", "expanded", "offset", "flipped")
VALUES = ("small", "small", "small", "zeros", "large", "one large", "inf", "-inf", "nan", "all -inf")


@dataclass
class Case:
    """A call of one of the functions.

    Attributes:
        function: `logits`, `linear` or `logp`.
        scored: what is scored, [..., V] or [..., H]; for `logp` the logits that it is made of.
        labels: [...].
        loss: a key of `oracles.LOSSES`.
        weight: of the head; None but for `linear`.
        more: other arguments.
        wrong: what was put in the place of something right; empty: the call has to be answered.
    """

    function: str
    scored: Any
    labels: Any
    loss: str
    weight: Any = None
    more: dict[str, Any] = field(default_factory=dict)
    wrong: dict[str, Any] = field(default_factory=dict)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Return the same numbers in memory of another order; `expanded`: the first row in the place of each."""
    if tensor.dim() == 0 or not tensor.numel() or layout == "plain":
        return tensor
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        room = torch.zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype)
        room[..., ::2] = tensor
        return room[..., ::2]
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    if layout == "offset":
        room = torch.zeros(tensor.numel() + 3, dtype=tensor.dtype)
        room[3:] = tensor.reshape(-1)
        return room[3:].view(tensor.shape)
    # Torch flips no unsigned integers; what comes of it is contiguous again.
    return tensor if tensor.dtype in UNSIGNED else tensor.flip(-1)[..., torch.arange(tensor.shape[-1] - 1, -1, -1)]


def _numbers(seed: int, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "zeros":
        made.zero_()
    elif kind == "large":
        made *= 1000
    elif kind == "all -inf":
        made.fill_(-torch.inf)
    elif kind != "small" and made.numel():
        made.view(-1)[seed % made.numel()] = {
            "one large": 3e4,
            "inf": torch.inf,
            "-inf": -torch.inf,
            "nan": torch.nan,
        }[kind]
    return made.to(dtype)


WRONG: dict[str, st.SearchStrategy[Any]] = {
    "labels": st.one_of(ANYTHING, st.sampled_from([torch.tensor(1.5), torch.zeros(2, 3), torch.tensor([[[1]]])])),
    "scored": st.one_of(
        ANYTHING, st.sampled_from([torch.zeros(3, 0), torch.tensor(1.0), torch.zeros(2, 3, 4).to_sparse()])
    ),
    "weight": st.one_of(ANYTHING, st.sampled_from([torch.zeros(3), torch.zeros(0, 4), torch.zeros(4, 4).to_sparse()])),
    "num_items": st.one_of(
        ANYTHING,
        st.sampled_from([-1, 0, torch.tensor(0.0), torch.tensor([1, 2]), torch.tensor(True), torch.tensor(1j)]),
    ),
    "ignore_index": st.one_of(ANYTHING, st.integers(-(1 << 70), 1 << 70)),
    "objective": ANYTHING,
    "facts": st.one_of(
        ANYTHING, st.just(Facts(columns={"ratio": torch.ones(7)})), st.just(Facts(columns={"ratio": 1}))
    ),
    "logit_scale": ANYTHING,
    "softcap": ANYTHING,
    "bias": st.one_of(ANYTHING, st.just(torch.zeros(5)), st.just(torch.zeros(3, dtype=torch.int64))),
    "clock": ANYTHING,
    "entropy": st.one_of(ANYTHING, st.just(torch.zeros(2))),
    "dtype": st.sampled_from(ODD),
    "label dtype": st.sampled_from([torch.bool, torch.float32, torch.complex64, torch.quint8]),
    "label": st.sampled_from([-1, 99, 127, -101, -2]),
    "device": st.just("meta"),
}
OF_FUNCTION = {
    "logits": {
        "labels",
        "scored",
        "num_items",
        "ignore_index",
        "objective",
        "facts",
        "dtype",
        "label dtype",
        "label",
        "device",
    },
    "linear": set(WRONG) - {"clock", "entropy"},
    "logp": set(WRONG) - {"weight", "logit_scale", "softcap", "bias"},
}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a call; in one of two something is wrong with it."""
    function = draw(st.sampled_from(["logits", "linear", "linear", "logp"]))
    shape, vocab, width = draw(st.sampled_from(SHAPES)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    seed, dtype = draw(st.integers(0, 10**6)), draw(st.sampled_from(FLOATS))
    kind = draw(st.sampled_from(VALUES))
    losses = oracles.SIMPLE if kind not in ("small", "zeros") else tuple(oracles.LOSSES)
    loss = draw(st.sampled_from([one for one in losses if function != "logp" or one not in ("deft", "idft")]))
    last = width if function == "linear" else vocab
    scored = laid_out(_numbers(seed, (*shape, last), dtype, kind), draw(st.sampled_from(LAYOUTS)))
    shift = function != "logp" and bool(shape) and draw(st.booleans())
    ignore = draw(st.sampled_from([-100, -100, -100, -1, 0, vocab, 1 << 31, -(1 << 40)]))
    label_dtype = draw(st.sampled_from([*INTS, *UNSIGNED]))
    labels = _labels(draw, shape, vocab, ignore, label_dtype)
    case = Case(function, scored, labels, loss, more={"ignore_index": ignore})
    if shift:
        case.more["shift"] = True
    if function == "linear":
        _head(draw, case, vocab, width, dtype, seed)
    count = draw(
        st.sampled_from(
            [None, None, 1, 3, 2.5, torch.tensor(3), torch.tensor([2.0]), torch.tensor(4, dtype=torch.uint8)]
        )
    )
    if count is not None:
        case.more["num_items"] = count
    if draw(st.booleans()):
        _spoil(draw, case)
    return case


def _labels(draw: st.DrawFn, shape: tuple[int, ...], vocab: int, ignore: int, dtype: torch.dtype) -> Tensor:
    numbers = torch.Size(shape).numel()
    least, most = (0, 255) if dtype == torch.uint8 else (_range(dtype))
    kept = [number for number in range(vocab) if number <= most]
    allowed = [*kept, *([ignore] if least <= ignore <= most else [])]
    drawn = draw(st.lists(st.sampled_from(allowed), min_size=numbers, max_size=numbers))
    return laid_out(torch.tensor(drawn, dtype=torch.int64).to(dtype).view(shape), draw(st.sampled_from(LAYOUTS)))


def _range(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return info.min, info.max


def _head(draw: st.DrawFn, case: Case, vocab: int, width: int, dtype: torch.dtype, seed: int) -> None:
    case.weight = laid_out(_numbers(seed + 1, (vocab, width), dtype, "small"), draw(st.sampled_from(LAYOUTS)))
    if draw(st.booleans()):
        case.more["bias"] = _numbers(seed + 2, (vocab,), dtype, "small")
    case.more["logit_scale"] = draw(st.sampled_from([1.0, 1.0, 0.5, 2, -1.0]))
    case.more["softcap"] = draw(st.sampled_from([None, None, 3.0, 30]))


def _spoil(draw: st.DrawFn, case: Case) -> None:
    what = draw(st.sampled_from(sorted(OF_FUNCTION[case.function])))
    value = draw(WRONG[what])
    case.wrong[what] = value
    if what in ("labels", "scored", "weight"):
        setattr(case, what, value)
    elif what == "dtype":
        case.scored = _cast(case.scored, value)
    elif what == "label dtype":
        case.labels = _cast(case.labels, value)
    elif what == "label" and isinstance(case.labels, Tensor) and case.labels.numel():
        case.labels = case.labels.to(torch.int64).clone(memory_format=torch.contiguous_format)
        case.labels.view(-1)[0] = value
    elif what == "device":
        name = draw(st.sampled_from(["scored", "labels"]))
        setattr(case, name, getattr(case, name).to("meta"))
    elif what not in ("label",):
        case.more[what] = value


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.quint8:
        with warnings.catch_warnings():
            # That it is deprecated.
            warnings.simplefilter("ignore")
            return torch.quantize_per_tensor(tensor.float().nan_to_num(0, 0, 0), 0.1, 0, dtype)
    with warnings.catch_warnings():
        # That the imaginary part is dropped.
        warnings.simplefilter("ignore")
        return tensor.to(dtype)
