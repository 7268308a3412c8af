"""Gradients that are sharded (FSDP2) are multiplied where they are: this rank's part of each."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from support import by_hand, tiny, training
from support.weighers import Divided
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dft_plugin import activate

pytestmark = pytest.mark.host


@pytest.fixture
def mesh():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_step_is_divided_by_the_sum_of_all_its_parts(mesh, tmp_path):
    model = tiny.llama()
    trainer = training.trainer(
        tmp_path,
        model,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=by_hand.RATE,
    )
    for part in (*model.model.layers, model.lm_head, model):
        fully_shard(part, mesh=mesh)
    rows = by_hand.watched(trainer)
    activate(trainer, Divided())
    trainer.train()
    expected = by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 3), by_hand.dft)
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert all(isinstance(value, DTensor) for value in ours.values())
    whole = {name: value.full_tensor().double() for name, value in ours.items()}
    assert tiny.max_gap(whole, expected.weights) < expected.tolerance
    assert training.losses(trainer) == pytest.approx(expected.losses, rel=1e-5)
