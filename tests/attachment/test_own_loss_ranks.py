"""A class with a loss of its own, sharded over two processes: both check it, and stay together."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
from support import attached, tiny
from support.own_losses import WithoutPadding
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig

from dft_plugin import attach

fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = pytest.mark.slow

WORLD = 2
LOSSES = {"lean": "dft", "logits": {"name": "dft", "kernel": "logits"}}


def build():
    torch.manual_seed(0)
    return WithoutPadding(LlamaConfig(**tiny.SHAPE)).train()


def rank_batch(rank, first=False):
    """Labelled padding on rank 1; in the first batch rank 0 scores nothing, and pads nothing."""
    batch = tiny.batch(masked=3 if rank == 0 else 14, seed=rank)
    if rank == 1:
        batch["labels"][-1, -4:] = batch["input_ids"][-1, -4:]
    if rank == 0 and first:
        batch["labels"][:] = -100
        batch["attention_mask"][:] = 1
    return batch


def scored(batch):
    return {**batch, "labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)}


def count():
    return sum(int((scored(rank_batch(rank))["labels"][:, 1:] != -100).sum()) for rank in range(WORLD))


def train(rank, loss):
    model = build()
    attach(model, loss)
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.model.layers:
        fsdp.fully_shard(layer, mesh=mesh)
    fsdp.fully_shard([model.model.norm, model.lm_head], mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)
    (model(**rank_batch(rank, first=True)).loss * WORLD).backward()
    model.zero_grad()
    value = model(**rank_batch(rank), num_items_in_batch=count()).loss
    (value * WORLD).backward()
    grads = {name: p.grad.full_tensor() for name, p in model.named_parameters() if isinstance(p.grad, DTensor)}
    total = value.detach().clone()
    dist.all_reduce(total)
    return total.item(), grads


def run_rank(rank, port, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        saved = {name: train(rank, loss) for name, loss in LOSSES.items()}
        if rank == 0:
            torch.save(saved, out)
    finally:
        dist.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What rank 0 saw; one start of two processes for both cases."""
    out = tmp_path_factory.mktemp("ranks") / "rank0.pt"
    torch.multiprocessing.spawn(run_rank, (free_port(), out), nprocs=WORLD)
    return torch.load(out, weights_only=False)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_ranks_check_alike_and_get_the_gradients_of_one_process(loss, saved):
    batches = [scored(rank_batch(rank)) for rank in range(WORLD)]
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    attached.assert_same(saved[loss], attached.truth(build(), whole, num_items=count()))
