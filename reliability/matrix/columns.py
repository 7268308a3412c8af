"""The columns: what a run is made of. The same in every row, whatever engine stands below."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from support import attached, spoiled, tiny, training
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

from reliability.matrix.names import BYPASSED, LEFT_OUT, STOPPED

STEPS, BATCH = 3, 2
Rows = list[dict[str, list[int]]]
Base = Callable[..., Any]
"""Makes a model of a row: keywords are changes of the config, and `quantised`, `experts`."""


@dataclass(frozen=True)
class Column:
    """What one column changes.

    Attributes:
        make: the model, from the row's way to make one.
        accumulation: micro-batches of a step, on each rank.
        masked: whether some micro-batches hold no target, each on one rank.
        evaluates: whether what was trained is evaluated, with a last batch that is not full.
        bypasses: whether something takes over the model's forward behind the first step.
        nonfinite: what becomes of the second step, of which one row makes NaN; empty: all are finite.
    """

    make: Callable[[Base], Any]
    accumulation: int = 1
    masked: bool = False
    evaluates: bool = False
    bypasses: bool = False
    nonfinite: str = ""

    @property
    def compared(self) -> int:
        """How many steps are compared: those that trained something."""
        return {"": STEPS, "skip": STEPS - 1, "error": 1}[self.nonfinite]

    @property
    def loss(self) -> dict[str, str]:
        """What stands after `loss:`."""
        return {"name": "dft", **({"nonfinite": self.nonfinite} if self.nonfinite else {})}

    def rows(self, shares: int) -> Rows:
        """Return the rows of a run, in the order of training: step, micro-batch, share."""
        rows = training.rows(STEPS * self.accumulation * shares * BATCH)
        if self.masked:
            first = shares - 1
            second = self.accumulation * shares + (self.accumulation - 1) * shares
            for micro_batch in (first, second):
                for row in rows[micro_batch * BATCH : (micro_batch + 1) * BATCH]:
                    row["labels"] = [-100] * len(row["labels"])
        if self.nonfinite:
            for row in rows:
                row["input_ids"] = [tiny.VOCAB - 2 if token == spoiled.BAD else token for token in row["input_ids"]]
            # The last row of the second step: of ranks that have rows of their own, one has it.
            rows[2 * self.accumulation * shares * BATCH - 1]["input_ids"][0] = spoiled.BAD
        return rows

    def held_out(self, shares: int) -> Rows:
        """Return rows of which the last round is not full: one row for one rank, none for the others."""
        return training.rows(BATCH * shares + 1, seed=1)


def _plain(base: Base, **changes: Any) -> Any:
    return base(**changes).train()


def _adapted(base: Base, quantised: bool = False, **config: Any) -> Any:
    """A PEFT model whose adapters are not zero, the same on every rank: peft draws from the global generator."""
    model = base(quantised=quantised, **({"hidden_size": 64, "intermediate_size": 128} if quantised else {})).train()
    if quantised:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **config}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **given))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                value = torch.randn(parameter.shape, generator=generator) * 0.1
                if isinstance(parameter, DTensor):
                    value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
                parameter.copy_(value)
    return adapted.train()


def _checkpointed(base: Base, reentrant: bool) -> Any:
    model = _plain(base)
    attached.checkpoint(model, reentrant)
    return model


def _spoiled(base: Base) -> Any:
    model = _plain(base)
    # Not on the embedding, which DeepSpeed's AutoTP replaces.
    model.model.register_forward_hook(_spoil, with_kwargs=True)
    return model


def _spoil(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """Make the hidden states of a row NaN that has the bad token."""
    del module, args
    bad_B = (kwargs["input_ids"] == spoiled.BAD).any(-1)
    output["last_hidden_state"] = output.last_hidden_state.masked_fill(bad_B[:, None, None], float("nan"))
    return output


HEAD_TOO = ["q_proj", "v_proj", "lm_head"]
COLUMNS: dict[str, Column] = {
    "full, tied": Column(functools.partial(_plain, tie_word_embeddings=True)),
    "full, untied": Column(_plain),
    "LoRA": Column(_adapted),
    "LoRA on the head": Column(functools.partial(_adapted, target_modules=HEAD_TOO)),
    "modules_to_save": Column(functools.partial(_adapted, modules_to_save=["lm_head"])),
    "DoRA on the head": Column(functools.partial(_adapted, target_modules=HEAD_TOO, use_dora=True)),
    "QLoRA": Column(functools.partial(_adapted, quantised=True)),
    "MoE router loss": Column(functools.partial(_plain, experts=True, output_router_logits=True)),
    "checkpointing, reentrant": Column(functools.partial(_checkpointed, reentrant=True)),
    "checkpointing, not reentrant": Column(functools.partial(_checkpointed, reentrant=False)),
    "accumulation 3, uneven tokens": Column(_plain, accumulation=3),
    "all-masked micro-batch": Column(_plain, accumulation=2, masked=True),
    "evaluation, partial last batch": Column(_plain, evaluates=True),
    "odd vocabulary": Column(functools.partial(_plain, vocab_size=tiny.VOCAB + 3)),
    LEFT_OUT: Column(_spoiled, accumulation=2, nonfinite="skip"),
    STOPPED: Column(_spoiled, accumulation=2, nonfinite="error"),
    BYPASSED: Column(_plain, bypasses=True),
}


class TakeOver(TrainerCallback):
    """Puts the model's own forward in the place of ours, behind the first step."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Take over."""
        own = type(self.model).forward
        self.model.forward = functools.partial(own, self.model)
