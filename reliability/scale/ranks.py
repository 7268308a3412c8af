"""Real gloo processes that train a tiny model, stock and with our loss, and count what they send."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dft_plugin import activate, attach, vocab_parallel_token_loss
from reliability.scale.counting import Collective, Collectives

VOCAB, WIDTH, ROWS, LENGTH = 128, 32, 4, 24
STEPS, LOG_EVERY = 4, 2
SPLIT_TOKENS = 2200
"""Of the case of a split vocabulary: more than two chunks of the 1,024 rows that one has at most on a CPU."""

Steps = list[list[Collective]]


def model() -> LlamaForCausalLM:
    """Return a model, the same on every rank."""
    torch.manual_seed(0)
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=WIDTH, **sizes)).train()


def batch(seed: int) -> dict[str, Tensor]:
    """Return rows, the more of them masked the higher the seed."""
    ids = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, : 2 + seed] = -100
    return {"input_ids": ids, "labels": labels}


def ddp(loss: Any) -> Iterator[Callable[[], None]]:
    """Each rank has the whole model, and rows of its own."""
    made = model()
    if loss is not None:
        attach(made, loss)
    yield from _steps(nn.parallel.DistributedDataParallel(made), dist.get_rank())


def fsdp2(loss: Any) -> Iterator[Callable[[], None]]:
    """Layers and the rest, the head among it, are sharded."""
    made = model()
    if loss is not None:
        attach(made, loss)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in made.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(made, mesh=mesh)
    yield from _steps(made, dist.get_rank())


def tensor_parallel(loss: Any) -> Iterator[Callable[[], None]]:
    """The head's rows are split, its logits are gathered; all ranks have the same rows of data."""
    made = model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(made, mesh, {"lm_head": ColwiseParallel(output_layouts=Replicate())})
    if loss is not None:
        attach(made, loss)
    yield from _steps(made, 0)


def _steps(made: Any, seed: int) -> Iterator[Callable[[], None]]:
    given = batch(seed)
    for _ in range(STEPS):

        def step() -> None:
            made.zero_grad()
            made(**given, num_items_in_batch=torch.tensor(64)).loss.backward()

        yield step


def split_vocabulary(loss: Any) -> Iterator[Callable[[], None]]:
    """Our own function, on this rank's rows of the head; there is no stock."""
    del loss
    rank, ranks = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(SPLIT_TOKENS, WIDTH, generator=generator).requires_grad_()
    whole = torch.randn(VOCAB, WIDTH, generator=generator)
    own = whole.chunk(ranks)[rank].clone().requires_grad_()
    labels = torch.randint(0, VOCAB, (SPLIT_TOKENS,), generator=generator)
    for _ in range(STEPS):
        yield lambda: vocab_parallel_token_loss(hidden, own, labels).backward()


ENGINES: dict[str, Callable[[Any], Iterator[Callable[[], None]]]] = {
    "DDP": ddp,
    "FSDP2": fsdp2,
    "tensor-parallel head": tensor_parallel,
    "split vocabulary": split_vocabulary,
}


class CountsByItself(Trainer):
    """A trainer whose author counts the items of a step in a way of their own."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        assert self.args.average_tokens_across_devices, "what an author reads is what the user has set"
        return super()._get_num_items_in_batch(batch_samples, device)


def trainer(loss: Any, kind: type[Trainer] = Trainer, **changes: Any) -> list[Collective]:
    """Train by transformers' Trainer on these ranks, and return the collectives of the whole run."""
    rows = [{key: value[0] for key, value in batch(seed % 7).items()} for seed in range(2 * ROWS * STEPS)]
    with tempfile.TemporaryDirectory() as out, _launched():
        given = {"per_device_train_batch_size": 1, "max_steps": STEPS, "logging_steps": LOG_EVERY, "use_cpu": True}
        given |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 1, **changes}
        made = kind(
            model=model(),
            args=TrainingArguments(output_dir=out, **given),
            train_dataset=rows,
            data_collator=lambda rows: {key: torch.stack([row[key] for row in rows]) for key in rows[0]},
        )
        if loss is not None:
            activate(made, loss)
        with Collectives() as counter:
            made.train()
    return counter.take()


@contextmanager
def _launched() -> Iterator[None]:
    """Say to accelerate what a launcher would."""
    before = dict(os.environ)
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks, ACCELERATE_USE_CPU="true")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


TRAINERS: dict[str, dict[str, Any]] = {
    "Trainer": {},
    "Trainer that counts by itself": {"kind": CountsByItself},
    "Trainer, accumulation of 2": {"gradient_accumulation_steps": 2},
    "Trainer, average_tokens_across_devices: false": {"average_tokens_across_devices": False},
}


def count(engine: str, loss: Any) -> Steps:
    """Return the collectives of each step of one case."""
    found = []
    for step in ENGINES[engine](loss):
        with Collectives() as counter:
            step()
        found.append(counter.take())
    return found


def _run(rank: int, ranks: int, port: int, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        found: dict[str, Any] = {}
        for loss in (None, "nll"):
            who = "stock" if loss is None else "ours"
            found |= {f"{engine} | {who}": count(engine, loss) for engine in ENGINES}
            found |= {f"{name} | {who}": [trainer(loss, **changes)] for name, changes in TRAINERS.items()}
        Path(out, f"{rank}.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


def counted(ranks: int) -> dict[str, Steps]:
    """Start the processes; return, for each case and `stock` or `ours`, the collectives of rank 0, step by step.

    Raises:
        AssertionError: the ranks saw different collectives.
    """
    with tempfile.TemporaryDirectory() as out:
        torch.multiprocessing.spawn(_run, (ranks, _free_port(), out), nprocs=ranks)
        first, *others = (json.loads(Path(out, f"{rank}.json").read_text()) for rank in range(ranks))
    assert all([kind for step in steps for kind, _ in step] for steps in first.values())
    for other in others:
        assert {name: _kinds(steps) for name, steps in other.items()} == {
            name: _kinds(steps) for name, steps in first.items()
        }, "the ranks saw different collectives"
    return {name: [[Collective(*one) for one in step] for step in steps] for name, steps in first.items()}


def _kinds(steps: list[list[list[Any]]]) -> list[list[Any]]:
    return [[kind for kind, _ in step] for step in steps]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
