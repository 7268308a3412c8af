"""An error of the model is the model's: it reaches the caller at once, and nothing is different afterwards."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist
from support import attached, tiny
from transformers import BambaConfig, BambaForCausalLM, LlamaForCausalLM

from dft_plugin import attach

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
ERRORS = {
    "out of memory": OUT_OF_MEMORY,
    "out of memory, in words": RuntimeError("CUDA out of memory. Tried to allocate 1 GiB"),
    "host memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    "MemoryError": MemoryError(),
    "a shape": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "a value": ValueError("Image features and image tokens do not match"),
    "an interrupt": KeyboardInterrupt(),
}


def bamba():
    torch.manual_seed(0)
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}
    return BambaForCausalLM(BambaConfig(**tiny.SHAPE, **mamba, attn_layer_indices=[1], z_loss_coefficient=0.1))


class Failing:
    """A module's forward that fails once."""

    def __init__(self, module, error):
        self.plain, self.error, self.calls = module.forward, error, 0
        module.forward = self

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 1:
            raise self.error
        return self.plain(*args, **kwargs)


@pytest.mark.parametrize("make", [tiny.llama, bamba])
@pytest.mark.parametrize("warm", [0, 1], ids=["first batch", "later"])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_it_reaches_the_caller_and_the_next_batch_is_as_ever(make, warm, error):
    batch = tiny.batch()
    fresh = make().train()
    attach(fresh)
    expected = attached.backward(fresh, batch)
    model = make().train()
    attachment = attach(model)
    for _ in range(warm):
        attached.backward(model, batch)
    failing = Failing(model.model.layers[0], error)
    with pytest.raises(type(error)) as caught:
        model(**batch)
    assert caught.value is error
    assert failing.calls == 1, "no other pass was tried"
    attached.assert_same(attached.backward(model, batch), expected)
    assert attachment.route.path == ("lean" if make is tiny.llama else "logits")


class OwnLoss(LlamaForCausalLM):
    """Makes its loss itself, of logits that must have one row for each label; a fault can be put behind the head."""

    fault = None

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if labels is not None:
            rows = output.logits[:, :-1].reshape(-1, self.config.vocab_size)
            output.loss = torch.nn.functional.cross_entropy(rows, labels[:, 1:].reshape(-1))
        return output


class AsksBehindAFault(OwnLoss):
    def forward(self, *args, labels=None, **kwargs):
        output = super().forward(*args, **kwargs)
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, self.config.vocab_size)
        return output


def test_a_loss_of_the_classes_own_that_cannot_take_the_stand_in_is_found_out():
    model = OwnLoss(tiny.llama().config).train()
    theirs = attached.truth(model, tiny.batch())
    attach(model)
    for _ in range(3):
        attached.assert_same(attached.backward(model, tiny.batch()), theirs)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, ERRORS["a shape"], ERRORS["out of memory, in words"]])
def test_an_error_behind_the_head_is_the_models_where_it_asks_for_a_loss(error):
    model = AsksBehindAFault(tiny.llama().config).train()
    theirs = attached.truth(model, tiny.batch())
    model.fault = error
    attachment = attach(model)
    with pytest.raises(type(error)) as caught:
        model(**tiny.batch())
    assert caught.value is error
    assert attachment.route is None
    attached.assert_same(attached.backward(model, tiny.batch()), theirs)
    assert attachment.route.path == "lean"


def run_rank(rank, rendezvous, out, at):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=limit)
    model = AsksBehindAFault(tiny.llama().config).train()
    attach(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    told = ""
    for step in (1, 2):
        if step == at and rank == 1:
            model.fault = ERRORS["a shape"]
        try:
            model(**tiny.batch(seed=rank)).loss.backward()
        except RuntimeError as error:
            told = f"{step}: {error}"
            break
    (out / f"rank{rank}").write_text(told)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2])
def test_on_sharded_models_no_rank_runs_a_pass_that_the_others_do_not(tmp_path, at):
    torch.multiprocessing.spawn(run_rank, (tmp_path / "rendezvous", tmp_path, at), nprocs=2)
    ours, theirs = ((tmp_path / f"rank{rank}").read_text() for rank in (1, 0))
    assert ours.startswith(f"{at}: The size of tensor a (3) must match")
    if at == 1:
        assert "rank 1 failed in the first forward pass: RuntimeError: The size of tensor a (3)" in theirs


def run_rank_with_another_verdict(rank, rendezvous, out):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from dft_plugin.hf import calibration

    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=limit)
    if rank == 1:
        calibration.ask = lambda probed, seen, steps: calibration.Reading("this rank sees something else")
    model = tiny.llama().train()
    attachment = attach(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = [model(**tiny.batch(seed=rank)).loss.item() for _ in range(2)]
    torch.save((attachment.route.path, attachment.route.why_not_lean, losses), out / f"rank{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_that_share_weights_take_the_same_route(tmp_path):
    torch.multiprocessing.spawn(run_rank_with_another_verdict, (tmp_path / "rendezvous", tmp_path), nprocs=2)
    for rank in (0, 1):
        path, reason, losses = torch.load(tmp_path / f"rank{rank}")
        assert (path, reason) == ("logits", "this rank sees something else")
        expected = attached.truth(tiny.llama().train(), tiny.batch(seed=rank))[0]
        assert losses == pytest.approx([expected, expected], rel=1e-5)
