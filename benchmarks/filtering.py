"""Is it worth to leave vocabulary columns out of the gradient? `python -m benchmarks.filtering` measures it.

The kernel here scores a chunk exactly, and then makes the gradient from the columns that carry all but a given share
of the chunk's gradient mass: the sum over its tokens of |d loss / d logit|. The share is relative, so that a flat
distribution keeps all its columns; targets are always kept. What was found is in docs/benchmarks/filtering.md; the
package does not offer it.

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary, K columns kept.
"""

from __future__ import annotations

import argparse
import random
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.__main__ import MODEL
from demo.model import prepare_model
from dft_plugin.core.loss import LossPlan
from dft_plugin.hf.attachment import attach_plan
from dft_plugin.kernels import IDENTITY, Head, KernelResult, chunked
from dft_plugin.kernels.results import as_outputs, from_outputs, join, weigh
from dft_plugin.kernels.scoring import score_rows_
from dft_plugin.objectives import DFT, Objective

SHARES = (2**-9, 0.01, 0.05)
CHUNK = 512


class _Filtered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        objective: Objective,
        share: float,
        kept: Any,
    ) -> tuple[Tensor | None, ...]:
        grad_TD = torch.empty_like(hidden_TD)
        grad_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        parts: list[KernelResult] = []
        for start in range(0, hidden_TD.shape[0], CHUNK):
            chunk = slice(start, start + CHUNK)
            buffer_CV = hidden_TD[chunk] @ weight_VD.t()
            scored = score_rows_(buffer_CV, targets_T[chunk], IDENTITY, objective.needs)
            part = weigh(objective, scored.rows)
            factor_C = part.weight_T * scored.inverse_norm_T
            columns_K = columns_to_keep(buffer_CV, factor_C, targets_T[chunk], share)
            grad_CK = buffer_CV.index_select(1, columns_K).mul_(factor_C[:, None])
            grad_TD[chunk] = grad_CK @ weight_VD[columns_K]
            if grad_VD is not None:
                grad_VD.index_add_(0, columns_K, grad_CK.t() @ hidden_TD[chunk])
            kept.append(columns_K.numel() / weight_VD.shape[0])
            parts.append(part)
        ctx.grads = grad_TD, grad_VD
        return as_outputs(ctx, join(parts))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_TD, grad_VD = ctx.grads
        return grad_TD * upstream, None if grad_VD is None else grad_VD * upstream, None, None, None, None


def columns_to_keep(buffer_CV: Tensor, factor_C: Tensor, targets_C: Tensor, share: float) -> Tensor:
    """Return the indices of the columns beside which the others carry at most `share` of the gradient mass."""
    # Only the target's entry is negative.
    mass_V = factor_C @ buffer_CV
    at_target_C = buffer_CV.gather(1, targets_C[:, None])[:, 0]
    mass_V.index_add_(0, targets_C, -2 * factor_C * at_target_C)
    ascending_V, order_V = mass_V.double().sort()
    dropped = int((ascending_V.cumsum(0) <= share * ascending_V.sum()).sum())
    return torch.cat([order_V[dropped:], targets_C]).unique()


@dataclass
class Filter:
    """A kernel with a share; `kept` gathers the part of the columns that each chunk kept."""

    share: float
    kept: list[float] = field(default_factory=list)
    __name__ = "filtered"

    def __call__(
        self, hidden_TD: Tensor, head: Head, targets_T: Tensor, objective: Objective, **_: Any
    ) -> KernelResult:
        """Score; the head must be a plain weight."""
        outputs = _Filtered.apply(  # type: ignore[no-untyped-call]
            hidden_TD, head.weight_VD, targets_T, objective, self.share, self.kept
        )
        return from_outputs(outputs)


def texts(tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Yield rows of token ids from the standard library's own modules, in an order that does not change."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(0).shuffle(files)
    for file in files:
        ids = tokenizer(file.read_text(encoding="utf-8", errors="ignore")).input_ids
        if len(ids) > 2 * length:
            yield ids[length : 2 * length]


def measure_gradients(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> None:
    """Print, for each share: columns kept, time, and the error of the gradients beside bfloat16's own."""

    def gradients(
        kernel: Callable[..., KernelResult], dtype: torch.dtype, trained: bool
    ) -> tuple[float, list[Tensor]]:
        hidden = hidden_TD.to(dtype).requires_grad_()
        weight = weight_VD.to(dtype).requires_grad_(trained)
        inputs = [hidden, weight] if trained else [hidden]
        start = time.process_time()
        result = kernel(hidden, Head(weight), targets_T, DFT(), needs=frozenset(), scratch_bytes=256 << 20)
        found = torch.autograd.grad(result.loss_sum, inputs)
        return time.process_time() - start, [gradient.double() for gradient in found]

    def gap(ours: Tensor, truth: Tensor) -> float:
        return float((ours - truth).norm() / truth.norm())

    truth = gradients(chunked, torch.float64, True)[1]
    half = gradients(chunked, torch.bfloat16, True)[1]
    print("| gradient | columns kept | time, frozen | time, trained | error, hidden | error, weight |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| exact, bfloat16 | 100 % | | | {gap(half[0], truth[0]):.1e} | {gap(half[1], truth[1]):.1e} |")
    for share in SHARES:
        seconds: dict[tuple[str, bool], list[float]] = {}
        kernel = Filter(share)
        for _ in range(4):
            for trained in (False, True):
                for name, candidate in (("exact", chunked), ("filtered", kernel)):
                    took, found = gradients(candidate, torch.float32, trained)
                    seconds.setdefault((name, trained), []).append(took)
        frozen, trained_ = (min(seconds["filtered", t]) / min(seconds["exact", t]) for t in (False, True))
        columns = sum(kernel.kept) / len(kernel.kept)
        errors = f"{gap(found[0], truth[0]):.1e} | {gap(found[1], truth[1]):.1e}"
        print(f"| share {share:.2g} | {columns:.1%} | {frozen:.2f} | {trained_:.2f} | {errors} |", flush=True)


def train(kernel: Any, rows: list[list[int]], held_out: list[list[int]], steps: int, seed: int) -> None:
    """Train LoRA with the kernel on `rows`, and print the held-out numbers on the way."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    attachment = attach_plan(model, LossPlan(DFT(), kernel, "lean", None))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    order = random.Random(seed)
    start = time.process_time()
    for step in range(steps + 1):
        if step % 20 == 0:
            spent = time.process_time() - start
            model.eval()
            with torch.no_grad(), attachment.answering(want_logits=False):
                for row in held_out:
                    model(input_ids=torch.tensor([row]), labels=torch.tensor([row]))
            logs = attachment.drain(training=False).as_logs()
            model.train()
            name = f"share {kernel.share:.2g}" if isinstance(kernel, Filter) else "exact"
            numbers = f"{logs['dft/loss']:.4f} | {logs['dft/nll']:.4f} | {logs['dft/mean_prob']:.4f}"
            print(f"| {name}, seed {seed} | {step} | {numbers} | {spent:.0f} s |", flush=True)
            start = time.process_time() - spent
        ids = torch.tensor(order.sample(rows, 4))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    """Measure the gradients on a chunk of real hidden states, then train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--length", type=int, default=160, help="tokens of a row")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    prepare_model(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = list(texts(tokenizer, options.length))
    held_out, rows = rows[:16], rows[16:]
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ids = torch.tensor(rows[:8])
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state
    weight = model.lm_head.weight.detach()
    measure_gradients(hidden[:, :-1].reshape(-1, hidden.shape[-1])[:1024], weight, ids[:, 1:].reshape(-1)[:1024])
    print("\n| run | step | held-out loss | held-out nll | mean p | training time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kernel, seed in [(chunked, 0), *((Filter(share), 0) for share in SHARES), (chunked, 1)]:
        train(kernel, rows, held_out, options.steps, seed)


if __name__ == "__main__":
    main()
