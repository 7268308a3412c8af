"""The table: what was to be met, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.problem import MIB
from benchmarks.timing import BARE

OURS = "ours (kernel: auto)"
IN_PLACE, KEPT = "ours, in place", "ours, logits kept"

HOSTS = ("LLaMA-Factory", "ms-swift", "TRL")

Numbers = dict[str, dict[str, Any]]


def ratios(ours: list[float], others: list[float]) -> list[float]:
    """Divide round by round; a peer may have fewer rounds than the baseline."""
    return [one / other for one, other in zip(ours, others, strict=False)]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: is measured.
        limit: at most this, in the unit of `value`.
        value: from the numbers; raises KeyError where it was not measured.
        unit: printed behind.
    """

    what: str
    limit: float
    value: Callable[[Numbers], float]
    unit: str = ""

    def line(self, numbers: Numbers) -> str:
        """Return the row of the table."""
        limit = f"<= {self.limit:g}{self.unit}"
        try:
            value = self.value(numbers)
        except (KeyError, ValueError):
            return f"| {self.what} | {limit} | not measured | |"
        value = round(value, 0 if self.unit else 3)
        shown = f"{value:.0f}" if self.unit else f"{value:.3f}"
        return f"| {self.what} | {limit} | {shown}{self.unit} | {'met' if value <= self.limit else '**missed**'} |"


def over_bare(case: str, name: str = OURS) -> Callable[[Numbers], float]:
    """Return a ratio to the bare GEMMs: the median over rounds."""

    def value(numbers: Numbers) -> float:
        time = numbers[case]["time"]
        return median(ratios(time[name]["seconds"], time[BARE]["seconds"]))

    return value


def extra(case: str, name: str = OURS) -> Callable[[Numbers], float]:
    """Return memory beyond inputs and gradients that any loss makes, in MiB."""

    def value(numbers: Numbers) -> float:
        return float(numbers[case]["memory"][name]["bytes"] - numbers[case]["shape"]["gradient_bytes"]) / MIB

    return value


def over_variant(case: str, name: str, other: str) -> Callable[[Numbers], float]:
    """Return a ratio of two variants of a case."""

    def value(numbers: Numbers) -> float:
        time = numbers[case]["time"]
        return median(ratios(time[name]["seconds"], time[other]["seconds"]))

    return value


def _reference(name: str) -> Callable[[Numbers], float]:
    """Return what a reference adds to DFT, in products of the head."""

    def value(numbers: Numbers) -> float:
        time = numbers["family"]["time"]
        rounds = zip(time[name]["seconds"], time[OURS]["seconds"], time[BARE]["seconds"], strict=True)
        return median((with_it - plain) / (two_products / 2) for with_it, plain, two_products in rounds)

    return value


def _half(numbers: Numbers) -> float:
    return over_bare("half")(numbers) / over_bare("frozen")(numbers)


def _over_fastest(case: str, name: str) -> Callable[[Numbers], float]:
    def value(numbers: Numbers) -> float:
        time = numbers[case]["time"]
        peers = [median(t["seconds"]) for n, t in time.items() if not n.startswith("ours") and t.get("seconds")]
        return median(time[name]["seconds"]) / min(peers)

    return value


def _over_best(of: str) -> Callable[[Numbers], float]:
    """Return the relative error of ours over that of the best of the hosts that compute DFT, in bfloat16.

    Ours on a CPU that has no bfloat16, and multiplies in float32; the hosts round their logits on any.
    """

    def value(numbers: Numbers) -> float:
        hosts = {name: found["errors"][of] for name, found in numbers["bf16"]["time"].items() if "errors" in found}
        ours = numbers["bf16-emulated"]["time"][OURS]["errors"][of]
        return float(ours / min(hosts[name] for name in HOSTS if name in hosts))

    return value


def _over_logits(case: str, name: str) -> Callable[[Numbers], float]:
    def value(numbers: Numbers) -> float:
        shape = numbers[case]["shape"]
        itemsize = 2 if "16" in shape["dtype"] else 4
        return float(numbers[case]["memory"][name]["bytes"]) / (shape["tokens"] * shape["vocab"] * itemsize)

    return value


def _growth(numbers: Numbers, trained: bool) -> list[dict[str, Any]]:
    points = [case for key, case in numbers.items() if key.startswith("growth")]
    return [case for case in points if case["shape"]["trained"] == trained]


def _linear(numbers: Numbers) -> float:
    """Return the largest time per token and word over the smallest, of each head."""
    worst = 0.0
    for trained in (False, True):
        rates = [
            median(case["time"][OURS]["seconds"]) / (case["shape"]["tokens"] * case["shape"]["vocab"])
            for case in _growth(numbers, trained)
        ]
        worst = max(worst, max(rates) / min(rates))
    return worst


def _flat(trained: bool) -> Callable[[Numbers], float]:
    def value(numbers: Numbers) -> float:
        points = _growth(numbers, trained)
        vocab = max({case["shape"]["vocab"] for case in points}, key=[c["shape"]["vocab"] for c in points].count)
        rows = [case for case in points if case["shape"]["vocab"] == vocab]
        # The gradient of the hidden states is the caller's.
        bytes_ = [
            case["memory"][OURS]["bytes"]
            - case["shape"]["gradient_bytes"]
            - 4 * case["shape"]["tokens"] * case["shape"]["hidden"]
            for case in rows
        ]
        return (max(bytes_) - min(bytes_)) / MIB

    return value


ROWS = (
    Row("frozen head, float32: time / 2 bare GEMMs", 1.05, over_bare("frozen")),
    Row("frozen head: extra memory", 64, extra("frozen"), " MiB"),
    Row("trained head, float32: time / 3 bare GEMMs", 1.10, over_bare("trained")),
    Row("trained head: extra memory beyond the weight's gradient", 320, extra("trained"), " MiB"),
    Row("LoRA on the head: extra memory beyond the low-rank gradients", 64, extra("lora"), " MiB"),
    Row("frozen head, bfloat16 on a CPU without it: time / 2 bfloat16 GEMMs", 0.65, over_bare("bf16-emulated")),
    Row("the same: error of the loss / that of the best host", 1.0, _over_best("loss")),
    Row("the same: error of its gradient / that of the best host", 1.0, _over_best("hidden")),
    Row("half of the labels ignored: time / all labels", 0.55, _half),
    Row("growth: largest / smallest time per token and word", 1.25, _linear),
    Row("growth in N, frozen head: memory, largest - smallest", 64, _flat(False), " MiB"),
    Row("growth in N, trained head: memory, largest - smallest", 64, _flat(True), " MiB"),
    Row("logits path, nobody reads them again: extra memory / logits", 0.05, _over_logits("logits", IN_PLACE)),
    Row("logits path, logits kept: extra memory / logits", 1.0, _over_logits("logits", KEPT)),
    Row("logits path, bfloat16, in place: extra memory / logits", 0.05, _over_logits("logits-bf16", IN_PLACE)),
    Row("logits path, bfloat16, kept: extra memory / logits", 1.0, _over_logits("logits-bf16", KEPT)),
    Row("logits path, in place: time / the fastest host's", 0.5, _over_fastest("logits", IN_PLACE)),
    Row("logits path, kept: time / the fastest host's", 0.5, _over_fastest("logits", KEPT)),
    Row("logits path, bfloat16, in place: time / the fastest host's", 0.5, _over_fastest("logits-bf16", IN_PLACE)),
    Row("logits path, bfloat16, kept: time / the fastest host's", 0.5, _over_fastest("logits-bf16", KEPT)),
    Row("evaluation without gradient: time / 1 bare GEMM", 1.10, over_bare("eval")),
    Row("statistics (nll, p, w): time / without", 1.03, over_variant("stats", "with nll, p, w", OURS)),
    Row("entropy on demand: time / without", 1.03, over_variant("stats", "with entropy", OURS)),
    Row("sequence scope: time / DFT", 1.03, over_variant("family", "sequence scope (iw_sft)", OURS)),
    Row("batch scope: time / DFT", 1.03, over_variant("family", "batch scope", OURS)),
    Row("entropy of the top 20: time / DFT", 1.15, over_variant("family", "entropy of the top 20 (eaft)", OURS)),
    Row("a reference's log p: bare GEMMs more than DFT", 1.05, _reference("a reference's log p (prift)")),
    Row("a reference's distribution: bare GEMMs more than DFT", 1.05, _reference("a reference's distribution (asft)")),
)


def table(numbers: Numbers) -> list[str]:
    """Return the lines of the table."""
    return ["| case | to meet | found | |", "| --- | --- | --- | --- |", *(row.line(numbers) for row in ROWS)]
