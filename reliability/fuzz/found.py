"""What was found, each with the smallest case that shows it: tests hold the mended code to all of them."""

# ruff: noqa: E501 - a table, a line each

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch

from reliability.fuzz.batches import GOOD, Batch
from reliability.fuzz.plugins import Broken, Installed, Unnamed
from reliability.fuzz.tensors import Case
from reliability.fuzz.texts import Text
from reliability.fuzz.values import TOO_LONG, deep
from reliability.fuzz.words import Line


@dataclass(frozen=True)
class Found:
    """A fault that was mended.

    Attributes:
        target: it belongs to.
        given: what was given, for the page.
        happened: what came of it.
        case: that shows it.
        counted: what the rows call it, where it was met while cases were counted: its kind, and what was said.
    """

    target: str
    given: str
    happened: str
    case: Any
    counted: tuple[tuple[str, str], ...] = ()


def _yaml(text: str) -> Text:
    return Text(text.encode(), ".yaml")


def _bomb(levels: int) -> str:
    """Return YAML of some hundred letters that stands for nine to the power of `levels`."""
    names = "abcdefghijklmnop"
    lines = [f"{names[0]}: &{names[0]} [x]"]
    for below, name in pairwise(names[: levels + 1]):
        lines.append(f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]")
    return "\n".join([*lines, f"loss: {{alpha: *{names[levels]}}}\n"])


def _labels(*numbers: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(numbers).to(dtype)


def _logits(**more: Any) -> dict[str, Any]:
    return {"function": "logits", "scored": torch.eye(3), "labels": _labels(0, 2, 1), "loss": "dft", "more": more}


def _tensors(wrong: str = "", **changes: Any) -> Case:
    given = {**_logits(ignore_index=-100), **changes}
    return Case(**given, wrong={wrong: True} if wrong else {})


def _batch(**changes: Any) -> Batch:
    return Batch({**GOOD, **changes}, changes)


READ = "PyYAML's or Python's own error: "
NUMBER = "FaultError verdict.py:80"
FOUND: list[Found] = [
    Found("texts", "a control character in YAML", f"{READ}`ReaderError`", _yaml("loss: dft\nx: \x07\n")),
    Found("texts", "`x: 0x_`, which has the form of a number", f"{READ}`ValueError`", _yaml("loss: dft\nx: 0x_\n")),
    Found("texts", "`x: 2001-99-99`", f"{READ}`ValueError`", _yaml("loss: dft\nx: 2001-99-99\n")),
    Found("texts", "`x: !!bool x`", f"{READ}`KeyError`", _yaml("loss: dft\nx: !!bool x\n")),
    Found("texts", "`x: !!timestamp x`", f"{READ}`AttributeError`", _yaml("loss: dft\nx: !!timestamp x\n")),
    Found("texts", "`x: !!int ''`", f"{READ}`IndexError`", _yaml("loss: dft\nx: !!int ''\n")),
    Found("texts", r'`"\U00110000"`', f"{READ}`ValueError`", _yaml('loss: dft\nx: "\\U00110000"\n')),
    Found("texts", "an integer of 5000 digits in JSON", f"{READ}`ValueError`", Text(f'{{"x": {TOO_LONG}}}'.encode(), ".json")),
    Found("texts", "an integer of 5000 hexadecimal digits", "our message could not be written: `ValueError`", _yaml(f"loss: {{alpha: 0x{'f' * 5000}}}\n")),
    Found("texts", "aliases of aliases, 300 letters for 9 ** 12", "all memory, for the message", _yaml(_bomb(12))),
    Found("settings", "a list in the place of a token", "`TypeError`", {"weights": {"tokens": [[[1], 2.0]]}}),
    Found("settings", "100,000 ids in `always_learn`", "an hour: each was compared with all before it", {"always_learn": list(range(100_000))}),
    Found("settings", "an integer of 5000 digits", "our message could not be written: `ValueError`", {"alpha": 10**5000}),
    Found("settings", "`alpha` a Fraction, a Decimal, NumPy's float32", "taken, and then no process and no record could be told of it: `TypeError`", {"alpha": Fraction(1, 2)}, (("TypeError encoder.py:180", "Fraction"),)),
    Found("settings", "a list inside 5000 others", "our message could not be written: `RecursionError`", {"alpha": deep()}),
    Found("settings", "a token that is half of a character", "`TypeError` of the tokenizer's, where the run began", {"weights": {"tokens": {"\ud800": 2.0}}}),
    Found("overrides", "`loss.a.a.a...`, 3000 deep", "`RecursionError`", Line(("loss" + ".a" * 3000 + "=1",))),
    Found("overrides", "`loss.alpha=0x_`", f"{READ}`ValueError`", Line(("loss.alpha=0x_",))),
    Found("tensors", "labels in uint16 with `shift=True`", "refused: what the last position predicts became label 65436", _tensors(labels=_labels(0, 2, 1, dtype=torch.uint16), more={"ignore_index": -100, "shift": True})),
    Found("tensors", "labels in int8, `ignore_index=-1000`, shifted", "torch's `RuntimeError`", _tensors(labels=_labels(0, 2, 1, dtype=torch.int8), more={"ignore_index": -1000, "shift": True})),
    Found("tensors", "`ignore_index=2 ** 70`", "torch's `RuntimeError`", _tensors("ignore_index", more={"ignore_index": 1 << 70})),
    Found("tensors", "`num_items=10 ** 400`", "`OverflowError`", _tensors("num_items", more={"ignore_index": -100, "num_items": 10**400})),
    Found("tensors", "`num_items` a complex tensor", "torch's `RuntimeError`", _tensors("num_items", more={"ignore_index": -100, "num_items": torch.tensor(1j)})),
    Found("tensors", "`logit_scale=10 ** 400`", "`OverflowError`", Case("linear", torch.eye(3), _labels(0, 2, 1), "dft", torch.eye(3), {"ignore_index": -100, "logit_scale": 10**400}, {"logit_scale": 1})),
    Found("tensors", "`logp` or its targets no tensor", "`AttributeError`", Case("logp", None, _labels(0), "dft", None, {"ignore_index": -100}, {"scored": None})),
    Found("tensors", "`entropy` no tensor", "`AttributeError`", Case("logp", torch.eye(3), _labels(0, 2, 1), "dft", None, {"ignore_index": -100, "entropy": 1.0}, {"entropy": 1.0})),
    Found("tensors", "sparse logits", "torch's `RuntimeError`", _tensors("scored", scored=torch.eye(3).to_sparse())),
    Found("tensors", "sparse `labels`", "torch's `RuntimeError`", _tensors("labels", labels=_labels(0, 2, 1).to_sparse())),
    Found("tensors", "`softcap` and `logit_scale` a Fraction, capped beside NaN", "torch's `TypeError`", Case("linear", torch.eye(3), _labels(0, 2, 1), "dft", torch.eye(3), {"ignore_index": -100, "softcap": Fraction(1, 3), "logit_scale": Fraction(1, 2)}, {"softcap": Fraction(1, 3)}), (("TypeError softmax.py:160", "Fraction"),)),
    Found("tensors", "`softcap=1e308`, which float32 cannot hold", "a loss of NaN", Case("linear", torch.eye(3), _labels(0, 2, 1), "dft", torch.eye(3), {"ignore_index": -100, "softcap": 1e308}, {"softcap": 1e308}), ((NUMBER, "the loss is nan, and 2.779"),)),
    Found("tensors", "`logit_scale=1e308`", "a loss of NaN", Case("linear", torch.eye(3), _labels(0, 2, 1), "dft", torch.eye(3), {"ignore_index": -100, "logit_scale": 1e308}, {"logit_scale": 1e308})),
    Found("tensors", "`logit_scale=2 ** 64`", "`OverflowError`", Case("linear", torch.eye(3), _labels(0, 2, 1), "dft", torch.eye(3), {"ignore_index": -100, "logit_scale": 1 << 64}, {"logit_scale": 1 << 64}), (("OverflowError softmax.py:157", "int too big"),)),
    Found("tensors", "float16 logits above 65,504", "a fault of this check: a loss of NaN is what float16 makes of them", Case("linear", torch.full((1, 3), 3e4, dtype=torch.float16), _labels(1), "dft", torch.full((2, 3), 3.0, dtype=torch.float16), {"ignore_index": -100}, {}), ((NUMBER, "the loss is nan, and 0.08"), (NUMBER, "the loss is nan, and 0.0 "))),
    Found("tensors", "`num_items=2e-309`", "a fault of this check: the loss is beyond what float32 holds", _tensors("num_items", more={"ignore_index": -100, "num_items": 2e-309}), ((NUMBER, "the loss is inf"),)),
    Found("tensors", "log p without a shape", "`IndexError` of this check's", Case("logp", torch.tensor(1.0), torch.tensor(0, dtype=torch.uint8), "nll", None, {"ignore_index": 1 << 31}, {"scored": torch.tensor(1.0)}), (("IndexError tensors.py:292", ""),)),
    Found("tensors", "sparse logits, of which log p is made", "torch's `NotImplementedError`, of this check's", Case("logp", torch.zeros(2, 3, 4).to_sparse(), torch.full((2, 3), 2), "nll", None, {"ignore_index": 0}, {"scored": 1}), (("NotImplementedError scoring.py:87", "_log_softmax"),)),
    Found("tensors", "`labels` beyond the vocabulary, with log p", "a fault of this check: of log p alone nobody knows a vocabulary", Case("logp", torch.tensor([1.5]), torch.tensor(99), "dft", None, {"ignore_index": -100}, {"label": 99})),
    Found("batches", "`labels` of a sparse layout", "torch's `NotImplementedError`", _batch(labels=GOOD["labels"].to_sparse())),
    Found("batches", "`labels` a text", "`AttributeError`", _batch(labels="x")),
    Found("batches", "`labels` a number without a shape", "`IndexError`", _batch(labels=torch.tensor(1))),
    Found("batches", "`num_items_in_batch` a text", "`ValueError`", _batch(num_items_in_batch="x")),
    Found("batches", "a column that is no tensor", "`AttributeError`", _batch(dft_column_ratio=1)),
    Found("batches", "labels of another length than the tokens", "refused, and from then on all batches took the logits path, with its memory", _batch(labels=GOOD["labels"][:, :-2])),
    Found("plugins", "an objective that returns None, a number, a list", "`AttributeError`", Broken("none", (), False)),
    Found("plugins", "an objective that returns complex weights", "a warning of torch's, and the imaginary part dropped", Broken("complex", (), True)),
    Found("plugins", "an objective that raises", "its error, which did not name it", Broken(ValueError, (), True)),
    Found("plugins", "an objective that leaves out a statistic that it declares", "`KeyError`", Broken("right", (("statistics", ("mine",)),), True)),
    Found("plugins", "an objective that declares `needs = None`", "`TypeError` in the first batch", Broken("right", (("needs", None),), True)),
    Found("plugins", "soft targets without a declared reference", "ignored in silence", Broken("soft", (), True)),
    Found("plugins", "an objective called 3", "`TypeError` in every message that lists the names", Installed("register_objectives", [Unnamed])),
    Found("plugins", "a module that ends the program", "the program ended, exit code 3", Installed("", None, "mod", "raise SystemExit(3)")),
    Found("plugins", "an entry point that names a list", "`TypeError` of pluggy's", Installed("", None, "sys:path", "")),
]  # fmt: skip
