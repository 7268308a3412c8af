"""Cases of the vocabulary-parallel kernel, run on every rank of a group in one start of its processes.

A start takes seconds, a case milliseconds.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from dft_plugin import vocab_parallel_token_loss
from dft_plugin.errors import DftError
from dft_plugin.kernels import Head, ShardedHead, Transform, VocabShard, chunked, vocab_parallel
from dft_plugin.objectives import DFT, NLL, Targets
from support import halves, problems

NEEDS = frozenset({"entropy", "sum_p_squared"})
EXTREMES = (1e-30, 1e-9, 0.5, 1 - 1e-6, 1 - 1e-9)
SPLITS = {
    "even": {2: lambda V: (V - V // 2, V // 2), 4: lambda V: tuple((V + spare) // 4 for spare in range(4))},
    # Some hold next to nothing, or nothing.
    "uneven": {2: lambda V: (3, V - 3), 4: lambda V: (2, 0, V - 3, 1)},
    "first": {2: lambda V: (V, 0), 4: lambda V: (V, 0, 0, 0)},
}
PROBLEMS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 5.0},
    "all": {"bias": True, "scale": 0.5, "softcap": 10.0},
    "narrow": {"shape": (130, 17, 1031), "bias": True},
    "small": {"shape": (7, 3, 5), "softcap": 3.0},
}
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def with_every_target():
    """A problem in which each row of the head is a target, so each rank holds some."""
    made = problems.problem((31, 9, 31), bias=True, softcap=8.0)
    made.targets_T.copy_(torch.arange(31))
    return made


def with_probability(p):
    """The identity as head, so that no GEMM rounds."""
    logits, targets = problems.logits_with_probability(p, T=60, V=33)
    weight = torch.eye(33, requires_grad=True)
    return problems.Problem(logits.requires_grad_(), targets, weight, None, None, 1.0, None)


def sharded(made, rows):
    """This rank's part of a problem's head, its tensors leaves of their own."""
    shard = VocabShard(None, rows)
    mine = slice(shard.first_row, shard.first_row + shard.local_rows)

    def leaf(whole):
        return None if whole is None else whole.detach()[mine].clone().requires_grad_()

    return ShardedHead(leaf(made.weight_VD), shard, leaf(made.bias_V), Transform(made.scale, made.softcap))


def leaves(made, head):
    return [made.hidden_TD, head.weight_LD, *([] if head.bias_L is None else [head.bias_L])]


def answer(result, inputs, T, **options):
    """What a kernel gave, and the gradients of the mean loss."""
    gradients = torch.autograd.grad(result.loss_sum / T, inputs, **options)
    return {
        "loss": result.loss_sum.detach() / T,
        "weight": result.weight_T,
        "grads": gradients,
        **{key: row for key, row in vars(result.rows).items() if key != "added"},
    }


def score(made, split, objective=None, **options):
    rows = split(made.weight_VD.shape[0])
    head = sharded(made, rows)
    result = vocab_parallel(made.hidden_TD, head, Targets(made.targets_T), objective or DFT(), needs=NEEDS, **options)
    return answer(result, leaves(made, head), made.targets_T.numel())


def whole(made, objective=None, **options):
    """The same by `chunked` in one process."""
    head = Head(made.weight_VD, made.bias_V, Transform(made.scale, made.softcap))
    result = chunked(made.hidden_TD, head, Targets(made.targets_T), objective or DFT(), needs=NEEDS, **options)
    return answer(result, made.inputs, made.targets_T.numel())


def chunks_problem():
    return problems.problem((300, 5, 67), bias=True, scale=0.5, softcap=5.0)


def small():
    return problems.problem((12, 5, 11), bias=True, scale=0.5, softcap=5.0)


class CountReductions:
    """Counts calls of `all_reduce` while it is entered, and the elements that they carried."""

    def __enter__(self):
        self.calls, self.real = [], dist.all_reduce
        dist.all_reduce = self
        return self

    def __call__(self, tensor, op=None, group=None):
        self.calls.append(tensor.numel())
        return self.real(tensor, op, group=group)

    def __exit__(self, *_):
        dist.all_reduce = self.real


def frozen_case(split):
    """Which gradients there are if parts are frozen, on one rank only or on all; and what they cost."""
    seen = {}
    for frozen in ("hidden", "weight", "weight of rank 0", "bias", "everything"):
        made = small()
        head = sharded(made, split(11))
        made.hidden_TD.requires_grad_(frozen not in ("hidden", "everything"))
        last = frozen == "weight of rank 0" and dist.get_rank() > 0
        head.weight_LD.requires_grad_(last or frozen not in ("weight", "weight of rank 0", "everything"))
        head.bias_L.requires_grad_(frozen not in ("bias", "everything"))
        with CountReductions() as counter:
            loss = vocab_parallel(made.hidden_TD, head, Targets(made.targets_T), DFT()).loss_sum / 12
        if loss.requires_grad:
            loss.backward()
        seen[frozen] = [*(tensor.grad for tensor in leaves(made, head)), counter.calls]
    with torch.no_grad(), CountReductions() as counter:
        made = small()
        loss = vocab_parallel(made.hidden_TD, sharded(made, split(11)), Targets(made.targets_T), DFT()).loss_sum
    seen["no grad"] = [loss.requires_grad, counter.calls]
    return seen


def backward_case(split):
    made = small()
    head = sharded(made, split(11))
    loss = vocab_parallel(made.hidden_TD, head, Targets(made.targets_T), DFT()).loss_sum / 12
    upstreams = (-3.0, 1.0, 2.0)
    grads = [torch.autograd.grad(u * loss, leaves(made, head), retain_graph=True) for u in upstreams]
    return [[grad / u for grad in found] for u, found in zip(upstreams, grads, strict=True)]


def nothing_case(split):
    made = small()
    head = sharded(made, split(11))
    hidden = torch.empty(0, 5, requires_grad=True)
    result = vocab_parallel(hidden, head, Targets(made.targets_T[:0]), DFT(), needs=NEEDS)
    result.loss_sum.backward()
    grads = [hidden.grad, head.weight_LD.grad, head.bias_L.grad]
    return {"loss": result.loss_sum.detach(), "entropy": result.rows.entropy_T, "grads": grads}


def autocast_case(split):
    made = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = sharded(made, split(11))
        result = vocab_parallel(made.hidden_TD, head, Targets(made.targets_T), DFT(), needs=NEEDS)
    first = answer(result, leaves(made, head), 12, retain_graph=True)
    again = torch.autograd.grad(result.loss_sum / 12, leaves(made, head))
    return {**first, "again": again}


def strided_case(split):
    made = small()
    hidden = made.hidden_TD.detach().t().contiguous().t().requires_grad_()
    head = sharded(made, split(11))
    loss = vocab_parallel(hidden, head, Targets(made.targets_T), DFT()).loss_sum / 12
    return torch.autograd.grad(loss, [hidden, head.weight_LD, head.bias_L])


def function_inputs():
    made = problems.problem((24, 5, 11), bias=True, scale=0.5, softcap=5.0)
    labels = made.targets_T.clone()
    labels[::3] = -100
    return made, made.hidden_TD.view(2, 12, 5), labels.view(2, 12)


def function_case(split):
    made, hidden, labels = function_inputs()
    head = sharded(made, split(11))
    options = {"local_bias": head.bias_L, "objective": {"alpha": 0.5}, "logit_scale": 0.5, "softcap": 5.0}
    loss = vocab_parallel_token_loss(hidden, head.weight_LD, labels, num_items=20, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves(made, head))]


def errors_case(split):
    made, hidden, labels = function_inputs()
    head = sharded(made, split(11))
    rank = dist.get_rank()
    wrong = {
        "labels": lambda: vocab_parallel_token_loss(hidden, head.weight_LD, labels + rank),
        "tokens": lambda: vocab_parallel_token_loss(
            hidden[:1] if rank else hidden, head.weight_LD, labels[:1] if rank else labels
        ),
        "one objective": lambda: vocab_parallel_token_loss(
            hidden, head.weight_LD, labels, objective="dff" if rank == 0 else "dft"
        ),
        # A rank that raises by itself lets nobody wait.
        "one shape": lambda: vocab_parallel_token_loss(hidden, head.weight_LD, labels[:1] if rank == 1 else labels),
        "one number": lambda: vocab_parallel_token_loss(
            hidden, head.weight_LD, labels, num_items="20" if rank == 0 else 20
        ),
        "foreign label": lambda: vocab_parallel_token_loss(hidden, head.weight_LD, torch.full_like(labels, 11)),
        "whole head": lambda: ShardedHead(made.weight_VD, VocabShard.even(11)),
        "number of ranks": lambda: VocabShard(None, (11,)),
    }
    seen = {}
    for name, call in wrong.items():
        try:
            call()
        except DftError as error:
            seen[name] = f"{type(error).__name__}: {error}"
    return seen


def halves_case(split):
    """Gradients under a loss scale, of each probability and dtype of `halves`."""
    seen = {}
    for dtype in HALF.values():
        for p in (*halves.PROBABILITIES, "all"):
            made = halves.problem(p, dtype=dtype, **halves.HEADS["vocab"])
            head = sharded(made, split(halves.V))
            loss = vocab_parallel(made.hidden_TD, head, Targets(made.targets_T), DFT()).loss_sum / 64 * 65536.0
            seen[dtype, p] = torch.autograd.grad(loss, leaves(made, head))
    return seen


def even_case(split):
    return [VocabShard.even(V).rows for V in (5, 8, 31)]


SPECIAL = {
    "frozen": frozen_case,
    "backward": backward_case,
    "nothing": nothing_case,
    "autocast": autocast_case,
    "strided": strided_case,
    "function": function_case,
    "errors": errors_case,
    "even": even_case,
    "halves": halves_case,
}


def reductions_case(split):
    with CountReductions() as counter:
        score(chunks_problem(), split, scratch_bytes=0)
    return counter.calls


def answers(world):
    """Every case of a world, on this rank."""
    seen = {}
    for name, by_world in SPLITS.items():
        split = by_world[world]
        for kind, changes in PROBLEMS.items():
            seen[name, kind] = score(problems.problem(**changes), split)
        for kind, dtype in HALF.items():
            seen[name, kind] = score(problems.problem(dtype=dtype, **PROBLEMS["all"]), split)
        for p in EXTREMES:
            seen[name, p] = score(with_probability(p), split)
        for scratch in (0, 100 * 67 * 4, 1 << 30):
            seen[name, "chunks", scratch] = score(chunks_problem(), split, scratch_bytes=scratch)
        seen[name, "every target"] = score(with_every_target(), split)
        seen[name, "nll"] = score(small(), split, NLL())
        seen[name, "reductions"] = reductions_case(split)
        for kind, case in SPECIAL.items():
            seen[name, kind] = case(split)
    return seen


def run_rank(rank, world, port, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(answers(world), out / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
