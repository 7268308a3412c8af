"""Classes that compute their loss by themselves, without `loss_function`, as many of transformers do."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast


class Own(LlamaForCausalLM):
    """Scores its own logits, as `score` says, without `loss_function`."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits = self.lm_head(hidden)
        loss = None if labels is None else self.score(logits.float(), labels, attention_mask)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def score(self, logits: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class WithoutPadding(Own):
    """As Qwen2-Audio, Granite Speech, Llava, and Gemma 3 and Llama 4 of older releases."""

    def score(self, logits: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        if attention_mask is None:
            return super().score(logits, labels, attention_mask)
        kept = attention_mask[:, 1 - logits.shape[1] :] != 0
        return nn.functional.cross_entropy(logits[:, :-1][kept], labels[:, 1:][kept])
