"""Loss and gradients of each kernel beside float64, and beside textbook autograd in the same dtype.

Shapes: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.clock import forget
from benchmarks.gpu.sheet import Options, Sheet
from benchmarks.problem import HiddenInputs, Shape
from dft_plugin.core.loss import hidden_loss, logits_loss
from dft_plugin.kernels import Head, OpaqueHead, Transform, reference, score_logits, score_logits_
from dft_plugin.objectives import DFT, Targets
from dft_plugin.plans import plan_for

MARGIN = 1.2
"""Ours may be so many times as far from the truth as autograd is: where both only round, chance decides."""

NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Problem:
    """Inputs, and what the model does to the logits."""

    inputs: HiddenInputs
    transform: Transform

    @property
    def head(self) -> Head:
        """The head."""
        return Head(self.inputs.weight_VH, transform=self.transform)

    def errors(self, score: Callable[[Problem], Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
        """Return relative errors of the sum of the loss and of the gradients, by norms."""
        self.inputs.prepare()
        loss_sum = score(self)
        loss_sum.backward()
        found = {"loss": loss_sum.detach(), **self.inputs.gradients()}
        return {
            key: float((found[key].double() - true).norm() / true.norm().clamp(min=1e-300))
            for key, true in truth.items()
        }


def truth_of(problem: Problem) -> dict[str, Tensor]:
    """Work out loss and gradients in float64, by hand: w * (softmax - onehot), through scale and cap."""
    hidden_NH, weight_VH = (
        tensor.detach().double() for tensor in (problem.inputs.hidden_NH, problem.inputs.weight_VH)
    )
    labels_N1, transform = problem.inputs.labels_N[:, None], problem.transform
    logits_NV = hidden_NH @ weight_VH.t() * transform.scale
    slope_NV: Tensor | float = transform.scale
    if transform.softcap is not None:
        tanh_NV = (logits_NV / transform.softcap).tanh()
        logits_NV, slope_NV = tanh_NV * transform.softcap, transform.scale * (1 - tanh_NV.square())
    logp_NV = logits_NV.log_softmax(-1)
    logp_N1 = logp_NV.gather(1, labels_N1)
    grad_NV = logp_NV.exp().scatter_add_(1, labels_N1, -torch.ones_like(logp_N1)) * logp_N1.exp() * slope_NV
    return {
        "loss": -(logp_N1.exp() * logp_N1).sum(),
        "hidden": grad_NV @ weight_VH,
        "weight": grad_NV.t() @ hidden_NH,
    }


def _plain(problem: Problem) -> Tensor:
    inputs = problem.inputs
    return reference(inputs.hidden_NH, problem.head, Targets(inputs.labels_N), DFT()).loss_sum


def _lean(kernel: str) -> Callable[[Problem], Tensor]:
    plan = plan_for({"name": "dft", "kernel": kernel})
    return lambda problem: hidden_loss(plan, problem.inputs.hidden_NH, problem.head, problem.inputs.labels_N).loss_sum


def _opaque(problem: Problem) -> Tensor:
    weight_VH = problem.inputs.weight_VH
    head = OpaqueHead(lambda hidden_NH: hidden_NH @ weight_VH.t(), weight_VH.shape[0], problem.transform, (weight_VH,))
    return hidden_loss(plan_for("dft"), problem.inputs.hidden_NH, head, problem.inputs.labels_N).loss_sum


def _on_logits(overwrite: bool) -> Callable[[Problem], Tensor]:
    plan, kernel = plan_for("dft"), score_logits_ if overwrite else score_logits

    def score(problem: Problem) -> Tensor:
        logits_NV = problem.transform(problem.inputs.logits())
        return logits_loss(plan, logits_NV, problem.inputs.labels_N, kernel=kernel).loss_sum

    return score


KERNELS: dict[str, Callable[[Problem], Tensor]] = {
    "chunked": _lean("chunked"),
    "blocked": _lean("blocked"),
    "opaque": _opaque,
    "score_logits": _on_logits(False),
    "score_logits_": _on_logits(True),
}


def compare(options: Options, sheet: Sheet) -> None:
    """Compare each kernel, in each dtype, at vocabularies whose rows do and do not begin on 16 bytes."""
    vocabs = (512, 509) if options.small else (151_936, 50_257)
    tokens, hidden = (24, 16) if options.small else (384, 896)
    caps = (None, 30.0)
    sheet.say(
        f"N = {tokens}, H = {hidden}, trained head, `loss: dft`; relative errors by norms, in brackets those of "
        f"textbook autograd in the same dtype. Far: more than {MARGIN:g} times autograd's."
    )
    sheet.head("V", "dtype", "softcap", "kernel", "loss", "hidden states", "weight", "")
    for vocab in vocabs:
        for dtype in ("float32", "bfloat16", "float16"):
            shape = Shape(tokens, hidden, vocab, dtype, trained=True, device=options.device)
            for cap in caps if dtype == "bfloat16" else caps[:1]:
                _rows(Problem(HiddenInputs(shape), Transform(softcap=cap)), sheet)
                forget(options.device)


def _rows(problem: Problem, sheet: Sheet) -> None:
    shape, cap = problem.inputs.shape, problem.transform.softcap
    truth = truth_of(problem)
    plain = problem.errors(_plain, truth)
    for name, score in KERNELS.items():
        if name.startswith("score_logits") and cap is not None:
            # There the cap is the model's, and rounded as the model rounds it.
            continue
        key = [f"{shape.vocab:,}", shape.dtype, cap or "", name]
        try:
            found = problem.errors(score, truth)
        except Exception as error:
            sheet.row_failed(*key, "", "", "", f"**failed: {sheet.fault(' '.join(map(str, key)), error)}**")
            continue
        near = all(found[of] <= MARGIN * plain[of] + NEGLIGIBLE for of in found)
        sheet.row(*key, *(f"{found[of]:.1e} ({plain[of]:.1e})" for of in found), "" if near else "**far**")
        sheet.keep("/".join(map(str, key)), {**found, "near": near})
