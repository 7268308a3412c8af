"""The model card of LLaMA-Factory, which is written by the Trainer's own function, past what stands on the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dft_plugin.config.handover import swapped
from dft_plugin.hf.recorded import complete_card


@contextmanager
def completing() -> Iterator[None]:
    """Have the cards that are written in this block say which loss was trained."""
    from llamafactory.train.sft import workflow

    write = workflow.create_modelcard_and_push

    def write_and_complete(trainer: Any, *args: Any, **kwargs: Any) -> None:
        try:
            write(trainer, *args, **kwargs)
        finally:
            complete_card(trainer)

    with swapped(workflow, "create_modelcard_and_push", write_and_complete):
        yield
