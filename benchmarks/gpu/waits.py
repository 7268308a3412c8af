"""How often a labelled pass waits for the device, and how many kernels it launches: ours beside the stock model."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.in_trl import config
from benchmarks.gpu.sheet import Options, Sheet

WAITING = {
    f"aten::{name}"
    for name in ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "_unique2")
}
"""Operations that give Python a number, or whose result has a size that only the device knows."""

BY_MASK = {f"aten::{name}" for name in ("index", "index_put_", "index_put", "_index_put_impl_")}
"""These wait where they are indexed by a mask."""

SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
DOWN = "Memcpy DtoH"
STEPS = 3
WARM = 4


class Waits(TorchDispatchMode):
    """Notes which operations wait, and where they were asked for; and counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note it."""
        kwargs = kwargs or {}
        schema_name = func._schema.name
        self.operations += 1
        if (
            schema_name in WAITING
            or (schema_name in BY_MASK and _by_mask(args[1]))
            or _goes_down(schema_name, args, kwargs)
        ):
            self.places[f"{schema_name.removeprefix('aten::')} at {_place()}"] += 1
        return func(*args, **kwargs)


def _by_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _goes_down(schema_name: str, args: Any, kwargs: Any) -> bool:
    """Whether the operation copies from a device to the CPU and waits for it."""
    if schema_name == "aten::_to_copy":
        target = kwargs.get("device")
        return args[0].device.type != "cpu" and target is not None and torch.device(target).type == "cpu"
    return schema_name == "aten::copy_" and args[0].device.type == "cpu" and args[1].device.type != "cpu"


def _place() -> str:
    """Name the innermost line of ours or of transformers; without one, autograd is at work."""
    stack = [f for f in traceback.extract_stack() if "dft_plugin" in f.filename or "transformers" in f.filename]
    return f"{'/'.join(stack[-1].filename.split('/')[-2:])}:{stack[-1].lineno}" if stack else "autograd's backward"


def count(options: Options, sheet: Sheet) -> None:
    """Count for the stock model, and for ours on each path, in a plain training step of a transformers model."""
    sheet.say(
        f"Forward and backward of a plain transformers model (4 layers), labels and mask on the device, after {WARM} "
        "steps; all numbers per step. Operations and waits are counted below autograd, on any device; syncs, copies "
        f"to the CPU and launches by `torch.profiler`, mean of {STEPS} steps."
    )
    sheet.head("", "operations", "waits", "where", "syncs", "copies to the CPU", "launches")
    for name, loss in {
        "stock": None,
        "ours": "dft",
        "ours, `kernel: logits`": {"name": "dft", "kernel": "logits"},
    }.items():
        try:
            found = _of(_step(options, loss), options.device)
        except Exception as error:
            sheet.row_failed(name, f"**failed: {sheet.fault(name, error)}**", "", "", "", "", "")
            continue
        sheet.keep(name, found)
        where = "; ".join(f"{number} {place}" for place, number in found["places"].items())
        profiled = [found.get(key, "not here: no CUDA") for key in ("syncs", "down", "launches")]
        sheet.row(name, found["operations"], sum(found["places"].values()), where, *profiled)


def _step(options: Options, loss: Any) -> Callable[[], None]:
    from transformers import Qwen2ForCausalLM

    from dft_plugin import attach

    torch.manual_seed(0)
    with torch.device(options.device):
        model = Qwen2ForCausalLM(config(options.small, layers=4)).to(torch.bfloat16).train()
        rows, length = (2, 16) if options.small else (8, 512)
        input_ids = torch.randint(3, model.config.vocab_size, (rows, length))
    labels = input_ids.clone()
    labels[:, : length // 4] = -100
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    if loss is not None:
        attach(model, loss)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()

    for _ in range(WARM):
        step()
    return step


def _of(step: Callable[[], None], device: str) -> dict[str, Any]:
    with Waits() as waits:
        step()
    found = {"operations": waits.operations, "places": dict(waits.places)}
    if device == "cuda":
        found |= _profiled(step)
    return found


def _profiled(step: Callable[[], None]) -> dict[str, Any]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(STEPS):
            step()
    calls: Counter[str] = Counter(event.name for event in seen.events())
    if not any(calls[key] for key in LAUNCHES):
        reason = "not here: the profiler saw no launch"
        return dict.fromkeys(("syncs", "down", "launches"), reason)
    runtime = {key: value for key, value in calls.items() if key.startswith(("cuda", "cu", "Memcpy", "Memset"))}
    return {
        "syncs": sum(runtime.get(key, 0) for key in SYNCS) / STEPS,
        "down": sum(value for key, value in runtime.items() if key.startswith(DOWN)) / STEPS,
        "launches": sum(runtime.get(key, 0) for key in LAUNCHES) / STEPS,
        "other": runtime,
    }
