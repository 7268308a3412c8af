"""A pass that only looks leaves buffers as they were, and nobody waits for a device to find that out."""

from __future__ import annotations

import pytest
import torch
from support import waits
from torch import nn

from dft_plugin.hf.untouched import untouched


def holding(buffer):
    module = nn.Module()
    module.register_buffer("buffer", buffer)
    return module


def inference():
    with torch.inference_mode():
        return torch.arange(3.0)


BUFFERS = {
    "plain": lambda: torch.arange(3.0),
    "expanded": lambda: torch.ones(1, 2).expand(3, 2),
    "scalar": lambda: torch.ones(()),
    "empty": lambda: torch.ones(0, 2),
    "integers": lambda: torch.arange(3),
    "of inference mode": inference,
}


def first_of(tensor):
    """A view of the first number in memory, which may stand in several places."""
    return tensor.as_strided((min(1, tensor.numel()),), (1,))


def write_as_a_module_does(module):
    with torch.inference_mode(module.buffer.is_inference()):
        first_of(module.buffer).add_(1)


def write_behind_autograd(module):
    with torch.inference_mode(module.buffer.is_inference()):
        first_of(module.buffer.data).add_(1)


def put_another(module):
    module.buffer = module.buffer + 1


@pytest.mark.parametrize("write", [write_as_a_module_does, write_behind_autograd, put_another])
@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS.keys())
def test_a_buffer_holds_what_it_held_however_it_was_written(make, write):
    module = holding(make())
    buffer, before = module.buffer, module.buffer.clone()
    with untouched(module):
        write(module)
    assert module.buffer is buffer
    assert torch.equal(module.buffer, before)


@pytest.mark.parametrize("outer", [False, True])
def test_so_it_does_in_inference_mode(outer):
    module = holding(torch.arange(3.0))
    with torch.inference_mode(outer), untouched(module):
        write_behind_autograd(module)
    assert module.buffer.tolist() == [0, 1, 2]


def test_a_graph_that_has_saved_a_buffer_goes_backward():
    module, x = holding(torch.arange(3.0)), torch.ones(3, requires_grad=True)
    y = x * module.buffer
    with untouched(module):
        write_behind_autograd(module)
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 2]


def test_nobody_waits():
    module = nn.Sequential(nn.BatchNorm1d(3), holding(torch.arange(3)))
    with waits.watching() as found, untouched(module):
        module[0](torch.ones(2, 3))
    assert not found.seen
