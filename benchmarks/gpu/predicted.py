"""The cost model, with the data sheet's rates and with the card's own, beside what the other parts measured."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks import cost
from benchmarks.gpu.sheet import Options, Sheet, read
from benchmarks.problem import MIB
from benchmarks.timing import BARE

OURS = "ours (kernel: auto)"
STOCK = "cross-entropy (SFT, logits in float32)"


def compare(options: Options, sheet: Sheet) -> None:
    """Compare whatever was measured before this part ran."""
    machine = read(options.sheet("machine"))["numbers"]
    if "gb_per_s" not in machine:
        sheet.say("Not run: the machine's ceilings were not measured.")
        return
    known = cost.device_of(machine["facts"]["device"])
    named = known or cost.DEVICES[0]
    sheet.say(
        f"Data sheet: {named.name}, {named.tflops:g} TFLOP/s and {named.gb_per_s:,g} GB/s, of which GEMMs are taken "
        f"to reach {cost.GEMM_SHARE:.0%} and copies {cost.MEMORY_SHARE:.0%}. Ceilings: measured above."
        + ("" if known else " **No data sheet of this device is known; that one stands for it.**")
    )
    cards = (named, named.measured(machine["tflops"], machine["gb_per_s"]))
    sheet.head("case", "what", "by the data sheet", "by the ceilings", "measured")
    for part in ("frozen", "trained", "narrow", "eval"):
        numbers = read(options.sheet(part))["numbers"]
        if "shape" in numbers:
            _rows(sheet, part, numbers, cards)
    for key in ("frozen", "trained"):
        _budgets(sheet, key, read(options.sheet("budget"))["numbers"], read(options.sheet(key))["numbers"], cards)


def _rows(sheet: Sheet, part: str, numbers: dict[str, Any], cards: tuple[cost.Device, ...]) -> None:
    shape, found = numbers["shape"], numbers["found"]
    head = cost.Head(part, shape["hidden"], shape["vocab"], shape["trained"])
    grad = part != "eval"
    own = [cost.chunked(card, shape["tokens"], head, grad=grad) for card in cards]
    bare = _seconds(found, BARE)
    sheet.row(part, "bare GEMMs, ms", *(f"{c.gemm_seconds * 1000:.2f}" for c in own), _print(bare, 1000))
    ours = _seconds(found, OURS)
    sheet.row(part, "ours, times that", *(f"{c.ratio:.3f}" for c in own), _print(_over(ours, bare)))
    left = (shape["tokens"] + (shape["vocab"] if shape["trained"] else 0)) * shape["hidden"] * cost.HALF * grad
    memory = found.get(OURS, {}).get("mb")
    sheet.row(
        part,
        "ours, MiB beyond the gradients",
        *(f"{c.memory / MIB:,.0f}" for c in own),
        _print(None if memory is None else memory - left / MIB, form="{:,.0f}"),
    )
    if grad:
        other = [cost.materialised(card, shape["tokens"], head) for card in cards]
        stock, memory = _seconds(found, STOCK), found.get(STOCK, {}).get("mb")
        sheet.row(part, "materialised, times", *(f"{c.ratio:.3f}" for c in other), _print(_over(stock, bare)))
        sheet.row(
            part,
            "materialised, MiB",
            *(f"{c.memory / MIB:,.0f}" for c in other),
            _print(None if memory is None else memory - left / MIB, form="{:,.0f}"),
        )
    sheet.keep(part, {"sheet": own[0].ratio, "ceilings": own[1].ratio, "measured": _over(ours, bare)})


def _budgets(
    sheet: Sheet, key: str, numbers: dict[str, Any], case: dict[str, Any], cards: tuple[cost.Device, ...]
) -> None:
    found = numbers.get(key)
    if found is None or "shape" not in case:
        return
    shape = case["shape"]
    head = cost.Head(key, shape["hidden"], shape["vocab"], shape["trained"])
    for label in found:
        if label == BARE:
            continue
        scratch = int(label.split()[-1]) << 20 if label.startswith("scratch_mb") else None
        own = [cost.chunked(card, shape["tokens"], head, scratch) for card in cards]
        ratio = _over(_seconds(found, label), _seconds(found, BARE))
        sheet.row(key, f"{label} ({own[0].rows:,} rows), times", *(f"{c.ratio:.3f}" for c in own), _print(ratio))


def _seconds(found: dict[str, Any], name: str) -> float | None:
    times = found.get(name, {}).get("seconds")
    return median(times) if times else None


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _print(value: float | None, factor: float = 1.0, form: str = "{:.3f}") -> str:
    return "not measured" if value is None else form.format(value * factor)
