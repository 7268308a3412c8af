"""Any class of transformers as a tiny random model.

Nothing here is picked by class: configs are shrunk by the names that they give their sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

VOCAB = 96
WIDTH = 32
HEADS = 4

TOKENS = {
    name: VOCAB - 1 - i
    for i, names in enumerate(
        (
            "image_token_id image_token_index im_token_id img_context_token_id image_token media_placeholder_token_id",
            "video_token_id video_token_index",
            "audio_token_id audio_token_index speech_token_id",
            "vision_start_token_id image_start_token_id boi_token_index boi_token_id",
            "vision_end_token_id image_end_token_id eoi_token_index eoi_token_id",
            "audio_start_token_id boa_token_id",
            "audio_end_token_id eoa_token_index eoa_token_id",
            "pad_token_id",
        )
    )
    for name in names.split()
}
"""Ids of tokens that stand for something else; a batch of text holds none."""

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

_TOWER_SIZES: dict[int, str] = {
    WIDTH: "embed_dim encoder_hidden_size hidden_dim output_dim input_dim image_text_hidden_size encoder_dim "
    "patch_embed_hidden_size vision_hidden_size mm_hidden_size vision_embed_dim upsample_groups codebook_dim "
    "vector_quantization_hidden_dimension spk_hidden_size backbone_dim vit_hidden_size",
    2: "layers depths num_layers",
    HEADS: "latent_query_num num_query_tokens num_codebooks num_quantizers resampler_n_latents num_queries "
    "max_num_tiles max_aspect_ratio num_sampled_tokens perceiver_num_queries mm_tokens_per_image",
    8: "num_filters n_filters context_size resampler_head_dim n_window",
    16: "num_mel_bins n_mels mel_dim max_num_patches image_seq_length",
    64: "codebook_size max_pos_emb max_patches",
    4 * WIDTH: "intermediate_size",
}
TOWER_SIZES = {name: size for size, names in _TOWER_SIZES.items() for name in names.split()}
"""Sizes of what sees and hears, beside a language model."""

TOWER_QUIRKS: dict[str, Any] = {
    "vision_feature_layer": -1,
    "vision_feature_layers": [-1, -2],
    "image_grid_pinpoints": [[16, 16]],
    "projector_patch_to_query_dict": {4: 4},
    "cross_attention_layers": [1],
    "spatial_target_layers": [0, 1],
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
}
"""Which layers and shapes a language model looks at, of towers as small as these."""

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


def shrink(
    config_class: type,
    *,
    fill: bool = False,
    truncate: bool = False,
    apart: bool = False,
    mrope: tuple[int, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    """Arguments that make a small config of this class.

    Args:
        config_class: a class of transformers.
        fill: set sizes whose default is None, too.
        truncate: cut lists with an entry for each layer.
        apart: give each token that stands for something else an id of its own.
        mrope: how rotary positions are split into time, height and width; the lengths add up to half a head.
        more: what to set by name, wherever a config knows it.
    """
    try:
        default = config_class()
    except Exception:
        return more
    sizes = {**SIZES, **TOWER_SIZES} if apart else SIZES
    layers = [value for name, value in default.to_dict().items() if SIZES.get(name) == 2 and isinstance(value, int)]
    changes: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if isinstance(value, bool):
            if name in QUIRKS:
                changes[name] = QUIRKS[name]
        elif name in QUIRKS:
            changes[name] = QUIRKS[name]
        elif name in sizes and ((fill and value is None) or (isinstance(value, int) and value > sizes[name])):
            changes[name] = sizes[name]
        elif apart and name in TOKENS:
            changes[name] = TOKENS[name]
        elif apart and name in TOWER_QUIRKS:
            quirk = TOWER_QUIRKS[name]
            changes[name] = [1, 0] if isinstance(value, (list, tuple)) and isinstance(quirk, int) else quirk
        elif apart and name in ("image_size", "patch_size") and isinstance(value, (list, tuple)):
            changes[name] = [SIZES[name]] * len(value)
        elif isinstance(value, int) and name.endswith(("_token_id", "_token_index")) and value >= VOCAB:
            changes[name] = VOCAB - 1
        elif isinstance(value, float) and "drop" in name:
            changes[name] = 0.0
        elif truncate and isinstance(value, list) and len(value) in layers:
            changes[name] = value[-2:]
        elif mrope and name in ("rope_parameters", "rope_scaling"):
            changes[name] = {"rope_type": "default", **(value or {}), "mrope_section": list(mrope)}
        if name in more:
            changes[name] = more[name]
    if apart and (hasattr(default, "audio_config") or hasattr(default, "vision_config")):
        # Some configs have these from their checkpoints alone.
        names = ("vision_start_token_id", "vision_end_token_id", "audio_start_token_id", "audio_end_token_id")
        changes |= {name: TOKENS[name] for name in names if not hasattr(default, name)}
    for name, sort in getattr(default, "sub_configs", {}).items():
        part = type(getattr(default, name, None))
        if part is type(None) and apart and hasattr(sort, "model_type"):
            part = sort
        if part is not type(None):
            changes[name] = shrink(part, fill=fill, truncate=truncate, apart=apart, mrope=mrope, **more)
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
