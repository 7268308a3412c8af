"""FSDP2 with two processes and a reference: the gradients are those of one process, or the refusal's text.

`fully_shard` is called directly, as in test_sharded.py.
"""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from support import attached, referred, tiny
from support.referred import LOSSES
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from dft_plugin import attach

fsdp = pytest.importorskip("torch.distributed.fsdp")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.slow

WORLD = 2
LAYOUTS = {
    "layers": {"target_modules": ["q_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head apart": {"target_modules": ["q_proj"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}
REFERENCES = ("base", "start", "copy")
KERNELS = ("auto", "logits")
WRITTEN = {f"{loss}, {kernel}": {**LOSSES[loss][0], "kernel": kernel} for loss in LOSSES for kernel in KERNELS}


def build(layout):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **LAYOUTS[layout])
    model = peft.get_peft_model(tiny.llama().train(), config)
    # The same on every rank: peft draws from the global generator.
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def shard(model, layout):
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.get_base_model().model.layers:
        fsdp.fully_shard(layer, mesh=mesh)
    if layout == "head apart":
        fsdp.fully_shard(model.get_base_model().lm_head, mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)


def rank_batch(rank):
    # Different numbers of targets on the ranks.
    return tiny.batch(masked=3 if rank == 0 else 14, seed=rank)


def count():
    return sum(int((rank_batch(rank)["labels"][:, 1:] != -100).sum()) for rank in range(WORLD))


def full(grad):
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


def train(rank, layout, written):
    model = build(layout)
    attachment = attach(model, written)
    shard(model, layout)
    steps = []
    for _ in range(3):
        model.zero_grad()
        value = model(**rank_batch(rank), num_items_in_batch=count()).loss
        # FSDP2 averages over ranks; a Trainer multiplies by their number.
        (value * WORLD).backward()
        grads = {name: full(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        total = value.detach().clone()
        dist.all_reduce(total)
        steps.append((total.item(), grads))
    return {"steps": steps, "route": attachment.route}


def train_copies(rank, reference):
    """Under DDP, from a second step on: what the run began with is not the model any more."""
    model = build("layers") if reference != "copy" else tiny.llama().train()
    attach(model, {**LOSSES["asft"][0], "reference": reference})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    copies = torch.nn.parallel.DistributedDataParallel(model)
    # The mean over ranks.
    value = copies(**rank_batch(rank), num_items_in_batch=count()).loss * WORLD
    value.backward()
    total = value.detach() / WORLD
    dist.all_reduce(total)
    return total.item(), tiny.gradients(model)


def refused(layout, reference):
    model = build(layout)
    attach(model, {"name": "asft", "reference": reference})
    shard(model, layout)
    try:
        model(**rank_batch(0))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def run_rank(rank, port, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        saved = {(layout, name): train(rank, layout, WRITTEN[name]) for layout in LAYOUTS for name in WRITTEN}
        saved |= {("ddp", reference): train_copies(rank, reference) for reference in REFERENCES}
        saved |= {reference: refused("layers", reference) for reference in ("start", "copy")}
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
    """What rank 0 saw; one start of two processes for all cases, since that is what takes the time."""
    out = tmp_path_factory.mktemp("ranks") / "rank0.pt"
    torch.multiprocessing.spawn(run_rank, (free_port(), out), nprocs=WORLD)
    return torch.load(out, weights_only=False)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_get_the_gradients_of_one_process(layout, name, saved):
    seen, model = saved[layout, name], build(layout)
    whole = {key: torch.cat([rank_batch(rank)[key] for rank in range(WORLD)]) for key in rank_batch(0)}
    asked = {key: value for key, value in whole.items() if key != "labels"}
    with torch.no_grad(), model.disable_adapter():
        ref_logits = model.eval()(**asked).logits
    formula = LOSSES[name.rsplit(", ", 1)[0]][1]
    theirs = referred.truth(model.train(), whole, ref_logits, formula, num_items=count())
    for step in seen["steps"]:
        attached.assert_same(step, theirs)
    assert seen["route"].path == ("logits" if name.endswith("logits") else "lean")


@pytest.mark.parametrize("reference", REFERENCES)
def test_copies_of_the_model_take_any_reference(reference, saved):
    model = build("layers") if reference != "copy" else tiny.llama().train()
    whole = {key: torch.cat([rank_batch(rank)[key] for rank in range(WORLD)]) for key in rank_batch(0)}
    asked = {key: value for key, value in whole.items() if key != "labels"}
    with torch.no_grad(), model.disable_adapter() if reference == "base" else nullcontext():
        ref_logits = model.eval()(**asked).logits
    # Behind it, since `disable_adapter` freezes meanwhile.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    theirs = referred.truth(model.train(), whole, ref_logits, LOSSES["asft"][1], num_items=count())
    attached.assert_same(saved["ddp", reference], theirs)


@pytest.mark.parametrize("reference", ["start", "copy"])
def test_what_would_need_whole_weights_is_refused(reference, saved):
    assert saved[reference].startswith("UnsupportedModelError: ")
    assert f"`reference: {reference}`" in saved[reference]
