"""A platform of verl's that is this CPU: what `VERL_USE_EXTERNAL_MODULES=verl_on_cpu` registers, before anything asks.

verl has platforms for accelerators. Its FSDP2 engine runs on a CPU as soon as one answers for it (FSDP1 refuses).
"""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
    # Engines are registered for devices that are sold.
    "VERL_ENGINE_DEVICE": "cuda",
}


def nothing(*_: Any, **__: Any) -> None:
    """Do it."""


class Device(ModuleType):
    """What `torch.cuda` is to verl, of a device without memory or streams of its own."""

    set_device = synchronize = empty_cache = reset_peak_memory_stats = staticmethod(nothing)
    current_device = get_device_name = staticmethod(lambda *_: "cpu")
    device_count = staticmethod(lambda: 1)
    is_available = is_initialized = staticmethod(lambda: True)
    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = staticmethod(lambda *_: 0)
    mem_get_info = staticmethod(lambda *_: (1 << 30, 1 << 31))
    manual_seed = staticmethod(torch.manual_seed)
    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *_: torch.set_rng_state(state))


DEVICE = Device("torch.cpu_for_verl")


@PlatformRegistry.register(platform="cpu")
class Cpu(PlatformBase):
    """Abstract methods in the order of their class."""

    device_name = vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: DEVICE)

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    set_device = synchronize = set_allocator_settings = empty_cache = profiler_start = profiler_stop = nothing

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CPU_VISIBLE_DEVICES"

    def nvtx_range(self, msg):
        return contextlib.nullcontext()

    def ray_resource_name(self):
        return "CPU"

    def ray_resource_options(self, num_gpus):
        return {"num_cpus": num_gpus}

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


def once_for_each_device() -> None:
    """Let verl ask for `cpu:gloo,cpu:gloo`, which torch takes for two backends of one device."""
    plain = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **named: Any) -> None:
        plain("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **named)

    torch.distributed.init_process_group = init_process_group


once_for_each_device()
