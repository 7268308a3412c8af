"""A causal LM whose subclasses do something of their own to head, logits or loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from support import tiny


class Odd(LlamaForCausalLM):
    """Its logits go through `odd`, its loss through `finish`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        torch.manual_seed(3)
        self.prepare()

    def prepare(self) -> None:
        """Make what is trained besides."""

    def project(self, hidden_BSD: Tensor) -> Tensor:
        """Call the head."""
        return self.lm_head(hidden_BSD)

    def odd(self, logits: Tensor, hidden_BSD: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Do something to the logits."""
        return logits

    def finish(self, logits: Tensor, labels: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Make the loss."""
        return self.loss_function(logits, labels, self.config.vocab_size, **kwargs)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        heat: float = 1.0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        hidden_BSD = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.odd(self.project(hidden_BSD), hidden_BSD, {**kwargs, "heat": heat})
        loss = None if labels is None else self.finish(logits, labels, kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


def build(kind: type[Odd], **changes: Any) -> Odd:
    """One of them, tiny, random, always the same."""
    config = tiny.llama(**changes).config
    torch.manual_seed(0)
    return kind(config).train()
