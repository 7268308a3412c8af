"""transformers' own test of overfitting (tests/test_training_mixin.py of its sdist) on tiny models."""

import importlib.util
import os
import types
import unittest

import transformers
import under

spec = importlib.util.spec_from_file_location("test_training_mixin", os.environ["UNDER_MIXIN"])
mixin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mixin)

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 97,
    "eos_token_id": 98,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
KINDS = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {},
    "Gemma2": {"head_dim": 8},
    "Phi3": {},
    "Olmo2": {},
    "Cohere": {},
    "Granite": {},
    "GPTNeoX": {},
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {**MOE, "head_dim": 8},
}


def asked_for(kind, changes):
    """Return what the mixin asks for: a config, a batch to look at, and the class of the model."""
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})

    def make(given):
        model = getattr(transformers, f"{kind}ForCausalLM")(given)
        return under.watched_model(model)

    make.__name__ = f"{kind}ForCausalLM"
    return types.SimpleNamespace(
        is_training=True,
        causal_lm_class=make,
        get_config=lambda: config,
        prepare_config_and_inputs_for_common=lambda: (config, {"input_ids": None}),
    )


for kind, changes in KINDS.items():
    name = f"Test{kind}"
    members = {"model_tester": property(lambda self, kind=kind, changes=changes: asked_for(kind, changes))}
    globals()[name] = type(name, (mixin.TrainingTesterMixin, unittest.TestCase), members)
