"""Every causal LM of transformers as a tiny random model, and what an attached loss does with it.

Nothing here is picked by class: configs are shrunk by the names that they give their sizes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dft_plugin import attach
from dft_plugin.errors import DftError

VOCAB = 96
WIDTH = 32
HEADS = 4

_SIZES: dict[int, str] = {
    VOCAB: "vocab_size vocab_size_per_layer_input decoder_vocab_size pronunciation_vocab_size "
    "shape_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base audio_vocab_size",
    WIDTH: "hidden_size d_model n_embd dim emb_dim embedding_size embedding_dim word_embed_proj_dim out_hidden_size "
    "attention_hidden_size hidden_size_global hidden_size_per_layer_input input_embedding_size "
    "output_embedding_size lru_width router_hidden_size backbone_hidden_size ple_embed_dim projection_dim "
    "num_centroids mlp_dim output_channels vision_output_dim projector_input_dim projector_output_dim "
    "input_size shape_embed_dim pronunciation_embed_dim prompt_mid_dim base_channels",
    48: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff ffn_hidden_size dim_ff "
    "feed_forward_size moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
    "shared_intermediate_size intermediate_size_mlp expert_ffn_hidden_size dense_intermediate_size d_ff "
    "moe_shared_expert_intermediate_size d_inner",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_blocks num_layers_per_stack depth num_key_value_heads num_kv_heads "
    "num_experts_per_tok top_k_experts swa_num_key_value_heads moe_topk index_topk_blocks conf_num_hidden_layers "
    "num_query_groups moe_k num_experts_per_token n_groups",
    HEADS: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads attention_heads swa_num_attention_heads "
    "mamba_n_heads mamba_num_heads n_mamba_heads linear_num_key_heads linear_num_value_heads "
    "linear_num_heads index_n_heads num_experts n_routed_experts "
    "num_local_experts moe_num_experts zero_expert_num",
    8: "head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim linear_key_head_dim "
    "linear_value_head_dim linear_head_dim swa_head_dim dim_head d_head attention_head_size "
    "attention_head_dim kv_channels d_kv "
    "mamba_d_state state_size ssm_state_size mamba_dt_rank time_step_rank q_lora_rank kv_lora_rank o_lora_rank "
    "laurel_rank rotary_dim index_topk split_ngram_parts hc_lowrank adapter_rank gated_norm_rank patch_size "
    "prompt_length centroid_intermediate_top_k",
    16: "mamba_d_head mamba_head_dim mamba_headdim qk_head_dim chunk_size mamba_chunk_size sliding_window block_size "
    "index_block_size window_size image_size max_inference_chunksize",
    1: "num_kv_shared_layers n_group topk_group n_shared_experts",
    128: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions "
    "max_source_positions model_max_length rel_extent",
}
"""Sizes by the names that configs give them; the smaller of this and the default is taken."""

SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}


@dataclass(frozen=True)
class Finding:
    """What came of one class.

    Attributes:
        kind: `lean`, `opaque`, `logits`, `refused`, `not run` or `wrong`.
        reason: why it is not lean, or what failed.
        loss_gap: relative difference to the stock loss.
        grad_gap: norm-relative difference of all gradients to the stock ones.
    """

    kind: str
    reason: str = ""
    loss_gap: float = 0.0
    grad_gap: float = 0.0


def model_types() -> list[str]:
    """Every model type that has a causal LM, without importing any of them."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def classes(model_type: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    """The config class and the causal LM of a model type."""
    config_class = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return config_class, model_class[0] if isinstance(model_class, tuple) else model_class


QUIRKS: dict[str, Any] = {
    "is_decoder": True,
    "use_cache": False,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
    "aux_loss_coef": 0.5,
    "z_loss_coefficient": 0.1,
    "logits_scaling": 3.0,
    "logit_scale": 0.25,
    "lm_head_multiplier": 1.5,
    "final_logit_softcapping": 2.0,
    "logits_soft_cap": 2.0,
    "unpadded_vocab_size": VOCAB - 9,
    "default_language": "en_XX",
    "axial_pos_embds": False,
}
"""What models do to logits or add to the loss, turned on wherever a config knows it."""

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"fill": True},
    {"truncate": True},
    {"num_key_value_heads": HEADS},
    {"head_dim": 16},
    {"num_key_value_heads": HEADS, "fill": True},
    {"num_key_value_heads": HEADS, "head_dim": 16},
    {"num_key_value_heads": HEADS, "layer_types": ["full_attention", "full_attention"]},
    {"hidden_size_per_layer_input": 0},
    {"output_router_logits": False},
    {"layer_types": ["full_attention", "full_attention"]},
)
"""What is tried in turn where a plain small config is refused: `fill` also sets sizes whose default is
None, `truncate` cuts lists with an entry for each layer."""


def shrink(config_class: type, *, fill: bool = False, truncate: bool = False, **more: Any) -> dict[str, Any]:
    """Arguments that make a small config of this class."""
    try:
        default = config_class()
    except Exception:
        return more
    layers = [value for name, value in default.to_dict().items() if SIZES.get(name) == 2 and isinstance(value, int)]
    changes: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if isinstance(value, bool):
            if name in QUIRKS:
                changes[name] = QUIRKS[name]
        elif name in QUIRKS:
            changes[name] = QUIRKS[name]
        elif name in SIZES and ((fill and value is None) or (isinstance(value, int) and value > SIZES[name])):
            changes[name] = SIZES[name]
        elif isinstance(value, int) and name.endswith(("_token_id", "_token_index")) and value >= VOCAB:
            changes[name] = VOCAB - 1
        elif isinstance(value, float) and "drop" in name:
            changes[name] = 0.0
        elif truncate and isinstance(value, list) and len(value) in layers:
            changes[name] = value[-2:]
        if name in more:
            changes[name] = more[name]
    for name in getattr(default, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            changes[name] = shrink(type(part), fill=fill, truncate=truncate, **more)
    return changes


def build(config_class: type, model_class: type, variant: dict[str, Any]) -> PreTrainedModel:
    """A tiny random model in train mode, its dropout off."""
    if not issubclass(config_class, model_class.config_class or config_class):
        config_class = model_class.config_class
    torch.manual_seed(0)
    model = model_class(config_class(**shrink(config_class, **variant)))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        # Biases that are zero, and logits near it, would hide a bias that is dropped and a cap that is not applied.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().train()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(4, VOCAB - 16, (2, 12), generator=generator)
    labels = input_ids.clone()
    labels[:, :3] = -100
    labels[1, 7:] = -100
    return {"input_ids": input_ids, "labels": labels}


def _step(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Loss, and all gradients in one vector."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    grads = [
        (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in model.parameters() if p.requires_grad
    ]
    return float(loss), torch.cat(grads)


def study(model_type: str) -> Finding:
    """Compare the attached `nll` with the loss and gradients of the model itself."""
    try:
        config_class, model_class = classes(model_type)
    except Exception as error:
        return Finding("not run", f"{type(error).__name__}: {_first_line(error)}")
    model, stock_loss, stock_grad = None, 0.0, torch.zeros(0)
    reason = ""
    for variant in VARIANTS:
        try:
            model = build(config_class, model_class, variant)
            # Twice: a model that cannot take a second step by itself proves nothing.
            stock_loss, stock_grad = [_step(model, batch()) for _ in range(2)][1]
        except Exception as error:
            # The first failure says what is missing; the others say what a variant broke.
            reason = reason or f"{type(error).__name__}: {_first_line(error)}"
            model = None
            continue
        break
    if model is None:
        return Finding("not run", reason)
    if not (math.isfinite(stock_loss) and stock_grad.norm() > 0):
        return Finding("not run", f"its own loss is {stock_loss}, the norm of its gradient {stock_grad.norm()}")
    try:
        attachment = attach(model, "nll")
    except DftError as error:
        return Finding("refused", _first_line(error))
    try:
        loss, grad = _step(model, batch())
    except DftError as error:
        return Finding("refused", _first_line(error))
    except Exception as error:
        return Finding("wrong", f"{type(error).__name__}: {_first_line(error)}")
    loss_gap = abs(loss - stock_loss) / max(abs(stock_loss), 1e-12)
    grad_gap = float((grad - stock_grad).norm() / stock_grad.norm())
    route = attachment.route
    assert route is not None
    kind = "logits" if route.path == "logits" else "opaque" if route.why_not_lean else "lean"
    if loss_gap > 1e-4 or grad_gap > 1e-3:
        return Finding("wrong", f"{kind}: {route.why_not_lean}; {stock_loss} -> {loss}", loss_gap, grad_gap)
    return Finding(kind, route.why_not_lean or "", loss_gap, grad_gap)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def row(model_type: str) -> dict[str, str]:
    """What the checked-in table keeps of a study."""
    name = classes(model_type)[1].__name__
    finding = study(model_type)
    # Measured numbers differ between machines; what remains is the reason.
    reason = re.sub(r" \([^()]*\d[^()]*\)", "", finding.reason).removeprefix(f"{name} ")
    return {"class": name, "kind": finding.kind, "reason": reason}


def render(table: dict[str, dict[str, str]]) -> str:
    """The table of one version of transformers as Markdown, what is not lean first."""
    order = ["refused", "logits", "opaque", "not run", "lean"]
    rows = sorted(table.items(), key=lambda item: (order.index(item[1]["kind"]), item[1]["class"], item[0]))
    lines = ["| class | model type | path | why |", "|---|---|---|---|"]
    lines += [f"| `{entry['class']}` | `{name}` | {entry['kind']} | {entry['reason']} |" for name, entry in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table of the installed transformers into tests/attachment/sweep_expected.json."""
    path = Path(__file__).parents[2] / "attachment" / "sweep_expected.json"
    tables = json.loads(path.read_text()) if path.exists() else {}
    tables[transformers.__version__] = {model_type: row(model_type) for model_type in model_types()}
    path.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
