"""Shrunken copies of the architectures that transformers knows; scripts/architectures.py trains them.

A copy has a few layers, of every kind that its config class has by default, small widths, few experts, a small tower
for images or sound, and the embedded model's tokenizer.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

HIDDEN, HEADS, HEAD_DIM, INNER, EXPERTS, LAYERS = 64, 4, 16, 96, 4, 2
VOCABULARY = 1856
"""The embedded tokenizer's 1800, and room above it for tokens that stand for images and sound."""
SMALL: dict[str, Any] = {
    # widths
    **dict.fromkeys((
        "hidden_size", "n_embd", "d_model", "dim", "embed_dim", "out_hidden_size", "output_dim", "embedding_size",
        "projection_dim", "projection_hidden_size", "projector_hidden_size", "projector_input_dim",
        "projector_output_dim", "vision_output_dim", "text_hidden_size", "thinker_hidden_size", "mamba_d_ssm",
    ), HIDDEN),
    **dict.fromkeys((
        "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "encoder_ffn_dim", "mlp_dim",
        "intermediate_size_mlp", "dense_intermediate_size", "vision_intermediate_size",
    ), INNER),
    **dict.fromkeys((
        "moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
        "shared_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size",
    ), INNER // 2),
    # attention
    **dict.fromkeys((
        "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads",
        "conf_num_attention_heads", "linear_num_heads", "linear_num_value_heads", "index_n_heads",
    ), HEADS),
    **dict.fromkeys((
        "head_dim", "v_head_dim", "qk_nope_head_dim", "linear_head_dim", "linear_key_head_dim",
        "linear_value_head_dim", "index_head_dim", "attention_head_dim", "swa_head_dim", "swa_v_head_dim",
    ), HEAD_DIM),
    "linear_num_key_heads": HEADS // 2, "qk_rope_head_dim": HEAD_DIM // 2, "rotary_dim": HEAD_DIM // 2,
    **dict.fromkeys((
        "q_lora_rank", "kv_lora_rank", "o_lora_rank", "laurel_rank", "mamba_dt_rank", "time_step_rank",
    ), HEAD_DIM),
    **dict.fromkeys(("index_topk", "index_block_size"), 16), "index_topk_blocks": 2,
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys((
        "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k", "moe_topk", "top_k_experts",
    ), 2),
    "n_group": 2, "num_expert_group": 2, "topk_group": 1, "zero_expert_num": 2,
    # state spaces
    "mamba_n_heads": HEADS, "mamba_num_heads": HEADS, "mamba_d_head": HEAD_DIM, "mamba_head_dim": HEAD_DIM,
    **dict.fromkeys((
        "mamba_d_state", "ssm_state_size", "state_size", "mamba_chunk_size", "chunk_size", "block_size",
    ), 16),
    # towers
    "image_size": 32, "patch_size": 8, "position_embedding_size": 64, "num_position_embeddings": 16,
    "pos_emb_height": 4, "pos_emb_width": 4, "output_channels": 32, "num_mel_bins": 16, "max_source_positions": 32,
    "fullatt_block_indexes": [0], "deepstack_visual_indexes": [0], "global_attn_indexes": [0],
    "window_size": 2, "sub_configs": None, "num_global_layers": 1,
    "intermediate_layers_indices": [0], "downsample_hidden_size": 16, "n_window": 4, "n_window_infer": 8,
    # ends
    "max_position_embeddings": 512, "n_positions": 512, "max_seq_len": 512, "model_max_length": 512,
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16,
    "additional_vocab_size": 16, "global_head_dim": 2 * HEAD_DIM, "first_k_dense_replace": 1,
    "downsample_channels": [32, 64], "mm_embed_dim": HIDDEN, "mm_posemb_size": 64,
}  # fmt: skip
LAYER_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "conf_num_hidden_layers",
)  # fmt: skip
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads")
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
"""The embedded tokenizer's."""
DERIVED = ("qk_head_dim", "per_layer_config", "architectures")
"""What config classes make of other values themselves."""
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
_HALF_MROPE = {
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2],
    },
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "dots1": {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": EXPERTS, "top_k_experts": 2, "moe_intermediate_size": INNER // 2,
        "global_head_dim": 2 * HEAD_DIM},
    "gemma3n_text": {"num_kv_shared_layers": 1, "vocab_size": VOCABULARY + 8, "vocab_size_per_layer_input": VOCABULARY},
    "granitemoehybrid": {"mamba_d_head": 2 * HIDDEN // HEADS, "layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": HEAD_DIM}, "hunyuan_v1_moe": {"head_dim": HEAD_DIM},
    "hunyuan_vl_text": {
        "head_dim": HEAD_DIM,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]},
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": None, "block_multiple_of": 32},
    "llama4_text": {
        "moe_layers": [1], "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
    },
    "mamba": {"intermediate_size": 2 * HIDDEN},
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "nemotron_h": {"n_groups": 2},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": INNER // 2},
    "ernie4_5_vl_moe_text": {"rope_parameters": _MROPE["rope_parameters"] | {"mrope_section": [3, 3, 2]}},
    "longcat_flash": {"head_dim": HEAD_DIM // 2},
    "qwen3_omni_moe": {"enable_audio_output": False}, "qwen2_5_omni": {"enable_audio_output": False},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 1840, "vision_end_token_id": 1841},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 1840, "vision_end_token_id": 1841},
    "gemma4_text": {"global_head_dim": 2 * HEAD_DIM}, "gemma4_unified_text": {"global_head_dim": 2 * HEAD_DIM},
    **dict.fromkeys((
        "glm4v_text", "glm_ocr_text", "paddleocr_vl_text", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text",
        "qwen2_5_omni_talker", "qwen3_omni_moe_text", "qwen3_vl_text", "qwen3_vl_moe_text",
    ), _MROPE),
    "glm4v_moe_text": _HALF_MROPE,
}  # fmt: skip
"""What a model_type needs otherwise, so that its parts fit each other or every kind of layer is there."""


def config(model_type: str) -> PreTrainedConfig:
    """A shrunken config of `model_type`."""
    whole = AutoConfig.for_model(model_type)
    return type(whole)(**_small(_filled(whole), model_type, {}))


def _filled(config: PreTrainedConfig) -> dict[str, Any]:
    """The values of `config`, with a default for each part that is left out."""
    values = config.to_dict()
    for name, kind in config.sub_configs.items():
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            values[name] = _filled(part)
        elif part is None and kind is not AutoConfig:
            values[name] = _filled(kind())
    return values


def _small(values: dict[str, Any], model_type: str, tokens: dict[str, int]) -> dict[str, Any]:
    """`values` of a config, made small, with those of its parts; `tokens`: ids given out so far, by name."""
    chosen = _layers(values)
    count = next((values[name] for name in LAYER_COUNTS if values.get(name)), 0)
    made = {}
    for name, value in values.items():
        if name in DERIVED or (name == "head_dim" and "kv_lora_rank" in values):
            continue
        if isinstance(value, dict) and name.endswith("_config"):
            value = _small(value, model_type, tokens)
        elif _is_places(value, count):
            value = list(range(len(chosen)))
        elif isinstance(value, list) and len(value) == count:
            value = [_value(name, value[layer], values, tokens) for layer in chosen]
        elif name in LAYER_COUNTS and value:
            value = len(chosen)
        else:
            value = _value(name, value, values, tokens)
        made[name] = value
    return made | OWN.get(str(values.get("model_type")), {})


def _layers(values: dict[str, Any]) -> list[int]:
    """The first layer of each kind by the lists that have a value a layer; two where there are no such lists."""
    count = next((values[name] for name in LAYER_COUNTS if values.get(name)), 0)
    lists = [
        value
        for value in values.values()
        if isinstance(value, list) and len(value) == count and not _is_places(value, count)
    ]
    kinds = list(zip(*lists, strict=True)) if count > 1 else []
    first = sorted({kinds.index(kind) for kind in kinds})
    return first if len(first) > 1 else list(range(LAYERS))


def _is_places(value: Any, count: int) -> bool:
    """Whether a list names all layers by their places."""
    return count > 0 and value == list(range(count))


def _value(name: str, value: Any, values: dict[str, Any], tokens: dict[str, int]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if name in ENDS:
        return ENDS[name]
    if name in KEY_HEADS:
        heads = values.get("num_attention_heads", values.get("num_heads", 0))
        return HEADS if value == heads else min(value, HEADS // 2)
    if name in SMALL:
        return (
            [SMALL[name]] * len(value) if isinstance(value, list) and not isinstance(SMALL[name], list) else SMALL[name]
        )
    if isinstance(value, int) and name.endswith(("_token_id", "_token_index", "_id")):
        return tokens.setdefault(name, 1800 + len(tokens))
    return 0.1 if name == "initializer_range" else value
