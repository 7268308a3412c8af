"""Small tensors between a device and the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

import dft_plugin
from dft_plugin.core.transfer import Fetched, bring, send, version_of

on_cuda = pytest.param("cuda", marks=pytest.mark.gpu)
every_device = pytest.mark.parametrize("device", ["cpu", on_cuda])


@every_device
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_there_and_back(device, shape, dtype):
    given = torch.full(shape, 7, dtype=dtype)
    there = send(given, torch.device(device))
    assert there.device.type == device
    back = Fetched(there)
    for copy in (back.read(), back.read()):
        assert copy.device.type == "cpu"
        assert copy.dtype == dtype
        assert torch.equal(copy, given)


@every_device
def test_what_is_fetched_has_no_graph(device):
    given = torch.ones(2, device=device, requires_grad=True) * 2
    assert not Fetched(given).read().requires_grad


@every_device
def test_a_tensor_with_gaps_is_fetched(device):
    given = torch.arange(12, device=device).view(3, 4)[:, 1::2]
    assert Fetched(given).read().tolist() == [[1, 3], [5, 7], [9, 11]]


@pytest.mark.gpu
def test_what_is_written_after_it_was_fetched_is_not_in_the_copy():
    given = torch.zeros(1 << 20, dtype=torch.int64, device="cuda")
    torch.cuda._sleep(10_000_000)
    fetched = Fetched(given)
    given.fill_(1)
    assert int(fetched.read().sum()) == 0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_neither_way_stops_the_cpu():
    given, here = torch.ones(1 << 16, device="cuda"), torch.ones(1 << 16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fetched, there = Fetched(given), send(here, given.device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(fetched.read(), there.cpu())


def test_versions_count_what_is_written_in_place():
    given = torch.zeros(2)
    before = version_of(given)
    assert version_of(given) == before
    given[0] = 1
    assert version_of(given) != before
    with torch.inference_mode():
        assert version_of(torch.zeros(2)) is None


class Moves(TorchFunctionMode):
    """Notes which moves do not block."""

    def __init__(self):
        super().__init__()
        self.unblocked = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to:
            self.unblocked.append((kwargs or {}).get("non_blocking", False))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "unblocked"), [("cpu", False), ("meta", True)])
def test_what_comes_to_the_cpu_is_waited_for(device, unblocked):
    with Moves() as moves:
        bring(torch.ones(3), torch.device(device))
    assert moves.unblocked == [unblocked]


@pytest.mark.gpu
def test_what_is_brought_to_the_cpu_is_there():
    busy = torch.ones(4096, 4096, device="cuda")
    for _ in range(30):
        busy = busy @ busy / 4096
    assert bring(busy[0], torch.device("cpu")).tolist() == [1.0] * 4096


def test_nobody_else_moves_a_tensor_without_waiting():
    root = Path(dft_plugin.__file__).parent
    found = [path.name for path in root.rglob("*.py") if "non_blocking" in path.read_text(encoding="utf-8")]
    assert found == ["transfer.py"]
