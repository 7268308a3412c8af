"""How long a step of each variant takes: in turn, in one process, each ratio from one round."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import timer

from benchmarks.baseline import CHUNKS, bare_gemms, name
from benchmarks.cases import Case, Variant
from benchmarks.problem import HiddenInputs

BARE = "bare GEMMs"
FEWER_TOKENS = 8
"""A warm-up has an eighth of the tokens: it compiles and allocates as a whole step does."""


def check(case: Case, variant: Variant, function: Callable[[Any], Tensor]) -> dict[str, float]:
    """Compare loss and gradients with float64 on a small problem.

    Returns:
        `loss` and the name of each input to the relative error (of norms).
    """
    inputs = case.inputs(case.shape.small(), last_ignored=True)
    inputs.prepare()
    loss = function(inputs)
    if case.grad:
        loss.backward()
    truth = case.inputs(case.shape.small(), last_ignored=True)
    truth.prepare()
    logits = truth.logits_NV.detach().double() if case.on_logits else truth.exact_logits()
    kept = truth.labels_N >= 0
    logp = logits.log_softmax(-1).gather(1, truth.labels_N.clamp(min=0)[:, None])[:, 0]
    weight = torch.where(kept, logp.exp() if variant.dft else torch.ones_like(logp), 0.0)
    true_loss = -(weight * logp).sum() / kept.sum()
    errors = {"loss": float((loss.detach().double() - true_loss).abs() / true_loss)}
    onehot = torch.zeros_like(logits).scatter_(1, truth.labels_N.clamp(min=0)[:, None], 1.0)
    on_logits = weight[:, None] * (logits.softmax(-1) - onehot) / kept.sum()
    for input_name, gradient in inputs.gradients().items():
        true_gradient = on_logits
        if input_name == "hidden":
            true_gradient = on_logits @ truth.weight_VH.detach().double()
        elif input_name == "weight":
            true_gradient = on_logits.t() @ truth.hidden_NH.detach().double()
        elif input_name != "logits":
            continue
        errors[input_name] = float((gradient.double() - true_gradient).norm() / true_gradient.norm())
    return errors


def _step(case: Case, function: Callable[[Any], Tensor], inputs: Any) -> Callable[[], None]:
    def step() -> None:
        with torch.set_grad_enabled(case.grad):
            loss = function(inputs)
            if case.grad:
                loss.backward()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Time exactly one call; torch's clock waits for the device where there is one.

    `Timer.timeit(1)` would call the step three times and time the last: on logits that the first has overwritten, and
    on gradients that are there to be added to.
    """
    gc.collect()
    started = timer()
    step()
    return float(timer() - started)


def measure(case: Case, *, rounds: int, peer_rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Time every variant of a case.

    Returns:
        Name of a variant to `seconds` (one for each round), `errors`, or `missing`, a reason.
    """
    found: dict[str, dict[str, Any]] = {}
    functions: dict[str, tuple[Variant, Callable[[Any], Tensor]]] = {}
    small = case.inputs(case.shape.fewer(FEWER_TOKENS))
    for variant in case.variants:
        try:
            function = variant.load()
            found[variant.name] = {"errors": check(case, variant, function) if variant.checked else {}, "seconds": []}
            small.prepare()
            _step(case, function, small)()
            functions[variant.name] = variant, function
        except Exception as error:
            # A peer may fail in any way of its own; the report says how.
            found[variant.name] = {"missing": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            if variant.own:
                raise
    del small
    inputs = case.inputs(case.shape)
    bare = _best_bare(case, inputs, found, say)
    for turn in range(rounds):
        names = [n for n, (variant, _) in functions.items() if turn < (rounds if variant.own else peer_rounds)]
        order = [BARE, *names] if bare else names
        for variant_name in order if turn % 2 == 0 else reversed(order):
            if variant_name == BARE:
                took = seconds(bare)
            else:
                inputs.prepare()
                took = seconds(_step(case, functions[variant_name][1], inputs))
            found[variant_name]["seconds"].append(took)
            say(f"{case.key}: round {turn + 1}: {variant_name}: {took:.2f} s")
    return found


def _best_bare(case: Case, inputs: HiddenInputs, found: dict[str, dict[str, Any]], say: Callable[[str], None]) -> Any:
    """Return the fastest way to cut the rows of the bare products, or None where there is no baseline."""
    if not case.gemms:
        return None
    chunks = CHUNKS if case.shape.tokens > 512 and not case.key.startswith("growth") else CHUNKS[:1]
    tried = {chunk: bare_gemms(inputs, case.gemms, chunk) for chunk in chunks}
    took = {chunk: seconds(run) for chunk, run in tried.items()} if len(tried) > 1 else dict.fromkeys(tried, 0.0)
    best = min(took, key=lambda chunk: took[chunk])
    found[BARE] = {"seconds": [], "cut": name(best)}
    say(f"{case.key}: bare GEMMs: {', '.join(f'{name(c)} {t:.2f} s' for c, t in took.items())}")
    return tried[best]
