"""The table of the CPU report on CUDA: ours beside the peers, in turn, with the memory of each.

Shapes: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours, peers, verdicts
from benchmarks.baseline import bare_gemms, name
from benchmarks.cases import AUTO, FUSED, MATERIALISED, ON_LOGITS, Case, Variant
from benchmarks.gpu.clock import extra_mb, forget, milliseconds, seconds
from benchmarks.gpu.sheet import Options, Sheet
from benchmarks.problem import MIB, Shape
from benchmarks.timing import BARE, check

WARM, ROUNDS = 3, 9
BARE_CHUNKS = (2048, None)
SCRATCH_MIB = (75, 150, 300, 600, 1200)
ANOTHER_LOSS = 0.01

COMPILED = Variant("cross-entropy, torch.compile", partial(peers.compiled_on_hidden, peers.sft), dft=False)
COMPILED_LINE = Variant("the paper's line, torch.compile", partial(peers.compiled_on_hidden, peers.one_liner))
# Its kernel on CUDA, its compiled form elsewhere.
CUT = replace(FUSED[2], name="Cut Cross-Entropy, per token")
PEERS = (
    *MATERIALISED[:2],
    COMPILED,
    *FUSED[:2],
    CUT,
    FUSED[3],
    Variant("Liger, cross-entropy", peers.liger_sft, dft=False),
    Variant("Quack, cross-entropy", peers.quack, dft=False),
)
LOGITS = (
    *ON_LOGITS[:4],
    Variant("cross-entropy, torch.compile", partial(peers.on_logits, partial(peers.compiled, peers.sft)), dft=False),
)


def cases(options: Options) -> dict[str, Case]:
    """Return the cases; the width is that of a 7B model but where it is said."""
    size = (96, 64, 512) if options.small else (8192, 4096, 151_936)
    wide = Shape(*size, dtype="bfloat16", device=options.device)
    trained = replace(wide, trained=True)
    narrow = replace(trained, hidden=48 if options.small else 896)
    few = replace(wide, tokens=wide.tokens // 4)
    found = [
        Case("frozen", "Frozen head", wide, (AUTO, *PEERS, COMPILED_LINE), gemms=2),
        Case("trained", "Trained head", trained, (AUTO, *PEERS), gemms=3),
        Case("narrow", "Trained head, narrow", narrow, (AUTO, *MATERIALISED[:2], *FUSED[:2], CUT), gemms=3),
        Case("eval", "Evaluation", wide, (AUTO, MATERIALISED[0]), gemms=1, grad=False),
        Case("logits", "Logits that exist", few, LOGITS, on_logits=True),
    ]
    return {case.key: case for case in found}


def measure(options: Options, sheet: Sheet, key: str) -> None:
    """Measure one case: errors, memory, then all in turn."""
    case = cases(options)[key]
    sheet.say(
        f"{case.shape}. Medians of {ROUNDS} rounds, all in turn, after {WARM} calls to warm up. Memory contains the "
        f"gradients that any loss leaves behind: {_left_behind(case) / MIB:,.0f} MiB."
    )
    sheet.keep("shape", asdict(case.shape))
    inputs = case.inputs(case.shape)
    inputs.prepare()
    steps: dict[str, Callable[[], None]] = {}
    found: dict[str, dict[str, Any]] = {}
    if case.gemms:
        steps[BARE], cut = _bare(case, inputs, options.device)
        found[BARE] = {"cut": cut}
    for variant in case.variants:
        try:
            step, found[variant.name] = _ready(case, variant, inputs, options.device)
            steps[variant.name] = step
        except Exception as error:
            found[variant.name] = {"own": variant.own, "missing": sheet.fault(variant.name, error)}
        if variant.own:
            # Already now: a peer may take all the time that there is, and more.
            _in_turn(steps, found, inputs, sheet, options.device)
        # On disk before the next one: it may be the one that ends this process.
        sheet.keep("found", found)
        forget(options.device)
    _in_turn(steps, found, inputs, sheet, options.device)
    sheet.keep("found", found)
    _write(sheet, found)


def _left_behind(case: Case) -> int:
    """Bytes of the gradients of the hidden states and of a trained weight."""
    shape = case.shape
    if case.on_logits:
        return 0
    rows = (shape.tokens if case.grad else 0) + (shape.vocab if shape.trained else 0)
    return rows * shape.hidden * shape.bytes_each


def _bare(case: Case, inputs: Any, device: str) -> tuple[Callable[[], None], str]:
    """Return the products alone, with the rows cut in the faster way, and that way."""
    tried = {name(chunk): bare_gemms(inputs, case.gemms, chunk) for chunk in BARE_CHUNKS}
    took = {cut: median([seconds(run, device) for _ in range(WARM + 2)][WARM - 1 :]) for cut, run in tried.items()}
    best = min(took, key=lambda cut: took[cut])
    return tried[best], best


def _ready(case: Case, variant: Variant, inputs: Any, device: str) -> tuple[Callable[[], None], dict[str, Any]]:
    function: Callable[[Any], Tensor] = variant.load()
    found: dict[str, Any] = {"own": variant.own, "errors": check(case, variant, function)}

    def step() -> None:
        with torch.set_grad_enabled(case.grad):
            loss = function(inputs)
            if case.grad:
                loss.backward()

    for _ in range(WARM):
        inputs.prepare()
        step()
    inputs.prepare()
    forget(device)
    found["mb"] = extra_mb(step, device)
    inputs.prepare()
    return step, found


def _in_turn(
    steps: dict[str, Callable[[], None]], found: dict[str, dict[str, Any]], inputs: Any, sheet: Sheet, device: str
) -> None:
    """Time all, every other round in reverse; what fails keeps the seconds that it had."""
    took: dict[str, list[float]] = {key: [] for key in steps}
    for turn in range(ROUNDS):
        for key in list(steps) if turn % 2 == 0 else list(reversed(steps)):
            inputs.prepare()
            try:
                took[key].append(seconds(steps[key], device))
            except Exception as error:
                fault = sheet.fault(key, error)
                if "seconds" not in found[key]:
                    found[key]["missing"] = fault
                del steps[key]
    for key in steps:
        found[key]["seconds"] = took[key]


def _write(sheet: Sheet, found: dict[str, dict[str, Any]]) -> None:
    bare = found.get(BARE, {}).get("seconds")
    sheet.head("", "ms", "times the bare GEMMs", "peak beyond inputs, MiB", "error of the loss", "of the gradients")
    for key, entry in found.items():
        if "missing" in entry:
            # What a peer lacks is a finding; ours has to run.
            if entry.get("own") or key == BARE:
                sheet.row_failed(key, f"**failed: {entry['missing']}**", "", "", "", "")
            else:
                sheet.row(key, f"not here: {entry['missing']}", "", "", "", "")
            continue
        errors = entry.get("errors", {})
        other = " (**computes something else**)" if errors.get("loss", 0.0) > ANOTHER_LOSS else ""
        ratio = f"{median(verdicts.ratios(entry['seconds'], bare)):.3f}" if bare else ""
        sheet.row(
            f"{key} ({entry['cut']})" if "cut" in entry else key + other,
            f"{milliseconds(median(entry['seconds']))} ({milliseconds(min(entry['seconds']))} to "
            f"{milliseconds(max(entry['seconds']))})",
            ratio,
            f"{entry['mb']:,.0f}" if "mb" in entry else "",
            f"{errors['loss']:.1e}" if errors else "",
            ", ".join(f"{of} {value:.1e}" for of, value in errors.items() if of != "loss"),
        )


def sweep(options: Options, sheet: Sheet) -> None:
    """Time ours at several budgets: whether the default is where the arithmetic says."""
    budgets: tuple[int | None, ...] = (None, 1, 2) if options.small else (None, *SCRATCH_MIB)
    for key in ("frozen", "trained"):
        case = cases(options)[key]
        inputs = case.inputs(case.shape)
        inputs.prepare()
        bare, cut = _bare(case, inputs, options.device)
        steps, found = {BARE: bare}, {BARE: {"cut": cut}}
        for mb in budgets:
            label = "the default" if mb is None else f"scratch_mb: {mb}"
            variant = Variant(label, partial(ours.lean, "chunked", mb), own=True)
            steps[label], found[label] = _ready(case, variant, inputs, options.device)
        _in_turn(steps, found, inputs, sheet, options.device)
        sheet.say("", f"{case.title}: {case.shape}; all logits would be {case.shape.logits_bytes / MIB:,.0f} MiB.")
        sheet.keep(key, found)
        _write(sheet, found)
        del inputs, bare, steps
        forget(options.device)
