"""Small tensors on their way between a device and the CPU, so that neither waits for the other without need."""

from __future__ import annotations

import torch
from torch import Tensor


class Fetched:
    """A copy on the CPU of what a tensor holds now; the device goes on working meanwhile.

    On CUDA it is queued behind the work that is queued already, into pinned memory. `read` waits for no more than
    that, so what is queued between the two keeps the device busy. Other devices are waited for at once, before there
    is more to wait for. A tensor on the CPU is not copied.

    Args:
        tensor: of any dtype, on any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type != "cuda" or not tensor.numel():
            self._copy = tensor.detach().to("cpu")
            return
        self._copy, self._arrived = _fetch(tensor)

    def read(self) -> Tensor:
        """Return the copy, once it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._copy


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor on the CPU to a device; CUDA gets it in its turn, with nobody waiting.

    Args:
        tensor: on the CPU.
        device: where it is needed.
    """
    if device.type != "cuda" or not tensor.numel():
        return tensor.to(device)
    sent: Tensor = _send(tensor, device)
    return sent


def bring(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from where it is to where it is needed; nobody waits for what goes to an accelerator.

    What comes to the CPU is there when this returns: a copy that does not block fills memory that may be read before.

    Args:
        tensor: of any dtype, on any device.
        device: where it is needed.
    """
    return tensor.to(device, non_blocking=device.type != "cpu")


# Torch 2.11's compiler pins on the device what it makes of these.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def _fetch(tensor: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    copy = pinned.copy_(tensor.detach(), non_blocking=True)
    return copy, torch.cuda.current_stream(tensor.device).record_event()


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def _send(tensor: Tensor, device: torch.device) -> Tensor:
    # From memory that is not pinned, the CPU would wait for the copy.
    return tensor.pin_memory().to(device, non_blocking=True)


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written in place; None if it is one of inference mode, which are not counted."""
    return None if tensor.is_inference() else tensor._version
