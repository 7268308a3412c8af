"""Cut Cross-Entropy without a GPU: its own CPU code instead of its kernels, and a word on each loss it computes."""

import dataclasses
import functools
import sys

import torch
from axolotl.integrations.base import BasePlugin

# Before the package decorates its CPU code: no C++ compiler is needed to run it as it is written.
torch.compile = functools.partial(torch.compile, backend="eager")


def told(function):
    @functools.wraps(function)
    def telling(*args, **kwargs):
        loss = function(*args, **{**kwargs, "impl": "torch_compile"})
        sys.stderr.write(f"cut-cross-entropy computed {float(loss)}\n")
        return loss

    return telling


class ForkOnCpu(BasePlugin):
    """After Axolotl's plugin, which has patched the model's class by then."""

    def pre_model_load(self, cfg):
        from cut_cross_entropy.transformers import llama, utils

        utils.linear_cross_entropy = told(utils.linear_cross_entropy)
        llama._PATCH_OPTS = dataclasses.replace(llama._PATCH_OPTS, impl="torch_compile")


class PatchLlama(BasePlugin):
    """What the fork does to Llama, with the package that PyPI has."""

    def pre_model_load(self, cfg):
        from cut_cross_entropy import linear_cross_entropy
        from transformers import LlamaForCausalLM
        from transformers.modeling_outputs import CausalLMOutputWithPast

        score = told(linear_cross_entropy)

        def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, **kwargs):
            kwargs.pop("num_items_in_batch", None)
            hidden = self.model(input_ids, attention_mask, position_ids, **kwargs).last_hidden_state
            if labels is None:
                return CausalLMOutputWithPast(logits=self.lm_head(hidden))
            return CausalLMOutputWithPast(loss=score(hidden, self.lm_head.weight, labels, shift=True))

        LlamaForCausalLM.forward = forward
