"""What every engine gives, and the plain Trainer's own ways: one process, and DDP."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from support import tiny
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def base_of(model: Any) -> Any:
    """Return the causal LM below PEFT."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def made(experts: bool, **changes: Any) -> Any:
    """Return a tiny model, the same on every rank."""
    if not experts:
        changes.pop("output_router_logits", None)
        return tiny.llama(**changes)
    return tiny.mixtral(**{"output_router_logits": False, **changes})


def four_bits() -> BitsAndBytesConfig:
    """Return how a model of QLoRA is loaded."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


class Engine:
    """One process, or DDP where there are several: what the Trainer does by itself.

    Args:
        folder: of this rank and cell, empty.
        experts: whether its model has experts in every column.
    """

    def __init__(self, folder: Path, experts: bool = False) -> None:
        self.folder, self.experts = folder, experts

    def arguments(self) -> dict[str, Any]:
        """Return what it wants of `TrainingArguments`."""
        return {}

    def around(self) -> AbstractContextManager[Any]:
        """Return what has to hold while trainers are made and run."""
        return nullcontext()

    def base(self, *, experts: bool = False, quantised: bool = False, **changes: Any) -> Any:
        """Return a model on which nothing is split yet, or which is split while it is loaded."""
        model = made(experts or self.experts, **changes)
        return self.loaded(model) if quantised else model

    def loaded(self, model: Any, **how: Any) -> Any:
        """Save a model, and load it in 4 bits or as `how` says."""
        how = how or {"quantization_config": four_bits(), "device_map": {"": "cpu"}}
        # Of several ranks transformers lets the first alone write.
        place = self.folder.parent / "model"
        model.save_pretrained(place)
        dist.barrier()
        with warnings.catch_warnings():
            # Loading warns of what it finds missing on a machine without a GPU.
            warnings.simplefilter("ignore")
            found = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **how)
        dist.barrier()
        return found

    def install(self, trainer: Any) -> None:
        """Put the engine below a trainer that is made and not started."""

    def is_split(self, trainer: Any) -> bool:
        """Say whether the run was what this row claims; else nothing is proved."""
        return dist.get_world_size() == 1 or isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel)

    def weights(self, trainer: Any) -> dict[str, Tensor]:
        """Return what was trained, whole, by the names that the model has on one process. Every rank must call it."""
        return named(trainer.model)


def named(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters, whole, without the names of wrappers."""
    found = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # An evaluation leaves them gathered.
            module.reshard()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            found[name] = full(parameter.detach()).clone()
    return found


def full(tensor: Tensor) -> Tensor:
    """Return all of a DTensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Wrapping(Engine):
    """An engine that splits a whole model after the loss was put on it, in the place where accelerate would.

    On a CPU, accelerate turns `fsdp` and `deepspeed` into DDP, which would prove nothing.
    """

    def wrap(self, trainer: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Return the model to call, and an optimizer of its parameters."""
        raise NotImplementedError

    def install(self, trainer: Any) -> None:
        """Take the place of `accelerator.prepare` for a model, and no other thing."""
        accelerator = trainer.accelerator
        prepare = accelerator.prepare

        def instead(*objects: Any, **options: Any) -> Any:
            if not isinstance(objects[0], nn.Module):
                return prepare(*objects, **options)
            model, optimizer = self.wrap(trainer, *objects)
            accelerator._models.append(model)
            return model, optimizer if hasattr(optimizer, "step_was_skipped") else prepare(optimizer)

        accelerator.prepare = instead
        accelerator.no_sync = self.no_sync

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """Keep gradients where they are; not every engine can."""
        yield


def sgd(model: nn.Module, like: Any) -> torch.optim.SGD:
    """Return the optimizer of a trainer, over parameters that an engine has replaced."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=like.param_groups[0]["lr"])
